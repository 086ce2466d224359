"""The address of a picture in a request: the picture itself, a file of the server, or the web.

    data:image/png;base64,iVBOR..      the picture itself
    file:///photos/a.jpg, a.jpg        a file below the folder that the server may show
    https://example.org/a.jpg          the web

Nothing is opened here; `pictures` does that.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import re
import urllib.parse

from qwenvl_jax.runtime.errors import UserError

MAX_LENGTH = 4_096  # of an address that is not the picture itself

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_DATA = re.compile(r"data:(?P<media>[^;,]*)(?P<parameters>(?:;[^;,]*)*?);base64,", re.IGNORECASE)
_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f]")
PORTS = {"http": 80, "https": 443}  # of TCP, by the schemes that are read


@dataclasses.dataclass(frozen=True)
class DataAddress:
    """A picture that the request brings.

    Attributes:
      encoded: its bytes, in whatever format they are.
    """

    encoded: bytes


@dataclasses.dataclass(frozen=True)
class FileAddress:
    """A file of the server.

    Attributes:
      path: as it was written; a relative one begins at the folder that the server may show.
    """

    path: str


@dataclasses.dataclass(frozen=True)
class WebAddress:
    """A picture of the web.

    Attributes:
      scheme: http or https.
      host: a name or a number, without brackets.
      port: of TCP.
      target: path and query, percent-encoded.
    """

    scheme: str
    host: str
    port: int
    target: str

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return urllib.parse.urlunsplit((self.scheme, f"{host}:{self.port}", self.target, "", ""))


Address = DataAddress | FileAddress | WebAddress


def parse_address(written: str) -> Address:
    """Reads an address.

    Raises:
      UserError: if it is none of those above.
    """
    if written[:5].lower() == "data:":
        return _parse_data(written)
    if not written or len(written) > MAX_LENGTH:
        raise UserError(f"an address of {len(written):,} characters names no picture; send it as a data URL")
    scheme = _SCHEME.match(written)
    if scheme is None:
        return _file(written)
    name = scheme[1].lower()
    if name == "file":
        return _parse_file_url(written)
    if name in PORTS:
        return parse_web(written)
    raise UserError(f"an address that begins with {name[:20]}: cannot be read; use data:, file: or https:")


def _parse_data(written: str) -> DataAddress:
    head = _DATA.match(written)
    if head is None:
        raise UserError("the data URL is not of the form data:image/png;base64,.. ; encode the picture so")
    media = head["media"].strip().lower()
    if media and not media.startswith("image/"):
        raise UserError(f"the data URL is of the type {media[:40]!r}, which is no picture; send an image")
    try:
        encoded = base64.b64decode(written[head.end() :], validate=True)
    except (binascii.Error, ValueError):
        raise UserError("the data URL is not valid base64; encode the picture again") from None
    if not encoded:
        raise UserError("the data URL is empty; send a picture")
    return DataAddress(encoded)


def _parse_file_url(written: str) -> FileAddress:
    rest = written.partition(":")[2]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise UserError(f"file: names the host {host[:40]!r}; only files of the server can be shown")
        rest = slash + path
    return _file(urllib.parse.unquote(rest, errors="surrogateescape"))


def _file(path: str) -> FileAddress:
    if not path or "\0" in path:
        raise UserError("the address names no file; correct it")
    return FileAddress(path)


def parse_web(written: str) -> WebAddress:
    """Reads an address of the web.

    Raises:
      UserError: if it cannot be read without doubt, or holds a name or password of a user.
    """
    doubtful = UserError("the web address cannot be read; correct it")
    if _CONTROL.search(written) or "\\" in written:
        raise doubtful
    try:
        parts = urllib.parse.urlsplit(written)
        port = parts.port
    except ValueError:
        raise doubtful from None
    scheme = parts.scheme.lower()
    if scheme not in PORTS:
        raise UserError(f"{scheme[:20]!r} is not the web; use https")
    if "@" in parts.netloc:
        raise UserError("a web address with a name or password of a user is refused; leave it out")
    if not parts.hostname or port == 0:
        raise doubtful
    try:
        host = parts.hostname if ":" in parts.hostname else parts.hostname.encode("idna").decode()
    except UnicodeError:
        raise doubtful from None
    target = urllib.parse.quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
    if parts.query:
        target += "?" + urllib.parse.quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    return WebAddress(scheme, host, port or PORTS[scheme], target)
