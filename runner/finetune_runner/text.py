"""From messages to tokens: one place for training, evaluation and serving, so that all three see the same text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2.exceptions import TemplateError

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.rows import Message
from finetune_runner.errors import StageError

IGNORED = -100
"""Label of a token that the loss leaves out."""


_GENERIC_CLASSES = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})


def load_tokenizer(model_path: Path) -> Any:
    """The tokenizer beside a model, with a padding token. Raises StageError (MODEL_UNUSABLE) when there is none.

    AutoTokenizer imports torch. A tokenizer that is all in tokenizer.json needs neither: stage prepare starts in
    seconds then.
    """
    try:
        config: dict[str, Any] = json.loads((model_path / "tokenizer_config.json").read_bytes())
        if config.get("tokenizer_class") in _GENERIC_CLASSES and (model_path / "tokenizer.json").is_file():
            from transformers import PreTrainedTokenizerFast

            tokenizer = PreTrainedTokenizerFast.from_pretrained(str(model_path))
        else:
            from transformers import AutoTokenizer

            tokenizer = AutoTokenizer.from_pretrained(str(model_path), trust_remote_code=False)
    except (OSError, ValueError, AttributeError) as error:
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            "the tokenizer of the base model cannot be loaded",
            "model.source needs tokenizer.json and tokenizer_config.json beside the weights",
            str(error)[:500],
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


class RenderError(ValueError):
    """The chat template refuses these messages (for example a system message it does not know)."""


def render_chat(tokenizer: Any, messages: Sequence[Message], *, add_generation_prompt: bool = False) -> str:
    """The messages as the model sees them.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        messages: the conversation.
        add_generation_prompt: end with what precedes the assistant's answer.

    Raises:
        RenderError: when the template refuses the messages.
    """
    try:
        return str(
            tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=add_generation_prompt)
        )
    except (TemplateError, TypeError, KeyError) as error:
        raise RenderError(f"the model's chat template refuses the row: {error}") from error


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Tokens of rendered text; the template has already written the special ones."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_prompt(tokenizer: Any, messages: Sequence[Message], max_length: int | None = None) -> list[int]:
    """Tokens of the prompt (messages without the answer) from which the answer is generated, cut from the left."""
    ids = encode_text(tokenizer, render_chat(tokenizer, messages, add_generation_prompt=True))
    return ids if max_length is None else _cut(tokenizer, ids, max_length)


def encode_example(tokenizer: Any, messages: Sequence[Message], max_length: int) -> tuple[list[int], list[int]]:
    """Tokens and labels of an example; the last message is the answer.

    The loss sees the answer and the token that ends it, nothing else. Prompt and answer are tokenised apart, as they
    are when the answer is generated. Longer examples lose the left of their prompt (a leading BOS token stays).

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        messages: the conversation, ending with the assistant's answer.
        max_length: most tokens.

    Returns:
        `input_ids` and `labels`, of the same length; `labels` is IGNORED outside the answer.

    Raises:
        RenderError: when the template refuses the messages.
        StageError: MODEL_UNUSABLE when the template does not say where the answer is.
    """
    prompt_ids, answer_ids = _split_tokens(tokenizer, messages)
    enders = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    if tokenizer.eos_token_id is not None and not enders.intersection(answer_ids[-3:]):
        answer_ids = [*answer_ids, tokenizer.eos_token_id]  # otherwise the model never learns to stop
    ids = _cut(tokenizer, [*prompt_ids, *answer_ids], max_length)
    labels = ([IGNORED] * len(prompt_ids) + answer_ids)[-len(ids) :]
    if ids[0] != labels[0] and labels[0] != IGNORED:  # the kept BOS displaced an answer token
        labels = [IGNORED, *labels[1:]]
    return ids, labels


def check_chat_template(tokenizer: Any, model: str) -> None:
    """Refuse a model whose tokenizer cannot render a conversation, or does not say where the answer is.

    Raises:
        StageError: MODEL_UNUSABLE with the fix.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            f"{model}: the tokenizer has no chat template",
            "use the model's instruct or chat variant, or put a chat_template.jinja beside its tokenizer",
        )
    example: list[Message] = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi there"}]
    try:
        encode_example(tokenizer, example, 1 << 20)
    except RenderError as error:
        raise StageError(
            ExitCode.MODEL_UNUSABLE, f"{model}: {error}", "mend the chat template beside the tokenizer"
        ) from error
    except StageError as error:
        raise StageError(error.exit_code, f"{model}: {error.message}", error.hint) from error


def _split_tokens(tokenizer: Any, messages: Sequence[Message]) -> tuple[list[int], list[int]]:
    full = render_chat(tokenizer, messages)
    prompt = render_chat(tokenizer, messages[:-1], add_generation_prompt=True)
    if full.startswith(prompt):
        return encode_text(tokenizer, prompt), encode_text(tokenizer, full[len(prompt) :])
    # Some templates write earlier turns differently when an answer follows: then {% generation %} must mark it.
    encoded = tokenizer.apply_chat_template(list(messages), return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = list(encoded["input_ids"]), list(encoded.get("assistant_masks", []))
    if 1 not in mask:
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            "the model's chat template does not say where the assistant's answer is",
            "mark it with {% generation %} ... {% endgeneration %} in the chat template beside the tokenizer",
        )
    end = len(mask) - mask[::-1].index(1)
    start = end
    while start > 0 and mask[start - 1] == 1:
        start -= 1
    return ids[:start], ids[start:end]


def _cut(tokenizer: Any, ids: list[int], max_length: int) -> list[int]:
    if len(ids) <= max_length:
        return ids
    bos = tokenizer.bos_token_id
    if bos is not None and ids[0] == bos:
        return [bos, *ids[len(ids) - max_length + 1 :]]
    return ids[-max_length:]
