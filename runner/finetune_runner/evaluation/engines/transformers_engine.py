"""transformers in this process: the engine that always works."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetune_runner.evaluation.engines.base import OnBatch, Request
from finetune_runner.evaluation.generation import Answer, GenerationSettings, generate, settings_for
from finetune_runner.evaluation.likelihood import Encoded, score

if TYPE_CHECKING:
    import torch

    from finetune_runner.training.loading import MethodType


def check(method: MethodType | None) -> None:
    """It is part of every image."""
    del method


def installed_version() -> str:
    """Name and version."""
    return f"transformers {version('transformers')}"


def check_served(method: MethodType | None, rank: int | None) -> None:
    """It loads whatever was trained."""
    del method, rank


def open_engine(request: Request) -> TransformersEngine:
    """Load the model onto this process's device, or over its GPUs where the plan spreads one copy over several."""
    import torch

    from finetune_runner.evaluation.serving import load_plain
    from finetune_runner.training.loading import load_base, with_adapter
    from finetune_runner.training.placement import judging_devices

    devices = judging_devices(request.plan)
    for device in devices:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
    if request.method is None:
        model = load_plain(request.model_path, devices[0], request.plan, devices)
    else:
        model = load_base(request.model_path, request.method, devices[0], request.plan, devices)
    if request.adapter is not None:
        model = with_adapter(model, request.adapter)
    settings = settings_for(model, request.tokenizer, request.max_new_tokens, request.generation, request.seed)
    return TransformersEngine(model, request, settings, devices)


class TransformersEngine:
    """A model of transformers, with or without PEFT's adapter."""

    def __init__(
        self, model: Any, request: Request, settings: GenerationSettings, devices: Sequence[torch.device]
    ) -> None:
        self.model = model
        self.devices = devices
        self.settings = settings
        self._request = request

    def answer(self, prompts: Sequence[list[int]], on_batch: OnBatch = None) -> dict[int, Answer]:
        """Answers of this process's batches."""
        return generate(self.model, prompts, self._request.tokenizer, self.settings, on_batch, self._request.share)

    def score(self, examples: Sequence[Encoded], on_batch: OnBatch = None) -> NDArray[np.float64]:
        """Likelihoods of this process's batches."""
        return score(self.model, examples, self._request.tokenizer.pad_token_id, on_batch, self._request.share)

    def close(self) -> int:
        """Give the memory back before the next model is loaded: two of them might not fit. The fullest GPU's peak."""
        from finetune_runner.training.device import peak_memory_bytes, release_memory

        peak = max(peak_memory_bytes(device) for device in self.devices)
        del self.model
        release_memory(self.devices[0])
        return peak
