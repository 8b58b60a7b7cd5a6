"""What an API server that refuses, or does not answer, comes to mean: a sentence, a line of the file, a pause."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetune_api.yaml_document import read_documents
from finetune_cli.cluster.follow import Patience
from finetune_cli.cluster.refusals import Refusal, explain, refusal_of
from finetune_cli.cluster.refused_fields import parse_field, problems_of
from finetune_cli.cluster.resources import ADAPTER_VERSIONS, FINETUNE_JOBS, JOBS


@pytest.mark.parametrize(
    ("code", "status", "verb", "resource", "said", "fix"),
    [
        (
            0,
            {"message": "Connection refused"},
            "get",
            FINETUNE_JOBS,
            "https://api does not answer: Connection refused",
            "--context",
        ),
        (401, {}, "get", FINETUNE_JOBS, "does not accept your credentials", "log in"),
        (
            404,
            {"details": {"kind": "finetunejobs", "name": "x"}},
            "get",
            FINETUNE_JOBS,
            "there is no FineTuneJob x",
            "list",
        ),
        (
            404,
            {"message": "page not found"},
            "get",
            FINETUNE_JOBS,
            "the CRDs are not installed",
            "Install the operator",
        ),
        (503, {"message": "starting"}, "get", FINETUNE_JOBS, "cannot answer now (503)", "Try again"),
        (409, {"message": "changed"}, "patch", FINETUNE_JOBS, "was changed by somebody else", "repeat"),
        (
            403,
            {"message": 'adapterversions "x" is forbidden: User "ada" cannot patch resource'},
            "patch",
            ADAPTER_VERSIONS,
            "ada may not patch adapterversions.finetune.dev in namespace team-a",
            "--clusterrole=finetune-approver --user=ada",
        ),
        (
            403,
            {
                "message": "x is forbidden: ValidatingAdmissionPolicy 'finetune-adapterversions' with binding 'b' "
                "denied request: ada may not decide here"
            },
            "patch",
            ADAPTER_VERSIONS,
            "refused by admission policy: ada may not decide here",
            "",
        ),
        (
            422,
            {
                "message": "x is forbidden: ValidatingAdmissionPolicy 'finetune-pool-limits' denied request: failed to "
                "configure policy: failed to find resource referenced by paramKind"
            },
            "patch",
            FINETUNE_JOBS,
            "cannot judge FineTuneJob x yet: failed to configure policy",
            "kubectl get crd",
        ),
        (403, {"message": 'User "ada" cannot'}, "list", JOBS, "ada may not list jobs.batch", "Ask for it."),
    ],
)
def test_refusals_are_sentences_with_a_fix(
    code: int, status: dict[str, Any], verb: str, resource: Any, said: str, fix: str
) -> None:
    refusal = refusal_of(code, json.dumps(status).encode())
    error = explain(refusal, verb, resource, "team-a", "x", "https://api")
    assert said in error.message
    assert fix in error.fix


def test_an_answer_that_is_no_status_is_its_own_message() -> None:
    assert refusal_of(502, b"<html>Bad Gateway</html>").message == "<html>Bad Gateway</html>"


def test_problems_of_the_server_have_the_lines_of_the_file() -> None:
    [document] = read_documents(
        "kind: FineTuneJob\nspec:\n  data:\n    train:\n    - source: s3://x\n  training: {epochs: 2}\n"
    )
    causes = [
        {"field": "spec.training", "message": 'Invalid value: "object": spec.training cannot change; cancel it first'},
        {"field": "spec.data.train[0].source", "message": 'Invalid value: "x": is bad'},
    ]
    problems = problems_of(Refusal(422, "Invalid", "", {"causes": causes}), document)
    assert [(problem.line, problem.path) for problem in problems] == [
        (5, "spec.data.train[0].source"),
        (6, "spec.training"),
    ]
    assert problems[1].message == "is refused: spec.training cannot change"
    assert problems[1].fix == "cancel it first"
    assert parse_field("a.b[12].c") == ("a", "b", 12, "c")


def test_patience_waits_longer_each_time_speaks_once_and_ends() -> None:
    told: list[str] = []
    pauses: list[float] = []
    moment = 0.0

    def pause(seconds: float) -> None:
        nonlocal moment
        pauses.append(seconds)
        moment += seconds

    patience = Patience(told.append, clock=lambda: moment, pause=pause, limit_s=20)
    gone = Refusal(0, "", "refused")
    patience.trouble(gone)
    assert told == []
    while moment <= 20:
        patience.trouble(gone)
    with pytest.raises(Refusal):
        patience.trouble(gone)
    assert pauses[:4] == [0.25, 0.5, 1.0, 2.0]
    assert len(told) == 1
    patience.fine()
    assert told[1] == "the API server answers again"
    patience.trouble(Refusal(403, "Forbidden", "roles are not read yet"))
    with pytest.raises(Refusal):
        Patience(told.append, clock=lambda: moment, pause=pause).trouble(Refusal(403, "Forbidden", "never was allowed"))
