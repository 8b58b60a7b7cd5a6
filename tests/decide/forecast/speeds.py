"""Forecast of training speed against every published row (speeds.toml)."""

from __future__ import annotations

import math
import statistics
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_operator.planner.families import known_shapes
from finetune_operator.planner.gpus import known_gpus
from finetune_operator.planner.throughput import training_tokens_per_second

PUBLISHED = Path(__file__).parent / "speeds.toml"


@dataclass(frozen=True)
class Speed:
    """A published speed beside the forecast range, in tokens per second."""

    name: str
    source: str
    use: str
    measured: float
    low: float
    high: float

    @property
    def inside(self) -> bool:
        """Whether it was measured within the range."""
        return self.low <= self.measured <= self.high

    @property
    def middle_error(self) -> float:
        """Of the range's geometric middle; negative is a forecast that is too slow."""
        return math.sqrt(self.low * self.high) / self.measured - 1


def _forecast(row: dict[str, Any]) -> tuple[float, float]:
    return training_tokens_per_second(
        known_shapes()[row["model"]],
        next(gpu for gpu in known_gpus() if gpu.name == row["gpu"]),
        row["method"],
        gpus=row["gpus"],
        nodes=1,
        micro_batch_tokens=row["micro_batch"] * row["sequence"],
        mean_length=row["sequence"],
        checkpointing=row.get("checkpointing", True),
        quantisation=row.get("quantisation", "nf4"),
    )


def speeds() -> list[Speed]:
    """All published speeds with their forecasts."""
    rows = tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))["row"]
    return [Speed(r["name"], r["source"], r["use"], r["tokens_per_second"], *_forecast(r)) for r in rows]


def by_use(all_speeds: list[Speed]) -> dict[str, list[Speed]]:
    """Calibration and blind rows."""
    return {use: [speed for speed in all_speeds if speed.use == use] for use in ("calibration", "blind")}


def median_error(some: list[Speed]) -> float:
    """Median of the absolute errors of the middle."""
    return statistics.median(abs(speed.middle_error) for speed in some)


def share_inside(some: list[Speed]) -> float:
    """Share of the rows that were measured within their range."""
    return sum(speed.inside for speed in some) / len(some)


def table() -> str:
    """Markdown: a summary, then every row."""
    found = by_use(speeds())
    lines = ["| speeds | number | within the range | median error of its middle | slowest | fastest |"]
    lines += ["|---|---|---|---|---|---|"]
    for use, some in found.items():
        low, high = min(s.middle_error for s in some), max(s.middle_error for s in some)
        lines.append(
            f"| {use} | {len(some)} | {share_inside(some):.0%} | {median_error(some):.0%} | {low:+.0%} | {high:+.0%} |"
        )
    lines += ["", "| row | use | source | measured tokens/s | forecast tokens/s | within | error of the middle |"]
    lines += ["|---|---|---|---|---|---|---|"]
    lines += [
        f"| {s.name} | {s.use} | {s.source} | {s.measured:.0f} | {s.low:.0f} to {s.high:.0f} | "
        f"{'yes' if s.inside else 'no'} | {s.middle_error:+.0%} |"
        for some in found.values()
        for s in some
    ]
    return "\n".join(lines)
