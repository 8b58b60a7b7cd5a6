"""vLLM: several times faster on a GPU. Optional: the runner image has it only when it was built with it.

Written against vLLM's offline API (`vllm.LLM`, `SamplingParams`, `LoRARequest`); all GPUs of the pod work on one model
by tensor parallelism, so that there is one process and one share.
"""

from __future__ import annotations

import gc
import importlib.util
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.exit_codes import ExitCode
from finetune_api.job.method import LARGEST_SERVED_RANK, SERVED_RANKS
from finetune_runner.errors import StageError
from finetune_runner.evaluation.engines.base import OnBatch, Request
from finetune_runner.evaluation.generation import Answer, GenerationSettings, cut_prompts, settings_for
from finetune_runner.evaluation.likelihood import IGNORED, Encoded
from finetune_runner.evaluation.said import said_by

if TYPE_CHECKING:
    from finetune_runner.training.loading import MethodType

GPU_MEMORY_SHARE = 0.9
"""vLLM's own default of `gpu_memory_utilization`."""


def check() -> None:
    """Refuse when vllm is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise StageError(
            ExitCode.INVALID_SPEC,
            "evaluation.engine: vllm is not in this runner image",
            hint="set evaluation.engine: transformers, or give the GPUPool an image with vllm installed",
        )


def check_served(method: MethodType | None, rank: int | None) -> None:
    """Refuse an 8-bit base, which vLLM would load in 16 bit, and adapters of a rank above its largest."""
    hint = "set evaluation.engine: transformers"
    if method == "qlora-8bit":
        raise StageError(ExitCode.INVALID_SPEC, "evaluation.engine: vllm does not load 8-bit bases", hint=hint)
    if rank is not None and rank > LARGEST_SERVED_RANK:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"evaluation.engine: vllm serves adapters up to rank {LARGEST_SERVED_RANK}, this one has {rank}",
            hint=hint,
        )


def served_rank(rank: int) -> int:
    """The smallest `max_lora_rank` that vLLM takes and that holds an adapter of this rank, at most 512."""
    return next(served for served in SERVED_RANKS if served >= rank)


def open_engine(request: Request) -> VllmEngine:
    """Start vLLM with the model, and its adapter where there is one."""
    check()
    from transformers import AutoConfig, GenerationConfig
    from vllm import LLM

    config = AutoConfig.from_pretrained(str(request.model_path), trust_remote_code=False)
    try:
        generation = GenerationConfig.from_pretrained(str(request.model_path))
    except OSError:  # a model may have none: its configuration says where it stops
        generation = GenerationConfig.from_model_config(config)
    shape = SimpleNamespace(config=config, generation_config=generation)
    settings = settings_for(shape, request.tokenizer, request.max_new_tokens, request.generation, request.seed)
    options: dict[str, Any] = {}
    if request.method == "qlora":
        options["quantization"] = "bitsandbytes"
    if request.adapter is not None:
        from peft import LoraConfig

        rank = LoraConfig.from_pretrained(str(request.adapter)).r
        check_served(request.method, rank)
        options |= {"enable_lora": True, "max_lora_rank": served_rank(rank)}
    llm = LLM(
        model=str(request.model_path),
        dtype="bfloat16" if request.method is not None else "auto",
        trust_remote_code=False,
        seed=request.seed,
        tensor_parallel_size=max(1, request.plan.gpus_per_node if request.plan else 1),
        gpu_memory_utilization=GPU_MEMORY_SHARE,
        **options,
    )
    return VllmEngine(llm, request, settings)


def summed_likelihood(labels: Sequence[int], prompt_logprobs: Sequence[Mapping[int, Any] | None]) -> tuple[float, int]:
    """Negative log-likelihood in nats of the labelled tokens, and their number, from vLLM's `prompt_logprobs`.

    Entry i holds the log-probability of token i given those before it; the first is None: nothing predicts it.
    """
    nll, tokens = 0.0, 0
    for label, entry in zip(labels, prompt_logprobs, strict=True):
        if label != IGNORED and entry is not None:
            nll -= float(entry[label].logprob)
            tokens += 1
    return nll, tokens


class VllmEngine:
    """A running vLLM."""

    def __init__(self, llm: Any, request: Request, settings: GenerationSettings) -> None:
        self._llm = llm
        self._request = request
        self._settings = settings

    def _lora(self) -> Any:
        if self._request.adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("candidate", 1, str(self._request.adapter))

    def answer(self, prompts: Sequence[list[int]], on_batch: OnBatch = None) -> dict[int, Answer]:
        """All answers; vLLM makes its own batches."""
        from vllm import SamplingParams

        settings = self._settings
        parameters = SamplingParams(
            temperature=settings.temperature,
            top_p=settings.top_p,
            seed=settings.seed,
            max_tokens=settings.max_new_tokens,
            stop_token_ids=list(settings.end_token_ids),
            skip_special_tokens=True,
        )
        asked = [{"prompt_token_ids": ids} for ids in cut_prompts(prompts, settings)]
        found = self._llm.generate(asked, parameters, lora_request=self._lora(), use_tqdm=False)
        if on_batch is not None:
            on_batch(len(found))
        return {index: self._answer(item.outputs[0]) for index, item in enumerate(found)}

    def _answer(self, output: Any) -> Answer:
        ids = [token for token in output.token_ids if token not in self._settings.end_token_ids]
        text = said_by(self._request.tokenizer, ids, self._settings.opening_ids)
        return Answer(text, truncated=output.finish_reason == "length")

    def score(self, examples: Sequence[Encoded], on_batch: OnBatch = None) -> NDArray[np.float64]:
        """Likelihoods of all examples."""
        from vllm import SamplingParams

        parameters = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
        asked = [{"prompt_token_ids": ids} for ids, _ in examples]
        found = self._llm.generate(asked, parameters, lora_request=self._lora(), use_tqdm=False)
        if on_batch is not None:
            on_batch(len(found))
        pairs = [
            summed_likelihood(labels, item.prompt_logprobs) for (_, labels), item in zip(examples, found, strict=True)
        ]
        return np.array(pairs, dtype=np.float64).reshape(len(examples), 2)

    def close(self) -> int:
        """Free the GPUs. vLLM takes its share of the memory whatever it needs: there is no peak to tell."""
        del self._llm
        gc.collect()
        return 0
