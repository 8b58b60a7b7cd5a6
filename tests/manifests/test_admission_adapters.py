"""An Adapter's policy is owned by whoever answers for the risk, not by who decides about versions."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.operator_process import GROUPS, SERVICE_ACCOUNT
from tests.cluster.harness.waiting import wait_for
from tests.manifests.people import Person, adapter, grant, in_force

LOOSE = {"policy": {"release": "automatic"}}


@pytest.fixture
def people(installed: Cluster, namespace: str) -> Cluster:
    """Olga owns policies, Ada approves; the Adapter `triage` exists."""
    for user, role in (("olga", "finetune-policy-owner"), ("ada", "finetune-approver")):
        installed.kubectl("create", "rolebinding", user, f"--clusterrole={role}", f"--user={user}", "-n", namespace)
    assert Person(installed, namespace).create(adapter(), dry=False) == ""
    in_force(installed, namespace, adapter("probe", storage={"uri": "file:///x"}), "spec.storage.uri: file://")
    return installed


@pytest.mark.parametrize(
    "change",
    [
        LOOSE,
        {"policy": {"approvals": {"required": 1, "fourEyes": False}}},
        {"policy": {"gates": [{"metric": "loss", "maximum": 9}]}},
        {"owner": "nobody"},
        {"purpose": "something else"},
        {"riskClass": "high"},
    ],
    ids=lambda change: ".".join([*change, *change.get("policy", ())]),
)
def test_only_who_may_govern_changes_what_binds_a_decision(
    people: Cluster, namespace: str, change: dict[str, Any]
) -> None:
    ada, olga = Person(people, namespace, "ada"), Person(people, namespace, "olga")
    patch = {"spec": change}
    wait_for(lambda: "may not set the policy" in ada.patch("adapters", "triage", patch, dry=True), 30, "ada's binding")
    said = ada.patch("adapters", "triage", patch, dry=True)
    assert "spec.policy: ada may not set the policy of this Adapter: the verb govern on adapters is missing" in said
    assert olga.patch("adapters", "triage", patch, dry=True) == ""


def test_an_approver_moves_channels(people: Cluster, namespace: str) -> None:
    ada = Person(people, namespace, "ada")
    patch = {"spec": {"channels": [{"name": "stable", "version": "v1"}]}}
    wait_for(lambda: ada.patch("adapters", "triage", patch) == "", 30, "ada to move a channel")


def test_who_may_create_adapters_but_not_govern_makes_none(people: Cluster, namespace: str) -> None:
    grant(people, namespace, "walt", "create", "adapters.finetune.dev")
    walt = Person(people, namespace, "walt")
    wait_for(lambda: "may not set the policy" in walt.create(adapter("new", **LOOSE)), 30, "the refusal of walt")


def test_storage_names_a_secret_that_its_author_may_use(people: Cluster, namespace: str) -> None:
    olga = Person(people, namespace, "olga")
    made = adapter("new", storage={"uri": "s3://team/x", "secretRef": {"name": "keys"}})
    words = "spec.storage.secretRef.name: olga may not use Secret keys; name another one, or ask for a Role"
    assert words in olga.create(made)
    grant(people, namespace, "olga", "use", "secrets", "keys")
    wait_for(lambda: olga.create(made) == "", 30, "olga to use the secret")


def test_the_operator_makes_adapters_with_storage_that_was_judged_before(people: Cluster, namespace: str) -> None:
    people.kubectl("annotate", "namespace", namespace, "finetune.dev/allowed-storage=")
    manifest = adapter("made-by-operator", storage={"uri": "s3://pool/x", "secretRef": {"name": "keys"}})
    manifest["metadata"]["namespace"] = namespace
    made = people.kubectl(
        *("create", "--dry-run=server", "-f", "-"), input=json.dumps(manifest), user=SERVICE_ACCOUNT, groups=GROUPS
    )
    assert "made-by-operator created" in made.stdout
