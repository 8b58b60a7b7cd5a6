"""JSON: a list of objects, or an object with one list of objects; a .json file of JSON lines is read as such.

Rows are decoded one at a time by Python's own decoder, so that they are the ones `json.loads` would give. (ijson would
stream too; its parser replaces lone surrogates, refuses NaN and long numbers, and keeps the last of two equal keys.)
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from finetune_runner.data.bytes_in import DAMAGED, LONGEST_ROW, UTF8_HINT, damaged, too_long
from finetune_runner.data.containers import jsonl
from finetune_runner.data.json_keys import unique_keys
from finetune_runner.data.json_stream import JsonStream, NotJson, NotUtf8, OtherKind, TooLong
from finetune_runner.data.records import BadRow, Record, RowError

EXTENSIONS = (".json",)
_HINT = "write a list of objects, or one object per line in a .jsonl file"
_SHORTER = f"shorten or remove the row, or {_HINT}"


class _Unreadable(Exception):
    """Nothing can be read behind this."""

    def __init__(self, bad: BadRow) -> None:
        super().__init__(bad.message)
        self.bad = bad


def read(path: Path, name: str) -> Iterator[Record | BadRow]:
    """Rows of a file. Memory: one row, or the file where it is a small object."""
    with JsonStream(path, unique_keys, LONGEST_ROW) as stream:
        try:
            yield from _rows(stream, path, name)
        except _Unreadable as error:
            yield error.bad
        except NotJson as error:
            yield BadRow(name, f"line {error.line}", f"not JSON: {error.message} at column {error.column}", _HINT)
        except TooLong:
            yield too_long(name, "", _SHORTER)
        except OtherKind as error:
            yield BadRow(name, "", error.message, error.hint)
        except NotUtf8 as error:
            where = f"line {error.line}" if error.line else ""
            yield BadRow(name, where, error.message, UTF8_HINT)
        except DAMAGED as error:
            yield damaged(name, stream.line - 1, error)


def _rows(stream: JsonStream, path: Path, name: str) -> Iterator[Record | BadRow]:
    first = stream.peek()
    if first == "[":
        yield from _items(stream, name)
        _end(stream)
    elif first == "{":
        yield from _object(stream, path, name)
    elif first:
        value = _value(stream, name, "")
        _end(stream)
        yield BadRow(name, "", f"is a JSON {type(value).__name__}, not a list of objects", _HINT)


def _object(stream: JsonStream, path: Path, name: str) -> Iterator[Record | BadRow]:
    """One object, an object with a list of objects, or the first of JSON lines."""
    try:
        value = _value(stream, name, "")
    except TooLong:
        yield from _wrapped(stream, name)
        return
    if stream.peek():
        yield from jsonl.read(path, name)
        return
    if isinstance(value, BadRow):
        yield value
        return
    assert isinstance(value, dict)  # noqa: S101 - it begins with a brace
    (only,) = value.values() if len(value) == 1 else (None,)
    wrapped = isinstance(only, list) and all(isinstance(item, dict) for item in only)
    rows = only if isinstance(only, list) and wrapped else [value]
    for number, row in enumerate(rows, start=1):
        yield Record(name, f"row {number}", row)


def _wrapped(stream: JsonStream, name: str) -> Iterator[Record | BadRow]:
    """The rows of an object that is too large for a row: a list under its only key."""
    stream.take("{")
    stream.peek()
    stream.value()  # the key
    if stream.peek() == ":":
        stream.take(":")
    if stream.peek() != "[":
        raise _Unreadable(too_long(name, "row 1", _SHORTER))
    yield from _items(stream, name)
    after = stream.peek()
    if after == ",":
        raise _Unreadable(BadRow(name, f"line {stream.line}", "has something beside its list of objects", _HINT))
    if after != "}":
        raise stream.error("Expecting ',' delimiter")
    stream.take("}")
    _end(stream)


def _items(stream: JsonStream, name: str) -> Iterator[Record | BadRow]:
    """The rows of a list, up to and with its closing bracket."""
    stream.take("[")
    number = 0
    if stream.peek() == "]":
        stream.take("]")
        return
    while True:
        number += 1
        stream.peek()
        try:
            item = _value(stream, name, f"row {number}")
        except TooLong:
            raise _Unreadable(too_long(name, f"row {number}", _SHORTER)) from None
        if isinstance(item, BadRow):
            yield item
        elif isinstance(item, dict):
            yield Record(name, f"row {number}", item)
        else:
            yield BadRow(name, f"row {number}", f"is {type(item).__name__}, not an object", _HINT)
        after = stream.peek()
        if after not in (",", "]"):
            raise stream.error("Expecting ',' delimiter")
        stream.take(after)
        if after == "]":
            return


def _value(stream: JsonStream, name: str, position: str) -> object:
    """The next value; a BadRow when it cannot be used but what follows can be read. Raises what `stream` does."""
    try:
        return stream.value()
    except RowError as error:
        return BadRow(name, position, error.message, error.hint)
    except (ValueError, RecursionError) as error:
        raise _Unreadable(BadRow(name, position, f"not usable JSON: {error}", _HINT)) from error


def _end(stream: JsonStream) -> None:
    if stream.peek():
        raise stream.error("Extra data")
