"""Files as spreadsheets, scripts and accidents leave them: what is read, and what is named with its fix."""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.bytes_in import wide_encoding
from finetune_runner.data.loading import Wanted
from finetune_runner.errors import StageError
from tests.runner.stores import LoadedRows, PrepareWorld, exchange, lines, load_rows, messages_of


def parquet(table: pa.Table | dict[str, Any]) -> bytes:
    target = io.BytesIO()
    pq.write_table(table if isinstance(table, pa.Table) else pa.table(table), target)
    return target.getvalue()


def load_folder(folder: Path) -> LoadedRows:
    world = PrepareWorld(folder.parent, "file:///model")
    context = world.open(world.task({"train": [{"source": f"file://{folder}"}]}))
    return load_rows(context, Wanted("data.train[0]", f"file://{folder}"), folder.parent / "copies")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        pytest.param("a.csv", b"sep=;\nprompt;completion\np;c\n", id="Excel's first line"),
        pytest.param("a.csv", b"\xef\xbb\xbfSEP=,\r\nprompt,completion\r\np,c\r\n", id="the same with BOM and CRLF"),
        pytest.param("a.csv", b",,prompt,completion\n0,0,p,c\n", id="two columns of an index"),
        pytest.param("a.csv", b"prompt,completion,,\np,c,,\n", id="empty columns at the end"),
        pytest.param("a.tsv", b"prompt\tcompletion\np\tc\n", id="TSV"),
        pytest.param("a.csv", b"prompt\tcompletion\np\tc\n", id="TSV called CSV"),
        pytest.param("A.JSONL", lines(exchange("p", "c")), id="extension in capitals"),
        pytest.param(
            "a.parquet", parquet({"prompt": ["p"], "completion": pa.array(["c"]).dictionary_encode()}), id="categories"
        ),
    ],
)
def test_what_is_meant_is_read(load_file: Any, name: str, content: bytes) -> None:
    assert messages_of(load_file(name, content)) == [["user: p", "assistant: c"]]


def test_lines_are_counted_from_the_top_of_the_file(load_file: Any) -> None:
    assert load_file("a.csv", b"sep=;\nprompt;completion\np;c\n").examples[0].origin == "a.csv line 3"
    with pytest.raises(StageError, match=r"a\.csv line 4: has 3 fields"):
        load_file("a.csv", b"sep=;\nprompt;completion\np;c\np;c;d\n")


@pytest.mark.parametrize(
    ("name", "content", "says", "fix"),
    [
        pytest.param("a.csv", b"prompt,completion\rp,c\r", "line ends of old Macs", "Unix or Windows", id="CR"),
        pytest.param("a.csv", b'prompt,completion\n"p \\"q\\" r",c\n', "line 2: not CSV", 'a quote as ""', id="\\"),
        pytest.param(
            "a.jsonl", lines(exchange("p", "c")).decode().encode("utf-16-le"), "is UTF-16", "UTF-8", id="UTF-16, no BOM"
        ),
        pytest.param(
            "a.jsonl", lines(exchange("p", "c")).decode().encode("utf-16-be"), "is UTF-16", "UTF-8", id="big-endian"
        ),
        pytest.param("a.csv", "prompt,completion\np,c\n".encode("utf-32"), "is UTF-32", "UTF-8", id="UTF-32"),
        pytest.param("a.json", "[]".encode("utf-16-le"), "is UTF-16", "UTF-8", id="JSON in UTF-16"),
        pytest.param(
            "a.parquet",
            parquet(
                pa.table([pa.array(["p"]), pa.array(["c"]), pa.array(["d"])], ["prompt", "completion", "completion"])
            ),
            "two columns are named `completion`",
            "its own name",
            id="Parquet with a name twice",
        ),
        pytest.param(
            "a.parquet",
            parquet({"prompt": ["p"], "completion": ["c"], "at": pa.array([2**62], pa.timestamp("us"))}),
            "after row 0: has a value that cannot be read",
            "correct or remove",
            id="Parquet with a time beyond the calendar",
        ),
        pytest.param(
            "a.parquet",
            parquet(pa.table({"prompt": pa.array([b"\xff"]).view(pa.string()), "completion": ["c"]})),
            "has a value that cannot be read",
            "correct or remove",
            id="Parquet with text that is not UTF-8",
        ),
        pytest.param(
            "a.jsonl.gz", gzip.compress(gzip.compress(b"{}")), "is gzipped twice", "unpack it once", id="gzip²"
        ),
        *(
            pytest.param(name, start + b"\n" * 40, says, fix, id=f"{says} as {name}")
            for name in ("a.jsonl", "a.json", "a.csv", "a.parquet")
            for start, says, fix in (
                (
                    b"version https://git-lfs.github.com/spec/v1\noid x",
                    "is a pointer of Git LFS",
                    "git lfs pull",
                ),
                (b"<!DOCTYPE html><html>", "is a web page", "download the file itself"),
                (b"PK\x03\x04\x14", "is a ZIP archive", "unpack it"),
                (b"\x28\xb5\x2f\xfd\x04", "is compressed with zstd", "use gzip"),
            )
        ),
        pytest.param("a.csv", parquet({"prompt": ["p"]}), "is a Parquet file", "name it .parquet", id="Parquet as CSV"),
        pytest.param("a.jsonl.gz", gzip.compress(b""), "has no rows", "give it rows", id="gzip of nothing"),
        pytest.param("a.jsonl.gz", b"", "has no rows", "give it rows", id="gzip without a byte"),
        pytest.param(
            "a.jsonl.gz",
            gzip.compress(lines(exchange("p", "c"))) + b"tail",
            "gzip data are damaged",
            "again",
            id="tail",
        ),
    ],
)
def test_what_cannot_be_read_is_named(load_file: Any, name: str, content: bytes, says: str, fix: str) -> None:
    with pytest.raises(StageError) as caught:
        load_file(name, content)
    assert caught.value.exit_code == ExitCode.INVALID_DATA
    assert says in caught.value.message
    assert name in caught.value.message
    assert fix in caught.value.hint


@pytest.mark.parametrize("text", ["{}", '{"a": 1}', "é", "", "a", '{"a": "\u4e2d\u6587"}', "a\x00b\x00"])
def test_utf_8_is_not_taken_for_a_wide_encoding(text: str) -> None:
    assert wide_encoding(text.encode()) == ("UTF-16" if text == "a\x00b\x00" else "")


def test_files_that_were_put_behind_each_other_keep_their_byte_order_marks(load_file: Any) -> None:
    one = b"\xef\xbb\xbf" + lines(exchange("p", "c"))
    assert messages_of(load_file("a.jsonl", one + one)) == [["user: p", "assistant: c"]] * 2
    assert messages_of(load_file("b.jsonl.gz", gzip.compress(one) * 2)) == [["user: p", "assistant: c"]] * 2


def test_a_file_without_a_header_is_not_quoted(load_file: Any) -> None:
    said = b"My card 4111 1111 1111 1111 was charged twice please help,jane@example.com,+49 170 1234567,ok\n"
    with pytest.raises(
        StageError, match=r"has columns <57 characters>, <16 characters>, <15 characters>, ok"
    ) as caught:
        load_file("a.csv", said * 2)
    assert "jane" not in caught.value.message


@pytest.mark.parametrize("single", [True, False])
def test_a_pipe_is_refused_rather_than_waited_for(tmp_path: Path, single: bool) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    os.mkfifo(folder / "a.jsonl")
    with pytest.raises(StageError, match=r"a\.jsonl is not a regular file"):
        load_folder(folder / "a.jsonl" if single else folder)


def test_a_link_that_leads_nowhere_is_named_and_one_that_leads_to_rows_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "rows.jsonl").write_bytes(lines(exchange("p", "c")))
    (folder / "a.jsonl").symlink_to(tmp_path / "rows.jsonl")
    assert messages_of(load_folder(folder)) == [["user: p", "assistant: c"]]
    (folder / "b.jsonl").symlink_to("nowhere")
    with pytest.raises(StageError, match=r"data\.train\[0\]: b\.jsonl cannot be read \(No such file") as caught:
        load_folder(folder)
    assert caught.value.exit_code == ExitCode.SOURCE_NOT_FOUND


def test_what_libraries_write_beside_the_rows_is_no_row(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "rows.jsonl").write_bytes(lines(exchange("p", "c")))
    for name in ("dataset_info.json", "state.json", "config.json"):
        (folder / name).write_text('{"description": "x"}')
    assert messages_of(load_folder(folder)) == [["user: p", "assistant: c"]]
