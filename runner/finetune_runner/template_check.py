"""Whether a chat template can be trained and served with, token for token the same."""

from __future__ import annotations

from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.rows import Message
from finetune_runner.errors import StageError
from finetune_runner.text import RenderError, answer_spans, encode_row, encode_text, render_chat

_OTHER = "set model.chatTemplate: plain, which needs no special tokens, or another one (docs/data.md)"
_ASKED = "{% if add_generation_prompt %}...{% endif %}"
_PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
)
_SYSTEM: Message = {"role": "system", "content": "Be brief and kind"}


def check_chat_template(tokenizer: Any, model: str) -> list[str]:
    """Refuse a template that cannot be trained and served with.

    Args:
        tokenizer: with the template in force.
        model: what messages name.

    Returns:
        What is worth knowing of a template that can be used, in words.

    Raises:
        StageError: MODEL_UNUSABLE with the fix.
    """

    def unusable(why: str, hint: str = _OTHER) -> StageError:
        return StageError(ExitCode.MODEL_UNUSABLE, f"{model}: {why}", hint)

    if not getattr(tokenizer, "chat_template", None):
        raise unusable(
            "the tokenizer has no chat template",
            "use the model's instruct or chat variant, or set model.chatTemplate: plain (docs/data.md)",
        )
    if tokenizer.eos_token_id is None:
        raise unusable("the tokenizer has no end-of-sequence token", "name eos_token in tokenizer_config.json")
    single = _PROBE[:2]
    try:
        encoded = encode_row(tokenizer, single, 1 << 20, "completion")
        full = render_chat(tokenizer, single)
    except RenderError as error:
        raise unusable(str(error), f"mend it, in model.chatTemplate or beside the tokenizer, or {_OTHER}") from error
    except StageError as error:
        raise StageError(error.exit_code, f"{model}: {error.message}", error.hint) from error
    lost = [m["content"] for m in single if m["content"] not in full]
    if lost:
        raise unusable(f"the chat template does not write what the {single[0]['role']} says ({lost[0]!r} is missing)")
    wrong = _wrong_opening(tokenizer)
    if wrong:
        raise unusable(wrong, f"write what begins an answer within {_ASKED}, or {_OTHER}")
    bos = tokenizer.bos_token_id
    if bos is not None and bos != tokenizer.eos_token_id and encoded.input_ids[:2] == [bos, bos]:
        raise unusable("the chat template writes the beginning-of-sequence token twice", "write {{ bos_token }} once")
    said = []
    try:
        if not answer_spans(tokenizer, _PROBE).earlier:
            said.append(
                "the chat template writes earlier answers otherwise than they are generated: of a conversation only "
                "the last answer is learned; split conversations, or choose another model.chatTemplate, to learn all"
            )
    except RenderError:
        said.append("the chat template takes one exchange only: conversations of several turns are refused")
    if _writes_two_systems(tokenizer):
        said.append(
            "the chat template writes a system message of its own before the one of a row or of data.systemPrompt: the "
            "model sees two; leave them out, or write a template without it in model.chatTemplate"
        )
    if "strftime_now" in str(tokenizer.chat_template):
        said.append(
            "the chat template writes today's date: training and serving see different ones; write a template without "
            "it in model.chatTemplate (for Llama 3: llama3)"
        )
    return said


def leaves_out_system(tokenizer: Any) -> bool:
    """Whether a template passes over the system message without a word. One that refuses it does not: rows tell."""
    try:
        return _SYSTEM["content"] not in render_chat(tokenizer, (_SYSTEM, _PROBE[0]), add_generation_prompt=True)
    except RenderError:
        return False


def _writes_two_systems(tokenizer: Any) -> bool:
    """Whether a template puts a system message of its own before the one that it is given."""
    try:
        head, found, _ = render_chat(tokenizer, (_SYSTEM, _PROBE[0])).partition(_SYSTEM["content"])
    except RenderError:
        return False
    opening = head[max(head.lower().rfind(_SYSTEM["role"]), 0) :]
    return bool(found) and bool(opening) and head.count(opening) > 1


def _wrong_opening(tokenizer: Any) -> str:
    """Why a template does not begin answers as it is asked to, in words; empty when it does.

    What begins an answer belongs to the prompt. A template that leaves it out would have it learned and generated as a
    part of every answer; one that always writes it would have it learned behind every answer.
    """
    asked, answer = _PROBE[0]["content"], _PROBE[1]["content"]
    prompt = render_chat(tokenizer, _PROBE[:1], add_generation_prompt=True)
    full = render_chat(tokenizer, _PROBE[:2])
    if full.startswith(prompt):
        before = full[len(prompt) :].partition(answer)[0]
        special = set(tokenizer.all_special_ids) & set(encode_text(tokenizer, before))
        if special or _PROBE[1]["role"] in before.lower():
            return f"the chat template does not end the prompt with what begins an answer ({before[:60]!r})"
    behind = full.rpartition(answer)[2]
    if behind.strip() and behind == prompt.rpartition(asked)[2]:
        try:
            goes_on = render_chat(tokenizer, _PROBE).partition(answer)[2]
        except RenderError:
            return ""
        if not goes_on.startswith(behind):
            return f"the chat template begins another answer ({behind[:60]!r}) where none is asked for"
    return ""
