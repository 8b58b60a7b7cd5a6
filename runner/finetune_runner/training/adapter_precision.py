"""fp32 adapters in a bf16 forward pass: what is learned is kept in fp32, what is multiplied is bf16."""

from __future__ import annotations

import contextlib
from typing import Any


def uncast(model: Any, *, active: bool) -> contextlib.AbstractContextManager[None]:
    """Leave the inputs of adapters as they are while autocast is on.

    PEFT would widen each to fp32 first, and autocast narrow it again: same gradients, but a copy of every target's
    input is kept for the backward pass (24h instead of 16h bytes per token and block, measured). DoRA keeps the casts:
    its norms would be taken in bf16.

    Args:
        model: a PEFT model.
        active: whether autocast is on; without it the products need inputs in the adapter's precision.
    """
    from peft.helpers import disable_input_dtype_casting

    dora = any(getattr(config, "use_dora", False) for config in model.peft_config.values())
    context: contextlib.AbstractContextManager[None] = disable_input_dtype_casting(model, active=active and not dora)
    return context
