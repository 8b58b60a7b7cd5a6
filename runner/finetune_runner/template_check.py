"""Whether a chat template can be trained and served with, token for token the same."""

from __future__ import annotations

from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.rows import Message
from finetune_runner.errors import StageError
from finetune_runner.text import RenderError, answer_spans, encode_row, render_chat

_OTHER = "set model.chatTemplate: plain, which needs no special tokens, or another one (docs/data.md)"
_PROBE: tuple[Message, ...] = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi there"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "See you"},
)


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
        raise unusable(str(error), f"mend the template beside the tokenizer, or {_OTHER}") from error
    except StageError as error:
        raise StageError(error.exit_code, f"{model}: {error.message}", error.hint) from error
    lost = [m["content"] for m in single if m["content"] not in full]
    if lost:
        raise unusable(f"the chat template does not write what the {single[0]['role']} says ({lost[0]!r} is missing)")
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
    if "strftime_now" in str(tokenizer.chat_template):
        said.append(
            "the chat template writes today's date: training and serving see different ones; write a template without "
            "it in model.chatTemplate (for Llama 3: llama3)"
        )
    return said
