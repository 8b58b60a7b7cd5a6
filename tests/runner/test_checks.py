"""Every data check: rows that trip it, rows that nearly do, and what each setting does."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.exit_codes import ExitCode
from finetune_api.job.evaluation import Task
from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import Given, Remark, run_checks
from finetune_runner.data.checks import (
    agreement,
    answers,
    balance,
    conflicting_answers,
    edge_cases,
    empty_answers,
    encoding,
    kinds,
    language,
    leaks,
    lengths,
    near_duplicates,
    pii,
    pii_in_test,
    refusals,
    size,
    sizes,
    unwanted,
)
from finetune_runner.data.labels import label_of
from finetune_runner.data.near_duplicates import NearDuplicates
from finetune_runner.data.personal_data import Span, personal_data, without_overlaps
from finetune_runner.data.pool import split_pool, weigh
from finetune_runner.data.redaction import personal_kinds, redacted
from finetune_runner.data.registry import modules_of
from finetune_runner.data.row_store import Length, RowStore
from finetune_runner.data.rows import Parsed, Row, make_row
from finetune_runner.errors import StageError
from tests.runner.stores import store_of, varied

NUMBERS = itertools.count()


def spec(checks: dict[str, Any] | None = None, **parts: Any) -> FineTuneJobSpec:
    data = {"train": [{"source": "file:///a.jsonl"}], "checks": checks or {}, **parts.pop("data", {})}
    return FineTuneJobSpec.from_wire(
        {"model": {"source": "hf://a/b"}, "output": {"adapterRef": {"name": "x"}}, "data": data, **parts}
    )


def row(asked: str, answer: str, **parts: Any) -> Row:
    messages = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    return make_row(Parsed(messages, **parts))


def rows(*answers: str) -> list[Row]:
    return [row(f"Case {next(NUMBERS)}: what is it?", answer) for answer in answers]


def run(
    check: ModuleType,
    of: Mapping[str, Sequence[Row]] | RowStore,
    wanted: FineTuneJobSpec,
    near: NearDuplicates | None = None,
) -> tuple[list[Remark], dict[str, int]]:
    """What a check says, and the rows that are left by split."""
    store = of if isinstance(of, RowStore) else store_of(of)
    mode = check.mode(wanted)
    if mode == "off":
        return [], store.counts()
    remarks = check.check(Given(store, wanted, mode, near=near))
    store.apply()
    return remarks, store.counts()


def said(remarks: Sequence[Remark]) -> str:
    return "\n".join(f"{remark.severity}: {remark.message}" for remark in remarks)


def warned(remarks: Sequence[Remark]) -> list[Remark]:
    return [remark for remark in remarks if remark.severity == "warning"]


CLASSIFICATION = {"task": {"type": "classification"}}
SCHEMA = {"task": {"type": "extraction", "schema": {"type": "object", "required": ["a"]}}}
GOOD = rows(*["a fine answer"] * 5)

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
        "1 inputs have different answers (2 rows",
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
        "rows are in another language than most (en",
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
    always = {"duplicates", "lengths", "kinds", "unwanted", "sizes", "sizes_left", "pii_in_test"}
    for name, module in modules_of("finetune_runner.data.checks").items():
        if name in always:
            continue
        with_task = {"evaluation": {"task": {"type": "classification", "schema": {"type": "object"}}}}
        setting = "".join(part.title() if n else part for n, part in enumerate(name.split("_")))
        assert module.mode(spec({setting: "warn"}, **with_task)) == "warn", name
        assert module.mode(spec({setting: "fail"}, **with_task)) == "fail", name


# -- kinds

PAIR = row("q", "good", rejected="bad")
TEXT = make_row([{"role": "assistant", "content": "a manual"}])


@pytest.mark.parametrize(
    ("wrong", "says", "fix"),
    [
        (PAIR, "a better and a worse answer: 1 rows: pool row 2", "dpo"),
        (row("q", "a", label=True), "judged true or false", "kto"),
        (TEXT, "plain text, in which data.loss assistant finds no answer", "data.loss: all"),
    ],
)
def test_rows_of_another_kind_are_refused(wrong: Row, says: str, fix: str) -> None:
    with pytest.raises(StageError, match=says) as caught:
        run(kinds, {"pool": [GOOD[0], wrong]}, spec())
    assert fix in caught.value.hint


def with_objective(name: str) -> FineTuneJobSpec:
    base = spec()
    return base.model_copy(update={"method": base.method.model_copy(update={"objective": name})})


@pytest.mark.parametrize(
    ("objective", "learned", "refused"),
    [
        ("dpo", [PAIR], [GOOD[0], row("q", "a", label=True), TEXT]),
        ("kto", [PAIR, row("q", "a", label=True), row("q", "b", label=False)], [GOOD[0], TEXT]),
    ],
)
def test_preference_objectives_learn_from_their_own_rows(
    objective: str, learned: list[Row], refused: list[Row]
) -> None:
    wanted = with_objective(objective)
    assert run(kinds, {"pool": learned, "test": GOOD, "replay": learned}, wanted)[0] == []
    for wrong in refused:
        with pytest.raises(StageError, match=f"method.objective {objective} does not learn from") as caught:
            run(kinds, {"pool": learned, "replay": [wrong]}, wanted)
        with pytest.raises(StageError):
            run(kinds, {"pool": [*learned, wrong]}, wanted)
        assert "method.objective: sft" in caught.value.hint


def test_models_are_not_judged_on_answers_that_nobody_wants() -> None:
    both = [row("q", "good", label=True), row("q", "bad", label=False), PAIR, GOOD[0]]
    content = dict.fromkeys(("train", "validation", "replay", "test", "out_of_domain"), both)
    for objective in ("kto", "dpo", "sft"):
        remarks, left = run(unwanted, content, with_objective(objective))
        assert left == {"train": 4, "validation": 4, "replay": 4, "test": 3, "out_of_domain": 3}
        assert "2 answers that are not wanted" in said(remarks)
        assert remarks[0].splits == {"test": 1, "out_of_domain": 1}
    wanted = {"train": both, "test": [both[0], PAIR, GOOD[0]]}
    assert run(unwanted, wanted, with_objective("kto")) == ([], {"train": 4, "test": 3})


def test_plain_text_is_fine_where_all_is_learned_and_as_general_text() -> None:
    assert run(kinds, {"pool": [TEXT]}, spec(data={"loss": "all"}))[0] == []
    assert run(kinds, {"pool": GOOD, "replay": [TEXT], "out_of_domain": [TEXT]}, spec())[0] == []


# -- size, balance, agreement, edge cases


@pytest.mark.parametrize(
    ("task", "classes", "wanted"),
    [
        ({"type": "classification"}, 3, 300),
        ({"type": "classification"}, 1000, 500),
        ({"type": "extraction"}, 0, 500),
        ({"type": "generation"}, 0, 1000),
        ({"type": "generation", "schema": {"type": "object"}}, 0, 500),
    ],
)
def test_how_many_rows_a_task_wants(task: dict[str, Any], classes: int, wanted: int) -> None:
    assert size.wanted_rows(Task.from_wire(task), classes)[0] == wanted


@pytest.mark.parametrize(("count", "severity"), [(199, "warning"), (200, "info")])
def test_size_is_judged_by_the_number_of_classes(count: int, severity: str) -> None:
    few = {"train": rows(*("ab"[n % 2] for n in range(count)))}
    (remark,), _ = run(size, few, spec(evaluation=CLASSIFICATION))
    assert remark.severity == severity
    assert f"{count} train rows; 200 are wanted: 100 for each of 2 classes" in remark.message
    if severity == "warning":
        with pytest.raises(StageError, match="199 train rows"):
            run(size, few, spec({"size": "fail"}, evaluation=CLASSIFICATION))


@pytest.mark.parametrize(
    ("labels", "says"),
    [
        (["a"] * 81 + ["b"] * 19, "'a' is 81 % of all rows"),
        (["a"] * 80 + ["b"] * 20, None),
        (["a"] * 40 + ["b"] * 40 + ["c"] * 9, "fewer than 10 rows: c"),
        (["a"] * 40 + ["b"] * 40 + ["c"] * 10, None),
    ],
)
def test_balance(labels: list[str], says: str | None) -> None:
    remarks, _ = run(balance, {"pool": rows(*labels)}, spec(evaluation=CLASSIFICATION))
    assert (says is not None) == bool(warned(remarks))
    assert says is None or says in said(remarks)
    if says is not None:
        with pytest.raises(StageError, match=says[:15]):
            run(balance, {"pool": rows(*labels)}, spec({"balance": "fail"}, evaluation=CLASSIFICATION))


def test_alpha_is_that_of_the_paper() -> None:
    # Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", example C: nominal data, four observers, 0.743.
    observers = [
        ["1", "2", "3", "3", "2", "1", "4", "1", "2", ".", ".", "."],
        ["1", "2", "3", "3", "2", "2", "4", "1", "2", "5", ".", "3"],
        [".", "3", "3", "3", "2", "3", "4", "2", "2", "5", "1", "."],
        ["1", "2", "3", "3", "2", "4", "4", "1", "2", "5", "1", "."],
    ]
    units = [[label for label in unit if label != "."] for unit in zip(*observers, strict=True)]
    assert agreement.krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=4), max_size=12))
def test_alpha_is_at_most_one_and_one_means_that_all_agree(units: list[list[str]]) -> None:
    alpha = agreement.krippendorff_alpha(units)
    pairable = [unit for unit in units if len(unit) > 1]
    assert (alpha is None) == (not pairable)
    if alpha is not None:
        assert alpha <= 1 + 1e-9
        assert (alpha > 1 - 1e-9) == all(len(set(unit)) == 1 for unit in pairable)


@pytest.mark.parametrize(("disputed", "severity"), [(3, "info"), (6, "warning")])
def test_agreement(disputed: int, severity: str) -> None:
    pool = [row(f"q{n}", "a", annotations=("ab"[n % 2],) * 2) for n in range(20 - disputed)]
    pool += [row(f"d{n}", "a", annotations=("a", "b")) for n in range(disputed)]
    (remark,), _ = run(agreement, {"pool": pool}, spec())
    assert remark.severity == severity
    assert f"people disagree on {disputed}" in remark.message
    assert run(agreement, {"pool": GOOD}, spec())[0] == []
    if severity == "warning":
        with pytest.raises(StageError, match="alpha of 20 rows"):
            run(agreement, {"pool": pool}, spec({"agreement": "fail"}))


def test_edge_cases() -> None:
    usual = [row("x" * (80 + n % 40) + f"{n:03}", "a") for n in range(198)]
    remarks, _ = run(edge_cases, {"pool": [*usual, row("x", "a"), row("x" * 9000, "a")]}, spec())
    assert "2 of 200 rows (1.0 %) are edge cases" in remarks[0].message
    assert remarks[0].severity == "info"
    with pytest.raises(StageError, match="1 of 199 rows"):
        run(edge_cases, {"pool": [*usual, row("x", "a")]}, spec({"edgeCases": "fail"}))


# -- duplicates and leaks

SENTENCE = "please look at the invoice of last month for the third car since the sum on page {} seems to be quite wrong"


def prompts(*asked: str) -> list[Row]:
    return [row(text, f"answer {n}") for n, text in enumerate(asked)]


@pytest.mark.parametrize(("mode", "left"), [("warn", 4), ("drop", 3)])
def test_near_duplicates_within_a_split(mode: str, left: int) -> None:
    alike = [SENTENCE.format("two"), SENTENCE.format("two") + "!", "quite another thing", "and one more of its kind"]
    wanted = spec(
        {"nearDuplicates": mode}, data={"test": {"source": "file:///t"}, "validation": {"source": "file:///v"}}
    )
    others = {"test": prompts("a test of its own"), "validation": prompts("something to validate with")}
    with store_of({"pool": prompts(*alike), **others}) as store, NearDuplicates(store) as near:
        split_pool(store, near, wanted)
        remarks, counts = run(near_duplicates, store, wanted, near)
    assert "train: 1 rows are near-duplicates of an earlier one" in remarks[0].message
    assert counts["train"] == left
    assert near_duplicates.mode(spec(data={"groupBy": "$.customer"})) == "off"


@pytest.mark.parametrize(("mode", "left"), [("warn", 61), ("drop", 60)])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_near_duplicates_within_a_source_of_its_own(split: str, mode: str, left: int) -> None:
    wanted = spec({"nearDuplicates": mode}, data={split: {"source": "file:///own"}})
    own = [*(case["prompt"] for case in varied(60, 5000)), varied(1, 5000)[0]["prompt"].upper() + "!"]
    general = prompts(*[varied(1, 9000)[0]["prompt"]] * 2)
    content = {"pool": prompts(*(case["prompt"] for case in varied(200))), split: prompts(*own), "replay": general}
    with store_of(content) as store, NearDuplicates(store) as near:
        split_pool(store, near, wanted)
        leaks_before = run(leaks, store, wanted, near)
        remarks, counts = run(near_duplicates, store, wanted, near)
        assert run(leaks, store, wanted, near) == ([], counts), "what is known of the pool is kept"
    assert leaks_before[0] == []
    assert [(remark.rows, remark.positions) for remark in remarks] == [(1, (f"{split} row 61",))]
    assert counts[split] == left
    assert counts["replay"] == 2, "replay is general text"


@pytest.mark.parametrize(
    ("split", "other"),
    [
        ("train", "test"), ("train", "validation"), ("train", "out_of_domain"), ("replay", "test"),
        ("replay", "validation"), ("replay", "out_of_domain"), ("replay", "train"), ("validation", "test"),
        ("out_of_domain", "test"), ("out_of_domain", "validation"),
    ],
)  # fmt: skip
def test_a_leak_between_any_two_splits_is_found(split: str, other: str) -> None:
    content = {
        name: prompts(f"this row belongs to {name} and to nobody else")
        for name in ("train", "replay", "validation", "test", "out_of_domain")
    }
    content[split] = [*content[split], *prompts(SENTENCE.format("two").upper())]
    content[other] = [*content[other], *prompts(SENTENCE.format("two"))]
    for mode in ("warn", "drop", "fail"):
        with store_of(content) as store, NearDuplicates(store) as near:
            if mode == "fail":
                with pytest.raises(StageError, match=f"{split}: 1 rows have inputs"):
                    run(leaks, store, spec({"leaks": mode}), near)
                continue
            remarks, counts = run(leaks, store, spec({"leaks": mode}), near)
        assert [remark.splits for remark in remarks] == [{split: 1}]
        assert f"(like {other} row 2)" in remarks[0].message
        assert counts == {
            name: 2 - (mode == "drop" and name == split) if name in (split, other) else 1 for name in counts
        }


@pytest.mark.parametrize(("text", "leaking"), [("a manual of the third car", 0), ("a recipe for apple pie", 1)])
def test_plain_text_leaks_where_it_is_the_same_text(text: str, leaking: int) -> None:
    texts = [make_row([{"role": "assistant", "content": each}]) for each in (text, "a Recipe for apple pie!")]
    with store_of({"train": texts[:1], "test": texts[1:]}) as store, NearDuplicates(store) as near:
        remarks, left = run(leaks, store, spec(data={"loss": "all"}), near)
    assert len(remarks) == leaking
    assert left.get("train", 0) == 1 - leaking


def test_what_only_resembles_is_no_leak() -> None:
    other = "please look at the contract of last year for the second house since the date on page one seems to be right"
    with (
        store_of({"train": prompts(SENTENCE.format("two")), "test": prompts(other)}) as store,
        NearDuplicates(store) as n,
    ):
        assert run(leaks, store, spec({"leaks": "fail"}), n) == ([], {"train": 1, "test": 1})


# -- what is left


@pytest.mark.parametrize(
    ("emptied", "place"),
    [("pool", "data.train"), ("test", "data.test.source"), ("validation", "data.validation.source")],
)
def test_checks_that_leave_no_row_end_the_job_with_their_names(emptied: str, place: str) -> None:
    checks = {"refusals": "drop", "emptyAnswers": "drop"}
    refuse, empty = ["I'm sorry, but I can't help"] * 3, ["N/A"] * 2
    own = {"test": {"source": "file:///t"}, "validation": {"source": "file:///v"}}
    content = {name: rows("fine") for name in ("pool", "test", "validation")}
    with store_of({**content, emptied: rows(*refuse, *empty, "fine")}) as store:
        list(run_checks("rows", store, spec(checks, data=own)))
        assert store.counts()[emptied] == 1, "one row is left"
    with (
        store_of({**content, emptied: rows(*refuse, *empty)}) as store,
        pytest.raises(StageError, match=f"the checks dropped every row of {place}: refusals 3, emptyAnswers 2") as bad,
    ):
        list(run_checks("rows", store, spec(checks, data=own)))
    assert bad.value.exit_code == ExitCode.INVALID_DATA
    assert "data.checks.refusals: warn, data.checks.emptyAnswers: warn" in bad.value.hint


def test_a_source_of_its_own_is_never_replaced_by_a_split() -> None:
    wanted = spec({"minimumRows": 1}, data={"test": {"source": "file:///t"}})
    with store_of({"pool": prompts(*(case["prompt"] for case in varied(60)))}) as store, NearDuplicates(store) as near:
        split_pool(store, near, wanted)
        assert "test" not in store.counts()
        with pytest.raises(StageError, match="split test is empty") as caught:
            run(sizes, store, wanted, near)
    assert "the rows of data.test.source" in caught.value.hint


@pytest.mark.parametrize(
    ("weight", "long", "says", "fix"),
    [
        (1.0, 10, "", ""),
        (1.0, 11, "removed since the split: 11 longer than training.maxLength 16", "raise training.maxLength"),
        (0.01, 0, "by data.train[].weight", "raise data.train[].weight"),
        (1.0, 60, "60 usable rows: 0 train, ", "raise training.maxLength"),
    ],
)
def test_rows_that_vanish_after_the_split_are_missed(weight: float, long: int, says: str, fix: str) -> None:
    wanted = spec({"minimumRows": 50}, training={"maxLength": 16}, data={"overlong": "drop"})
    held = {"validation": rows(*["v"] * 30), "test": rows(*["t"] * 30)}
    with RowStore() as store:
        for each in rows(*["a"] * 60):
            store.add("train", each, "a.jsonl", weight)
        for split, content in held.items():
            for each in content:
                store.add(split, each, split)
        store.flush()
        weigh(store, 1)
        numbers = [example.number for example in store.examples(*store.splits())]
        store.set_lengths((number, Length(17 if number <= long else 16, 2)) for number in numbers)
        outcome = run_checks("tokens", store, wanted)
        if not says:
            assert [each.check for each in outcome] == ["lengths", "sizes_left"]
            return
        with pytest.raises(StageError, match=re.escape(says)) as caught:
            list(outcome)
    assert caught.value.exit_code == ExitCode.INVALID_DATA
    assert fix in caught.value.hint


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_that_is_too_long_altogether_ends_the_job(split: str) -> None:
    wanted = spec({"minimumRows": 1}, training={"maxLength": 16}, data={"overlong": "drop"})
    content = {"train": rows("a"), "validation": rows("v"), "test": rows("t"), "replay": rows("r")}
    with store_of(content) as store:
        gone = {1 + list(content).index(split), 4}
        store.set_lengths((number, Length(17 if number in gone else 16, 2)) for number in range(1, 5))
        with pytest.raises(StageError, match=f"split {split} is empty; .*: 1 longer than") as caught:
            list(run_checks("tokens", store, wanted))
    assert "raise training.maxLength" in caught.value.hint


# -- lengths


@pytest.mark.parametrize(
    ("overlong", "left", "says"),
    [
        ("truncate", 3, "warning: 1 examples are longer than training.maxLength 16 and lose the left of their prompt"),
        ("drop", 2, "info: 1 examples are longer than training.maxLength 16, dropped"),
        ("fail", 0, ""),
    ],
)
def test_examples_that_are_too_long(overlong: str, left: int, says: str) -> None:
    wanted = spec(data={"overlong": overlong}, training={"maxLength": 16})
    store = store_of({"train": rows("fits", "fits exactly", "is cut", "does not fit")})
    store.set_lengths([(1, Length(10, 2)), (2, Length(16, 2)), (3, Length(17, 16)), (4, Length(40, 17))])
    if overlong == "fail":
        with pytest.raises(StageError, match="1 rows whose answers do not fit"):
            run(lengths, store, wanted)
        return
    remarks, counts = run(lengths, store, wanted)
    assert counts == {"train": left}
    assert "warning: 1 rows whose answers do not fit into training.maxLength 16, dropped: train row 4" in said(remarks)
    assert says in said(remarks)


# -- personal data, encoding, language


def test_redaction_keeps_all_else_and_is_done_once() -> None:
    text = "Mail jane.doe@example.com or call +1 212-555-0143, order 77 of 2024-05-01."
    assert redacted(text) == "Mail <EMAIL_ADDRESS> or call <PHONE_NUMBER>, order 77 of 2024-05-01."
    assert redacted(redacted(text)) == redacted(text)
    first = personal_data(text)[0]
    assert (text[first.start : first.end], first.kind) == ("jane.doe@example.com", "EMAIL_ADDRESS")


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("AB 12 34 56 C", "UK_NINO"),
        ("943 476 5919", "UK_NHS"),
        ("12345678Z", "ES_NIF"),
        ("RSSMRA85T10A562S", "IT_FISCAL_CODE"),
        ("44051401359", "PL_PESEL"),
        ("131052-308T", "FI_PERSONAL_IDENTITY_CODE"),
        ("65929970489", "DE_TAX_ID"),
        ("ABCPE1234F", "IN_PAN"),
        ("FR76 3000 6000 0112 3456 7890 189", "IBAN_CODE"),
        ("2001:db8::ff00:42:8329", "IP_ADDRESS"),
        ("+49 30 901820", "PHONE_NUMBER"),
        ("12345678A", None),
        ("44051401358", None),
        ("RSSMRA85T10A562X", None),
        ("978-3-16-148410-0", None),
        ("2024-05-01T10:30:00", None),
        ("order no. 4711-0815-2024", None),
        ("commit 9053cff1a2b3", None),
    ],
)
def test_ids_count_with_the_right_check_digit_only(text: str, kind: str | None) -> None:
    assert [span.kind for span in personal_data(f"It is {text}, he said.")] == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("text", "after"),
    [
        ('{"phone": 4155552671}', '{"phone": "<UK_NHS>"}'),
        (' {"a":1,  "mail" :"to a.b@example.com \\u00fc"}\n', ' {"a":1,  "mail" :"to <EMAIL_ADDRESS> \\u00fc"}\n'),
        ('{"é": "ü a.b@example.com", "n": -1.5e3}', '{"é": "ü <EMAIL_ADDRESS>", "n": -1.5e3}'),
        (
            '{"a.b@example.com": ["\\"x\\" \\ud800 c.d@example.com"]}',
            '{"<EMAIL_ADDRESS>": ["\\"x\\" \\ud800 <EMAIL_ADDRESS>"]}',
        ),
        ('{"a": "\\u0061", "n": [0.015625, 12e2, true]}', '{"a": "\\u0061", "n": [0.015625, 12e2, true]}'),
        ('{"mail": a.b@example.com}', '{"mail": <EMAIL_ADDRESS>}'),  # no JSON before either
    ],
)
def test_redacted_json_is_json_written_as_before(text: str, after: str) -> None:
    assert redacted(text) == after
    assert len(personal_kinds(text)) == after.count("<")
    assert personal_kinds(after) == []


_LEAVES = st.none() | st.booleans() | st.integers(-999, 999) | st.floats(-9, 9) | st.text('ab"\\é \ud800', max_size=8)


@given(
    st.recursive(
        _LEAVES | st.just("call +1 212-555-0143"),
        lambda inner: st.lists(inner) | st.dictionaries(st.text('ab"', max_size=3), inner),
    ),
    st.sampled_from([None, 1]),
    st.booleans(),
)
def test_whatever_json_is_redacted_is_json(value: Any, indent: int | None, ascii_only: bool) -> None:
    text = json.dumps([value], indent=indent, ensure_ascii=ascii_only)
    expected = json.loads(json.dumps([value]).replace("+1 212-555-0143", "<PHONE_NUMBER>"))
    assert json.loads(redacted(text)) == expected
    assert "212-555" not in redacted(text)


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ('{"a": "jane.doe@example.com"}', "at $.a: enum"),
        ('{"jane.doe@example.com": 1}', "at $: required"),
        ('{"a": 1, "by": {"jane.doe@example.com": "x"}}', "at $.by.*: type"),
        ('{"a": 1, "by": {"k": 2}, "list": [1, "jane.doe@example.com"]}', "at $.list[1]: type"),
        ("jane.doe@example.com", "is not JSON"),
    ],
)
@pytest.mark.parametrize("policy", ["fail", "warn"])
def test_a_wrong_answer_is_told_without_a_word_of_it(answer: str, says: str, policy: str) -> None:
    number = {"type": "integer"}
    properties = {"a": {"enum": [1, 2]}, "by": {"additionalProperties": number}, "list": {"items": number}}
    task = {"type": "extraction", "schema": {"type": "object", "required": ["a"], "properties": properties}}
    wanted = spec({"answers": policy}, evaluation={"task": task})
    try:
        words = said(run(answers, {"pool": rows(answer)}, wanted)[0])
    except StageError as error:
        words = f"{error.message} {error.evidence}"
    assert says in words
    assert "jane" not in words
    assert run(answers, {"pool": rows('{"a": 1, "by": {"k": 2}, "list": [1]}')}, wanted)[0] == []


@given(st.lists(st.builds(lambda a, n: Span(a, a + n, "X"), st.integers(0, 30), st.integers(1, 9)), max_size=8))
def test_spans_do_not_overlap(spans: list[Span]) -> None:
    kept = without_overlaps(spans)
    assert all(one.end <= other.start for one, other in itertools.pairwise(kept))
    assert all(any(k.start < span.end and span.start < k.end for k in kept) for span in spans)


def test_the_redacted_share_of_test_is_told() -> None:
    wanted = spec({"pii": "redact"})
    store = store_of({"pool": GOOD, "test": [row("mail a.b@example.com", "ok"), row("nothing", "ok")]})
    run(pii, store, wanted)
    remarks, _ = run(pii_in_test, store, wanted)
    assert said(remarks).startswith("warning: test: 1 of 2 rows (50.0 %) were redacted: test row 1")
    assert store.example(6).row.messages[0]["content"] == "mail <EMAIL_ADDRESS>"
    assert "a.b@example.com" not in said(remarks)


@pytest.mark.parametrize(
    ("broken", "mended"),
    [
        ("schÃ¶n", "schön"),
        ("donâ€™t", "don\u2019t"),
        ("a\x00b\x07", "ab"),
        ("\u202eabc\u202c", "abc"),
        ("schön", "schön"),
        ("line\r\nline\ttab", "line\r\nline\ttab"),
        ("lost \ufffd", "lost \ufffd"),
    ],
)
def test_broken_characters_are_mended(broken: str, mended: str) -> None:
    assert encoding.mended(broken) == mended


def test_what_cannot_be_mended_is_told() -> None:
    remarks, _ = run(encoding, {"pool": [row("lost \ufffd", "a"), *GOOD]}, spec({"encoding": "repair"}))
    assert "1 rows keep broken characters that cannot be mended: pool row 1" in said(remarks)


@given(st.text(max_size=60))
def test_mending_is_done_once(text: str) -> None:
    once = encoding.mended(text)
    assert all(kind in ("mojibake", "replacement characters") for kind in encoding.broken_kinds(once))


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("Where is my parcel, I have been waiting for it since Monday morning", "en"),
        ("Wo ist mein Paket, ich warte schon seit Montag früh darauf und niemand hilft", "de"),
        (
            "私の荷物はどこにありますか。月曜日からずっと待っているのですが、まだ届いていません。すぐに調べてください。",
            "ja",
        ),
        ("ok", ""),
        ("12345 67890 12345 67890 12345 67890 12345 67890", ""),
    ],
)
def test_language_of_a_text(text: str, code: str) -> None:
    assert language.language_of(text) == code


def test_two_languages_that_are_both_meant_are_no_accident() -> None:
    english = [
        row(f"Where is my parcel number {n}, I have been waiting since Monday", "It is on its way") for n in range(6)
    ]
    german = [
        row(f"Wo ist mein Paket Nummer {n}, ich warte schon seit Montag", "Es ist unterwegs zu Ihnen") for n in range(4)
    ]
    remarks, left = run(language, {"pool": [*english, *german]}, spec({"language": "drop"}))
    assert "en 60.0 %, de 40.0 %" in said(remarks)
    assert left == {"pool": 10}


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ('{"a": "x"}', "x"), ('{"a": {"b": 1}}', '{"b": 1}'), ("{}", "null"), (" not JSON ", "not JSON"), ("", ""),
        ("[" * 100_000, "[" * 100_000),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_json_is_a_label_of_its_own(answer: str, label: str) -> None:
    assert label_of(answer, Task.from_wire({"type": "classification", "labelPath": "$.a"})) == label


@pytest.mark.parametrize("setting", ["warn", "ignore"])
def test_answers_that_are_let_pass_are_counted_as_classes(setting: str) -> None:
    task = {"task": {"type": "classification", "labelPath": "$.a"}}
    content = {"pool": rows(*['{"a": "x"}'] * 10, *['{"a": "y"}'] * 10, "z")}
    for check in (answers, balance, size, edge_cases):
        remarks, _ = run(check, content, spec({"answers": setting}, evaluation=task))
        if check is balance:
            assert remarks[0].facts["classes"] == {"x": 10, "y": 10, "z": 1}


def test_a_class_called_none_is_a_class() -> None:
    labels = rows(*["billing"] * 20, *["none"] * 5)
    assert run(empty_answers, {"pool": labels}, spec({"emptyAnswers": "drop"}, evaluation=CLASSIFICATION))[1] == {
        "pool": 25
    }


def test_a_pair_is_no_conflict() -> None:
    pairs = [row("q", "a", rejected="b"), row("q", "c", rejected="d")]
    assert run(conflicting_answers, {"pool": pairs}, spec({"conflictingAnswers": "fail"})) == ([], {"pool": 2})


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
