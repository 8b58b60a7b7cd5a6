"""From messages to tokens and labels."""

from __future__ import annotations

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api.exit_codes import ExitCode
from finetune_api.job.model import CHAT_TEMPLATES
from finetune_runner.errors import StageError
from finetune_runner.template_check import check_chat_template
from finetune_runner.templates import built_in_templates, use_template
from finetune_runner.text import (
    IGNORED,
    RenderError,
    encode_example,
    encode_prompt,
    encode_row,
    load_tokenizer,
    render_chat,
)
from tests.runner.template_styles import CHATML, DEEPSEEK_R1, LAST_ANSWER_ONLY, MARKERS, MATCHING, WITHOUT_SYSTEM

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


NEEDS_NO_TORCH = """
import sys
from pathlib import Path
import finetune_runner.stages.prepare, finetune_runner.stages.publish
from finetune_runner.text import load_plain_tokenizer
load_plain_tokenizer(Path(sys.argv[1])).save_pretrained(sys.argv[2])
print("torch" in sys.modules)
"""


def test_stages_without_a_model_read_and_write_a_tokenizer_without_torch(tiny_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", NEEDS_NO_TORCH, str(tiny_model), str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.splitlines()[-1] == "False"
    assert (tmp_path / "tokenizer.json").read_bytes() == (tiny_model / "tokenizer.json").read_bytes()


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


def test_only_the_last_answer_of_several_turns_is_judged(tokenizer: Any) -> None:
    ids, labels = encode_example(tokenizer, [*TALK, {"role": "user", "content": "again"}, TALK[-1]], 512)
    assert answer_of(tokenizer, ids, labels).count("billing") == 1
    assert tokenizer.decode(ids).count("billing") == 2


def test_training_sees_the_prompt_that_generation_starts_from(tokenizer: Any) -> None:
    prompt = encode_prompt(tokenizer, TALK[:-1])
    ids, labels = encode_example(tokenizer, TALK, 512)
    assert ids[: len(prompt)] == prompt
    assert labels[: len(prompt)] == [IGNORED] * len(prompt)
    assert labels[len(prompt)] != IGNORED


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


def test_where_a_prefix_is_no_prefix_the_answer_follows_the_prompt_that_is_served(with_template: Any) -> None:
    counting = with_template(COUNTING)
    talk = [*TALK[:2], TALK[2], TALK[1], TALK[2]]
    ids, labels = encode_example(counting, talk, 512)
    assert answer_of(counting, ids, labels) == "billing<|end|>"
    assert ids[: labels.index(ids[-1]) - 2][:1] == encode_prompt(counting, talk[:-1])[:1]
    assert counting.decode(ids).startswith("4<|system|>"), "as many messages as when it is served"


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (None, "has no chat template"),
        (DEEPSEEK_R1, "training and serving would not match"),
        ("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}", "does not write what the user says"),
        ("{{ 'ask' if messages | length == 1 else 'ask' + messages[1].content }}", "does not write what the user says"),
        ("{{ bos_token }}{{ bos_token }}" + CHATML, "beginning-of-sequence token twice"),
        (CHATML.replace("{% if add_generation_prompt %}", "{% if true %}"), "begins another answer"),
        (
            CHATML.replace("{% if add_generation_prompt %}", "{% if false %}"),
            "does not end the prompt with what begins",
        ),
        (
            "{% for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n\n' }}{% endfor %}",
            "does not end the prompt with what begins",
        ),
        (
            "{% for m in messages %}{{ '### ' + m.role + '\n' + m.content + '\n\n' }}{% endfor %}"
            "{{ '### assistant\n' }}",
            "begins another answer",
        ),
        ("{% if %}", "chat template refuses"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{{ messages[7].content }}", "chat template refuses"),
        ("{{ raise_exception('only tools') }}", "only tools"),
    ],
)
def test_a_template_that_cannot_be_trained_with_is_refused(with_template: Any, template: str | None, says: str) -> None:
    changed = with_template(template)
    changed.bos_token = "<|system|>"
    with pytest.raises(StageError, match=says) as caught:
        check_chat_template(changed, "hf://owner/model")
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


@pytest.mark.parametrize("style", [*MATCHING, "without roles"])
def test_templates_that_begin_answers_in_their_own_way_are_let_be(marked: Any, style: str) -> None:
    changed = copy.deepcopy(marked)
    changed.chat_template = MATCHING.get(style, "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}")
    check_chat_template(changed, "m")


@pytest.fixture(scope="module")
def marked(tokenizer: Any) -> Any:
    """A tokenizer that has the markers of every family."""
    changed = copy.deepcopy(tokenizer)
    changed.add_special_tokens({"additional_special_tokens": MARKERS})
    changed.bos_token = "<s>"
    return changed


def styled(marked: Any, style: str) -> Any:
    changed = copy.copy(marked)
    if style in MATCHING:
        changed.chat_template = MATCHING[style]
    else:
        use_template(changed, style.removeprefix("built-in "))
    return changed


words = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"], exclude_characters="<|>␂␃"), min_size=1)
talks = st.lists(words.filter(str.strip), min_size=3, max_size=7).map(
    lambda said: [
        {"role": "system", "content": said[0]},
        *({"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said[1:])),
    ]
)
STYLES = [*MATCHING, *(f"built-in {name}" for name in built_in_templates())]


@pytest.mark.parametrize("style", STYLES)
@settings(max_examples=20, deadline=None)
@given(talks)
def test_every_learned_answer_follows_what_it_is_generated_from(marked: Any, style: str, talk: list[Any]) -> None:
    tokenizer = styled(marked, style)
    talk = talk[1:] if style in WITHOUT_SYSTEM else talk
    talk = talk if talk[-1]["role"] == "assistant" else talk[:-1]
    encoded = encode_row(tokenizer, talk, 1 << 20)
    learned = [n for n, label in enumerate(encoded.labels) if label != IGNORED]
    starts = [n for n in learned if n - 1 not in learned]
    answers = [n for n, message in enumerate(talk) if message["role"] == "assistant"]
    prompts = [encode_prompt(tokenizer, talk[:n]) for n in answers]
    assert encoded.input_ids[: len(prompts[-1])] == prompts[-1]
    assert starts[-1] == len(prompts[-1])
    for start in starts:
        assert encoded.input_ids[:start] in prompts
        end = next(n for n in range(start, len(encoded.labels) + 1) if n not in learned)
        assert encoded.input_ids[end - 1] in {*tokenizer.all_special_ids}, "the stop token is learned, and is the last"
    assert len(starts) + encoded.earlier_left_out == len(answers)
    if style in LAST_ANSWER_ONLY:
        assert encoded.earlier_left_out == len(answers) - 1
    said = tokenizer.decode([encoded.input_ids[n] for n in learned if n >= starts[-1]])
    assert talk[-1]["content"].strip() in said
    assert encoded.input_ids.count(tokenizer.bos_token_id) <= 1
    assert encoded.labels == [i if n in learned else IGNORED for n, i in enumerate(encoded.input_ids)]


@pytest.mark.parametrize("style", [style for style in STYLES if style not in LAST_ANSWER_ONLY])
def test_all_answers_of_a_conversation_are_learned(marked: Any, style: str) -> None:
    tokenizer = styled(marked, style)
    talk = [*TALK[1:], {"role": "user", "content": "and my login"}, {"role": "assistant", "content": "access"}]
    encoded = encode_row(tokenizer, talk, 512)
    learned = tokenizer.decode([label for label in encoded.labels if label != IGNORED])
    assert "billing" in learned
    assert "access" in learned
    assert "invoice" not in learned
    assert "login" not in learned
    last = encode_row(tokenizer, talk, 512, "completion")
    assert last.input_ids == encoded.input_ids
    assert "billing" not in tokenizer.decode([label for label in last.labels if label != IGNORED])
    assert encode_row(tokenizer, talk, 512, "all").labels == encoded.input_ids


def test_the_system_message_is_learned_with_even_where_the_template_loses_it(marked: Any) -> None:
    tokenizer = styled(marked, "mistral")
    assert "Be kind" not in render_chat(tokenizer, TALK), "what other trainers would see"
    assert "Be kind" in tokenizer.decode(encode_row(tokenizer, TALK, 512).input_ids)


def test_an_answer_that_the_template_changes_is_told(marked: Any) -> None:
    tokenizer = styled(marked, "qwen3")
    said = {"role": "assistant", "content": "<think>\nhm\n</think>\n\nbilling"}
    assert not encode_row(tokenizer, [TALK[1], said], 512).rewritten
    dropping = styled(marked, "chatml")
    dropping.chat_template = CHATML.replace("m.content", "m.content.split('</think>')[-1]")
    assert encode_row(dropping, [TALK[1], said], 512).rewritten
    assert not encode_row(dropping, TALK, 512).rewritten


@given(st.integers(24, 60), st.integers(1, 4), words, words)
@settings(max_examples=60, deadline=None)
def test_what_is_too_long_loses_exchanges_then_the_left_of_the_turn_and_never_the_answer(
    marked: Any, max_length: int, exchanges: int, asked: str, answer: str
) -> None:
    tokenizer = styled(marked, "chatml")
    talk = [TALK[0], *[{"role": "user", "content": asked * 3}, {"role": "assistant", "content": answer}] * exchanges]
    encoded = encode_row(tokenizer, talk, max_length)
    assert 0 < len(encoded.input_ids) <= max_length
    assert len(encoded.labels) == len(encoded.input_ids)
    assert any(label != IGNORED for label in encoded.labels)
    whole = encode_row(tokenizer, talk, 1 << 20)
    assert (encoded.cut, encoded.total) == (len(whole.input_ids) - 1 > max_length, whole.total)
    if encoded.least <= max_length:
        learned, all_learned = ([label for label in e.labels if label != IGNORED] for e in (encoded, whole))
        assert learned[-encoded.answer :] == all_learned[-encoded.answer :], "the last answer and its end, whole"
        assert tokenizer.decode(encoded.input_ids).startswith("<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user")
    else:
        assert encoded.answer > max_length - 40


def test_plain_text_is_learned_from_its_beginning_to_its_end(marked: Any) -> None:
    text = [{"role": "assistant", "content": "a manual of many words"}]
    encoded = encode_row(marked, text, 512, "all")
    assert encoded.input_ids == encoded.labels
    assert marked.decode(encoded.input_ids) == "<s>a manual of many words<|end|>"
    cut = encode_row(marked, text, 5, "all")
    assert cut.input_ids == encoded.input_ids[:5]
    assert cut.cut
    assert encode_prompt(marked, []) == [marked.bos_token_id]


@pytest.mark.parametrize("name", ["chatml", "gemma", "llama3"])
def test_a_built_in_template_needs_its_markers(tokenizer: Any, marked: Any, name: str) -> None:
    with pytest.raises(StageError, match=rf"model.chatTemplate {name} writes <.*no token of this model") as caught:
        use_template(copy.deepcopy(tokenizer), name)
    assert caught.value.exit_code == ExitCode.INVALID_SPEC
    assert "plain" in caught.value.hint
    fitting = copy.deepcopy(marked)
    use_template(fitting, name)
    assert check_chat_template(fitting, "m") == []


def test_what_was_trained_with_is_saved_and_served_with(marked: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    changed = copy.deepcopy(marked)
    use_template(changed, "chatml")
    changed.save_pretrained(tmp_path)
    assert (tmp_path / "chat_template.jinja").read_text() == built_in_templates()["chatml"]
    served = AutoTokenizer.from_pretrained(tmp_path)
    prompt = served.apply_chat_template(TALK[:-1], add_generation_prompt=True, tokenize=False)
    ids = encode_row(changed, TALK, 512).input_ids
    asked = served(prompt, add_special_tokens=False)["input_ids"]
    assert ids[: len(asked)] == asked


def test_every_name_of_the_contract_is_a_template() -> None:
    assert {"tokenizer", *built_in_templates()} == set(CHAT_TEMPLATES)


@pytest.mark.parametrize(
    ("template", "says"),
    [
        (MATCHING["qwen3"], "only the last answer is learned"),
        (MATCHING["mistral"], None),
        (MATCHING["chatml"] + "{{ strftime_now('%Y') if false }}", "today's date"),
        ("{% if messages | length > 2 %}{{ raise_exception('one') }}{% endif %}" + CHATML, "one exchange only"),
        ("<|im_start|>system\nBe good<|im_end|>\n" + CHATML, "the model sees two"),
        (
            "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe good<|im_end|>\n{% endif %}" + CHATML,
            None,
        ),
    ],
)
def test_what_is_worth_knowing_of_a_template_is_said(marked: Any, template: str, says: str | None) -> None:
    changed = copy.copy(marked)
    changed.chat_template = template
    said = check_chat_template(changed, "m")
    assert len(said) == (says is not None)
    assert all(str(says) in line for line in said)


def test_the_tokenizer_is_the_one_that_transformers_loads(tokenizer: Any, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    reference = AutoTokenizer.from_pretrained(tiny_model)
    assert encode_example(tokenizer, TALK, 512) == encode_example(reference, TALK, 512)
    assert tokenizer.get_vocab() == reference.get_vocab()


def test_of_several_templates_the_default_is_used(tiny_model: Path, tmp_path: Path) -> None:
    several = load_tokenizer(tiny_model)
    several.chat_template = {"default": several.chat_template, "tool_use": "{{ tools }}"}
    several.save_pretrained(tmp_path / "with")
    assert load_tokenizer(tmp_path / "with").chat_template == load_tokenizer(tiny_model).chat_template
    several.chat_template = {"rag": "{{ a }}", "tool_use": "{{ tools }}"}
    several.save_pretrained(tmp_path / "without")
    with pytest.raises(StageError, match="none is named default: rag, tool_use") as caught:
        load_tokenizer(tmp_path / "without")
    assert caught.value.exit_code == ExitCode.MODEL_UNUSABLE
    assert load_tokenizer(tmp_path / "without", "plain").chat_template == built_in_templates()["plain"]


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
