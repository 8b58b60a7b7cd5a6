"""Answers, greedy unless asked: left padding, fixed batches sorted by length, so that a repeat gives the same text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_api.job.evaluation import Generation
from finetune_api.model_config import facts_of_config
from finetune_runner.evaluation.fitting import Fitting
from finetune_runner.evaluation.said import said_by
from finetune_runner.evaluation.share import WHOLE, Batch, Share
from finetune_runner.text import answer_frame, enders

ROWS_PER_BATCH = 16
"""Part of the generation settings, not of the machine: batches of another size may round differently in bf16."""
TOKENS_PER_BATCH = 65_536
"""Most prompt tokens of a batch, padding counted: the prompts' one forward pass. Prompts of up to 4,096 tokens never
meet it."""
CACHE_BYTES_PER_BATCH = 4 * 2**30
"""Most that keys and values of a batch may take in 16 bit. 16 rows of 2,560 tokens would take 21 GB on Llama-2-7B,
whose heads share no keys: several times a training step of QLoRA, on GPUs that train it well."""


@dataclass(frozen=True)
class Answer:
    """Generated text without special tokens and reasoning, and whether it was cut at the limit."""

    text: str
    truncated: bool


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are made. Temperature 0 is greedy: there is nothing random then."""

    max_new_tokens: int
    end_token_ids: tuple[int, ...]
    pad_token_id: int
    context_length: int | None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    """Of sampling; each batch has a stream of its own, a function of this and of its place."""
    opening_ids: tuple[int, ...] = ()
    """What the template writes before the text of an answer."""


def settings_for(
    model: Any, tokenizer: Any, max_new_tokens: int, chosen: Generation | None = None, seed: int = 0
) -> GenerationSettings:
    """Settings of a model: it stops at its own end tokens, the tokenizer's, and the template's end of turn.

    `model` is anything with `generation_config` and `config`. Without `chosen` answers are greedy.
    """
    chosen = chosen or Generation()
    ends: list[int] = []
    configured = model.generation_config.eos_token_id
    for token in [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]:
        if token is not None and token not in ends:
            ends.append(int(token))
    frame = answer_frame(tokenizer)
    end_of_turn = next((token for token in frame.closing_ids if token in enders(tokenizer)), None)
    if end_of_turn is not None and end_of_turn not in ends:
        ends.append(end_of_turn)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return GenerationSettings(
        max_new_tokens,
        tuple(ends),
        int(tokenizer.pad_token_id),
        limit,
        chosen.temperature,
        chosen.top_p,
        seed,
        tuple(frame.opening_ids),
    )


def cache_bytes_per_token(model: Any) -> int:
    """Keys and values of one token, all blocks; 0 where the configuration does not say.

    In 16 bit whatever the model is in: who shares a batch does not depend on the machine.
    """
    facts = facts_of_config(model.config.get_text_config().to_dict(), parameters=0)
    latent = facts.key_value_latent_size + facts.position_size
    return 2 * facts.layers * (latent or 2 * facts.key_value_heads * facts.head_size)


def batches_of(lengths: Sequence[int], max_new_tokens: int = 0, token_bytes: int = 0) -> list[Batch]:
    """Fixed batches of prompts, longest first: the same rows always share a batch."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    batches: list[Batch] = []
    while order:
        longest = max(1, lengths[order[0]])
        cache = max(1, token_bytes * (longest + max_new_tokens))
        rows = max(1, min(ROWS_PER_BATCH, TOKENS_PER_BATCH // longest, CACHE_BYTES_PER_BATCH // cache))
        batches.append(order[:rows])
        order = order[rows:]
    return batches


def cut_prompts(prompts: Sequence[list[int]], settings: GenerationSettings) -> list[list[int]]:
    """The prompts, without the beginning of those that leave no room for an answer."""
    if settings.context_length is None:
        return list(prompts)
    room = max(1, settings.context_length - settings.max_new_tokens)
    return [prompt[-room:] for prompt in prompts]


def generate(
    model: Any,
    prompts: Sequence[list[int]],
    tokenizer: Any,
    settings: GenerationSettings,
    on_batch: Callable[[int], None] | None = None,
    share: Share = WHOLE,
) -> dict[int, Answer]:
    """Answers to tokenised prompts by their index; of a share only its own. The model must be in eval mode.

    `on_batch` hears how many are done, and may raise to stop.

    Raises:
        StageError: GPU_OUT_OF_MEMORY when not even one answer fits.
    """
    import torch

    config = _config(settings)
    prompts = cut_prompts(prompts, settings)
    device = next(model.parameters()).device
    ends = torch.tensor(settings.end_token_ids, device=device)
    answers: dict[int, Answer] = {}
    done = 0
    fitting = Fitting("answering", device, splits=not share.lockstep)

    def answered(batch: Batch) -> dict[int, Answer]:
        """Answers to the prompts of these numbers."""
        width = max(len(prompts[index]) for index in batch)
        ids = torch.full((len(batch), width), settings.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, index in enumerate(batch):
            ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, width - len(prompts[index]) :] = 1
        # What comes after (a training's dropout) must not depend on whether answers were sampled in between.
        with torch.no_grad(), torch.random.fork_rng(enabled=settings.temperature > 0):
            if settings.temperature > 0:
                torch.manual_seed(settings.seed * 1_000_003 + batch[0])
            output = model.generate(
                input_ids=ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                synced_gpus=share.lockstep,
            )[:, width:]
        stops = torch.isin(output, ends)
        found = {}
        for row, index in enumerate(batch):
            ended = bool(stops[row].any())
            length = int(stops[row].int().argmax()) if ended else output.shape[1]
            text = said_by(tokenizer, output[row, :length].tolist(), settings.opening_ids)
            found[index] = Answer(text, truncated=not ended)
        return found

    lengths = [len(prompt) for prompt in prompts]
    batches = batches_of(lengths, settings.max_new_tokens, cache_bytes_per_token(model))
    for batch, counts in share.turns(batches):
        for _, found in fitting.parts(batch, answered):
            if counts:
                answers |= found
        done += len(batch)
        if on_batch is not None:
            on_batch(done)
    return answers


def _config(settings: GenerationSettings) -> Any:
    from transformers import GenerationConfig

    sampling: dict[str, Any] = {"do_sample": False}
    if settings.temperature > 0:
        sampling = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0}
    return GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        num_beams=1,
        use_cache=True,
        pad_token_id=settings.pad_token_id,
        eos_token_id=list(settings.end_token_ids),
        **sampling,
    )
