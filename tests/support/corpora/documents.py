"""Writers of small PDF and HTML files."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from pathlib import Path

_PADDING = bytes.fromhex("28BF4E5E4E758A4164004E56FFFA01082E2E00B6D0683E802F0CA9FE6453697A")


@dataclasses.dataclass(frozen=True)
class Text:
    """A text in Helvetica at a position in points, from the lower left of the page.

    Attributes:
      gray: 0 for black.
      mode: of rendering; 3 draws nothing.
      turned: degrees counter-clockwise.
    """

    text: str
    x: float
    y: float
    size: float = 12
    gray: float = 0
    mode: int = 0
    turned: float = 0


def write_pdf(
    path: Path,
    pages: Sequence[Sequence[Text]],
    rotation: int = 0,
    crop: tuple[int, int, int, int] | None = None,
    size: tuple[int, int] = (612, 792),
    password: str = "",
) -> None:
    """Writes a PDF 1.4 file, with a password for RC4 of 40 bits if one is given.

    Args:
      path: the file.
      pages: the texts of every page.
      rotation: of every page, in degrees clockwise.
      crop: left, bottom, right and top of the crop box.
      size: of the media box, in points.
      password: of the user.
    """
    objects: list[bytes] = [b"", b"", b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>"]
    kids = []
    for texts in pages:
        content = b"\n".join(map(_content, texts))
        boxes = f"/MediaBox [0 0 {size[0]} {size[1]}]" + (f" /CropBox [{' '.join(map(str, crop))}]" if crop else "")
        objects.append(
            f"<< /Type /Page /Parent 2 0 R {boxes} /Rotate {rotation} /Resources << /Font << /F1 3 0 R >> >> "
            f"/Contents {len(objects) + 2} 0 R >>".encode()
        )
        kids.append(f"{len(objects)} 0 R")
        objects.append(b"<< /Length %d >>\nstream\n%s\nendstream" % (len(content), content))
    objects[0] = b"<< /Type /Catalog /Pages 2 0 R >>"
    objects[1] = f"<< /Type /Pages /Kids [{' '.join(kids)}] /Count {len(kids)} >>".encode()
    trailer = b""
    if password:
        objects.append(_encryption(password))
        trailer = b" /Encrypt %d 0 R /ID [<00> <00>]" % len(objects)
    out = b"%PDF-1.4\n"
    offsets = []
    for number, body in enumerate(objects, 1):
        offsets.append(len(out))
        out += b"%d 0 obj\n%s\nendobj\n" % (number, body)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    out += b"xref\n0 %d\n0000000000 65535 f \n%s" % (len(objects) + 1, table)
    out += b"trailer\n<< /Size %d /Root 1 0 R%s >>\n" % (len(objects) + 1, trailer)
    path.write_bytes(out + b"startxref\n%d\n%%%%EOF\n" % (len(out) - out[::-1].index(b"ferx") - 4))


def _content(text: Text) -> bytes:
    cosine, sine = math.cos(math.radians(text.turned)), math.sin(math.radians(text.turned))
    escaped = text.text.replace("\\", r"\\").replace("(", r"\(").replace(")", r"\)")
    return (
        f"BT {text.gray} g {text.mode} Tr /F1 {text.size} Tf "
        f"{cosine:.5f} {sine:.5f} {-sine:.5f} {cosine:.5f} {text.x} {text.y} Tm ({escaped}) Tj ET"
    ).encode()


def _encryption(password: str) -> bytes:
    """The dictionary of the standard security handler, revision 2; the contents are not encrypted."""
    padded = (password.encode() + _PADDING)[:32]
    owner = hashlib.sha256(padded).digest()
    user = hashlib.sha256(owner).digest()
    return b"<< /Filter /Standard /V 1 /R 2 /O <%s> /U <%s> /P -4 >>" % (owner.hex().encode(), user.hex().encode())
