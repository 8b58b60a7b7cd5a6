"""YAML text as plain values with the line of each, read the way the API server and kubectl read it.

Built on ruamel's parser events, not on its constructors, for three reasons: scalars must mean what they mean to the
API server (`2e-4` is a number, `017` is 15, an unquoted `yes` is true: go-yaml's table, checked against a real API
server in `tests/cluster/test_contract.py`), every key needs its line, and no text may raise or explode.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    DocumentEndEvent,
    DocumentStartEvent,
    Event,
    MappingEndEvent,
    MappingStartEvent,
    NodeEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)

Path = tuple[str | int, ...]

MAXIMUM_DEPTH = 64
MAXIMUM_TABS = 200
"""Tabs between tokens that are read as spaces."""
MAXIMUM_NODES = 100_000
"""Values a document may have with its aliases written out; a job has about a hundred."""

_TRUE = frozenset(["y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"])
_FALSE = frozenset(["n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"])
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_INTEGER = re.compile(
    r"(?P<sign>[-+]?)(?:0[bB](?P<two>[01]+)|0[xX](?P<sixteen>[0-9a-fA-F]+)|0[oO]?(?P<eight>[0-7]+)|(?P<ten>0|[1-9][0-9]*))"
)
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_NOT_YAML = (YAMLError, ValueError, NotImplementedError, AttributeError, IndexError, TypeError, AssertionError)
_NOT_PRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_LATER_MARK = re.compile("^(---[^\n]*\n)\ufeff", re.MULTILINE)
"""The byte order mark of a file that another one was put in front of."""
_WHITE_SPACE = re.compile(r"[ \t\r\n]*")
_LEADING_TAB = re.compile(r"\n( *)\t")
_TAG = "tag:yaml.org,2002:"


@dataclass(frozen=True, order=True)
class Position:
    """Where something is in the text, from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class ReadError:
    """Why the text is not a document, and where."""

    position: Position
    message: str
    fix: str


class UnreadableError(Exception):
    """The text is no YAML that the API server would read."""

    def __init__(self, error: ReadError) -> None:
        super().__init__(error.message)
        self.error = error


@dataclass
class Document:
    """One document of the text: its value, the position of every key and entry, and what is wrong with its form."""

    value: Any = None
    start: Position = Position(1, 1)
    positions: dict[Path, Position] = field(default_factory=dict)
    errors: list[tuple[Path, ReadError]] = field(default_factory=list)

    def position_of(self, path: Path) -> Position:
        """Position of a path, or of its nearest ancestor that is written down."""
        for length in range(len(path), 0, -1):
            if path[:length] in self.positions:
                return self.positions[path[:length]]
        return self.start


def read_documents(text: str) -> list[Document]:
    """All documents of a text that are not empty.

    Raises:
        UnreadableError: the text is not YAML, or too deep, or too large with its aliases written out.
    """
    text = _LATER_MARK.sub(r"\1", text)
    _check_directives(text)
    _check_separators(text)
    text = _tabs_as_spaces(text)
    reader = _Reader(_events(text), text)
    return [document for document in reader.documents() if document.value is not None or document.errors]


def scalar_value(text: str) -> Any:  # any JSON scalar
    """What an unquoted scalar means: null, true or false, a number, or the text itself. NaN and infinity as floats."""
    if text in _NULL:
        return None
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    plain = text.replace("_", "") if text[:1].isdigit() or text[:1] in "+-." else text
    if match := _INTEGER.fullmatch(plain):
        return _integer(match)
    if _FLOAT.fullmatch(plain):
        number = float(plain)
        return number if math.isfinite(number) else text
    if _NOT_FINITE.fullmatch(text):
        return math.nan if text[1:].lower() == "nan" else math.inf
    return text


def _integer(match: re.Match[str]) -> int | float:
    digits, base = next((match[name], base) for name, base in _BASES if match[name] is not None)
    if len(digits) > 64 and base != 2:
        return float(digits) if base == 10 and len(digits) < 300 else 1e300
    number = int(digits, base) * (-1 if match["sign"] == "-" else 1)
    return number if -(2**63) <= number < 2**64 else float(number)


_BASES = (("two", 2), ("sixteen", 16), ("eight", 8), ("ten", 10))


def _events(text: str) -> Iterator[Event]:
    try:
        # Not the round-trip parser: it marks folds within the text of `>` scalars.
        yield from _parse(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        position = Position(mark.line + 1, mark.column + 1) if mark else Position(1, 1)
        problem = str(error.problem or error.context or "it cannot be read")
        raise UnreadableError(ReadError(position, f"is not valid YAML: {problem}", _syntax_fix(problem))) from error
    except _NOT_YAML as error:
        # The parser has bugs for odd control characters and directives; its own errors are not all YAMLErrors.
        raise UnreadableError(_odd_character(text)) from error


def _parse(text: str) -> Iterator[Event]:
    return iter(YAML(typ="safe", pure=True).parse(text))


def _tabs_as_spaces(text: str) -> str:
    """The text with spaces for tabs that separate tokens within a line: go-yaml takes them there, ruamel nowhere."""
    for _ in range(min(text.count("\t"), MAXIMUM_TABS)):
        try:
            for _event in _parse(text):
                pass
        except MarkedYAMLError as error:
            mark = error.problem_mark
            if mark is None or "'\\t' that cannot start" not in str(error.problem):
                break
            start = mark.index
            before = text[text.rfind("\n", 0, start) + 1 : start].strip()
            if not before or before in ("-", "?"):
                break  # indentation
            length = len(text[start:]) - len(text[start:].lstrip("\t"))
            text = text[:start] + " " * length + text[start + length :]
        except _NOT_YAML:
            break
        else:
            break
    return text


def _check_directives(text: str) -> None:
    """Raise UnreadableError for a directive: kubectl cuts the text at `---`, and so the directive off its document."""
    for number, line in enumerate(text.splitlines(), start=1):
        if line.startswith("%"):
            message = f"is not valid YAML: it has the directive {line.strip()[:40]}"
            raise UnreadableError(ReadError(Position(number, 1), message, "remove the line"))
        if line.split() and not line.lstrip().startswith("#"):
            return


def _check_separators(text: str) -> None:
    """Raise UnreadableError where something follows `---` in its line (apimachinery, util/yaml/decoder.go)."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.startswith("---") and (behind := line[3:].strip()) and not behind.startswith("#"):
            raise UnreadableError(
                ReadError(Position(number, 4), "has something behind `---`, which kubectl refuses", "begin a new line")
            )


def _odd_character(text: str) -> ReadError:
    """Where the first character is that YAML does not allow."""
    found = _NOT_PRINTABLE.search(text)
    if found is None:
        return ReadError(Position(1, 1), "is not valid YAML: it cannot be read", "write plain keys and values")
    before = text[: found.start()]
    position = Position(before.count("\n") + 1, found.start() - before.rfind("\n"))
    return ReadError(
        position,
        f"is not valid YAML: it has a character that YAML does not allow (U+{ord(found[0]):04X})",
        "remove it, and save as UTF-8",
    )


def _syntax_fix(problem: str) -> str:
    if "\\t" in problem or "tab" in problem:
        return "indent with spaces, not with tabs"
    return "check the indentation, the colons and the quotes here and in the line above"


class _Reader:
    """Turns events into documents; one document at a time, recursion bounded by MAXIMUM_DEPTH."""

    def __init__(self, events: Iterator[Event], text: str) -> None:
        self._events = events
        self._text = text
        self._blocks: list[int] = []
        """Columns, from 0, of the block mappings and sequences around the place."""
        self._document = Document()
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._nodes = 0

    def documents(self) -> Iterator[Document]:
        for number, event in enumerate(self._events):
            if isinstance(event, DocumentStartEvent):
                if number > 1 and not event.explicit:
                    message = "is a second document behind `...`, which kubectl passes over without a word"
                    raise _unreadable(event, message, "write --- between the two")
                self._document = Document()
                self._anchors = {}
                self._nodes = 0
                first = next(self._events)
                self._document.start = _position(first)
                self._document.value = self._value(first, ())
            elif isinstance(event, DocumentEndEvent):
                yield self._document

    def _value(self, event: Event, path: Path) -> Any:  # any JSON
        before = self._nodes
        self._count(1, event)
        if len(path) > MAXIMUM_DEPTH:
            raise _unreadable(
                event, f"is nested deeper than {MAXIMUM_DEPTH} levels", "nothing of ours needs that; flatten it"
            )
        if isinstance(event, AliasEvent):
            if event.anchor not in self._anchors:
                raise _unreadable(
                    event, f"refers to the anchor {event.anchor}, which is not defined above", "write the value itself"
                )
            value, size = self._anchors[event.anchor]
            self._count(size, event)
            return value
        value = self._content(event, path)
        anchor = event.anchor if isinstance(event, NodeEvent) else None
        if anchor is not None:
            self._anchors[anchor] = (value, self._nodes - before)
        return value

    def _content(self, event: Event, path: Path) -> Any:  # any JSON
        if isinstance(event, ScalarEvent):
            self._check_tabs(event)
            return self._scalar(event, path)
        if not isinstance(event, SequenceStartEvent | MappingStartEvent):
            raise _unreadable(event, "is not valid YAML", "write plain keys and values")
        if not event.flow_style:
            self._blocks.append(event.start_mark.column)
        value = self._mapping(path) if isinstance(event, MappingStartEvent) else self._sequence(path)
        if not event.flow_style:
            self._blocks.pop()
        return value

    def _check_tabs(self, event: ScalarEvent) -> None:
        """Raise UnreadableError for a tab that go-yaml takes for a broken indentation.

        Behind an unquoted text it goes on over line ends, and a tab there, left of what the block is indented by, is
        an error (scannerc.go, yaml_parser_scan_plain_scalar); in other places of a flow mapping it is white space.
        """
        if event.style:
            return
        behind = _WHITE_SPACE.match(self._text, event.end_mark.index)
        end = behind.end() if behind else event.end_mark.index
        indent = self._blocks[-1] + 1 if self._blocks else 0
        for match in _LEADING_TAB.finditer(self._text, event.start_mark.index, end):
            if len(match[1]) < indent:
                line = self._text.count("\n", 0, match.end()) + 1
                position = Position(line, len(match[1]) + 1)
                message = "is not valid YAML: found a tab character that violates indentation"
                raise UnreadableError(ReadError(position, message, _syntax_fix("tab")))

    def _sequence(self, path: Path) -> list[Any]:
        items: list[Any] = []
        while not isinstance(item := next(self._events), SequenceEndEvent):
            inner = (*path, len(items))
            self._document.positions[inner] = _position(item)
            items.append(self._value(item, inner))
        return items

    def _mapping(self, path: Path) -> dict[str, Any]:
        result: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        while not isinstance(event := next(self._events), MappingEndEvent):
            position = _position(event)
            merge = isinstance(event, ScalarEvent) and event.value == "<<" and event.style is None
            key = self._key(event)
            inner = (*path, key)
            if key in result:
                self._fault(
                    inner,
                    position,
                    f"is written twice (first in line {self._document.positions[inner].line})",
                    "keep one",
                )
            self._document.positions.setdefault(inner, position)
            value = self._value(next(self._events), inner)
            if merge:
                for part in value if isinstance(value, list) else [value]:
                    if not isinstance(part, dict):
                        raise _unreadable(event, "merges something that is not a mapping", "write the keys themselves")
                    self._merge(part, merged, path, position)
            else:
                result.setdefault(key, value)
        for key in result.keys() & merged.keys():
            self._fault(
                (*path, key), self._document.positions[*path, key], "is written twice (also merged)", "keep one"
            )
        return {**merged, **result}

    def _merge(self, part: dict[str, Any], merged: dict[str, Any], path: Path, position: Position) -> None:
        for key, value in part.items():
            if key in merged:
                self._fault((*path, key), position, "is merged twice", "keep one")
            merged.setdefault(key, value)

    def _key(self, event: Event) -> str:
        if isinstance(event, AliasEvent) and isinstance(self._anchors.get(event.anchor, ({}, 0))[0], str):
            return str(self._anchors[event.anchor][0])
        if not isinstance(event, ScalarEvent):
            raise _unreadable(
                event, "has a key that is not a word", "write keys as words, followed by a colon and a space"
            )
        value = self._value(event, ())
        if value is None:
            raise _unreadable(event, "has an empty key", "write a name before the colon")
        if isinstance(value, bool):
            return "true" if value else "false"
        return str(value)

    def _scalar(self, event: ScalarEvent, path: Path) -> Any:  # any JSON scalar
        tag = str(event.tag or "")
        text: str = event.value
        if tag == f"{_TAG}str" or (not tag and event.style not in (None, "")):
            return text
        if tag == f"{_TAG}binary":
            return self._binary(event)
        if tag and not tag.startswith(_TAG):
            return text  # `!`, or somebody's own: go-yaml takes the text as it is
        if tag and tag not in {f"{_TAG}{name}" for name in ("int", "float", "bool", "null")}:
            raise _unreadable(event, f"has the tag {tag.replace(_TAG, '!!')}", "write the value without a tag")
        value = scalar_value(text)
        if isinstance(value, float) and not math.isfinite(value):
            self._fault(path, _position(event), f"is {text}, which is not a number", "write a finite number")
            return 0
        return value

    def _binary(self, event: ScalarEvent) -> str:
        try:
            return base64.b64decode(event.value.replace("\r", "").replace("\n", ""), validate=True).decode("utf-8")
        except ValueError as error:
            raise _unreadable(
                event, "has the tag !!binary and is no text in base64", "write the text itself"
            ) from error

    def _count(self, nodes: int, event: Event) -> None:
        self._nodes += nodes
        if self._nodes > MAXIMUM_NODES:
            raise _unreadable(
                event, f"has more than {MAXIMUM_NODES} values with its aliases written out", "use fewer aliases"
            )

    def _fault(self, path: Path, position: Position, message: str, fix: str) -> None:
        self._document.errors.append((path, ReadError(position, message, fix)))


def _position(event: Event) -> Position:
    mark = event.start_mark
    return Position(mark.line + 1, mark.column + 1)


def _unreadable(event: Event, message: str, fix: str) -> UnreadableError:
    return UnreadableError(ReadError(_position(event), message, fix))
