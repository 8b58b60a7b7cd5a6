"""What Argo CD, kpt and Flux show for every state, judged by their own code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from finetune_api.crd import KINDS
from tests.gitops.judges import argo_health, argocd_configmap, flux_expressions, kstatus
from tests.gitops.stories import STORIES, Object, unseen

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def objects() -> dict[str, Object]:
    return {name: make() for name, make, _, _ in STORIES}


def test_argo_cd_shows_the_health_of_every_state(objects: dict[str, Object]) -> None:
    told = dict(zip(objects, argo_health(list(objects.values())), strict=True))
    assert {name: told[name]["status"] for name in told} == {name: argo for name, _, argo, _ in STORIES}


def test_argo_cd_says_why(objects: dict[str, Object]) -> None:
    told = {name: answer["message"] for name, answer in zip(objects, argo_health(list(objects.values())), strict=True)}
    assert told["job, train runs"] == "3/5 train: train is running"
    assert "there is no GPUPool a100" in told["job, its pool does not exist"]
    assert "position 3" in told["job, queued"]
    assert "waits for approval" in told["job, waits for approval"]
    assert "f1 >= baseline + 0.05" in told["job, a gate failed"]
    assert told["job, released"] == "triage@v1 is served by stable"
    assert "rejected by ada: read the report" in told["job, its version rejected"]
    assert told["adapter, pinned to what does not exist"] == "stable: v9 does not exist; still serving v1"
    assert told["pool, no node yet"].startswith("no node matches accelerator=a100 now")
    assert "gpusPerNode is 8" in told["pool, its nodes offer too few GPUs"]
    assert not [name for name, message in told.items() if not message and name != "pool, its nodes not counted"]


def test_kstatus_computes_the_status_of_every_state(objects: dict[str, Object]) -> None:
    told = dict(zip(objects, kstatus(list(objects.values())), strict=True))
    assert {name: told[name]["status"] for name in told} == {name: status for name, _, _, status in STORIES}


def test_without_our_scripts_argo_cd_has_no_opinion() -> None:
    """The scripts are what makes the difference: the first test cannot pass by accident."""
    assert [answer["status"] for answer in argo_health([unseen(kind.name) for kind in KINDS], {})] == ["none"] * 4


def test_every_kind_has_a_script() -> None:
    wanted = {f"resource.customizations.health.finetune.dev_{kind.name}" for kind in KINDS}
    assert set(argocd_configmap()) == wanted


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_script_survives_an_object_of_which_half_is_missing(kind: Any) -> None:
    """An unknown phase of a later version, conditions without messages, no metadata.generation."""
    bare = {"apiVersion": "finetune.dev/v1alpha1", "kind": kind.name, "metadata": {"name": "x"}}
    halves: list[Object] = [
        {**bare},
        {**bare, "status": {}},
        {**bare, "status": {"observedGeneration": 1, "phase": "Dreaming"}},
        {**bare, "status": {"observedGeneration": 1, "phase": "Succeeded", "conditions": []}},
        {**bare, "status": {"observedGeneration": 1, "conditions": [{"type": "Ready", "status": "False"}]}},
    ]
    valid = {"Healthy", "Progressing", "Degraded", "Suspended", "Unknown"}
    assert {answer["status"] for answer in argo_health(halves)} <= valid


def _flux(kind: str) -> dict[str, str]:
    documents = yaml.safe_load_all((ROOT / "examples" / "gitops" / "flux.yaml").read_text())
    [kustomization] = [item for item in documents if item.get("spec", {}).get("healthCheckExprs")]
    [found] = [item for item in kustomization["spec"]["healthCheckExprs"] if item["kind"] == kind]
    return {name: found[name] for name in ("inProgress", "current", "failed") if name in found}


def test_flux_can_be_told_to_wait_for_the_release(objects: dict[str, Object]) -> None:
    """The expressions of examples/gitops/flux.yaml: failed gates fail the Kustomization, approval is waited for."""
    wanted = {
        "job, not seen yet": "InProgress",
        "job, train runs": "InProgress",
        "job, suspended": "InProgress",
        "job, waits for approval": "InProgress",
        "job, a gate failed": "Failed",
        "job, its version rejected": "Failed",
        "job, failed": "Failed",
        "job, its pool does not exist": "Failed",
        "job, released": "Current",
        "job, approved and replaced since": "Current",
        "job, the baseline suffices": "Current",
    }
    told = flux_expressions([objects[name] for name in wanted], _flux("FineTuneJob"))
    assert dict(zip(wanted, told, strict=True)) == wanted
