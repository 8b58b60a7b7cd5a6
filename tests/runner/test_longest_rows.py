"""Rows that are longer than any model reads: the same bound for every kind of file, and never held in memory."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_runner.data import bytes_in
from finetune_runner.data.containers import csv_file, json_file, jsonl, parquet
from finetune_runner.data.records import BadRow, Record

MODULES = {".jsonl": jsonl, ".json": json_file, ".csv": csv_file, ".parquet": parquet}


def written(path: Path, texts: list[str]) -> Path:
    rows = [{"a": text} for text in texts]
    if path.suffix == ".parquet":
        pq.write_table(pa.table({"a": texts}), path)
        return path
    content = {
        ".jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        ".json": json.dumps(rows),
        ".csv": "a\n" + "".join(f"{text}\n" for text in texts),
    }[path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix].encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    ("name", "position"),
    [
        ("a.jsonl", "line 2"), ("a.jsonl.gz", "line 2"), ("a.json", "row 2"), ("a.json.gz", "row 2"),
        ("a.csv", "line 3"), ("a.csv.gz", "line 3"), ("a.parquet", "row 2"),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("letters", "fits"), [(140, True), (160, False)])
def test_every_kind_of_file_has_the_same_bound(
    tmp_path: Path, name: str, position: str, letters: int, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (bytes_in, csv_file, json_file, parquet):
        monkeypatch.setattr(module, "LONGEST_ROW", 155)
    path = written(tmp_path / name, ["short", "x" * letters])
    first, second = MODULES["." + name.split(".")[1]].read(path, name)
    assert isinstance(first, Record)
    assert isinstance(second, Record) is fits
    if not fits:
        assert isinstance(second, BadRow)
        assert (second.file, second.position) == (name, position)
        assert "is longer than" in second.message
        assert "shorten" in second.hint


def test_a_row_of_csv_is_as_long_as_its_fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_file, "LONGEST_ROW", 100)
    field = '"' + "some words\n" * 5 + '"'
    (tmp_path / "a.csv").write_text(f"a,b\n{field},c\n{field},{field}\nd,e\n")
    fits, bad, after = csv_file.read(tmp_path / "a.csv", "a.csv")
    assert (fits.position, bad.position, after.position) == ("line 2", "line 8", "line 19")
    assert isinstance(fits, Record)
    assert isinstance(bad, BadRow)
    assert isinstance(after, Record)


def test_rows_of_parquet_behind_one_that_is_too_long_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "LONGEST_ROW", 1000)
    shared = pa.array(["y" * 900, "z" * 900, "y" * 900, "z" * 900]).dictionary_encode()
    nested = pa.array([[{"content": "x" * 50}], [{"content": "x" * 90}] * 20, [], None])
    pq.write_table(pa.table({"shared": shared, "messages": nested}), tmp_path / "a.parquet")
    found = list(parquet.read(tmp_path / "a.parquet", "a.parquet"))
    assert [(item.position, isinstance(item, Record)) for item in found] == [
        ("row 1", True), ("row 2", False), ("row 3", True), ("row 4", True)
    ]  # fmt: skip
    assert isinstance(found[1], BadRow)
    assert "nothing behind it" not in found[1].message


def test_a_gzipped_parquet_file_is_named_as_such(tmp_path: Path) -> None:
    packed = gzip.compress(written(tmp_path / "b.parquet", ["x"]).read_bytes())
    (tmp_path / "a.parquet.gz").write_bytes(packed)
    (found,) = parquet.read(tmp_path / "a.parquet.gz", "a.parquet.gz")
    assert isinstance(found, BadRow)
    assert (found.origin, found.hint) == ("a.parquet.gz", "unpack it with gunzip")


@pytest.mark.parametrize(("module", "name"), [(jsonl, "a.jsonl"), (csv_file, "a.csv")])
@pytest.mark.parametrize("packed", [False, True])
def test_a_line_without_end_is_refused_and_not_held(
    tmp_path: Path, module: Any, name: str, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = b'{"prompt": "p"}\n' + b"x" * 3_000_000
    (tmp_path / name).write_bytes(gzip.compress(content) if packed else content)
    monkeypatch.setattr(bytes_in, "LONGEST_ROW", 100_000)
    tracemalloc.start()
    found = list(module.read(tmp_path / name, name))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    bad = [item for item in found if isinstance(item, BadRow)]
    assert [item.position for item in bad] == ["line 2"]
    assert "is longer than" in bad[0].message
    assert bad[0].hint
    assert peak < 2_000_000


@pytest.mark.parametrize(("length", "fits"), [(100, True), (101, False)])
def test_the_longest_line_fits(tmp_path: Path, length: int, fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    line = json.dumps({"a": "x" * (length - 10)}) + "\n"
    assert len(line) == length
    (tmp_path / "a.jsonl").write_text(line)
    monkeypatch.setattr(bytes_in, "LONGEST_ROW", 100)
    (found,) = jsonl.read(tmp_path / "a.jsonl", "a.jsonl")
    assert isinstance(found, Record) is fits


def test_a_quote_that_never_closes_is_refused_and_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text('prompt,completion\n"p,c\n' + "some words\n" * 300_000)
    monkeypatch.setattr(csv_file, "LONGEST_ROW", 100_000)
    tracemalloc.start()
    found = list(csv_file.read(tmp_path / "a.csv", "a.csv"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 1
    assert isinstance(found[0], BadRow)
    assert (found[0].position, "is longer than" in found[0].message) == ("line 2", True)
    assert "never closed" in found[0].hint
    assert peak < 2_000_000


def test_a_row_group_as_large_as_the_file_is_read_in_parts(tmp_path: Path) -> None:
    rows, letters = 200, 100_000
    texts = [f"{number:06d}" * (letters // 6) for number in range(rows)]
    table = pa.table({"prompt": texts, "completion": texts})
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=rows, use_dictionary=False, compression="none")
    del table
    before = pa.total_allocated_bytes()
    highest = 0
    for number, record in enumerate(parquet.read(tmp_path / "a.parquet", "a.parquet"), start=1):
        assert isinstance(record, Record)
        assert record.position == f"row {number}"
        assert record.value["prompt"].startswith(f"{number - 1:06d}")
        highest = max(highest, pa.total_allocated_bytes() - before)
    assert number == rows
    assert 0 < highest < rows * letters / 2, "a fourth of the file"
