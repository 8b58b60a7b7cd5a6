"""JSON: a list of objects, or an object with one list of objects; a .json file of JSON lines is read as such."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from finetune_runner.data.bytes_in import UTF8_HINT, read_all
from finetune_runner.data.containers import jsonl
from finetune_runner.data.json_keys import unique_keys
from finetune_runner.data.records import BadRow, Record, RowError

EXTENSIONS = (".json",)
_HINT = "write a list of objects, or one object per line in a .jsonl file"


def read(path: Path, name: str) -> Iterator[Record | BadRow]:
    """Rows of a file."""
    data = read_all(path, name)
    if isinstance(data, BadRow):
        yield data
        return
    if not data.strip():
        return
    try:
        value: Any = json.loads(data.decode("utf-8"), object_pairs_hook=unique_keys)
    except RowError as error:
        yield BadRow(name, "", error.message, error.hint)
        return
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield BadRow(name, f"line {line}", f"not UTF-8: byte 0x{data[error.start]:02x}", UTF8_HINT)
        return
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and data.lstrip().startswith(b"{"):
            yield from jsonl.read(path, name)
        else:
            yield BadRow(name, f"line {error.lineno}", f"not JSON: {error.msg} at column {error.colno}", _HINT)
        return
    except (ValueError, RecursionError) as error:
        yield BadRow(name, "", f"not usable JSON: {error}", _HINT)
        return
    rows = value
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        rows = (
            lists[0]
            if len(lists) == 1 and all(isinstance(item, dict) for item in lists[0]) and len(value) == 1
            else [value]
        )
    if not isinstance(rows, list):
        yield BadRow(name, "", f"is a JSON {type(value).__name__}, not a list of objects", _HINT)
        return
    for number, item in enumerate(rows, start=1):
        if isinstance(item, dict):
            yield Record(name, f"row {number}", item)
        else:
            yield BadRow(name, f"row {number}", f"is {type(item).__name__}, not an object", _HINT)
