"""JSON lines: one object per line, plain or gzipped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_runner.data.bytes_in import BOM, UTF8_HINT, lines_of, what_is_wrong_with
from finetune_runner.data.json_keys import unique_keys
from finetune_runner.data.records import BadRow, Record, RowError

EXTENSIONS = (".jsonl", ".ndjson", ".jsonlines")


def read(path: Path, name: str) -> Iterator[Record | BadRow]:
    """Rows of a file; a line that is not a JSON object comes as BadRow. Blank lines are skipped."""
    for number, line in lines_of(path, name):
        if isinstance(line, BadRow):
            yield line
        elif line.strip():
            yield parse_line(line, name, f"line {number}")


def parse_line(line: bytes, name: str, position: str) -> Record | BadRow:
    """One line as a row."""
    try:
        # Behind the first line a BOM is that of a file that another one was put in front of.
        value: Any = json.loads(line.removeprefix(BOM).decode("utf-8"), object_pairs_hook=unique_keys)
    except RowError as error:
        return BadRow(name, position, error.message, error.hint)
    except UnicodeDecodeError as error:
        return BadRow(name, position, what_is_wrong_with(error), UTF8_HINT)
    except json.JSONDecodeError as error:
        return BadRow(
            name, position, f"not JSON: {error.msg} at column {error.colno}", "write one complete JSON object per line"
        )
    except (ValueError, RecursionError) as error:
        return BadRow(name, position, f"not usable JSON: {error}", "write one plain JSON object per line")
    if not isinstance(value, dict):
        return BadRow(
            name,
            position,
            f"is {type(value).__name__}, not an object",
            'write one JSON object per line: {"prompt": ...}',
        )
    return Record(name, position, value)
