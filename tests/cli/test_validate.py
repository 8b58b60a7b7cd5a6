from __future__ import annotations

import json

import pytest

from tests.cli.conftest import JOB, Workspace


def test_all_problems_at_once_with_line_and_fix(workspace: Workspace) -> None:
    workspace.write(JOB.replace("learningRate", "learningrate").replace("{type: classification}", "{type: sorting}"))
    result = workspace.cli("validate", "job.yaml")

    assert result.returncode == 2
    assert "job.yaml:9: spec.training.learningrate" in result.stdout
    assert "did you mean learningRate" in result.stdout
    assert "job.yaml:11: spec.evaluation.task.type is " in result.stdout
    assert "2 problems" in result.stdout


def test_good_yaml_and_good_rows(workspace: Workspace) -> None:
    rows = [{"prompt": f"ticket {n} {n * 7919} about x", "completion": "ab"[n % 2]} for n in range(300)]
    (workspace.folder / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = workspace.cli("validate", "job.yaml", "-o", "json")

    assert result.returncode == 0, result.stdout + result.stderr
    value = json.loads(result.stdout)
    assert value["valid"] is True
    assert value["data"]["formats"] == {"data.train[0]": "promptCompletion"}
    assert sum(value["data"]["rows"].values()) == 300


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no rows"),
        (b'{"prompt": "a", "completion": "b"}\n{"prompt": "a"}\n', "line 2"),
        (b'{"prompt": "a", "completion": "\xff"}\n', "not UTF-8"),
        (b"not json\n", "line 1"),
    ],
)
def test_bad_rows_are_named(workspace: Workspace, content: bytes, said: str) -> None:
    (workspace.folder / "mine.jsonl").write_bytes(content)
    result = workspace.cli("validate", "job.yaml", "--data", "mine.jsonl")

    assert result.returncode == 2, result.stdout
    assert said in result.stdout
    assert "fix: " in result.stdout
    assert "Traceback" not in result.stderr


def test_missing_data_file(workspace: Workspace) -> None:
    result = workspace.cli("validate", "job.yaml", "--data", "nowhere.jsonl")

    assert result.returncode == 2
    assert "there is no" in result.stdout


@pytest.mark.parametrize(("file", "said"), [("nowhere.yaml", "there is no file"), ("latin.yaml", "latin.yaml:2: byte")])
def test_file_that_cannot_be_read(workspace: Workspace, file: str, said: str) -> None:
    (workspace.folder / "latin.yaml").write_bytes(b"a: b\nc: \xe9\n")
    result = workspace.cli("validate", file)

    assert result.returncode == 2
    assert said in result.stderr
