"""The hosts of slices: folders and processes of this machine, which find one another through a metadata server."""

from __future__ import annotations

import concurrent.futures
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.support.cloud import world
from tests.support.cloud.flags import Parsed

# Variables of the machine of the tests that no host has.
_FOREIGN = ("JAX_", "XLA_", "TPU_", "MEGASCALE_", "GCE_", "QWENVL_", "PYTEST_", "CLOUDSDK_", world.FOLDER)


def new_host(state: dict[str, Any], mark: str, **role: Any) -> dict[str, Any]:
    """Gives a host its address and folder.

    Args:
      state: of the cloud.
      mark: its name, e.g. `node/us-east5-a/name/0`; all its processes carry it.
      role: what its metadata says: `worker`, `endpoints`, `slice`, `slices`, `accelerator_type`.
    """
    state["hosts_made"] = state.get("hosts_made", 0) + 1
    number = state["hosts_made"]
    address = f"127.{state['network'][0]}.{state['network'][1]}.{number}"
    home = world.folder() / "hosts" / f"{number:03d}"
    (home / "bin").mkdir(parents=True)
    host = {"mark": mark, "address": address, "home": str(home), "on": True, "notice": "NONE", **role}
    state["hosts"][mark] = host
    return host


def environment(state: dict[str, Any], host: dict[str, Any]) -> dict[str, str]:
    """The variables of the processes of a host: those of a fresh login, and where its metadata server is."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    bin_folders = [f"{host['home']}/bin", str(world.folder() / "host_bin"), str(world.folder() / "bin")]
    variables = {
        "HOME": host["home"],
        "USER": "someone",
        "PATH": ":".join([*bin_folders, os.path.dirname(sys.executable), "/usr/local/bin:/usr/bin:/bin"]),
        "GCE_METADATA_IP": f"{host['address']}:{state['metadata_port']}",
        "GCE_METADATA_HOST": f"{host['address']}:{state['metadata_port']}",
        "JAX_PLATFORMS": "cpu",
        "JAX_FORCE_TPU_INIT": "1",
        "JAX_COORDINATOR_PORT": str(state["coordinator_port"]),
        "PYTHONPATH": str(world.folder() / "tpu_machine"),
        world.MARK: host["mark"],
        world.FOLDER: str(world.folder()),
    }
    return {**kept, **variables, **state["settings"]["host_environment"]}


def hosts_of(state: dict[str, Any], node: str) -> list[dict[str, Any]]:
    """The hosts of a node, by their numbers."""
    hosts = [host for mark, host in state["hosts"].items() if mark.rpartition("/")[0] == node]
    return sorted(hosts, key=lambda host: host["worker"])


def run(host: dict[str, Any], variables: dict[str, str], command: str, file: Any = None) -> int:
    """Runs a command line in the shell of a host, as ssh would; its exit code, 255 if the host is off."""
    if not host["on"]:
        print(f"ssh: connect to host {host['address']} port 22: Connection timed out", file=sys.stderr)
        return 255
    code = subprocess.run(["bash", "-c", command], cwd=host["home"], env=variables, stdout=file).returncode
    return 255 if code == -9 else code  # the connection of a host that is switched off breaks


def ssh(parsed: Parsed, all_hosts: list[dict[str, Any]], variables: list[dict[str, str]]) -> int:
    """`tpu-vm ssh`: runs --command on the workers that --worker names; 1 if it fails on one of them."""
    chosen = _chosen(parsed, all_hosts)
    command = parsed.get("command") or " ".join(parsed.remainder)
    if not command:
        raise parsed.refuse("the stand-in has no terminal; give --command")
    if len(chosen) > 1 and not parsed.has("command"):
        raise parsed.refuse("Cannot target multiple workers without the `--command` flag.")
    batch = parsed.get("batch-size", "64" if len(chosen) > 1 else "1")
    print(f"Using ssh batch size of {batch}. Attempting to SSH into {len(chosen)} nodes with a total of "
          f"{len(chosen)} workers.", file=sys.stderr)  # fmt: skip
    folder = parsed.get("output-directory")

    def on(index: int) -> int:
        print(f"SSH: Attempting to connect to worker {index}...", file=sys.stderr, flush=True)
        if not folder:
            return run(all_hosts[index], variables[index], command)
        with open(Path(folder) / f"{index}.log", "wb") as file:
            return run(all_hosts[index], variables[index], command, file)

    with concurrent.futures.ThreadPoolExecutor(max_workers=max(1, len(chosen))) as pool:
        codes = list(pool.map(on, chosen))
    for index, code in zip(chosen, codes, strict=True):
        if code and len(chosen) > 1:
            print(f"##### Command execution on worker {index} failed with exit status {code}. Continuing.",
                  file=sys.stderr)  # fmt: skip
        elif code:
            print(f"Recommendation: To check for possible causes of SSH connectivity issues, run again with "
                  f"--troubleshoot.\nERROR: (gcloud.{parsed.command}) [/usr/bin/ssh] exited with return code [{code}].",
                  file=sys.stderr)  # fmt: skip
    return codes[0] if len(codes) == 1 else int(any(codes))


def copy(parsed: Parsed, all_hosts: list[dict[str, Any]]) -> None:
    """`scp`: copies files to the homes of hosts, or from one of them."""
    *sources, target = parsed.names
    chosen = _chosen(parsed, all_hosts)
    for index in chosen:
        host = all_hosts[index]
        if not host["on"]:
            raise parsed.refuse("[/usr/bin/scp] exited with return code [255].", 255)
        if ":" in target:
            to = _inside(host, target.partition(":")[2])
            for source in sources:
                _copy(parsed, Path(source), to)
        else:
            for source in sources:
                _copy(parsed, _inside(host, source.partition(":")[2]), Path(target))


def _copy(parsed: Parsed, source: Path, target: Path) -> None:
    if not source.exists():
        raise parsed.refuse(f'scp: stat local "{source}": No such file or directory', 1)
    if source.is_dir():
        if not parsed.has("recurse"):
            raise parsed.refuse(f"scp: {source}: not a regular file", 1)
        shutil.copytree(source, target / source.name if target.is_dir() else target, dirs_exist_ok=True)
    else:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)


def _inside(host: dict[str, Any], path: str) -> Path:
    """A path of a host in its folder; absolute paths are put below it too, but for those of /tmp."""
    path = path.replace("~/", "", 1) if path.startswith("~/") else "" if path == "~" else path
    return Path(path) if path.startswith("/tmp/") else Path(host["home"]) / path.lstrip("/")


def _chosen(parsed: Parsed, all_hosts: list[dict[str, Any]]) -> list[int]:
    text = parsed.get("worker", "0")
    if text == "all":
        return list(range(len(all_hosts)))
    numbers: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()):
            raise parsed.refuse(f"argument --worker: unable to parse worker ID {text}. Please only use numbers.")
        numbers += range(int(first), int(last or first) + 1)
    if bad := [number for number in numbers if number >= len(all_hosts)]:
        raise parsed.refuse(f"The given worker ID(s) {bad} is outside of the range of 0 to {len(all_hosts) - 1}.")
    return numbers
