"""Addresses of pictures: read without doubt or refused, and files that never lie outside their folder."""

from __future__ import annotations

import base64
import contextlib
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwenvl_jax.runtime.errors import UserError
from qwenvl_jax.serving.addresses import DataAddress, FileAddress, WebAddress, parse_address
from qwenvl_jax.serving.pictures import read_below


@given(st.binary(min_size=1, max_size=200), st.sampled_from(["image/png", "IMAGE/JPEG", "", "image/png;charset=utf-8"]))
def test_a_data_url_gives_its_bytes(content: bytes, media: str) -> None:
    encoded = base64.b64encode(content).decode()
    assert parse_address(f"data:{media};base64,{encoded}") == DataAddress(content)


@given(st.text(max_size=80) | st.text("abc:/\\%.@[]#? \0data:image/png;base64,httpsfile", max_size=60))
def test_any_text_is_an_address_or_one_sentence(written: str) -> None:
    try:
        address = parse_address(written)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return
    assert isinstance(address, DataAddress | FileAddress | WebAddress)
    if isinstance(address, WebAddress):
        assert address.scheme in ("http", "https") and address.host and 0 < address.port < 65536
        shown = str(address)
        assert shown.isascii() and not any(sign.isspace() for sign in shown)
        assert parse_address(shown) == address, "what is fetched is what was read"


NAMES = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{2,5}){0,2}", fullmatch=True)


@given(NAMES, st.none() | st.integers(1, 65535), st.text("abc/._-~é ", max_size=20), st.text("a=&1é", max_size=9))
def test_a_web_address_keeps_host_and_port(name: str, port: int | None, path: str, query: str) -> None:
    written = f"HTTPS://{name}{'' if port is None else f':{port}'}/{path.replace(' ', '+')}?{query}"
    address = parse_address(written)
    assert isinstance(address, WebAddress)
    assert (address.scheme, address.host, address.port) == ("https", name, port or 443)


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ("", "names no picture"),
        ("a" * 5000, "names no picture"),
        ("data:image/png,abc", "not of the form"),
        ("data:text/html;base64,AAAA", "no picture"),
        ("data:image/png;base64,A*A=", "not valid base64"),
        ("data:image/png;base64,", "empty"),
        ("ftp://example.org/a.png", "begins with ftp:"),
        ("gopher://127.0.0.1:70/_x", "begins with gopher:"),
        ("javascript:alert(1)", "begins with javascript:"),
        ("http://user:secret@example.org/a.png", "password"),
        ("http://example.org@127.0.0.1/a.png", "password"),
        ("http:///a.png", "cannot be read"),
        ("http://[::1/a.png", "cannot be read"),
        ("http://example.org:99999/", "cannot be read"),
        ("http://example.org:0/", "cannot be read"),
        ("http://example.org\\@127.0.0.1/", "cannot be read"),
        ("http://exa mple.org/", "cannot be read"),
        ("http://example.org/\r\nHost: other", "cannot be read"),
        ("file://server/share/a.png", "names the host"),
        ("a\0.png", "names no file"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(written: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        parse_address(written)


def test_paths_are_read_in_every_form() -> None:
    for written in ("file:///photos/a%20b.png", "file:/photos/a%20b.png", "file://localhost/photos/a%20b.png"):
        assert parse_address(written) == FileAddress("/photos/a b.png")
    assert parse_address("photos/a b.png") == FileAddress("photos/a b.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with files, and secrets beside it to which links lead."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key.png").write_bytes(b"secret")
    (tmp_path / "shown_too").mkdir()
    (tmp_path / "shown_too" / "a.png").write_bytes(b"secret")
    shown = tmp_path / "shown"
    (shown / "inner").mkdir(parents=True)
    (shown / "a.png").write_bytes(b"a")
    (shown / "inner" / "b.png").write_bytes(b"b")
    (shown / "link.png").symlink_to("inner/b.png")
    (shown / "out.png").symlink_to(tmp_path / "secret" / "key.png")
    (shown / "away").symlink_to(tmp_path / "secret")
    (shown / "loop").symlink_to("loop")
    os.mkfifo(shown / "pipe.png")
    return shown


def test_files_below_the_folder_are_read_also_by_links_that_stay(folder: Path) -> None:
    for path in ("a.png", "./a.png", "inner/../a.png", str(folder / "a.png"), f"{folder}/../shown/a.png"):
        assert read_below(str(folder), path, 100) == b"a"
    assert read_below(str(folder), "link.png", 100) == b"b"
    (folder.parent / "alias").symlink_to(folder)
    assert read_below(str(folder.parent / "alias"), "inner/b.png", 100) == b"b"
    assert len(read_below(str(folder), "a.png", 0)) == 1, "one byte more than allowed shows that it is too long"


@pytest.mark.parametrize(
    "path",
    [
        *("../secret/key.png", "inner/../../secret/key.png", "/etc/passwd", "../shown_too/a.png", "out.png"),
        *("away/key.png", "loop", "pipe.png", "inner", ".", "..", "missing.png", "a.png/b", "x" * 300, "~/a.png"),
        *("//etc/passwd", "/proc/self/environ", "/dev/zero"),
    ],
)
def test_nothing_else_is_read_and_the_refusal_tells_nothing(folder: Path, path: str) -> None:
    with pytest.raises(UserError) as refused:
        read_below(str(folder), path, 100)
    assert str(refused.value) == "there is no such file in the folder of this server; correct the address"


STEPS = st.lists(
    st.sampled_from(
        ["..", ".", "", "inner", "away", "secret", "shown", "a.png", "key.png", "out.png", "link.png", "/"]
    ),
    max_size=7,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, st.booleans())
def test_no_path_leads_out(folder: Path, steps: list[str], absolute: bool) -> None:
    path = os.path.join(str(folder) if absolute else "", "/".join(steps))
    with contextlib.suppress(UserError):
        assert read_below(str(folder), path, 100) in (b"a", b"b")
