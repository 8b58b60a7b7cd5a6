"""The curves of a training as inline SVG. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 720, 260
LEFT, BOTTOM, TOP, RIGHT = 56, 34, 12, 12


def loss_curve(points: Sequence[Mapping[str, Any]], metric: str = "", kept: int | None = None) -> str:
    """Validation (solid) and training (dashed) loss over optimiser steps, and a metric (dotted) from 0 to 1.

    `kept` is the step of the adapter that was kept.
    """
    values = [p["validation_loss"] for p in points] + [
        p["train_loss"] for p in points if p.get("train_loss") is not None
    ]
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    last = max(p["step"] for p in points) or 1

    def place(step: float, loss: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * step / last
        y = TOP + (HEIGHT - TOP - BOTTOM) * (1 - (loss - low) / span)
        return round(x, 1), round(y, 1)

    def measured(point: Mapping[str, Any]) -> float | None:
        value = point.get("measures", {}).get(metric)
        return None if value is None else float(min(1.0, max(0.0, value)))

    def metric_line() -> str:
        shares = [(point["step"], share) for point in points if (share := measured(point)) is not None]
        path = " ".join("{},{}".format(*place(step, low + span * share)) for step, share in shares)
        return f'<polyline points="{path}" fill="none" stroke-width="2" stroke="#c73" stroke-dasharray="1 4"/>'

    def line(key: str, style: str) -> str:
        path = " ".join("{},{}".format(*place(p["step"], p[key])) for p in points if p.get(key) is not None)
        return f'<polyline points="{path}" fill="none" stroke-width="2" {style}/>'

    def mark(step: int) -> str:
        x = place(step, low)[0]
        anchor = "end" if x > WIDTH / 2 else "start"
        beside = x - 6 if anchor == "end" else x + 6
        return (
            f'<line x1="{x}" x2="{x}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#8888" stroke-dasharray="2 3"/>'
            f'<text x="{beside}" y="{TOP + 10}" text-anchor="{anchor}">kept: step {step}</text>'
        )

    dots = "".join(
        '<circle cx="{}" cy="{}" r="3" fill="#2a7"/>'.format(*place(p["step"], p["validation_loss"])) for p in points
    )
    axes = "".join(
        f'<text x="{LEFT - 8}" y="{place(0, value)[1] + 4}" text-anchor="end">{value:.3g}</text>'
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{place(0, value)[1]}" y2="{place(0, value)[1]}" stroke="#8884"/>'
        for value in (low, low + span / 2, low + span)
    )
    floor = HEIGHT - BOTTOM + 20
    shown = any(measured(point) is not None for point in points)
    labels = (
        f'<text x="{LEFT}" y="{floor}">0</text>'
        f'<text x="{WIDTH - RIGHT}" y="{floor}" text-anchor="end">step {last}</text>'
        f'<text x="{WIDTH / 2}" y="{floor}" text-anchor="middle">validation: solid, training: dashed'
        f"{f', {metric} from 0 to 1: dotted' if shown else ''}</text>"
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="loss over steps" font-size="12" '
        f'fill="currentColor" font-family="system-ui, sans-serif">{axes}{labels}'
        + line("validation_loss", 'stroke="#2a7"')
        + line("train_loss", 'stroke="#77a" stroke-dasharray="5 4"')
        + (metric_line() if shown else "")
        + dots
        + (mark(kept) if kept is not None else "")
        + "</svg>"
    )
