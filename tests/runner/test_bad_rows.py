"""What is said about rows, files and sources that cannot be used."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.exit_codes import ExitCode
from finetune_api.job.data import Columns
from finetune_runner.data.containers import jsonl
from finetune_runner.data.loading import Wanted
from finetune_runner.data.records import BadRow, Record
from finetune_runner.errors import StageError
from tests.runner.stores import PrepareWorld, exchange, lines, load_rows

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


GOOD = b'{"prompt": "p", "completion": "c"}'


WORSE = {"role": "assistant", "content": "Go away"}


def test_half_a_surrogate_pair_in_labels_or_names_of_columns_is_no_internal_error(load_file: Any) -> None:
    row = {**exchange("p", "c"), "labels": ["a", "\ud800"], "\udfff": 1}
    with pytest.raises(StageError, match=r"a\.jsonl line 1: `labels` has half a surrogate pair") as caught:
        load_file("a.jsonl", lines(row), columns=Columns(annotations="labels"))
    assert caught.value.exit_code == ExitCode.INVALID_DATA
    loaded = load_file("a.jsonl", lines(row))
    assert loaded.finding.message.encode()
    with pytest.raises(StageError, match="has columns x, ") as caught:
        load_file("a.jsonl", lines({"x": 1, "\udfff": 1}))
    assert caught.value.message.encode()
    with pytest.raises(StageError, match="has no `prompt`") as caught:
        load_file("a.jsonl", lines({"x": 1, "\udfff": 1}), format="promptCompletion")
    assert caught.value.message.encode()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        pytest.param("a.jsonl", GOOD + b'\n{"prompt": "p"}\n', "a.jsonl line 2: has no `completion`", id="no answer"),
        pytest.param(
            "a.jsonl", lines(exchange("p", "c"), exchange("p", " ")), "line 2: `completion` is empty", id="empty answer"
        ),
        pytest.param(
            "a.jsonl", GOOD + b'\n{"prompt": "p", "completion": null}', "line 2: `completion` is null", id="null answer"
        ),
        pytest.param(
            "a.jsonl", GOOD + b'\n{"prompt": "p", "completion": 3}', "`completion` is a number, not text", id="number"
        ),
        pytest.param(
            "a.jsonl", GOOD + b'\n{"prompt": "p", "completion": {}}', "`completion` is an object", id="object"
        ),
        pytest.param(
            "a.jsonl",
            GOOD + b'\n{"prompt": "p\xff", "completion": "c"}',
            "line 2: not UTF-8: byte 0xff at byte 14",
            id="not UTF-8",
        ),
        pytest.param("a.jsonl", "é".encode("utf-16"), "is UTF-16", id="UTF-16"),
        pytest.param("a.jsonl", GOOD + b'\n{"prompt": "p", \n', "line 2: not JSON:", id="half a row"),
        pytest.param("a.jsonl", GOOD + b"\n[1]\n", "line 2: is list, not an object", id="not an object"),
        pytest.param("a.jsonl", GOOD + b"\n" + b"[" * 100_000, "line 2: not usable JSON", id="too deep"),
        pytest.param("a.jsonl", rb'{"prompt": "\ud800", "completion": "c"}', "half a surrogate pair", id="surrogate"),
        pytest.param("a.jsonl", b"", "has no rows", id="empty file"),
        pytest.param("a.jsonl", b"\n \n", "has no rows", id="blank file"),
        pytest.param("a.csv", b"prompt,completion\n", "has no rows", id="header only"),
        pytest.param("a.csv", b"", "has no rows", id="empty CSV"),
        pytest.param(
            "a.csv", b"prompt,completion\np,c\np,c,d\n", "line 3: has 3 fields, the header has 2", id="too many fields"
        ),
        pytest.param(
            "a.csv", b"prompt,completion\np,c\np,\n", "line 3: `completion` is empty", id="CSV without answer"
        ),
        pytest.param("a.csv", b"prompt,completion\np,c\n\xff,c\n", "line 3: not UTF-8", id="CSV not UTF-8"),
        pytest.param("a.csv", b'prompt,completion\np,"c\n', "not CSV", id="open quote"),
        pytest.param(
            "a.csv",
            b"prompt,completion\na,b\n\xef\xbb\xbfprompt,completion\nc,d\n",
            "line 3: has the names of the columns again",
            id="joined files",
        ),
        pytest.param("a.csv", b"prompt,prompt\na,b\n", "two columns are named `prompt`", id="columns of one name"),
        pytest.param("a.json", b'{"a": ', "line 1: not JSON", id="half JSON"),
        pytest.param("a.json", b"3", "not a list of objects", id="a number"),
        pytest.param(
            "a.json", b'[{"prompt": "p", "completion": "c"}, 3]', "row 2: is int, not an object", id="list with number"
        ),
        pytest.param("a.json", b'["\xff"]', "line 1: not UTF-8", id="JSON not UTF-8"),
        pytest.param("a.json", b"[]", "has no rows", id="empty list"),
        pytest.param("a.parquet", b"PAR1 is not enough", "not a readable Parquet file", id="no Parquet"),
        pytest.param("a.jsonl.gz", gzip.compress(GOOD * 99)[:60], "the gzip data are damaged", id="half gzip"),
        pytest.param(
            "a.jsonl", lines({"question": "q", "answer": "a"}), "has columns question, answer", id="unknown columns"
        ),
        pytest.param("a.jsonl", lines({"messages": []}), "`messages` is empty", id="no messages"),
        pytest.param(
            "a.jsonl", lines({"messages": [USER]}), "has no answer: `messages` ends with role user", id="chat no answer"
        ),
        pytest.param("a.jsonl", lines({"messages": [ASSISTANT]}), "no message of role user", id="answer only"),
        pytest.param(
            "a.jsonl", lines({"messages": [{"role": "bot", "content": "x"}]}), '.role is "bot"', id="unknown role"
        ),
        pytest.param("a.jsonl", lines({"messages": "nonsense"}), "is text that is not JSON", id="messages as prose"),
        pytest.param(
            "a.jsonl",
            lines({"messages": [USER, {"role": "assistant", "content": ""}]}),
            "`messages[1]`.content is empty",
            id="blank",
        ),
        pytest.param(
            "a.jsonl",
            lines({"messages": [USER, {"role": "system", "content": "x"}, ASSISTANT]}),
            "a system message that is not the first",
            id="late system",
        ),
        pytest.param("a.txt", b"hello", "no data file among a.txt", id="unknown extension"),
        pytest.param(
            "a.jsonl",
            GOOD + b'\n{"prompt": "a", "prompt": "b", "completion": "c"}',
            "line 2: has the key `prompt` twice",
            id="key twice",
        ),
        pytest.param("a.json", b'[{"prompt": "a", "prompt": "b"}]', "has the key `prompt` twice", id="JSON key twice"),
        pytest.param(
            "a.jsonl",
            lines(*[exchange("p", "c")] * 3, {"messages": [USER, ASSISTANT]}),
            "line 4: has no `prompt` (has messages); it looks like format chat",
            id="another format in the middle",
        ),
        pytest.param(
            "a.jsonl", lines({"prompt": "p", "chosen": "a", "rejected": "a"}), "are the same", id="equal answers"
        ),
        pytest.param(
            "a.jsonl",
            lines({"chosen": [USER, ASSISTANT], "rejected": [{"role": "user", "content": "Ho"}, WORSE]}),
            "answer different prompts",
            id="different prompts",
        ),
        pytest.param("a.jsonl", lines({"chosen": "a", "rejected": "b"}), "has no `prompt`", id="pair without prompt"),
        pytest.param(
            "a.jsonl",
            lines({"prompt": "p", "chosen": [ASSISTANT, ASSISTANT], "rejected": "b"}),
            "2 answers in a row",
            id="two answers",
        ),
        pytest.param(
            "a.jsonl",
            lines(
                {"prompt": "p", "completion": "c", "label": True}, {"prompt": "p", "completion": "c", "label": "maybe"}
            ),
            "line 2: `label` is 'maybe', neither true nor false",
            id="label maybe",
        ),
        pytest.param(
            "a.jsonl",
            lines({"prompt": "p", "completion": "c", "label": True}, exchange("p", "c")),
            "line 2: has `completion` but no `label`; it looks like format promptCompletion",
            id="judgement missing",
        ),
        pytest.param(
            "a.jsonl",
            lines({"conversations": [{"from": "tool", "value": "x"}]}),
            "is of a tool (from tool)",
            id="ShareGPT role",
        ),
        pytest.param("a.jsonl", lines({"text": " "}), "`text` is empty", id="blank text"),
    ],
)
def test_bad_input_names_file_row_and_fix(load_file: Any, name: str, content: bytes, says: str) -> None:
    with pytest.raises(StageError) as caught:
        load_file(name, content)
    assert caught.value.exit_code == ExitCode.INVALID_DATA
    assert says in caught.value.message
    assert name in caught.value.message
    assert caught.value.message.startswith("data.train[0]")
    assert caught.value.hint


def test_of_many_bad_rows_five_are_shown_and_all_counted(load_file: Any) -> None:
    with pytest.raises(StageError) as caught:
        load_file("a.jsonl", lines(exchange("p", "c")) * 20 + lines({"prompt": "p"}) * 12)
    assert "12 rows cannot be used" in caught.value.message
    assert "line 25:" in caught.value.message
    assert "line 26:" not in caught.value.message
    assert "and 7 more" in caught.value.message


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ("file:///no/such/file.jsonl", ExitCode.SOURCE_NOT_FOUND),
        ("pvc://claim/no/such/file.jsonl", ExitCode.SOURCE_NOT_FOUND),
        ("hf://owner/model", ExitCode.INVALID_SPEC),
        ("file://relative.jsonl", ExitCode.INVALID_SPEC),
    ],
)
def test_a_source_that_is_not_there_names_the_field(tmp_path: Path, source: str, code: ExitCode) -> None:
    world = PrepareWorld(tmp_path, "file:///model")
    context = world.open(world.task({"train": [{"source": "file:///other.jsonl"}]}))
    with pytest.raises(StageError, match=r"^data\.train\[0\]: ") as caught:
        load_rows(context, Wanted("data.train[0]", source), tmp_path / "copies")
    assert caught.value.exit_code == code


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_whatever_the_bytes_every_line_is_a_row_or_a_bad_row(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[bytes]
) -> None:
    path = tmp_path_factory.mktemp("bytes") / "a.jsonl"
    path.write_bytes(b"\n".join([*chunks, GOOD]))
    found = list(jsonl.read(path, "a"))
    assert all(isinstance(item, Record | BadRow) for item in found)
    assert not any(isinstance(item, BadRow) and not item.hint for item in found)
