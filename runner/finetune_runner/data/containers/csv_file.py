"""CSV and TSV: a header line, then one row per record (a record may span lines)."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from finetune_runner.data.bytes_in import LONGEST_ROW, UTF8_HINT, lines_of, what_is_wrong_with
from finetune_runner.data.records import BadRow, Record

EXTENSIONS = (".csv", ".tsv")
_DELIMITERS = ",;\t|"


def read(path: Path, name: str) -> Iterator[Record | BadRow]:
    """Rows of a file; the delimiter (comma, semicolon, tab, bar) is the one that the header uses most."""
    csv.field_size_limit(LONGEST_ROW)
    bad_lines: dict[int, BadRow] = {}
    lines = _text_lines(path, name, bad_lines)
    header = next(lines, "")
    delimiter = max(_DELIMITERS, key=header.count)
    reader = csv.reader(_chain(header, lines), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    before = 0
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            yield BadRow(
                name, f"line {reader.line_num}", f"not CSV: {error}", 'put text with quotes or line ends in "..."'
            )
            return
        first, before = before + 1, reader.line_num
        broken = next((bad_lines.pop(line) for line in range(first, before + 1) if line in bad_lines), None)
        if broken is not None:
            yield broken
        elif not any(fields):
            continue
        elif columns is None:
            columns = [column.strip() for column in fields]
            duplicated = next((column for column in columns if columns.count(column) > 1), None)
            if duplicated is not None:
                yield BadRow(name, "line 1", f"two columns are named `{duplicated}`", "give each column its own name")
                return
        elif len(fields) != len(columns):
            yield BadRow(
                name,
                f"line {first}",
                f"has {len(fields)} fields, the header has {len(columns)}",
                f'put a field that contains "{delimiter}" in quotes',
            )
        else:
            yield Record(name, f"line {first}", dict(zip(columns, fields, strict=True)))
    yield from bad_lines.values()  # what the reader never saw: the file broke off


def _text_lines(path: Path, name: str, bad_lines: dict[int, BadRow]) -> Iterator[str]:
    for number, line in lines_of(path, name):
        if isinstance(line, BadRow):
            bad_lines[number] = line
            return
        try:
            yield line.decode("utf-8") + "\n"
        except UnicodeDecodeError as error:
            bad_lines[number] = BadRow(name, f"line {number}", what_is_wrong_with(error), UTF8_HINT)
            yield line.decode("utf-8", "replace") + "\n"


def _chain(header: str, lines: Iterator[str]) -> Iterator[str]:
    if header:
        yield header
    yield from lines
