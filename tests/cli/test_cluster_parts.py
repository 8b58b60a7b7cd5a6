"""The parts of the verbs that speak to a cluster, without one: what is chosen, judged, foreseen and said."""

from __future__ import annotations

import io
from argparse import Namespace
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from finetune_api.adapter import Policy
from finetune_api.adapterversion import AdapterVersionStatus, Decision
from finetune_api.finetunejob import RETRY_ANNOTATION, FineTuneJob
from finetune_api.stages import Progress
from finetune_cli.cluster.attempts import choose_attempt, choose_pod, what_is_left, why_waiting
from finetune_cli.cluster.decisions import decision_patch
from finetune_cli.cluster.objects import live_progress, read_as
from finetune_cli.cluster.waiting import is_over, judge_wait, parse_goal
from finetune_cli.completion import completions
from finetune_cli.decision_rules import eyes_line, refuse_own_approval
from finetune_cli.errors import CliError, CliExit
from finetune_cli.options import parse_version_name, wants_cluster
from finetune_cli.render.costs import costs_of
from finetune_cli.render.happenings import Belonging, happening
from finetune_cli.render.next_steps import next_steps
from finetune_cli.render.status import StatusView, bar
from finetune_operator.decide.release import decide_release
from finetune_operator.decide.types import PodState
from tests.decide.world import World, job_dict, pool

GOLDEN = Path(__file__).parent / "golden"


def world(*, price: bool = True, **spec: Any) -> World:
    offered = pool(price={"gpuPerHour": 2.5, "currency": "EUR"}, gpuModel="A100-80") if price else pool()
    return World(
        job_dict(compute={"pool": "a100", "gpusPerNode": 2, "maxCost": 20}, **spec) if price else job_dict(**spec),
        (offered,),
    )


def command(*words: str) -> str:
    return " ".join(["kubectl finetune", *words, "-n team-a"])


def training() -> tuple[World, Progress]:
    made = world()
    made.run_to("baseline")
    made.end(seconds=300, message=made.report(made.results()["baseline"]))
    made.run_pods()
    made.tick(600)
    live = Progress(
        stage="train",
        phase="training",
        step=71,
        total_steps=170,
        percent=42,
        eta_seconds=830,
        seconds_per_step=8.4,
        tokens_per_second=3210.0,
        loss=0.237,
        validation_loss=0.105,
        updated_at=made.now - timedelta(seconds=5),
    )
    return made, live


def retried() -> tuple[World, None]:
    made = world()
    made.run_to("train")
    made.end(exit_code=137, disruption="PreemptionByScheduler")
    made.tick(3600)
    made.settle()
    return made, None


def failed() -> tuple[World, None]:
    made = world(price=False)
    made.settle()
    cause = {"outcome": "Failed", "exitCode": 81, "cause": "InvalidData", "message": "row 7 has no answer"}
    told = {"hint": "Correct the row and apply again.", "evidence": '{"prompt": "x"}'}
    finding = {"check": "columns", "severity": "error", "message": "row 7 of train.jsonl has no answer", "rows": 1}
    made.end(exit_code=81, message=made.report(**cause, **told, findings=[finding]))
    return made, None


def passed() -> tuple[World, None]:
    made = world()
    made.run_to_end()
    return made, None


def gate_failed() -> tuple[World, None]:
    made = world(price=False)
    made.run_to("evaluate")
    gates = len(made.status.resolved.gates) if made.status.resolved else 0
    evidence = {
        "candidate": 0.5,
        "reference": 0.71,
        "referenceName": "prompted",
        "low": -0.3,
        "high": -0.1,
        "rows": 200,
    }
    made.succeed(made.results()["evaluate"] | {"metrics": {"f1": 0.5}, "comparisons": [evidence] * gates})
    made.run_to_end()
    return made, None


def unschedulable() -> tuple[World, None]:
    made = world(price=False)
    made.run_to("train")
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    made.set_run(pods=(PodState("pod-0", unschedulable=message, created_at=made.now),))
    made.tick(30)
    made.settle()
    return made, None


def suspended() -> tuple[World, None]:
    made = world(price=False)
    made.run_to("train")
    made.run_pods()
    made.edit(suspend=True)
    made.settle()
    made.remove_terminated()
    made.settle()
    return made, None


def preferences() -> tuple[World, None]:
    """DPO on top of a version that was published before."""
    start = {"objective": "dpo", "warmStartFrom": {"version": "triage-v1"}}
    made = world(price=False, method=start)
    made.versions = passed()[0].versions
    made.run_to("train")
    made.succeed(made.results()["train"] | {"rewardAccuracy": 0.96, "rewardMargin": 1.5})
    made.run_to_end()
    return made, None


def new() -> tuple[World, None]:
    return world(price=False), None


CASES: dict[str, Callable[[], tuple[World, Progress | None]]] = {
    "new": new,
    "training": training,
    "retried": retried,
    "unschedulable": unschedulable,
    "suspended": suspended,
    "failed": failed,
    "gate-failed": gate_failed,
    "passed": passed,
    "preferences": preferences,
}


def view(made: World, live: Progress | None) -> StatusView:
    version = made.versions[-1] if made.versions else None
    if version is not None and made.adapter is not None:
        _, statuses = decide_release(made.adapter, made.versions, made.now)
        version = version.model_copy(update={"status": statuses[version.metadata.name]})
    steps = next_steps(made.job, version, command)
    return StatusView(made.job, made.now, live, version, costs_of(made.job, live, made.now), steps)


def shown(value: Any) -> str:
    console = Console(file=io.StringIO(), width=140)
    console.print(value)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


@pytest.mark.parametrize("case", CASES)
def test_status_golden(case: str, request: pytest.FixtureRequest) -> None:
    """What `kubectl finetune status` prints; `--update-golden` rewrites it."""
    text = shown(view(*CASES[case]()))
    file = GOLDEN / f"status-{case}.txt"
    if request.config.getoption("--update-golden"):
        file.write_text(text)
    assert text == file.read_text()


@pytest.mark.parametrize(
    ("percent", "drawn"), [(-1, "[----]"), (0, "[----]"), (50, "[##--]"), (99, "[####]"), (200, "[####]")]
)
def test_bar(percent: float, drawn: str) -> None:
    assert bar(percent, 4) == drawn


def test_cost_is_what_ended_plus_what_runs_and_the_forecast_says_what_it_rests_on() -> None:
    made, live = training()
    costs = costs_of(made.job, live, made.now)
    assert costs is not None
    per_second = 2 * 2.5 / 3600
    # baseline 300 s and train 600 s so far, 830 s of train to come, evaluate as long as baseline.
    assert costs.spent == pytest.approx((300 + 600) * per_second, abs=1e-3)
    assert costs.forecast == pytest.approx([(300 + 600 + 830 + 300) * per_second] * 2, abs=1e-3)
    assert costs.limit == 20
    assert costs.basis == ["train 13 min 50 s more", "evaluate as long as baseline, 5 min 00 s"]
    assert made.status.forecast is not None
    known = next(item for item in made.status.forecast.stages if item.stage == "train")
    assert known.seconds_high is not None
    silent = costs_of(made.job, None, made.now)
    assert silent is not None
    assert silent.forecast is not None
    assert silent.forecast[1] == pytest.approx((300 + max(600, known.seconds_high) + 300) * per_second, abs=1e-3)
    assert silent.basis[0].startswith("train ")
    assert costs_of(failed()[0].job, None, made.now) is None


def test_fields_of_a_newer_operator_are_left_out_and_the_rest_is_shown() -> None:
    made, live = training()
    wire = made.job.to_wire()
    wire["status"]["fromTheFuture"] = {"a": 1}
    wire["status"]["stages"][0]["alsoNew"] = True
    wire["status"]["live"] = (live.to_wire() if live else {}) | {"tokensPerSecond": 12.5}
    read = read_as(FineTuneJob, wire)
    assert read.status is not None
    assert read.status.stages == made.status.stages
    progress = live_progress(wire)
    assert progress is not None
    assert (progress.percent, progress.eta_seconds) == (42, 830)
    wire["status"]["phase"] = "Dreaming"
    with pytest.raises(CliError, match=r"status\.phase") as refused:
        read_as(FineTuneJob, wire)
    assert "-o yaml" in refused.value.fix


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("complete", "Complete"),
        ("Released", "Released"),
        ("condition=Planned", "Planned"),
        ("condition=Ready=false", "Ready=False"),
    ],
)
def test_goals(text: str, goal: str) -> None:
    assert str(parse_goal(text)) == goal


@pytest.mark.parametrize("text", ["", "done", "condition=", "condition=Ready=maybe"])
def test_goals_that_are_none(text: str) -> None:
    with pytest.raises(CliError, match="nothing to wait for"):
        parse_goal(text)


@pytest.mark.parametrize(
    ("case", "goal", "state", "code"),
    [
        ("new", "complete", "waiting", 0),
        ("training", "complete", "waiting", 0),
        ("training", "condition=Planned", "met", 0),
        ("suspended", "suspended", "met", 0),
        ("suspended", "complete", "waiting", 0),
        ("retried", "failed", "waiting", 0),
        ("failed", "failed", "met", 0),
        ("failed", "complete", "never", CliExit.FAILED),
        ("failed", "released", "never", CliExit.FAILED),
        ("passed", "complete", "met", 0),
        ("passed", "failed", "never", CliExit.FAILED),
        ("passed", "released", "waiting", 0),
        ("gate-failed", "complete", "met", 0),
        ("gate-failed", "released", "never", CliExit.GATES_FAILED),
    ],
)
def test_waiting_ends_when_it_came_and_when_it_never_will(case: str, goal: str, state: str, code: int) -> None:
    seen = view(*CASES[case]())
    outcome = judge_wait(parse_goal(goal), seen.job, seen.version)
    assert (outcome.state, outcome.code) == (state, code)
    assert outcome.message


def test_a_rejected_version_is_never_released() -> None:
    seen = view(*passed())
    assert seen.version is not None
    status = AdapterVersionStatus(phase="Rejected", message="rejected by abe: wrong on refunds")
    outcome = judge_wait(parse_goal("released"), seen.job, seen.version.model_copy(update={"status": status}))
    assert (outcome.state, outcome.message) == (
        "never",
        "triage@v1 will not be released: rejected by abe: wrong on refunds",
    )


def test_a_run_that_is_asked_for_again_is_not_over() -> None:
    made = failed()[0]
    assert is_over(made.job)
    annotated = made.job.metadata.model_copy(update={"annotations": {RETRY_ANNOTATION: "now"}})
    assert not is_over(made.job.model_copy(update={"metadata": annotated}))
    edited = made.job.metadata.model_copy(update={"generation": 9})
    assert not is_over(made.job.model_copy(update={"metadata": edited}))


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ((None, None, False), ("train", 2)),
        (("train", 1, False), ("train", 1)),
        (("train", None, True), ("train", 1)),
        ((None, None, True), ("train", 1)),
        (("prepare", None, False), ("prepare", 1)),
    ],
)
def test_which_attempt_is_meant(arguments: tuple[str | None, int | None, bool], found: tuple[str, int]) -> None:
    stage, number, previous = arguments
    attempt = choose_attempt(retried()[0].job, stage, number, previous=previous)
    assert (attempt.name, attempt.attempt) == found


def pod(name: str, owner: str, index: int, created: str = "2026-01-01T00:00:00Z") -> dict[str, Any]:
    metadata = {
        "name": name,
        "uid": name,
        "creationTimestamp": created,
        "ownerReferences": [{"controller": True, "uid": owner}],
    }
    annotations = {"batch.kubernetes.io/job-completion-index": str(index)}
    return {"metadata": metadata | {"annotations": annotations}, "status": {"phase": "Pending"}}


def test_a_pod_belongs_by_its_owner_uid_and_its_rank() -> None:
    job = {"metadata": {"name": "j", "uid": "job-1", "namespace": "team-a"}}
    pods = [pod("forged", "job-0", 0), pod("rank-1", "job-1", 1), pod("rank-0", "job-1", 0)]
    chosen = choose_pod(job, pods, 0)
    assert chosen is not None
    assert chosen["metadata"]["name"] == "rank-0"
    assert choose_pod(job, pods, 2) is None


def test_why_a_pod_does_not_run_is_told_in_the_operators_words() -> None:
    job: dict[str, Any] = {"metadata": {"name": "j", "uid": "job-1", "namespace": "team-a"}, "spec": {"completions": 1}}
    waiting = pod("p", "job-1", 0)
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no GPU"}
    waiting["status"]["conditions"] = [condition]
    assert why_waiting(job, [waiting]).startswith("Unschedulable: pod p: 0/3 nodes: no GPU")
    assert why_waiting(job, []) == "the Job has no pod yet"
    assert why_waiting(job | {"spec": {"completions": 1, "suspend": True}}, []).startswith("Queued: ")


def test_what_is_left_of_a_log_names_the_report() -> None:
    made = failed()[0]
    lines = "\n".join(what_is_left(made.job, made.status.stages[-1]))
    assert "exit code 81" in lines
    assert "s3://bucket/store/team-a/triage/runs/uid-1/1/prepare/report.json" in lines
    assert "row 7 has no answer" in lines


def event(kind: str, name: str, uid: str = "", **more: Any) -> dict[str, Any]:
    return {"regarding": {"kind": kind, "name": name, "uid": uid}, "reason": "R", "note": "n", "type": "Normal"} | more


def test_events_of_a_job_are_those_of_its_children_and_nobody_elses() -> None:
    made = passed()[0]
    ours, child = Belonging(made.job), made.status.stages[0].job_name
    inside = [
        event("FineTuneJob", "support", "uid-1"),
        event("Job", child),
        event("Pod", f"{child}-0-x7x2z"),
        event("Workload", f"job-{child}-a1b2c"),
        event("AdapterVersion", "triage-v1"),
    ]
    outside = [
        event("FineTuneJob", "support", "uid-of-its-predecessor"),
        event("Pod", "support-abcdefg-prepare-1-0-x7x2z"),
        event("AdapterVersion", "triage-v2"),
        event("Node", child),
    ]
    assert [item in ours for item in inside] == [True] * len(inside)
    assert [item in ours for item in outside] == [False] * len(outside)


def test_times_of_events_of_every_generation() -> None:
    old = event("Pod", "p", deprecatedLastTimestamp="2026-01-01T10:00:00Z", deprecatedCount=3, eventTime=None)
    new = event("Pod", "p", eventTime="2026-01-01T09:00:00.123456Z")
    told = [happening(old), happening(new)]
    assert sorted(told) == [told[1], told[0]]
    assert (told[0].count, told[0].at.hour) == (3, 10)


def test_a_decision_is_added_to_those_that_are_there_and_conflicts_when_they_change() -> None:
    version = passed()[0].versions[-1]
    version = version.model_copy(update={"metadata": version.metadata.model_copy(update={"resource_version": "7"})})
    entry = {"by": "abe", "decision": "approve", "reason": ""}
    decision = Decision.from_wire(entry)
    same, add = decision_patch(version, decision)
    assert same == {"op": "replace", "path": "/metadata/resourceVersion", "value": "7"}
    assert (add["path"], add["value"]) == ("/spec/decisions", [entry])
    with_one = version.model_copy(update={"spec": version.spec.model_copy(update={"decisions": [decision]})})
    assert decision_patch(with_one, decision)[1] == {"op": "add", "path": "/spec/decisions/-", "value": entry}


def test_four_eyes_are_told() -> None:
    version = passed()[0].versions[-1]
    assert "not recorded" in eyes_line(version, Policy())
    origin = version.spec.origin.model_copy(update={"author": "ada"})
    authored = version.model_copy(update={"spec": version.spec.model_copy(update={"origin": origin})})
    assert eyes_line(authored, Policy()) == "approvals 0 of 1; four eyes: anybody but the author (ada)"
    with pytest.raises(CliError, match="does not count"):
        refuse_own_approval(authored, Policy(), parse_version_name("triage@v1"), "ada")
    refuse_own_approval(authored, Policy(), parse_version_name("triage@v1"), "abe")


def flags(**given: Any) -> Namespace:
    return Namespace(**({"cluster": False, "local": False, "context": None, "kubeconfig": None, "state": None} | given))


@pytest.mark.parametrize(
    ("program", "given", "cluster"),
    [
        ("finetune", {}, False),
        ("kubectl finetune", {}, True),
        ("finetune", {"cluster": True}, True),
        ("finetune", {"context": "prod"}, True),
        ("kubectl finetune", {"local": True}, False),
        ("kubectl finetune", {"state": Path("x")}, False),
    ],
)
def test_which_world_is_meant(program: str, given: dict[str, Any], cluster: bool) -> None:
    assert wants_cluster(flags(program=program, **given)) is cluster


def test_both_worlds_at_once_are_refused() -> None:
    with pytest.raises(CliError, match="both"):
        wants_cluster(flags(program="finetune", context="prod", local=True))


def test_next_step_of_an_approved_version() -> None:
    seen = view(*passed())
    assert seen.version is not None
    approved = AdapterVersionStatus(phase="Approved", message="approved by abe", channels=["stable"])
    steps = next_steps(seen.job, seen.version.model_copy(update={"status": approved}), command)
    assert steps[0] == "served by channel stable"
    assert next_steps(seen.job, None, command)[0].startswith("kubectl finetune approve triage@v1 -n team-a")


def test_completion_of_verbs_needs_no_cluster() -> None:
    assert [line.split("\t")[0] for line in completions(["re"])] == ["reject", "resume", "retry", ":4"]
    assert completions(["submit", ""]) == [":0"]
