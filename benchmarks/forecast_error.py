"""The forecast against every published figure we know, row by row: `python -m benchmarks.forecast_error`.

It needs no GPU: the figures and their sources are in tests/decide/forecast/published.toml (memory) and speeds.toml, the
forecast is the planner's own, and no number of it was fitted to `blind` rows.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.decide.forecast import speeds
from tests.decide.forecast.accuracy import Row, groups, left_out, median_error, rows

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "forecast-error.md"
WORST_SHOWN = 5


def report(all_rows: list[Row]) -> str:
    """Markdown: a summary per group, the worst rows, then every row."""
    found = groups(all_rows)
    lines = ["# The forecast against published figures", ""]
    lines += ["Made by `python -m benchmarks.forecast_error`; negative errors are forecasts that are too low.", ""]
    lines += ["| rows | number | median error | within 10 % | lowest | highest |", "|---|---|---|---|---|---|"]
    for name, some in found.items():
        within = sum(abs(row.error) <= 0.10 for row in some) / len(some)
        low, high = min(row.error for row in some), max(row.error for row in some)
        lines.append(f"| {name} | {len(some)} | {median_error(some):.1%} | {within:.0%} | {low:+.1%} | {high:+.1%} |")
    measured = [row for row in all_rows if row.group != "bound"]
    worst = sorted(measured, key=lambda row: -abs(row.error))[:WORST_SHOWN]
    lines += ["", "The furthest off:", ""]
    lines += [f"- {row.error:+.1%} {row.name} ({row.use}; {row.source})" for row in worst]
    lines += ["", "Published figures that are in no row:", ""]
    lines += [f"- {figure}: {why}" for figure, why in left_out().items()]
    lines += ["", "## Training speed", "", speeds.table()]
    for name, some in found.items():
        lines += ["", f"## {name[0].upper()}{name[1:]}", ""]
        lines += ["| row | source | measured GB | forecast GB | error |", "|---|---|---|---|---|"]
        lines += [
            f"| {row.name} | {row.source} | {row.measured_gb:.2f} | {row.forecast_gb:.2f} | {row.error:+.1%} |"
            for row in some
        ]
    return "\n".join([*lines, ""])


def main() -> None:
    """Write the table."""
    text = report(rows())
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    sys.stdout.write(text.split("\n| row |")[0] + f"\nall rows: {RESULT.relative_to(ROOT)}\n")


if __name__ == "__main__":
    main()
