"""Intervals by paired bootstrap, the evidence for gates, and the prompts of the baselines."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from itertools import zip_longest
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.evaluation import Gate
from finetune_runner.data.rows import Parsed, make_row
from finetune_runner.evaluation.bootstrap import interval, minimum_detectable_gain, paired_difference
from finetune_runner.evaluation.compare import Field, System, best_baseline, compare, values_of
from finetune_runner.evaluation.labels import label_of
from finetune_runner.evaluation.metrics import Settings, metric
from finetune_runner.evaluation.outcomes import Outcome
from finetune_runner.evaluation.prompts import (
    choose_examples,
    folded,
    majority_answer,
    with_examples,
    with_system,
)

EXACT = metric("exactMatch")
PLAIN = Settings()


def system(name: str, right: int, rows: int = 100, shift: int = 0, loss: float = 1.0) -> System:
    outcomes = [
        Outcome(str(i), "x", text="x" if (i + shift) % rows < right else "y", nll=loss * (1 + i % 3), tokens=1 + i % 3)
        for i in range(rows)
    ]
    return System(name, outcomes, outcomes[:10])


def terms(of: System) -> Any:
    return EXACT.rows(of.test, PLAIN)


def test_the_interval_of_a_share_is_about_the_binomial_one() -> None:
    found = interval(EXACT, terms(system("a", 50)), PLAIN)
    half_width = 1.645 * math.sqrt(0.25 / 100)
    assert found.value == 0.5
    assert found.low == pytest.approx(0.5 - half_width, abs=0.02)
    assert found.high == pytest.approx(0.5 + half_width, abs=0.02)


def test_the_same_outcomes_give_the_same_interval() -> None:
    assert interval(EXACT, terms(system("a", 50)), PLAIN) == interval(EXACT, terms(system("a", 50)), PLAIN)


def test_pairing_narrows_the_interval() -> None:
    candidate, reference = system("c", 60), system("r", 50)
    paired = paired_difference(EXACT, terms(candidate), terms(reference), PLAIN)
    unpaired = paired_difference(EXACT, terms(candidate), terms(system("r", 50, shift=50)), PLAIN)
    assert paired.value == unpaired.value == pytest.approx(0.1)
    assert paired.high - paired.low < unpaired.high - unpaired.low
    assert paired.low > 0 > unpaired.low


def test_different_rows_cannot_be_paired() -> None:
    with pytest.raises(ValueError, match="cannot pair 100 rows with 90"):
        paired_difference(EXACT, terms(system("c", 5)), terms(system("r", 5, rows=90)), PLAIN)


def test_more_rows_detect_smaller_gains() -> None:
    gains = [minimum_detectable_gain(EXACT, terms(system("b", rows // 2, rows)), PLAIN) for rows in (50, 200, 800)]
    assert gains == sorted(gains, reverse=True)
    assert gains[1] == pytest.approx(2.4865 * math.sqrt(0.25 / 200), rel=0.05)


def test_a_baseline_that_is_never_right_still_has_a_smallest_detectable_gain() -> None:
    assert 0.02 < minimum_detectable_gain(EXACT, terms(system("b", 0)), PLAIN) < 0.1


def field(**changes: Any) -> Field:
    parts: dict[str, Any] = {
        "candidate": system("tuned", 80, loss=0.5),
        "baselines": {"prompted": system("prompted", 40), "majority": System("majority", _unscored(60))},
        "best": "majority",
        "base": system("base", 10, loss=2.0),
    }
    return Field(**{**parts, **changes})


def _unscored(right: int) -> list[Outcome]:
    return [Outcome(str(i), "x", text="x" if i < right else "y") for i in range(100)]


@pytest.mark.parametrize(
    ("gate", "candidate", "reference", "name"),
    [
        ({"metric": "exactMatch", "minimum": 0.5}, 0.8, None, ""),
        ({"metric": "exactMatch", "over": "baseline", "minimumGain": 0.05}, 0.8, 0.6, "majority"),
        ({"metric": "loss", "over": "baseline", "minimumGain": 0.05}, 0.5, 1.0, "prompted"),
        ({"metric": "loss", "over": "base", "maximumRegression": "5%"}, 0.5, 2.0, "base"),
        ({"metric": "outOfDomainLoss", "over": "base", "maximumRegression": "5%"}, 0.5, 2.0, "base"),
        ({"metric": "exactMatch", "over": "incumbent", "minimumGain": 0.0}, 0.8, None, ""),
    ],
)  # fmt: skip
def test_a_gate_is_compared_with_what_it_names(
    gate: dict[str, Any], candidate: float, reference: float | None, name: str
) -> None:
    evidence = compare(Gate.from_wire(gate), field(), PLAIN)
    assert (evidence.candidate, evidence.reference, evidence.reference_name) == (
        pytest.approx(candidate),
        reference if reference is None else pytest.approx(reference),
        name,
    )
    value = evidence.candidate - (evidence.reference or 0.0)
    assert evidence.low <= value <= evidence.high


def test_the_interval_of_a_comparison_is_of_the_difference_in_the_metrics_own_direction() -> None:
    gate = Gate.from_wire({"metric": "loss", "over": "base", "minimumGain": 0.1})
    evidence = compare(gate, field(), PLAIN)
    assert evidence.high < 0, "a better loss is a negative difference"


def test_the_incumbent_is_compared_with_when_there_is_one() -> None:
    gate = Gate.from_wire({"metric": "exactMatch", "over": "incumbent", "maximumRegression": "5%"})
    evidence = compare(gate, field(incumbent=system("v3", 90)), PLAIN)
    assert (evidence.reference, evidence.reference_name, evidence.rows) == (pytest.approx(0.9), "v3", 100)


def test_a_metric_that_was_not_measured_is_named() -> None:
    with pytest.raises(KeyError, match="outOfDomainLoss"):
        compare(
            Gate.from_wire({"metric": "outOfDomainLoss", "maximum": 3.0}),
            field(candidate=System("tuned", system("tuned", 80).test)),
            PLAIN,
        )


def test_a_class_that_a_resample_lacks_does_not_spoil_the_interval() -> None:
    settings = Settings(classes=("x", "rare"))
    outcomes = [Outcome(str(i), "rare" if i == 0 else "x", text="x") for i in range(30)]
    found = interval(metric("f1"), metric("f1").rows(outcomes, settings), settings)
    assert not any(map(np.isnan, (found.value, found.low, found.high)))


@pytest.mark.parametrize(
    ("name", "best"), [("f1", "b"), ("loss", "a"), ("rougeL", "a"), ("exactMatch", ""), ("schemaValid", "a")]
)  # fmt: skip
def test_the_best_baseline_follows_the_metrics_direction(name: str, best: str) -> None:
    values = {
        "a": {"f1": 0.1, "loss": 1.0, "rougeL": 0.5, "schemaValid": 0.3},
        "b": {"f1": 0.2, "loss": 2.0, "schemaValid": 0.3},
    }
    assert best_baseline(values, name) == best


def test_only_measured_metrics_have_values() -> None:
    assert set(values_of(field().baselines["majority"], ["exactMatch", "loss", "outOfDomainLoss"], PLAIN)) == {
        "exactMatch"
    }


def row(question: str, answer: str, label: bool | None = None) -> Any:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return make_row(Parsed(messages, label=label))


def test_few_shot_examples_show_every_class_before_repeating_one() -> None:
    train = [row(f"q{i}", "abc"[min(i // 10, 2)]) for i in range(40)]
    chosen = choose_examples(train, 4, 42, None, classes=True)
    assert sorted(r.answer for r in chosen[:3]) == ["a", "b", "c"]
    assert len(chosen) == 4
    assert [r.id for r in choose_examples(list(reversed(train)), 4, 42, None, classes=True)] == [r.id for r in chosen]


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from("abcdef"))), st.integers(1, 5), st.booleans())
def test_few_shot_examples_of_one_pass_are_those_of_all_rows_sorted(
    pairs: list[tuple[int, str]], count: int, classes: bool
) -> None:
    train = [row(f"q{question}", answer) for question, answer in pairs]
    ordered = sorted(train, key=lambda one: hashlib.sha256(f"7:few-shot:{one.id}".encode()).hexdigest())
    if classes:
        queues = [[one for one in ordered if one.answer == label] for label in sorted({one.answer for one in train})]
        ordered = [one for turn in zip_longest(*queues) for one in turn if one is not None]
    assert choose_examples(iter(train), count, 7, None, classes=classes) == ordered[:count]


@given(st.lists(st.sampled_from(['{"c":"a"}', '{"c":"a","n":1}', '{"c":"b"}', '{"c":"b" }', "no label", "none", ""])))
def test_the_majority_answer_is_that_of_counting(answers: list[str]) -> None:
    train = [row(str(number), answer) for number, answer in enumerate(answers)]
    labels = Counter(label for answer in answers if (label := label_of(answer, "$.c")) is not None)
    top = min(labels, key=lambda label: (-labels[label], label), default=None)
    texts = Counter(answer for answer in answers if label_of(answer, "$.c") == top)
    assert majority_answer(train, "$.c") == min(texts, key=lambda text: (-texts[text], text), default="")


@pytest.mark.parametrize("classes", [True, False])
def test_what_nobody_wants_is_neither_an_example_nor_the_majority_answer(classes: bool) -> None:
    good, bad = row("q1", "a", label=True), [row(f"q{n}", "b", label=False) for n in range(2, 6)]
    assert choose_examples([*bad, good], 4, 42, None, classes=classes) == [good]
    assert majority_answer([*bad, good], None) == "a"


def test_prompts_of_the_baselines() -> None:
    own = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"}]
    assert with_system(own, "Classify.")[0] == {"role": "system", "content": "Classify.\n\nBe brief."}
    shown = with_examples(own, [row("q1", "a1")], "Classify.")
    assert [m["role"] for m in shown] == ["system", "user", "assistant", "user"]
    assert folded(shown)[0] == {"role": "user", "content": "Classify.\n\nBe brief.\n\nq1"}


def test_the_majority_answer() -> None:
    train = [
        row("1", '{"c":"a","n":1}'),
        row("2", '{"c":"a","n":1}'),
        row("3", '{"c":"a","n":2}'),
        row("4", '{"c":"b"}'),
    ]
    assert majority_answer(train, "$.c") == '{"c":"a","n":1}'
