"""Near-duplicates through files against the exact comparison of all pairs, and the grouping on disk."""

from __future__ import annotations

import random
import sqlite3
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_api.exit_codes import ExitCode
from finetune_runner.data import near_duplicates
from finetune_runner.data.near_duplicates import SIMILARITY, NearDuplicates
from finetune_runner.data.row_store import RowStore
from finetune_runner.data.rows import Row, make_row
from finetune_runner.data.shingles import input_text, jaccard, normal_form
from finetune_runner.errors import classify
from tests.runner.stores import cluster_keys, leaking, store_of

WORDS = [f"{start}{end}" for start in ("ta", "mo", "ki", "re", "lu", "so") for end in ("ne", "la", "vi", "po", "du")]


def ask(text: str, answer: str = "x", group: str = "") -> Row:
    return make_row([{"role": "user", "content": text}, {"role": "assistant", "content": answer}], group)


def shingle_sets(texts: Sequence[str]) -> list[frozenset[str]]:
    """Three-word shingles by the definition, common ones left out."""
    forms = [normal_form(text) for text in texts]
    sets = []
    for form in forms:
        words = form.split()
        several = {" ".join(words[at : at + 3]) for at in range(len(words) - 2)}
        sets.append(frozenset(several or {form}))
    distinct = dict(zip(forms, sets, strict=True))
    if len(distinct) >= 20:
        counts = Counter(shingle for each in distinct.values() for shingle in each)
        common = {shingle for shingle, count in counts.items() if count > len(distinct) / 2}
        sets = [each - common or frozenset({form}) for each, form in zip(sets, forms, strict=True)]
    return sets


def similar(one: frozenset[str], other: frozenset[str]) -> bool:
    return len(one & other) / len(one | other) >= SIMILARITY


def exact_clusters(rows: Sequence[Row]) -> list[str]:
    """Smallest content id of each row's cluster, by comparing all pairs."""
    sets = shingle_sets([input_text(row) for row in rows])
    of = list(range(len(rows)))
    for one, other in combinations(range(len(rows)), 2):
        if similar(sets[one], sets[other]):
            low, high = sorted((of[one], of[other]))
            of = [low if root == high else root for root in of]
    return [min(row.id for row, root in zip(rows, of, strict=True) if root == mine) for mine in of]


_SENTENCES = {
    "Chinese": (
        "请问我上周订购的包裹现在到哪里了因为我已经等了很多天还没有收到任何消息所以想知道{}",
        "谢谢",
        "你好吗我想退货并且取消这个月的所有订单因为质量太差了完全不能使用请尽快处理",
    ),
    "Japanese": (
        "先週注文した荷物がまだ届いていないのですが現在どこにあるのか教えていただけますか{}",
        "お願い",
        "商品の色が写真と違うため返品して代金を返してもらいたいのですがどうすればよいですか",
    ),
    "Thai": (
        "พัสดุที่ฉันสั่งซื้อเมื่อสัปดาห์ที่แล้วยังไม่มาถึงช่วยตรวจสอบให้หน่อยได้ไหมว่าตอนนี้อยู่ที่ไหน{}",
        "คะ",
        "สินค้าที่ได้รับมีสีไม่ตรงกับรูปภาพจึงต้องการส่งคืนและขอเงินคืนต้องทำอย่างไร",
    ),
}


@pytest.mark.parametrize("script", _SENTENCES)
def test_scripts_without_spaces_have_near_duplicates_too(script: str) -> None:
    sentence, end, other = _SENTENCES[script]
    one, near, far = cluster_keys([ask(sentence.format("")), ask(sentence.format(end)), ask(other)])
    assert one == near != far


def test_words_of_scripts_with_spaces_stay_whole() -> None:
    assert normal_form("Grüße, 안녕하세요 мир_1!") == "grüsse 안녕하세요 мир_1"
    assert normal_form("iPhone15を買う。") == "iphone15 を 買 う"
    assert normal_form("・。") == "・。", "punctuation of these scripts is no word"


@st.composite
def texts_and_variants(draw: st.DrawFn) -> list[str]:
    """Texts of a few words, most of them a changed copy of another: near, nearly near and far pairs."""
    seeds = draw(st.lists(st.integers(0, 2**16), min_size=1, max_size=4))
    texts = []
    for seed in seeds:
        source = random.Random(seed)
        words = source.choices(WORDS, k=source.randint(1, 60))
        texts.append(" ".join(words))
        for _ in range(draw(st.integers(0, 4))):
            changed = list(words)
            for _ in range(draw(st.integers(0, 3))):
                changed[source.randrange(len(changed))] = source.choice(WORDS)
            texts.append(draw(st.sampled_from(["", "Hm, "])) + " ".join(changed).upper())
    return texts


@given(texts_and_variants())
def test_clusters_are_those_of_comparing_all_pairs(texts: list[str]) -> None:
    rows = [ask(text) for text in texts]
    assert cluster_keys(rows) == exact_clusters(rows)


@given(texts_and_variants(), st.data())
def test_leaks_are_those_of_comparing_all_pairs(texts: list[str], data: st.DataObject) -> None:
    held = [data.draw(st.booleans()) for _ in texts]
    learned = [ask(text) for text, is_held in zip(texts, held, strict=True) if not is_held]
    held_out = [ask(text) for text, is_held in zip(texts, held, strict=True) if is_held]
    sets = [shingle_sets([input_text(row) for row in rows]) for rows in (learned, held_out)]
    assert leaking(learned, held_out) == [
        number for number, one in enumerate(sets[0]) if any(similar(one, other) for other in sets[1])
    ]


def templated(count: int) -> list[str]:
    """Texts of one template, most not near-duplicates of each other, some changed by one word at the end."""
    source = random.Random(7)
    texts = []
    for number in range(count):
        filled = " ".join(source.choices(WORDS, k=9))
        texts.append(
            f"Dear team {filled} the order with the number {number} has not arrived here yet and the customer "
            f"wants to know on which day of this week the parcel will be at the door of the house in street {filled}"
        )
        if number % 10 == 0:
            texts.append(texts[-1] + " please")
    return texts


@pytest.mark.parametrize("small", [1, 10_000], ids=["rare shingles", "signatures"])
@pytest.mark.parametrize("block", [3_000, 2_000_000], ids=["in blocks", "at once"])
def test_a_large_bucket_is_searched_as_exactly_as_a_small_one(
    monkeypatch: pytest.MonkeyPatch, small: int, block: int
) -> None:
    monkeypatch.setattr(near_duplicates, "_SMALL_BUCKET", small)
    monkeypatch.setattr(near_duplicates, "_BLOCK_SHINGLES", block)
    rows = [ask(text) for text in templated(120)]
    assert cluster_keys(rows) == exact_clusters(rows)


def test_many_partitions_hold_what_one_holds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = [ask(text) for text in templated(60)]
    expected = cluster_keys(rows)
    monkeypatch.setattr(near_duplicates, "_PARTITION_ENTRIES", 16)
    monkeypatch.setattr(near_duplicates, "_CHUNK_ROWS", 7)
    with store_of({"pool": rows}, tmp_path / "rows.sqlite") as store, NearDuplicates(store) as near:
        assert len(list(tmp_path.glob("near-*/bands-*"))) > 30
        near.set_clusters("pool")
        assert [key for (key,) in store.database.execute("SELECT cluster FROM rows ORDER BY number")] == expected
    assert not list(tmp_path.iterdir()), "scratch files are removed"


def test_a_leak_names_a_held_out_row_and_forgets_rows_that_were_dropped() -> None:
    text = "my parcel with the blue lamp number one has not arrived at the office in the harbour since monday"
    splits = {"train": [ask("other"), ask(text.upper())], "test": [ask("third"), ask(text)]}
    with store_of(splits) as store, NearDuplicates(store) as near:
        assert list(near.leaks("train", ["test"])) == [(2, 4)] or list(near.leaks("train", ["test"])) == [(2, 2)]
        assert list(near.leaks("train", ["validation"])) == []
        store.note_drop(4)
        store.apply()
        assert list(near.leaks("train", ["test"])) == []


def test_what_is_common_in_one_source_counts_in_none() -> None:
    instruction = "Classify the following ticket of our customer into exactly one of these categories now: "
    pool = [ask(f"{instruction} {word} {other}") for word, other in combinations(WORDS[:9], 2)]
    replay = [ask(f"{instruction} {word}") for word in WORDS[20:23]]
    with store_of({"pool": pool, "replay": replay}) as store, NearDuplicates(store) as near:
        near.set_clusters("pool")
        assert list(near.leaks("replay", ["pool"])) == []
        (clusters,) = store.database.execute("SELECT count(DISTINCT cluster) FROM rows").fetchone()
    assert clusters == len(pool) + 1, "each row of the pool; replay has none"


def test_jaccard_is_shared_over_all() -> None:
    one, other = np.array([1, 2, 3], np.uint64), np.array([2, 3, 4, 5], np.uint64)
    assert jaccard(one, other) == pytest.approx(2 / 5)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), max_size=30))
def test_groups_on_disk_are_those_in_memory(pairs: list[tuple[str, str]]) -> None:
    by_key: dict[str, dict[str, int]] = {}
    later = []
    first: dict[tuple[str, str], int] = {}
    with store_of({}) as store, store.groups() as groups:
        for number, (key, tag) in enumerate(pairs, start=1):
            groups.add(key, number, tag)
            by_key.setdefault(key, {}).setdefault(tag, number)
            if (key, tag) in first:
                later.append((number, first[key, tag]))
            first.setdefault((key, tag), number)
        assert list(groups.later()) == later
        several = {min(tags.values()): sorted(tags.values()) for tags in by_key.values() if len(tags) > 1}
        found = list(groups.several(tags=True))
        assert {group.first: group.tags for group in found} == {key: len(tags) for key, tags in several.items()}
        assert {group.first: groups.first_of_tags(group.first) for group in found} == {
            key: tags[:2] for key, tags in several.items()
        }
        counts = Counter(key for key, _ in pairs)
        assert sorted(group.rows for group in groups.several()) == sorted(n for n in counts.values() if n > 1)


def drop_odd(number: int) -> bool:
    return number % 2 == 1


@pytest.mark.parametrize("keep", [lambda _: False, drop_odd, lambda _: True], ids=["none", "every other", "all"])
def test_changes_are_seen_only_when_applied(keep: Callable[[int], bool]) -> None:
    with store_of({"train": [ask(str(n)) for n in range(10)], "test": [ask("t")]}) as store:
        for example in store.examples("train"):
            if keep(example.number):
                store.note_drop(example.number)
            else:
                store.note_replacement(example.number, ask(f"new {example.number}"))
        assert [e.row.prompt[0]["content"] for e in store.examples("train")] == [str(n) for n in range(10)]
        changed = store.apply()
        left = [n for n in range(1, 11) if not keep(n)]
        assert [e.row.prompt[0]["content"] for e in store.examples("train")] == [f"new {n}" for n in left]
        assert changed.dropped.get("train", 0) == 10 - len(left)
        assert changed.replaced.get("train", 0) == len(left)
        assert store.counts()["test"] == 1


def test_a_full_disk_is_called_that(tmp_path: Path) -> None:
    with store_of({}, tmp_path / "rows.sqlite") as store:
        store.database.execute("PRAGMA max_page_count = 20")
        with pytest.raises(sqlite3.OperationalError) as caught:
            deque(store.add("train", ask(f"{number} " * 20), "a.jsonl line 1") for number in range(20_000))
    assert classify(caught.value).exit_code == ExitCode.DISK_FULL


def test_a_stop_is_heard_on_the_way_through_the_rows(tmp_path: Path) -> None:
    asked = []
    with RowStore(tmp_path / "rows.sqlite", lambda: asked.append(1)) as store:
        for number in range(2500):
            store.add("train", ask(str(number)), "a")
        assert len(list(store.examples("train"))) == 2500
    assert len(asked) == 3
