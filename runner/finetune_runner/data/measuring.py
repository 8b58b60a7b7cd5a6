"""Tokens of every row as training will see it, and what the chat template makes of the rows."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from finetune_api.exit_codes import ExitCode
from finetune_api.wording import agreeing, counted
from finetune_runner.data.checking import Found, Remark
from finetune_runner.data.records import BadRow, BadRows
from finetune_runner.data.rewriting import texts_of
from finetune_runner.data.row_store import Example, Length
from finetune_runner.errors import StageError
from finetune_runner.template_check import leaves_out_system
from finetune_runner.text import Encoded, Loss, RenderError, encode_row

_NOT_RENDERED = Length(0, 0)
_TRAINED = ("train", "replay", "validation")


@dataclass
class Measured:
    """Counts while the rows go by.

    Args:
        tokenizer: with the template in force.
        max_length: training.maxLength.
        loss: data.loss.
        vocabulary: tokens that the model has embeddings for; 0 = unknown.
    """

    tokenizer: Any
    max_length: int
    loss: Loss
    vocabulary: int = 0
    _bad: BadRows = field(default_factory=BadRows)
    _left_out: Found = field(default_factory=Found)
    _left_out_answers: int = 0
    _rewritten: Found = field(default_factory=Found)
    _markers: Found = field(default_factory=Found)
    _without_system: Found = field(default_factory=Found)
    _unknown: Found = field(default_factory=Found)

    @cached_property
    def _special(self) -> re.Pattern[str]:
        """The tokenizer's special tokens as text."""
        added = self.tokenizer.added_tokens_decoder.values()
        tokens = {str(token) for token in added if token.special} | set(self.tokenizer.all_special_tokens)
        return re.compile("|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or r"(?!)")

    @cached_property
    def _leaves_out_system(self) -> bool:
        return leaves_out_system(self.tokenizer)

    def length(self, example: Example) -> Length:
        """Tokens of a row before any cutting, and how many it needs at least. A pair counts as its longer side."""
        found = next((found for text in texts_of(example.row) if (found := self._special.search(text))), None)
        if found is not None:
            self._markers.add(example, f"({found[0]})")
        prompt = example.row.prompt
        if prompt and prompt[0]["role"] == "system" and prompt[0]["content"].strip() and self._leaves_out_system:
            self._without_system.add(example)
        try:
            encoded = self._encode(example, example.row.answer)
            rejected = example.row.rejected
            other = encoded if rejected is None else self._encode(example, rejected)
        except RenderError as error:
            self._bad.add(
                BadRow(
                    example.origin,
                    "",
                    str(error),
                    "use only roles that the model's template knows, in its order, or set model.chatTemplate",
                )
            )
            return _NOT_RENDERED
        except StageError as error:  # the template itself was found to be usable: it is this row that it cannot write
            hint = (
                "leave reasoning out of these answers, join answers in a row, or set model.chatTemplate to another one"
            )
            self._bad.add(BadRow(example.origin, "", error.message, hint))
            return _NOT_RENDERED
        highest = max(*encoded.input_ids, *other.input_ids)
        if 0 < self.vocabulary <= highest:
            self._unknown.add(example, f"({self.tokenizer.decode([highest])!r})")
        if example.split in _TRAINED:
            if encoded.earlier_left_out:
                self._left_out.add(example)
                self._left_out_answers += encoded.earlier_left_out
            if encoded.rewritten or other.rewritten:
                self._rewritten.add(example)
        return Length(max(encoded.total, other.total), max(encoded.least, other.least))

    def remarks(self) -> list[Remark]:
        """What is worth knowing.

        Raises:
            StageError: INVALID_DATA for rows that the template refuses; MODEL_UNUSABLE for tokens without an embedding.
        """
        self._bad.raise_if_any("rows against the model's chat template")
        if self._unknown.rows:
            raise StageError(
                ExitCode.MODEL_UNUSABLE,
                f"the tokenizer gives tokens that the model has no embedding for (it has {self.vocabulary}): "
                f"{counted(self._unknown.rows, 'row')}: {self._unknown.where()}",
                "copy the tokenizer again: it is another model's, or got tokens for which the model was not resized",
            )
        remarks = []
        if self._markers.rows:
            found = self._markers
            which = counted(found.rows, "[row has|rows have] special tokens of the model in the text")
            message = (
                f"{which}: {found.where()}; the model takes them for the end or the beginning of turns: remove them; a "
                "template is applied to the rows here"
            )
            remarks.append(found.remark("specialTokens", "warning", message))
        if self._without_system.rows:
            found = self._without_system
            message = (
                f"the chat template leaves out the system message of {counted(found.rows, 'row')}: {found.where()}; "
                "write it into the user's first message, or choose another model.chatTemplate"
            )
            remarks.append(found.remark("chatTemplate", "warning", message))
        if self._left_out.rows:
            found = self._left_out
            message = (
                f"{counted(self._left_out_answers, 'earlier answer')} of {counted(found.rows, 'conversation')} "
                f"{agreeing(self._left_out_answers, '[is|are]')} not learned, because the chat template writes "
                f"{agreeing(self._left_out_answers, '[it|them]')} otherwise than generated: {found.where()}; split the "
                "conversations, or choose another model.chatTemplate"
            )
            remarks.append(found.remark("chatTemplate", "warning", message))
        if self._rewritten.rows:
            found = self._rewritten
            message = (
                f"the chat template changes {counted(found.rows, 'answer')} (drops or moves a part): {found.where()}; "
                "compare a rendered row with its source"
            )
            remarks.append(found.remark("chatTemplate", "warning", message))
        return remarks

    def _encode(self, example: Example, answer: str) -> Encoded:
        messages = [*example.row.prompt, {"role": "assistant", "content": answer}]
        return encode_row(self.tokenizer, messages, self.max_length, self.loss)
