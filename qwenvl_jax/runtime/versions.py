"""Which code this process runs."""

from __future__ import annotations

import hashlib
import importlib.metadata
from pathlib import Path


def versions() -> dict[str, str]:
    """The versions that must be equal on all processes of a run: this package, by version and bytes, and JAX."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):  # a few milliseconds
        digest.update(f"{path.relative_to(package)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    try:
        version = importlib.metadata.version(package.name)
    except importlib.metadata.PackageNotFoundError:  # run from its folder, never installed
        version = "not installed"
    code = {f"the code of {package.name}": f"{version}, digest {digest.hexdigest()[:12]}"}
    return code | {name: importlib.metadata.version(name) for name in ("jax", "jaxlib")}
