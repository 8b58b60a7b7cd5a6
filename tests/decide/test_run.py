"""One run from apply to version, and what follows from edits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_operator.decide.resolve import Refusal, resolve
from tests.decide.world import BASELINE, PREPARED, World, evaluated, job_dict, pool

STAGES = ["prepare", "baseline", "train", "evaluate", "publish"]


def test_a_job_goes_through_all_stages_to_a_version_that_waits_for_a_person() -> None:
    world = World()
    world.run_to_end()
    status = world.status
    assert [start.task.stage for start in world.started] == STAGES
    assert (status.phase, status.reason) == ("Succeeded", "AwaitingApproval")
    assert status.version is not None
    assert status.version.name == "triage-v1"
    assert status.metric == "f1 0.71->0.89"
    assert status.verdict == "Passed"
    assert status.progress == "5/5"
    assert status.next_step.startswith("kubectl patch adapterversion triage-v1 -n team-a --type=merge")
    assert [version.metadata.name for version in world.versions] == ["triage-v1"]
    assert world.adapter is not None
    assert world.adapter.spec.storage.uri == "s3://bucket/store"
    truths = {condition.type: condition.status for condition in status.conditions}
    assert truths["Complete"] == "True"
    assert truths["Released"] == "False"
    assert truths["Reconciling"] == "False"


def test_every_attempt_is_in_the_status_before_its_job_exists() -> None:
    world = World()
    for _ in range(40):
        decision = world.decide()
        written = {stage.job_name for stage in decision.status.stages}
        assert {start.job_name for start in decision.starts} <= written
        world.write_status(decision)
        world.carry_out(decision)
        if world.status.phase == "Succeeded":
            return
        if not decision.starts and world.active.state == "Pending":
            world.succeed(settle=False)
    pytest.fail("the run did not end")


@pytest.mark.parametrize("crash_after", ["nothing", "status"])
def test_an_operator_that_dies_anywhere_ends_the_same_with_nothing_twice(crash_after: str) -> None:
    world = World()
    for _ in range(200):
        decision = world.decide()
        if crash_after == "status":
            world.write_status(decision)  # dies before any child; the next operator decides anew
            decision = world.decide()
        world.write_status(decision)
        world.carry_out(decision)
        if world.status.phase == "Succeeded":
            break
        if world.status.stages and world.status.stages[-1].job_name in world.runs and world.active.state == "Pending":
            world.succeed(settle=False)
    assert world.status.phase == "Succeeded"
    assert [start.task.stage for start in world.started] == STAGES
    assert len(world.versions) == 1


def test_deciding_twice_on_the_same_world_gives_the_same_answer() -> None:
    world = World()
    world.run_to("train")
    assert world.decide() == world.decide()


def test_no_gpu_is_held_before_the_plan_is_frozen() -> None:
    world = World()
    world.run_to_end()
    for start in world.started:
        assert (start.gpus_per_node > 0) == (start.task.stage in ("baseline", "train", "evaluate"))
        if start.gpus_per_node:
            assert start.task.plan is not None


def test_an_edit_of_a_finished_job_makes_the_next_run_and_version() -> None:
    world = World()
    world.run_to_end()
    world.edit(training={"epochs": 5.0})
    world.run_to_end()
    assert world.status.run == 2
    assert world.status.version is not None
    assert world.status.version.name == "triage-v2"
    assert [(item.run, item.version) for item in world.status.history] == [(1, "triage-v1")]
    assert world.status.observed_generation == 2
    train = next(start for start in world.started if start.task.job.run == 2 and start.task.stage == "evaluate")
    assert train.task.incumbent is not None
    assert train.task.incumbent.version == "v1"


def test_an_upgrade_that_adds_a_default_runs_nothing_again() -> None:
    world = World()
    world.run_to_end()
    status = world.status.model_copy(update={"spec_hash": "of a spec without the new default"})
    world.job = world.job.model_copy(update={"status": status})
    world.settle()
    assert (world.status.run, world.status.phase) == (1, "Succeeded")


def test_the_children_of_an_earlier_run_are_removed_when_the_next_begins() -> None:
    world = World()
    world.run_to_end()
    first = set(world.runs)
    world.edit(training={"epochs": 5.0})
    world.settle()
    assert {run.job_name for run in world.runs.values() if run.state == "Terminating"} == first


@pytest.mark.parametrize(
    "edit", [{"compute": {"pool": "a100", "maxDuration": "12h"}}, {"suspend": True}, {"ttlSecondsAfterFinished": 1}]
)
def test_an_edit_that_changes_no_input_trains_nothing(edit: dict[str, object]) -> None:
    world = World()
    world.run_to_end()
    world.edit(**edit)
    world.settle()
    if world.status.run == 2:
        world.succeed()
        assert (world.status.phase, world.status.reason) == ("Succeeded", "Unchanged")
        assert world.status.version is not None
        assert world.status.version.name == "triage-v1"
    else:
        assert world.status.phase == "Succeeded"
    assert sum(start.task.stage == "train" for start in world.started) == 1
    assert len(world.versions) == 1


@pytest.mark.parametrize(
    ("interval", "reason", "phase_of_verdict"),
    [
        ((0.06, 0.3), "AwaitingApproval", "Passed"),
        ((0.0, 0.3), "Inconclusive", "Inconclusive"),
        ((-0.1, 0.04), "GateFailed", "Failed"),
    ],
)
def test_the_verdict_decides_how_a_run_ends(interval: tuple[float, float], reason: str, phase_of_verdict: str) -> None:
    world = World()
    world.run_to("evaluate")
    world.succeed(evaluated(*interval, 1))
    world.succeed()
    assert (world.status.phase, world.status.reason, world.status.verdict) == ("Succeeded", reason, phase_of_verdict)
    released = next(c for c in world.status.conditions if c.type == "Released")
    assert (released.status, released.reason) == ("False", reason)


def test_a_baseline_that_suffices_ends_the_run_when_the_job_says_so() -> None:
    evaluation = job_dict()["spec"]["evaluation"] | {
        "gates": [{"metric": "f1", "minimum": 0.7}],
        "stopWhenBaselineSuffices": True,
    }
    world = World(job_dict(evaluation=evaluation))
    world.run_to("baseline")
    world.succeed(BASELINE)
    assert (world.status.phase, world.status.reason) == ("Succeeded", "BaselineSuffices")
    assert "0.71" in world.status.message


@pytest.mark.parametrize(
    ("spec", "pools", "final", "needle"),
    [
        ({"compute": {"pool": "h100"}}, None, False, "there is no GPUPool h100; there are: a100"),
        ({"compute": {}}, None, False, "no GPUPool is marked default"),
        ({}, (pool(allowedNamespaces=["team-b"]),), False, "namespace team-a may not use"),
        ({"compute": {"pool": "a100", "gpusPerNode": 16}}, None, True, "16 asked, nodes of pool a100 have 8"),
        ({"compute": {"pool": "a100", "nodes": 3}}, (pool(limits={"maxNodes": 2}),), True, "pool a100 allows 2"),
        ({"compute": {"pool": "a100", "maxCost": 10}}, None, True, "has no price"),
        (
            {"compute": {"pool": "a100", "gpusPerNode": 3}},
            None,
            True,
            "globalBatchSize: 16 cannot be shared evenly by 3 GPUs; use 15 or 18",
        ),
        ({"model": {"source": "file:///model"}}, None, True, "model.source: file:// works only without a cluster"),
        (
            {"data": {"train": [{"source": "s3://a-b/x"}], "test": {"source": "file:///x"}}},
            None,
            True,
            "data.test.source: file:// works only without a cluster",
        ),
        ({}, (pool(defaultStorage=None),), True, "set output.storage.uri"),
    ],
)
def test_what_is_not_accepted_says_the_field_and_the_fix(
    spec: dict[str, object], pools: tuple[object, ...] | None, final: bool, needle: str
) -> None:
    world = World(job_dict(**spec), pools)  # type: ignore[arg-type]
    world.settle()
    assert needle in world.status.message
    assert world.status.next_step
    assert world.status.phase == ("Failed" if final else "Pending")
    assert world.started == []
    accepted = next(c for c in world.status.conditions if c.type == "Accepted")
    assert accepted.status == "False"


def test_gpus_asked_of_a_pool_without_any_are_told_to_be_left_out() -> None:
    world = World(job_dict(compute={"pool": "a100", "gpusPerNode": 1}), (pool(gpusPerNode=0),))
    world.settle()
    assert "1 asked, nodes of pool a100 have 0" in world.status.message
    assert world.status.next_step == "Leave compute.gpusPerNode out, or use a pool with GPUs."


@pytest.mark.parametrize("source", ["pvc://claim/x", "oci://ghcr.io/team/rows:v1"])
def test_what_a_cluster_mounts_is_refused_without_one_and_accepted_in_one(source: str) -> None:
    world = World(job_dict(data={"train": [{"source": "s3://a-b/x"}], "replay": {"source": source}}))
    refused = resolve(replace(world.observed(), allow_file_sources=True))
    assert isinstance(refused, Refusal)
    assert refused.final
    assert refused.message.startswith(f"data.replay.source: {source.partition(':')[0]}:// is mounted by a cluster")
    assert "file://" in refused.message
    assert not isinstance(resolve(world.observed()), Refusal)


def model_facts(file_bytes: int) -> dict[str, Any]:
    return PREPARED | {"model": PREPARED["model"] | {"fileBytes": file_bytes}}


@pytest.mark.parametrize(
    ("source", "pool_spec", "file_bytes", "severity"),
    [
        ("hf://acme/base", {}, 16_060_000_000, "warning"),
        ("s3://models/llama", {}, 1_000_000_000, "warning"),
        ("s3://models/llama", {}, 999_999_999, "info"),
        ("pvc://models/llama", {}, 16_060_000_000, None),
        ("oci://ghcr.io/team/llama:v1", {}, 16_060_000_000, None),
        ("hf://acme/base", {"modelCache": {"claimName": "base-models"}}, 16_060_000_000, None),
    ],
)
def test_gpus_that_will_wait_for_a_download_are_told_with_its_size(
    source: str, pool_spec: dict[str, Any], file_bytes: int, severity: str | None
) -> None:
    world = World(job_dict(model={"source": source}), (pool(**pool_spec),))
    world.run_to("prepare")
    world.succeed(model_facts(file_bytes))
    found = [finding for finding in world.status.findings if finding.check == "modelCache"]
    assert [finding.severity for finding in found] == ([severity] if severity else [])
    for finding in found:
        assert f"each fetch {source} ({file_bytes / 1e9:.1f} GB) again while their GPUs wait" in finding.message
        assert "spec.modelCache.claimName" in finding.message


def finding(check: str, severity: str) -> dict[str, Any]:
    return {"check": check, "severity": severity, "message": f"what {check} found"}


def test_what_every_stage_finds_is_in_the_status_warnings_first() -> None:
    world = World()
    world.run_to("prepare")
    seen = [finding("size", "warning"), *(finding(f"info{n}", "info") for n in range(28))]
    world.end(message=world.report(world.results()["prepare"], findings=seen))
    world.run_to("train")
    before = [found.check for found in world.status.findings]
    told = [finding("overfitting", "warning"), finding("plateau", "info"), finding("tracking", "warning")]
    world.end(message=world.report(world.results()["train"], findings=told))
    checks = [found.check for found in world.status.findings]
    assert (
        checks == [*before[: before.index("info0")], "overfitting", "tracking", *before[before.index("info0") :]][:30]
    )
    assert len(checks) == 30


def test_a_failure_keeps_what_earlier_stages_found() -> None:
    world = World()
    world.run_to("prepare")
    world.end(message=world.report(world.results()["prepare"], findings=[finding("size", "warning")]))
    world.run_to("train")
    report = world.report(
        None, findings=[finding("tracking", "warning")], outcome="Failed", exitCode=88, cause="TrainingDiverged"
    )
    world.end(88, report)
    checks = [found.check for found in world.status.findings]
    assert {"size", "tracking"} <= set(checks)


def test_a_job_is_accepted_once_the_missing_pool_exists() -> None:
    world = World(pools=())
    world.settle()
    assert world.status.reason == "PoolNotFound"
    world.pools = (pool(),)
    world.settle()
    assert world.status.stages[-1].name == "prepare"


def test_later_edits_of_the_pool_do_not_reach_a_running_job() -> None:
    world = World()
    world.run_to("baseline")
    world.pools = (pool(image="other", gpusPerNode=1),)
    world.succeed()
    assert world.started[-1].resolved.pool_spec.image == "runner@sha256:1"


def test_an_existing_adapter_pins_the_storage() -> None:
    world = World()
    world.run_to_end()
    world.edit(output={"adapterRef": {"name": "triage"}, "storage": {"uri": "s3://elsewhere/x"}})
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "InvalidSpec")
    assert "pinned storage" in world.status.message
