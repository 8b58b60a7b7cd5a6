"""What `finetune validate` says of data, end to end: sources of a job in, problems and findings out, no model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.finetunejob import FineTuneJob
from finetune_api.stages import Finding
from finetune_runner.check_data import DataReport, check
from finetune_runner.command_context import command_context
from tests.runner.stores import exchange, lines, varied

KTO = {"objective": "kto", "type": "lora"}


class Check:
    """Files in a folder, and a job over them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def write(self, name: str, content: bytes) -> dict[str, str]:
        (self.folder / name).write_bytes(content)
        return {"source": f"file://{self.folder}/{name}"}

    def __call__(self, data: dict[str, Any], **spec: Any) -> DataReport:
        job = FineTuneJob.from_wire(
            {
                "apiVersion": "finetune.dev/v1alpha1",
                "kind": "FineTuneJob",
                "metadata": {"name": "job"},
                "spec": {
                    "model": {"source": "hf://a/b"},
                    "output": {"adapterRef": {"name": "x"}},
                    "data": data,
                    **spec,
                },
            }
        )
        return check(job, command_context(job.spec, self.folder / "scratch", namespace="n", name="job"))


@pytest.fixture
def checked(tmp_path: Path) -> Check:
    return Check(tmp_path)


def findings(report: DataReport, name: str) -> list[Finding]:
    return [finding for finding in report.findings if finding.check == name]


def without_answers(empty: object, every: int = 10) -> bytes:
    return lines(*({**row, "completion": empty} if n % every == 0 else row for n, row in enumerate(varied(200))))


@pytest.mark.parametrize("empty", ["", " \n", None])
def test_answers_without_text_are_dropped_where_the_spec_says_so(checked: Check, empty: object) -> None:
    train = checked.write("a.jsonl", without_answers(empty))
    report = checked({"train": [train], "checks": {"emptyAnswers": "drop"}})
    assert report.problems == []
    (finding,) = findings(report, "emptyAnswers")
    assert (finding.severity, finding.rows) == ("info", 20)
    assert "20 answers without any text, dropped: a.jsonl line 1, a.jsonl line 11" in finding.message
    assert sum(report.rows.values()) == 180


@pytest.mark.parametrize("setting", ["ignore", "warn", "fail"])
def test_answers_without_text_end_the_job_otherwise(checked: Check, setting: str) -> None:
    train = checked.write("a.jsonl", without_answers(""))
    (problem,) = checked({"train": [train], "checks": {"emptyAnswers": setting}}).problems
    assert problem.exit_code == ExitCode.INVALID_DATA
    assert "20 rows cannot be used: a.jsonl line 1: `completion` is empty" in problem.message
    assert "data.checks.emptyAnswers: drop" in problem.hint


def test_a_set_without_any_answer_is_not_dropped_in_silence(checked: Check) -> None:
    train = checked.write("a.jsonl", without_answers("", every=1))
    (problem,) = checked({"train": [train], "checks": {"emptyAnswers": "drop"}}).problems
    assert "data.checks.emptyAnswers dropped every row: 200 answers have no text" in problem.message


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": None}]}, "chat"),
        ({"instruction": "Add", "output": ""}, "alpaca"),
    ],
)
def test_answers_without_text_are_dropped_in_every_format(checked: Check, row: dict[str, Any], what: str) -> None:
    full = {"instruction": "Add", "output": "2"}
    if what == "chat":
        full = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}  # type: ignore[dict-item]
    train = checked.write("a.jsonl", lines(full, full, row))
    report = checked({"train": [train], "checks": {"emptyAnswers": "drop", "minimumRows": 1}})
    assert [finding.rows for finding in findings(report, "emptyAnswers")] == [1]


QUESTIONS = [{"question": row["prompt"], "answer": row["completion"]} for row in varied(200)]
OTHERS = [{"question": row["prompt"], "answer": row["completion"]} for row in varied(40, start=300)]
MAPPED = {"columns": {"prompt": "question", "completion": "answer"}}


@pytest.mark.parametrize("held_out", ["test", "validation"])
@pytest.mark.parametrize("content", [lines(*OTHERS), lines(*varied(40, start=300))], ids=["mapped", "usual names"])
def test_held_out_files_may_have_the_columns_of_train(checked: Check, held_out: str, content: bytes) -> None:
    train = checked.write("a.jsonl", lines(*QUESTIONS)) | MAPPED
    report = checked({"train": [train], held_out: checked.write("t.jsonl", content)})
    assert report.problems == []
    assert report.rows[held_out] == 40


def test_columns_that_differ_within_train_are_those_of_no_held_out_file(checked: Check) -> None:
    train = [checked.write("a.jsonl", lines(*QUESTIONS)) | MAPPED, checked.write("b.jsonl", lines(*varied(9, 900)))]
    (problem,) = checked({"train": train, "test": checked.write("t.jsonl", lines(*OTHERS))}).problems
    assert problem.field == "data.test"
    assert "has columns question, answer" in problem.message
    assert "as in data.train" in problem.hint
    assert "columns:" not in problem.hint  # data.test has no such field


JUDGEMENTS: list[tuple[object, object]] = [
    (True, False), (1, 0), (1.0, 0.0), ("true", "false"), ("True", "False"), ("1", "0"),
]  # fmt: skip


def judged(wanted: object, unwanted: object) -> bytes:
    return lines(*({**row, "label": wanted if n % 3 else unwanted} for n, row in enumerate(varied(300))))


@pytest.mark.parametrize(("wanted", "unwanted"), JUDGEMENTS)
def test_kto_reads_a_label_in_whatever_way_it_says_true_or_false(
    checked: Check, wanted: object, unwanted: object
) -> None:
    report = checked({"train": [checked.write("a.jsonl", judged(wanted, unwanted))]}, method=KTO)
    assert report.problems == []
    assert report.formats == {"data.train[0]": "preference"}
    assert [finding.rows for finding in findings(report, "unwanted")] != [0]


def test_a_label_that_is_neither_is_named(checked: Check) -> None:
    (problem,) = checked({"train": [checked.write("a.jsonl", judged("upvote", "downvote"))]}, method=KTO).problems
    assert "`label` is 'downvote', neither true nor false" in problem.message
    (problem,) = checked({"train": [checked.write("a.jsonl", judged(1, -1))]}, method=KTO).problems
    assert "`label` is -1, neither true nor false" in problem.message


def test_a_label_of_another_objective_is_a_class(checked: Check) -> None:
    report = checked({"train": [checked.write("a.jsonl", judged(1, 0))]})
    assert report.problems == []
    assert report.formats == {"data.train[0]": "promptCompletion"}


@pytest.mark.parametrize(
    ("objective", "rows", "says", "fix"),
    [
        ("sft", [{**row, "label": True} for row in varied(60)], "judged true or false", "objective: dpo"),
        ("dpo", varied(60), "one answer and no judgement", "prompt, chosen and rejected"),
        ("dpo", [{**row, "label": True} for row in varied(60)], "judged true or false", "prompt, chosen and rejected"),
        ("kto", varied(60), "one answer and no judgement", "prompt, completion and label"),
        (
            "sft",
            [{"prompt": row["prompt"], "chosen": "yes", "rejected": "no"} for row in varied(60)],
            "a better and a worse answer",
            "objective: dpo",
        ),
    ],
)
def test_rows_for_another_objective_are_named_with_the_fix(
    checked: Check, objective: str, rows: list[dict[str, Any]], says: str, fix: str
) -> None:
    (problem,) = checked(
        {"train": [checked.write("a.jsonl", lines(*rows))]}, method={"objective": objective, "type": "lora"}
    ).problems
    assert f"method.objective {objective} does not learn from rows with" in problem.message
    assert says in problem.message
    assert "60 rows: a.jsonl line 1" in problem.message
    assert fix in problem.hint


def test_answers_that_differ_in_white_space_prefer_nothing(checked: Check) -> None:
    rows = [{"prompt": row["prompt"], "chosen": "yes", "rejected": "yes \n"} for row in varied(60)]
    (problem,) = checked(
        {"train": [checked.write("a.jsonl", lines(*rows))]}, method={"objective": "dpo", "type": "lora"}
    ).problems
    assert "60 rows cannot be used: a.jsonl line 1: `chosen` and `rejected` are the same" in problem.message
    indented = [{"prompt": row["prompt"], "chosen": "if x:\n  y", "rejected": "if x:\ny"} for row in varied(60)]
    report = checked(
        {"train": [checked.write("b.jsonl", lines(*indented))]}, method={"objective": "dpo", "type": "lora"}
    )
    assert "same" not in str(report.problems)


def test_a_row_of_the_usual_layout_is_unchanged(checked: Check) -> None:
    report = checked({"train": [checked.write("a.jsonl", lines(*varied(200), exchange("one more", "x")))]})
    assert report.problems == []
    assert sum(report.rows.values()) == 201


def test_labels_of_tables_with_gaps_are_labels(checked: Check) -> None:
    rows = [{**row, "votes": [1.0, None, 1, 2.5]} for row in varied(60)]
    report = checked({"train": [checked.write("a.jsonl", lines(*rows)) | {"columns": {"annotations": "votes"}}]})
    assert "people disagree on 60" in findings(report, "agreement")[0].message
