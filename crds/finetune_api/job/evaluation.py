"""spec.evaluation: the task, the metrics and the gates."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.common import JSONPath, SecretRef
from finetune_api.job.data import Format
from finetune_api.job.model import Source, source_rules

MetricName = Literal[
    "exactMatch",
    "f1",
    "schemaValid",
    "rougeL",
    "loss",
    "truncationRate",
    "repetitionRate",
]
GateMetric = Literal[
    "exactMatch",
    "f1",
    "schemaValid",
    "rougeL",
    "loss",
    "truncationRate",
    "repetitionRate",
    "outOfDomainLoss",
]
LOWER_IS_BETTER = frozenset({"loss", "outOfDomainLoss", "truncationRate", "repetitionRate"})
ALWAYS_MEASURED = frozenset({"loss", "truncationRate", "repetitionRate"})


class Task(Contract):
    """What the model is asked to do."""

    type: Annotated[
        Literal["classification", "extraction", "generation"],
        Field(
            description="`classification`: one label per answer (f1 is possible). `extraction`: a JSON object. "
            "`generation` (default): free text."
        ),
    ] = "generation"
    label_path: Annotated[
        JSONPath | None,
        Field(description="Where the label is in a JSON answer, for example `$.category`. Default: the whole answer."),
    ] = None
    schema_: Annotated[
        dict[str, Any] | None,
        Field(
            alias="schema",
            description="JSON Schema that every answer must satisfy; metric schemaValid counts the share that does.",
            json_schema_extra={"x-kubernetes-preserve-unknown-fields": True},
        ),
    ] = None

    RULES = (
        Rule(
            cel="!has(self.labelPath) || self.type == 'classification'",
            message="task.labelPath belongs to classification; set type: classification, or leave labelPath out",
            holds=lambda t: t.label_path is None or t.type == "classification",
            field_path="labelPath",
        ),
    )


class Metric(Contract):
    """One number measured on test."""

    name: Annotated[
        MetricName,
        Field(
            description="exactMatch, f1, schemaValid, rougeL, loss, truncationRate or repetitionRate. The first metric "
            "is the primary one. loss, truncationRate and repetitionRate are always measured."
        ),
    ]
    average: Annotated[
        Literal["macro", "micro"], Field(description="How f1 joins classes: `macro` (default) or `micro`. Only for f1.")
    ] = "macro"

    RULES = (
        Rule(
            cel="!has(self.average) || self.average == 'macro' || self.name == 'f1'",
            message="average belongs to metric f1; leave it out here",
            holds=lambda m: m.average == "macro" or m.name == "f1",
            field_path="average",
        ),
    )


class Gate(Contract):
    """A condition a version must meet to be released."""

    metric: Annotated[GateMetric, Field(description="A measured metric, or outOfDomainLoss.")]
    over: Annotated[
        Literal["baseline", "base", "incumbent"] | None,
        Field(
            description="Compare with: `baseline` (the best of prompted, few-shot and majority class), `base` (the "
            "untuned model, same prompt), `incumbent` (the version now released; passes when there is none)."
        ),
    ] = None
    minimum: Annotated[float | None, Field(description="Smallest value that passes.", ge=-1e9, le=1e9)] = None
    maximum: Annotated[float | None, Field(description="Largest value that passes.", ge=-1e9, le=1e9)] = None
    minimum_gain: Annotated[
        float | None,
        Field(
            description="Smallest improvement over `over`, in the metric's unit. 0 asks for any: a tie does not pass.",
            ge=0,
            le=1e9,
        ),
    ] = None
    maximum_regression: Annotated[
        str | None,
        Field(
            description='Largest worsening against `over`: a share such as "10%", or "0.02" in the metric\'s unit. '
            "Quote it.",
            max_length=16,
            pattern=r"^[0-9]+(\.[0-9]+)?%?$",
        ),
    ] = None

    RULES = (
        Rule(
            cel="[has(self.minimum), has(self.maximum), has(self.minimumGain), has(self.maximumRegression)]"
            ".filter(x, x).size() == 1",
            message="a gate has exactly one of minimum, maximum, minimumGain, maximumRegression; keep one per gate",
            holds=lambda g: (
                sum(x is not None for x in (g.minimum, g.maximum, g.minimum_gain, g.maximum_regression)) == 1
            ),
        ),
        Rule(
            cel="has(self.over) == (has(self.minimumGain) || has(self.maximumRegression))",
            message="minimumGain and maximumRegression are relative, minimum and maximum are not; set `over` "
            "(baseline, base or incumbent) for the former only",
            holds=lambda g: (g.over is not None) == (g.minimum_gain is not None or g.maximum_regression is not None),
            field_path="over",
        ),
    )

    def in_words(self) -> str:
        """As status, report and trackers write it, for example `f1 >= baseline + 0.05`."""
        if self.minimum is not None:
            return f"{self.metric} >= {self.minimum:g}"
        if self.maximum is not None:
            return f"{self.metric} <= {self.maximum:g}"
        lower = self.metric in LOWER_IS_BETTER
        if self.minimum_gain == 0:
            return f"{self.metric} {'<' if lower else '>'} {self.over}"
        sign, side = ("<=", "-") if lower else (">=", "+")
        if self.minimum_gain is not None:
            return f"{self.metric} {sign} {self.over} {side} {self.minimum_gain:g}"
        return f"{self.metric} {sign} {self.over} {'+' if lower else '-'} {self.maximum_regression}"


class OutOfDomain(Contract):
    """General text on which the adapter must not get much worse."""

    source: Annotated[Source, Field(description="Where the rows are; see data.train[].source.")]
    format: Annotated[Format, Field(description="Layout of a row; see data.train[].format.")] = "auto"
    secret_ref: Annotated[SecretRef | None, Field(description="Secret to read this source with.")] = None

    RULES = (*source_rules(),)


class Generation(Contract):
    """How answers are chosen from the model's probabilities, for everything that is compared."""

    temperature: Annotated[
        float,
        Field(
            description="0 (default) is greedy: always the likeliest token, so that a repeat gives the same answers. "
            "Above it answers are sampled from training.seed. Range 0-2.",
            ge=0,
            le=2,
        ),
    ] = 0.0
    top_p: Annotated[
        float,
        Field(
            description="Sample from the likeliest tokens that have this probability together. 0.01-1, default 1.",
            ge=0.01,
            le=1,
        ),
    ] = 1.0

    RULES = (
        Rule(
            cel="self.topP == 1.0 || self.temperature > 0.0",
            message="generation.topP has no meaning for greedy answers; set temperature above 0, or leave topP out",
            holds=lambda g: g.top_p == 1 or g.temperature > 0,
            field_path="topP",
        ),
    )


class HumanReview(Contract):
    """Samples for people."""

    samples: Annotated[
        int,
        Field(
            description="Test rows shown side by side (baseline, tuned, expected) in the report. 0-1000, default 20.",
            ge=0,
            le=1000,
        ),
    ] = 20


class Evaluation(Contract):
    """How the result is judged."""

    task: Annotated[Task, Field(description="What the model is asked to do.")] = Task()
    baseline_prompt: Annotated[
        str | None,
        Field(
            description="System prompt given to the untuned model, your best effort without tuning. Default: the "
            "rows' own prompt alone.",
            min_length=1,
            max_length=8192,
        ),
    ] = None
    few_shot: Annotated[
        int,
        Field(
            description="Examples from train shown to the few-shot baseline; 0 leaves it out. Default 4.", ge=0, le=32
        ),
    ] = 4
    max_new_tokens: Annotated[
        int, Field(description="Longest generated answer in tokens. Range 1-8192, default 256.", ge=1, le=8192)
    ] = 256
    generation: Annotated[Generation, Field(description="How answers are chosen. Default: greedy.")] = Generation()
    engine: Annotated[
        Literal["transformers", "vllm"],
        Field(
            description="What answers and scores, the same for everything that is compared. `transformers` (default). "
            "`vllm` is faster on a GPU and needs a runner image with vllm."
        ),
    ] = "transformers"
    metrics: Annotated[
        list[Metric],
        Field(
            description="What is measured; the first is primary. Default: loss.",
            min_length=1,
            max_length=8,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"]},
        ),
    ] = [Metric(name="loss")]  # noqa: RUF012
    out_of_domain: Annotated[OutOfDomain | None, Field(description="General text to watch forgetting on.")] = None
    gates: Annotated[
        list[Gate] | None,
        Field(
            description="What a version must meet. Default: the primary metric beats the baseline, is not worse than "
            "the incumbent, and schema validity, truncation, repetition and out-of-domain loss are not worse. "
            "Gates of the Adapter's policy are added, never weakened.",
            max_length=16,
        ),
    ] = None
    stop_when_baseline_suffices: Annotated[
        bool,
        Field(
            description="End after the baseline, without training, when it already passes every gate that does not "
            "compare. Default false."
        ),
    ] = False
    human_review: Annotated[HumanReview, Field(description="Samples for people.")] = HumanReview()

    RULES = (
        Rule(
            cel="!self.metrics.exists(m, m.name == 'f1') || self.task.type == 'classification'",
            message="metric f1 needs classes; set evaluation.task.type: classification, or use another metric",
            holds=lambda e: e.task.type == "classification" or all(m.name != "f1" for m in e.metrics),
            field_path="metrics",
        ),
        Rule(
            cel="!self.metrics.exists(m, m.name == 'schemaValid') || has(self.task.schema)",
            message="metric schemaValid needs a schema; set evaluation.task.schema to a JSON Schema of the answer",
            holds=lambda e: e.task.schema_ is not None or all(m.name != "schemaValid" for m in e.metrics),
            field_path="metrics",
        ),
        Rule(
            cel="!has(self.gates) || self.gates.all(g, g.metric in ['loss', 'truncationRate', 'repetitionRate', "
            "'outOfDomainLoss'] || self.metrics.exists(m, m.name == g.metric))",
            message="a gate names a metric that is not measured; add it to evaluation.metrics",
            holds=lambda e: all(
                g.metric in ALWAYS_MEASURED
                or g.metric == "outOfDomainLoss"
                or any(m.name == g.metric for m in e.metrics)
                for g in e.gates or []
            ),
            field_path="gates",
        ),
        Rule(
            cel="!has(self.gates) || has(self.outOfDomain) || !self.gates.exists(g, g.metric == 'outOfDomainLoss')",
            message="a gate on outOfDomainLoss needs general text; set evaluation.outOfDomain.source",
            holds=lambda e: e.out_of_domain is not None or all(g.metric != "outOfDomainLoss" for g in e.gates or []),
            field_path="gates",
        ),
        Rule(
            cel="!has(self.gates) || "
            "!self.gates.exists(g, g.metric == 'outOfDomainLoss' && has(g.over) && g.over == 'baseline')",
            message="outOfDomainLoss is compared over base or incumbent, not over baseline; use over: base",
            holds=lambda e: all(not (g.metric == "outOfDomainLoss" and g.over == "baseline") for g in e.gates or []),
            field_path="gates",
        ),
    )
