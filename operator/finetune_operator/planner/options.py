"""How many GPUs, by which strategy: every count of a pool, planned and forecast like a job that asks for it. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finetune_api.common import duration_s
from finetune_api.job.forecast import Forecast
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.status import Resolved
from finetune_api.stages import PrepareResult, TrainPlan
from finetune_operator.planner.cost import stage_gpus
from finetune_operator.planner.forecast import forecast
from finetune_operator.planner.plan import PlanError, make_plan


@dataclass(frozen=True)
class Option:
    """A number of GPUs per node with its plan and forecast."""

    gpus_per_node: int
    plan: TrainPlan
    forecast: Forecast

    @property
    def fits(self) -> bool:
        """Whether every stage fits without a doubt."""
        return self.forecast.fit == "Fits"

    @property
    def seconds(self) -> float | None:
        """All GPU stages one after the other, at worst; None when the GPU's speed is not known."""
        times = [stage.seconds_high for stage in self.forecast.stages if stage.stage != "merge"]
        return None if not times or None in times else sum(time for time in times if time is not None)

    @property
    def gpu_seconds(self) -> float | None:
        """What is paid for: GPUs held, stage by stage, at worst."""
        if self.seconds is None:
            return None
        return sum(
            (stage.seconds_high or 0.0) * stage_gpus(stage.stage, self.plan.nodes, self.gpus_per_node)
            for stage in self.forecast.stages
            if stage.stage != "merge"
        )


def gpu_counts(spec: FineTuneJobSpec, resolved: Resolved) -> list[int]:
    """Counts per node worth a look: powers of two that the pool, its limit and the global batch allow."""
    pool, nodes = resolved.pool_spec, spec.compute.nodes
    most = min(pool.gpus_per_node, pool.limits.max_gpus // nodes)
    counts = [2**power for power in range(5) if 2**power <= most]
    return [count for count in counts if spec.training.global_batch_size % (count * nodes) == 0]


def options(spec: FineTuneJobSpec, resolved: Resolved, prepared: PrepareResult) -> Iterator[Option]:
    """An option per count; those that cannot be planned are left out."""
    for count in gpu_counts(spec, resolved):
        asked = spec.model_copy(update={"compute": spec.compute.model_copy(update={"gpus_per_node": count})})
        given = resolved.model_copy(update={"gpus_per_node": count})
        try:
            plan = make_plan(asked, given, prepared)
        except PlanError:
            continue
        yield Option(count, plan, forecast(asked, given, prepared, plan))


def recommended(spec: FineTuneJobSpec, found: Sequence[Option]) -> Option | None:
    """The cheapest that fits and ends within compute.maxDuration; of equals the fewest GPUs.

    One that is too slow is better than none. Without known speeds the fewest GPUs that fit.
    """
    limit_s = duration_s(spec.compute.max_duration)

    def order(option: Option) -> tuple[bool, float, int]:
        late = option.seconds is not None and option.seconds > limit_s
        # Rounded: what differs by less than the forecast's resolution is not cheaper.
        paid = 0.0 if option.gpu_seconds is None else round(option.gpu_seconds, -1)
        return late, paid, option.gpus_per_node

    return min((option for option in found if option.fits), key=order, default=None)


def reason(spec: FineTuneJobSpec, found: Sequence[Option], best: Option) -> str:
    """Why this count, in a sentence, with the next faster choice."""
    limit_s = duration_s(spec.compute.max_duration)
    fewer = [option for option in found if option.gpus_per_node < best.gpus_per_node]
    if fewer and not any(option.fits for option in fewer):
        most = max(fewer, key=lambda option: option.gpus_per_node)
        verb = "may" if most.forecast.fit == "Tight" else "would"
        why = f"{most.gpus_per_node} per node {verb} not hold it"
    elif any(option.seconds is not None and option.seconds > limit_s for option in fewer):
        why = f"fewer take longer than compute.maxDuration ({spec.compute.max_duration})"
    else:
        why = "the fewest GPU hours"
    faster = [
        option
        for option in found
        if option.fits and option.seconds and best.seconds and option.seconds < 0.8 * best.seconds
    ]
    if faster and best.gpu_seconds:
        quick = min(faster, key=lambda option: option.seconds or 0.0)
        why += (
            f"; {quick.gpus_per_node} per node take {(quick.seconds or 0.0) / (best.seconds or 1.0):.0%} of the time "
            f"for {(quick.gpu_seconds or 0.0) / best.gpu_seconds:.2f} times the GPU hours"
        )
    return f"{best.gpus_per_node} per node with {best.plan.strategy}: {why}"
