"""How the state of every full-size stage lies on pod slices, compared with `tests/golden/sharding/`.

Stage 3 has 32 rows, or 128: on more chips it is there with heads split over `tensor`, without that it is refused.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from qwenvl_jax.chips import parse_topology
from qwenvl_jax.runtime.errors import UserError
from tests.sharding import make_golden_sharding as golden


@pytest.mark.parametrize("case", golden.CASES)
def test_shardings_are_those_of_the_golden_file(case: str) -> None:
    expected = (golden.FOLDER / f"{case}.json").read_text()
    text = golden.text_of(*golden.CASES[case])
    difference = [line for line in text.splitlines() if line not in expected.splitlines()]
    assert text == expected, "\n".join(
        [f"not in {case}.json; if meant, run tests/sharding/make_golden_sharding.py:", *difference]
    )


def test_every_file_has_a_case() -> None:
    assert {path.stem for path in golden.FOLDER.iterdir()} == set(golden.CASES)


@pytest.mark.parametrize("case", golden.CASES)
def test_bytes_follow_from_shapes_and_partitions(case: str) -> None:
    """The arithmetic again, from the file alone."""
    value = json.loads((golden.FOLDER / f"{case}.json").read_text())
    mesh, parameters = value["mesh"], value["parameters"]
    assert math.prod(mesh.values()) == parse_topology(golden.CASES[case][1]).devices
    whole = local = trained = 0
    for name, leaf in parameters.items():
        used = [axis for axes in leaf["spec"] for axis in ([axes] if isinstance(axes, str) else axes or [])]
        assert len(leaf["spec"]) == len(leaf["shape"]) and len(set(used)) == len(used), name
        size = math.prod(leaf["shape"]) * (2 if leaf["dtype"] == "bfloat16" else np.dtype(leaf["dtype"]).itemsize)
        assert leaf["bytes_per_device"] * math.prod(mesh[axis] for axis in used) == size, name
        whole, local = whole + size, local + leaf["bytes_per_device"]
        trained += size if leaf["state"] == "trainable" else 0
        assert used or size < 8 * 2**20, name
    assert (value["total"]["bytes"], value["total"]["bytes_per_device"]) == (whole, local)
    for key, total in value["total"].items():
        assert sum(tower[key] for tower in value["towers"].values()) == total
    assert value["optimizer"]["device"]["bytes"] == 2 * trained + 4  # two moments and a counter
    assert {name.split("/")[0] for name in parameters} == {"vit", "resampler", "decoder"}


@pytest.mark.parametrize("topology", ["v5e:8x8", "v6e:8x8", "v4:4x4x4", "v5p:4x4x4", "tpu7x:2x4x4"])
def test_stage_3_without_split_heads_is_refused_on_more_chips_than_it_has_rows(topology: str) -> None:
    with pytest.raises(UserError, match=r"a microbatch of 32 rows .* cannot be split over data x fsdp"):
        golden.text_of(3, topology, {})
    golden.text_of(3, topology, {"mesh.tensor": 2})


def test_a_changed_partition_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenvl_jax.sharding import rules

    expected = Path(golden.FOLDER / "stage2_v5p_8x8x8.json").read_text()
    monkeypatch.setitem(rules.LOGICAL_AXES, "vit/proj", ("none", "width"))
    text = golden.text_of(*golden.CASES["stage2_v5p_8x8x8"])
    changed = [line for line in text.splitlines() if line not in expected.splitlines()]
    assert len(changed) == 1 and '"vit/proj"' in changed[0]
