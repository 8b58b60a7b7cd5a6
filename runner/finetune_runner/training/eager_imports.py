"""Libraries imported without what they would compile with: a second less of every process that loads a model."""

from __future__ import annotations

import contextlib
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


def import_bitsandbytes() -> None:
    """Import bitsandbytes before PEFT does, which needs it for every method.

    For devices it has no kernels for it wraps functions in `torch.compile` and falls back to themselves where that
    fails (bitsandbytes 0.50, backends/default/ops.py). What runs here has kernels, and the image has no compiler.
    """
    if "bitsandbytes" not in sys.modules:
        with nothing_compiles():
            import bitsandbytes  # noqa: F401
