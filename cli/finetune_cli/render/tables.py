"""Lists of objects as tables."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from rich.table import Table
from rich.text import Text

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_api.finetunejob import FineTuneJob
from finetune_cli.render.happenings import Happening
from finetune_cli.render.stages import number

STYLES = {
    "Passed": "green",
    "Succeeded": "green",
    "Approved": "green",
    "Failed": "red",
    "GateFailed": "red",
    "Rejected": "red",
    "Inconclusive": "yellow",
    "Suspended": "yellow",
    "PendingApproval": "yellow",
}


def age(since: datetime | None, now: datetime) -> str:
    """`5m`, `3h` or `2d`, as kubectl says it."""
    if since is None:
        return "-"
    seconds = max(0, int((now - since).total_seconds()))
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= length:
            return f"{seconds // length}{unit}"
    return f"{seconds}s"


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        table.add_column(title, overflow="fold")
    return table


def _coloured(word: str) -> Text:
    return Text(word, style=STYLES.get(word, ""))


def jobs_table(jobs: list[FineTuneJob], now: datetime) -> Table:
    """Jobs of the local registry."""
    table = _table("NAME", "RUN", "PHASE", "PROGRESS", "VERSION", "VERDICT", "METRIC", "AGE")
    for job in jobs:
        status = job.status
        table.add_row(
            job.metadata.name,
            str(status.run) if status else "-",
            _coloured(status.phase if status else "Pending"),
            (status.progress if status else "") or "-",
            status.version.name if status and status.version else "-",
            _coloured((status.verdict if status else None) or "-"),
            (status.metric if status else "") or "-",
            age(job.metadata.creation_timestamp, now),
        )
    return table


def versions_table(versions: list[AdapterVersion], now: datetime) -> Table:
    """Versions of an Adapter, oldest first."""
    table = _table("VERSION", "PHASE", "VERDICT", "METRICS", "PARENT", "SERVED BY", "DECISIONS", "AGE")
    for version in versions:
        spec, status = version.spec, version.status
        decisions = ", ".join(f"{decision.decision} by {decision.by}" for decision in spec.decisions)
        table.add_row(
            f"v{spec.version}",
            _coloured(status.phase if status else "-"),
            _coloured(spec.verdict),
            ", ".join(f"{name} {number(value)}" for name, value in list(spec.metrics.items())[:3]),
            spec.parent or "-",
            ", ".join(status.channels) if status and status.channels else "-",
            decisions or "-",
            age(spec.created_at, now),
        )
    return table


def channel_lines(adapter: Adapter) -> list[str]:
    """What each channel serves, and why a wish is not (yet) met."""
    lines = []
    for channel in adapter.status.channels if adapter.status is not None else []:
        served = f"{channel.version} ({channel.digest[:12]})" if channel.version else "nothing"
        lines.append(f"channel {channel.name} serves {served}" + (f": {channel.message}" if channel.message else ""))
    return lines


def event_line(event: Happening) -> Text:
    """Time, reason, object and words of an Event, with how often it was seen."""
    often = f" (x{event.count})" if event.count > 1 else ""
    return Text.assemble(
        f"{event.at:%Y-%m-%d %H:%M:%S}Z  ",
        (f"{event.reason:<18}", "yellow" if event.type == "Warning" else ""),
        f"  {event.about}  {event.note}{often}",
    )


def server_table(answer: dict[str, Any], *, wide: bool, namespaces: bool) -> Table:
    """A Table of the API server: the columns of `kubectl get`, with those of `-o wide` and the namespace if wanted."""
    columns = [
        (position, column)
        for position, column in enumerate(answer.get("columnDefinitions") or [])
        if wide or not column.get("priority")
    ]
    table = _table(*(["NAMESPACE"] if namespaces else []), *(str(column["name"]).upper() for _, column in columns))
    for row in answer.get("rows") or []:
        cells = ["-" if row["cells"][position] is None else str(row["cells"][position]) for position, _ in columns]
        where = [row["object"]["metadata"]["namespace"]] if namespaces else []
        table.add_row(*where, *(_coloured(cell or "-") for cell in cells))
    return table
