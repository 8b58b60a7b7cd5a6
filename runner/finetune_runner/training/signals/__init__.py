"""What the curves say after training: one module per signal, each with `look(curve) -> Finding | None`. Pure.

A module is found by its presence; its threshold stands in it with where it comes from.
"""

from __future__ import annotations

import importlib
import pkgutil

from finetune_api.stages import Finding
from finetune_runner.training.signals.base import Curve

__all__ = ["Curve", "findings"]


def findings(curve: Curve) -> list[Finding]:
    """Everything worth saying, warnings first."""
    found = []
    for module in pkgutil.iter_modules(__path__):
        look = getattr(importlib.import_module(f"{__name__}.{module.name}"), "look", None)
        finding = look(curve) if look is not None else None
        if finding is not None:
            found.append(finding)
    return sorted(found, key=lambda finding: (finding.severity != "warning", finding.check))
