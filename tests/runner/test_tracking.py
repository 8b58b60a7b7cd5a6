"""Trackers against the real thing: an MLflow server, TensorBoard's reader, wandb's offline files; and losing them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
import pytest

from finetune_api.stages import Comparison, EvaluateResult
from finetune_runner.tracking import open_tracking
from finetune_runner.tracking.base import End, Entry
from finetune_runner.tracking.facts import gate_tags, judged_values, run_facts
from finetune_runner.tracking.lane import Lane, Tracking
from tests.cluster.harness.process import LOOPBACK, free_ports
from tests.cluster.harness.waiting import wait_for
from tests.runner.mlflow_server import MlflowServer
from tests.runner.tiny import World, make_world

PATIENT_S = 120.0
"""Only an upper bound: the machine may be busy."""


def tracked(folder: Path, model: Path, tracking: dict[str, Any], stage: str = "train", attempt: int = 1) -> Any:
    base = make_world(folder, model)
    world = World(folder, model, {**base.spec, "tracking": tracking}, base.plan, base.prepare)
    return world.context(stage, attempt=attempt)


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with MlflowServer(tmp_path_factory.mktemp("mlflow")) as server:
        yield server


class Reader:
    """What the server says of the only run of an experiment, by its REST API."""

    def __init__(self, url: str, experiment: str) -> None:
        self._client = httpx2.Client(base_url=f"{url}/api/2.0/mlflow/", timeout=60)
        found = self._client.get("experiments/get-by-name", params={"experiment_name": experiment}).json()
        runs = self._client.post("runs/search", json={"experiment_ids": [found["experiment"]["experiment_id"]]}).json()[
            "runs"
        ]
        assert len(runs) == 1
        self.run = runs[0]

    def tags(self) -> dict[str, str]:
        return {tag["key"]: tag["value"] for tag in self.run["data"]["tags"]}

    def params(self) -> dict[str, str]:
        return {param["key"]: param["value"] for param in self.run["data"]["params"]}

    def curve(self, metric: str) -> list[tuple[int, float]]:
        query = {"run_id": self.run["info"]["run_id"], "metric_key": metric}
        points = self._client.get("metrics/get-history", params=query).json()["metrics"]
        return sorted((int(point["step"]), point["value"]) for point in points)


def test_mlflow_has_one_run_over_attempts_and_stages(mlflow: MlflowServer, tmp_path: Path, tiny_model: Path) -> None:
    tracking = {"mlflow": {"trackingUri": mlflow.url, "experiment": "Support triage: tickets"}}
    first = open_tracking(tracked(tmp_path, tiny_model, tracking), {})
    for step in range(1, 4):
        first.log(step, {"train/loss": 2.0 / step, "train/learning_rate": 1e-4})
    first.log(3, {"validation/loss": 1.5, "validation/f1": float("nan")})
    assert first.close("Failed", PATIENT_S) == []
    half = Reader(mlflow.url, "Support triage: tickets")
    assert half.run["info"]["status"] == "FAILED"

    second = open_tracking(tracked(tmp_path, tiny_model, tracking, attempt=2), {})
    second.log(4, {"train/loss": 0.4})
    assert second.close("Continues", PATIENT_S) == []
    third = open_tracking(tracked(tmp_path, tiny_model, tracking, stage="evaluate"), {})
    third.tag({"finetune.dev/gate-1": "f1 >= 0.5"})
    third.log(4, {"test/f1": 0.9})
    assert third.close("Finished", PATIENT_S) == []

    whole = Reader(mlflow.url, "Support triage: tickets")
    assert whole.run["info"]["run_id"] == half.run["info"]["run_id"]
    assert whole.run["info"]["status"] == "FINISHED"
    assert whole.run["info"]["run_name"] == "job-1"
    assert whole.curve("train/loss") == [(1, 2.0), (2, 1.0), (3, pytest.approx(2 / 3)), (4, 0.4)]
    assert whole.curve("validation/loss") == [(3, 1.5)]
    assert whole.curve("test/f1") == [(4, 0.9)]
    assert whole.tags()["finetune.dev/run"] == "uid-1/1"
    assert whole.tags()["finetune.dev/gate-1"] == "f1 >= 0.5"
    assert whole.params()["training.learningRate"] == "0.01"
    assert whole.params()["method.rank"] == "8"
    assert "validation/f1" not in {metric["key"] for metric in whole.run["data"]["metrics"]}


def test_mlflow_that_is_not_there_costs_a_warning_and_nothing_else(tmp_path: Path, tiny_model: Path) -> None:
    (port,) = free_ports(1)
    tracking = {"mlflow": {"trackingUri": f"http://{LOOPBACK}:{port}"}}
    lost = open_tracking(tracked(tmp_path, tiny_model, tracking), {})
    lost.log(1, {"train/loss": 2.0})
    (problem,) = lost.close("Continues", PATIENT_S)
    assert problem.startswith("mlflow: ConnectError")
    assert "1 entries lost" in problem


def test_mlflow_gets_the_credentials_of_the_secret(tmp_path: Path, tiny_model: Path) -> None:
    from finetune_api.job.tracking import Mlflow
    from finetune_runner.tracking.mlflow_tracker import _client

    settings = Mlflow(tracking_uri="https://mlflow.example.com/base/")
    plain, token, basic = (
        _client(settings, secret)
        for secret in (
            {},
            {"MLFLOW_TRACKING_TOKEN": "t"},
            {"MLFLOW_TRACKING_USERNAME": "ada", "MLFLOW_TRACKING_PASSWORD": "p"},
        )
    )
    assert str(plain.base_url) == "https://mlflow.example.com/base/api/2.0/mlflow/"
    assert "authorization" not in plain.headers
    assert token.headers["authorization"] == "Bearer t"
    request = next(basic.auth.auth_flow(basic.build_request("GET", "x")))  # type: ignore[union-attr]
    assert request.headers["authorization"] == "Basic YWRhOnA="


def test_tensorboard_reads_the_event_files_back(tmp_path: Path, tiny_model: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    tracking: dict[str, Any] = {"tensorboard": {}}
    first = open_tracking(tracked(tmp_path, tiny_model, tracking), {})
    for step in range(1, 6):
        first.log(step, {"train/loss": 1.0 / step})
    assert first.close("Failed", PATIENT_S) == []
    # It resumed from step 3: what the first attempt did after that never happened.
    second = open_tracking(tracked(tmp_path, tiny_model, tracking, attempt=2), {})
    for step in (4, 5, 6):
        second.log(step, {"train/loss": 10.0 + step})
    assert second.close("Continues", PATIENT_S) == []
    judged = open_tracking(tracked(tmp_path, tiny_model, tracking, stage="evaluate"), {})
    judged.log(6, {"test/f1": 0.9})
    assert judged.close("Finished", PATIENT_S) == []

    run = tmp_path / "store/team/triage/runs/uid-1/1"
    assert len(list((run / "train/tensorboard").iterdir())) == 2
    events, test = (EventAccumulator(str(run / stage / "tensorboard")) for stage in ("train", "evaluate"))
    events.Reload()
    test.Reload()
    curve = {event.step: event.value for event in events.Scalars("train/loss")}
    assert curve == {1: 1.0, 2: 0.5, 3: pytest.approx(1 / 3), 4: 14.0, 5: 15.0, 6: 16.0}
    assert [event.value for event in test.Scalars("test/f1")] == [pytest.approx(0.9)]


def wandb_records(file: Path) -> Iterator[Any]:
    """Records of an offline file: seven bytes of header, then LevelDB's log format (crc, length, type; one block)."""
    from wandb.proto.wandb_internal_pb2 import Record

    data = file.read_bytes()
    assert data[:4] == b":W&B"
    assert len(data) < 32_768, "one block: no record is split"
    at = 7
    while at + 7 <= len(data):
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        record = Record()
        record.ParseFromString(data[at + 7 : at + 7 + length])
        yield record
        at += 7 + length


def test_wandb_offline_files_are_in_the_runs_storage_and_hold_the_numbers(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    tracking = {"wandb": {"project": "triage", "entity": "team-a", "mode": "offline"}}
    offline = open_tracking(tracked(tmp_path, tiny_model, tracking), {})
    offline.log(1, {"train/loss": 2.0})
    offline.log(2, {"train/loss": 1.0})
    assert offline.close("Continues", PATIENT_S) == []
    (file,) = (tmp_path / "store/team/triage/runs/uid-1/1/train/wandb").rglob("*.wandb")
    records = list(wandb_records(file))
    history = [record.history.item for record in records]
    losses = [float(i.value_json) for items in history for i in items if "train/loss" in (i.key, *i.nested_key)]
    assert losses == [2.0, 1.0]
    assert {(r.run.project, r.run.entity, r.run.display_name) for r in records if r.run.project} == {
        ("triage", "team-a", "job-1")
    }


def test_wandb_without_a_key_says_what_is_missing(tmp_path: Path, tiny_model: Path) -> None:
    lost = open_tracking(tracked(tmp_path, tiny_model, {"wandb": {"project": "triage"}}), {})
    lost.log(1, {"train/loss": 2.0})
    (problem,) = lost.close("Continues", PATIENT_S)
    assert "there is no WANDB_API_KEY; give tracking.wandb.secretRef" in problem


def test_no_tracking_is_no_thread(tmp_path: Path, tiny_model: Path) -> None:
    before = threading.active_count()
    nothing = open_tracking(make_world(tmp_path, tiny_model).context("train"), {})
    nothing.log(1, {"train/loss": 1.0})
    assert nothing.close("Finished") == []
    assert threading.active_count() == before


class Memory:
    """A tracker that remembers, and fails as often as it is told."""

    def __init__(self, failures: int = 0, gate: threading.Event | None = None) -> None:
        self.entries: list[Entry] = []
        self.tags: dict[str, str] = {}
        self.ends: list[End] = []
        self.failures = failures
        self.gate = gate

    def _trip(self) -> None:
        if self.gate is not None:
            self.gate.wait(PATIENT_S)
        if self.failures:
            self.failures -= 1
            raise ConnectionError("away")

    def log(self, entries: Sequence[Entry]) -> None:
        self._trip()
        self.entries += entries

    def tag(self, tags: Mapping[str, str]) -> None:
        self._trip()
        self.tags |= tags

    def close(self, end: End) -> None:
        self.ends.append(end)


def lane(tracker: Memory, **options: Any) -> Lane:
    start: Callable[[], Any] = lambda: tracker  # noqa: E731
    return Lane("memory", start, **{"every_s": 0.0, "first_backoff_s": 0.01, **options})


def test_a_tracker_that_comes_back_gets_everything_in_order() -> None:
    memory = Memory(failures=3)
    tracking = Tracking([lane(memory)])
    tracking.tag({"a": "b"})
    for step in range(5):
        tracking.log(step, {"loss": float(step)})
    wait_for(lambda: len(memory.entries) == 5, PATIENT_S, "five entries")
    assert tracking.close("Finished", PATIENT_S) == []
    assert [entry.step for entry in memory.entries] == list(range(5))
    assert (memory.tags, memory.ends) == ({"a": "b"}, ["Finished"])


def test_one_that_hangs_is_not_waited_for_and_does_not_hold_up_another() -> None:
    gate = threading.Event()
    hanging, good = Memory(gate=gate), Memory()
    tracking = Tracking([lane(hanging, most_waiting=10), lane(good)])
    for step in range(100):
        tracking.log(step, {"loss": 1.0})
    wait_for(lambda: len(good.entries) == 100, PATIENT_S, "the other tracker's entries")
    problems = tracking.close("Finished", 0.2)
    gate.set()
    assert len(problems) == 1
    assert "memory: it did not answer in time" in problems[0]
    assert "entries lost" in problems[0]


def test_the_oldest_are_lost_when_too_many_wait() -> None:
    gate = threading.Event()
    memory = Memory(gate=gate)
    one = lane(memory, most_waiting=3)
    one.put(Entry(0, {"loss": 0.0}, 0.0))
    for step in range(1, 6):
        one.put(Entry(step, {"loss": 0.0}, 0.0))
    gate.set()
    one.ask_to_close("Finished")
    one.join(PATIENT_S)
    assert [entry.step for entry in memory.entries][-3:] == [3, 4, 5]
    assert "entries lost" in one.problem() or len(memory.entries) == 6


def test_what_is_not_a_number_is_left_out() -> None:
    memory = Memory()
    tracking = Tracking([lane(memory)], clock=lambda: 7.0)
    tracking.log(1, {"a": float("inf"), "b": None, "c": 1.0})
    tracking.log(2, {"a": float("nan")})
    assert tracking.close("Finished", PATIENT_S) == []
    assert memory.entries == [Entry(1, {"c": 1.0}, 7.0)]


def test_facts_name_the_run_and_leave_out_what_a_retry_changes(tmp_path: Path, tiny_model: Path) -> None:
    world = make_world(tmp_path, tiny_model)
    facts = run_facts(world.context("train"))
    assert (facts.key, facts.name, facts.experiment) == ("uid-1/1", "job-1", "team/triage")
    assert facts.tags["finetune.dev/job"] == "team/job"
    assert facts == run_facts(world.with_plan(micro_batch_size=1, gradient_accumulation=8).context("train"))


def test_final_numbers_are_metrics_and_the_evidence_of_gates(tmp_path: Path, tiny_model: Path) -> None:
    evidence = Comparison(candidate=0.9, reference=0.5, reference_name="base", low=0.3, high=0.5, rows=24)
    alone = Comparison(candidate=0.9, low=0.8, high=1.0, rows=24)
    result = EvaluateResult(rows=24, served_as="adapter", metrics={"f1": 0.9}, comparisons=[alone, evidence])
    values = judged_values(result)
    assert values["test/f1"] == 0.9
    assert values["gate_2/reference"] == 0.5
    assert "gate_1/reference" not in values
    tags = gate_tags(make_world(tmp_path, tiny_model).task("evaluate"))
    assert tags["finetune.dev/gate-1"] == "f1 >= 0.5"
    assert tags["finetune.dev/gate-2"] == "f1 >= baseline + 0.05"
