"""Rows and tokens of training on disk: what is read is what was written, and memory does not grow with the rows."""

from __future__ import annotations

import threading
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.prepare_memory import Written, rows_with_duplicates
from finetune_runner.data.lazy_sequence import Joined
from finetune_runner.data.row_file import RowFile, write_row_file
from finetune_runner.data.rows import Parsed, Row, make_row
from finetune_runner.errors import StageError, interrupted
from finetune_runner.training.distributed import World as Ranks
from finetune_runner.training.encoded_rows import EncodedRows, encode_shared, lengths_of, write_encoded
from finetune_runner.training.objectives.kto import partners
from tests.runner.preferences import preference_world, with_rows
from tests.runner.training_memory import measure

SMALL_ROWS, LARGE_ROWS = 200, 1400
ALLOWED_GROWTH_BYTES_PER_ROW = 9000
"""As objects an example takes some 15 KB, the text not counted; allocators and the longest batch account for some."""

TEXT = st.text(max_size=20)
ROWS = st.lists(
    st.builds(
        lambda prompt, answer, rejected, weight: Row(
            **{**vars(make_row(Parsed(said(prompt, answer), rejected))), "weight": weight}
        ),
        TEXT,
        TEXT,
        st.none() | TEXT,
        st.floats(0.1, 10),
    ),
    max_size=8,
)
EXAMPLES = st.lists(
    st.lists(st.tuples(st.integers(0, 300_000), st.booleans()), min_size=1, max_size=12).map(
        lambda tokens: ([token for token, _ in tokens], [token if learned else -100 for token, learned in tokens])
    ),
    max_size=9,
)


def said(prompt: str, answer: str) -> tuple[dict[str, str], ...]:
    return {"role": "user", "content": prompt}, {"role": "assistant", "content": answer}


@given(ROWS)
def test_rows_come_back_as_they_were_written(rows: list[Row]) -> None:
    with TemporaryDirectory() as name:
        write_row_file(Path(name) / "rows", iter(rows))
        found = RowFile(Path(name) / "rows")
        assert list(found) == rows
        assert found[::-1] == rows[::-1]
        assert list(found.ids) == [row.id for row in rows]
        assert found.weights.tolist() == [row.weight for row in rows]


@given(st.lists(EXAMPLES, min_size=1, max_size=3))
def test_examples_come_back_as_they_were_encoded(parts: list[list[Any]]) -> None:
    with TemporaryDirectory() as name:
        paths = [Path(name) / f"part-{number}" for number in range(len(parts))]
        for path, part in zip(paths, parts, strict=True):
            write_encoded(path, iter(part))
        found, expected = EncodedRows(paths), [example for part in parts for example in part]
        assert list(found) == expected
        assert [found[number - len(expected)] for number in range(len(expected))] == expected
        assert lengths_of(found) == lengths_of(expected)
        both = Joined(found, expected)
        assert list(both) == expected + expected
        assert both[1:] == (expected + expected)[1:]


@pytest.mark.parametrize("index", [2, -3])
def test_there_is_no_example_beyond_the_ends(tmp_path: Path, index: int) -> None:
    write_encoded(tmp_path / "part", [([1], [1]), ([2], [-100])])
    with pytest.raises(IndexError):
        EncodedRows([tmp_path / "part"])[index]


@pytest.mark.parametrize(("labels", "refused"), [([-100, 6, 7], False), ([-100, 7, 7], True), ([0, 6, 7], True)])
def test_a_label_is_its_token_or_ignored(tmp_path: Path, labels: list[int], refused: bool) -> None:
    if refused:
        with pytest.raises(ValueError, match="neither its token nor ignored"):
            write_encoded(tmp_path / "part", [([5, 6, 7], labels)])
    else:
        write_encoded(tmp_path / "part", [([5, 6, 7], labels)])
        assert EncodedRows([tmp_path / "part"])[0] == ([5, 6, 7], labels)


@pytest.mark.parametrize("rows", [0, 1, 2, 7])
def test_the_ranks_of_a_node_share_the_work_and_the_files(tmp_path: Path, rows: int) -> None:
    asked: list[list[int]] = [[], [], []]
    found: list[Any] = [None] * 3

    def work(rank: int) -> None:
        def examples_of(row: int) -> list[Any]:
            asked[rank].append(row)
            return [([row], [row])] * (1 + row % 2)

        ranks = Ranks(rank, 3, rank, 3)
        found[rank] = list(encode_shared(tmp_path / "encoded", rows, examples_of, ranks, lambda: None))

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(row for part in asked for row in part) == list(range(rows))
    assert max(map(len, asked)) - min(map(len, asked)) <= 1
    expected = [([row], [row]) for row in range(rows) for _ in range(1 + row % 2)]
    assert found == [expected] * 3


def test_a_rank_that_waits_for_another_hears_a_stop(tmp_path: Path) -> None:
    asked: list[int] = []

    def stop_soon() -> None:
        asked.append(1)
        if len(asked) == 3:
            raise interrupted()

    with pytest.raises(StageError, match="was asked to stop"):
        encode_shared(tmp_path / "encoded", 1, lambda _: [([1], [1])], Ranks(0, 2, 0, 2), stop_soon)
    assert (tmp_path / "encoded" / "part-0").exists()


def test_what_is_half_written_is_not_there(tmp_path: Path) -> None:
    def broken() -> Any:
        yield [1], [1]
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        write_encoded(tmp_path / "part", broken())
    assert not (tmp_path / "part").exists()
    with pytest.raises(OSError, match="No space left"):
        write_row_file(tmp_path / "rows", (make_row(Parsed(said("a", "b"))) for _ in broken()))
    assert not (tmp_path / "rows").exists()


def test_encoding_ends_where_a_stop_is_asked_for(tmp_path: Path) -> None:
    def stop() -> None:
        raise interrupted()

    with pytest.raises(StageError, match="was asked to stop"):
        encode_shared(tmp_path / "encoded", 10, lambda _: [([1], [1])], Ranks(), stop)


def partners_by_definition(prompts: list[str], seed: int) -> list[int]:
    """Eq. by eq.: the first one ahead in the ring with another prompt."""
    from hashlib import sha256

    ring = sorted(range(len(prompts)), key=lambda row: sha256(f"{seed}:{row}".encode()).digest())
    found = [0] * len(prompts)
    for place, row in enumerate(ring):
        others = (ring[(place + ahead) % len(ring)] for ahead in range(1, len(ring) + 1))
        found[row] = next((other for other in others if prompts[other] != prompts[row]), row)
    return found


@given(st.lists(st.sampled_from("aaaab"), max_size=12), st.integers(0, 5))
def test_partners_are_those_of_the_definition(prompts: list[str], seed: int) -> None:
    assert list(partners(prompts, seed)) == partners_by_definition(prompts, seed)


@pytest.mark.timeout(60)
def test_one_prompt_for_nearly_all_rows_is_no_quadratic_search() -> None:
    rows = 200_000
    found = partners([0] * (rows - 1) + [1], 3)
    assert set(found[:-1]) == {rows - 1}
    assert found[-1] != rows - 1
    assert list(partners([0] * rows, 3)) == list(range(rows))


def long_rows(count: int, seed: int, *, pairs: bool) -> list[Row]:
    """Rows of about a kilobyte."""
    made = islice(rows_with_duplicates(seed, Written()), count)
    return [
        make_row(Parsed(said(row["prompt"], row["completion"]), row["completion"][::-1] if pairs else None))
        for row in made
    ]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("objective", ["sft", "kto"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, tiny_model: Path, objective: str) -> None:
    worlds = []
    pairs = objective != "sft"
    for count in (SMALL_ROWS, LARGE_ROWS):
        world = preference_world(tmp_path / str(count), tiny_model, objective, spec={"training": {"maxLength": 2048}})
        train, validation = long_rows(count, 1, pairs=pairs), long_rows(count // 10, 2, pairs=pairs)
        worlds.append(with_rows(world, train, validation))
    small, large = measure(worlds)
    assert (large - small) * 1024 < ALLOWED_GROWTH_BYTES_PER_ROW * (LARGE_ROWS - SMALL_ROWS), (small, large)
