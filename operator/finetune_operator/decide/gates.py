"""Verdicts: evidence (intervals from paired bootstrap) against gates. Pure.

A gate passes when the whole 90 % interval is on the right side of the threshold (95 % one-sided), fails when the whole
interval is on the wrong side, and is inconclusive in between; then the number of test rows that would decide is told.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from finetune_api.job.evaluation import LOWER_IS_BETTER, Evaluation, Gate
from finetune_api.job.status import GateResult, Verdict
from finetune_api.stages import Comparison

NOT_WORSE_SHARE = "5%"
NOT_WORSE_RATE = "0.02"
OUT_OF_DOMAIN_SHARE = "10%"


def default_gates(evaluation: Evaluation) -> list[Gate]:
    """What a version must meet when the job names no gates: beat the baseline, not get worse elsewhere."""
    primary = evaluation.metrics[0].name
    gates = [
        Gate(metric=primary, over="base" if primary == "loss" else "baseline", minimum_gain=0.0),
        Gate(metric=primary, over="incumbent", maximum_regression=NOT_WORSE_SHARE),
    ]
    names = {metric.name for metric in evaluation.metrics}
    if "schemaValid" in names and primary != "schemaValid":
        gates.append(Gate(metric="schemaValid", over="baseline", maximum_regression=NOT_WORSE_RATE))
    gates.append(Gate(metric="truncationRate", over="baseline", maximum_regression=NOT_WORSE_RATE))
    gates.append(Gate(metric="repetitionRate", over="baseline", maximum_regression=NOT_WORSE_RATE))
    if evaluation.out_of_domain is not None:
        gates.append(Gate(metric="outOfDomainLoss", over="base", maximum_regression=OUT_OF_DOMAIN_SHARE))
    return gates


def gates_in_force(evaluation: Evaluation, policy_gates: Sequence[Gate]) -> list[Gate]:
    """The job's gates (or the defaults) and the Adapter's: a job adds, it never replaces."""
    own = default_gates(evaluation) if evaluation.gates is None else list(evaluation.gates)
    return own + [gate for gate in policy_gates if gate not in own]


def _allowed_regression(text: str, reference: float) -> float:
    return float(text[:-1]) / 100 * abs(reference) if text.endswith("%") else float(text)


def _judge(low: float, high: float, threshold: float, *, tie_passes: bool) -> Verdict:
    if low > threshold or (tie_passes and low == threshold):
        return "Passed"
    return "Failed" if high < threshold or (not tie_passes and high == threshold) else "Inconclusive"


def _rows_to_decide(rows: int, low: float, high: float, value: float, threshold: float) -> int | None:
    distance = abs(value - threshold)
    if distance == 0 or rows == 0:
        return None
    needed = math.ceil(rows * ((high - low) / 2 / distance) ** 2)
    return max(rows + 1, needed) if needed < 10_000_000 else None


def judge_gate(gate: Gate, evidence: Comparison) -> GateResult:
    """The verdict on one gate. Intervals of comparing gates are of candidate minus reference."""
    text = gate.in_words()
    if gate.over is not None and evidence.reference is None:
        if gate.over == "incumbent":
            return GateResult(
                gate=text, verdict="Passed", candidate=evidence.candidate, message="there is no incumbent"
            )
        return GateResult(
            gate=text, verdict="Inconclusive", candidate=evidence.candidate, message=f"{gate.over} has no {gate.metric}"
        )
    lower_is_better = gate.metric in LOWER_IS_BETTER
    # Everything is turned so that larger is better and the threshold is the smallest value that passes.
    if gate.minimum is not None:
        low, high, value, threshold = evidence.low, evidence.high, evidence.candidate, gate.minimum
    elif gate.maximum is not None:
        low, high, value, threshold = -evidence.high, -evidence.low, -evidence.candidate, -gate.maximum
    else:
        reference = evidence.reference if evidence.reference is not None else 0.0
        value = evidence.candidate - reference
        low, high = evidence.low, evidence.high
        if lower_is_better:
            low, high, value = -high, -low, -value
        if gate.minimum_gain is not None:
            threshold = gate.minimum_gain
        else:
            threshold = -_allowed_regression(gate.maximum_regression or "0", reference)
    # A gain of nothing is no gain: otherwise an adapter that learned nothing would beat a baseline that knows nothing.
    verdict = _judge(low, high, threshold, tie_passes=gate.minimum_gain != 0)
    rows = _rows_to_decide(evidence.rows, low, high, value, threshold) if verdict == "Inconclusive" else None
    against = f" against {evidence.reference:.3g} ({evidence.reference_name})" if evidence.reference is not None else ""
    message = f"{evidence.candidate:.3g}{against}, 90 % interval {evidence.low:.3g} to {evidence.high:.3g}"
    if rows:
        message += f"; about {rows} test rows would decide"
    return GateResult(
        gate=text,
        verdict=verdict,
        candidate=evidence.candidate,
        reference=evidence.reference,
        low=evidence.low,
        high=evidence.high,
        rows_to_decide=rows,
        message=message,
    )


def judge(gates: Sequence[Gate], evidence: Sequence[Comparison]) -> list[GateResult]:
    """Verdicts in the order of the gates. A gate without evidence is inconclusive, never passed."""
    results = [judge_gate(gate, comparison) for gate, comparison in zip(gates, evidence, strict=False)]
    missing = [
        GateResult(gate=gate.in_words(), verdict="Inconclusive", message="the evaluation reported no evidence")
        for gate in gates[len(evidence) :]
    ]
    return results + missing


def overall(results: Sequence[GateResult]) -> Verdict:
    """All gates together: one failure fails, one doubt leaves it open."""
    verdicts = {result.verdict for result in results}
    if "Failed" in verdicts:
        return "Failed"
    return "Inconclusive" if "Inconclusive" in verdicts else "Passed"
