"""Metrics against tables, scikit-learn and rouge-score."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune_api.job.evaluation import Evaluation, MetricName
from finetune_runner.evaluation.labels import label_of
from finetune_runner.evaluation.metrics import Settings, all_metrics, metric
from finetune_runner.evaluation.metrics.f1 import classes_of, per_class
from finetune_runner.evaluation.outcomes import Outcome


def value(name: str, pairs: list[tuple[str, str]], settings: Settings | None = None, truncated: bool = False) -> float:
    outcomes = [Outcome(str(i), expected, text=text, truncated=truncated) for i, (expected, text) in enumerate(pairs)]
    settings = settings or Settings()
    return float(metric(name).value(metric(name).rows(outcomes, settings).sum(axis=0), settings))


def test_every_metric_of_the_contract_is_found() -> None:
    assert set(all_metrics()) == set(MetricName.__args__)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("expected", "text", "matches"),
    [
        ("yes", " yes\n", 1),
        ("yes", "Yes", 0),
        ('{"a": 1, "b": 2}', '{"b":2,"a":1}', 1),
        ('{"a": 1}', '{"a": 1} and more', 0),
        ('{"a": 1}', "", 0),
        ("12", "12.0", 1),
    ],
)  # fmt: skip
def test_exact_match(expected: str, text: str, matches: int) -> None:
    assert value("exactMatch", [(expected, text)]) == matches


@pytest.mark.parametrize(
    ("text", "path", "label"),
    [
        ('{"category": "billing"}', "$.category", "billing"),
        ('Sure! ```json\n{"category": "billing"}\n```', "$.category", "billing"),
        ('{"a": {"b": " x "}}', "$.a.b", "x"),
        ('{"category": 3}', "$.category", "3"),
        ('{"category": null}', "$.category", None),
        ('{"other": "billing"}', "$.category", None),
        ("{broken", "$.category", None),
        ("{" * 5000, "$.category", None),
        ("billing\n", None, "billing"),
        ("  ", None, None),
    ],
)  # fmt: skip
def test_the_label_of_an_answer(text: str, path: str | None, label: str | None) -> None:
    assert label_of(text, path) == label


@given(
    st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcdx")), min_size=1, max_size=60),
    st.sampled_from(["macro", "micro"]),
)
def test_f1_equals_scikit_learn(pairs: list[tuple[str, str]], average: str) -> None:
    from sklearn.metrics import f1_score

    classes = classes_of([true for true, _ in pairs], None)
    settings = Settings(classes=classes, average=average)  # type: ignore[arg-type]
    true, said = zip(*pairs, strict=True)
    oracle = f1_score(true, said, labels=list(classes), average=average, zero_division=np.nan)
    assert value("f1", pairs, settings) == pytest.approx(oracle, abs=1e-12)
    outcomes = [Outcome(str(i), t, text=s) for i, (t, s) in enumerate(pairs)]
    each = per_class(metric("f1").rows(outcomes, settings).sum(axis=0), settings)
    assert each == pytest.approx(f1_score(true, said, labels=list(classes), average=None), abs=1e-12)


def test_an_invented_label_is_a_miss_and_no_class() -> None:
    settings = Settings(classes=("a", "b"))
    assert value("f1", [("a", "a"), ("b", "zzz"), ("b", "b")], settings) == pytest.approx((1 + 2 / 3) / 2)


@pytest.mark.parametrize(
    ("text", "valid"),
    [('{"n": 1}', 1), ('{"n": "1"}', 0), ("{}", 0), ("no json", 0), (' {"n": 2}\n', 1), ('{"n": 1} ok', 0)],
)
def test_schema_valid(text: str, valid: int) -> None:
    schema = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
    assert value("schemaValid", [("", text)], Settings(schema=schema)) == valid


WORDS = st.text(alphabet="ab1Ä .", max_size=24)
"""Texts of few letters: words come again, in another order; some have no word at all."""


@given(pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4))
@example(pairs=[("the cat sat on the mat", "the cat lay on a mat"), ("one two three", "three two one"), ("a b", "")])
def test_rouge_l_equals_rouge_score(pairs: list[tuple[str, str]]) -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    oracle = np.mean([scorer.score(expected, text)["rougeL"].fmeasure for expected, text in pairs])
    assert value("rougeL", pairs) == pytest.approx(oracle)


def test_loss_weighs_tokens_not_rows() -> None:
    outcomes = [Outcome("a", "", nll=10.0, tokens=1), Outcome("b", "", nll=9.0, tokens=9)]
    terms = metric("loss").rows(outcomes, Settings())
    assert metric("loss").value(terms.sum(axis=0), Settings()) == pytest.approx(1.9)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("a b c", 0.0), ("a b c d", 0.0), ("a b c d a b c d", 1 / 5), ("x " * 8, 4 / 5)],
)
def test_repetition_rate_is_the_share_of_repeated_four_grams(text: str, rate: float) -> None:
    assert value("repetitionRate", [("", text)]) == pytest.approx(rate)


def test_truncation_rate_counts_cut_answers() -> None:
    assert value("truncationRate", [("", "x")], truncated=True) == 1.0


def test_settings_come_from_the_job() -> None:
    evaluation = Evaluation.from_wire(
        {
            "task": {"type": "classification", "labelPath": "$.c", "schema": {"type": "object"}},
            "metrics": [{"name": "f1", "average": "micro"}],
        }
    )
    assert Settings.of(evaluation, ["a"]) == Settings("$.c", {"type": "object"}, "micro", ("a",))
    assert json.loads(json.dumps(Settings.of(evaluation).schema)) == {"type": "object"}
