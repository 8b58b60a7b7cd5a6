"""Reading files that people made: gzip or not, a BOM or none, and bytes that are not UTF-8."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

from finetune_runner.data.records import BadRow

UTF8_HINT = "save the file as UTF-8"
BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_UTF32 = (b"\xff\xfe\x00\x00", b"\x00\x00\xfe\xff")
_ROW_PER_LINE = "end each row with a line end; shorten or remove one that is so long"
_LOOKED_AT = 32
LONGEST_ROW = 16 << 20
"""Most bytes of a line or of a row, characters of a value: more than any model reads, far less than a pod's memory."""
_OTHERS = {
    b"version https://git-lfs": ("is a pointer of Git LFS, not the file itself", "fetch the file with git lfs pull"),
    b"<!DOCTYPE": ("is a web page (HTML)", "download the file itself; a page may ask to log in first"),
    b"<!doctype": ("is a web page (HTML)", "download the file itself; a page may ask to log in first"),
    b"<html": ("is a web page (HTML)", "download the file itself; a page may ask to log in first"),
    b"PAR1": ("is a Parquet file", "name it .parquet"),
    b"PK\x03\x04": ("is a ZIP archive", "unpack it; single files may be gzipped (.gz)"),
    b"\x28\xb5\x2f\xfd": ("is compressed with zstd", "unpack it, or use gzip (.gz)"),
    b"BZh": ("is compressed with bzip2", "unpack it, or use gzip (.gz)"),
    _GZIP: ("is gzipped twice", "unpack it once"),
}
"""Beginnings of files that are named like data; of a CSV none of them is a likely header."""
DAMAGED = (gzip.BadGzipFile, EOFError, zlib.error)
"""What reading a broken gzip file raises."""


def open_bytes(path: Path) -> BinaryIO:
    """The file's content, unpacked when it is gzip, whatever its name."""
    return cast(BinaryIO, gzip.open(path, "rb") if is_gzip(path) else path.open("rb"))


def is_gzip(path: Path) -> bool:
    """Whether a file begins like gzip."""
    with path.open("rb") as stream:
        return stream.read(len(_GZIP)) == _GZIP


def lines_of(path: Path, name: str) -> Iterator[tuple[int, bytes | BadRow]]:
    """Numbered lines from 1, without their line end and the file's BOM.

    A file that breaks off, or has a line longer than LONGEST_ROW, ends with a BadRow.
    """
    number = 0
    try:
        with open_bytes(path) as stream:
            while raw := stream.readline(LONGEST_ROW + 1):
                number += 1
                line = raw
                if len(raw) > LONGEST_ROW:
                    yield number, too_long(name, f"line {number}", _ROW_PER_LINE)
                    return
                if number == 1:
                    if wide := wide_encoding(raw):
                        yield 1, BadRow(name, "", f"is {wide}", UTF8_HINT)
                        return
                    if other := other_kind(raw):
                        yield 1, BadRow(name, "", *other)
                        return
                    line = raw.removeprefix(BOM)
                yield number, line.rstrip(b"\r\n")
    except DAMAGED as error:
        yield number + 1, damaged(name, number, error)


def too_long(name: str, position: str, hint: str, *, last: bool = True) -> BadRow:
    """A row longer than LONGEST_ROW; `last` where the file cannot be read behind it, such as one line of everything."""
    behind = "; nothing behind it is read" if last else ""
    return BadRow(name, position, f"is longer than {LONGEST_ROW >> 20} MiB{behind}", hint)


def other_kind(start: bytes) -> tuple[str, str] | None:
    """What a file is that holds no rows as text, by how it begins, and what to do; None = nothing that is known."""
    return next((said for begins, said in _OTHERS.items() if start.startswith(begins)), None)


def wide_encoding(start: bytes) -> str:
    """UTF-16 or UTF-32 by the byte order mark, else by every other byte being NUL as in Latin text; empty = neither."""
    if start.startswith(_UTF32):
        return "UTF-32"
    looked_at = start[:_LOOKED_AT]
    if start.startswith(_UTF16) or (len(looked_at) >= 4 and not (any(looked_at[::2]) and any(looked_at[1::2]))):
        return "UTF-16"
    return ""


def damaged(name: str, lines: int, error: Exception) -> BadRow:
    """The bad row that a broken gzip file ends with."""
    return BadRow(name, f"after line {lines}", f"the gzip data are damaged: {error}", "pack or upload the file again")


def what_is_wrong_with(error: UnicodeDecodeError) -> str:
    """Words for a decoding error."""
    return f"not UTF-8: byte 0x{error.object[error.start]:02x} at byte {error.start + 1} of the line"
