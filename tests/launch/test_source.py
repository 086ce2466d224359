"""The archive of the working tree: what git knows, the same bytes for the same files, and which commit it is."""

from __future__ import annotations

import gzip
import os
import resource
import signal
import subprocess
import tarfile
from pathlib import Path

import pytest

from launch.source import pack
from qwenvl_jax.runtime.errors import UserError


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "folder").mkdir(parents=True)
    (root / "folder" / "a.py").write_text("print('a')\n")
    (root / "launch").mkdir()
    (root / "launch" / "setup_host.sh").touch()
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o755)
    (root / ".gitignore").write_text("secret.txt\n")
    (root / "secret.txt").write_text("password")
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *command], cwd=root, check=True)
    return root


def test_the_archive_holds_what_git_does_not_ignore(tree: Path, tmp_path: Path) -> None:
    (tree / "new.txt").write_text("not yet added")
    revision = pack(tree, tmp_path / "one.tar.gz")
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        assert archive.getnames() == [
            "REVISION",
            ".gitignore",
            "folder/a.py",
            "launch/setup_host.sh",
            "new.txt",
            "run.sh",
        ]
        assert archive.getmember("run.sh").mode == 0o755
        text = archive.extractfile("REVISION")
        assert text and text.read().decode().strip() == revision
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True, check=True).stdout
    assert revision.startswith(head.strip() + " ")


def test_equal_trees_give_equal_bytes_and_changes_another_revision(tree: Path, tmp_path: Path) -> None:
    first = pack(tree, tmp_path / "one.tar.gz")
    (tree / "folder" / "a.py").touch()
    assert pack(tree, tmp_path / "two.tar.gz") == first
    assert (tmp_path / "one.tar.gz").read_bytes() == (tmp_path / "two.tar.gz").read_bytes()
    (tree / "folder" / "a.py").write_text("print('b')\n")
    assert pack(tree, tmp_path / "three.tar.gz") != first


def test_a_folder_without_git(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no git working tree"):
        pack(tmp_path, tmp_path / "out.tar.gz")


def test_a_link_is_packed_as_a_link_and_any_name_is_packed(tree: Path, tmp_path: Path) -> None:
    """What a link leads to may lie outside the tree, and git sends none of it."""
    (tmp_path / "key").write_text("password")
    (tree / "link").symlink_to(tmp_path / "key")
    (tree / "gone").symlink_to("nowhere")
    odd = os.fsdecode(b"caf\xe9\n.txt")
    (tree / odd).write_text("not UTF-8")
    pack(tree, tmp_path / "one.tar.gz")
    with tarfile.open(tmp_path / "one.tar.gz") as archive:
        assert archive.getmember("link").linkname == str(tmp_path / "key")
        assert archive.getmember("gone").issym()
        assert odd in archive.getnames()
    assert b"password" not in gzip.decompress((tmp_path / "one.tar.gz").read_bytes())


def test_another_repository_is_not_packed(tree: Path, tmp_path: Path) -> None:
    (tree / "launch" / "setup_host.sh").unlink()
    with pytest.raises(UserError, match=r"no launch/setup_host\.sh; start the launcher in the root"):
        pack(tree, tmp_path / "out.tar.gz")


def test_a_full_disk_leaves_no_half_archive(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "to").mkdir()
    (tree / "large").write_bytes(os.urandom(1 << 20))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    try:
        with pytest.raises(OSError):
            pack(tree, tmp_path / "to" / "out.tar.gz")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, previous)
    assert not list((tmp_path / "to").iterdir())
