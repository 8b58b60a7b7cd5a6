"""JSON files, read row by row: the rows of `json.loads`, its errors with their places, and bounds on what is held."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune_runner.data import json_stream
from finetune_runner.data.containers import json_file
from finetune_runner.data.records import BadRow, Record

LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**40), 10**40)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["\ud83d", "\ude00", "😀", "é", '"', "\\", "[{,"])
)
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner))
ROW = st.dictionaries(st.text(max_size=5), VALUE, max_size=4)
SPACE = st.sampled_from(["", " ", "\n", "\r\n\t "])


def read(content: bytes, chunk: int = 1 << 20, longest: int = 1 << 24) -> list[Record | BadRow]:
    with TemporaryDirectory() as name, patch.object(json_stream, "_CHUNK_BYTES", chunk):
        path = Path(name) / "a.json"
        path.write_bytes(content)
        with patch.object(json_file, "LONGEST_ROW", longest):
            return list(json_file.read(path, "a.json"))


def values(found: list[Record | BadRow]) -> list[Any]:
    assert not [item for item in found if isinstance(item, BadRow)], found
    return [item.value for item in found if isinstance(item, Record)]


def same(one: Any, other: Any) -> bool:
    return json.dumps(one) == json.dumps(other)  # NaN is not equal to itself


@given(st.lists(ROW, max_size=5), SPACE, st.sampled_from([None, 1]), st.booleans(), st.integers(1, 40))
@example([{"a": 12.5e7}], "", None, True, 1)
def test_the_rows_are_those_of_json(
    rows: list[dict[str, Any]], space: str, indent: int | None, ascii_only: bool, chunk: int
) -> None:
    text = space + json.dumps(rows, indent=indent, ensure_ascii=ascii_only) + space
    try:
        content = text.encode()
    except UnicodeEncodeError:  # half a pair, unescaped: no file in UTF-8 has it
        content = (space + json.dumps(rows, indent=indent) + space).encode()
    assert same(values(read(content, chunk)), rows)
    assert same(values(read(b"\xef\xbb\xbf" + content, chunk)), rows)
    assert same(values(read(gzip.compress(content), chunk)), rows)
    if rows:
        assert same(values(read(b'{"rows":' + content + b"}", chunk)), rows)
        longest = max(len(content) - 1, len('"rows"'))
        assert same(values(read(b'{"rows" : ' + content + b" } ", chunk, longest)), rows)


BROKEN = st.sampled_from([*'[]{},:"1e.-\\ tx', ""])


@given(st.lists(ROW, min_size=1, max_size=3), st.integers(0, 300), BROKEN, st.integers(1, 40))
def test_what_json_refuses_is_refused_at_the_same_place(
    rows: list[dict[str, Any]], at: int, character: str, chunk: int
) -> None:
    text = json.dumps(rows)
    at %= len(text)
    broken = text[:at] + character + text[at + 1 :]
    found = read(broken.encode(), chunk)
    bad = [item for item in found if isinstance(item, BadRow)]
    try:
        value = json.loads(broken)
    except json.JSONDecodeError as error:
        expected: json.JSONDecodeError | None = error
    else:
        expected = None
    if expected is None:
        if isinstance(value, list) and all(isinstance(row, dict) for row in value) and not bad:
            assert same(values(found), value)
    elif broken.lstrip().startswith("["):
        assert len(bad) >= 1
        assert bad[-1].position == f"line {expected.lineno}"
        assert bad[-1].message.endswith(f"at column {expected.colno}"), (bad[-1], expected)
    else:
        assert bad


@pytest.mark.parametrize(
    ("content", "position", "message"),
    [
        (b"5", "", "is a JSON int, not a list of objects"),
        (b'"text"', "", "is a JSON str, not a list of objects"),
        (b'[{"a": 1}, 5]', "row 2", "is int, not an object"),
        (b'[{"a": 1}, [{"b": 1}]]', "row 2", "is list, not an object"),
        (b'[{"a": 1},\n{"b": 2', "line 2", "not JSON: Expecting ',' delimiter at column 8"),
        (b'[{"a": 1},\n', "line 2", "not JSON: Expecting value at column 1"),
        (b'[{"a": 1}', "line 1", "not JSON: Expecting ',' delimiter at column 10"),
        (b'[{"a": 1}\n{"b": 2}]', "line 2", "not JSON: Expecting ',' delimiter at column 1"),
        (b'[{"a": 1}]\n]', "line 2", "not JSON: Extra data at column 1"),
        (b'[{"a": 1}, {"b": 1, "b": 2}]', "row 2", "has the key `b` twice"),
        (b'[{"a": {"b": 1, "b": 2}}]', "row 1", "has the key `b` twice"),
        (b'{"a": 1, "a": 2}', "", "has the key `a` twice"),
        (b'{"a": 1}\n{"b": 1, "b": 2}', "line 2", "has the key `b` twice"),
        (b'[\n{"a": "\xff"}]', "line 2", "not UTF-8: byte 0xff"),
        (b'[{"a": "\xe2\x82', "line 1", "not UTF-8: byte 0xe2"),
        ('[{"a": 1}]'.encode("utf-16"), "", "is UTF-16"),
        (b'[{"a": 1' + b"0" * 5000 + b"}]", "row 1", "not usable JSON: Exceeds the limit"),
        (b"[" * 200_000, "row 1", "not usable JSON: maximum recursion depth"),
        (gzip.compress(b"[" + b'{"a": 1},' * 1000, mtime=0)[:-20], "after line 0", "the gzip data are damaged"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunk", [3, 1 << 20])
def test_what_is_wrong_is_named_with_its_place(content: bytes, position: str, message: str, chunk: int) -> None:
    bad = [item for item in read(content, chunk) if isinstance(item, BadRow)]
    assert len(bad) == 1
    assert (bad[0].file, bad[0].position) == ("a.json", position)
    assert bad[0].message.startswith(message)
    assert bad[0].hint


def test_rows_after_one_that_cannot_be_used_are_read() -> None:
    found = read(b'[{"a": 1, "a": 2}, 7, {"b": 1}]', chunk=2)
    assert [item.position for item in found] == ["row 1", "row 2", "row 3"]
    assert isinstance(found[2], Record)


@pytest.mark.parametrize(("letters", "fits"), [(39, True), (40, False)])
def test_a_row_has_a_longest_length(letters: int, fits: bool) -> None:
    content = json.dumps([{"a": 1}, {"a": "x" * letters}]).encode()
    found = read(content, chunk=8, longest=48)
    assert isinstance(found[1], Record) is fits
    if not fits:
        assert isinstance(found[1], BadRow)
        assert (found[1].position, "nothing behind it is read" in found[1].message) == ("row 2", True)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"rows": [{"a": 1}, {"a": 2}], "version": 1}', "has something beside its list of objects"),
        (b'{"version": 1, "rows": [{"a": 1}, {"a": 2}]}', "is longer than"),
        (b'{"rows": [{"a": 1}, {"a": 2}, {"a": 3}}', "not JSON: Expecting ',' delimiter at column 39"),
        (b'{"rows": [{"a": 1}, {"a": 2}, {"a": 3}]', "not JSON: Expecting ',' delimiter at column 40"),
    ],
)
def test_a_large_object_has_one_list_and_nothing_else(content: bytes, message: str) -> None:
    found = read(content, chunk=4, longest=20)
    assert isinstance(found[-1], BadRow)
    assert found[-1].message.startswith(message)


def large(path: Path, megabytes: int) -> None:
    row = json.dumps({"prompt": "p" * 900, "completion": "c" * 90})
    with path.open("w") as target:
        target.write("[" + row)
        for _ in range(megabytes * 1000):
            target.write(",\n" + row)
        target.write("]")


def peak_bytes(path: Path) -> int:
    tracemalloc.start()
    try:
        assert sum(isinstance(item, Record) for item in json_file.read(path, "a.json")) > 1000
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_memory_does_not_grow_with_the_list(tmp_path: Path) -> None:
    peaks = []
    for megabytes in (4, 16):
        large(tmp_path / "a.json", megabytes)
        peaks.append(peak_bytes(tmp_path / "a.json"))
    assert peaks[1] < peaks[0] + 1_000_000 < 10_000_000, peaks
