"""How the adapter was trained, for the page: settings, speed, and where the time went. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from finetune_api.stages import TIME_PARTS, StageTask
from finetune_api.wording import counted
from finetune_runner.report.html import cell, table

COLOURS = {
    "compute": "#2a7",
    "compilation": "#38b",
    "optimizer": "#77a",
    "data": "#c73",
    "validation": "#a5b",
    "checkpoint": "#888",
}
ENDED = {
    "completed": "",
    "earlyStopping": ", stopped early",
    "plateau": ", ended at a plateau",
    "budget": ", out of budget",
}
BAR_WIDTH, BAR_HEIGHT = 720, 22


def training_document(task: StageTask) -> dict[str, Any] | None:
    """The numbers of the training that the task's adapter comes from; None where there was none."""
    trained = task.results.train
    if trained is None:
        return None
    settings = task.training
    return {
        "objective": task.spec.method.objective,
        "learningRate": settings.learning_rate,
        "epochs": settings.epochs,
        "scheduler": settings.scheduler,
        "optimizer": settings.optimizer,
        "globalBatchSize": settings.global_batch_size,
        **trained.to_wire(),
    }


def training_section(trained: Mapping[str, Any]) -> str:
    """A table of facts, and a bar of the time by part."""
    rate = trained.get("learningRate")
    batch = f"{trained['microBatchSize']} x {trained['gradientAccumulation']}" if trained["microBatchSize"] else ""
    loss = trained.get("labelledTokensPerSecond")
    speed = f"{trained['tokensPerSecond']:,.0f} tokens/s" + (f", {loss:,.0f} of them with a loss" if loss else "")
    mfu = trained.get("modelFlopsUtilization")
    facts = {
        "objective": trained["objective"],
        "learning rate": f"{rate:g} at most, {trained['scheduler']}, {trained['optimizer']}" if rate else "",
        "steps": f"{trained['steps']} of {trained['totalSteps']}, {counted(trained['globalBatchSize'], 'example')} each"
        + ENDED.get(trained["stoppedBy"], ""),
        "kept": f"step {trained['bestStep']}, validation loss {trained['bestValidationLoss']:.4g} "
        f"(untuned {trained['initialValidationLoss']:.4g})",
        "way": f"{trained['strategy']}, micro-batch {batch}" if batch else trained["strategy"],
        "speed": speed if trained["tokensPerSecond"] else "",
        "MFU": f"{mfu:.1%} of the GPUs' bf16 peak" if mfu is not None else "",
        "peak memory": f"{trained['peakMemoryBytes'] / 2**30:.1f} GiB" if trained["peakMemoryBytes"] else "",
    }
    rows = [[f"<th>{escape(name)}</th>", cell(words)] for name, words in facts.items() if words]
    return table([], rows) + time_bar(trained["seconds"])


def time_bar(seconds: Mapping[str, float]) -> str:
    """One bar, a colour per part, and its legend with shares and seconds; empty when no time was taken."""
    spent = [(words, COLOURS[name], float(seconds.get(name, 0.0))) for name, words in TIME_PARTS.items()]
    total = sum(part for _, _, part in spent)
    if not total:
        return ""
    bars, left = [], 0.0
    for words, colour, part in spent:
        width = BAR_WIDTH * part / total
        title = f"<title>{escape(words)} {part:.1f} s</title>"
        bars.append(
            f'<rect x="{left:.1f}" y="0" width="{width:.1f}" height="{BAR_HEIGHT}" fill="{colour}">{title}</rect>'
        )
        left += width
    legend = "".join(
        f'<li><svg width="12" height="12" viewBox="0 0 12 12" aria-hidden="true"><rect width="12" height="12" '
        f'fill="{colour}"/></svg> {escape(words)} {part / total:.0%} ({part:,.1f} s)</li>'
        for words, colour, part in spent
        if part
    )
    return (
        f'<svg viewBox="0 0 {BAR_WIDTH} {BAR_HEIGHT}" role="img" aria-label="time by part">{"".join(bars)}</svg>'
        f'<ul class="legend">{legend}</ul>'
    )
