"""An estimate as tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_api.job.forecast import Forecast, MomentForecast
from finetune_cli.estimate.compare import PoolEstimate
from finetune_cli.render.stages import duration
from finetune_operator.planner.trainers import Trainer

FIT_STYLES = {"Fits": "green", "Tight": "yellow", "DoesNotFit": "red", "Unknown": ""}


def span(low: float | None, high: float | None) -> str:
    """A range of seconds, for example `1h 02m to 2h 10m`."""
    return "-" if low is None or high is None else f"{duration(low)} to {duration(high)}"


def money(known: Forecast) -> str:
    """A range of costs with its currency."""
    if known.cost_low is None or known.cost_high is None:
        return "-"
    return f"{known.cost_low:.2f} to {known.cost_high:.2f} {known.currency}"


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def pools_table(estimates: Sequence[PoolEstimate]) -> Table:
    """A row per pool, the best first."""
    table = _table("POOL", "FIT", "METHOD", "GPUS", "MICRO-BATCH", "GPU MEMORY", "TRAINING", "COST OF THE RUN")
    for item in estimates:
        plan, known = item.plan, item.forecast
        if plan is None or known is None:
            table.add_row(item.name, Text("refused", style="red"), "-", "-", "-", "-", "-", "-")
            continue
        need = (
            "-"
            if known.gpu_memory_gib is None
            else f"{known.gpu_memory_gib:.1f} of {item.pool.spec.gpu_memory_gib:g} GiB"
        )
        table.add_row(
            item.name,
            Text(known.fit, style=FIT_STYLES[known.fit]),
            plan.method,
            str(plan.nodes * plan.gpus_per_node),
            f"{plan.micro_batch_size} x {plan.gradient_accumulation}",
            need,
            "-" if known.fit == "DoesNotFit" else span(known.train_seconds_low, known.train_seconds_high),
            "-" if known.fit == "DoesNotFit" else money(known),
        )
    return table


def options_table(estimate: PoolEstimate) -> Table:
    """A row per number of GPUs of one pool."""
    titles = ("GPUS PER NODE", "FIT", "METHOD", "STRATEGY", "MICRO-BATCH", "RECOMPUTES", "TRAINING", "COST OF THE RUN")
    table = _table(*titles)
    for option in estimate.options:
        plan, known = option.plan, option.forecast
        table.add_row(
            str(option.gpus_per_node),
            Text(known.fit, style=FIT_STYLES[known.fit]),
            plan.method,
            plan.strategy,
            f"{plan.micro_batch_size} x {plan.gradient_accumulation}",
            "yes" if plan.gradient_checkpointing else "no",
            "-" if known.fit == "DoesNotFit" else span(known.train_seconds_low, known.train_seconds_high),
            "-" if known.fit == "DoesNotFit" else money(known),
        )
    return table


def components_table(known: Forecast) -> Table:
    """GPU memory by component (rows) and stage (columns), in GiB."""
    table = _table("GIB ON ONE GPU", *(stage.stage for stage in known.stages))
    shares = [{share.component: share.gib for share in stage.components} for stage in known.stages]
    names = list(dict.fromkeys(name for stage in shares for name in stage))
    for name in sorted(names, key=lambda name: -max(stage.get(name, 0.0) for stage in shares)):
        table.add_row(name, *(f"{stage[name]:.2f}" if name in stage else "-" for stage in shares))
    table.add_row("in all", *(f"{stage.gpu_memory_gib:.1f}" for stage in known.stages), style="bold")
    table.add_row("time", *(span(stage.seconds_low, stage.seconds_high) for stage in known.stages))
    return table


MOMENTS = {
    "loading": "loading",
    "step": "a step",
    "validation": "validation",
    "reference": "asking the reference",
    "answers": "answering validation rows",
}


def _needs(moment: MomentForecast) -> str:
    parts = f"tensors {moment.tensors_gib:.1f}, reserved {moment.reserved_gpu_memory_gib:.1f}"
    return f"{moment.gpu_memory_gib:.1f} ({parts})"


def moments_line(known: Forecast) -> str:
    """Training's moments in GiB; empty where memory is not forecast."""
    parts = [f"{MOMENTS[moment.moment]} {_needs(moment)}" for stage in known.stages for moment in stage.moments]
    return f"train, moment by moment: {'; '.join(parts)}" if parts else ""


def print_estimate(
    console: Console,
    facts: dict[str, str],
    estimates: Sequence[PoolEstimate],
    warnings: Sequence[str] = (),
    trainer: Trainer | None = None,
) -> None:
    """The facts and what is unusual, the pools, the best pool taken apart, and why the others do not fit."""
    for name, text in facts.items():
        console.print(Text.assemble((f"{name:<8} ", "bold"), text), soft_wrap=True)
    for warning in warnings:
        console.print(Text.assemble(("warning  ", "yellow"), warning), soft_wrap=True)
    console.print()
    console.print(pools_table(estimates))
    best = estimates[0]
    known = best.forecast
    if known is not None:
        console.print()
        console.print(Text(f"{best.name}", style="bold"))
        if known.stages:
            console.print(components_table(known))
            console.print(Text(moments_line(known)), soft_wrap=True)
            if trainer is not None and best.other_step is not None:
                console.print(Text(f"a step with {trainer.name}: {_needs(best.other_step)}"), soft_wrap=True)
                console.print(Text(f"    {trainer.about}"), soft_wrap=True)
            needs = f"host memory about {known.host_memory_gib:.0f} GiB, scratch disk about {known.disk_gib:.0f} GiB"
            console.print(needs)
        for note in known.notes:
            console.print(Text(f"- {note}"), soft_wrap=True)
    if len(best.options) > 1 and known is not None and known.fit != "Unknown":
        console.print()
        console.print(options_table(best))
        if best.advice:
            console.print(Text(f"recommended: {best.advice}"), soft_wrap=True)
    others = [(item, why) for item in estimates if (why := _why_not(item, first=item is best))]
    if others:
        console.print()
    for item, why in others:
        console.print(Text(f"{item.name}: {why}"), soft_wrap=True)
        if item.remedy:
            console.print(Text(f"    what would fit: {item.remedy}"), soft_wrap=True)
    console.print()
    console.print(Text(_verdict(best), style="bold"), soft_wrap=True)


def _why_not(item: PoolEstimate, *, first: bool) -> str:
    """Why a pool is not taken; empty when it fits, or when its notes have been told."""
    if item.why_not or item.forecast is None or item.fits or first:
        return item.why_not
    return next(iter(item.forecast.notes), "")


def _verdict(best: PoolEstimate) -> str:
    known, plan = best.forecast, best.plan
    if known is None or plan is None or known.fit == "DoesNotFit":
        return "no pool fits"
    if known.fit == "Unknown":
        return f"{best.name}: memory is not forecast, so nothing is refused beforehand; see its notes"
    priced = "cheapest that fits" if known.cost_high is not None else "smallest GPU that fits"
    word = priced if known.fit == "Fits" else "nearest, but tight"
    gpus = f" on {plan.nodes * plan.gpus_per_node} GPUs ({plan.strategy})" if plan.gpus_per_node > 1 else ""
    ask = f"; set compute.gpusPerNode: {plan.gpus_per_node}" if gpus and best.asks_more else ""
    return f"{word}: {best.name} with {plan.method}{gpus}{ask}"
