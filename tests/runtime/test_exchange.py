"""What processes tell one another without any device: real processes over loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.errors import UserError
from tests.runtime.processes import Parent, joined

JOIN = """
import json, os, sys
from qwenvl_jax.runtime import distributed
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error
distributed.initialize()
me = distributed.process_index()
"""


def test_one_process_asks_and_all_are_told(parent: Parent) -> None:
    code = JOIN + (
        "asked = []\n"
        "def ask():\n"
        "    asked.append(me)\n"
        "    return {'step': 30, 'names': ['a', 'ü'], 'none': None, 'by': me}\n"
        "first, second = distributed.from_primary(ask), distributed.from_primary(lambda: 'x' * 5_000_000)\n"
        "distributed.agree({'step': str(first['step']), 'size': str(len(second))})\n"
        "import jax.extend.backend, jax._src.xla_bridge as bridge\n"
        "print(json.dumps([first, len(second), asked, bridge.backends_are_initialized()]))\n"
    )
    ended = parent.run(code, joined(3))
    told = {"step": 30, "names": ["a", "ü"], "none": None, "by": 0}
    for index, one in enumerate(ended):
        assert one.code == 0, one.err
        assert json.loads(one.out) == [told, 5_000_000, [0] if index == 0 else [], False]


@pytest.mark.parametrize(
    ("error", "sentence", "code"),
    [("UserError('no such bucket')", "error: no such bucket\n", 2), ("KeyError('x')", "ended with KeyError: 'x'", 1)],
)
def test_an_error_of_process_0_is_everybodys(parent: Parent, error: str, sentence: str, code: int) -> None:
    source = JOIN + (f"def ask():\n    raise {error}\nwith exit_on_user_error():\n    distributed.from_primary(ask)\n")
    first, *others = parent.run(source, joined(3))
    assert first.code != 0
    for one in others:
        assert one.code == code and sentence in one.err, one


def test_the_process_that_differs_is_named_to_all(parent: Parent) -> None:
    source = JOIN + (
        "facts = {'the code': 'abc', 'the config': 'c1'}\n"
        "if me == 2:\n"
        "    facts['the config'] = 'c2'\n"
        "with exit_on_user_error():\n"
        "    distributed.agree({'the code': 'abc'})\n"
        "    distributed.agree(facts)\n"
    )
    ended = parent.run(source, joined(3))
    for one in ended:
        assert one.code == 2, one
        assert "error: process 2 (" in one.err
        assert "differs from the others in the config: c2 instead of c1; start all processes" in one.err


def test_one_process_alone_just_asks() -> None:
    def refuse() -> None:
        raise UserError("no")

    assert distributed.from_primary(lambda: (1, {"a": None})) == [1, {"a": None}]
    distributed.agree({"a": "b"})
    with pytest.raises(UserError, match="no"):
        distributed.from_primary(refuse)


def test_values_are_gathered_on_process_0_without_a_device(parent: Parent) -> None:
    source = JOIN + (
        "gathered = [distributed.gather({'me': me, 'text': 'x' * size}) for size in (0, 1, 77, 3_000_000)]\n"
        "import jax._src.xla_bridge as bridge, jax._src.distributed as inner\n"
        "left = inner.global_state.client.key_value_dir_get('qwenvl') if me == 0 else []\n"
        "print(json.dumps([[[one['me'], len(one['text'])] for one in each] for each in gathered]))\n"
        "assert not left and not bridge.backends_are_initialized()\n"
    )
    for index, one in enumerate(parent.run(source, joined(3))):
        assert one.code == 0, one.err
        everybody = range(3) if index == 0 else [index]
        assert json.loads(one.out) == [[[me, size] for me in everybody] for size in (0, 1, 77, 3_000_000)]


def test_a_folder_that_is_not_shared_is_noticed_and_left_as_it_was(parent: Parent, tmp_path: Path) -> None:
    source = JOIN + (
        "from etils import epath\n"
        "folder = epath.Path(sys.argv[1] if me < 2 else sys.argv[2])\n"
        "from qwenvl_jax.runtime import preflight\n"
        "preflight.check_folder(sys.argv[3])\n"
        "with exit_on_user_error():\n"
        "    preflight.check_folder(folder)\n"
    )
    shared = tmp_path / "shared"
    shared.mkdir()
    names = (str(tmp_path / "a" / "b"), str(tmp_path / "c"), str(shared))
    ended = parent.run(source, joined(3), *names)
    for one in ended:
        assert one.code == 2 and "error: " in one.err and "is another folder on process 2 (host" in one.err, one
    assert [path.name for path in tmp_path.rglob("*")] == ["shared"]
