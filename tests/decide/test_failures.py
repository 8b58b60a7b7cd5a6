"""Every way a stage can end, and what the operator makes of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from finetune_api.exit_codes import CAUSE_OF_EXIT_CODE, ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import EVALUATION_EXHAUSTED, PROBE_EXHAUSTED, TrainPlan
from finetune_operator.decide.causes import registry
from finetune_operator.decide.diagnosis import diagnose_failure
from finetune_operator.decide.types import PodState, StageRun
from tests.decide.world import START, World, job_dict, pool


def test_every_cause_of_the_contract_has_a_module() -> None:
    assert set(CAUSE_OF_EXIT_CODE.values()) <= set(registry())


@pytest.mark.parametrize(
    ("code", "then"),
    [
        (ExitCode.INVALID_SPEC, "fails"),
        (ExitCode.INVALID_DATA, "fails"),
        (ExitCode.SOURCE_NOT_FOUND, "fails"),
        (ExitCode.ACCESS_DENIED, "fails"),
        (ExitCode.DISK_FULL, "fails"),
        (ExitCode.HOST_OUT_OF_MEMORY, "fails"),
        (ExitCode.TRAINING_DIVERGED, "fails"),
        (ExitCode.MODEL_UNUSABLE, "fails"),
        (ExitCode.INTERRUPTED, "again at once"),
        (ExitCode.FENCED, "again at once"),
        (ExitCode.GPU_OUT_OF_MEMORY, "again at once"),
        (ExitCode.STORAGE_UNAVAILABLE, "again later"),
        (ExitCode.HUNG, "again later"),
        (ExitCode.GPU_UNAVAILABLE, "again later"),
        (ExitCode.INTERNAL, "again later"),
    ],
)
def test_a_reported_failure(code: ExitCode, then: str) -> None:
    world = World()
    world.run_to("train")
    cause = CAUSE_OF_EXIT_CODE[code]
    report = world.report(
        outcome="Failed", exitCode=int(code), cause=cause, message="row 17 has no answer", evidence="line"
    )
    world.end(int(code), report)
    failed = next(stage for stage in world.status.stages if stage.state == "Failed")
    assert (failed.cause, failed.message.split(" (next")[0], failed.exit_code) == (
        cause,
        "row 17 has no answer",
        int(code),
    )
    assert failed.hint
    if then == "fails":
        assert (world.status.phase, world.status.reason) == ("Failed", cause)
        assert "row 17 has no answer" in world.status.message
    elif then == "again at once":
        assert [stage.attempt for stage in world.status.stages if stage.name == "train"] == [1, 2]
    else:
        assert world.status.reason == "Retrying"
        wake = world.decide().wake_at
        assert wake is not None
        assert wake > world.now
        world.now = wake
        world.settle()
        assert world.status.stages[-1].attempt == 2


@pytest.mark.parametrize(
    ("pod", "cause"),
    [
        ({"exit_code": 137, "reason": "OOMKilled"}, "HostOutOfMemory"),
        ({"exit_code": 137, "disruption": "PreemptionByScheduler"}, "Preempted"),
        ({"exit_code": 143, "disruption": "EvictionByEvictionAPI"}, "Evicted"),
        ({"exit_code": 137, "disruption": "DeletionByTaintManager"}, "NodeLost"),
        ({"exit_code": 137, "reason": "Error"}, "Killed"),
        ({"exit_code": 137, "reason": "Error", "terminating": True}, "PodDeleted"),
        ({"exit_code": 143, "terminating": True, "disruption": "EvictionByEvictionAPI"}, "Evicted"),
        ({"exit_code": 1, "reason": "Error", "message": "Traceback ... KeyError: 'x'"}, "InternalError"),
        *(
            ({"exit_code": code, "reason": reason, "evicted": message}, cause)
            # The kubelet's own words (pkg/kubelet/eviction/helpers.go); the container only says that it was killed.
            for code, reason in ((137, "Error"), (85, "Error"), (None, ""))
            for message, cause in (
                ('Usage of EmptyDir volume "scratch" exceeds the limit "200Gi". ', "DiskFull"),
                ('Container stage exceeded its local ephemeral storage limit "1Gi". ', "DiskFull"),
                ("Pod ephemeral local storage usage exceeds the total limit of containers 1Gi. ", "DiskFull"),
                (
                    "The node was low on resource: ephemeral-storage. Threshold quantity: 10Gi, available: 9Gi. "
                    "Container stage was using 50Gi, request is 0, has larger consumption of ephemeral-storage. ",
                    "Evicted",
                ),
                ("The node was low on resource: memory. Threshold quantity: 100Mi, available: 50Mi. ", "Evicted"),
                ("The node had condition: [DiskPressure]. ", "Evicted"),
            )
        ),
        ({"exit_code": 137, "disruption": "TerminationByKubelet", "evicted": "low on memory"}, "Evicted"),
        (
            {
                "exit_code": 128,
                "reason": "StartError",
                "message": 'failed to create task: exec: "finetune-runner": executable file not found in $PATH',
            },
            "ImageUnusable",
        ),
        ({"exit_code": 2, "message": '{"not": "a report"}'}, "InternalError"),
    ],
)
def test_a_pod_that_died_without_a_report_is_diagnosed_from_its_status(pod: dict[str, Any], cause: str) -> None:
    run = StageRun("job", "uid", "Failed", pods=(PodState("pod-0", phase="Failed", **pod),))
    diagnosis = diagnose_failure(run, "uid-1", 1)
    assert diagnosis.cause.name == cause
    assert diagnosis.evidence


def test_the_first_cause_wins_and_ranks_that_died_of_deletion_are_consequences() -> None:
    world = World()
    world.run_to("train")
    report = world.report(outcome="Failed", exitCode=88, cause="TrainingDiverged", message="loss is NaN at step 12")
    later = START.replace(hour=1)
    first = PodState("p0", 0, "Failed", 143, "Error", terminating=True, finished_at=START)
    second = PodState("p1", 1, "Failed", 88, "Error", report, finished_at=later)
    diagnosis = diagnose_failure(StageRun("job", "uid", "Failed", pods=(first, second)), "uid-1", 1)
    assert diagnosis.cause.name == "TrainingDiverged"


def test_a_report_of_another_run_is_not_believed() -> None:
    world = World()
    world.run_to("train")
    forged = world.report(outcome="Failed", exitCode=88, cause="TrainingDiverged", uid="somebody-else")
    pod = PodState("p0", 0, "Failed", 1, "Error", forged)
    assert diagnose_failure(StageRun("job", "uid", "Failed", pods=(pod,)), "uid-1", 1).cause.name == "InternalError"


def test_retries_end_and_those_that_do_not_count_do_not_use_them_up() -> None:
    world = World(job_dict(compute={"pool": "a100", "maxRetries": 1}))
    world.run_to("train")
    for _ in range(4):
        world.end(137, disruption="PreemptionByScheduler")
    assert world.status.phase == "Training"
    for _ in range(2):
        world.end(1, "boom")
        wake = world.decide().wake_at
        world.now = wake or world.now
        world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "InternalError")


def test_gpu_out_of_memory_climbs_the_ladder_with_the_same_effective_batch() -> None:
    world = World()
    world.run_to("train")
    seen = []
    while world.status.phase == "Training":
        plan = world.status.plan
        assert plan is not None
        seen.append((plan.micro_batch_size, plan.gradient_accumulation, plan.gradient_checkpointing))
        report = world.report(outcome="Failed", exitCode=86, cause="GPUOutOfMemory", message="CUDA out of memory")
        world.end(86, report)
    assert {micro * accumulation for micro, accumulation, _ in seen} == {16}
    assert seen[-1][0] == 1
    assert world.status.reason == "GPUOutOfMemory"


@pytest.mark.parametrize("stage", ["baseline", "evaluate"])
def test_a_stage_that_judges_spreads_one_copy_further(stage: str) -> None:
    world = World(job_dict(compute={"pool": "a100", "gpusPerNode": 4}), pools=(pool(gpusPerNode=4),))
    world.run_to(stage)
    spread: list[int] = []
    while world.status.phase != "Failed":
        assert world.status.plan is not None
        spread.append(world.status.plan.judging_gpus)
        report = world.report(outcome="Failed", exitCode=86, cause="GPUOutOfMemory", message="CUDA out of memory")
        world.end(86, report)
    assert spread == [1, 2, 4]
    assert "next attempt: one copy of the model over 2 -> 4 GPUs" in str([s.message for s in world.status.stages])
    assert "more of them in a pod" in world.status.next_step


def test_vllm_has_every_gpu_already() -> None:
    adjust = registry()["GPUOutOfMemory"].adjust_judging
    assert adjust is not None
    world = World(job_dict(compute={"pool": "a100", "gpusPerNode": 2}, evaluation={"engine": "vllm"}))
    world.run_to("baseline")
    assert world.status.plan is not None
    assert adjust(world.status.plan, world.job.spec) is None


@pytest.mark.parametrize("stage", ["baseline", "evaluate"])
def test_the_ladder_is_not_climbed_for_a_stage_that_does_not_train(stage: str) -> None:
    """Micro-batch and strategy mean nothing to answering: the same attempt would end the same way, and cost."""
    world = World()
    world.run_to(stage)
    plan = world.status.plan
    report = world.report(outcome="Failed", exitCode=86, cause="GPUOutOfMemory", message="CUDA out of memory")
    world.end(86, report)
    assert (world.status.phase, world.status.reason) == ("Failed", "GPUOutOfMemory")
    assert world.status.plan == plan
    assert [attempt.name for attempt in world.status.stages].count(stage) == 1
    for fix in ("compute.pool", "method.type: qlora", "training.maxLength", "evaluation.maxNewTokens"):
        assert fix in world.status.next_step
    assert world.status.stages[-1].hint == world.status.next_step
    assert "training.microBatchSize" not in world.status.next_step


def test_a_lost_report_is_read_again_from_storage() -> None:
    world = World()
    world.run_to("train")
    world.end(0, "")
    assert world.status.stages[-1].mode == "recover"
    assert world.started[-1].gpus_per_node == 0
    world.succeed()
    assert world.status.stages[-1].name == "evaluate"


def test_a_report_that_cannot_be_recovered_is_tried_as_a_whole_attempt() -> None:
    world = World()
    world.run_to("train")
    world.end(0, "")
    world.end(0, "")
    wake = world.decide().wake_at
    assert wake is not None
    world.now = wake
    world.settle()
    assert [(stage.mode, stage.attempt) for stage in world.status.stages if stage.name == "train"] == [
        ("run", 1),
        ("recover", 2),
        ("run", 3),
    ]


@pytest.mark.parametrize(
    ("pod", "reason", "ends"),
    [
        ({"waiting_reason": "ImagePullBackOff", "waiting_message": "not found"}, "ImagePull", True),
        (
            {"waiting_reason": "CreateContainerConfigError", "waiting_message": 'secret "hf" not found'},
            "ContainerConfig",
            True,
        ),
        ({"unschedulable": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu"}, "Unschedulable", False),
        ({"unschedulable": '0/3 nodes are available: persistentvolumeclaim "m" not found.'}, "ClaimUnavailable", False),
    ],
)
def test_a_pod_that_does_not_start_is_named_at_once(pod: dict[str, str], reason: str, ends: bool) -> None:
    world = World()
    world.settle()
    world.set_run(pods=(PodState("pod-0", **pod),))
    world.settle()
    assert world.status.reason == reason
    assert world.status.next_step
    world.tick(3600)
    world.settle()
    assert (world.status.phase == "Failed") == ends


def test_a_gang_that_does_not_fit_is_released_and_retried() -> None:
    world = World(job_dict(compute={"pool": "a100", "nodes": 2, "gpusPerNode": 1}))
    world.run_to("train")
    pods = (PodState("p0", 0, "Running"), PodState("p1", 1, unschedulable="no node"))
    world.set_run(pods=pods)
    world.settle()
    world.tick(301)
    world.settle()
    assert world.active.state == "Terminating"
    wake = world.decide().wake_at
    world.remove_terminated()
    world.now = wake or world.now
    world.settle()
    assert world.status.stages[-1].attempt == 2
    assert world.status.phase == "Training"


def test_a_deleted_stage_job_is_started_again_under_another_name() -> None:
    world = World()
    world.run_to("train")
    world.run_pods()
    del world.runs[world.active.job_name]
    world.settle()
    assert world.status.stages[-1].attempt == 2
    assert world.active.state == "Pending"


def test_a_terminating_job_is_waited_for() -> None:
    world = World()
    world.run_to("train")
    world.run_pods()
    run = world.active
    world.runs[run.job_name] = replace(run, state="Terminating")
    decision = world.settle()
    assert decision.starts == ()
    assert world.status.reason == "Stopping"


def test_a_full_volume_is_no_interruption_although_the_process_saved_its_work() -> None:
    world = World()
    world.run_to("train")
    report = world.report(outcome="Failed", exitCode=85, cause="Interrupted", message="a checkpoint was saved")
    world.end(85, report, evicted='Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". ')
    assert (world.status.phase, world.status.reason) == ("Failed", "DiskFull")
    assert "scratchSize" in world.status.next_step


def test_a_rank_that_the_kernel_killed_for_memory_is_no_internal_error() -> None:
    """Seen with ZeRO-3 on a real node: the launcher lives, and reports a rank that left nothing."""
    world = World(job_dict(compute={"pool": "a100", "nodes": 2, "gpusPerNode": 1}))
    world.run_to("train")
    said = world.report(outcome="Failed", exitCode=1, cause="InternalError", message="rank 1 was killed by SIGKILL")
    lost = PodState("pod-0", 0, "Failed", exit_code=1, message=said, finished_at=world.now)
    world.tick(6)
    killed = PodState("pod-1", 1, "Failed", exit_code=1, reason="OOMKilled", message=said, finished_at=world.now)
    world.set_run(state="Failed", pods=(lost, killed), finished_at=world.now)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "HostOutOfMemory")
    assert "gpuPod" in world.status.next_step


@pytest.mark.parametrize(
    ("pod", "cause", "says"),
    [
        (
            {"unschedulable": "0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: not helpful."},
            "Unschedulable",
            "3 Insufficient nvidia.com/gpu",
        ),
        (
            {
                "waiting_reason": "ErrImagePull",
                "waiting_message": 'failed to resolve reference "r.example/x:1": not found',
            },
            "ImagePull",
            "not found",
        ),
        ({"waiting_reason": "ImagePullBackOff", "waiting_message": "Back-off pulling image"}, "ImagePull", "Back-off"),
        ({"waiting_reason": "InvalidImageName", "waiting_message": "couldn't parse image name"}, "ImagePull", "parse"),
        (
            {"waiting_reason": "ErrImageNeverPull", "waiting_message": "not present with pull policy"},
            "ImagePull",
            "policy",
        ),
        (
            {"waiting_reason": "CreateContainerConfigError", "waiting_message": 'secret "hf" not found'},
            "ContainerConfig",
            'secret "hf" not found',
        ),
        (
            {"unschedulable": '0/3 nodes are available: persistentvolumeclaim "models" not found. preemption: ...'},
            "ClaimUnavailable",
            'persistentvolumeclaim "models" not found',
        ),
        (
            {"unschedulable": "0/3 nodes are available: pod has unbound immediate PersistentVolumeClaims."},
            "ClaimUnavailable",
            "unbound",
        ),
        (
            {"unschedulable": "0/3 nodes are available: 3 node(s) didn't match PersistentVolume's node affinity."},
            "Unschedulable",
            "node affinity",
        ),
    ],
)
def test_what_a_pod_waits_for_is_named_while_it_waits(pod: dict[str, Any], cause: str, says: str) -> None:
    world = World()
    world.run_to("train")
    world.set_run(state="Pending", pods=(PodState("pod-0", phase="Pending", **pod),))
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Training", cause)
    assert says in world.status.message
    assert world.status.next_step
    warnings = [event for event in world.events if event.reason == cause]
    assert len(warnings) == 1, "told once, when it begins"


def test_a_job_that_waited_long_in_its_queue_has_its_full_time_to_start() -> None:
    world = World(job_dict(compute={"pool": "a100", "queue": "team-a"}))
    world.run_to("baseline")
    world.tick(3600)
    pulling = PodState("p0", phase="Pending", waiting_reason="ErrImagePull", waiting_message="timeout")
    world.set_run(state="Pending", pods=(pulling,), started_at=world.now)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Baseline", "ImagePull")
    world.tick(601)
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Failed", "ImagePull")


def test_the_delay_grows_with_failures_of_the_same_cause_even_when_they_do_not_count() -> None:
    world = World(job_dict(compute={"pool": "a100", "nodes": 2, "gpusPerNode": 1}))
    world.run_to("train")
    delays_s = []
    for _ in range(5):
        bound = PodState("p0", 0, "Running", started_at=world.now)
        stuck = PodState("p1", 1, "Pending", unschedulable="0/2 nodes are available: 2 Insufficient nvidia.com/gpu.")
        world.set_run(state="Pending", pods=(bound, stuck))
        world.settle()
        world.tick(301)
        world.settle()
        assert world.active.state == "Terminating", "the half that runs gives its GPUs back"
        retry_at = world.status.stages[-1].retry_at
        assert retry_at is not None
        delays_s.append((retry_at - world.now).total_seconds())
        world.remove_terminated()
        world.now = retry_at
        world.settle()
    assert delays_s == sorted(delays_s)
    assert delays_s[-1] > 8 * delays_s[0]
    assert not any(stage.counts_against_retries for stage in world.status.stages if stage.state == "Failed")


def test_a_pod_whose_volumes_are_not_made_is_pointed_at_and_goes_on_when_they_are() -> None:
    world = World()
    world.run_to("train")
    world.set_run(pods=(PodState("pod-0", waiting_reason="ContainerCreating"),))
    world.settle()
    assert world.status.reason == "Starting"
    wake = world.decide().wake_at
    assert wake is not None
    world.now = wake
    world.settle()
    assert (world.status.phase, world.status.reason) == ("Training", "StartsSlowly")
    assert "kubectl describe pod pod-0" in world.status.next_step
    assert world.decide().wake_at is None
    world.run_pods()
    assert world.status.reason == "Training"


@pytest.mark.parametrize(
    ("strategy", "evidence", "expected"),
    [
        ("ddp", "", (4, 2, False, "ddp")),
        ("ddp", f"{PROBE_EXHAUSTED}: as planned", (1, 8, True, "fsdp")),
        ("single", f"{PROBE_EXHAUSTED}: as planned", None),
        ("deepspeed", "", (4, 2, False, "deepspeed")),
        ("deepspeed", f"{PROBE_EXHAUSTED}: as planned", None),
        # An evaluation that ran out has tried single rows: only weights in parts give it room.
        ("ddp", f"{EVALUATION_EXHAUSTED}: tried to allocate", (8, 1, False, "fsdp")),
        ("single", f"{EVALUATION_EXHAUSTED}: tried to allocate", None),
        ("fsdp", f"{EVALUATION_EXHAUSTED}: tried to allocate", None),
    ],
)
def test_what_the_probe_has_tried_is_not_tried_again(
    strategy: str, evidence: str, expected: tuple[int, int, bool, str] | None
) -> None:
    step = _gentler(strategy, evidence)
    found = step and (
        step[0].micro_batch_size,
        step[0].gradient_accumulation,
        step[0].gradient_checkpointing,
        step[0].strategy,
    )
    assert found == expected


def _plan(strategy: str, planned: str = "lora") -> TrainPlan:
    """For two GPUs, with micro-batch 8 and ZeRO stage 2."""
    return TrainPlan.model_validate(
        {
            "method": planned,
            "strategy": strategy,
            "nodes": 1,
            "gpusPerNode": 2,
            "totalSteps": 1,
            "microBatchSize": 8,
            "gradientAccumulation": 1,
            "evalSteps": 1,
            "zeroStage": 2,
        }
    )


def _gentler(strategy: str, evidence: str, planned: str = "lora", **spec: Any) -> tuple[TrainPlan, str] | None:
    adjust = registry()["GPUOutOfMemory"].adjust
    assert adjust is not None
    return adjust(_plan(strategy, planned), FineTuneJobSpec.from_wire(job_dict(**spec)["spec"]), evidence)


@pytest.mark.parametrize(("micro", "rungs"), [(6, [3, 1]), (9, [3, 1]), (7, [1]), (8, [4, 2, 1]), (1, [])])
def test_every_micro_batch_goes_down_to_one_with_the_same_examples_per_step(micro: int, rungs: list[int]) -> None:
    plan: TrainPlan | None = _plan("ddp").model_copy(update={"micro_batch_size": micro, "gradient_accumulation": 5})
    seen = []
    while plan is not None and (plan := plan.with_smaller_micro_batch()) is not None:
        seen.append(plan.micro_batch_size)
        assert plan.micro_batch_size * plan.gradient_accumulation == 5 * micro
    assert seen == rungs


EIGHT_BIT = {"type": "qlora", "bits": 8}
LION = {"optimizer": "lion"}
DEEPSPEED_2 = {"strategy": "deepspeed", "deepspeed": {"stage": 2}}
NO_RECOMPUTATION = {"gradientCheckpointing": "disabled"}


@pytest.mark.parametrize(
    ("strategy", "method", "spec", "changed"),
    [
        ("ddp", "qlora", {"method": {"type": "qlora", "bits": 4}}, "strategy ddp -> fsdp"),
        ("ddp", "qlora", {"method": EIGHT_BIT}, None),
        ("deepspeed", "lora", {"compute": DEEPSPEED_2}, None),
        ("ddp", "lora", {"method": {"bits": 8}}, "strategy ddp -> fsdp"),  # auto took lora: bits mean nothing
        ("ddp", "lora", {"compute": {"strategy": "ddp"}}, None),
        ("ddp", "lora", {"compute": {"strategy": "auto"}}, "strategy ddp -> fsdp"),
        ("ddp", "lora", {"training": LION}, None),
        ("ddp", "lora", {"training": {"optimizer": "adamw_8bit"}}, None),
        ("ddp", "lora", {"training": {"optimizer": "adafactor"}}, None),
        ("ddp", "qlora", {"training": LION}, "strategy ddp -> fsdp"),
    ],
)
def test_the_ladder_ends_where_parts_cannot_be_made_or_were_not_wanted(
    strategy: str, method: str, spec: dict[str, Any], changed: str | None
) -> None:
    step = _gentler(strategy, f"{PROBE_EXHAUSTED}: as planned", method, **spec)
    assert (step and step[1]) == changed
    halved = _gentler(strategy, "", method, **spec)
    assert halved is not None
    assert halved[1] == "micro-batch 8 -> 4", "the gentler steps before it are still taken"


def test_recomputation_that_the_spec_rules_out_is_not_switched_on() -> None:
    probed = f"{PROBE_EXHAUSTED}: as planned"
    step = _gentler("ddp", probed, training=NO_RECOMPUTATION)
    assert step is not None
    assert (step[1], step[0].gradient_checkpointing) == ("strategy ddp -> fsdp", False)
    assert _gentler("single", probed, training=NO_RECOMPUTATION) is None


@pytest.mark.parametrize(
    ("strategy", "spec", "named"),
    [
        ("deepspeed", {"compute": DEEPSPEED_2}, ["compute.deepspeed.stage: 2"]),
        ("deepspeed", {"compute": DEEPSPEED_2, "method": {"type": "qlora", "bits": 8}}, []),  # 3 could not be had
        ("ddp", {"compute": {"strategy": "ddp"}}, ["compute.strategy: ddp"]),
        ("ddp", {"compute": {"strategy": "ddp"}, "training": LION}, []),
        ("single", {"training": NO_RECOMPUTATION}, ["training.gradientCheckpointing: disabled"]),
        ("single", {}, []),
    ],
)
def test_what_the_spec_rules_out_is_named_where_the_ladder_ends(
    strategy: str, spec: dict[str, Any], named: list[str]
) -> None:
    held = registry()["GPUOutOfMemory"].held
    assert held is not None
    method = "qlora" if "method" in spec else "lora"
    said = held(_plan(strategy, method), FineTuneJobSpec.from_wire(job_dict(**spec)["spec"]))
    fields = ("compute.deepspeed.stage: 2", "compute.strategy: ddp", "training.gradientCheckpointing: disabled")
    assert [field for field in fields if field in said] == named
    assert bool(said) == bool(named)


def test_the_end_of_the_ladder_tells_the_user_which_of_their_fields_to_change() -> None:
    world = World(job_dict(training=NO_RECOMPUTATION))
    world.run_to("train")
    while world.status.phase == "Training":
        assert world.status.plan is not None
        assert not world.status.plan.gradient_checkpointing
        world.end(86, world.report(outcome="Failed", exitCode=86, cause="GPUOutOfMemory", message="CUDA out of memory"))
    assert world.status.next_step.startswith("The spec rules out what would need less memory: training.gradientCheck")
    assert "compute.pool" in world.status.next_step
