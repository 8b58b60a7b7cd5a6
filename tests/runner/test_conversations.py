"""Conversations that go on from another row, and inputs under several system messages."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_runner.data.checks import conflicting_answers, leaks, near_duplicates
from finetune_runner.data.near_duplicates import NearDuplicates
from finetune_runner.data.pool import split_pool
from finetune_runner.data.prepared import load_split
from finetune_runner.data.rows import Row, make_row
from finetune_runner.data.shingles import earlier_digests, form_digest, input_text, normal_form
from tests.runner.check_rows import run, spec
from tests.runner.preparing import run as prepared
from tests.runner.stores import PrepareWorld, store_of, varied
from tests.runner.test_earlier_versions import next_run, publish

OWN = {"test": {"source": "file:///t"}, "validation": {"source": "file:///v"}}


def talk(*said_in_turn: str, system: str = "") -> Row:
    """A conversation: the user begins, the assistant has the last word."""
    turns = [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said_in_turn)]
    return make_row([*([{"role": "system", "content": system}] if system else []), *turns])


def leaking(train: list[Row], test: list[Row]) -> list[int]:
    """Positions of the rows of train that the check drops."""
    wanted = spec(data=OWN)
    splits = {"train": [*train, talk("something else altogether", "1")], "test": test}
    with store_of(splits) as store, NearDuplicates(store) as near:
        run(leaks, store, wanted, near)
        kept = {example.number for example in store.examples("train")}
    return [at for at in range(len(train)) if at + 1 not in kept]


ASKED = "How do I reset the password of the second account?"


@pytest.mark.parametrize(
    ("train", "test", "dropped"),
    [
        pytest.param(talk(ASKED, "So.", "Thanks, and the third?", "Likewise."), talk(ASKED, "Thus."), [0], id="first"),
        pytest.param(
            talk("Hello, you!", "Hi.", ASKED, "So.", "Thanks, and the third?", "Likewise."),
            talk("hello you", "hi", ASKED.upper(), "Thus."),
            [0],
            id="second, in other case",
        ),
        pytest.param(
            talk(ASKED, "So.", "Thanks, and the third?", "Likewise.", system="Be brief."),
            talk(ASKED, "Thus."),
            [0],
            id="under a system message",
        ),
        pytest.param(talk(ASKED, "So."), talk(ASKED, "So.", "Thanks, and the third?", "Likewise."), [], id="shorter"),
        pytest.param(
            talk(ASKED, "So.", "Thanks, and the third?", "Likewise."),
            talk(ASKED, "Otherwise.", "Thanks, and the third one of these accounts?", "Likewise."),
            [],
            id="another conversation from the first answer on",
        ),
        pytest.param(talk(ASKED, "So.", "?", "Likewise."), talk("quite another question", "?"), [], id="no words"),
    ],
)  # fmt: skip
def test_what_an_earlier_answer_teaches_does_not_judge(train: Row, test: Row, dropped: list[int]) -> None:
    assert leaking([train], [test]) == dropped


@pytest.mark.parametrize(("conversations", "opening", "dropped"), [
    (10, "Hello", 10), (11, "Hello", 0), (11, "Hello, my parcel is late", 11),
])  # fmt: skip
def test_a_greeting_that_many_share_is_no_leak(conversations: int, opening: str, dropped: int) -> None:
    train = [talk(opening, "Hi.", case["prompt"], case["completion"]) for case in varied(conversations)]
    assert len(leaking(train, [talk(opening, "Hi.")])) == dropped


def test_the_answers_of_one_conversation_stay_in_one_split() -> None:
    """As data sets are laid out that have one row for each answer of a conversation."""
    cases = [case["prompt"] for case in varied(180)]
    pool = []
    for first, second, third in zip(cases[:60], cases[60:120], cases[120:], strict=True):
        said_in_turn = (first, f"One {first}", second, f"Two {second}", third, f"Three {third}")
        pool += [talk(*said_in_turn[:2]), talk(*said_in_turn[:4]), talk(*said_in_turn)]
    wanted = spec({"nearDuplicates": "drop"})
    with store_of({"pool": pool}) as store, NearDuplicates(store) as near:
        step = split_pool(store, near, wanted)
        splits = {
            example.row.messages[0]["content"]: set[str]() for example in store.examples("train", "validation", "test")
        }
        for example in store.examples("train", "validation", "test"):
            splits[example.row.messages[0]["content"]].add(example.split)
        assert run(leaks, store, wanted, near)[0] == []
        assert run(near_duplicates, store, wanted, near)[0] == [], "they are of one cluster and not alike"
    assert step.lineage["split"]["clusters"] == 60
    assert {len(each) for each in splits.values()} == {1}
    assert {split for each in splits.values() for split in each} == {"train", "validation", "test"}


def test_earlier_inputs_are_found_as_whole_ones_are() -> None:
    row = talk("One, two", "three", "  Four\nfive! ", "six", "seven", "eight", system="Count.")
    shorter = [talk(*(message["content"] for message in row.messages[1 : 3 + 2 * more])) for more in range(2)]
    assert earlier_digests(row) == [form_digest(normal_form(input_text(each))) for each in shorter]
    assert earlier_digests(shorter[0]) == []


def asked_twice(system: str, other: str) -> list[Row]:
    return [talk(ASKED, "billing", system=system), talk(ASKED, "access", system=other)]


@pytest.mark.parametrize(
    ("systems", "found"),
    [
        (("Say who is responsible.", "Say what is asked for."), 0),
        (("Say who is responsible.", "Say who is responsible!"), 1),
        (("", ""), 1),
        (("Say who is responsible.", ""), 0),
    ],
)
def test_the_same_text_under_another_system_message_is_another_input(systems: tuple[str, str], found: int) -> None:
    wanted = spec({"nearDuplicates": "drop", "conflictingAnswers": "warn"}, data=OWN)
    content = {"pool": asked_twice(*systems), "test": [talk("one", "1")], "validation": [talk("two", "2")]}
    with store_of(content) as store, NearDuplicates(store) as near:
        assert len(run(conflicting_answers, store, wanted)[0]) == found
        split_pool(store, near, wanted)
        assert run(near_duplicates, store, wanted, near)[1]["train"] == 2 - found


def test_a_version_knows_what_its_conversations_asked_earlier(world: PrepareWorld) -> None:
    def chat(case: dict[str, str]) -> dict[str, Any]:
        row = talk(case["prompt"], "In a moment.", f"I wait for it: {case['completion']}", "It is done.")
        return {"messages": list(row.messages)}

    *_, first = prepared(world, {"train": [{"source": world.write("a.jsonl", [chat(case) for case in varied(160)])}]})
    publish(first)
    asked = [{"messages": [row.messages[0], row.messages[-1]]} for row in load_split(first, "train")[:2]]
    fresh = [chat(case) for case in varied(50, 5000)]
    test = {"source": world.write("test.jsonl", [*asked, *fresh])}
    moved = {"train": [{"source": world.write("b.jsonl", [chat(case) for case in varied(160, 9000)])}], "test": test}
    (message,) = next_run(world, moved)
    assert "v1 was trained on 2 rows that now judge (test)" in message
