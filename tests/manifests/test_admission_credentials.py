"""A job names only service accounts and secrets that its author may use."""

from __future__ import annotations

from typing import Any

import pytest

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.waiting import wait_for
from tests.manifests.people import Person, grant, in_force, job


def secret(name: str) -> dict[str, Any]:
    return {"secretRef": {"name": name}}


def train(*names: str) -> dict[str, Any]:
    return {"train": [{"source": f"s3://team/{number}.jsonl", **secret(name)} for number, name in enumerate(names)]}


@pytest.fixture
def people(installed: Cluster, namespace: str) -> Cluster:
    """Ada is bound to the author's role alone and may use the secret `own`; Ed is an `edit` of the namespace."""
    installed.kubectl("create", "rolebinding", "ada", "--clusterrole=finetune-author", "--user=ada", "-n", namespace)
    installed.kubectl("create", "rolebinding", "ed", "--clusterrole=edit", "--user=ed", "-n", namespace)
    grant(installed, namespace, "ada", "use", "secrets", "own")
    in_force(installed, namespace, job(serviceAccountName="other"), "may not use ServiceAccount other", "ada")
    return installed


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    (
        "another account",
        {"serviceAccountName": "deployer"},
        "spec.serviceAccountName: ada may not use ServiceAccount deployer; name another one, or ask for a Role",
    ),
    (
        "the model's secret",
        {"model": {"source": "s3://models/x", **secret("theirs")}},
        "spec.model.secretRef.name: ada may not use Secret theirs; name another one, or ask for a Role with the verb",
    ),
    (
        "the second file's secret",
        {"data": train("own", "theirs")},
        "spec.data.train[1].secretRef.name: ada may not use Secret theirs",
    ),
    (
        "validation's",
        {"data": {**train("own"), "validation": {"source": "s3://team/v.jsonl", **secret("v")}}},
        "spec.data.validation.secretRef.name: ada may not use Secret v;",
    ),
    (
        "test's",
        {"data": {**train("own"), "test": {"source": "s3://team/t.jsonl", **secret("t")}}},
        "spec.data.test.secretRef.name: ada may not use Secret t;",
    ),
    (
        "replay's",
        {"data": {**train("own"), "replay": {"source": "s3://team/r.jsonl", **secret("r")}}},
        "spec.data.replay.secretRef.name: ada may not use Secret r;",
    ),
    (
        "out-of-domain data's",
        {"evaluation": {"outOfDomain": {"source": "s3://team/o.jsonl", **secret("o")}}},
        "spec.evaluation.outOfDomain.secretRef.name: ada may not use Secret o;",
    ),
    (
        "storage's",
        {"output": {"adapterRef": {"name": "triage"}, "storage": {"uri": "s3://team/out", **secret("s")}}},
        "spec.output.storage.secretRef.name: ada may not use Secret s;",
    ),
    (
        "MLflow's",
        {"tracking": {"mlflow": {"trackingUri": "https://mlflow.example.com", **secret("m")}}},
        "spec.tracking.mlflow.secretRef.name: ada may not use Secret m;",
    ),
    (
        "wandb's",
        {"tracking": {"wandb": {"project": "triage", **secret("w")}}},
        "spec.tracking.wandb.secretRef.name: ada may not use Secret w;",
    ),
    (
        "the eighth secret",
        {"data": train("own", "own", *(f"s{number}" for number in range(7)))},
        "spec.data.train[2].secretRef.name: ada may not use Secret s0;",
    ),
    (
        "more secrets than can be checked",
        {"data": train(*(f"s{number}" for number in range(9)))},
        "9 different Secrets are named, 8 is the most",
    ),
]


@pytest.mark.parametrize(("sections", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_refused(people: Cluster, namespace: str, sections: dict[str, Any], words: str) -> None:
    assert words in Person(people, namespace, "ada").create(job(**sections))


ALLOWED: list[tuple[str, str, dict[str, Any]]] = [
    ("the smallest job of an author", "ada", {}),
    ("the account made for fine-tuning", "ada", {"serviceAccountName": "finetune-runner"}),
    ("a secret the author may use, sixteen times", "ada", {"data": train(*["own"] * 16)}),
    ("whoever may edit the namespace may use all", "ed", {"serviceAccountName": "any", "data": train("theirs")}),
    ("eight different secrets", "ed", {"data": train(*(f"s{number}" for number in range(8)))}),
]


@pytest.mark.parametrize(("user", "sections"), [case[1:] for case in ALLOWED], ids=[case[0] for case in ALLOWED])
def test_allowed(people: Cluster, namespace: str, user: str, sections: dict[str, Any]) -> None:
    person = Person(people, namespace, user)
    wait_for(
        lambda: person.create(job(**sections)) == "", 10, f"{user} to be allowed: {person.create(job(**sections))}"
    )


def test_the_last_of_eight_secrets_is_checked_too(people: Cluster, namespace: str) -> None:
    names = [f"s{number}" for number in range(7)]
    grant(people, namespace, "ada", "use", "secrets", *names)
    ada = Person(people, namespace, "ada")
    wait_for(lambda: ada.create(job(data=train(*names))) == "", 30, "ada to use seven secrets")
    refused = ada.create(job(data=train(*names, "last")))
    assert "spec.data.train[7].secretRef.name: ada may not use Secret last" in refused


def test_an_edit_is_judged_by_who_makes_it_and_only_when_it_changes_what_runs(people: Cluster, namespace: str) -> None:
    assert Person(people, namespace, "ed").create(job(data=train("theirs"), suspend=True), dry=False) == ""
    ada = Person(people, namespace, "ada")
    assert ada.patch("finetunejobs", "probe", {"spec": {"cancel": True}}) == ""
    assert ada.patch("finetunejobs", "probe", {"metadata": {"labels": {"a": "b"}}}) == ""
    assert "ada may not use Secret theirs" in ada.patch("finetunejobs", "probe", {"spec": {"training": {"epochs": 9}}})
    tracked = {"tracking": {"wandb": {"project": "triage", **secret("theirs")}}}
    assert ada.patch("finetunejobs", "probe", {"spec": {"data": train("own")}}) == ""
    assert "ada may not use Secret theirs" in ada.patch("finetunejobs", "probe", {"spec": tracked})
