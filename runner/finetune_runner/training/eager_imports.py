"""Libraries imported without what they would compile with: a second less of every process that loads a model."""

from __future__ import annotations

import os
import sys

VARIABLE = "TORCHDYNAMO_DISABLE"
"""Makes `torch.compile` hand a function back as it is (torch._dynamo.eval_frame)."""


def import_bitsandbytes() -> None:
    """Import bitsandbytes before PEFT does, which needs it for every method.

    For devices it has no kernels for it wraps functions in `torch.compile` and falls back to themselves where that
    fails (bitsandbytes 0.50, backends/default/ops.py). Wrapping alone imports TorchInductor; what runs here has
    kernels, and the image has no compiler. The variable is set for the import only: vLLM compiles.
    """
    if "bitsandbytes" in sys.modules:
        return
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        import bitsandbytes  # noqa: F401
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before
