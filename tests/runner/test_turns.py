"""Messages as data sets spell them: roles, keys, parts, tools, and answers that are marked as not to be learned."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_runner.errors import StageError
from tests.runner.stores import exchange, lines, messages_of

USER, ASSISTANT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
SAID = ["user: Hi", "assistant: Hello"]


@pytest.mark.parametrize(
    ("messages", "read"),
    [
        pytest.param(
            [{"from": "user", "content": "Hi"}, {"from": "gpt", "content": "Hello"}], SAID, id="from, content"
        ),
        pytest.param([{"role": "human", "value": "Hi"}, {"role": "gpt", "value": "Hello"}], SAID, id="role, value"),
        pytest.param([{"from": "Human", "value": "Hi"}, {"from": "GPT", "value": "Hello"}], SAID, id="capitals"),
        pytest.param([{"role": "User", "content": "Hi"}, ASSISTANT], SAID, id="OpenAI roles in capitals"),
        pytest.param(
            [{"role": "developer", "content": "Be kind"}, USER, ASSISTANT], ["system: Be kind", *SAID], id="developer"
        ),
        pytest.param(
            [{**USER, "tool_calls": None, "weight": None}, {**ASSISTANT, "tool_calls": [], "function_call": None}],
            SAID,
            id="empty tool calls, as Parquet writes them",
        ),
        pytest.param([USER, {**ASSISTANT, "weight": 1}], SAID, id="weight 1"),
        pytest.param([USER, {**ASSISTANT, "train": True}], SAID, id="train true"),
        pytest.param([{**USER, "weight": 0}, ASSISTANT], SAID, id="weight 0 of a question"),
        pytest.param(
            [
                {"role": "user", "content": ["Hi"]},
                {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]},
            ],
            SAID,
            id="parts",
        ),
    ],
)
def test_spellings_that_mean_the_same(load_file: Any, messages: list[Any], read: list[str]) -> None:
    assert messages_of(load_file("a.jsonl", lines({"messages": messages}))) == [read]


@pytest.mark.parametrize(
    ("messages", "says", "fix"),
    [
        pytest.param(
            [USER, {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}, ASSISTANT],
            "`messages[1]` calls tools",
            "remove the row",
            id="tool call",
        ),
        pytest.param(
            [USER, {"role": "assistant", "content": None, "function_call": {"name": "f"}}, ASSISTANT],
            "`messages[1]` calls tools",
            "remove the row",
            id="function call",
        ),
        pytest.param(
            [USER, {"role": "tool", "content": "x"}, ASSISTANT],
            "`messages[1]` is of a tool",
            "remove the row",
            id="tool",
        ),
        pytest.param(
            [USER, {"from": "observation", "value": "x"}, ASSISTANT],
            "`messages[1]` is of a tool",
            "remove the row",
            id="ShareGPT's observation",
        ),
        pytest.param([{"content": "Hi"}, ASSISTANT], "`messages[0]` has no role", "use one of", id="no role"),
        pytest.param([{"role": "user"}, ASSISTANT], "`messages[0]` has no content", "", id="no content"),
        pytest.param(
            [{"role": "user", "content": [{"type": "image_url"}]}, ASSISTANT],
            "`messages[0]`.content has a part of type image_url; only text is trained",
            "remove the part or the row",
            id="image",
        ),
        pytest.param(
            [USER, {**ASSISTANT, "weight": 0}],
            "`messages[1]` has weight 0, which is not read",
            "data.loss",
            id="an answer that is not to be learned (OpenAI)",
        ),
        pytest.param(
            [USER, {**ASSISTANT, "train": False}, USER, ASSISTANT],
            "`messages[1]` has train false, which is not read",
            "data.loss",
            id="an answer that is not to be learned (axolotl)",
        ),
        *(
            pytest.param(
                [USER, {**ASSISTANT, key: "2 + 2"}], f"`messages[1]` has {key}, which is not read", "<think>", id=key
            )
            for key in ("reasoning_content", "reasoning", "thinking")
        ),
    ],
)
def test_what_is_not_trained_is_refused(load_file: Any, messages: list[Any], says: str, fix: str) -> None:
    with pytest.raises(StageError) as caught:
        load_file("a.jsonl", lines(exchange("p", "c"), {"messages": messages}), format="chat")
    assert f"a.jsonl line 2: {says}" in caught.value.message
    with pytest.raises(StageError) as caught:
        load_file("a.jsonl", lines({"messages": messages}))
    assert fix in caught.value.hint


def test_empty_reasoning_and_reasoning_of_the_user_are_nothing(load_file: Any) -> None:
    messages = [{**USER, "reasoning": "x"}, {**ASSISTANT, "reasoning_content": None, "thinking": ""}]
    assert messages_of(load_file("a.jsonl", lines({"messages": messages}))) == [["user: Hi", "assistant: Hello"]]


@pytest.mark.parametrize(
    ("tools", "refused"),
    [([{"name": "f"}], True), ('[{"name": "f"}]', True), ([], False), ("[]", False), (None, False), ("hammer", False)],
)
def test_rows_that_offer_tools_are_refused(load_file: Any, tools: Any, refused: bool) -> None:
    content = lines({"messages": [USER, ASSISTANT], "tools": tools})
    if refused:
        with pytest.raises(StageError, match=r"a\.jsonl line 1: `tools` lists tools"):
            load_file("a.jsonl", content)
    else:
        assert len(load_file("a.jsonl", content).examples) == 1
    assert len(load_file("b.jsonl", lines({**exchange("p", "c"), "tools": tools})).examples) == 1


@pytest.mark.parametrize(
    "row",
    [
        pytest.param({"prompt": [USER], "completion": [ASSISTANT]}, id="both are messages"),
        pytest.param({"prompt": [USER], "completion": "Hello"}, id="the prompt is messages"),
        pytest.param({"prompt": "Hi", "completion": [ASSISTANT]}, id="the completion is a message"),
    ],
)
def test_prompt_and_completion_may_be_messages(load_file: Any, row: dict[str, Any]) -> None:
    loaded = load_file("a.jsonl", lines(row))
    assert (loaded.format, messages_of(loaded)) == ("promptCompletion", [SAID])


@pytest.mark.parametrize("answer", ['[{"name": "Ann"}]', '[{"role": 3}]', "[{not JSON"])
def test_an_answer_that_is_a_list_in_json_is_no_conversation(load_file: Any, answer: str) -> None:
    assert messages_of(load_file("a.jsonl", lines(exchange("p", answer)))) == [["user: p", f"assistant: {answer}"]]


def test_a_prompt_that_ends_with_an_answer_is_refused(load_file: Any) -> None:
    with pytest.raises(StageError, match="`prompt` ends with role assistant"):
        load_file("a.jsonl", lines({"prompt": [USER, ASSISTANT], "completion": "Hello"}))
