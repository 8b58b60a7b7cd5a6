"""Libraries imported without what they would compile with and out of the collector's sight: seconds of every start."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
from collections.abc import Iterator

VARIABLE = "TORCHDYNAMO_DISABLE"
"""Makes `torch.compile` hand a function back as it is (torch._dynamo.eval_frame)."""


@contextlib.contextmanager
def nothing_compiles() -> Iterator[None]:
    """Let `torch.compile` hand functions back as they are; what was decorated meanwhile stays so.

    Decorating alone imports TorchInductor. Only for what runs here without it: vLLM compiles.
    """
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def import_unseen(*names: str) -> None:
    """Import modules while the garbage collector rests, and keep it from what they made for good.

    The libraries make a million objects that all stay. The collector would look at them again and again while they are
    imported, and afterwards too: a quarter of a short training's processor time. Once they are imported this does
    nothing, so that garbage of later work is never kept.
    """
    if all(name in sys.modules for name in names):
        return
    collects = gc.isenabled()
    gc.disable()
    try:
        for name in names:
            importlib.import_module(name)
    finally:
        gc.freeze()
        if collects:
            gc.enable()


def import_bitsandbytes() -> None:
    """Import bitsandbytes before PEFT does, which needs it for every method.

    For devices it has no kernels for it wraps functions in `torch.compile` and falls back to themselves where that
    fails (bitsandbytes 0.50, backends/default/ops.py). What runs here has kernels, and the image has no compiler.
    """
    with nothing_compiles():
        import_unseen("bitsandbytes")
