"""From messages to tokens: one place for training, evaluation and serving, so that all three see the same text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jinja2.exceptions import TemplateError

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.rows import Message
from finetune_runner.errors import StageError
from finetune_runner.templates import TOKENIZER, use_template

IGNORED = -100
"""Label of a token that the loss leaves out."""
Loss = Literal["assistant", "completion", "all"]
"""Which tokens are learned: all answers of a conversation, the last one, or every token."""

_STAND_IN = "\u2402\u2403"
"""Stands for a text of the row, to see what a template writes around it."""
_SEAM_CHARACTERS = 6

_GENERIC_CLASSES = frozenset({"PreTrainedTokenizerFast", "TokenizersBackend"})


def load_tokenizer(model_path: Path, chat_template: str = TOKENIZER) -> Any:
    """The tokenizer beside a model, with a padding token and the template that `model.chatTemplate` names.

    Raises StageError: MODEL_UNUSABLE when there is no tokenizer, INVALID_SPEC when it cannot spell the template.
    """
    tokenizer = load_plain_tokenizer(model_path)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    use_template(tokenizer, chat_template)
    return tokenizer


def load_plain_tokenizer(model_path: Path) -> Any:
    """The tokenizer beside a model, as its files have it. Raises StageError (MODEL_UNUSABLE) when there is none.

    AutoTokenizer imports torch. A tokenizer that is all in tokenizer.json needs neither: stages prepare and publish
    start in seconds then.
    """
    try:
        config: dict[str, Any] = json.loads((model_path / "tokenizer_config.json").read_bytes())
        if config.get("tokenizer_class") in _GENERIC_CLASSES and (model_path / "tokenizer.json").is_file():
            from transformers import PreTrainedTokenizerFast

            return PreTrainedTokenizerFast.from_pretrained(str(model_path))
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(str(model_path), trust_remote_code=False)
    except (OSError, ValueError, AttributeError) as error:
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            "the tokenizer of the base model cannot be loaded",
            "model.source needs tokenizer.json and tokenizer_config.json beside the weights",
            str(error)[:500],
        ) from error


class RenderError(ValueError):
    """The chat template refuses these messages (for example a system message it does not know)."""


@dataclass(frozen=True)
class Encoded:
    """An example as the model is trained on it."""

    input_ids: list[int]
    labels: list[int]
    """As long as input_ids; IGNORED where the loss does not look. At least one label is not."""
    total: int
    """Tokens before any cutting."""
    answer: int
    """Tokens of the last answer with its stop token; of plain text all tokens."""
    least: int = 0
    """The smallest limit at which the answer and what the template writes around the turn fit, with a word of the
    user between them. Counted in full only for an example above the limit; below it is the answer alone."""
    cut: bool = False
    """Whether the prompt lost its left, or plain text its end."""
    earlier_left_out: int = 0
    """Earlier answers that the loss leaves out, because the template writes them otherwise than they are generated."""
    rewritten: bool = False
    """Whether the template writes the answer otherwise than the row has it (white space does not count)."""


@dataclass(frozen=True)
class AnswerSpans:
    """Where the answers of a conversation are, in tokens."""

    prompt_ids: list[int]
    """What the last answer is generated from, token for token as when it is served."""
    answer_ids: list[int]
    """The last answer and the token that ends it."""
    rest_ids: list[int]
    """What the template writes behind the end: never generated, never learned."""
    earlier: list[tuple[int, int]]
    """First and last + 1 token of each earlier answer with its end, where its context is what it is generated from."""
    left_out: int = 0
    rewritten: bool = False


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
    except (
        TemplateError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        raise RenderError(f"the model's chat template refuses the row: {str(error)[:300]}") from error


def encode_text(tokenizer: Any, text: str) -> list[int]:
    """Tokens of rendered text; the template has already written the special ones."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def encode_prompt(tokenizer: Any, messages: Sequence[Message], max_length: int | None = None) -> list[int]:
    """Tokens of the prompt (messages without the answer) from which the answer is generated.

    What is too long loses its left, but not its system message. Without messages (plain text) it is the token that
    text begins with.
    """
    if not messages:
        return _text_start(tokenizer) or [tokenizer.eos_token_id]
    ids = encode_text(tokenizer, render_chat(tokenizer, messages, add_generation_prompt=True))
    if max_length is None or len(ids) <= max_length:
        return ids
    return _cut(ids, _frame(tokenizer, messages, ids)[0], max_length)


def encode_example(tokenizer: Any, messages: Sequence[Message], max_length: int) -> tuple[list[int], list[int]]:
    """Tokens and labels of an example whose last answer is judged: `encode_row` with loss `completion`.

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
    encoded = encode_row(tokenizer, messages, max_length, "completion")
    return encoded.input_ids, encoded.labels


def encode_row(tokenizer: Any, messages: Sequence[Message], max_length: int, loss: Loss = "assistant") -> Encoded:
    """An example as it is trained on.

    The loss sees answers and the tokens that end them. The last answer follows the very tokens that it is generated
    from when served; an earlier answer is learned only where the same holds for it (templates that drop the reasoning
    of earlier turns, say, write it otherwise), and is counted where not. Plain text (one message, of the assistant) is
    learned as a whole, without a template.

    What is too long loses whole exchanges from its left, then the left of the first turn that remains; the system
    message and what the template writes before the first turn stay.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        messages: the conversation, ending with the assistant's answer.
        max_length: most tokens.
        loss: which tokens are learned.

    Raises:
        RenderError: when the template refuses the messages.
        StageError: MODEL_UNUSABLE when the template does not say where the answer is.
    """
    if len(messages) == 1:
        return _encode_plain(tokenizer, messages[0]["content"], max_length)
    kept = list(messages)
    spans = answer_spans(tokenizer, kept, every=loss == "assistant")
    total = len(spans.prompt_ids) + len(spans.answer_ids) + len(spans.rest_ids)
    left_out = spans.left_out
    while _length(spans) > max_length and (shorter := _without_oldest_exchange(kept)):
        kept = shorter
        spans = answer_spans(tokenizer, kept, every=loss == "assistant")
    ids = [*spans.prompt_ids, *spans.answer_ids, *spans.rest_ids]
    labels = list(ids) if loss == "all" else _labels(spans)
    cut = len(kept) < len(messages)
    least = len(spans.answer_ids)
    if len(ids) > max_length:
        # The white space that some templates write last is the first to go.
        ids, labels = ids[: _length(spans)], labels[: _length(spans)]
    if len(ids) > max_length:
        head, tail = _frame(tokenizer, kept[:-1], spans.prompt_ids)
        least = head + tail + len(spans.answer_ids) + 1
        head = min(head, max(max_length - len(spans.answer_ids), 0))
        ids, labels = _cut(ids, head, max_length), _cut(labels, head, max_length)
        cut = True
    return Encoded(ids, labels, total, len(spans.answer_ids), least, cut, left_out, spans.rewritten)


def answer_spans(tokenizer: Any, messages: Sequence[Message], *, every: bool = True) -> AnswerSpans:
    """Where the answers of a conversation are.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        messages: the conversation, ending with the assistant's answer.
        every: look for the earlier answers too.

    Raises:
        RenderError: when the template refuses the messages.
        StageError: MODEL_UNUSABLE when the template does not say where the answer is.
    """
    full = render_chat(tokenizer, messages)
    prompt = render_chat(tokenizer, messages[:-1], add_generation_prompt=True)
    written = _written_answer(tokenizer, messages, full, prompt)
    prompt_ids, answer_ids = encode_text(tokenizer, prompt), encode_text(tokenizer, written)
    ending = enders(tokenizer)
    end = _end_of(tokenizer, answer_ids, ending, messages[-1]["content"])
    if end:
        answer_ids, rest_ids = answer_ids[:end], answer_ids[end:]
    else:
        answer_ids, rest_ids = [*answer_ids, tokenizer.eos_token_id], []  # otherwise the model never learns to stop
    earlier: list[tuple[int, int]] = []
    turns = [n for n, m in enumerate(messages[:-1]) if m["role"] == "assistant"] if every else []
    for turn in turns:
        span = _earlier_span(tokenizer, messages, turn, full, prompt_ids, ending)
        if span is not None:
            earlier.append(span)
    return AnswerSpans(
        prompt_ids,
        answer_ids,
        rest_ids,
        earlier,
        left_out=len(turns) - len(earlier),
        rewritten="".join(messages[-1]["content"].split()) not in "".join(written.split()),
    )


@dataclass(frozen=True)
class AnswerFrame:
    """What a template writes around the text of an answer, behind what the answer is generated from."""

    opening_ids: list[int]
    """For example an empty thought, or the name of a channel."""
    closing_ids: list[int]


def answer_frame(tokenizer: Any) -> AnswerFrame:
    """The frame of an answer without reasoning. Raises RenderError and StageError as `answer_spans`."""
    messages: list[Message] = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _STAND_IN}]
    prompt = render_chat(tokenizer, messages[:-1], add_generation_prompt=True)
    written = _written_answer(tokenizer, messages, render_chat(tokenizer, messages), prompt)
    before, found, after = written.partition(_STAND_IN)
    if not found:
        return AnswerFrame([], [])
    return AnswerFrame(encode_text(tokenizer, before) if before.strip() else [], encode_text(tokenizer, after))


def _earlier_span(
    tokenizer: Any,
    messages: Sequence[Message],
    turn: int,
    full: str,
    prompt_ids: list[int],
    ending: set[int],
) -> tuple[int, int] | None:
    """Tokens of an earlier answer within the last prompt, when they follow what the answer is generated from."""
    try:
        before = render_chat(tokenizer, messages[:turn], add_generation_prompt=True)
        until = render_chat(tokenizer, messages[: turn + 1])
    except RenderError:
        return None
    if not (until.startswith(before) and full.startswith(before)):
        return None
    before_ids, until_ids = encode_text(tokenizer, before), encode_text(tokenizer, until)
    start = len(before_ids)
    # What some templates write behind the end of the last message only (Phi-3: <|endoftext|>) is not missed here.
    end = start + _end_of(tokenizer, until_ids[start:], ending, messages[turn]["content"], first=True)
    if end == start or prompt_ids[:end] != until_ids[:end]:
        return None  # written otherwise, or tokens that merge across the boundary
    return start, end


def _written_answer(tokenizer: Any, messages: Sequence[Message], full: str, prompt: str) -> str:
    """The last answer with what the template writes around it, as it follows the prompt that is served.

    Usually that is how the whole conversation goes on. Some templates write earlier turns differently once an answer
    follows (Mistral's put the system message before the last turn of the user, and nowhere when that is not the last
    message): then the answer is found by a stand-in, and follows the prompt that is served all the same.
    """
    if full.startswith(prompt):
        return full[len(prompt) :]
    opening = prompt.removeprefix(render_chat(tokenizer, messages[:-1])).strip() or prompt.rstrip()[-_SEAM_CHARACTERS:]
    stood_in = render_chat(tokenizer, [*messages[:-1], {"role": "assistant", "content": _STAND_IN}])
    before, found, after = stood_in.partition(_STAND_IN)
    space, served_space = (text[len(text.rstrip()) :] for text in (before, prompt))
    if (
        not found
        or not before.rstrip().endswith(opening)
        or not space.startswith(served_space)
        or not (full.startswith(before) and full.endswith(after) and len(full) > len(before) + len(after))
    ):
        raise StageError(
            ExitCode.MODEL_UNUSABLE,
            "the chat template begins an answer otherwise than what it is generated from ends: training and serving "
            "would not match",
            "set model.chatTemplate to another one (docs/data.md)",
        )
    return space[len(served_space) :] + full[len(before) :]


def _encode_plain(tokenizer: Any, text: str, max_length: int) -> Encoded:
    """Plain text between the tokens that begin and end a document; the end is lost when it is too long."""
    ids = [*_text_start(tokenizer), *encode_text(tokenizer, text), tokenizer.eos_token_id]
    cut = len(ids) > max_length
    kept = ids[:max_length]
    return Encoded(kept, list(kept), len(ids), len(kept), cut=cut)  # any limit will do: nothing but the end is lost


def _text_start(tokenizer: Any) -> list[int]:
    return [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]


def enders(tokenizer: Any) -> set[int]:
    """Tokens that may end an answer: special ones, and those added to the vocabulary such as <|im_end|>."""
    return {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}


def _end_of(tokenizer: Any, answer_ids: Sequence[int], ending: set[int], content: str, *, first: bool = False) -> int:
    """Length of an answer with the token that ends it, among its last three; 0 when nothing ends it.

    Behind the end there is nothing but white space. A token of the content (`</think>`, `</tool_call>`) ends nothing.
    `first`: of several ends the first one.
    """
    found = 0
    for position in range(len(answer_ids) - 1, max(len(answer_ids) - 4, -1), -1):
        token = answer_ids[position]
        if token not in ending:
            if str(tokenizer.decode([token])).strip():
                break
        elif list(answer_ids).count(token) > content.count(str(tokenizer.convert_ids_to_tokens(token))):
            found = position + 1
            if not first:
                break
    return found


def _labels(spans: AnswerSpans) -> list[int]:
    labels = [IGNORED] * len(spans.prompt_ids) + spans.answer_ids + [IGNORED] * len(spans.rest_ids)
    for start, end in spans.earlier:
        labels[start:end] = spans.prompt_ids[start:end]
    return labels


def _length(spans: AnswerSpans) -> int:
    return len(spans.prompt_ids) + len(spans.answer_ids)


def _without_oldest_exchange(messages: list[Message]) -> list[Message] | None:
    """The conversation from the user's second turn on, and its system message; None when there is no second."""
    system = messages[:1] if messages[0]["role"] == "system" else []
    users = [n for n, message in enumerate(messages) if message["role"] == "user"]
    return [*system, *messages[users[1] :]] if len(users) > 1 else None


def _frame(tokenizer: Any, prompt: Sequence[Message], prompt_ids: Sequence[int]) -> tuple[int, int]:
    """Tokens of a prompt before the first text of the user (system message included), and behind it."""
    first = next((n for n, message in enumerate(prompt) if message["role"] == "user"), None)
    if first is None:
        return 0, 0
    changed: list[Message] = [*prompt[:first], {"role": "user", "content": _STAND_IN}]
    head, found, tail = render_chat(tokenizer, changed, add_generation_prompt=True).partition(_STAND_IN)
    if not found:
        return 0, 0
    ids = encode_text(tokenizer, head)
    while ids and list(prompt_ids[: len(ids)]) != ids:
        ids.pop()  # the last token of the opening may merge with what follows
    return len(ids), len(encode_text(tokenizer, tail))


def _cut(ids: list[int], head: int, max_length: int) -> list[int]:
    """At most `max_length` items: the first `head` ones, and the last ones."""
    if len(ids) <= max_length:
        return ids
    head = min(head, max_length - 1)
    return [*ids[:head], *ids[len(ids) - (max_length - head) :]]
