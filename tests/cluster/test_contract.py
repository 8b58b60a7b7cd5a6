"""A real API server judges the corpus as our own validation does, guards what may change, and fills in our defaults.

On a control plane of its own, with the CRDs and nothing else: admission policies of an installation would refuse more.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from kubernetes.client import ApiClient

from finetune_api.crd import KINDS, fields, kind_named, schema_of
from finetune_api.finetunejob import FineTuneJob
from finetune_api.generate import ROOT
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import Phase
from finetune_api.validation import accepted_values, validate_document
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.controlplane import ControlPlane
from tests.contract.corpus_files import BAD, FOLDER, GOOD, text_of
from tests.contract.documents import SEVERAL, Several
from tests.contract.strategies import specs

RUNNING: tuple[Phase, ...] = ("Queued", "Preparing", "Training", "Publishing", "Suspended")
FINISHED: tuple[Phase, ...] = ("Succeeded", "Failed", "Cancelled")


@dataclass(frozen=True)
class Answer:
    """What the API server said."""

    code: int
    body: dict[str, Any]

    @property
    def accepted(self) -> bool:
        return self.code in (200, 201)

    @property
    def message(self) -> str:
        return str(self.body.get("message", ""))


class Server:
    """The API server, spoken to in raw HTTP: the client library would parse the YAML before the server sees it."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._api: ApiClient = cluster.api()

    def ask(
        self,
        method: str,
        kind: str,
        text: str = "",
        name: str = "",
        *,
        dry: bool = False,
        content: str = "application/yaml",
    ) -> Answer:
        found = kind_named(kind)
        assert found is not None
        scope = "" if found.scope == "Cluster" else "/namespaces/default"
        path = f"/apis/finetune.dev/v1alpha1{scope}/{found.plural}{f'/{name}' if name else ''}"
        query = f"?fieldValidation=Strict{'&dryRun=All' if dry else ''}" if text else ""
        reply = self._api.rest_client.pool_manager.request(
            method,
            f"{self._api.configuration.host}{path}{query}",
            body=text.encode() if text else None,
            headers={"Content-Type": content, "Accept": "application/json"},
        )
        return Answer(reply.status, json.loads(reply.data))

    def judge(self, file: Path) -> Answer:
        text = text_of(file)
        return self.ask("POST", _kind_of(text), text, dry=True)

    def patch(self, kind: str, name: str, change: dict[str, Any]) -> Answer:
        return self.ask("PATCH", kind, json.dumps(change), name, content="application/merge-patch+json")


def _kind_of(text: str) -> str:
    written = next((line.removeprefix("kind: ") for line in text.splitlines() if line.startswith("kind: ")), "")
    # What is no kind of ours is sent where the author meant it to go, and refused there.
    return written if kind_named(written) else "FineTuneJob"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with ControlPlane() as plane:
        plane.kubectl("apply", *(arg for kind in KINDS for arg in ("-f", ROOT / "crds" / kind.file_name)))
        names = [f"crd/{kind.crd_name}" for kind in KINDS]
        plane.kubectl("wait", "--for=condition=Established", "--timeout=60s", *names)
        yield Server(plane)


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_the_api_server_accepts_the_good_file(server: Server, file: Path) -> None:
    answer = server.judge(file)
    assert answer.accepted, answer.message


@pytest.mark.parametrize("file", BAD, ids=lambda file: file.stem)
def test_the_api_server_refuses_the_bad_file_and_names_the_same_fix(server: Server, file: Path) -> None:
    answer = server.judge(file)
    assert answer.code in (400, 422), answer
    broken = [p for p in validate_document(text_of(file)) if p.message.startswith("is refused: ")]
    for problem in broken:
        if "twice" not in problem.message:  # the API server's own words for a repeated key
            assert f"{problem.message.removeprefix('is refused: ')}; {problem.fix}" in answer.message


@pytest.mark.parametrize("file", GOOD, ids=lambda file: file.stem)
def test_the_api_server_reads_and_completes_a_file_as_we_do(server: Server, file: Path) -> None:
    text = text_of(file)
    kind = kind_named(_kind_of(text))
    assert kind is not None
    stored = kind.model.from_wire(server.judge(file).body)
    assert stored.spec == kind.model.from_wire(accepted_values(text)[0]).spec


@pytest.mark.parametrize("several", SEVERAL, ids=lambda several: several.id)
def test_kubectl_makes_the_same_objects_of_a_file(server: Server, several: Several, tmp_path: Path) -> None:
    file = tmp_path / "several.yaml"
    file.write_bytes(several.text.encode())
    done = server.cluster.kubectl("create", "--dry-run=server", "-o", "name", "-f", file, check=False)
    assert (done.returncode == 0) is bool(several.names or several.passed_over), done.stderr
    if several.names:
        assert done.stdout.split() == [f"finetunejob.finetune.dev/{name}" for name in several.names]


def test_the_api_servers_defaults_are_the_models(server: Server) -> None:
    stored = server.judge(FOLDER / "good" / "job-smallest.yaml").body["spec"]
    smallest = {
        "model": {"source": "hf://acme/base"},
        "data": {"train": [{"source": "s3://team-a/train.jsonl"}]},
        "output": {"adapterRef": {"name": "triage"}},
    }
    completed = FineTuneJobSpec.from_wire(smallest).to_wire()
    # An entry of a list in the YAML stays as it was written: lists are compared as a whole.
    completed["data"]["train"] = smallest["data"]["train"]
    assert stored == completed
    assert FineTuneJobSpec.from_wire(stored) == FineTuneJobSpec.from_wire(smallest)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(spec=specs())
def test_any_spec_survives_the_api_server(server: Server, spec: dict[str, Any]) -> None:
    job = {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "any"}, "spec": spec}
    answer = server.ask("POST", "FineTuneJob", json.dumps(job), dry=True, content="application/json")
    assert answer.accepted, answer.message
    assert FineTuneJob.from_wire(answer.body).spec == FineTuneJobSpec.from_wire(spec)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_kubectl_explain_knows_every_field(server: Server, kind: Any) -> None:
    explained = server.cluster.kubectl("explain", kind.plural, "--recursive").stdout
    for row in fields(schema_of(kind)):
        leaf = row.path.rsplit(".", 1)[-1]
        assert f" {leaf}\t" in explained, row.path


def test_kubectl_explain_teaches(server: Server) -> None:
    said = " ".join(server.cluster.kubectl("explain", "finetunejob.spec.training.learningRate").stdout.split())
    assert "2e-4 for sft" in said
    assert "5e-6 for dpo and kto" in said
    assert "Range 1e-7 to 0.1" in said


@pytest.fixture
def job(server: Server) -> Iterator[str]:
    text = (FOLDER / "good" / "job-with-every-section.yaml").read_text(encoding="utf-8")
    answer = server.ask("POST", "FineTuneJob", text)
    assert answer.accepted, answer.message
    yield "triage"
    server.ask("DELETE", "FineTuneJob", name="triage")


def _set_phase(server: Server, name: str, phase: str) -> None:
    patch = json.dumps({"status": {"phase": phase}})
    server.cluster.kubectl("patch", "ftj", name, "--subresource=status", "--type=merge", "-p", patch)


EDITS: dict[str, dict[str, Any]] = {
    "serviceAccountName": {"serviceAccountName": "other"},
    "model": {"model": {"revision": "other"}},
    "data": {"data": {"checks": {"minimumRows": 7}}},
    "method": {"method": {"rank": 7}},
    "training": {"training": {"epochs": 7}},
    "compute": {"compute": {"maxRetries": 7}},
    "evaluation": {"evaluation": {"fewShot": 7}},
    "output": {"output": {"servedAs": "merged"}},
    "tracking": {"tracking": {"tensorboard": None}},
}


def test_the_edits_cover_every_field_that_must_not_change() -> None:
    guarded = {rule.field_path.removeprefix("spec.") for rule in FineTuneJob.RULES if rule.transition}
    assert set(EDITS) == guarded


@pytest.mark.parametrize("phase", RUNNING)
def test_a_running_spec_is_immutable(server: Server, job: str, phase: str) -> None:
    _set_phase(server, job, phase)
    for field, edit in EDITS.items():
        answer = server.patch("FineTuneJob", job, {"spec": edit})
        assert answer.code == 422, (field, answer)
        assert f"spec.{field} cannot change: spec is immutable while the job runs" in answer.message


def test_a_change_deep_inside_the_answers_schema_is_a_change(server: Server, job: str) -> None:
    _set_phase(server, job, "Training")
    deeper = {"spec": {"evaluation": {"task": {"schema": {"properties": {"category": {"enum": ["c"]}}}}}}}
    assert server.patch("FineTuneJob", job, deeper).code == 422


def test_a_running_job_can_be_suspended_and_cancelled(server: Server, job: str) -> None:
    _set_phase(server, job, "Training")
    for change in ({"suspend": True}, {"suspend": False}, {"cancel": True}, {"ttlSecondsAfterFinished": 60}):
        answer = server.patch("FineTuneJob", job, {"spec": change})
        assert answer.accepted, answer.message


def test_a_write_of_status_is_no_edit(server: Server, job: str) -> None:
    for phase in (*RUNNING, *FINISHED):
        _set_phase(server, job, phase)
    assert server.ask("GET", "FineTuneJob", name=job).body["status"]["phase"] == FINISHED[-1]


@pytest.mark.parametrize("phase", ["", "Pending", *FINISHED])
def test_a_job_that_does_not_run_may_be_edited(server: Server, job: str, phase: str) -> None:
    if phase:
        _set_phase(server, job, phase)
    for field, edit in EDITS.items():
        answer = server.patch("FineTuneJob", job, {"spec": edit})
        assert answer.accepted, (field, answer.message)


def test_an_adapters_storage_is_pinned(server: Server) -> None:
    answer = server.ask("POST", "Adapter", (FOLDER / "good" / "adapter-smallest.yaml").read_text(encoding="utf-8"))
    assert answer.accepted, answer.message
    refused = server.patch("Adapter", "triage", {"spec": {"storage": {"uri": "s3://other/place"}}})
    assert refused.code == 422
    assert "an Adapter's storage is pinned" in refused.message
    assert server.patch("Adapter", "triage", {"spec": {"owner": "team-b"}}).accepted


VERSION_EDITS: dict[str, Any] = {
    "adapter": "other",
    "version": 2,
    "uri": "s3://other/v1",
    "digest": "sha256:9",
    "sizeBytes": 9,
    "servedAs": "merged",
    "base": {"digest": "sha256:9"},
    "origin": {"run": 9},
    "dataDigest": "sha256:9",
    "fingerprint": "sha256:9",
    "parent": "v9",
    "warmStartedFrom": "triage-v1",
    "metrics": {"loss": 0.1},
    "verdict": "Failed",
    "gates": [],
    "createdAt": "2030-01-01T00:00:00Z",
}


def test_a_version_is_immutable_but_for_decisions(server: Server) -> None:
    text = (FOLDER / "good" / "version-with-decisions.yaml").read_text(encoding="utf-8")
    assert server.ask("POST", "AdapterVersion", text).accepted
    kind = kind_named("AdapterVersion")
    assert kind is not None
    assert {*VERSION_EDITS, "decisions"} == set(schema_of(kind)["properties"]["spec"]["properties"])
    for field, value in VERSION_EDITS.items():
        for change in (value, None) if field in ("parent", "gates") else (value,):
            answer = server.patch("AdapterVersion", "triage-v1", {"spec": {field: change}})
            assert answer.code == 422, (field, answer)
            assert f"spec.{field} cannot change" in answer.message
    decided = server.patch(
        "AdapterVersion", "triage-v1", {"spec": {"decisions": [{"by": "eve", "decision": "approve"}]}}
    )
    assert decided.accepted, decided.message


def test_a_full_status_is_stored_and_shown(server: Server, job: str) -> None:
    status = {"phase": "Succeeded", "progress": "5/5", "verdict": "Passed", "metric": "f1 0.71->0.89", "run": 1}
    status["version"] = {"number": 3, "name": "triage-v3", "uri": "s3://models/v3", "digest": "sha256:0"}
    patch = json.dumps({"status": status})
    server.cluster.kubectl("patch", "ftj", job, "--subresource=status", "--type=merge", "-p", patch)
    line = server.cluster.kubectl("get", "ftj", job, "--no-headers").stdout.split()
    assert line[:-1] == ["triage", "Succeeded", "5/5", "triage-v3", "Passed", "f1", "0.71->0.89"]
    wide = server.cluster.kubectl("get", "finetune", "-o", "wide").stdout
    assert "hf://meta-llama/Llama-3.1-8B-Instruct" in wide
    assert FineTuneJob.from_wire(server.ask("GET", "FineTuneJob", name=job).body).status is not None
