"""Numbers of systems side by side: metrics with intervals, and the evidence for each gate."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from finetune_api.job.evaluation import ALWAYS_MEASURED, LOWER_IS_BETTER, Evaluation, Gate
from finetune_api.stages import Comparison
from finetune_runner.evaluation.bootstrap import Interval, interval, paired_difference
from finetune_runner.evaluation.metrics import Metric, Settings, metric
from finetune_runner.evaluation.metrics.base import Array
from finetune_runner.evaluation.outcomes import Outcome, answered, scored

OUT_OF_DOMAIN_LOSS = "outOfDomainLoss"


@dataclass(frozen=True)
class System:
    """One system's outcomes on test and on out-of-domain rows, in the order of the splits."""

    name: str
    test: Sequence[Outcome]
    out_of_domain: Sequence[Outcome] = field(default_factory=tuple)


def measured_names(evaluation: Evaluation, gates: Sequence[Gate] = ()) -> list[str]:
    """Names of all metrics of a job, the primary one first."""
    names: list[str] = [m.name for m in evaluation.metrics]
    names += [gate.metric for gate in gates if gate.metric != OUT_OF_DOMAIN_LOSS]
    names += sorted(ALWAYS_MEASURED)
    return list(dict.fromkeys(names))


def terms_of(name: str, system: System, settings: Settings) -> tuple[Metric, Array] | None:
    """The metric and its terms per row, or None when the system has no such outcomes."""
    measure = metric("loss" if name == OUT_OF_DOMAIN_LOSS else name)
    outcomes = system.out_of_domain if name == OUT_OF_DOMAIN_LOSS else system.test
    if not (scored(outcomes) if measure.needs == "likelihoods" else answered(outcomes)):
        return None
    terms = measure.rows(outcomes, settings)
    return None if math.isnan(float(measure.value(terms.sum(axis=0), settings))) else (measure, terms)


def intervals_of(system: System, names: Iterable[str], settings: Settings) -> dict[str, Interval]:
    """Every metric the system has, with its interval."""
    found = {name: terms_of(name, system, settings) for name in names}
    return {name: interval(*known, settings) for name, known in found.items() if known is not None}


def values_of(system: System, names: Iterable[str], settings: Settings) -> dict[str, float]:
    """Every metric the system has."""
    found = {name: terms_of(name, system, settings) for name in names}
    return {
        name: float(known[0].value(known[1].sum(axis=0), settings))
        for name, known in found.items()
        if known is not None
    }


def best_baseline(values: Mapping[str, Mapping[str, float]], name: str) -> str:
    """The baseline with the best value of a metric; empty when none has it. Of equals the first."""
    having = [baseline for baseline, metrics in values.items() if name in metrics]
    if not having:
        return ""
    sign = -1 if name in LOWER_IS_BETTER else 1
    return max(having, key=lambda baseline: sign * values[baseline][name])


@dataclass(frozen=True)
class Field:
    """What a candidate is compared with."""

    candidate: System
    baselines: Mapping[str, System]
    best: str
    """Name of the baseline with the best primary metric; gates on a metric it lacks use the best that has it."""
    base: System
    incumbent: System | None = None

    def reference(self, gate: Gate, settings: Settings) -> System | None:
        """The system a comparing gate names."""
        if gate.over == "base":
            return self.base
        if gate.over == "incumbent":
            return self.incumbent
        best = self.baselines.get(self.best)
        if best is not None and terms_of(gate.metric, best, settings) is not None:
            return best
        values = {name: values_of(system, [gate.metric], settings) for name, system in self.baselines.items()}
        return self.baselines.get(best_baseline(values, gate.metric))


def compare(gate: Gate, systems: Field, settings: Settings) -> Comparison:
    """The evidence for one gate.

    Without `over` (or without anything to compare with) `low` and `high` are the interval of the candidate's metric;
    with it they are that of candidate - reference in the metric's own unit and direction, paired over the test rows: a
    better f1 is a positive difference, a better loss a negative one.

    Raises:
        KeyError: the candidate has no such metric.
    """
    known = terms_of(gate.metric, systems.candidate, settings)
    if known is None:
        raise KeyError(gate.metric)
    measure, terms = known
    reference = systems.reference(gate, settings) if gate.over is not None else None
    other = terms_of(gate.metric, reference, settings) if reference is not None else None
    own = interval(measure, terms, settings)
    if reference is None or other is None:
        return Comparison(candidate=own.value, low=own.low, high=own.high, rows=len(terms))
    difference = paired_difference(measure, terms, other[1], settings)
    return Comparison(
        candidate=own.value,
        reference=float(measure.value(other[1].sum(axis=0), settings)),
        reference_name=reference.name,
        low=difference.low,
        high=difference.high,
        rows=len(terms),
    )
