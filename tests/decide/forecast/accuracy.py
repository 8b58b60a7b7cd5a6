"""Forecast against every published row; `python -m tests.decide.forecast.accuracy` rewrites the table of the docs."""

from __future__ import annotations

import statistics
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_operator.planner.families import known_shapes
from finetune_operator.planner.memory.breakdown import Breakdown
from finetune_operator.planner.memory.inference import InferenceSetup, generating_memory
from finetune_operator.planner.memory.loading import loading_memory
from finetune_operator.planner.memory.pools import other_memory
from finetune_operator.planner.memory.training import TrainingSetup

PUBLISHED = Path(__file__).parent / "published.toml"
PAGE = Path(__file__).parents[3] / "docs" / "forecast.md"
BEGIN, END = "<!-- accuracy: begin -->", "<!-- accuracy: end -->"
GB = 1e9


@dataclass(frozen=True)
class Row:
    """A published figure beside the forecast of the same quantity."""

    name: str
    source: str
    use: str
    group: str
    measured_gb: float
    forecast_gb: float
    least_gb: float
    """What its tensors need at least."""

    @property
    def error(self) -> float:
        """Relative; negative is a forecast that is too low."""
        return self.forecast_gb / self.measured_gb - 1


def _quantity(breakdown: Breakdown, quantity: str) -> float:
    stays = ("weights", "adapter", "gradients", "optimiser")
    sizes = {
        "allocated": breakdown.allocated_bytes,
        "reserved": breakdown.reserved_bytes,
        "device": breakdown.device_bytes,
        "resident": sum(breakdown.allocated.get(part, 0.0) for part in stays),
    }
    return sizes[quantity]


def setup_of(row: dict[str, Any]) -> TrainingSetup:
    """The setup that a published row describes."""
    same = ("quantisation", "rank", "micro_batch", "dropout", "head", "adapter_bytes")
    optional = (
        "unquantised_bytes",
        "residual_bytes",
        "strategy",
        "gpus",
        "checkpointing",
        "offload",
        "stored_bytes",
        "saves_frozen_inputs",
        "keeps_logits",
        "reentrant",
        "separate_pools",
        "bucket_elements",
        "waiting_blocks",
        "mean_sequence",
    )
    return TrainingSetup(
        shape=known_shapes()[row["model"]],
        sequence_length=row["sequence"],
        target_modules=row["targets"],
        attention="flash",
        **{name: row[name] for name in same},
        **{name: row[name] for name in optional if name in row},
    )


def breakdown_of(row: dict[str, Any]) -> Breakdown:
    """The forecast of a published row: of a training step, of what precedes it, or of answering."""
    if row.get("kind") == "wrapping":
        return loading_memory(setup_of(row))
    if row.get("kind") != "inference":
        return other_memory(setup_of(row))
    setup = InferenceSetup(
        shape=known_shapes()[row["model"]],
        quantisation=row["quantisation"],
        rows=row["rows"],
        longest_prompt=1,
        max_new_tokens=row["tokens"],
        longest_row=1,
        cache_copies=row.get("cache_copies", 1),
    )
    return generating_memory(setup, row["rows"] * (1 + row["tokens"]), row["rows"])


def _published() -> dict[str, list[dict[str, Any]]]:
    return tomllib.loads(PUBLISHED.read_text(encoding="utf-8"))


def left_out() -> dict[str, str]:
    """Published figures that no row can be made of, each with why."""
    return {item["figure"]: item["why"] for item in _published()["left_out"]}


def _row(row: dict[str, Any]) -> Row:
    breakdown = breakdown_of(row)
    return Row(
        name=row["name"],
        source=row["source"],
        use=row["use"],
        group=row["group"],
        measured_gb=row["gb"],
        forecast_gb=_quantity(breakdown, row["quantity"]) / GB + row.get("buffers_gb", 0.0),
        least_gb=(breakdown.least_bytes - breakdown.outside_bytes) / GB,
    )


def rows() -> list[Row]:
    """All published rows with their forecasts."""
    return [_row(row) for row in _published()["row"]]


GROUPS = {
    "runner": "what the runner can run",
    "sharded": "sharded (FSDP, ZeRO-3)",
    "other": "other trainers and quantisers",
    "bound": "upper bounds (an allocator's cache)",
}


def groups(all_rows: list[Row]) -> dict[str, list[Row]]:
    """Rows by what they prove."""
    found = {
        f"{use}, {title}": [row for row in all_rows if (row.use, row.group) == (use, group)]
        for use in ("calibration", "blind")
        for group, title in GROUPS.items()
    }
    return {name: some for name, some in found.items() if some}


def median_error(some: list[Row]) -> float:
    """Median of the absolute relative errors."""
    return statistics.median(abs(row.error) for row in some)


def table() -> str:
    """The section of the docs between the markers."""
    lines = ["", "| rows | number | median error | too low by at most | too high by at most |", "|---|---|---|---|---|"]
    found = groups(rows())
    for name, some in found.items():
        low, high = min(0.0, *(row.error for row in some)), max(0.0, *(row.error for row in some))
        lines.append(f"| {name} | {len(some)} | {median_error(some):.1%} | {-low:.1%} | {high:.1%} |")
    for name, some in found.items():
        lines += ["", f"### {name[0].upper()}{name[1:]}", "", "| row | measured GB | forecast GB | error |"]
        lines += ["|---|---|---|---|"]
        lines += [f"| {r.name} | {r.measured_gb:.2f} | {r.forecast_gb:.2f} | {r.error:+.1%} |" for r in some]
    return "\n".join([*lines, ""])


def page_with_table(text: str) -> str:
    """The page with its table replaced. Raises ValueError when the markers are gone."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
