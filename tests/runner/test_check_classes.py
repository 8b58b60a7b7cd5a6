"""Checks of classes and of the breadth of a task: size, balance, agreement, edge cases."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.job.evaluation import Task
from finetune_api.wording import counted
from finetune_runner.data.checks import (
    agreement,
    answers,
    balance,
    edge_cases,
    size,
)
from finetune_runner.data.checks.edge_cases import USUAL_SHARE, chance_of_so_few
from finetune_runner.data.labels import label_of
from finetune_runner.errors import StageError
from tests.runner.check_rows import CLASSIFICATION, GOOD, row, rows, run, said, spec, warned


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
        (["a"] * 81 + ["b"] * 19, "class of pool row 1 is 81 % of all rows"),
        (["a"] * 80 + ["b"] * 20, None),
        (["a"] * 40 + ["b"] * 40 + ["c"] * 9, "fewer than 10 rows: class of pool row 81"),
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


SECRET = "Dear Jane Smith of 12 Main Street, your card 4111 1111 1111 1111 was refunded. " * 9


@pytest.mark.parametrize(
    "labels",
    [
        ["jane@example.com"] * 40 + ["joe@example.com"] * 5,
        [SECRET] * 40 + ["other"] * 40,
        [SECRET] * 40,
        [SECRET] * 40 + [f"{SECRET} "[:-1].upper()] * 40,
        [f"{SECRET}{n}" for n in range(60)],
    ],
    ids=["addresses", "a whole answer", "one class", "two spellings", "free text"],
)
@pytest.mark.parametrize("setting", ["warn", "fail"])
def test_labels_of_the_data_are_never_quoted(labels: list[str], setting: str) -> None:
    try:
        remarks, _ = run(balance, {"pool": rows(*labels)}, spec({"balance": setting}, evaluation=CLASSIFICATION))
    except StageError as error:
        told = f"{error.message} {error.hint} {error.evidence}"
    else:
        told = str(remarks)
    assert "pool row" in told or "look like free text" in told
    for word in ("jane", "joe", "Jane", "JANE", "4111", "Main Street"):
        assert word not in told


@pytest.mark.parametrize(
    "parts",
    [
        {"task": {"type": "classification", "schema": {"enum": ["billing", "access"]}}},
        {"task": {"type": "classification"}, "baselinePrompt": "Answer with billing or access."},
    ],
)
def test_labels_that_the_job_itself_writes_are_named(parts: dict[str, Any]) -> None:
    remarks, _ = run(balance, {"pool": rows(*["billing"] * 30, *["access"] * 20)}, spec(evaluation=parts))
    assert remarks[0].message == "classes: billing 30, access 20"


def test_labels_within_json_are_named_where_the_schema_lists_them() -> None:
    properties = {"kind": {"type": "object", "properties": {"name": {"enum": ["a", 2]}}}}
    task = {
        "type": "classification",
        "labelPath": "$.kind.name",
        "schema": {"type": "object", "properties": properties},
    }
    pool = rows(*['{"kind": {"name": "a"}}'] * 10, *['{"kind": {"name": 2}}'] * 10)
    remarks, _ = run(balance, {"pool": pool}, spec(evaluation={"task": task}))
    assert remarks[0].message == "classes: a 10, 2 10"


@pytest.mark.parametrize(
    ("labels", "pairs", "count"),
    [
        (["billing"] * 30 + ["Billing"] * 12 + ["access"] * 30, 1, 12),
        (["billing"] * 30 + ["billing."] * 12 + ["BILLING"] * 11, 2, 23),
        (["on  hold"] * 30 + ["on hold"] * 12, 1, 12),
        (["C"] * 30 + ["C++"] * 30 + ["C#"] * 30, 0, 0),
        (["-1"] * 30 + ["1"] * 30, 0, 0),
        (["on hold"] * 30 + ["onhold"] * 30, 0, 0),
    ],
)
def test_one_class_in_two_spellings_is_told(labels: list[str], pairs: int, count: int) -> None:
    content = {"pool": rows(*labels)}
    remarks, _ = run(balance, content, spec(evaluation=CLASSIFICATION))
    alike = [remark for remark in remarks if "spelled like another" in remark.message]
    assert [remark.rows for remark in alike] == ([count] if pairs else [])
    if pairs:
        assert alike[0].severity == "warning"
        assert alike[0].message.startswith(counted(pairs, f"[class|classes] ({count} rows)"))
        with pytest.raises(StageError, match="spelled like another"):
            run(balance, content, spec({"balance": "fail"}, evaluation=CLASSIFICATION))


def test_free_text_is_not_counted_as_classes() -> None:
    (remark,), _ = run(size, {"train": rows(*(f"answer {n}" for n in range(150)))}, spec(evaluation=CLASSIFICATION))
    assert "500 are wanted" in remark.message


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


@pytest.mark.parametrize(
    ("one", "other", "differ"), [("x ", "x", 0), ("X", "x", 0), ("x  y", "x y", 0), ("x", "y", 20)]
)
def test_people_agree_whatever_case_and_white_space(one: str, other: str, differ: int) -> None:
    pool = [row(f"q{n}", "a", annotations=("z", "z") if n % 2 else (one, other)) for n in range(40)]
    (remark,), _ = run(agreement, {"pool": pool}, spec())
    assert f"people disagree on {differ}" in remark.message


@pytest.mark.parametrize(
    ("usual", "unusual", "severity"),
    [
        (60, 0, "info"), (200, 0, "info"), (427, 0, "info"), (428, 0, "warning"), (427, 1, "info"),
        (997, 3, "info"), (998, 2, "warning"), (500, 40, "info"),
    ],
)  # fmt: skip
def test_edge_cases_that_are_missing_are_told_where_chance_does_not_explain_it(
    usual: int, unusual: int, severity: str
) -> None:
    pool = [row("x" * (80 + n % 40) + f"{n:03}", "a") for n in range(usual)]
    pool += [row(("x" if n % 2 else "x" * 9000) + f"{n}", "a") for n in range(unusual)]
    (remark,), _ = run(edge_cases, {"pool": pool}, spec())
    assert f"{unusual} of {usual + unusual} rows" in remark.message
    assert remark.severity == severity
    if severity == "warning":
        with pytest.raises(StageError, match=f"{unusual} of {usual + unusual} rows"):
            run(edge_cases, {"pool": pool}, spec({"edgeCases": "fail"}))


@pytest.mark.parametrize(("found", "rows"), [(0, 100), (0, 428), (2, 1000), (3, 1000), (20, 5000), (6800, 1_000_000)])
def test_the_chance_of_so_few_edge_cases_is_the_binomial_distribution(found: int, rows: int) -> None:
    from scipy.stats import binom

    assert chance_of_so_few(found, rows) == pytest.approx(binom.cdf(found, rows, USUAL_SHARE), rel=1e-6)
    assert chance_of_so_few(rows, rows) == 1


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
            assert list(remarks[0].facts["classes"].values()) == [10, 10, 1]
