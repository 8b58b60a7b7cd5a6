"""A pod whose node stays away must not hold its run for ever."""

from __future__ import annotations

from datetime import timedelta

import pytest

from finetune_operator.decide.types import PodState
from tests.decide.world import START, World


def world_with(pod: PodState) -> World:
    world = World()
    world.run_to("train")
    world.run_pods()
    world.set_run(pods=(pod,))
    return world


def test_a_pod_that_outlives_its_grace_by_a_minute_is_removed_by_uid() -> None:
    gone_by = START + timedelta(seconds=600)
    world = world_with(PodState("pod-0", phase="Running", uid="pod-uid", terminating=True, gone_by=gone_by))
    decision = world.settle()
    assert decision.force_deletes == ()
    assert decision.wake_at == gone_by + timedelta(seconds=60)
    world.now = decision.wake_at
    decision = world.decide()
    assert [(lost.pod, lost.uid) for lost in decision.force_deletes] == [("pod-0", "pod-uid")]
    # The Job's controller holds on to the pod until the Job goes.
    assert [stop.job_name for stop in decision.stops] == [world.active.job_name]
    world.write_status(decision)
    world.carry_out(decision)
    lost, following = world.status.stages[-2:]
    assert (lost.cause, lost.counts_against_retries) == ("NodeLost", False)
    assert (following.name, following.attempt) == ("train", 2)


@pytest.mark.parametrize(
    "pod",
    [
        PodState("pod-0", phase="Running", uid="u"),
        PodState("pod-0", phase="Succeeded", uid="u", terminating=True, gone_by=START),
        PodState("pod-0", phase="Failed", uid="u", terminating=True, gone_by=START),
    ],
)
def test_other_pods_are_left_alone(pod: PodState) -> None:
    world = world_with(pod)
    world.tick(86_000)
    assert world.decide().force_deletes == ()
