"""Verdicts."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.evaluation import Evaluation, Gate
from finetune_api.stages import Comparison
from finetune_operator.decide.gates import default_gates, gates_in_force, judge, judge_gate, overall


def gate(**wire: Any) -> Gate:
    return Gate.from_wire(wire)


def evidence(candidate: float, reference: float | None, low: float, high: float) -> Comparison:
    return Comparison(candidate=candidate, reference=reference, reference_name="x", low=low, high=high, rows=200)


TABLE = [
    # gate, candidate, reference, interval, verdict
    ({"metric": "f1", "minimum": 0.85}, 0.9, None, (0.86, 0.94), "Passed"),
    ({"metric": "f1", "minimum": 0.85}, 0.86, None, (0.82, 0.90), "Inconclusive"),
    ({"metric": "f1", "minimum": 0.85}, 0.7, None, (0.65, 0.75), "Failed"),
    ({"metric": "truncationRate", "maximum": 0.1}, 0.02, None, (0.0, 0.05), "Passed"),
    ({"metric": "truncationRate", "maximum": 0.1}, 0.3, None, (0.2, 0.4), "Failed"),
    ({"metric": "f1", "over": "baseline", "minimumGain": 0.05}, 0.9, 0.7, (0.1, 0.3), "Passed"),
    ({"metric": "f1", "over": "baseline", "minimumGain": 0.05}, 0.76, 0.7, (0.0, 0.12), "Inconclusive"),
    ({"metric": "f1", "over": "baseline", "minimumGain": 0.05}, 0.7, 0.7, (-0.04, 0.04), "Failed"),
    # Lower is better: a gain is a drop.
    ({"metric": "loss", "over": "base", "minimumGain": 0.1}, 1.0, 2.0, (-1.2, -0.8), "Passed"),
    ({"metric": "loss", "over": "base", "minimumGain": 0.1}, 2.1, 2.0, (0.05, 0.15), "Failed"),
    ({"metric": "outOfDomainLoss", "over": "base", "maximumRegression": "10%"}, 2.1, 2.0, (0.05, 0.15), "Passed"),
    (
        {"metric": "outOfDomainLoss", "over": "base", "maximumRegression": "10%"},
        2.15,
        2.0,
        (0.05, 0.25),
        "Inconclusive",
    ),
    ({"metric": "outOfDomainLoss", "over": "base", "maximumRegression": "10%"}, 3.0, 2.0, (0.8, 1.2), "Failed"),
    ({"metric": "f1", "over": "incumbent", "maximumRegression": "0.02"}, 0.9, 0.9, (-0.01, 0.01), "Passed"),
    ({"metric": "f1", "over": "incumbent", "maximumRegression": "0.02"}, 0.8, 0.9, (-0.12, -0.08), "Failed"),
    ({"metric": "f1", "over": "incumbent", "maximumRegression": "0.02"}, 0.8, None, (0.7, 0.9), "Passed"),
    ({"metric": "rougeL", "over": "baseline", "minimumGain": 0.0}, 0.8, None, (0.7, 0.9), "Inconclusive"),
    # A gain of 0 asks for any gain: who learned nothing has not beaten a baseline that knows nothing.
    ({"metric": "rougeL", "over": "baseline", "minimumGain": 0.0}, 0.0, 0.0, (0.0, 0.0), "Failed"),
    ({"metric": "f1", "over": "baseline", "minimumGain": 0.0}, 0.81, 0.8, (0.0, 0.02), "Inconclusive"),
    ({"metric": "f1", "over": "baseline", "minimumGain": 0.0}, 0.81, 0.8, (0.001, 0.02), "Passed"),
    ({"metric": "loss", "over": "base", "minimumGain": 0.0}, 1.9, 2.0, (-0.2, -0.001), "Passed"),
    ({"metric": "loss", "over": "base", "minimumGain": 0.0}, 2.0, 2.0, (0.0, 0.0), "Failed"),
    ({"metric": "f1", "over": "incumbent", "maximumRegression": "0"}, 0.8, 0.8, (0.0, 0.0), "Passed"),
]


@pytest.mark.parametrize(("wire", "candidate", "reference", "interval", "verdict"), TABLE)
def test_verdict(
    wire: dict[str, Any], candidate: float, reference: float | None, interval: tuple[float, float], verdict: str
) -> None:
    result = judge_gate(gate(**wire), evidence(candidate, reference, *interval))
    assert result.verdict == verdict
    assert result.message
    if verdict == "Inconclusive" and reference is not None:
        assert result.rows_to_decide is not None
        assert result.rows_to_decide > 200


@given(
    candidate=st.floats(0, 1),
    half=st.floats(0, 0.5),
    minimum=st.floats(0, 1),
)
def test_a_higher_threshold_never_helps(candidate: float, half: float, minimum: float) -> None:
    order = {"Failed": 0, "Inconclusive": 1, "Passed": 2}
    shown = evidence(candidate, None, candidate - half, candidate + half)
    easy = judge_gate(gate(metric="f1", minimum=minimum), shown)
    hard = judge_gate(gate(metric="f1", minimum=minimum + 0.1), shown)
    assert order[hard.verdict] <= order[easy.verdict]


def test_a_gate_without_evidence_is_never_passed() -> None:
    results = judge([gate(metric="f1", minimum=0.1)], [])
    assert [result.verdict for result in results] == ["Inconclusive"]


@pytest.mark.parametrize(
    ("verdicts", "together"),
    [
        (("Passed", "Passed"), "Passed"),
        (("Passed", "Inconclusive"), "Inconclusive"),
        (("Inconclusive", "Failed"), "Failed"),
    ],
)
def test_overall(verdicts: tuple[str, ...], together: str) -> None:
    shown = {"Passed": (0.9, 1.0), "Inconclusive": (0.1, 1.0), "Failed": (0.0, 0.1)}
    results = [judge_gate(gate(metric="f1", minimum=0.5), evidence(0.6, None, *shown[v])) for v in verdicts]
    assert overall(results) == together


def test_defaults_beat_the_baseline_and_watch_the_rest() -> None:
    evaluation = Evaluation.from_wire(
        {
            "task": {"type": "classification", "schema": {"type": "object"}},
            "metrics": [{"name": "f1"}, {"name": "schemaValid"}],
            "outOfDomain": {"source": "s3://shared/general.jsonl"},
        }
    )
    assert [g.in_words() for g in default_gates(evaluation)] == [
        "f1 > baseline",
        "f1 >= incumbent - 5%",
        "schemaValid >= baseline - 0.02",
        "truncationRate <= baseline + 0.02",
        "repetitionRate <= baseline + 0.02",
        "outOfDomainLoss <= base + 10%",
    ]


def test_a_job_adds_to_the_policy_and_never_weakens_it() -> None:
    policy = [gate(metric="f1", minimum=0.9)]
    own = Evaluation.from_wire(
        {"task": {"type": "classification"}, "metrics": [{"name": "f1"}], "gates": [{"metric": "f1", "minimum": 0.1}]}
    )
    assert [g.in_words() for g in gates_in_force(own, policy)] == ["f1 >= 0.1", "f1 >= 0.9"]
