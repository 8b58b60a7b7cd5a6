"""The split: stable when rows are added, no leak by construction, near-duplicates and groups together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_runner.data.rows import Row, make_row
from finetune_runner.data.shingles import input_text
from finetune_runner.data.splitting import parts, place, repetitions
from finetune_runner.data.splitting import test_share as share_of_test
from tests.runner.stores import cluster_keys, leaking, varied

SENTENCE = "my parcel with the blue lamp number one has not arrived at the office in the harbour since monday"


def row(prompt: str, answer: str = "x", group: str = "", system: str = "") -> Row:
    start = [{"role": "system", "content": system}] if system else []
    return make_row([*start, {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], group)


def assign(keys: Sequence[str], seed: int, validation: float, test: float) -> list[str]:
    """The split of each row, by the key of its cluster."""
    ordered = sorted((place(seed, key), key) for key in set(keys))
    of = dict(parts(lambda: ordered, validation, test))
    return [of[key] for key in keys]


def rows_of(count: int) -> list[Row]:
    return [row(item["prompt"], item["completion"]) for item in varied(count)]


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        pytest.param(SENTENCE, SENTENCE.upper() + "!", True, id="case and punctuation"),
        pytest.param(SENTENCE, SENTENCE + " here", True, id="one word more"),
        pytest.param(SENTENCE, SENTENCE.replace("lamp", "chair"), False, id="another thing in a template"),
        pytest.param("What is the capital of France?", "What is the capital of Spain?", False, id="a short template"),
        pytest.param("Hi", "Ho", False, id="one word"),
        pytest.param("???", "!!!", False, id="no words"),
        pytest.param("日本語の文章です", "日本語の文章です", True, id="without spaces"),
    ],
)
def test_near_duplicates_stay_together_and_templates_apart(one: str, other: str, together: bool) -> None:
    keys = cluster_keys([row(one), row(other), row("something else entirely that nobody would mistake for it")])
    assert (keys[0] == keys[1]) is together
    assert keys[2] not in keys[:2]


def test_an_instruction_that_all_rows_share_does_not_make_them_one_cluster() -> None:
    instruction = "Classify the following ticket of our customer into exactly one of these categories: " * 4
    rows = [row(instruction + item["prompt"]) for item in varied(60)]
    assert len(set(cluster_keys(rows))) == 60


def test_a_shared_system_prompt_does_not_count() -> None:
    assert input_text(row("ask", system="always the same")) == "ask"


@given(
    st.sets(st.integers(0, 5000), min_size=3, max_size=40),
    st.sets(st.integers(0, 5000), max_size=20),
    st.integers(0, 2**31 - 1),
)
def test_adding_rows_moves_no_row(old: set[int], new: set[int], seed: int) -> None:
    def split(numbers: set[int]) -> dict[str, str]:
        rows = [row(f"{n} {n * 7919} {n * 104729}") for n in sorted(numbers)]
        keys = cluster_keys(rows)
        where = {key: place(seed, key) for key in keys}
        if len({(p >= 0.15) + (p >= 0.9) for p in where.values()}) < 3:
            return {}  # an empty split borrows a cluster: the rule for tiny data, tested below
        return dict(zip([r.id for r in rows], assign(keys, seed, 0.1, 0.15), strict=True))

    before, after = split(old), split(old | new)
    if before and after:
        assert {key: after[key] for key in before} == before


@given(st.integers(0, 2**31 - 1), st.integers(300, 700), st.integers(700, 3000))
def test_while_small_data_grow_rows_leave_test_but_never_enter_it(seed: int, fewer: int, more: int) -> None:
    keys = [str(number) for number in range(200)]
    before = assign(keys, seed, 0.1, share_of_test(0.15, fewer))
    after = assign(keys, seed, 0.1, share_of_test(0.15, more))
    assert {(b, a) for b, a in zip(before, after, strict=True) if b != a} <= {("test", "train")}


@pytest.mark.parametrize(
    ("fraction", "rows", "share"),
    [
        (0.15, 100, 0.3),
        (0.15, 700, 0.3),
        (0.15, 1000, 0.25),
        (0.15, 1500, 0.15),
        (0.15, 10**6, 0.15),
        (0.3, 10**6, 0.3),
        (0.01, 10**6, 0.05),
    ],
)
def test_the_share_of_test_reaches_for_200_rows_up_to_30_percent(fraction: float, rows: int, share: float) -> None:
    assert share_of_test(fraction, rows) == pytest.approx(share)


def test_shares_are_met_and_another_seed_splits_otherwise() -> None:
    keys = [str(number) for number in range(4000)]
    counts = Counter(assign(keys, 1, 0.1, 0.2))
    assert counts["test"] == pytest.approx(800, abs=80)
    assert counts["validation"] == pytest.approx(400, abs=60)
    assert assign(keys, 1, 0.1, 0.2) != assign(keys, 2, 0.1, 0.2)


@given(st.integers(0, 10_000), st.integers(3, 12))
def test_three_clusters_are_enough_for_three_splits(seed: int, count: int) -> None:
    assert set(assign([str(number) for number in range(count)], seed, 0.1, 0.15)) == {"train", "validation", "test"}


def test_a_group_stays_in_one_split_whatever_its_texts() -> None:
    rows = [row(f"question {number} {number * 31}", group=f"customer-{number % 40}") for number in range(400)]
    parts = assign(cluster_keys(rows), 42, 0.1, 0.15)
    where: dict[str, set[str]] = {}
    for each, part in zip(rows, parts, strict=True):
        where.setdefault(each.group, set()).add(part)
    assert all(len(found) == 1 for found in where.values())
    assert set(parts) == {"train", "validation", "test"}


def test_leaks_are_exact_and_near_duplicates() -> None:
    held_out = [SENTENCE, "another one"]
    texts = [
        "not related at all to it",
        SENTENCE.upper(),
        SENTENCE + " here",
        SENTENCE.replace("lamp", "chair"),
        "Another  one!",
        "an\u200bot\u00adher \ufeffone",
        "an\u200bot\u00adher \ufefftwo",
    ]
    assert leaking([row(text) for text in texts], [row(text) for text in held_out]) == [1, 2, 4, 5]


@pytest.mark.parametrize("weight", [0.1, 0.5, 1.0, 2.0, 2.5])
def test_a_weight_is_met_on_average_and_the_same_every_time(weight: float) -> None:
    rows = rows_of(300)
    counts = [repetitions(each.id, weight, 42) for each in rows]
    assert sum(counts) / len(rows) == pytest.approx(weight, abs=0.08)
    assert set(counts) <= {int(weight), int(weight) + 1}
    assert counts == [repetitions(each.id, weight, 42) for each in rows]
