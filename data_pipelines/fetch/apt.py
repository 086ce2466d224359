"""Debian packages as files: downloaded and unpacked without root and without installing anything."""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Sequence
from pathlib import Path

DOWNLOAD_TIMEOUT_S = 300
UPDATE_TIMEOUT_S = 90


class SourceUnavailable(Exception):
    """A source is not available on this machine. The caller falls back to a rendered one and says so."""


def fetch_package(name: str, cache: Path, patterns: Sequence[str]) -> Path:
    """Returns a folder with the files of Debian package `name` that match `patterns`.

    The package is downloaded with `apt-get download` and unpacked once; later calls return the folder at once.

    Args:
      name: package name, e.g. "tuxpaint-stamps-default".
      cache: folder that keeps unpacked packages; created if missing.
      patterns: fnmatch patterns on paths inside the package, e.g. "usr/share/*/copyright".

    Raises:
      SourceUnavailable: if apt or dpkg-deb is missing, offline or does not know the package.
    """
    target = cache / name
    if target.is_dir():
        return target
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise SourceUnavailable(f"{tool} is not installed")
    cache.mkdir(parents=True, exist_ok=True)
    work = cache / f".{name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        (work / "download").mkdir(parents=True)
        unpack(_download(name, work / "download", cache / "apt"), work / "files", patterns)
        try:
            (work / "files").rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process was faster, and its copy is as good
                raise
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def unpack(package: Path, target: Path, patterns: Sequence[str]) -> int:
    """Unpacks the regular files of `package` (.deb) that match `patterns` under `target`; returns their number.

    The archive is streamed, so unwanted files (sounds, translations) never touch the disk.

    Raises:
      SourceUnavailable: if the package is damaged or contains no such file.
    """
    target.mkdir(parents=True, exist_ok=True)
    count = 0
    with subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as archive:
                for member in archive:
                    name = member.name.removeprefix("./")
                    if member.isreg() and any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
                        archive.extract(member, target, filter="data")
                        count += 1
        except tarfile.TarError as error:
            raise SourceUnavailable(f"{package.name} is damaged ({error})") from None
        process.stdout.read()
    if process.returncode != 0 or count == 0:
        raise SourceUnavailable(f"{package.name} could not be unpacked or lacks the expected files")
    return count


def _download(name: str, folder: Path, private: Path) -> Path:
    """Runs `apt-get download`; if it fails, again after an `apt-get update` into private folders. Needs no root."""
    (private / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (private / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    # As root, apt downloads as user _apt, which cannot write here, and warns about it.
    sandbox = ["-o", "APT::Sandbox::User=root"] if os.geteuid() == 0 else []
    private_folders = [*sandbox, "-o", f"Dir::State::lists={private}/lists", "-o", f"Dir::Cache={private}"]
    private_folders += ["-o", f"Dir::Cache::archives={private}/archives"]
    network = ["-o", "Acquire::Retries=2", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::https::Timeout=20"]
    problem = _apt([*sandbox, *network, "download", name], folder, DOWNLOAD_TIMEOUT_S)
    if problem:
        _apt([*private_folders, *network, "update"], folder, UPDATE_TIMEOUT_S)
        problem = _apt([*private_folders, *network, "download", name], folder, DOWNLOAD_TIMEOUT_S)
    packages = sorted(folder.glob("*.deb"))
    if problem or not packages:
        raise SourceUnavailable(f"apt-get download {name} failed ({problem or 'no file arrived'})")
    return packages[0]


def _apt(arguments: Sequence[str], folder: Path, timeout_s: int) -> str:
    """Runs apt-get in `folder`; returns its error in one line, or "" on success."""
    try:
        done = subprocess.run(
            ["apt-get", "-q", *arguments],
            cwd=folder,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s} s"
    if done.returncode == 0:
        return ""
    lines = [line for line in done.stderr.splitlines() if line.startswith("E:")]
    return (lines or [f"exit code {done.returncode}"])[0].removeprefix("E: ")
