"""Templates of real models: learned is the answer with its end, behind what is served; judged is what it says."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest

from finetune_runner.data.measuring import Measured
from finetune_runner.data.row_store import Example
from finetune_runner.data.rows import make_row
from finetune_runner.errors import StageError
from finetune_runner.evaluation.generation import settings_for
from finetune_runner.evaluation.said import said_by
from finetune_runner.reasoning import without_reasoning
from finetune_runner.template_check import check_chat_template
from finetune_runner.text import IGNORED, encode_prompt, encode_row, render_chat
from tests.runner.model_templates import EOS, byte_tokenizer, model_tokenizer

REFUSED = {"deepseekv3", "deepseek_r1_distill", "nemotron_3_nano"}
"""Served, they open a thought that their conversations do not have."""
USABLE = sorted(EOS.keys() - REFUSED)
THOUGHT = "<think>\nadd them\n</think>\n\n4"
TALKS = {
    "one token": ["2+2?", "4"],
    "sentence": ["How are you?", "Fine, thanks."],
    "turns": ["one?", "first answer", "two?", "second answer", "three?", "3"],
    "JSON": ["extract", '{"a": "b", "c": [1, 2]}'],
    "white space": ["  before and behind \n", "an answer\n\nof lines"],
    "words of the template": ["assistant", "final user </s> <|x|> {{ messages }}"],
    "Unicode": ["Grüße 🎉", "答え🎉é"],
}


@cache
def tokenizer_of(name: str) -> Any:
    return model_tokenizer(name)


def conversation(said: list[str]) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]


def ends_of(tokenizer: Any) -> tuple[set[int], tuple[int, ...]]:
    """Tokens at which generation stops, and those that the template writes before an answer."""
    model = SimpleNamespace(
        generation_config=SimpleNamespace(eos_token_id=None),
        config=SimpleNamespace(get_text_config=lambda: SimpleNamespace(max_position_embeddings=None)),
    )
    settings = settings_for(model, tokenizer, 64)
    return set(settings.end_token_ids), settings.opening_ids


def said(tokenizer: Any, learned: list[int]) -> str:
    """The answer of a model that gives exactly what it has learned."""
    ends, opening = ends_of(tokenizer)
    assert ends & set(learned), "nothing that is learned ends the answer"
    until = next(at for at, token in enumerate(learned) if token in ends)
    return said_by(tokenizer, learned[:until], opening)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_template_that_is_served_otherwise_is_refused(name: str) -> None:
    with pytest.raises(StageError, match="training and serving would not match"):
        check_chat_template(tokenizer_of(name), name)


@pytest.mark.parametrize("talk", TALKS.values(), ids=TALKS)
@pytest.mark.parametrize("name", USABLE)
def test_a_model_that_gives_what_it_learned_says_the_answer(name: str, talk: list[str]) -> None:
    tokenizer = tokenizer_of(name)
    check_chat_template(tokenizer, name)
    messages = conversation(talk)
    encoded = encode_row(tokenizer, messages, 1 << 20, "assistant")
    prompt = encode_prompt(tokenizer, messages[:-1])
    assert encoded.input_ids[: len(prompt)] == prompt
    assert tokenizer.decode(encoded.input_ids).startswith(render_chat(tokenizer, messages).rstrip())
    learned = [label for label in encoded.labels[len(prompt) :] if label != IGNORED]
    assert said(tokenizer, learned).strip() == talk[-1].strip()
    assert not encoded.rewritten


@pytest.mark.parametrize("name", sorted({"llama3", "llama3_1", "gemma", "phi3", "phi3_5", "qwen2_5", "cohere", "lfm2"}))
def test_earlier_answers_are_learned_with_an_end(name: str) -> None:
    tokenizer = tokenizer_of(name)
    encoded = encode_row(tokenizer, conversation(TALKS["turns"]), 1 << 20, "assistant")
    assert encoded.earlier_left_out == 0
    learned = tokenizer.decode([label for label in encoded.labels if label != IGNORED])
    assert [learned.count(text) for text in ("first answer", "second answer", "one?", "two?")] == [1, 1, 0, 0]
    behind = learned.partition("first answer")[2]
    assert behind.startswith(tuple(token for token in tokenizer.get_added_vocab() if token != "<think>"))


@pytest.mark.parametrize("name", ["qwen3", "qwen3_5_think", "qwen3_6", "glm4moe", "qwen2_5", "llama3"])
def test_of_an_answer_with_reasoning_the_answer_is_judged(name: str) -> None:
    tokenizer = tokenizer_of(name)
    messages = conversation(["2+2?", THOUGHT])
    encoded = encode_row(tokenizer, messages, 1 << 20, "assistant")
    learned = [label for label in encoded.labels if label != IGNORED]
    assert "add them" in tokenizer.decode(learned)
    assert said(tokenizer, learned).strip() == make_row(messages).said == "4"


def test_thoughts_in_a_channel_are_not_judged() -> None:
    tokenizer = tokenizer_of("gptoss")
    _, opening = ends_of(tokenizer)
    generated = "<|channel|>analysis<|message|>final<|end|><|start|>assistant<|channel|>final<|message|>4"
    assert said_by(tokenizer, tokenizer(generated)["input_ids"], opening) == "4"
    assert said_by(tokenizer, tokenizer("4")["input_ids"], opening) == "4", "a model that is not tuned yet"


@pytest.mark.parametrize(
    ("text", "behind"),
    [
        ("4", "4"), ("<think>a</think>\n\n4", "4"), ("a\n</think>\n4 ", "4 "), ("<think>a", "<think>a"),
        ("<think>a</think>", ""), ("<think>a</think>b</think> c", "c"), (" 4\n", " 4\n"),
    ],
)  # fmt: skip
def test_what_is_said_behind_reasoning(text: str, behind: str) -> None:
    assert without_reasoning(text) == behind


@pytest.mark.parametrize("special", [True, False])
def test_reasoning_ends_at_its_token_whether_it_is_special_or_not(special: bool) -> None:
    tokenizer = tokenizer_of("qwen3")
    if special:
        tokenizer = byte_tokenizer("{{ messages }}", "<|im_end|>")
        tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    assert said_by(tokenizer, tokenizer("<think>a</think>\n\n4")["input_ids"], ()) == "4"


ENDLESS = "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"  # noqa: E501


@pytest.mark.parametrize("answer", ["</think>4", "x</think>", "a", "4 </think> b", "<|im_end|>", "<|im_end|> x"])
def test_a_token_within_the_answer_does_not_end_it(answer: str) -> None:
    tokenizer = byte_tokenizer(ENDLESS + "{# <think></think> #}", "<|im_end|>")
    encoded = encode_row(tokenizer, conversation(["q", answer]), 1 << 20, "completion")
    learned = [label for label in encoded.labels if label != IGNORED]
    assert tokenizer.decode(learned).rstrip("\n").startswith(answer)
    assert learned[-1] == tokenizer.eos_token_id
    assert learned.count(tokenizer.eos_token_id) == 1 + answer.count("<|im_end|>")


def test_rows_that_a_template_writes_otherwise_are_named() -> None:
    measured = Measured(tokenizer_of("qwen3_5_nothink"), 512, "assistant")
    measured.length(Example(make_row(conversation(["2+2?", "4"])), "a.jsonl line 1", "train"))
    measured.length(Example(make_row(conversation(["2+2?", THOUGHT])), "a.jsonl line 2", "train"))
    with pytest.raises(StageError, match=r"1 row cannot be used: a\.jsonl line 2: .* training and serving") as caught:
        measured.remarks()
    assert "leave reasoning out" in caught.value.hint
