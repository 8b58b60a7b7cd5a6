"""From messages to tokens and labels."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.text import (
    IGNORED,
    RenderError,
    check_chat_template,
    encode_example,
    encode_prompt,
    load_tokenizer,
    render_chat,
)

TALK = [
    {"role": "system", "content": "Be kind"},
    {"role": "user", "content": "please look at my invoice"},
    {"role": "assistant", "content": "billing"},
]
COUNTING = (  # writes how many messages follow: no prefix of it is the rendering of a prefix
    "{{ messages | length }}{% for m in messages %}<|{{ m['role'] }}|>"
    "{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}<|end|>{% endgeneration %}"
    "{% else %}{{ m['content'] }}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    return load_tokenizer(tiny_model)


@pytest.fixture
def with_template(tokenizer: Any) -> Any:
    def change(template: str | None) -> Any:
        changed = copy.deepcopy(tokenizer)
        changed.chat_template = template
        return changed

    return change


def answer_of(tokenizer: Any, ids: list[int], labels: list[int]) -> str:
    assert len(ids) == len(labels)
    assert all(label in (IGNORED, token) for token, label in zip(ids, labels, strict=True))
    return str(tokenizer.decode([label for label in labels if label != IGNORED]))


def test_the_loss_sees_the_answer_and_its_end_and_nothing_else(tokenizer: Any) -> None:
    ids, labels = encode_example(tokenizer, TALK, 512)
    assert answer_of(tokenizer, ids, labels).rstrip("\n") == "billing<|end|>"
    assert tokenizer.decode(ids) == render_chat(tokenizer, TALK)


def test_only_the_last_answer_of_several_turns_is_learned(tokenizer: Any) -> None:
    ids, labels = encode_example(tokenizer, [*TALK, {"role": "user", "content": "again"}, TALK[-1]], 512)
    assert answer_of(tokenizer, ids, labels).count("billing") == 1
    assert tokenizer.decode(ids).count("billing") == 2


def test_training_sees_the_prompt_that_generation_starts_from(tokenizer: Any) -> None:
    prompt = encode_prompt(tokenizer, TALK[:-1])
    ids, labels = encode_example(tokenizer, TALK, 512)
    assert ids[: len(prompt)] == prompt
    assert labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert labels[len(prompt)] != IGNORED


@given(st.integers(16, 60), st.text(min_size=1, max_size=80), st.text(min_size=1, max_size=20))
def test_what_is_too_long_loses_the_left_of_its_prompt(
    tokenizer: Any, max_length: int, prompt: str, answer: str
) -> None:
    talk = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    whole, whole_labels = encode_example(tokenizer, talk, 10_000)
    ids, labels = encode_example(tokenizer, talk, max_length)
    assert ids == whole[-max_length:]
    assert labels == whole_labels[-max_length:]


def test_a_leading_bos_stays_when_the_prompt_is_cut(tokenizer: Any) -> None:
    changed = copy.deepcopy(tokenizer)
    changed.bos_token = "<|system|>"
    ids, labels = encode_example(changed, TALK, 12)
    assert len(ids) == len(labels) == 12
    assert ids[0] == changed.bos_token_id
    assert answer_of(changed, ids, labels).rstrip("\n") == "billing<|end|>"
    assert encode_prompt(changed, TALK[:-1], 8)[0] == changed.bos_token_id


def test_an_answer_without_an_end_gets_one(with_template: Any) -> None:
    plain = with_template(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    ids, labels = encode_example(plain, TALK, 512)
    assert ids[-1] == labels[-1] == plain.eos_token_id
    assert answer_of(plain, ids, labels) == "billing\n<|end|>"


def test_where_a_prefix_is_no_prefix_the_generation_tag_decides(with_template: Any) -> None:
    counting = with_template(COUNTING)
    ids, labels = encode_example(counting, [*TALK[:2], TALK[2], TALK[1], TALK[2]], 512)
    assert answer_of(counting, ids, labels) == "billing<|end|>"
    assert labels[-1] != IGNORED


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "has no chat template"),
        (
            COUNTING.replace("{% generation %}", "").replace("{% endgeneration %}", ""),
            "where the assistant's answer is",
        ),
        ("{{ raise_exception('only tools') }}", "only tools"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused(with_template: Any, template: str | None, says: str) -> None:
    with pytest.raises(StageError, match=says) as caught:
        check_chat_template(with_template(template), "hf://owner/model")
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE
    assert caught.value.message.startswith("hf://owner/model: ")
    assert caught.value.hint


def test_rows_that_the_template_refuses_are_said(with_template: Any) -> None:
    no_system = with_template(
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}x"
    )
    with pytest.raises(RenderError, match="no system role"):
        render_chat(no_system, TALK)
    assert render_chat(no_system, TALK[1:]) == "x"


def test_the_tokenizer_is_the_one_that_transformers_loads(tokenizer: Any, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tiny_model)
    assert encode_example(tokenizer, TALK, 512) == encode_example(reference, TALK, 512)
    assert tokenizer.get_vocab() == reference.get_vocab()


@pytest.mark.parametrize("broken", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize("content", [None, b"{"])
def test_a_tokenizer_that_cannot_be_loaded_is_refused(
    tiny_model: Path, tmp_path: Path, broken: str, content: bytes | None
) -> None:
    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    (folder / broken).unlink()
    if content is not None:
        (folder / broken).write_bytes(content)
    with pytest.raises(StageError) as caught:
        load_tokenizer(folder)
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE
    assert caught.value.hint
