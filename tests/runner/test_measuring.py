"""What is told of rows once the model's tokenizer and template are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.measuring import Measured
from finetune_runner.data.row_store import Example
from finetune_runner.data.rows import make_row
from finetune_runner.errors import StageError
from finetune_runner.text import encode_example, load_tokenizer
from tests.runner.check_rows import row
from tests.runner.template_styles import MISTRAL
from tests.runner.tiny import TEMPLATE


@pytest.fixture
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


def measured(tokenizer: Any, *examples: Example) -> Measured:
    measured = Measured(tokenizer, 512, "assistant")
    for example in examples:
        measured.length(example)
    return measured


@pytest.mark.parametrize(
    "text", ["please<|end|>", "<|assistant|> obey", "a <|user|> b"], ids=["end", "answer", "question"]
)
@pytest.mark.parametrize("side", ["question", "answer"])
def test_special_tokens_within_a_text_are_told(tokenizer: Any, text: str, side: str) -> None:
    bad = row(text, "a") if side == "question" else row("q", text)
    (remark,) = measured(tokenizer, Example(row("q", "a"), "a.jsonl line 1"), Example(bad, "a.jsonl line 2")).remarks()
    assert (remark.severity, remark.rows) == ("warning", 1)
    assert "1 row has special tokens of the model in the text: a.jsonl line 2 (<|" in remark.message


@pytest.mark.parametrize("text", ["a <b> c", "<| end |>", "<|END|>", "1 < 2 | 3 > 2", "<think>hm</think>"])
def test_what_only_looks_like_one_is_text(tokenizer: Any, text: str) -> None:
    assert measured(tokenizer, Example(row(text, text), "a.jsonl line 1")).remarks() == []


@pytest.mark.parametrize(
    ("template", "system", "left_out"),
    [
        (TEMPLATE.replace("in messages", "in messages if m['role'] != 'system'"), "Be brief.", True),
        (TEMPLATE.replace("in messages", "in messages if m['role'] != 'system'"), "  ", False),
        (TEMPLATE, "Be brief.", False),
    ],
    ids=["passed over", "nothing said", "written"],
)
def test_a_system_message_that_the_template_leaves_out_is_told(
    tokenizer: Any, template: str, system: str, left_out: bool
) -> None:
    tokenizer.chat_template = template
    told = make_row([{"role": "system", "content": system}, *row("q", "a").messages])
    remarks = measured(tokenizer, Example(row("q", "a"), "a.jsonl line 1"), Example(told, "a.jsonl line 2")).remarks()
    assert [(remark.check, remark.rows) for remark in remarks] == [("chatTemplate", 1)] * left_out
    assert all("leaves out the system message of 1 row: a.jsonl line 2" in remark.message for remark in remarks)


@pytest.mark.parametrize("short", [0, 1])
def test_a_token_without_an_embedding_is_named(tokenizer: Any, short: int) -> None:
    highest = max(encode_example(tokenizer, row("q", "q").messages, 512)[0])
    of_model = Measured(tokenizer, 512, "assistant", vocabulary=highest + 1 - short)
    of_model.length(Example(row("q", "q"), "a.jsonl line 1"))
    if not short:
        assert of_model.remarks() == []
        return
    with pytest.raises(
        StageError, match=rf"no embedding for \(it has {highest}\): 1 row: a\.jsonl line 1 \("
    ) as caught:
        of_model.remarks()
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE


def test_rows_that_the_template_refuses_end_the_job_with_counts_and_the_fix(tokenizer: Any) -> None:
    tokenizer.chat_template = MISTRAL
    twice = row("q", "a")
    twice = type(twice)(twice.id, (twice.messages[0], *twice.messages))
    examples = [Example(row("q", "a"), "a.jsonl line 1"), Example(twice, "a.jsonl line 2")]
    with pytest.raises(StageError, match=r"1 row cannot be used: a\.jsonl line 2: .*roles must alternate") as caught:
        measured(tokenizer, *examples).remarks()
    assert "model.chatTemplate" in caught.value.hint
