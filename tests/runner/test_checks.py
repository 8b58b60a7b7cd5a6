"""Every check: rows that trip it, rows that nearly do, and what each setting does."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.checks import (
    answers,
    balance,
    conflicting_answers,
    empty_answers,
    encoding,
    language,
    pii,
    refusals,
)
from finetune_runner.data.registry import modules_of
from finetune_runner.data.rows import Row, make_row
from finetune_runner.errors import StageError
from tests.runner.check_rows import CLASSIFICATION, PAIR, row, rows, run, spec, warned
from tests.runner.stores import store_of, varied

SCHEMA = {"task": {"type": "extraction", "schema": {"type": "object", "required": ["a"]}}}

# check, name of its setting, what fixes, rows that trip it, rows that nearly do, words, rows it objects to, job
TABLE: list[tuple[ModuleType, str, str, list[Row], list[Row], str, int, dict[str, Any]]] = [
    (
        refusals,
        "refusals",
        "drop",
        rows(
            "I'm sorry, but I can't help", "As an AI language model", "Es tut mir leid, aber ich kann das nicht", "ok"
        ),
        rows(
            "We are sorry that the parcel is late", "I cannot wait to see you", "An AI can do this", "Leider war es zu"
        ),
        "answers refuse",
        3,
        {},
    ),
    (
        empty_answers,
        "emptyAnswers",
        "drop",
        rows("N/A", "-", "...", "TODO", "fine"),
        rows("Not applicable here: no parcel", "0", "no", "to do it, press A", "é"),
        "answers say nothing",
        4,
        {},
    ),
    (
        conflicting_answers,
        "conflictingAnswers",
        "drop",
        [row("What is it?", "a"), row("what is it", "b"), row("Else?", "a")],
        [row("What is it?", "a"), row("What is it? ", "a"), row("What was it?", "b")],
        "1 input has different answers (2 rows",
        2,
        {},
    ),
    (
        answers,
        "answers",
        "drop",
        [*rows('{"a": 1}', '{"b": 1}', "a: 1")],
        rows('{"a": null}', '{"a": {}, "b": 1}', ' {"a": 1} '),
        "evaluation.task",
        2,
        {"evaluation": SCHEMA},
    ),
    (
        encoding,
        "encoding",
        "repair",
        [
            row("Das ist schÃ¶n und gefÃ¤llt mir", "ja"),
            row("a\x00b", "c"),
            row("a\u202eb", "c"),
            row("\ufeffa", "c"),
            row("a\x07b", "c"),
        ],
        [
            row("Das ist schön, naïve café, ½ €", "そうです"),
            row("a\tb\nc", "d"),
            row("العربية", "\u200f"),
            row("Ã", "A"),
        ],
        "rows have broken characters",
        5,
        {},
    ),
    (
        language,
        "language",
        "drop",
        [
            row(f"Where is my parcel with the number {n}, it was sent weeks ago to my house", "It is late")
            for n in range(9)
        ]
        + [row("Wo ist mein Paket mit der Nummer zwölf, ich warte schon seit vielen Wochen darauf", "Es kommt")],
        [
            row(f"Where is my parcel with the number {n}, it was sent weeks ago to my house", "It is late")
            for n in range(9)
        ]
        + [row("Ja, danke", "Bitte")],
        "in another language than most (en",
        1,
        {},
    ),
    (
        pii,
        "pii",
        "redact",
        [
            row("write to jane.doe@example.com", "ok"),
            row("call +1 212-555-0143", "ok"),
            row("card", "4111 1111 1111 1111"),
            row("IBAN DE89 3704 0044 0532 0130 00", "ok"),
            row("from 192.168.1.17", "ok"),
            row("SSN 536-90-4399", "ok"),
        ],
        [
            row("write to jane at example", "ok"),
            row("order 2125550", "ok"),
            row("card", "4111 1111 1111 1112"),  # wrong check digit
            row("IBAN DE89 3704 0044 0532 0130 01", "ok"),  # wrong check digit
            row("version 1.2.3 of 2024-05-01, 10:30", "ok"),
            row("SSN 536-90", "ok"),
        ],
        "rows have personal data",
        6,
        {},
    ),
]
EVERY = pytest.mark.parametrize(
    ("check", "setting", "fix", "tripping", "nearly", "words", "count", "job"), TABLE, ids=[case[1] for case in TABLE]
)


@EVERY
def test_what_is_wrong_is_told_with_rows_and_counts(
    check: ModuleType, setting: str, fix: str, tripping: list[Row], nearly: list[Row], words: str, count: int, job: Any
) -> None:
    remarks, left = run(check, {"pool": tripping}, spec({setting: "warn"}, **job))
    (remark,) = warned(remarks)
    assert words in remark.message
    assert remark.rows == count
    assert remark.positions
    assert all(position.startswith("pool row ") for position in remark.positions)
    assert left == {"pool": len(tripping)}
    assert len(remark.finding.message) <= 512


@EVERY
def test_what_is_nearly_wrong_is_let_be(
    check: ModuleType, setting: str, fix: str, tripping: list[Row], nearly: list[Row], words: str, count: int, job: Any
) -> None:
    for mode in ("warn", "fail", fix):
        remarks, left = run(check, {"pool": nearly}, spec({setting: mode}, **job))
        assert warned(remarks) == []
        assert left == {"pool": len(nearly)}


@EVERY
def test_fail_ends_the_job_and_names_rows_and_fix(
    check: ModuleType, setting: str, fix: str, tripping: list[Row], nearly: list[Row], words: str, count: int, job: Any
) -> None:
    with pytest.raises(StageError) as caught:
        run(check, {"pool": tripping}, spec({setting: "fail"}, **job))
    assert caught.value.exit_code == ExitCode.INVALID_DATA
    assert words.split(" (")[0] in caught.value.message
    assert "pool row " in caught.value.message
    assert caught.value.hint


@EVERY
def test_mended_data_are_clean(
    check: ModuleType, setting: str, fix: str, tripping: list[Row], nearly: list[Row], words: str, count: int, job: Any
) -> None:
    store = store_of({"pool": tripping})
    remarks, left = run(check, store, spec({setting: fix}, **job))
    assert remarks[0].rows == count
    assert remarks[0].severity == "info"
    assert left["pool"] == (len(tripping) - count if fix == "drop" else len(tripping))
    assert warned(run(check, store, spec({setting: "warn"}, **job))[0]) == []
    assert run(check, {"pool": tripping}, spec({setting: "ignore"}, **job))[0] == []


def test_every_check_has_a_setting_or_always_runs() -> None:
    always = {
        "duplicates",
        "lengths",
        "kinds",
        "unwanted",
        "sizes",
        "sizes_left",
        "pii_in_test",
        "judgements",
        "answerable",
        "turns_in_a_row",
    }
    for name, module in modules_of("finetune_runner.data.checks").items():
        if name in always:
            continue
        with_task = {"evaluation": {"task": {"type": "classification", "schema": {"type": "object"}}}}
        setting = "".join(part.title() if n else part for n, part in enumerate(name.split("_")))
        assert module.mode(spec({setting: "warn"}, **with_task)) == "warn", name
        assert module.mode(spec({setting: "fail"}, **with_task)) == "fail", name


def test_a_class_called_none_is_a_class() -> None:
    labels = rows(*["billing"] * 20, *["none"] * 5)
    assert run(empty_answers, {"pool": labels}, spec({"emptyAnswers": "drop"}, evaluation=CLASSIFICATION))[1] == {
        "pool": 25
    }


def test_a_pair_is_no_conflict() -> None:
    pairs = [row("q", "a", rejected="b"), row("q", "c", rejected="d")]
    assert run(conflicting_answers, {"pool": pairs}, spec({"conflictingAnswers": "fail"})) == ([], {"pool": 2})


@pytest.mark.parametrize(
    ("objective", "decided", "conflicts"),
    [
        ("dpo", [row("q", "a", rejected="b"), row("Q!", "b", rejected="a")], 2),
        ("dpo", [row("q", "a", rejected="b"), row("q", "a", rejected="b"), row("q", "b", rejected="c")], 0),
        ("kto", [row("q", "a", label=True), row("q", "a", label=False), row("q", "b", label=False)], 2),
        ("kto", [row("q", "a", label=True), row("q", "b", label=False)], 0),
        ("sft", [make_row([{"role": "assistant", "content": text}]) for text in ("a manual", "A manual!")], 0),
    ],
)
def test_answers_that_are_judged_both_ways_conflict(objective: str, decided: list[Row], conflicts: int) -> None:
    wanted = spec({"conflictingAnswers": "drop"}, method={"objective": objective})
    remarks, left = run(conflicting_answers, {"pool": decided}, wanted)
    assert left.get("pool", 0) == len(decided) - conflicts
    assert [remark.rows for remark in remarks] == [conflicts] * bool(conflicts)
    assert all("1 input has the same answers judged in two ways (2 rows" in remark.message for remark in remarks)


def test_the_worse_answer_is_looked_at_too() -> None:
    remarks, _ = run(pii, {"pool": [row("q", "a", rejected="mail a.b@example.com")]}, spec({"pii": "warn"}))
    assert remarks[0].rows == 1
    store = store_of({"pool": [replace(PAIR, rejected="a\x00b")]})
    run(encoding, store, spec({"encoding": "repair"}))
    assert store.example(1).row.rejected == "ab"


def test_unvaried_rows_are_clean() -> None:
    pool = [row(each["prompt"], each["completion"]) for each in varied(60)]
    everything = spec({"pii": "warn"}, evaluation=CLASSIFICATION)
    for check in (refusals, empty_answers, conflicting_answers, encoding, language, pii, balance):
        assert warned(run(check, {"pool": pool}, everything)[0]) == [], check.__name__
