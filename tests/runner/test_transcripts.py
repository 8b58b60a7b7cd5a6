"""Conversations that are one text (Anthropic/hh-rlhf), or an object of lists (a sequence of the `datasets` library)."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from finetune_api.job.data import Columns
from finetune_runner.errors import StageError
from tests.runner.stores import lines, messages_of

BOTH = "\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHow are you?\n\nHuman: Fine"
CHOSEN = f"{BOTH}\n\nAssistant: Good to hear.\n\nReally."
REJECTED = f"{BOTH}\n\nAssistant: Go away"
ASKED = ["user: Hi there", "assistant: Hello.\n\nHow are you?", "user: Fine"]


@pytest.mark.parametrize(
    ("row", "columns", "prompt"),
    [
        ({"chosen": CHOSEN, "rejected": REJECTED}, {}, ASKED),
        ({"chosen": CHOSEN.strip(), "rejected": REJECTED.strip() + "\n"}, {}, ASKED),
        ({"prompt": None, "chosen": CHOSEN, "rejected": REJECTED}, {}, ASKED),
        ({"system": "Be kind", "chosen": CHOSEN, "rejected": REJECTED}, {}, ["system: Be kind", *ASKED]),
        ({"good": CHOSEN, "bad": REJECTED, "q": None}, {"prompt": "q", "chosen": "good", "rejected": "bad"}, ASKED),
        ({"good": CHOSEN, "bad": REJECTED}, {"chosen": "good", "rejected": "bad"}, ASKED),
    ],
)
def test_a_pair_of_transcripts_has_the_prompt_that_both_begin_with(
    load_file: Any, row: dict[str, Any], columns: dict[str, str], prompt: list[str]
) -> None:
    loaded = load_file("a.jsonl", lines(row, row), columns=Columns.from_wire(columns))
    assert messages_of(loaded) == [[*prompt, "assistant: Good to hear.\n\nReally."]] * 2
    assert {example.row.rejected for example in loaded.examples} == {"Go away"}
    side = columns.get("chosen", "chosen")
    assert f"2 of 2 rows read as transcripts (Human: ... Assistant: ...): `{side}` up to" in loaded.finding.message


@pytest.mark.parametrize(
    ("answers", "form"),
    [
        ({"chosen": " Good", "rejected": "Bad"}, "preference"),
        ({"completion": " Good", "label": True}, "preference"),
        ({"completion": "Good"}, "promptCompletion"),
    ],
)
def test_a_prompt_that_ends_where_the_answer_begins_is_a_transcript(
    load_file: Any, answers: dict[str, Any], form: str
) -> None:
    loaded = load_file("a.jsonl", lines({"prompt": f"{BOTH}\n\nAssistant:", **answers}))
    assert loaded.format == form
    assert messages_of(loaded) == [[*ASKED, "assistant: Good"]]
    assert "1 of 1 row with `prompt` read as a transcript" in loaded.finding.message


def test_beside_a_prompt_an_answer_that_looks_like_a_transcript_is_an_answer(load_file: Any) -> None:
    row = {"prompt": "Write a dialogue", "chosen": CHOSEN, "rejected": REJECTED}
    loaded = load_file("a.jsonl", lines(row))
    assert messages_of(loaded) == [["user: Write a dialogue", f"assistant: {CHOSEN}"]]
    assert "transcript" not in loaded.finding.message


@pytest.mark.parametrize(
    ("chosen", "rejected", "says"),
    [
        (CHOSEN, "\n\nHuman: Other\n\nAssistant: Hello", "`chosen` and `rejected` answer different prompts"),
        (CHOSEN, CHOSEN, "`chosen` and `rejected` are the same"),
        (CHOSEN, f"{BOTH}\n\nAssistant:", "turn 4 (Assistant) of `rejected` is empty"),
        (CHOSEN, f"{CHOSEN}\n\nHuman: And?", "`rejected` ends with role user"),
        (CHOSEN, "\n\nHuman: \n\nAssistant: Hello", "turn 1 (Human) of `rejected` is empty"),
        (CHOSEN, "Go away", "has no `prompt`"),
        ("Human: Hi, Assistant: Hello", "Human: Hi, Assistant: No", "has no `prompt`"),
    ],
)
def test_transcripts_that_are_no_pair_are_refused(load_file: Any, chosen: str, rejected: str, says: str) -> None:
    with pytest.raises(StageError) as caught:
        load_file("a.jsonl", lines({"chosen": chosen, "rejected": rejected}))
    assert "a.jsonl line 1" in caught.value.message
    assert says in caught.value.message
    assert caught.value.hint


TALK = {"role": ["user", "assistant"], "content": ["Hi", "Hello"]}
SHARED = {"from": ["human", "gpt"], "value": ["Hi", "Hello"], "weight": None}
WORSE = {"role": ["user", "assistant"], "content": ["Hi", "Go away"]}


def parquet(*rows: dict[str, Any]) -> bytes:
    target = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows)), target)
    return target.getvalue()


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"messages": TALK}, {}),
        ({"conversations": SHARED}, {}),
        ({"talk": TALK}, {"messages": "talk"}),
        ({"turns": SHARED}, {"conversations": "turns"}),
        ({"messages": json.dumps(TALK)}, {}),
        ({"prompt": {"role": ["user"], "content": ["Hi"]}, "completion": "Hello"}, {}),
        ({"prompt": "Hi", "completion": {"role": ["assistant"], "content": ["Hello"]}}, {}),
        ({"chosen": TALK, "rejected": WORSE}, {}),
        ({"good": TALK, "bad": WORSE}, {"chosen": "good", "rejected": "bad"}),
    ],
)
def test_an_object_of_lists_is_a_list_of_messages(load_file: Any, row: dict[str, Any], columns: dict[str, str]) -> None:
    for name, content in (("a.jsonl", lines(row)), ("a.parquet", parquet(row))):
        loaded = load_file(name, content, columns=Columns.from_wire(columns))
        assert messages_of(loaded) == [["user: Hi", "assistant: Hello"]]


@pytest.mark.parametrize(
    ("talk", "says"),
    [
        (
            {"role": ["user", "assistant"], "content": ["Hi"]},
            "`messages` has lists of different lengths: 2 of role, 1 of content",
        ),
        ({"role": [], "content": []}, "`messages` is empty"),
        ({"role": ["user", None], "content": ["Hi", "Hello"]}, "`messages[1]` has no role"),
        ({"role": ["user", "assistant"], "content": ["Hi", None]}, "`messages[1]`.content is null"),
        ({"role": ["user", "assistant"]}, "`messages[0]` has no content"),
        ({"role": "user", "content": "Hi"}, "`messages` is an object, not a list"),
        ({"role": ["user", "assistant"], "content": ["Hi", "x"], "weight": [1, 0]}, "`messages[1]` has weight 0"),
    ],
)
def test_an_object_of_lists_that_is_no_conversation_is_refused(load_file: Any, talk: Any, says: str) -> None:
    with pytest.raises(StageError) as caught:
        load_file("a.jsonl", lines({"messages": talk}))
    assert f"a.jsonl line 1: {says}" in caught.value.message
