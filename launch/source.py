"""Packs the working tree for hosts: `python -m launch.source OUTPUT.tar.gz`.

The files are those that git tracks or does not ignore. The same files give the same bytes, and REVISION in the archive
says which commit they are, with a digest of what was changed since.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import subprocess
import tarfile
from collections.abc import Mapping
from pathlib import Path

from qwenvl_jax.runtime.arguments import Parser
from qwenvl_jax.runtime.errors import UserError, exit_on_user_error

_ON_HOSTS = "launch/setup_host.sh"  # what hosts run first


def pack(root: Path, output: Path) -> str:
    """Writes the archive of the working tree at `root`; its revision."""
    names = sorted(filter(None, _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard").split("\0")))
    files = {name: (root / name) for name in names if (root / name).is_file() or (root / name).is_symlink()}
    if _ON_HOSTS not in files:
        raise UserError(f"{root} has no {_ON_HOSTS}; start the launcher in the root of this repository")
    digest = hashlib.sha256()
    for name, path in files.items():
        digest.update(os.fsencode(f"{name}\0{path.lstat().st_mode & 0o111}\0"))
        digest.update(hashlib.sha256(_content(path)).digest())
    revision = f"{_git(root, 'rev-parse', 'HEAD').strip()} {digest.hexdigest()[:16]}\n"
    temporary = output.with_name(f"{output.name}.{os.getpid()}.tmp")  # two launchers may pack at the same time
    try:
        _write(temporary, revision, files)
        temporary.rename(output)
    finally:
        temporary.unlink(missing_ok=True)
    return revision.strip()


def _content(path: Path) -> bytes:
    """The bytes of a file; of a symbolic link where it leads to, as git sees it, so that nothing outside is packed."""
    return os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes()


def _write(temporary: Path, revision: str, files: Mapping[str, Path]) -> None:
    with (
        temporary.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as archive,
    ):
        _add(archive, "REVISION", revision.encode(), 0o644)
        for name, path in files.items():
            if path.is_symlink():
                entry = tarfile.TarInfo(name)
                entry.type, entry.linkname = tarfile.SYMTYPE, str(path.readlink())
                archive.addfile(entry)
                continue
            _add(archive, name, path.read_bytes(), 0o755 if os.access(path, os.X_OK) else 0o644)


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    entry.mode = mode
    archive.addfile(entry, io.BytesIO(content))


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise UserError("git is not installed; install it, or use --repository and --revision") from None
    if done.returncode:
        raise UserError(f"{root} is no git working tree; start the launcher in one, or use --repository and --revision")
    return os.fsdecode(done.stdout)


if __name__ == "__main__":
    parser = Parser("python -m launch.source", __doc__)
    parser.add_argument("output", type=Path, help="The archive, a .tar.gz.")
    with exit_on_user_error():
        print(pack(Path.cwd(), parser.parse_args().output))
