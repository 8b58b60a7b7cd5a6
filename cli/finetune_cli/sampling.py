"""The first rows of a data file, with the standard library (Parquet with pyarrow): enough to write a first YAML."""

from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, TextIO, cast

from finetune_cli.errors import CliError

SAMPLE_ROWS = 50_000
"""Enough to see every class of a usual data set; more would make `init` slow."""
BATCH_ROWS = 1000
EXTENSIONS = (".jsonl", ".ndjson", ".json", ".csv", ".parquet")


def _open_text(path: Path) -> TextIO:
    if path.suffix == ".gz":
        return cast("TextIO", gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    return path.open(encoding="utf-8-sig", newline="")


def _json_lines(path: Path) -> Iterator[Any]:
    with _open_text(path) as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise CliError(
                        f"{path}:{number}: not JSON: {error}", "Put one JSON object on each line."
                    ) from error


def _json_array(path: Path) -> Iterator[Any]:
    with _open_text(path) as file:
        try:
            value = json.load(file)
        except ValueError as error:
            raise CliError(f"{path}: not JSON: {error}", "Write an array of objects, or use .jsonl.") from error
    if isinstance(value, dict):
        # Some exports wrap the rows: the only list in the object is what is meant.
        lists = [member for member in value.values() if isinstance(member, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise CliError(f"{path}: holds no array of objects", "Write an array of objects, or use .jsonl.")
    yield from value


def _csv(path: Path) -> Iterator[Any]:
    with _open_text(path) as file:
        yield from csv.DictReader(file)


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


READERS = {".jsonl": _json_lines, ".ndjson": _json_lines, ".json": _json_array, ".csv": _csv, ".parquet": _parquet}


def sample_rows(path: Path, count: int = SAMPLE_ROWS) -> list[dict[str, Any]]:
    """The first rows as objects. Raises CliError naming file, line and fix."""
    plain = path.with_suffix("") if path.suffix == ".gz" else path
    reader = READERS.get(plain.suffix.lower())
    if reader is None:
        raise CliError(f"{path}: unknown kind of file", f"Use one of {', '.join(EXTENSIONS)} (each may be gzipped).")
    try:
        rows = list(islice(reader(path), count))
    except UnicodeDecodeError as error:
        raise CliError(f"{path}: not UTF-8: {error.reason}", "Save the file as UTF-8.") from error
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror or error}") from error
    if not rows:
        raise CliError(f"{path} has no rows", "Give it at least 50 rows.")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise CliError(f"{path}: row {number} is not an object", "Each row must be an object with columns.")
    return rows
