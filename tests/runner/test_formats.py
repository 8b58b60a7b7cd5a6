"""Layouts and containers: what is accepted, and what is said about rows that cannot be used."""

from __future__ import annotations

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.data import Columns
from finetune_runner.data.containers import jsonl
from finetune_runner.data.loading import Wanted
from finetune_runner.data.records import Record
from finetune_runner.data.rows import Row, content_id, make_row, read_rows, write_rows
from finetune_runner.errors import StageError
from tests.runner.stores import PrepareWorld, exchange, lines, load_rows, messages_of

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


@pytest.mark.parametrize(
    ("row", "columns", "name", "messages"),
    [
        pytest.param({"messages": [USER, ASSISTANT]}, {}, "chat", ["user: Hi", "assistant: Hello"], id="chat"),
        pytest.param(
            {"messages": [{"role": "system", "content": "Be kind"}, USER, ASSISTANT, USER, ASSISTANT]},
            {},
            "chat",
            ["system: Be kind", "user: Hi", "assistant: Hello", "user: Hi", "assistant: Hello"],
            id="chat with system and turns",
        ),
        pytest.param(
            {"talk": [USER, ASSISTANT], "system": "Be kind"},
            {"messages": "talk"},
            "chat",
            ["system: Be kind", "user: Hi", "assistant: Hello"],
            id="chat, mapped",
        ),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}, ASSISTANT]},
            {},
            "chat",
            ["user: Hi", "assistant: Hello"],
            id="chat with text parts",
        ),
        pytest.param(
            {"messages": json.dumps([USER, ASSISTANT])}, {}, "chat", ["user: Hi", "assistant: Hello"], id="chat as text"
        ),
        pytest.param(
            {"instruction": "Add", "input": "1+1", "output": "2"},
            {},
            "alpaca",
            ["user: Add\n\n1+1", "assistant: 2"],
            id="alpaca",
        ),
        pytest.param(
            {"instruction": "Add", "input": "", "output": "2"},
            {},
            "alpaca",
            ["user: Add", "assistant: 2"],
            id="alpaca, no input",
        ),
        pytest.param(
            exchange("Hi", "Hello"), {}, "promptCompletion", ["user: Hi", "assistant: Hello"], id="promptCompletion"
        ),
        pytest.param(
            {"text": "Hi", "label": "greeting", "id": 7},
            {"prompt": "text", "completion": "label"},
            "promptCompletion",
            ["user: Hi", "assistant: greeting"],
            id="promptCompletion, mapped",
        ),
    ],
)
def test_a_layout_is_detected_and_parsed(
    load_file: Any, row: dict[str, Any], columns: dict[str, str], name: str, messages: list[str]
) -> None:
    loaded = load_file("a.jsonl", lines(row, row), columns=Columns.from_wire(columns))
    assert loaded.format == name
    assert messages_of(loaded) == [messages, messages]
    assert f"format {name}: 2 of the first 2 rows" in loaded.finding.message


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


@pytest.mark.parametrize(
    ("row", "columns", "messages"),
    [
        ({"conversations": [human("Hi"), gpt("Hello")]}, {}, ["user: Hi", "assistant: Hello"]),
        (
            {"conversations": [{"from": "system", "value": "Be kind"}, human("Hi"), gpt("Hello")]},
            {},
            ["system: Be kind", "user: Hi", "assistant: Hello"],
        ),
        ({"turns": [human("Hi"), gpt("Hello")]}, {"conversations": "turns"}, ["user: Hi", "assistant: Hello"]),
        ({"messages": None, "conversations": [human("Hi"), gpt("Hello")]}, {}, ["user: Hi", "assistant: Hello"]),
        ({"conversations": [USER, ASSISTANT]}, {}, ["user: Hi", "assistant: Hello"]),
        ({"messages": [human("Hi"), gpt("Hello")]}, {}, ["user: Hi", "assistant: Hello"]),
        (
            {"system": "Be kind", "conversations": json.dumps([human("Hi"), gpt("Hello")])},
            {},
            ["system: Be kind", "user: Hi", "assistant: Hello"],
        ),
    ],
)
def test_sharegpt_is_chat(load_file: Any, row: dict[str, Any], columns: dict[str, str], messages: list[str]) -> None:
    loaded = load_file("a.jsonl", lines(row), columns=Columns.from_wire(columns))
    assert (loaded.format, messages_of(loaded)) == ("chat", [messages])


SYSTEM = {"role": "system", "content": "Be kind"}
WORSE = {"role": "assistant", "content": "Go away"}


@pytest.mark.parametrize(
    ("row", "columns", "prompt"),
    [
        ({"prompt": "Hi", "chosen": "Hello", "rejected": "Go away"}, {}, ["user: Hi"]),
        (
            {"system": "Be kind", "prompt": "Hi", "chosen": "Hello", "rejected": "Go away"},
            {},
            ["system: Be kind", "user: Hi"],
        ),
        (
            {"q": "Hi", "good": "Hello", "bad": "Go away"},
            {"prompt": "q", "chosen": "good", "rejected": "bad"},
            ["user: Hi"],
        ),
        ({"chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]}, {}, ["user: Hi"]),
        ({"prompt": "ignored", "chosen": [USER, ASSISTANT], "rejected": [USER, WORSE]}, {}, ["user: Hi"]),
        ({"prompt": [SYSTEM, USER], "chosen": [ASSISTANT], "rejected": [WORSE]}, {}, ["system: Be kind", "user: Hi"]),
        ({"prompt": [USER], "chosen": "Hello", "rejected": "Go away"}, {}, ["user: Hi"]),
        ({"chosen": [human("Hi"), gpt("Hello")], "rejected": [human("Hi"), gpt("Go away")]}, {}, ["user: Hi"]),
        (
            {
                "chosen": [USER, ASSISTANT, USER, ASSISTANT],
                "rejected": [USER, ASSISTANT, USER, WORSE],
            },
            {},
            ["user: Hi", "assistant: Hello", "user: Hi"],
        ),
    ],
)
def test_a_preference_is_two_answers_to_one_prompt(
    load_file: Any, row: dict[str, Any], columns: dict[str, str], prompt: list[str]
) -> None:
    loaded = load_file("a.jsonl", lines(row), columns=Columns.from_wire(columns))
    (example,) = loaded.examples
    assert loaded.format == "preference"
    assert messages_of(loaded) == [[*prompt, "assistant: Hello"]]
    assert (example.row.rejected, example.row.label, example.row.kind) == ("Go away", None, "preference")


def test_groups_are_the_same_as_whole_numbers_and_as_the_ones_of_a_column_with_gaps(load_file: Any) -> None:
    groups = [
        example.row.group
        for value in (1, 1.0, "1", 1.5, True)
        for example in load_file("a.jsonl", lines({**exchange("p", "c"), "g": value}), group_by="$.g").examples
    ]
    assert groups[0] == groups[1] == groups[2]
    assert len(set(groups)) == 3


def test_a_gap_in_a_column_of_numbers_is_no_group(load_file: Any) -> None:
    with pytest.raises(StageError, match=r"line 1: has no value at data.groupBy \$.g"):
        load_file("a.jsonl", lines({**exchange("p", "c"), "g": float("nan")}), group_by="$.g")


@pytest.mark.parametrize("label", [True, False])
@pytest.mark.parametrize("completion", ["Hello", [ASSISTANT]])
def test_a_judged_answer_has_a_label(load_file: Any, label: bool, completion: Any) -> None:
    (example,) = load_file("a.jsonl", lines({"prompt": "Hi", "completion": completion, "label": label})).examples
    assert (example.row.label, example.row.rejected, example.row.kind) == (label, None, "judged")
    csv_file = f"prompt,completion,label\nHi,Hello,{str(label).upper()}\n".encode()
    assert load_file("a.csv", csv_file).examples[0].row.label is label


def test_plain_text_is_an_answer_without_a_prompt(load_file: Any) -> None:
    loaded = load_file("a.jsonl", lines({"text": "Once upon a time", "id": 3}))
    assert (loaded.format, messages_of(loaded)) == ("text", [["assistant: Once upon a time"]])
    assert loaded.examples[0].row.kind == "text"
    mapped = load_file("a.jsonl", lines({"body": "Once"}), columns=Columns(text="body"))
    assert mapped.format == "text"


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "p", "completion": "c", "label": "billing"}, "promptCompletion"),
        ({"prompt": "p", "completion": "c", "label": 1}, "promptCompletion"),
        ({"prompt": "p", "completion": "c", "text": "p c"}, "promptCompletion"),
        ({"instruction": "p", "input": "", "output": "c", "text": "p c"}, "alpaca"),
        ({"messages": [USER, ASSISTANT], "prompt": "Hi", "text": "x"}, "chat"),
        ({"prompt": "Hi", "chosen": "a", "rejected": "b", "text": "x"}, "preference"),
    ],
)
def test_of_several_layouts_the_one_that_says_most_is_taken(load_file: Any, row: dict[str, Any], name: str) -> None:
    loaded = load_file("a.jsonl", lines(row))
    assert loaded.format == name
    assert f"columns: {', '.join(row)}" in loaded.finding.message


@pytest.mark.parametrize(
    ("row", "labels"),
    [
        ({"annotations": ["a", "b", "a"]}, ("a", "b", "a")),
        ({"annotations": {"anna": "a", "ben": None, "carl": "b"}}, ("a", "b")),
        ({"annotations": "a|b"}, ("a", "b")),
        ({"annotations": '["a", "b"]'}, ("a", "b")),
        ({"annotations": [{"start": 3}]}, ()),
        ({"annotations": ["a", "\ud800"]}, ()),
        ({}, ()),
    ],
)
def test_labels_of_several_people_are_kept(load_file: Any, row: dict[str, Any], labels: tuple[str, ...]) -> None:
    (example,) = load_file("a.jsonl", lines({**exchange("p", "c"), **row})).examples
    assert example.row.annotations == labels
    assert read_rows(write_rows([example.row])) == [example.row]


def test_a_system_prompt_of_the_spec_is_for_rows_without_one(load_file: Any) -> None:
    own = {"messages": [{"role": "system", "content": "Mine"}, USER, ASSISTANT]}
    blank = {"messages": [{"role": "system", "content": " "}, USER, ASSISTANT]}
    loaded = load_file("a.jsonl", lines(own, blank, {"messages": [USER, ASSISTANT]}), system_prompt="Be kind")
    assert [talk[0] for talk in messages_of(loaded)] == ["system: Mine", "system: Be kind", "system: Be kind"]
    assert "data.systemPrompt was added to 2 of 3 rows" in loaded.finding.message
    text = load_file("a.jsonl", lines({"text": "Once"}), system_prompt="Be kind")
    assert messages_of(text) == [["assistant: Once"]]


def csv_bytes(delimiter: str) -> bytes:
    target = io.StringIO()
    writer = csv.writer(target, delimiter=delimiter)
    writer.writerows([["prompt", "completion"], ["a, b; c\nd", 'say "e"'], ["f", "g"]])
    return target.getvalue().encode()


def parquet_bytes() -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a, b; c\nd", "f"], "completion": ['say "e"', "g"]}), target)
    return target.getvalue()


ROWS = [exchange("a, b; c\nd", 'say "e"'), exchange("f", "g")]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", lines(*ROWS)),
        ("a.ndjson", lines(*ROWS)),
        ("a.jsonl.gz", gzip.compress(lines(*ROWS), mtime=0)),
        ("gzip-by-content.jsonl", gzip.compress(lines(*ROWS), mtime=0)),
        ("bom.jsonl", b"\xef\xbb\xbf" + lines(*ROWS)),
        ("crlf.jsonl", lines(*ROWS).replace(b"\n", b"\r\n")),
        ("no-last-line-end.jsonl", lines(*ROWS).rstrip(b"\n")),
        ("blank-lines.jsonl", b"\n\n" + lines(*ROWS).replace(b"\n", b"\n  \n")),
        ("a.json", json.dumps(ROWS, indent=2).encode()),
        ("a.json.gz", gzip.compress(json.dumps(ROWS).encode(), mtime=0)),
        ("wrapped.json", json.dumps({"data": ROWS}).encode()),
        ("lines.json", lines(*ROWS)),
        ("a.csv", csv_bytes(",")),
        ("semicolon.csv", csv_bytes(";")),
        ("a.tsv", csv_bytes("\t")),
        ("bom.csv", b"\xef\xbb\xbf" + csv_bytes(",")),
        ("a.csv.gz", gzip.compress(csv_bytes(","), mtime=0)),
        ("a.parquet", parquet_bytes()),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_container_gives_the_same_rows(load_file: Any, name: str, content: bytes) -> None:
    expected = [[f"user: {row['prompt']}", f"assistant: {row['completion']}"] for row in ROWS]
    got = [[text.replace("\r\n", "\n") for text in row] for row in messages_of(load_file(name, content))]
    assert got == expected


def test_a_row_of_100_kb_is_fine(load_file: Any) -> None:
    row = exchange("x" * 100_000, "y")
    for name, content in (("a.jsonl", lines(row)), ("a.csv", f"prompt,completion\n{row['prompt']},y\n".encode())):
        assert load_file(name, content).examples[0].row.messages[0]["content"] == row["prompt"]


def test_a_format_asked_for_is_not_second_guessed(load_file: Any) -> None:
    with pytest.raises(StageError, match="has no `messages`"):
        load_file("a.jsonl", lines(exchange("p", "c")), format="chat")


def test_a_folder_is_all_its_data_files_by_name(tmp_path: Path) -> None:
    world = PrepareWorld(tmp_path, "file:///model")
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "b.jsonl").write_bytes(lines(exchange("second", "2")))
    (folder / "a.csv").write_bytes(b"prompt,completion\nfirst,1\n")
    (folder / "README.md").write_text("not data")
    (folder / ".hidden.jsonl").write_text("not data either")
    context = world.open(world.task({"train": [{"source": f"file://{folder}"}]}))
    loaded = load_rows(context, Wanted("data.train[0]", f"file://{folder}"), tmp_path / "copies")
    assert [example.row.answer for example in loaded.examples] == ["1", "2"]
    assert [example.origin for example in loaded.examples] == ["a.csv line 2", "b.jsonl line 1"]
    assert [item["name"] for item in loaded.files] == ["a.csv", "b.jsonl"]


texts = st.text(st.characters(codec="utf-8"), min_size=1)


raw_rows = st.dictionaries(texts, st.none() | st.booleans() | st.floats(allow_nan=False) | texts, max_size=4)


@given(
    st.lists(
        st.dictionaries(texts, st.none() | st.booleans() | st.floats(allow_nan=False) | texts, max_size=4), max_size=8
    )
)
def test_json_lines_survive_writing_and_reading(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    path = tmp_path_factory.mktemp("lines") / "a.jsonl"
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows))
    assert list(jsonl.read(path, "a")) == [Record("a", f"line {n}", row) for n, row in enumerate(rows, start=1)]


@given(st.lists(st.tuples(texts, texts, texts), max_size=6))
def test_prepared_rows_survive_and_the_same_rows_give_the_same_bytes(content: list[tuple[str, str, str]]) -> None:
    rows: list[Row] = [
        make_row([{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], group)
        for prompt, answer, group in content
    ]
    data = write_rows(rows)
    assert read_rows(data) == rows
    assert write_rows(rows) == data
    assert all(row.id == content_id(row.messages) and len(row.id) == 16 for row in rows)
