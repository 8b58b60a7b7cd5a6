"""Trackers of a run: one module per tracker, found by its name in spec.tracking, each with `open_tracker(...)`.

Only the first process of a gang speaks. Losing a tracker never hurts the run: it becomes one warning.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping

from finetune_runner.context import StageContext
from finetune_runner.tracking.base import Tracker
from finetune_runner.tracking.facts import run_facts
from finetune_runner.tracking.lane import Lane, Tracking

__all__ = ["Tracking", "open_tracking"]


def open_tracking(context: StageContext, environ: Mapping[str, str] = os.environ) -> Tracking:
    """The trackers that the job asks for, each in a lane of its own; none of them is waited for.

    Credentials are keys of the tracker's Secret, else variables of the same names in `environ`.
    """
    asked = context.task.spec.tracking
    facts = run_facts(context)
    lanes = []
    for name in type(asked).model_fields:
        settings = getattr(asked, name)
        if settings is None:
            continue
        module = importlib.import_module(f"{__name__}.{name}_tracker")

        def start(module: object = module, settings: object = settings) -> Tracker:
            secret = context.secrets.read(getattr(settings, "secret_ref", None))
            tracker: Tracker = module.open_tracker(settings, facts, context, {**environ, **secret})  # type: ignore[attr-defined]
            return tracker

        lanes.append(Lane(name, start))
    return Tracking(lanes)
