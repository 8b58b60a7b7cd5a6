"""Both answers of a pair follow the same prompt, also where it has to be cut."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_runner.data.rows import Message
from finetune_runner.evaluation.likelihood import IGNORED
from finetune_runner.text import encode_example, load_tokenizer
from finetune_runner.training.objectives.making import encode_pair

SHORT, LONG = "billing", "this one belongs to billing and to nobody else"


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


def talk(answer: str, words: int, turns: int = 1) -> list[Message]:
    said: list[Message] = [{"role": "system", "content": "be kind"}]
    for turn in range(turns):
        said += [
            {"role": "user", "content": f"{turn} " + "refund please " * words},
            {"role": "assistant", "content": "crash"},
        ]
    return [*said[:-1], {"role": "assistant", "content": answer}]


def prompts(tokenizer: Any, words: int, turns: int, answers: tuple[str, str], most: int) -> list[list[int]]:
    pair = encode_pair(
        lambda messages, limit: encode_example(tokenizer, messages, limit),
        talk(answers[0], words, turns),
        talk(answers[1], words, turns),
        most,
    )
    assert all(len(ids) <= most for ids, _ in pair)
    for (_, labels), answer in zip(pair, answers, strict=True):
        whole = encode_example(tokenizer, talk(answer, 1), 512)[1]
        assert [label for label in labels if label != IGNORED] == [label for label in whole if label != IGNORED]
    return [ids[: next(i for i, label in enumerate(labels) if label != IGNORED)] for ids, labels in pair]


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    words=st.integers(1, 12),
    turns=st.integers(1, 3),
    answers=st.sampled_from([(SHORT, LONG), (LONG, SHORT), (SHORT, "access"), (SHORT, "")]),
    most=st.integers(64, 200),
)
def test_both_answers_follow_one_prompt(
    tokenizer: Any, words: int, turns: int, answers: tuple[str, str], most: int
) -> None:
    better, worse = prompts(tokenizer, words, turns, answers, most)
    assert better == worse


def test_a_pair_that_fits_is_encoded_as_its_answers_are(tokenizer: Any) -> None:
    def encode(messages: Any, limit: int) -> Any:
        return encode_example(tokenizer, messages, limit)

    better, worse = talk(SHORT, 3), talk(LONG, 3)
    assert encode_pair(encode, better, worse, 512) == [encode(better, 512), encode(worse, 512)]
