"""CSV and TSV: a header line, then one row per record (a record may span lines)."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from finetune_api.wording import counted
from finetune_runner.data.bytes_in import LONGEST_ROW, UTF8_HINT, lines_of, too_long, what_is_wrong_with
from finetune_runner.data.fields import is_name
from finetune_runner.data.records import BadRow, Record

EXTENSIONS = (".csv", ".tsv")
_DELIMITERS = ",;\t|"
_SAYS_DELIMITER = re.compile(r"sep=([,;\t|])\s*", re.IGNORECASE)
"""What Excel writes, and hides, as the first line."""
_SHORTER = 'shorten or remove the row; a " that is never closed takes all that follows for one row'


def read(path: Path, name: str) -> Iterator[Record | BadRow]:
    """Rows of a file; the delimiter (comma, semicolon, tab, bar) is the one that the header uses most."""
    csv.field_size_limit(LONGEST_ROW)
    bad_lines: dict[int, BadRow] = {}
    lines = _text_lines(path, name, bad_lines)
    header = next(lines, "")
    said = _SAYS_DELIMITER.fullmatch(header)
    skipped = 1 if said else 0
    if said:
        header = next(lines, "")
    delimiter = said[1] if said else max(_DELIMITERS, key=header.count)
    reader = csv.reader(_chain(header, lines), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    before = skipped
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            if "field limit" in str(error):
                yield too_long(name, f"line {before + 1}", _SHORTER)
            else:
                yield _not_csv(name, f"line {skipped + reader.line_num}", error)
            return
        first, before = before + 1, skipped + reader.line_num
        if sum(map(len, fields)) > LONGEST_ROW:
            yield too_long(name, f"line {first}", _SHORTER, last=False)
            continue
        broken = next((bad_lines.pop(line) for line in range(first, before + 1) if line in bad_lines), None)
        if broken is not None:
            yield broken
        elif not any(fields):
            continue
        elif columns is None:
            columns = [column.strip() for column in fields]
            # Columns without a name are those of an index, or the empty ones that spreadsheets write.
            duplicated = next((column for column in columns if column and columns.count(column) > 1), None)
            if duplicated is not None:
                yield BadRow(
                    name, f"line {first}", f"two columns are named `{duplicated}`", "give each column its own name"
                )
                return
        elif [field.removeprefix("\ufeff").strip() for field in fields] == columns and all(map(is_name, columns)):
            again = "has the names of the columns again"  # of another file that was put behind
            yield BadRow(name, f"line {first}", again, "remove the line")
        elif len(fields) != len(columns):
            yield BadRow(
                name,
                f"line {first}",
                f"has {counted(len(fields), 'field')}, the header has {len(columns)}",
                f'put a field that contains "{delimiter}" in quotes',
            )
        else:
            named = {column: text for column, text in zip(columns, fields, strict=True) if column}
            yield Record(name, f"line {first}", named)
    yield from bad_lines.values()  # what the reader never saw: the file broke off


def _not_csv(name: str, position: str, error: csv.Error) -> BadRow:
    if "new-line character" in str(error):  # the csv module's words are about opening files in Python
        return BadRow(
            name, position, "has line ends of old Macs (CR alone)", "save it with line ends of Unix or Windows"
        )
    return BadRow(name, position, f"not CSV: {error}", 'put text with quotes or line ends in "...", a quote as ""')


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
