"""Plug-ins by file: every module of a package is one, found by its name; adding one is adding a file."""

from __future__ import annotations

import importlib
import pkgutil
from types import ModuleType


def modules_of(package: str) -> dict[str, ModuleType]:
    """The modules of a package, by name, in the order of their names."""
    folder = importlib.import_module(package).__path__
    names = sorted(item.name for item in pkgutil.iter_modules(folder))
    return {name: importlib.import_module(f"{package}.{name}") for name in names}
