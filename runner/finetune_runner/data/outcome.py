"""What prepare made of the data: all that does not depend on the run, so that a later run can have it again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from finetune_api.stages import Finding, TokenLengths
from finetune_runner.data.checking import CheckRun, Remark

BUCKETS = 40
"""Bars of the length histogram."""
_SEVERITIES = ("error", "warning", "info")


@dataclass(frozen=True)
class Prepared:
    """The prepared data as plain values."""

    files: dict[str, dict[str, Any]]
    """sha256, bytes and rows by path below the run."""
    splits: dict[str, str]
    """sha256 over each split's rows."""
    rows: dict[str, int]
    dropped: int
    train_tokens: int
    lengths: dict[str, int]
    """The wire form of TokenLengths."""
    buckets: list[dict[str, int]]
    """Length histogram of the training mix: from, to (tokens, both included), rows."""
    formats: list[str]
    sources: list[dict[str, Any]]
    transformations: list[dict[str, Any]]
    checks: list[dict[str, Any]]
    """By check: mode, rows dropped and replaced by split, remarks."""
    remarks: list[dict[str, Any]] = field(default_factory=list)
    """What was said besides the checks'."""
    findings: list[dict[str, Any]] = field(default_factory=list)

    def to_wire(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @property
    def sorted_findings(self) -> list[Finding]:
        """Findings for the report, the gravest first."""
        found = [Finding.from_wire(finding) for finding in self.findings]
        return sorted(found, key=lambda finding: _SEVERITIES.index(finding.severity))


def remark_to_wire(remark: Remark) -> dict[str, Any]:
    """A remark for the data report."""
    return {
        "check": remark.check,
        "severity": remark.severity,
        "message": remark.message,
        "rows": remark.rows,
        "splits": dict(remark.splits),
        "positions": list(remark.positions),
        "facts": dict(remark.facts),
    }


def check_to_wire(run: CheckRun) -> dict[str, Any]:
    """A check's outcome for the data report."""
    return {
        "check": run.check,
        "mode": run.mode,
        "dropped": dict(run.dropped),
        "replaced": dict(run.replaced),
        "remarks": [remark_to_wire(remark) for remark in run.remarks],
    }


def token_lengths(histogram: Sequence[tuple[int, int]], maximum: int) -> TokenLengths:
    """Quantiles of a histogram of lengths: (tokens, rows), shortest first."""
    rows = sum(count for _, count in histogram)

    def quantile(share: float) -> int:
        before, position = 0, min(int(share * rows), rows - 1)
        for total, count in histogram:
            before += count
            if position < before:
                return total
        return 0

    return TokenLengths(
        p50=quantile(0.5),
        p95=quantile(0.95),
        maximum=histogram[-1][0] if histogram else 0,
        over_maximum=sum(count for total, count in histogram if total > maximum),
    )


def length_buckets(histogram: Sequence[tuple[int, int]], most: int = BUCKETS) -> list[dict[str, int]]:
    """The histogram in at most `most` buckets of equal width, empty ones included."""
    if not histogram:
        return []
    low, high = histogram[0][0], histogram[-1][0]
    width = (high - low) // most + 1
    counts = [0] * ((high - low) // width + 1)
    for total, rows in histogram:
        counts[(total - low) // width] += rows
    return [
        {"from": low + number * width, "to": low + (number + 1) * width - 1, "rows": rows}
        for number, rows in enumerate(counts)
    ]
