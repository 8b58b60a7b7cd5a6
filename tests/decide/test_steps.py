"""What an interruption of training costs is told: where it resumed and how many steps were lost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Progress
from finetune_operator.decide import decide
from finetune_operator.decide.types import Decision, Observed
from tests.decide.world import World


class Told(World):
    """A world whose pods push their progress."""

    live: Progress | None = None

    def observed(self) -> Observed:
        seen = super().observed()
        return Observed(**{**seen.__dict__, "progress": self.live})

    def decide(self) -> Decision:
        return decide(self.observed(), self.now)

    def push(self, step: int, resumed_from: int | None) -> None:
        attempt = self.status.stages[-1].attempt
        self.live = Progress(
            stage="train",
            attempt=attempt,
            step=step,
            total_steps=170,
            percent=step / 1.7,
            resumed_from_step=resumed_from,
            updated_at=self.now,
        )
        self.settle()


@dataclass(frozen=True)
class Case:
    reached: int
    """Last step that was heard of before the pod was lost."""
    resumed: int
    lost: int


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(Case(reached=130, resumed=130, lost=0), id="the checkpoint of the last step"),
        pytest.param(Case(reached=130, resumed=100, lost=30), id="an older checkpoint"),
        pytest.param(Case(reached=130, resumed=0, lost=130), id="no checkpoint"),
        pytest.param(Case(reached=90, resumed=100, lost=0), id="a checkpoint later than the last news"),
    ],
)
def test_the_next_attempt_says_where_it_resumed_and_what_was_lost(case: Case) -> None:
    world = Told()
    world.run_to("train")
    world.run_pods()
    world.push(case.reached, resumed_from=0)
    first = world.status.stages[-1]
    assert (first.last_step, first.resumed_from_step, first.lost_steps) == (case.reached, 0, None)
    assert not [event for event in world.events if event.reason == "Resumed"], "a first attempt resumes nothing"
    world.end(int(ExitCode.INTERRUPTED), disruption="DeletionByTaintManager")
    world.tick(60)
    world.settle()
    world.run_pods()
    world.push(0, resumed_from=None)
    assert world.status.stages[-1].resumed_from_step is None, "while it loads nobody knows"
    world.push(case.resumed + 1, resumed_from=case.resumed)
    second = world.status.stages[-1]
    assert (second.resumed_from_step, second.lost_steps) == (case.resumed, case.lost)
    told = f"resumed from step {case.resumed} ({case.lost} steps lost)"
    assert told in world.status.message
    assert f"train attempt 2: {told}" in [event.message for event in world.events if event.reason == "Resumed"]


def test_without_news_the_result_still_says_where_it_resumed() -> None:
    world = World()
    world.run_to("train")
    world.end(int(ExitCode.INTERRUPTED), disruption="DeletionByTaintManager")
    world.tick(60)
    world.settle()
    result: dict[str, Any] = world.results()["train"] | {"resumedFromStep": 50}
    world.succeed(result)
    trained = [stage for stage in world.status.stages if stage.name == "train"][-1]
    assert (trained.resumed_from_step, trained.lost_steps) == (50, None)


def test_an_attempt_that_starts_twice_adds_up_what_was_lost() -> None:
    world = Told()
    world.run_to("train")
    world.run_pods()
    world.push(130, resumed_from=0)
    world.push(101, resumed_from=100)  # the same attempt: Kueue gave its quota to somebody and back
    world.push(150, resumed_from=100)
    world.push(121, resumed_from=120)
    trained = world.status.stages[-1]
    assert (trained.resumed_from_step, trained.lost_steps) == (120, 30 + 30)
