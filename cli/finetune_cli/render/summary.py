"""The end of a run in one table, and what to type next."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from finetune_api.adapterversion import AdapterVersion
from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.evaluation import LOWER_IS_BETTER
from finetune_api.job.status import FineTuneJobStatus, GateResult, StageStatus
from finetune_api.stages import BaselineResult
from finetune_api.wording import counted
from finetune_cli.errors import CliExit
from finetune_cli.render.stages import number

PLAIN_WIDTH = 140
STYLES = {"Passed": "green", "Failed": "red", "Inconclusive": "yellow"}


def console_for(*, stderr: bool = False) -> Console:
    """A console as wide as the terminal, or wide enough for tables where there is none."""
    console = Console(stderr=stderr, highlight=False, soft_wrap=False)
    if not console.is_terminal:
        console.width = PLAIN_WIDTH
    return console


def exit_code(status: FineTuneJobStatus | None) -> CliExit:
    """What `finetune run` ends with."""
    if status is None:
        return CliExit.FAILED
    if status.phase == "Suspended":
        return CliExit.SUSPENDED
    if status.phase != "Succeeded":
        return CliExit.FAILED
    if status.verdict == "Failed":
        return CliExit.GATES_FAILED
    return CliExit.INCONCLUSIVE if status.verdict == "Inconclusive" else CliExit.SUCCEEDED


def _best_baseline(baseline: BaselineResult | None, metric: str) -> float | None:
    if baseline is None:
        return None
    value = baseline.baselines.get(baseline.best, {}).get(metric)
    return baseline.base.get(metric) if value is None else value


def _signed(value: float) -> str:
    return f"{value:+.3f}"


def _gain(gate: GateResult | None, before: float | None, after: float | None) -> str:
    compares = gate is not None and gate.reference is not None
    if gate is not None and compares and gate.candidate is not None and gate.reference is not None:
        told = _signed(gate.candidate - gate.reference)
        if gate.low is not None and gate.high is not None:
            told += f" ({_signed(gate.low)} to {_signed(gate.high)})"
        return told
    return _signed(after - before) if before is not None and after is not None else "-"


def _tuned(gate: GateResult, after: float | None) -> str:
    value = gate.candidate if gate.candidate is not None else after
    if gate.reference is None and gate.low is not None and gate.high is not None:
        return f"{number(value)} ({number(gate.low)} to {number(gate.high)})"
    return number(value)


def metrics_table(gates: list[GateResult], metrics: dict[str, float], baseline: BaselineResult | None) -> Table:
    """Metric, baseline, tuned, gain with its 90 % interval, gate, verdict: a row per gate, then the other metrics."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("METRIC", "BASELINE", "TUNED", "GAIN (90 % INTERVAL)", "GATE", "VERDICT"):
        table.add_column(title, overflow="fold")
    judged = set()
    for gate in gates:
        metric = gate.gate.split(" ", 1)[0]
        judged.add(metric)
        after = metrics.get(metric)
        before = gate.reference
        if before is None and " incumbent" not in gate.gate:
            before = _best_baseline(baseline, metric)
        verdict: str = gate.verdict
        if gate.rows_to_decide:
            verdict += f", about {counted(gate.rows_to_decide, 'test row')} would decide"
        table.add_row(
            metric,
            number(before),
            _tuned(gate, after),
            _gain(gate, before, after),
            gate.gate,
            Text(verdict, style=STYLES[gate.verdict]),
        )
    for metric, after in metrics.items():
        if metric not in judged:
            before = _best_baseline(baseline, metric)
            lower = " (lower is better)" if metric in LOWER_IS_BETTER else ""
            table.add_row(metric + lower, number(before), number(after), _gain(None, before, after), "-", "-")
    return table


def _failed_attempt(status: FineTuneJobStatus) -> StageStatus | None:
    return next((attempt for attempt in reversed(status.stages) if attempt.state == "Failed"), None)


def _print_failure(console: Console, status: FineTuneJobStatus, logs: Path | None) -> None:
    console.print(Text(f"{status.phase}: {status.reason}", style="bold red"))
    console.print(Text(f"  {status.message}"))
    attempt = _failed_attempt(status)
    if attempt is not None and attempt.evidence and attempt.evidence not in status.message:
        console.print(Text(f"  evidence   {attempt.evidence}"))
    if status.next_step:
        console.print(Text(f"  what to do {status.next_step}"))
    if attempt is not None:
        code = f", exit code {attempt.exit_code}" if attempt.exit_code is not None else ""
        console.print(Text(f"  stage      {attempt.name}, attempt {attempt.attempt}{code}"))
        if logs is not None:
            console.print(Text(f"  log        {logs / attempt.job_name / 'log.txt'}"), soft_wrap=True)


def _print_findings(console: Console, status: FineTuneJobStatus) -> None:
    shown = [finding for finding in status.findings if finding.severity != "info"]
    if shown:
        console.print(Text("findings", style="bold"))
    for finding in shown:
        rows = f" ({counted(finding.rows, 'row')})" if finding.rows else ""
        console.print(Text(f"  {finding.severity:<8} {finding.check}: {finding.message}{rows}"), soft_wrap=True)


def local_steps(job: FineTuneJob, version: AdapterVersion | None) -> list[str]:
    """What to type now after a run without a cluster; empty when there is nothing."""
    status = job.status
    if status is None:
        return []
    if status.phase == "Suspended":
        return ["the same command again resumes"]
    if status.reason == "Retrying":
        return ["the same command tries again"]
    if status.version is None or status.phase in ("Failed", "Cancelled"):
        return []
    wanted = f"{job.spec.output.adapter_ref.name}@v{status.version.number}"
    phase = version.status.phase if version is not None and version.status is not None else "PendingApproval"
    if phase == "PendingApproval":
        return [f"finetune approve {wanted}"]
    return [f"finetune versions {job.spec.output.adapter_ref.name}"]


def print_summary(
    console: Console, job: FineTuneJob, version: AdapterVersion | None, steps: Sequence[str], logs: Path | None
) -> None:
    """How a run ended (or stands): table, findings, where the version is, what to type next."""
    status = job.status
    if status is None:
        console.print(Text(f"{job.metadata.name} has not started"))
        return
    results = status.results
    if status.phase in ("Failed", "Cancelled") or status.reason == "Retrying":
        _print_findings(console, status)
        _print_failure(console, status, logs)
        _print_steps(console, steps)
        return
    metrics = results.evaluate.metrics if results.evaluate else (version.spec.metrics if version else {})
    if status.gates or metrics:
        console.print(metrics_table(status.gates, metrics, results.baseline))
        console.print()
    _print_findings(console, status)
    style = STYLES.get(status.verdict or "", "bold")
    console.print(Text.assemble((f"{status.phase}: {status.reason}", style), f"  {status.message}"), soft_wrap=True)
    if status.version is not None:
        console.print(Text(f"version  {status.version.name}  {status.version.uri}"), soft_wrap=True)
    if results.evaluate is not None and results.evaluate.report_uri:
        console.print(Text(f"report   {results.evaluate.report_uri}"), soft_wrap=True)
    _print_steps(console, steps)


def _print_steps(console: Console, steps: Sequence[str]) -> None:
    title = "next     "
    for step in steps:
        console.print(Text.assemble(title, (step, "bold")), soft_wrap=True)
        title = " " * len(title)
