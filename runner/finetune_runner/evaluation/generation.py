"""Greedy answers: left padding, fixed batches sorted by length, so that a repeat gives the same text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

ROWS_PER_BATCH = 16
"""Part of the generation settings, not of the machine: batches of another size may round differently in bf16."""


@dataclass(frozen=True)
class Answer:
    """Generated text without special tokens, and whether it was cut at the limit."""

    text: str
    truncated: bool


@dataclass(frozen=True)
class GenerationSettings:
    """How answers are made. Greedy; there is nothing random."""

    max_new_tokens: int
    end_token_ids: tuple[int, ...]
    pad_token_id: int
    context_length: int | None


def settings_for(model: Any, tokenizer: Any, max_new_tokens: int) -> GenerationSettings:
    """Settings of a model: it stops at its own end tokens, the tokenizer's, and the template's end of turn."""
    ends: list[int] = []
    configured = model.generation_config.eos_token_id
    for token in [*(configured if isinstance(configured, list) else [configured]), tokenizer.eos_token_id]:
        if token is not None and token not in ends:
            ends.append(int(token))
    end_of_turn = _end_of_turn(tokenizer)
    if end_of_turn is not None and end_of_turn not in ends:
        ends.append(end_of_turn)
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return GenerationSettings(max_new_tokens, tuple(ends), int(tokenizer.pad_token_id), limit)


def _end_of_turn(tokenizer: Any) -> int | None:
    """The special token that the template puts right behind an answer, when it does."""
    from finetune_runner.text import encode_example

    ids, labels = encode_example(
        tokenizer, [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], 1_000_000
    )
    scored = [token for token, label in zip(ids, labels, strict=True) if label != -100]
    special = set(tokenizer.all_special_ids)
    for token in scored:
        if token in special:
            return int(token)
    return None


def generate(
    model: Any,
    prompts: Sequence[list[int]],
    tokenizer: Any,
    settings: GenerationSettings,
    on_batch: Callable[[int], None] | None = None,
) -> list[Answer]:
    """Answers to tokenised prompts, in their order. A prompt that leaves no room for an answer loses its beginning.

    `on_batch` hears how many are done, and may raise to stop.
    """
    import torch
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=settings.max_new_tokens,
        do_sample=False,
        num_beams=1,
        use_cache=True,
        pad_token_id=settings.pad_token_id,
        eos_token_id=list(settings.end_token_ids),
    )
    if settings.context_length is not None:
        room = max(1, settings.context_length - settings.max_new_tokens)
        prompts = [prompt[-room:] for prompt in prompts]
    device = next(model.parameters()).device
    ends = torch.tensor(settings.end_token_ids, device=device)
    answers: list[Answer] = [Answer("", truncated=False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: (-len(prompts[index]), index))
    for start in range(0, len(order), ROWS_PER_BATCH):
        batch = order[start : start + ROWS_PER_BATCH]
        width = max(len(prompts[index]) for index in batch)
        ids = torch.full((len(batch), width), settings.pad_token_id, dtype=torch.long)
        mask = torch.zeros((len(batch), width), dtype=torch.long)
        for row, index in enumerate(batch):
            ids[row, width - len(prompts[index]) :] = torch.tensor(prompts[index])
            mask[row, width - len(prompts[index]) :] = 1
        with torch.no_grad():
            output = model.generate(input_ids=ids.to(device), attention_mask=mask.to(device), generation_config=config)[
                :, width:
            ]
        stops = torch.isin(output, ends)
        for row, index in enumerate(batch):
            ended = bool(stops[row].any())
            length = int(stops[row].int().argmax()) if ended else output.shape[1]
            answers[index] = Answer(
                tokenizer.decode(output[row, :length], skip_special_tokens=True), truncated=not ended
            )
        if on_batch is not None:
            on_batch(start + len(batch))
    return answers
