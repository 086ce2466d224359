"""The quickstart with every folder on a bucket, killed twice on the way, against the one on disk: equal to the bit?

    python benchmarks/quickstart_on_buckets.py --scratch=DIR [--scale=0.1] [--fault_rate=0.0] [--seed=0]

Both sides run data, four stages, evaluation, release, `convert verify` and `convert import`. The bucket is served by a
separate fake-gcs-server process. The run on it is killed (SIGKILL to all of its processes) in the middle of stage 2 and
in the middle of the evaluation and the release, and the same command is given again each time. With `--fault_rate`
every request fails with that probability: 408, 429, 5xx, resets, hangs and short bodies. Prints one JSON object; exit
code 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

IGNORED = ("timings.json", ".index.npz")  # seconds, and what is kept next to tar files


def main(argv: list[str] | None = None) -> None:
    """Runs both sides, compares them and prints the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scratch", type=Path, required=True, help="an empty folder for the side on disk and for logs")
    parser.add_argument("--scale", type=float, default=0.1, help="factor on records, steps and questions")
    parser.add_argument("--fault_rate", type=float, default=0.0, help="share of the requests that fail")
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    arguments = parser.parse_args(argv)
    scratch = arguments.scratch.absolute()
    scratch.mkdir(parents=True, exist_ok=True)
    os.chdir(ROOT)
    with contextlib.ExitStack() as stack:
        bucket = stack.enter_context(serve(scratch, arguments.fault_rate, arguments.seed))
        result: dict[str, Any] = {"scale": arguments.scale, "fault_rate": arguments.fault_rate, "kills": []}
        began = time.monotonic()
        everything(f"{scratch}/disk", arguments.scale, scratch / "disk.log", [])
        result["disk_seconds"] = round(time.monotonic() - began, 1)
        began = time.monotonic()
        result["kills"] = everything(bucket, arguments.scale, scratch / "bucket.log", [in_stage_2, in_evaluation])
        result["bucket_seconds"] = round(time.monotonic() - began, 1)
        result |= compare(f"{scratch}/disk", bucket)
    print(json.dumps(result, indent=2))
    sys.exit(bool(result["different"] or len(result["kills"]) < 2))


@contextlib.contextmanager
def serve(scratch: Path, fault_rate: float, seed: int) -> Iterator[str]:
    """A bucket, for this process and those that it starts; with a rate behind the proxy that makes requests fail."""
    from tests.support import gcs_server

    with gcs_server.serve() as url, contextlib.ExitStack() as stack:
        bucket = gcs_server.make_bucket(url, "quickstart")
        if fault_rate:
            from tests.support import faulty_gcs

            url = stack.enter_context(faulty_gcs.faulty(url, seed=seed, rate=fault_rate))
        os.environ.update(gcs_server.environment(url))
        yield bucket


def everything(root: str, scale: float, log: Path, kills: list[Callable[[str], bool]]) -> list[str]:
    """All commands with every folder under `root`; returns what was killed.

    Args:
      root: a folder or a bucket.
      scale: of the quickstart.
      log: for what the commands print.
      kills: each says when the quickstart is killed next, and is then started again.
    """
    quickstart = ["qwenvl_jax.quickstart", f"--workdir={root}/runs", f"--data={root}/data", f"--scale={scale}"]
    quickstart += ["--source=rendered"]
    killed = []
    with log.open("w") as output:
        for due in kills:
            if run_until(quickstart, output, functools.partial(due, root)):
                killed.append(due.__name__)
        for command in (
            quickstart,
            ["qwenvl_jax.convert", "verify", f"--release={root}/runs/release", f"--workdir={root}/runs/stage3_sft"],
            ["qwenvl_jax.convert", "import", f"--release={root}/runs/release", f"--workdir={root}/imported"],
        ):
            code = subprocess.run([sys.executable, "-m", *command], stdout=output, stderr=output).returncode
            if code:
                raise SystemExit(f"{' '.join(command)} ended with exit code {code}; see {log}")
    return killed


def run_until(command: list[str], output: Any, due: Callable[[], bool]) -> bool:
    """Runs a command; kills it and all of its processes once `due`. Returns whether it was killed."""
    process = subprocess.Popen([sys.executable, "-m", *command], stdout=output, stderr=output, start_new_session=True)
    while process.poll() is None:
        if due():
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return True
        time.sleep(0.2)
    return False


def in_stage_2(root: str) -> bool:
    """Stage 2 has begun and, where it is long enough, has a checkpoint behind it."""
    from qwenvl_jax.checkpoint.steps import latest_step
    from qwenvl_jax.runtime import artifacts, storage

    run = f"{root}/runs/stage2_multitask"
    if not storage.exists(f"{run}/lineage.json"):
        return False
    train = artifacts.read_json(f"{run}/config.json")["train"]
    return train["steps"] <= train["checkpoint_every"] or latest_step(run) is not None


def in_evaluation(root: str) -> bool:
    """The second checkpoint has answered its first task."""
    from qwenvl_jax.runtime import storage

    return storage.exists(f"{root}/runs/predictions/stage1_pretrain/ref_grounding.json")


def compare(disk: str, bucket: str) -> dict[str, Any]:
    """What differs between two roots: files by their bytes, checkpoints by their values, tables without seconds."""
    from qwenvl_jax.quickstart import STAGES
    from qwenvl_jax.runtime import storage

    different: list[str] = []
    files = [files_below(root) for root in (disk, bucket)]
    compared = 0
    for name in sorted(set(files[0]) | set(files[1])):
        if name not in files[0] or name not in files[1]:
            different.append(f"{name} is only on {'disk' if name in files[0] else 'the bucket'}")
            continue
        compared += 1
        here, there = (normalised(name, storage.read_bytes(f"{root}/{name}"), root) for root in (disk, bucket))
        if here != there:
            different.append(f"{name}: {digest(here)} on disk, {digest(there)} on the bucket")
    leaves = 0
    for run in [*(f"runs/{stage}" for stage in STAGES), "imported"]:
        local, remote = (state_of(f"{root}/{run}") for root in (disk, bucket))
        leaves += len(local)
        different += [f"{run}: {key}" for key in sorted(set(local) | set(remote)) if local.get(key) != remote.get(key)]
    return {"files": compared, "leaves": leaves, "different": different}


def files_below(root: str) -> list[str]:
    """Names of all files that are compared by their bytes, relative to `root`."""
    from qwenvl_jax.runtime import storage

    paths: list[str] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        for name in storage.names(f"{root}/{folder}".rstrip("/")):
            path = f"{folder}{name}"
            if name in ("checkpoints", "frozen", "events") or name.endswith(IGNORED):
                continue
            if storage.is_folder(f"{root}/{path}"):
                folders.append(f"{path}/")
            else:
                paths.append(path)
    return paths


def normalised(name: str, payload: bytes, root: str) -> bytes:
    """The content of a file without what may differ: the folder it lies in, digests of files that name it, and seconds.

    Those files are a run's config, whose hash is in its lineage, and `training_config.json` of a release, whose digest
    is in the manifest, and the manifest's in the lineage of an import. Both are compared themselves.
    """
    payload = payload.replace(root.encode(), b"ROOT")
    if name.endswith("metrics.jsonl"):
        lines = [json.loads(line) for line in payload.splitlines()]
        return json.dumps([{key: value for key, value in line.items() if key != "timing"} for line in lines]).encode()
    if name.endswith("lineage.json"):
        return json.dumps(without(json.loads(payload), ("config", "sha256"))).encode()
    if name == "runs/release/manifest.json":
        return json.dumps(without(json.loads(payload), ("training_config.json",))).encode()
    return payload


def without(value: Any, keys: tuple[str, ...]) -> Any:
    """A JSON value without some keys, at every depth."""
    if isinstance(value, dict):
        return {key: without(item, keys) for key, item in value.items() if key not in keys}
    return [without(item, keys) for item in value] if isinstance(value, list) else value


def state_of(run: str) -> dict[str, str]:
    """Digests of every leaf of a run's newest checkpoint (parameters, moments) and of its position in the data."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    from qwenvl_jax.checkpoint.steps import latest_step
    from qwenvl_jax.runtime import storage

    digests: dict[str, str] = {}
    step = latest_step(run)
    folders = {"frozen": f"{run}/frozen"}
    if step is not None:
        folders |= {item: f"{run}/checkpoints/{step}/{item}" for item in ("params", "optimizer")}
        digests["step"] = str(step)
    for item, folder in folders.items():
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            path = storage.absolute(folder)
            tree = checkpointer.metadata(path).item_metadata.tree
            args = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            values = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=args))
        for key, leaf in jax.tree_util.tree_leaves_with_path(values):
            array = np.asarray(leaf)
            digests[f"{item}{jax.tree_util.keystr(key)}"] = f"{array.dtype}{array.shape}{digest(array.tobytes())}"
    if step is not None:
        progress = json.loads(storage.read_bytes(f"{run}/checkpoints/{step}/progress/metadata"))
        digests["progress"] = digest(json.dumps(progress, sort_keys=True).encode())
    return digests


def digest(payload: bytes) -> str:
    """Twelve hex digits of the sha256."""
    return hashlib.sha256(payload).hexdigest()[:12]


if __name__ == "__main__":
    main()
