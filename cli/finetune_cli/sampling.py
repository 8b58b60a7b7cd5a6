"""The first rows of a data file, with the standard library (Parquet with pyarrow): enough to write a first YAML."""

from __future__ import annotations

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any, TextIO, cast

from finetune_api.wording import counted
from finetune_cli.errors import CliError

SAMPLE_ROWS = 50_000
"""Enough to see every class of a usual data set; more would make `init` slow."""
BATCH_ROWS = 1000
EXTENSIONS = (".jsonl", ".ndjson", ".jsonlines", ".json", ".csv", ".tsv", ".parquet")
LONGEST_FIELD = 16 << 20
_DELIMITERS = ",;\t|"
_BOM = "\ufeff"
_GZIP = b"\x1f\x8b"


def _open_text(path: Path) -> TextIO:
    with path.open("rb") as file:
        packed = file.read(len(_GZIP)) == _GZIP
    if packed:
        return cast("TextIO", gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(path: Path) -> Iterator[Any]:
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line.removeprefix(_BOM))  # that of a file which another one was put in front of
                except (ValueError, RecursionError) as error:
                    raise CliError(
                        f"{path}:{number}: not JSON: {error}", "Put one JSON object on each line."
                    ) from error


def _json_array(path: Path) -> Iterator[Any]:
    with _open_text(path) as file:
        text = file.read()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        if text.lstrip().startswith("{") and "Extra data" in str(error):  # JSON lines under this name
            yield from _json_lines(path)
            return
        raise CliError(f"{path}: not JSON: {error}", "Write an array of objects, or use .jsonl.") from error
    if isinstance(value, dict):
        # Some exports wrap the rows: the only list in the object is what is meant.
        lists = [member for member in value.values() if isinstance(member, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise CliError(f"{path}: holds no array of objects", "Write an array of objects, or use .jsonl.")
    yield from value


def _csv(path: Path) -> Iterator[Any]:
    csv.field_size_limit(LONGEST_FIELD)
    with _open_text(path) as file:
        header = file.readline()
        delimiter = max(_DELIMITERS, key=header.count)
        reader = csv.reader(chain([header], file), delimiter=delimiter, strict=True)
        try:
            columns = [name.strip() for name in next(reader, [])]
            for fields in reader:
                if fields and len(fields) != len(columns):
                    raise CliError(
                        f"{path}:{reader.line_num}: has {counted(len(fields), 'field')}, the header has {len(columns)}",
                        f'Put a field that contains "{delimiter}" in quotes.',
                    )
                if fields:
                    yield {name: text for name, text in zip(columns, fields, strict=True) if name}
        except csv.Error as error:
            raise CliError(
                f"{path}:{reader.line_num}: not CSV: {error}", 'Put text with quotes or line ends in "...".'
            ) from error


def _parquet(path: Path) -> Iterator[Any]:
    try:
        from pyarrow import ArrowInvalid
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise CliError(
            "reading Parquet needs pyarrow", "pip install pyarrow, or convert the file to .jsonl."
        ) from error
    try:
        for batch in ParquetFile(path).iter_batches(batch_size=BATCH_ROWS):
            yield from batch.to_pylist()
    except ArrowInvalid as error:
        raise CliError(f"{path}: not Parquet: {error}") from error


READERS = dict(zip(EXTENSIONS, (_json_lines, _json_lines, _json_lines, _json_array, _csv, _csv, _parquet), strict=True))


def sample_rows(path: Path, count: int = SAMPLE_ROWS) -> list[dict[str, Any]]:
    """The first rows as objects. Raises CliError naming file, line and fix."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    reader = READERS.get(plain.suffix.lower())
    if reader is None:
        raise CliError(
            f"{path}: unknown kind of file", f"Use one of {', '.join(EXTENSIONS)} (all but Parquet may be gzipped)."
        )
    try:
        rows = list(islice(reader(path), count))
    except UnicodeDecodeError as error:
        raise CliError(f"{path}: not UTF-8: {error.reason}", "Save the file as UTF-8.") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise CliError(f"{path}: the gzip data are damaged: {error}", "Pack or copy the file again.") from error
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror or error}") from error
    if not rows:
        raise CliError(f"{path} has no rows", "Give it at least 50 rows.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise CliError(f"{path}: row {number} is not an object", "Each row must be an object with columns.")
    return rows
