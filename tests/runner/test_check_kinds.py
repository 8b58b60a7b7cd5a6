"""Rows against the objective."""

from __future__ import annotations

import json

import pytest

from finetune_runner.data.checks import (
    answerable,
    answers,
    balance,
    judgements,
    kinds,
    size,
    turns_in_a_row,
    unwanted,
)
from finetune_runner.data.rows import Row, make_row
from finetune_runner.errors import StageError
from tests.runner.check_rows import GOOD, PAIR, TEXT, row, run, said, spec, with_objective


@pytest.mark.parametrize(
    ("wrong", "says", "fix"),
    [
        (PAIR, "a better and a worse answer: 1 row: pool row 2", "dpo"),
        (row("q", "a", label=True), "judged true or false", "kto"),
        (TEXT, "plain text, in which data.loss assistant finds no answer", "data.loss: all"),
    ],
)
def test_rows_of_another_kind_are_refused(wrong: Row, says: str, fix: str) -> None:
    with pytest.raises(StageError, match=says) as caught:
        run(kinds, {"pool": [GOOD[0], wrong]}, spec())
    assert fix in caught.value.hint


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


@pytest.mark.parametrize(
    ("labels", "missing"), [([True, False], ""), ([True] * 5, "label: false"), ([False] * 5, "label: true")]
)
def test_kto_needs_wanted_and_unwanted_answers_before_a_gpu_is_held(labels: list[bool], missing: str) -> None:
    content = {"train": [row(f"q{n}", "a", label=label) for n, label in enumerate(labels)]}
    if not missing:
        remarks, _ = run(judgements, content, with_objective("kto"))
        assert said(remarks) == "info: train has 1 wanted and 1 unwanted answers"
    else:
        with pytest.raises(StageError, match=r"train has \d wanted and \d unwanted answers") as caught:
            run(judgements, content, with_objective("kto"))
        assert missing in caught.value.hint
    assert judgements.mode(with_objective("dpo")) == "off"
    assert run(judgements, {"train": [PAIR]}, with_objective("kto"))[0][0].facts == {"wanted": 1, "unwanted": 1}


def test_two_turns_of_one_role_in_a_row_are_told() -> None:
    def talk(*roles: str) -> Row:
        return make_row([{"role": role, "content": f"{role} {n}"} for n, role in enumerate(roles)])

    usual = [talk("user", "assistant"), talk("system", "user", "assistant"), talk("assistant", "user", "assistant")]
    odd = [talk("user", "assistant", "assistant"), talk("user", "user", "assistant")]
    assert run(turns_in_a_row, {"pool": [*usual, TEXT]}, spec()) == ([], {"pool": 4})
    remarks, left = run(turns_in_a_row, {"pool": [*usual, *odd]}, spec())
    assert "2 conversations have two turns of one role in a row: pool row 4 (assistant), pool row 5 (user)" in said(
        remarks
    )
    assert (remarks[0].severity, left) == ("warning", {"pool": 5})


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


def test_answers_that_nobody_wants_may_break_the_task_and_are_no_classes() -> None:
    task = {"type": "classification", "labelPath": "$.c", "schema": {"type": "object", "required": ["c"]}}
    wanted = with_objective("kto", evaluation={"task": task})
    good = [row(f"q{n}", json.dumps({"c": "ab"[n % 2]}), label=True) for n in range(20)]
    bad = [row(f"q{n}", f"it is {n}", label=False) for n in range(20)]
    assert run(answers, {"pool": [*good, *bad]}, wanted)[0] == []
    assert run(balance, {"pool": [*good, *bad]}, wanted)[0][0].facts["classes"] == {
        "class of pool row 1": 10,
        "class of pool row 2": 10,
    }
    assert run(size, {"train": [*good, *bad]}, wanted)[0][0].facts["labels"] == 2


@pytest.mark.parametrize("rows", [[TEXT], [row("q", "bad", label=False)]])
def test_a_metric_decides_only_where_validation_can_be_answered(rows: list[Row]) -> None:
    measured = {"metrics": [{"name": "rougeL"}]}
    decides = with_objective("kto", evaluation=measured, training={"bestBy": "metric"})
    with pytest.raises(StageError, match=r"bestBy: metric asks for rougeL") as caught:
        run(answerable, {"validation": rows}, decides)
    assert "training.bestBy: validationLoss" in caught.value.hint
    assert run(answerable, {"validation": [*rows, row("q", "good", label=True)]}, decides)[0] == []
    for other in (with_objective("kto", evaluation=measured), with_objective("kto", training={"bestBy": "metric"})):
        assert answerable.mode(other) == "off"


def test_plain_text_is_fine_where_all_is_learned_and_as_general_text() -> None:
    assert run(kinds, {"pool": [TEXT]}, spec(data={"loss": "all"}))[0] == []
    assert run(kinds, {"pool": GOOD, "replay": [TEXT], "out_of_domain": [TEXT]}, spec())[0] == []
