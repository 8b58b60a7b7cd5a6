"""Near-duplicates of inputs over all splits, on disk: MinHash finds candidates, the exact Jaccard similarity decides.

Broder 1997 (resemblance), Leskovec et al., Mining of Massive Datasets, chapter 3 (bands). Shingles of three words and
0.85: templated texts that differ in a name or a number stay apart. With 16 bands of 4 a pair at 0.85 is missed once in
130,000 times. Signatures and bands are files of the scratch folder; a bucket is looked at one at a time. In memory
remain some 40 bytes per row.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from finetune_runner.data.conversations import EARLIER_TABLE, earlier_of
from finetune_runner.data.minhash import BANDS, PERMUTATIONS, band_keys, signature_of
from finetune_runner.data.near_duplicate_files import IndexFiles, Numbers
from finetune_runner.data.near_duplicate_searches import Joining, Leaking, Search
from finetune_runner.data.row_store import RowStore
from finetune_runner.data.shingles import (
    Shingles,
    earlier_digests,
    form_digest,
    input_text,
    jaccard,
    normal_form,
    shingles_of,
    system_form,
    text_hash,
)

SIMILARITY = 0.85
_UNLIKELY = 0.6
"""An estimate below this is five standard deviations under SIMILARITY: no exact test is needed."""
_COMMON_SHARE = 0.5
_COMMON_FROM_ROWS = 20
_SAMPLE_ROWS = 2000
_SAMPLE_SHINGLES = 2_000_000
_CHUNK_ROWS = 2000
_PARTITION_ENTRIES = 1 << 18
_PARTITIONS_MOST = 256
_SMALL_BUCKET = 32
_BLOCK_SHINGLES = 2_000_000
_CACHED_SHINGLES = 2_000_000
_REJECTED_KEPT = 200_000

_INPUTS_TABLE = "inputs(number INTEGER PRIMARY KEY, digest BLOB, system BLOB, came_from TEXT)"
_ENTRY = np.dtype([("key", "<u8"), ("form", "<i8")])


class NearDuplicates:
    """The inputs of a store's rows, searchable for near-duplicates. Rows with the same normal form are one `form`.

    A form is named by the number of the first row that has it. Shingles that most rows of a source share (a common
    instruction) do not count.

    Args:
        store: rows of all splits, cleaned; later drops and moves are seen, other content is not.
    """

    def __init__(self, store: RowStore) -> None:
        self._store = store
        self._folder = TemporaryDirectory(prefix="near-", dir=store.folder)
        self._form_of = self._find_forms()
        self._earlier = earlier_of(store.database, self._form_of, self._form)
        self._common = self._find_common()
        self._cache: OrderedDict[int, Shingles] = OrderedDict()
        self._cached = 0
        self._rejected: set[tuple[int, int]] = set()
        self._files = IndexFiles(Path(self._folder.name))
        self._partitions = self._write_index()
        self._roots = np.zeros(len(self._form_of), np.int64)

    def close(self) -> None:
        """Remove the files."""
        self._files.close()
        self._folder.cleanup()

    def __enter__(self) -> NearDuplicates:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def set_clusters(self, split: str, *, for_leaks: bool = True) -> None:
        """Give every row of the split the key of its cluster: its group, else the smallest content id in the cluster.

        Rows are of one cluster when a chain within the split joins them: of near-duplicates, and of conversations that
        go on from each other. Column `alike` gets a number that only near-duplicates share.

        Args:
            split: whose rows are compared with each other.
            for_leaks: `leaks` need not compare forms of two of these clusters again. One split at a time: the last.
        """
        within = self._forms_of(split)
        search = Joining(len(self._form_of), within)
        self._look(search)
        database = self._store.database
        alike = search.roots(self._form_of)
        for form in np.flatnonzero(within & (self._earlier > 0)).tolist():
            if earlier := self._nearest_earlier(form, within):
                search.hit(form, earlier)
        roots = search.roots(self._form_of)
        if for_leaks:
            self._roots = np.where(within, search.roots(np.arange(len(roots))), 0)
        smallest = np.full(len(roots), np.iinfo(np.uint64).max, np.uint64)
        for number, row_id in database.execute("SELECT number, id FROM rows WHERE split = ?", (split,)):
            smallest[roots[number]] = min(smallest[roots[number]], np.uint64(int(row_id, 16)))
        database.create_function("cluster_key", 1, lambda number: f"{int(smallest[roots[number]]):016x}")
        database.create_function("alike_key", 1, lambda number: int(alike[number]))
        database.execute(
            "UPDATE rows SET cluster = CASE cluster WHEN '' THEN cluster_key(number) ELSE 'group:' || cluster END, "
            "alike = alike_key(number) WHERE split = ?",
            (split,),
        )

    def leaks(self, split: str, held_out: Sequence[str], *, earlier: bool = False) -> Iterator[tuple[int, int]]:
        """Rows of a split that are near-duplicates of a row of the held-out splits: their numbers and one of those.

        Args:
            split: whose rows are looked at.
            held_out: the splits that they must not be in.
            earlier: also conversations in which a held-out row's whole input is answered before their last answer.
        """
        learned, held_rows = self._forms_of(split), np.zeros(len(self._form_of), np.int64)
        for other in held_out:
            for (number,) in self._store.database.execute("SELECT number FROM rows WHERE split = ?", (other,)):
                held_rows[self._form_of[number]] = number  # a form may be named after a row of `split` itself
        held = held_rows > 0
        search = Leaking(learned, held, self._roots)
        if learned.any() and held.any():
            self._look(search)
        for (number,) in self._store.database.execute(
            "SELECT number FROM rows WHERE split = ? ORDER BY number", (split,)
        ):
            form = int(self._form_of[number])
            near = int(search.found[form]) or (self._nearest_earlier(form, held) if earlier else 0)
            if near:
                yield number, int(held_rows[near])

    def _nearest_earlier(self, form: int, among: npt.NDArray[np.bool_]) -> int:
        """The longest earlier question of a conversation that is the whole input of one of these forms; 0 = none."""
        earlier = int(self._earlier[form])
        while earlier and not among[earlier]:
            earlier = int(self._earlier[earlier])
        return earlier

    def _find_forms(self) -> Numbers:
        """The form of each row, by the row's number; row 0 does not exist."""
        database = self._store.database
        for table in (_INPUTS_TABLE, EARLIER_TABLE):
            database.execute(f"DROP TABLE IF EXISTS {table.partition('(')[0]}")
            database.execute(f"CREATE TABLE {table}")
        last = 0
        for split in self._store.splits():
            waiting: list[tuple[int, bytes, bytes, str]] = []
            for example in self._store.examples(split):
                row, number = example.row, example.number
                waiting.append(
                    (number, form_digest(normal_form(input_text(row))), form_digest(system_form(row)), split)
                )
                asked = earlier_digests(row)
                database.executemany(
                    "INSERT INTO earlier VALUES (?, ?, ?)", ((number, *each) for each in enumerate(asked))
                )
                last = max(last, number)
                if len(waiting) >= _CHUNK_ROWS:
                    self._store.check_stop()
                    database.executemany("INSERT INTO inputs VALUES (?, ?, ?, ?)", waiting)
                    waiting = []
            database.executemany("INSERT INTO inputs VALUES (?, ?, ?, ?)", waiting)
        form_of = np.zeros(last + 1, np.int64)
        before, first = b"", 0
        for digest, number in database.execute("SELECT digest, number FROM inputs ORDER BY digest, number"):
            if digest != before:
                before, first = digest, number
            form_of[number] = first
        return form_of

    def _find_common(self) -> Shingles:
        """Shingles in more than half of a source's forms, judged by a sample that their digests choose."""
        common = np.zeros(0, np.uint64)
        for split in self._store.splits():
            parts: list[Shingles] = []
            size = 0
            for (number,) in self._store.database.execute(
                "SELECT min(number) FROM inputs WHERE came_from = ? GROUP BY digest ORDER BY digest LIMIT ?",
                (split, _SAMPLE_ROWS),
            ):
                parts.append(shingles_of(self._form(number)))
                size += len(parts[-1])
                if size > _SAMPLE_SHINGLES:
                    break
            if len(parts) >= _COMMON_FROM_ROWS:
                values, counts = np.unique(np.concatenate(parts), return_counts=True)
                common = np.union1d(common, values[counts > _COMMON_SHARE * len(parts)])
        return common

    def _write_index(self) -> list[Path]:
        """Write shingles, signatures and, in files by the first bits of their keys, the bands of all forms."""
        forms = np.unique(self._form_of[self._form_of > 0])
        wanted = max(len(forms) * BANDS / _PARTITION_ENTRIES, 1)
        bits = min(math.ceil(math.log2(wanted)), int(math.log2(_PARTITIONS_MOST)))
        paths = [Path(self._folder.name) / f"bands-{number}" for number in range(1 << bits)]
        with ExitStack() as stack:
            targets = [stack.enter_context(path.open("wb")) for path in paths]
            for start in range(0, len(forms), _CHUNK_ROWS):
                self._store.check_stop()
                chunk = forms[start : start + _CHUNK_ROWS]
                hashed = np.empty((len(chunk), PERMUTATIONS), np.uint32)
                for at, form in enumerate(chunk):
                    shingles = self._without_common(self._form(int(form)))
                    hashed[at] = signature_of(shingles)
                    self._files.write(int(form), hashed[at], shingles)
                entries = np.empty(len(chunk) * BANDS, _ENTRY)
                entries["key"] = band_keys(hashed).ravel()
                entries["form"] = np.repeat(chunk, BANDS)
                part = entries["key"] >> np.uint64(64 - bits) if bits else np.zeros(len(entries), np.uint64)
                for number, target in enumerate(targets):
                    target.write(entries[part == number].tobytes())
        self._files.written()
        return paths

    def _form(self, number: int) -> str:
        return normal_form(input_text(self._store.example(number).row))

    def _without_common(self, form: str) -> Shingles:
        every = shingles_of(form)
        if len(self._common):
            every = every[~np.isin(every, self._common)]
        return every if len(every) else np.array([text_hash(form)], np.uint64)

    def _recent_shingles(self, form: int) -> Shingles:
        found = self._cache.pop(form, None)
        if found is None:
            found = self._files.shingles(form)
            self._cached += len(found)
            while self._cache and self._cached > _CACHED_SHINGLES:
                self._cached -= len(self._cache.popitem(last=False)[1])
        self._cache[form] = found
        return found

    def _forms_of(self, split: str) -> npt.NDArray[np.bool_]:
        """Which forms the split has now."""
        has = np.zeros(len(self._form_of), bool)
        for (number,) in self._store.database.execute("SELECT number FROM rows WHERE split = ?", (split,)):
            has[self._form_of[number]] = True
        return has

    def _look(self, search: Search) -> None:
        """Compare the candidates that the search wants compared."""
        for path in self._partitions:
            self._store.check_stop()
            entries = np.fromfile(path, _ENTRY)
            entries.sort(order=["key", "form"])
            edges = np.flatnonzero(np.diff(entries["key"])) + 1
            for start, end in pairwise([0, *edges.tolist(), len(entries)]):
                if end - start > 1:
                    self._look_into(entries["form"][start:end], search)

    def _look_into(self, bucket: Numbers, search: Search) -> None:
        if not search.worth(bucket):
            return
        candidates = self._by_signature if len(bucket) <= _SMALL_BUCKET else self._by_rare_shingles
        for form, others in candidates(bucket):
            rest = search.open(form, others)
            while len(rest):
                other = int(rest[0])
                if self._similar(form, other):
                    search.hit(form, other)
                rest = search.open(form, rest[1:])

    def _similar(self, form: int, other: int) -> bool:
        pair = (min(form, other), max(form, other))
        if pair in self._rejected:
            return False
        similar = jaccard(self._recent_shingles(form), self._recent_shingles(other)) >= SIMILARITY
        if not similar:
            if len(self._rejected) >= _REJECTED_KEPT:
                self._rejected.clear()
            self._rejected.add(pair)
        return similar

    def _by_signature(self, bucket: Numbers) -> Iterator[tuple[int, Numbers]]:
        """Each form with those before it whose signature is not too different."""
        hashed = self._files.signatures(bucket)
        for at in range(1, len(bucket)):
            alike = (hashed[:at] == hashed[at]).mean(axis=1) >= _UNLIKELY
            yield int(bucket[at]), bucket[:at][alike]

    def _by_rare_shingles(self, bucket: Numbers) -> Iterator[tuple[int, Numbers]]:
        """Each form with those before it that can be similar enough: they share one of its rarest shingles.

        Prefix filtering (Chaudhuri et al. 2006, Bayardo et al. 2007): of n shingles in one common order, rare ones
        first, two sets at least 0.85 similar share one of their first n - ceil(0.85 n) + 1. Exact, and far from all
        pairs for texts of one template. A bucket that does not fit in memory is compared in blocks.
        """
        for block in self._blocks(bucket):
            sets = [self._files.shingles(int(form)) for form in block]
            values, counts = np.unique(np.concatenate(sets), return_counts=True)
            rank = np.empty(len(values), np.int64)
            rank[np.lexsort((values, counts))] = np.arange(len(values))
            sizes = np.array([len(each) for each in sets])
            having: dict[int, list[int]] = {}
            for at, each in enumerate(sets):
                ranks = np.sort(rank[np.searchsorted(values, each)])
                prefix = ranks[: len(ranks) - math.ceil(SIMILARITY * len(ranks)) + 1].tolist()
                lists = [having.setdefault(shingle, []) for shingle in prefix]
                before = np.unique(np.concatenate([np.array(each, np.int64) for each in lists]))
                shorter, longer = np.minimum(sizes[before], sizes[at]), np.maximum(sizes[before], sizes[at])
                yield int(block[at]), block[before[shorter >= SIMILARITY * longer]]
                for each_list in lists:
                    each_list.append(at)

    def _blocks(self, bucket: Numbers) -> Iterator[Numbers]:
        """The bucket in parts whose shingles fit in memory; like with like, by the signatures from some value on."""
        sizes = self._files.sizes(bucket)
        if sizes.sum() > _BLOCK_SHINGLES:
            hashed = np.roll(self._files.signatures(bucket), int(bucket[0]) % PERMUTATIONS, axis=1)
            order = np.lexsort(hashed.T[::-1])
            bucket, sizes = bucket[order], sizes[order]
        yield from np.split(bucket, np.flatnonzero(np.diff(np.cumsum(sizes) // _BLOCK_SHINGLES)) + 1)
