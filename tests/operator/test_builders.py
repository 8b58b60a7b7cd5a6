"""Golden manifests: from `input/*.yaml`, what is started, to `output/*.yaml`, what is made; see `--update-golden`."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.gpupool import GPUPoolSpec
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import Resolved
from finetune_api.stages import JobIdentity, StageTask, TrainPlan
from finetune_operator.builders.job import stage_job
from finetune_operator.builders.names import TASK_ANNOTATION, job_name
from finetune_operator.builders.progress import ProgressEndpoint
from finetune_operator.builders.service import gang_service
from finetune_operator.builders.volumes import secret_names
from finetune_operator.decide.types import StartStage

GOLDEN = Path(__file__).parent / "golden"
CASES = sorted(path.stem for path in (GOLDEN / "input").glob("*.yaml"))
CREATED = datetime(2026, 1, 1, tzinfo=UTC)


def start_of(case: dict[str, Any]) -> StartStage:
    pool = GPUPoolSpec.from_wire(case["pool"])
    spec = FineTuneJobSpec.from_wire(case["spec"])
    storage = pool.default_storage
    assert storage is not None
    resolved = Resolved(pool="pool", pool_spec=pool, storage=storage, gpus_per_node=case.get("gpusPerNode", 0))
    task = StageTask(
        stage=case["stage"],
        mode=case.get("mode", "run"),
        job=JobIdentity(namespace="team-a", name="support", uid="4f1c", run=1),
        adapter="triage",
        attempt=case.get("attempt", 1),
        storage=storage,
        spec=spec,
        plan=TrainPlan.from_wire(case["plan"]) if "plan" in case else None,
        image=pool.image,
        created_at=CREATED,
    )
    name = job_name("support", "4f1c", 1, case["stage"], case.get("attempt", 1))
    return StartStage(name, task, resolved, nodes=case.get("nodes", 1), gpus_per_node=case.get("gpusPerNode", 0))


def endpoint_of(case: dict[str, Any]) -> ProgressEndpoint | None:
    return ProgressEndpoint(**case["progress"]) if "progress" in case else None


def manifests(start: StartStage, progress: ProgressEndpoint | None) -> list[dict[str, Any]]:
    made = [body for body in (gang_service(start), stage_job(start, progress)) if body is not None]
    annotations = made[-1]["spec"]["template"]["metadata"]["annotations"]
    # The task has a test of its own; here it would bury the pod.
    assert StageTask.from_wire(json.loads(annotations[TASK_ANNOTATION])) == start.task
    annotations[TASK_ANNOTATION] = "(the StageTask)"
    return made


@pytest.mark.parametrize("case", CASES)
def test_golden(case: str, request: pytest.FixtureRequest) -> None:
    given = yaml.safe_load((GOLDEN / "input" / f"{case}.yaml").read_text())
    made = manifests(start_of(given), endpoint_of(given))
    output = GOLDEN / "output" / f"{case}.yaml"
    if request.config.getoption("--update-golden"):
        output.write_text(yaml.safe_dump_all(made, sort_keys=False, width=120))
    assert list(yaml.safe_load_all(output.read_text())) == made


@pytest.mark.parametrize(
    ("stage", "secrets"),
    [
        ("prepare", ["store"]),
        ("baseline", ["store"]),
        ("train", ["mlflow", "store", "wandb"]),
        ("evaluate", ["mlflow", "store", "wandb"]),
        ("publish", ["store"]),
    ],
)
def test_only_stages_that_tell_a_tracker_something_get_its_secret(stage: str, secrets: list[str]) -> None:
    given = yaml.safe_load((GOLDEN / "input" / "train-with-trackers.yaml").read_text())
    assert secret_names(start_of({**given, "stage": stage}).task) == secrets


def test_there_are_cases() -> None:
    assert len(CASES) >= 6


@pytest.mark.parametrize("case", CASES)
def test_pod_security_restricted_and_beyond(case: str) -> None:
    given = yaml.safe_load((GOLDEN / "input" / f"{case}.yaml").read_text())
    pod = stage_job(start_of(given), endpoint_of(given))["spec"]["template"]["spec"]
    allowed = {"downwardAPI", "emptyDir", "secret", "persistentVolumeClaim", "projected", "image"}
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        context = container["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert all("valueFrom" not in item or "fieldRef" in item["valueFrom"] for item in container["env"])
    assert all(set(volume) - {"name"} <= allowed for volume in pod["volumes"])
    names = [volume["name"] for volume in pod["volumes"]]
    assert len(names) == len(set(names))


@given(
    st.from_regex(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", fullmatch=True),
    st.uuids(),
    st.integers(1, 99),
    st.sampled_from(["prepare", "baseline", "train", "evaluate", "publish"]),
    st.integers(1, 99),
)
def test_names_are_labels_even_with_a_pod_index(name: str, uid: Any, run: int, stage: str, attempt: int) -> None:
    made = job_name(name, str(uid), run, stage, attempt)
    assert len(f"{made}-63") <= 63
    assert made == job_name(name, str(uid), run, stage, attempt)
    assert made != job_name(name, str(uid), run + 1, stage, attempt)
