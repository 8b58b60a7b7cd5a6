"""A finished job goes on telling what became of its version."""

from __future__ import annotations

import pytest

from finetune_api.common import Condition
from tests.decide.world import World
from tests.gitops import stories

CASES = [
    # what has happened, reason of the job, status and reason of Released, whether a next step is named
    ("waits", stories.finished, "AwaitingApproval", "False", "AwaitingApproval", True),
    ("inconclusive", lambda: stories.finished(0.0, 0.3), "Inconclusive", "False", "Inconclusive", True),
    ("gate failed", lambda: stories.finished(-0.1, 0.04), "GateFailed", "False", "GateFailed", True),
    ("approved", stories.approved, "Released", "True", "Serving", False),
    ("replaced by a later version", stories.pinned_elsewhere, "Approved", "False", "NotServed", False),
    ("rejected", stories.rejected, "Rejected", "False", "Rejected", True),
    ("taken back", stories.rejected_after_release, "Rejected", "False", "Rejected", True),
    ("unchanged", stories.unchanged, "Unchanged", "False", "AwaitingApproval", True),
    ("no version", stories.suffices, "BaselineSuffices", "False", "BaselineSuffices", True),
]


def released(world: World) -> Condition:
    return next(condition for condition in world.status.conditions if condition.type == "Released")


@pytest.mark.parametrize(
    ("make", "reason", "truth", "why", "next_step"), [case[1:] for case in CASES], ids=[c[0] for c in CASES]
)
def test_a_finished_job_follows_its_version(make, reason: str, truth: str, why: str, next_step: bool) -> None:  # type: ignore[no-untyped-def]
    world = make()
    assert (world.status.phase, world.status.reason) == ("Succeeded", reason)
    assert (released(world).status, released(world).reason) == (truth, why)
    assert bool(world.status.next_step) is next_step


def test_an_approval_that_is_withdrawn_is_waited_for_again() -> None:
    world = stories.approved()
    before = stories.finished().status
    wire = world.versions[0].to_wire()
    wire["spec"]["decisions"] = []
    world.versions[0] = type(world.versions[0]).from_wire(wire)
    stories.follow(world)
    assert (world.status.reason, world.status.message, world.status.next_step) == (
        before.reason,
        before.message,
        before.next_step,
    )


def test_each_change_is_an_event_and_the_end_of_the_run_stays_when_it_was() -> None:
    world = stories.finished()
    ended = world.status.completed_at
    world.events.clear()
    stories.decide_version(world, "approve")
    stories.decide_version(world, "reject")
    assert [event.reason for event in world.events if event.reason in ("Released", "Rejected")] == [
        "Released",
        "Rejected",
    ]
    assert world.status.completed_at == ended


def test_the_same_digest_under_another_number_is_another_version() -> None:
    world = stories.approved()
    second = world.versions[0].to_wire()
    second["metadata"]["name"] = "triage-v2"
    second["spec"]["version"] = 2
    world.versions.append(type(world.versions[0]).from_wire(second))
    stories.follow(world)
    assert (released(world).status, released(world).reason) == ("False", "NotServed")


PHASES_THAT_WAIT_FOR_NOBODY = ["Suspended", "Cancelled", "Succeeded"]


@pytest.mark.parametrize(
    "world",
    [
        stories.stopped_for_good(suspend=True),
        stories.stopped_for_good(cancel=True),
        stories.approved(),
        stories.running("train"),
        stories.failed(),
        stories.without_pool(),
    ],
    ids=lambda world: f"{world.status.phase}-{world.status.reason}",
)
def test_of_ready_reconciling_and_stalled_exactly_one_is_true(world: World) -> None:
    truths = {condition.type: condition.status for condition in world.status.conditions}
    assert [truths[name] for name in ("Ready", "Reconciling", "Stalled")].count("True") == 1
    assert (truths["Ready"] == "True") == (world.status.phase in PHASES_THAT_WAIT_FOR_NOBODY)
