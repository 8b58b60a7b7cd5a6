"""An adapter in PEFT's file, against the model that it is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError

ADAPTER_FILE = "adapter_model.safetensors"
SHOWN = 3


def saved_shapes(path: Path) -> dict[str, list[int]]:
    """Shape of each tensor of a safetensors file, from its head. Raises StageError when the file is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as tensors:
            return {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{path.name} is not a whole safetensors file",
            hint="it was damaged on its way to storage; an earlier checkpoint or a new run helps",
            evidence=str(error)[:500],
        ) from error


def wanted_shapes(model: Any) -> dict[str, list[int]]:
    """What a file of this model's adapter must hold. The model must not be spread out yet."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, save_embedding_layers=False)
    return {name: list(tensor.shape) for name, tensor in state.items()}


def misfits(wanted: Mapping[str, Sequence[int]], folder: Path) -> str:
    """What is wrong with a folder's adapter: tensors missing, too many or not of the shape in `wanted_shapes`."""
    saved = saved_shapes(folder / ADAPTER_FILE)
    problems = [
        ("lacks", [name for name in wanted if name not in saved]),
        ("has besides", [name for name in saved if name not in wanted]),
        ("has in another shape", [name for name in wanted if name in saved and saved[name] != list(wanted[name])]),
    ]
    said = []
    for words, names in problems:
        if names:
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            said.append(f"{words} {', '.join(names[:SHOWN])}{more}")
    return "; ".join(said)


def load_adapter(model: Any, folder: Path) -> None:
    """Overwrite every adapter weight with the file's. Raises StageError when the file does not hold all of them.

    A model without weights (on the meta device) only has the file checked: it gets them from another process.
    """
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    problem = misfits(wanted_shapes(model), folder)
    if problem:
        raise StageError(ExitCode.INTERNAL, "a saved adapter is not this model's", evidence=f"it {problem}"[:500])
    if not next(model.parameters()).is_meta:
        set_peft_model_state_dict(model, load_file(str(folder / ADAPTER_FILE)))
