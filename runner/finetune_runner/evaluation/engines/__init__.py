"""What answers and scores: one module per engine, `NAME_engine.py`, each with `open_engine(request) -> Engine`.

One engine for everything that is compared: kernels of another round otherwise, and that alone moves answers.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from finetune_api.job.evaluation import Evaluation
from finetune_runner.evaluation.engines.base import Engine, Request

if TYPE_CHECKING:
    from finetune_runner.training.loading import MethodType

__all__ = ["Engine", "Request", "check_engine", "check_served", "engine_version", "generation_facts", "open_engine"]


def _module(name: str) -> object:
    return importlib.import_module(f"{__name__}.{name}_engine")


def open_engine(name: str, request: Request) -> Engine:
    """Load a model into the named engine. Raises StageError when the engine is not in this image."""
    engine: Engine = _module(name).open_engine(request)  # type: ignore[attr-defined]
    return engine


def check_engine(name: str, method: MethodType) -> None:
    """Refuse an engine that this image lacks, or that lacks what a base of this precision needs, without importing it.

    Raises StageError (INVALID_SPEC) with the fix.
    """
    _module(name).check(method)  # type: ignore[attr-defined]


def check_served(name: str, method: MethodType | None, rank: int | None) -> None:
    """Refuse a form that the named engine cannot load as it was trained, without importing it.

    Args:
        name: of the engine.
        method: precision of the base; None for a merged model.
        rank: of the adapter; None without one.

    Raises:
        StageError: INVALID_SPEC with the fix.
    """
    _module(name).check_served(method, rank)  # type: ignore[attr-defined]


def engine_version(name: str) -> str:
    """Name and version, for example `transformers 5.23.0`: part of what a stored answer belongs to."""
    found: str = _module(name).installed_version()  # type: ignore[attr-defined]
    return found


def generation_facts(evaluation: Evaluation) -> dict[str, Any]:
    """How answers were made, for the manifest: stored answers are compared only with those made alike."""
    chosen = evaluation.generation
    return {
        "greedy": chosen.temperature == 0,
        "temperature": chosen.temperature,
        "topP": chosen.top_p,
        "maxNewTokens": evaluation.max_new_tokens,
        "reasoning": "not judged",
        "engine": engine_version(evaluation.engine),
    }
