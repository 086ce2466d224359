"""Which code this process runs."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import subprocess
from pathlib import Path

# What to do if processes differ in them.
SETUP_AGAIN = "run setup again on the hosts that differ, so that all have the same versions"


def versions() -> dict[str, str]:
    """The versions that must be equal on all processes of a run: this package, by version and bytes, JAX and Python."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):  # a few milliseconds
        digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    try:
        version = importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:  # run from its folder, never installed
        version = "not installed"
    code = {f"the code of {package.name}": f"{version}, digest {digest.hexdigest()[:12]}"}
    packages = {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
    return code | packages | {"Python": platform.python_version()}


def commit() -> str:
    """The Git commit of the code, with " and changes" if files differ from it; "" outside of a repository."""
    root = Path(__file__).parents[2]

    def ask(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    if not (root / ".git").exists():
        return ""
    try:
        return ask("rev-parse", "HEAD") + (" and changes" if ask("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return ""
