"""Checks of and after the split: duplicates, leaks, what is left, lengths."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_runner.data.checking import Given, run_checks
from finetune_runner.data.checks import (
    duplicates,
    leaks,
    lengths,
    near_duplicates,
    sizes,
)
from finetune_runner.data.near_duplicates import NearDuplicates
from finetune_runner.data.pool import split_pool, weigh
from finetune_runner.data.row_store import Length, RowStore
from finetune_runner.data.rows import Row, make_row
from finetune_runner.errors import StageError
from tests.runner.check_rows import row, rows, run, said, spec
from tests.runner.stores import store_of, varied

SENTENCE = "please look at the invoice of last month for the third car since the sum on page {} seems to be quite wrong"


def prompts(*asked: str) -> list[Row]:
    return [row(text, f"answer {n}") for n, text in enumerate(asked)]


@pytest.mark.parametrize(("mode", "left"), [("warn", 4), ("drop", 3)])
def test_near_duplicates_within_a_split(mode: str, left: int) -> None:
    alike = [SENTENCE.format("two"), SENTENCE.format("two") + "!", "quite another thing", "and one more of its kind"]
    wanted = spec(
        {"nearDuplicates": mode}, data={"test": {"source": "file:///t"}, "validation": {"source": "file:///v"}}
    )
    others = {"test": prompts("a test of its own"), "validation": prompts("something to validate with")}
    with store_of({"pool": prompts(*alike), **others}) as store, NearDuplicates(store) as near:
        split_pool(store, near, wanted)
        remarks, counts = run(near_duplicates, store, wanted, near)
    assert "train: 1 row is a near-duplicate of an earlier one" in remarks[0].message
    assert counts["train"] == left
    assert near_duplicates.mode(spec(data={"groupBy": "$.customer"})) == "off"


@pytest.mark.parametrize(("mode", "left"), [("warn", 61), ("drop", 60)])
@pytest.mark.parametrize("split", ["test", "validation"])
def test_near_duplicates_within_a_source_of_its_own(split: str, mode: str, left: int) -> None:
    wanted = spec({"nearDuplicates": mode}, data={split: {"source": "file:///own"}})
    own = [*(case["prompt"] for case in varied(60, 5000)), varied(1, 5000)[0]["prompt"].upper() + "!"]
    general = prompts(*[varied(1, 9000)[0]["prompt"]] * 2)
    content = {"pool": prompts(*(case["prompt"] for case in varied(200))), split: prompts(*own), "replay": general}
    with store_of(content) as store, NearDuplicates(store) as near:
        split_pool(store, near, wanted)
        leaks_before = run(leaks, store, wanted, near)
        remarks, counts = run(near_duplicates, store, wanted, near)
        assert run(leaks, store, wanted, near) == ([], counts), "what is known of the pool is kept"
    assert leaks_before[0] == []
    assert [(remark.rows, remark.positions) for remark in remarks] == [(1, (f"{split} row 61",))]
    assert counts[split] == left
    assert counts["replay"] == 2, "replay is general text"


@pytest.mark.parametrize(
    ("split", "other"),
    [
        ("train", "test"), ("train", "validation"), ("train", "out_of_domain"), ("replay", "test"),
        ("replay", "validation"), ("replay", "out_of_domain"), ("replay", "train"), ("validation", "test"),
        ("out_of_domain", "test"), ("out_of_domain", "validation"),
    ],
)  # fmt: skip
def test_a_leak_between_any_two_splits_is_found(split: str, other: str) -> None:
    content = {
        name: prompts(f"this row belongs to {name} and to nobody else")
        for name in ("train", "replay", "validation", "test", "out_of_domain")
    }
    content[split] = [*content[split], *prompts(SENTENCE.format("two").upper())]
    content[other] = [*content[other], *prompts(SENTENCE.format("two"))]
    for mode in ("warn", "drop", "fail"):
        with store_of(content) as store, NearDuplicates(store) as near:
            if mode == "fail":
                with pytest.raises(StageError, match=f"{split}: 1 row has an input"):
                    run(leaks, store, spec({"leaks": mode}), near)
                continue
            remarks, counts = run(leaks, store, spec({"leaks": mode}), near)
        assert [remark.splits for remark in remarks] == [{split: 1}]
        assert f"(like {other} row 2)" in remarks[0].message
        assert counts == {
            name: 2 - (mode == "drop" and name == split) if name in (split, other) else 1 for name in counts
        }


@pytest.mark.parametrize(("text", "leaking"), [("a manual of the third car", 0), ("a recipe for apple pie", 1)])
def test_plain_text_leaks_where_it_is_the_same_text(text: str, leaking: int) -> None:
    texts = [make_row([{"role": "assistant", "content": each}]) for each in (text, "a Recipe for apple pie!")]
    content = {"train": [texts[0], *rows("another")], "test": texts[1:]}
    with store_of(content) as store, NearDuplicates(store) as near:
        remarks, left = run(leaks, store, spec(data={"loss": "all"}), near)
    assert len(remarks) == leaking
    assert left["train"] == 2 - leaking


@pytest.mark.parametrize("setting", ["drop", "warn"])
def test_train_that_is_in_test_altogether_is_named_with_the_fix(setting: str) -> None:
    same = rows("a", "b", "c")
    with store_of({"train": same, "test": same}) as store, NearDuplicates(store) as near:
        if setting == "warn":
            assert len(run(leaks, store, spec({"leaks": setting}), near)[0]) == 1
        else:
            with pytest.raises(
                StageError, match=r"all 3 rows of train have inputs that are \(nearly\) in test: train"
            ) as caught:
                run(leaks, store, spec({"leaks": setting}), near)
            assert "data.test.source" in caught.value.hint


@pytest.mark.parametrize(("groups", "refused"), [(1, True), (2, True), (3, False)])
def test_too_few_groups_are_named_rather_than_an_empty_split(groups: int, refused: bool) -> None:
    content = {"pool": [replace(each, group=f"g{n % groups}") for n, each in enumerate(rows(*["x"] * 30))]}
    wanted = spec(data={"groupBy": "$.customer"})
    with store_of(content) as store, NearDuplicates(store) as near:
        if not refused:
            split_pool(store, near, wanted)
            assert set(store.counts()) == {"train", "validation", "test"}
            return
        with pytest.raises(
            StageError, match=rf"data\.groupBy \$\.customer makes {groups} groups? of all 30 rows; 3"
        ) as caught:
            split_pool(store, near, wanted)
        assert "something finer" in caught.value.hint


def test_what_only_resembles_is_no_leak() -> None:
    other = "please look at the contract of last year for the second house since the date on page one seems to be right"
    with (
        store_of({"train": prompts(SENTENCE.format("two")), "test": prompts(other)}) as store,
        NearDuplicates(store) as n,
    ):
        assert run(leaks, store, spec({"leaks": "fail"}), n) == ([], {"train": 1, "test": 1})


@pytest.mark.parametrize(
    ("emptied", "place"),
    [("pool", "data.train"), ("test", "data.test.source"), ("validation", "data.validation.source")],
)
def test_checks_that_leave_no_row_end_the_job_with_their_names(emptied: str, place: str) -> None:
    checks = {"refusals": "drop", "emptyAnswers": "drop"}
    refuse, empty = ["I'm sorry, but I can't help"] * 3, ["N/A"] * 2
    own = {"test": {"source": "file:///t"}, "validation": {"source": "file:///v"}}
    content = {name: rows("fine") for name in ("pool", "test", "validation")}
    with store_of({**content, emptied: rows(*refuse, *empty, "fine")}) as store:
        list(run_checks("rows", store, spec(checks, data=own)))
        assert store.counts()[emptied] == 1, "one row is left"
    with (
        store_of({**content, emptied: rows(*refuse, *empty)}) as store,
        pytest.raises(StageError, match=f"the checks dropped every row of {place}: refusals 3, emptyAnswers 2") as bad,
    ):
        list(run_checks("rows", store, spec(checks, data=own)))
    assert bad.value.exit_code == ExitCode.INVALID_DATA
    assert "data.checks.refusals: warn, data.checks.emptyAnswers: warn" in bad.value.hint


def test_a_source_of_its_own_is_never_replaced_by_a_split() -> None:
    wanted = spec({"minimumRows": 1}, data={"test": {"source": "file:///t"}})
    with store_of({"pool": prompts(*(case["prompt"] for case in varied(60)))}) as store, NearDuplicates(store) as near:
        split_pool(store, near, wanted)
        assert "test" not in store.counts()
        with pytest.raises(StageError, match="split test is empty") as caught:
            run(sizes, store, wanted, near)
    assert "the rows of data.test.source" in caught.value.hint


@pytest.mark.parametrize(
    ("weight", "long", "says", "fix"),
    [
        (1.0, 10, "", ""),
        (1.0, 11, "removed since the split: 11 longer than training.maxLength 16", "raise training.maxLength"),
        (0.01, 0, "by data.train[].weight", "raise data.train[].weight"),
        (1.0, 60, "60 usable rows: 0 train, ", "raise training.maxLength"),
    ],
)
def test_rows_that_vanish_after_the_split_are_missed(weight: float, long: int, says: str, fix: str) -> None:
    wanted = spec({"minimumRows": 50}, training={"maxLength": 16}, data={"overlong": "drop"})
    held = {"validation": rows(*["v"] * 30), "test": rows(*["t"] * 30)}
    with RowStore() as store:
        for each in rows(*["a"] * 60):
            store.add("train", each, "a.jsonl", weight)
        for split, content in held.items():
            for each in content:
                store.add(split, each, split)
        store.flush()
        weigh(store, 1)
        numbers = [example.number for example in store.examples(*store.splits())]
        store.set_lengths((number, Length(17 if number <= long else 16, 2)) for number in numbers)
        outcome = run_checks("tokens", store, wanted)
        if not says:
            assert [each.check for each in outcome] == ["lengths", "sizes_left"]
            return
        with pytest.raises(StageError, match=re.escape(says)) as caught:
            list(outcome)
    assert caught.value.exit_code == ExitCode.INVALID_DATA
    assert fix in caught.value.hint


@pytest.mark.parametrize("split", ["test", "validation"])
def test_a_split_that_is_too_long_altogether_ends_the_job(split: str) -> None:
    wanted = spec({"minimumRows": 1}, training={"maxLength": 16}, data={"overlong": "drop"})
    content = {"train": rows("a"), "validation": rows("v"), "test": rows("t"), "replay": rows("r")}
    with store_of(content) as store:
        gone = {1 + list(content).index(split), 4}
        store.set_lengths((number, Length(17 if number in gone else 16, 2)) for number in range(1, 5))
        with pytest.raises(StageError, match=f"split {split} is empty; .*: 1 longer than") as caught:
            list(run_checks("tokens", store, wanted))
    assert "raise training.maxLength" in caught.value.hint


@pytest.mark.parametrize(
    ("overlong", "left", "says"),
    [
        ("truncate", 3, "warning: 1 example is longer than training.maxLength 16 and loses the left of its prompt"),
        ("drop", 2, "info: 1 example is longer than training.maxLength 16, dropped"),
        ("fail", 0, ""),
    ],
)
def test_examples_that_are_too_long(overlong: str, left: int, says: str) -> None:
    wanted = spec(data={"overlong": overlong}, training={"maxLength": 16})
    store = store_of({"train": rows("fits", "fits exactly", "is cut", "does not fit")})
    store.set_lengths([(1, Length(10, 2)), (2, Length(16, 2)), (3, Length(17, 16)), (4, Length(40, 17))])
    if overlong == "fail":
        with pytest.raises(StageError, match="1 row whose answer does not fit"):
            run(lengths, store, wanted)
        return
    remarks, counts = run(lengths, store, wanted)
    assert counts == {"train": left}
    assert "warning: 1 row whose answer does not fit into training.maxLength 16, dropped: train row 4" in said(remarks)
    assert says in said(remarks)


@pytest.mark.parametrize(
    ("new_tokens", "says"),
    [
        (400, ""),
        (401, "warning: 1 prompt is cut from the left before it is answered: the model's context of 512 less "),
        (511, "warning: 2 prompts are cut"),
    ],
)
def test_prompts_that_leave_no_room_for_an_answer_are_told(new_tokens: int, says: str) -> None:
    wanted = spec(evaluation={"maxNewTokens": new_tokens})
    content = {"train": rows("a"), "validation": rows("short"), "test": rows("long")}
    with store_of(content) as store:
        store.set_lengths([(1, Length(500, 2)), (2, Length(12, 2)), (3, Length(122, 10))])
        told = said(lengths.check(Given(store, wanted, "warn", context_length=512)))
    assert told.startswith(says) if says else not told


def test_answers_as_long_as_the_context_are_refused() -> None:
    with store_of({"test": rows("a")}) as store:
        store.set_lengths([(1, Length(10, 2))])
        given = Given(store, spec(evaluation={"maxNewTokens": 512}), "warn", context_length=512)
        with pytest.raises(StageError, match="leaves no room for a prompt") as no:
            lengths.check(given)
    assert no.value.exit_code == ExitCode.INVALID_SPEC
    assert "evaluation.maxNewTokens" in no.value.hint


@pytest.mark.parametrize(
    ("pool", "says", "fix"),
    [
        (rows("a") * 30, "the checks dropped 29 rows, such as duplicates", "add rows"),
        ([row("the same", f"{n}") for n in range(30)], "30 of 30 rows are near-duplicates of each other", "vary the"),
        (rows(*"abc"), "", "add rows"),
    ],
)
def test_too_few_rows_are_told_with_what_took_them(pool: list[Row], says: str, fix: str) -> None:
    wanted = spec({"minimumRows": 30})
    with store_of({"pool": pool}) as store, NearDuplicates(store) as near:
        run(duplicates, store, wanted)
        split_pool(store, near, wanted)
        with pytest.raises(StageError) as caught:
            run(sizes, store, wanted, near)
    assert says in caught.value.message
    assert caught.value.message.endswith("train rows") is (says == "")
    assert caught.value.hint.startswith(fix)
