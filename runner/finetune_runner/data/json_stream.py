"""A file of JSON, decoded one value at a time: the caller walks over brackets and commas, the values are Python's."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from finetune_runner.data.bytes_in import open_bytes, other_kind, wide_encoding
from finetune_runner.data.records import RowError

_CHUNK_BYTES = 1 << 20
_SHORTEST_MARK = 32
"""Bytes that tell the encoding, and what the file is."""
_SPACE = re.compile(r"[ \t\n\r]*")
_LOOKAHEAD = 3
"""Characters behind a value that may still belong to it: a number goes on with `e+7`."""
_LONGEST_WORD = 16
"""An error so close to the end of what is read may be a word or an escape that is cut there."""


class NotJson(Exception):
    """The file is no JSON at this place; line and column count from 1."""

    def __init__(self, message: str, line: int, column: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line
        self.column = column


class NotUtf8(Exception):
    """The file is in another encoding; `line` is 0 where that concerns all of it."""

    def __init__(self, message: str, line: int) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


class OtherKind(Exception):
    """The file holds no text, by how it begins."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class TooLong(Exception):
    """A value is longer than may be."""


class JsonStream:
    """The characters of a file and a place among them.

    Besides the errors below every method raises NotUtf8, OtherKind, and what a damaged gzip file raises (DAMAGED).

    Args:
        path: of the file, gzipped or not, with a BOM or none.
        object_pairs_hook: as of `json.loads`; it may raise RowError.
        longest: most characters of a value.
    """

    def __init__(self, path: Path, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any], longest: int) -> None:
        self._stream = open_bytes(path)
        self._utf8 = codecs.getincrementaldecoder("utf-8-sig")()
        self._decoder = json.JSONDecoder(object_pairs_hook=object_pairs_hook)
        self._plain = json.JSONDecoder()
        self._longest = longest
        self._text, self._at, self._begun, self._ended = "", 0, False, False
        self._lines_before = self._columns_before = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()

    @property
    def line(self) -> int:
        """The line of the place, from 1."""
        return self._place(self._at)[0]

    def peek(self) -> str:
        """The next character that is no white space, which is passed over; empty at the end."""
        while True:
            space = _SPACE.match(self._text, self._at)
            self._at = space.end() if space else self._at
            if self._at < len(self._text):
                return self._text[self._at]
            if self._ended:
                return ""
            self._more(_CHUNK_BYTES)

    def take(self, character: str) -> None:
        """Pass over the character that `peek` has shown."""
        self._at += len(character)

    def value(self) -> Any:
        """The value at the place, which is left behind it.

        Raises:
            NotJson: when there is none.
            TooLong: when it is longer than `longest`; the place stays.
            RowError: of the hook; the value is passed over.
            ValueError, RecursionError: of numbers with thousands of digits and of endless nesting.
        """
        size = _CHUNK_BYTES
        while True:
            wrong: RowError | None = None
            try:
                try:
                    found, end = self._decoder.raw_decode(self._text, self._at)
                except RowError as error:
                    wrong = error
                    found, end = self._plain.raw_decode(self._text, self._at)
            except json.JSONDecodeError as error:
                unterminated = error.msg.startswith("Unterminated")  # and placed at its beginning
                if self._ended or (not unterminated and error.pos < len(self._text) - _LONGEST_WORD):
                    raise NotJson(error.msg, *self._place(error.pos)) from None
            else:
                if end - self._at > self._longest:
                    raise TooLong
                if self._ended or len(self._text) - end >= _LOOKAHEAD:
                    self._at = end
                    if wrong is not None:
                        raise wrong
                    return found
            if len(self._text) - self._at > self._longest + _LOOKAHEAD:
                raise TooLong
            self._more(size)
            size *= 2  # what was read is decoded anew: twice as much each time, so that it stays linear

    def error(self, message: str) -> NotJson:
        """An error at the place."""
        return NotJson(message, *self._place(self._at))

    def _place(self, at: int) -> tuple[int, int]:
        newlines = self._text.count("\n", 0, at)
        column = at - self._text.rfind("\n", 0, at) if newlines else self._columns_before + at + 1
        return 1 + self._lines_before + newlines, column

    def _more(self, size: int) -> None:
        """Read on, and forget what is behind the place."""
        line, column = self._place(self._at)
        data = self._stream.read(size if self._begun else max(size, _SHORTEST_MARK))
        if not self._begun and (wide := wide_encoding(data)):
            raise NotUtf8(f"is {wide}", 0)
        if not self._begun and (other := other_kind(data)):
            raise OtherKind(*other)
        self._ended = not data
        try:
            text = self._utf8.decode(data, final=self._ended)
        except UnicodeDecodeError as error:
            before = self._place(len(self._text))[0] + error.object.count(b"\n", 0, error.start)
            raise NotUtf8(f"not UTF-8: byte 0x{error.object[error.start]:02x}", before) from None
        self._text = self._text[self._at :] + text
        self._at, self._begun = 0, True
        self._lines_before, self._columns_before = line - 1, column - 1
