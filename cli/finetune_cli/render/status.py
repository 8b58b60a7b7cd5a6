"""A FineTuneJob in sections: summary, stages, progress, data, gates, cost, conditions, next step. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from finetune_api.adapterversion import AdapterVersion
from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import FINISHED_PHASES, FineTuneJobStatus, StageStatus
from finetune_api.stages import STAGES, Progress
from finetune_cli.render.costs import Costs
from finetune_cli.render.stages import (
    duration,
    newest_attempt,
    progress_words,
    stage_facts,
    stage_position,
    stage_seconds,
)
from finetune_cli.render.summary import metrics_table
from finetune_cli.render.tables import STYLES, age
from finetune_cli.render.training import forecast_table, training_facts
from finetune_operator.decide.attempts import is_active

BAR_WIDTH = 32
STALE_S = 60
_MARKS = {"Succeeded": ("✓", "green"), "Failed": ("✗", "red"), "Stopped": ("■", "yellow")}


@dataclass(frozen=True)
class StatusView:
    """All that is shown."""

    job: FineTuneJob
    now: datetime
    live: Progress | None = None
    version: AdapterVersion | None = None
    costs: Costs | None = None
    steps: Sequence[str] = ()
    """What a person can do now."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Every section that has something to say, under its title."""
        del console, options
        yield _headline(self)
        for title, section in SECTIONS:
            lines = list(section(self))
            if lines:
                yield Text(f"\n{title}", style="bold")
                for line in lines:
                    yield Padding(line, (0, 0, 0, 2))


Section = Callable[[StatusView], Iterator[RenderableType]]


def _line(*parts: str | tuple[str, str]) -> Text:
    return Text.assemble(*parts, overflow="fold")


def _facts(rows: Sequence[tuple[str, str]]) -> Iterator[RenderableType]:
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        if value:
            table.add_row(name, Text(value))
    if table.row_count:
        yield table


def _moment(at: datetime | None, now: datetime) -> str:
    return f"{at:%Y-%m-%d %H:%M:%S} UTC ({age(at, now)} ago)" if at is not None else ""


def _headline(view: StatusView) -> Text:
    status, metadata = view.job.status, view.job.metadata
    phase = status.phase if status is not None else "Pending"
    run = f"run {status.run}  " if status is not None and status.run else ""
    return Text.assemble((metadata.name, "bold"), f"  {metadata.namespace}  {run}", (phase, STYLES.get(phase, "cyan")))


def _memory(status: FineTuneJobStatus) -> str:
    known = status.forecast
    if known is None or known.gpu_memory_gib is None:
        return ""
    room = f" of {known.available_gpu_memory_gib:.1f}" if known.available_gpu_memory_gib is not None else ""
    return f"{known.gpu_memory_gib:.1f}{room} GiB forecast on one GPU, {known.fit}"


def summary(view: StatusView) -> Iterator[RenderableType]:
    """What it is, on what it runs, and how it stands."""
    job, status = view.job, view.job.status
    spec = job.spec
    rows = [("model", spec.model.source), ("adapter", spec.output.adapter_ref.name)]
    if status is None:
        yield from _facts([*rows, ("created", _moment(job.metadata.creation_timestamp, view.now))])
        return
    resolved, plan, prepared = status.resolved, status.plan, status.results.prepare
    standing = f"{status.reason}: {status.message}" if status.reason and status.message else status.message
    if prepared is not None:
        rows[0] = ("model", f"{spec.model.source} at {prepared.revision[:12]}")
    if resolved is not None:
        nodes, each = spec.compute.nodes, resolved.gpus_per_node
        pods = f"{nodes} pod{'s' * (nodes > 1)}"
        gpus = f"{pods} of {each} GPU{'s' * (each > 1)}" if each else f"{pods} on the CPU" if nodes > 1 else "CPU"
        queue = f", queue {spec.compute.queue}" if spec.compute.queue else ""
        rows.append(("compute", f"pool {resolved.pool}, {gpus}{queue}"))
        rows.append(("storage", resolved.storage.uri))
    if plan is not None:
        objective = "" if spec.method.objective == "sft" else f"{spec.method.objective}, "
        method = f"{objective}{plan.method}, rank {spec.method.rank}, {plan.strategy}, {plan.precision}"
        batch = f"{plan.total_steps} steps of {spec.training.global_batch_size} examples"
        rows.append(("plan", f"{method}; {batch}, evaluated every {plan.eval_steps}"))
        rows.append(("memory", _memory(status)))
        if spec.method.warm_start_from is not None:
            rows.append(("starts from", spec.method.warm_start_from.version))
        if resolved is not None and resolved.incumbent:
            rows.append(("replaces", f"{resolved.incumbent}, if it is better"))
    if status.version is not None:
        rows.append(("version", f"{spec.output.adapter_ref.name}@v{status.version.number}  {status.version.uri}"))
    if status.results.evaluate is not None:
        rows.append(("report", status.results.evaluate.report_uri))
    if prepared is not None and prepared.report_uri:
        rows.append(("data", prepared.report_uri + (" (taken over from an earlier run)" if prepared.cached else "")))
    rows.append(("started", _moment(status.started_at, view.now)))
    rows.append(("ended", _moment(status.completed_at, view.now)))
    yield from _facts([("state", standing), *rows])
    if status.observed_generation < job.metadata.generation:
        yield _line(("this status is about an earlier edit of the spec", "yellow"))
    for earlier in reversed(status.history):
        version = f", {earlier.version}" if earlier.version else ""
        yield _line(f"run {earlier.run} was {earlier.phase}: {earlier.reason}{version}")


def _attempt_line(attempt: StageStatus, now: datetime) -> Text:
    seconds = stage_seconds(attempt)
    if seconds is None and attempt.started_at is not None and is_active(attempt):
        seconds = (now - attempt.started_at).total_seconds()
    taken = f"  {duration(seconds)}" if seconds is not None else ""
    code = f"  exit code {attempt.exit_code}" if attempt.exit_code else ""
    cause = f"  {attempt.cause}" if attempt.cause else ""
    free = "" if attempt.counts_against_retries or attempt.state != "Failed" else "  (not counted as a retry)"
    return Text(f"attempt {attempt.attempt}  {attempt.state}{taken}{cause}{code}{free}")


def _trouble(attempt: StageStatus, *, newest: bool) -> Iterator[tuple[str, str]]:
    told = attempt.message
    yield "", told if attempt.state in ("Failed", "Pending") else ""
    yield "evidence", attempt.evidence if attempt.evidence not in ("", told) else ""
    yield "hint", attempt.hint
    retry = attempt.retry_at
    yield "again at", f"{retry:%H:%M:%S} UTC" if retry is not None and newest else ""


def stages(view: StatusView) -> Iterator[RenderableType]:
    """A line per stage with what it found, and every attempt that did not simply succeed."""
    status = view.job.status
    if status is None or not status.stages:
        return
    for stage in STAGES:
        newest = newest_attempt(status, stage)
        if newest is None:
            yield _line((f"  {stage_position(stage)} {stage}", "dim"))
            continue
        mark, style = _MARKS.get(newest.state, ("●", "cyan"))
        seconds = stage_seconds(newest)
        if seconds is None and newest.started_at is not None and is_active(newest):
            seconds = (view.now - newest.started_at).total_seconds()
        taken = f" {duration(seconds)}" if seconds is not None else ""
        facts = stage_facts(stage, status.results) if newest.state == "Succeeded" else ""
        yield _line(
            (mark, style), f" {stage_position(stage)} {stage:<8}  {newest.state}{taken}", f"  {facts}" if facts else ""
        )
        tried = [attempt for attempt in status.stages if attempt.name == stage]
        if len(tried) == 1 and newest.state != "Failed" and not newest.cause:
            continue
        for attempt in tried:
            yield Padding(_attempt_line(attempt, view.now), (0, 0, 0, 6))
            for rows in _facts(list(_trouble(attempt, newest=attempt is newest))):
                yield Padding(rows, (0, 0, 0, 8))


def bar(percent: float, width: int = BAR_WIDTH) -> str:
    """`[######----]`, for terminals, logs and pipes alike."""
    filled = round(max(0.0, min(100.0, percent)) / 100 * width)
    return f"[{'#' * filled}{'-' * (width - filled)}]"


def progress(view: StatusView) -> Iterator[RenderableType]:
    """The running stage: bar, steps, time left, losses, and how fresh that is."""
    live, status = view.live, view.job.status
    if status is None or status.phase in FINISHED_PHASES:
        return
    if live is None:
        if status.progress:
            yield _line(status.progress)
        return
    yield _line(f"{stage_position(live.stage)} {live.stage}  {bar(live.percent)} {live.percent:3.0f}%")
    yield _line(progress_words(live))
    if live.updated_at is not None:
        seconds = (view.now - live.updated_at).total_seconds()
        stale = seconds > STALE_S
        told = f"heard {duration(seconds)} ago" + (
            "; the run goes on whether or not progress is heard" if stale else ""
        )
        yield _line((told, "yellow" if stale else "dim"))


def training(view: StatusView) -> Iterator[RenderableType]:
    """With what it trains, how fast, and where the time went."""
    if view.job.status is not None:
        yield from _facts(training_facts(view.job.spec, view.job.status))


def forecast(view: StatusView) -> Iterator[RenderableType]:
    """Each GPU stage as it was forecast and as it was measured."""
    status = view.job.status
    if status is not None and status.forecast is not None:
        yield from forecast_table(status.forecast)


def findings(view: StatusView) -> Iterator[RenderableType]:
    """What the checks of the data said, and the rows of each split."""
    status = view.job.status
    prepared = status.results.prepare if status is not None else None
    if prepared is not None:
        lengths = prepared.lengths
        over = f", {lengths.over_maximum} over maxLength" if lengths.over_maximum else ""
        yield _line(
            f"{prepared.train_tokens:,} training tokens; examples of {lengths.p50} tokens (median), "
            f"{lengths.p95} (95 %), {lengths.maximum} (longest){over}"
        )
    for finding in status.findings if status is not None else ():
        rows = f" ({finding.rows} rows)" if finding.rows else ""
        style = {"error": "red", "warning": "yellow"}.get(finding.severity, "")
        yield _line((f"{finding.severity:<8}", style), f"{finding.check}: {finding.message}{rows}")


def gates(view: StatusView) -> Iterator[RenderableType]:
    """Every gate with numbers, interval and verdict; before the evaluation, what will be judged."""
    status = view.job.status
    if status is None:
        return
    results = status.results
    metrics = results.evaluate.metrics if results.evaluate is not None else {}
    if not metrics and view.version is not None:
        metrics = view.version.spec.metrics
    if status.gates:
        yield metrics_table(status.gates, metrics, results.baseline)
        return
    if status.resolved is None or status.phase in FINISHED_PHASES:
        return
    for gate in status.resolved.gates:
        yield _line(gate.in_words(), ("  not judged yet", "dim"))
    gain = results.baseline.minimum_detectable_gain if results.baseline is not None else None
    if gain is not None:
        yield _line((f"this test split can tell a gain of {gain:.3f} from chance, and no smaller one", "dim"))


def money(amount: float, currency: str) -> str:
    """`12.34 EUR`."""
    return f"{amount:,.2f} {currency}"


def cost(view: StatusView) -> Iterator[RenderableType]:
    """What was spent, what is to be expected and on what that rests."""
    costs, status = view.costs, view.job.status
    if costs is None:
        if status is not None and status.resolved is not None:
            yield _line((f"pool {status.resolved.pool} has no price", "dim"))
        return
    finished = status is not None and status.phase in FINISHED_PHASES
    rows = [("actual", f"{money(costs.spent, costs.currency)}" + ("" if finished else " so far"))]
    if not finished:
        told = "not known yet"
        if costs.forecast is not None:
            low, high = (money(amount, costs.currency) for amount in costs.forecast)
            told = f"{low} at the end" if low == high else f"{low} to {high} at the end"
        rows.append(("forecast", told + (f" ({'; '.join(costs.basis)})" if costs.basis else "")))
    if costs.limit is not None:
        expected = costs.forecast[1] if costs.forecast is not None else costs.spent
        over = "; the forecast goes above it: training stops early enough to evaluate and publish"
        above = over if expected > costs.limit and not finished else ""
        rows.append(("limit", money(costs.limit, costs.currency) + above))
    rows.append(("price", f"{money(costs.price_per_gpu_hour, costs.currency)} per GPU hour"))
    yield from _facts(rows)


def conditions(view: StatusView) -> Iterator[RenderableType]:
    """As `kubectl wait` and GitOps tools see it."""
    status = view.job.status
    if status is None or not status.conditions:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("TYPE", "STATUS", "REASON", "AGE", "MESSAGE"):
        table.add_column(title, overflow="fold", no_wrap=title == "TYPE")
    for item in status.conditions:
        since = age(item.last_transition_time, view.now)
        # What the summary says already would only hide the rest.
        message = "" if item.message == status.message else item.message
        table.add_row(item.type, item.status, item.reason, since, Text(message))
    yield table


def next_step(view: StatusView) -> Iterator[RenderableType]:
    """What to do or type now."""
    for step in view.steps:
        what, gap, why = step.partition("    ")
        yield Text.assemble((what, "bold"), (f"{gap}{why}", "dim"), no_wrap=True, overflow="ignore")


SECTIONS: tuple[tuple[str, Section], ...] = (
    ("Summary", summary),
    ("Stages", stages),
    ("Progress", progress),
    ("Training", training),
    ("Forecast", forecast),
    ("Data", findings),
    ("Gates", gates),
    ("Cost", cost),
    ("Conditions", conditions),
    ("Next step", next_step),
)
