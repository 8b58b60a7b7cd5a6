"""Probes and metrics say what is known, and logs are one JSON object per line."""

from __future__ import annotations

import json
import logging

import aiohttp
import pytest

from finetune_api.job.status import FineTuneJobStatus
from finetune_operator.decide.types import Key
from finetune_operator.health import LOOP_STALL_S, WORK_STALL_S, Health, serve
from finetune_operator.logs import JsonFormatter, TextFormatter
from finetune_operator.metrics import Metrics
from tests.cluster.harness.process import free_ports
from tests.decide.world import World


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_ready_once_every_part_is_fine() -> None:
    health = Health(Clock())
    assert health.reasons == ["the watches have not started yet"]
    health.fine("start")
    health.trouble("watches", "CRDs are missing")
    assert health.reasons == ["CRDs are missing"]
    health.fine("watches")
    assert health.reasons == []


def test_dead_when_the_loop_or_a_key_hangs() -> None:
    clock = Clock()
    health = Health(clock)
    assert health.dead == ""
    clock.now = LOOP_STALL_S + 1
    assert "event loop" in health.dead
    health.beat()
    assert health.dead == ""
    health.longest_work_s = lambda: WORK_STALL_S + 1
    assert "one key" in health.dead


async def test_endpoints() -> None:
    health, metrics, port = Health(Clock()), Metrics(), free_ports(1)[0]
    metrics.leading(True)
    metrics.request("PATCH", "/apis/finetune.dev/v1alpha1/namespaces/ns/finetunejobs/a/status", 200)
    url = f"http://127.0.0.1:{port}"
    async with serve(health, metrics, {port}), aiohttp.ClientSession() as session:
        async with session.get(f"{url}/readyz") as answer:
            assert answer.status == 503
            assert "not started" in await answer.text()
        health.fine("start")
        async with session.get(f"{url}/readyz") as answer:
            assert answer.status == 200
        async with session.get(f"{url}/healthz") as answer:
            assert answer.status == 200
        async with session.get(f"{url}/metrics") as answer:
            text = await answer.text()
    assert "finetune_leader 1.0" in text
    assert 'finetune_api_requests_total{code="200",resource="finetunejobs/status",verb="PATCH"} 1.0' in text


@pytest.mark.parametrize(
    ("path", "resource"),
    [
        ("/apis/batch/v1/namespaces/ns/jobs", "jobs"),
        ("/api/v1/namespaces/ns/pods/p", "pods"),
        ("/apis/finetune.dev/v1alpha1/gpupools", "gpupools"),
        ("/apis/finetune.dev/v1alpha1/namespaces/secret-name/adapters/x/status", "adapters/status"),
    ],
)
def test_requests_are_counted_by_resource_and_never_by_name(path: str, resource: str) -> None:
    metrics = Metrics()
    metrics.request("GET", path, 200)
    labels = {"verb": "GET", "resource": resource, "code": "200"}
    assert metrics.registry.get_sample_value("finetune_api_requests_total", labels) == 1


def test_jobs_by_phase_failures_by_cause_and_durations() -> None:
    metrics, key = Metrics(), Key("ns", "a")
    world = World()
    world.run_to("train")
    before = world.status
    metrics.decided(key, None, before)
    assert metrics.registry.get_sample_value("finetune_jobs", {"phase": "Training"}) == 1
    world.run_pods()
    world.end(exit_code=89, settle=False, reason="Error")
    decision = world.decide()
    metrics.decided(key, before, decision.status)
    failed = {"stage": "train", "cause": "Hung"}
    assert metrics.registry.get_sample_value("finetune_stage_failures_total", failed) == 1
    lasted = {"stage": "train", "state": "Failed"}
    assert metrics.registry.get_sample_value("finetune_stage_seconds_count", lasted) == 1
    metrics.decided(key, decision.status, FineTuneJobStatus(run=1, phase="Failed"))
    assert metrics.registry.get_sample_value("finetune_jobs", {"phase": "Failed"}) == 1
    metrics.forget(key)
    assert metrics.registry.get_sample_value("finetune_jobs", {"phase": "Failed"}) == 0


def test_a_log_line_is_one_json_object_with_its_context() -> None:
    record = logging.LogRecord("finetune", logging.INFO, __file__, 1, "line\nbreak %s", ("x",), None)
    record.__dict__ |= {"namespace": "team-a", "run": 2, "k8s_skip": "internal", "ref": object()}
    line = JsonFormatter().format(record)
    assert "\n" not in line
    told = json.loads(line)
    assert (told["message"], told["namespace"], told["run"], told["level"]) == ("line\nbreak x", "team-a", 2, "info")
    assert "k8s_skip" not in told
    assert "namespace=team-a" in TextFormatter().format(record)
