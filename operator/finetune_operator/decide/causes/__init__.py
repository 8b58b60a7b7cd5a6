"""Failure causes, one module each; `registry()` finds them, so that adding a cause is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from finetune_operator.decide.causes.base import Cause


@cache
def registry() -> dict[str, Cause]:
    """All causes by name, in order of precedence."""
    found: list[Cause] = [
        importlib.import_module(f"{__name__}.{module.name}").CAUSE
        for module in pkgutil.iter_modules(__path__)
        if module.name != "base"
    ]
    return {cause.name: cause for cause in sorted(found, key=lambda cause: (cause.precedence, cause.name))}
