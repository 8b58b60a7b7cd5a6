"""Near-duplicates of inputs over all splits, on disk: MinHash finds candidates, the exact Jaccard similarity decides.

Broder 1997 (resemblance), Leskovec et al., Mining of Massive Datasets, chapter 3 (bands). Shingles of three words and
0.85: templated texts that differ in a name or a number stay apart. With 16 bands of 4 a pair at 0.85 is missed once in
130,000 times. Signatures and bands are files of the scratch folder; a bucket is looked at one at a time. In memory
remain some 30 bytes per row.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import unicodedata
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import numpy as np
import numpy.typing as npt
from datasketch import MinHash

from finetune_runner.data.row_store import RowStore
from finetune_runner.data.rows import Row

Numbers = npt.NDArray[np.int64]
Shingles = npt.NDArray[np.uint64]

SIMILARITY = 0.85
_PERMUTATIONS = 64
_SCHEME = "affine32"
_BANDS = 16
_UNLIKELY = 0.6
"""An estimate below this is five standard deviations under SIMILARITY: no exact test is needed."""
_SHINGLE_WORDS = 3
_COMMON_SHARE = 0.5
_COMMON_FROM_ROWS = 20
_SAMPLE_ROWS = 2000
_SAMPLE_SHINGLES = 2_000_000
_AT_ONCE = 10_000
_CHUNK_ROWS = 2000
_PARTITION_ENTRIES = 1 << 18
_PARTITIONS_MOST = 256
_SMALL_BUCKET = 32
_BLOCK_SHINGLES = 2_000_000
_CACHED_SHINGLES = 2_000_000
_REJECTED_KEPT = 200_000
_UNSPACED = (
    "\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"  # kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003fffd"  # Han
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ebd\u0ec0-\u0ece"  # Thai, Lao
    "\u1000-\u103f\u1050-\u109d\u1780-\u17d3"  # Myanmar, Khmer
)
"""Characters of scripts that put no spaces between words: each counts as a word."""
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_ENTRY = np.dtype([("key", "<u8"), ("form", "<i8")])
_HEAD = np.dtype([("start", "<i8"), ("size", "<i8"), ("signature", "<u4", (_PERMUTATIONS,))])
_PRIME = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def input_text(row: Row) -> str:
    """What a row asks: its prompt without system messages, which are usually the same everywhere. Plain text: all."""
    if not row.prompt:
        return row.answer
    return "\n".join(message["content"] for message in row.prompt if message["role"] != "system")


def normal_form(text: str) -> str:
    """Text without differences of case, white space and punctuation, its words apart (see `_UNSPACED`)."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return " ".join(words) or text.strip()


def jaccard(one: Shingles, other: Shingles) -> float:
    """Shared shingles over all shingles of two inputs."""
    both = len(np.intersect1d(one, other, assume_unique=True))
    return both / (len(one) + len(other) - both)


def shingles_of(form: str) -> Shingles:
    """Sorted 64-bit hashes of the form's three-word shingles; a shorter form is one shingle."""
    words = form.split()
    if len(words) < _SHINGLE_WORDS:
        return np.array([_hash(form)], np.uint64)
    hashes = np.fromiter(map(_hash, words), np.uint64, len(words))
    return np.unique(_combined([hashes[at : len(hashes) - _SHINGLE_WORDS + 1 + at] for at in range(_SHINGLE_WORDS)]))


class _Search(Protocol):
    """What a pass over the candidates looks for."""

    def worth(self, bucket: Numbers) -> bool:
        """Whether a bucket of candidates holds a pair that is still to be compared."""

    def open(self, form: int, others: Numbers) -> Numbers:
        """Those of the others that are still to be compared with the form."""

    def hit(self, form: int, other: int) -> None:
        """They are near-duplicates."""


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
        self._common = self._find_common()
        self._cache: OrderedDict[int, Shingles] = OrderedDict()
        self._cached = 0
        self._rejected: set[tuple[int, int]] = set()
        self._files = _IndexFiles(Path(self._folder.name))
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

        Rows are of one cluster when a chain of near-duplicates within the split joins them.

        Args:
            split: whose rows are compared with each other.
            for_leaks: `leaks` need not compare forms of two of these clusters again. One split at a time: the last.
        """
        within = self._forms_of(split)
        search = _Joining(len(self._form_of), within)
        self._look(search)
        database = self._store.database
        roots = search.roots(self._form_of)
        if for_leaks:
            self._roots = np.where(within, search.roots(np.arange(len(roots))), 0)
        smallest = np.full(len(roots), np.iinfo(np.uint64).max, np.uint64)
        for number, row_id in database.execute("SELECT number, id FROM rows WHERE split = ?", (split,)):
            smallest[roots[number]] = min(smallest[roots[number]], np.uint64(int(row_id, 16)))
        database.create_function("cluster_key", 1, lambda number: f"{int(smallest[roots[number]]):016x}")
        database.execute(
            "UPDATE rows SET cluster = CASE cluster WHEN '' THEN cluster_key(number) ELSE 'group:' || cluster END "
            "WHERE split = ?",
            (split,),
        )

    def leaks(self, split: str, held_out: Sequence[str]) -> Iterator[tuple[int, int]]:
        """Rows of a split that are near-duplicates of a row of the held-out splits: their numbers and one of those."""
        learned, held_rows = self._forms_of(split), np.zeros(len(self._form_of), np.int64)
        for other in held_out:
            for (number,) in self._store.database.execute("SELECT number FROM rows WHERE split = ?", (other,)):
                held_rows[self._form_of[number]] = number  # a form may be named after a row of `split` itself
        held = held_rows > 0
        search = _Leaking(learned, held, self._roots)
        if learned.any() and held.any():
            self._look(search)
        for (number,) in self._store.database.execute(
            "SELECT number FROM rows WHERE split = ? ORDER BY number", (split,)
        ):
            near = int(search.found[self._form_of[number]])
            if near:
                yield number, int(held_rows[near])

    def _find_forms(self) -> Numbers:
        """The form of each row, by the row's number; row 0 does not exist."""
        database = self._store.database
        database.execute("DROP TABLE IF EXISTS inputs")
        database.execute("CREATE TABLE inputs(number INTEGER PRIMARY KEY, digest BLOB, came_from TEXT)")
        last = 0
        for split in self._store.splits():
            waiting: list[tuple[int, bytes, str]] = []
            for example in self._store.examples(split):
                form = normal_form(input_text(example.row))
                waiting.append((example.number, hashlib.sha256(form.encode()).digest()[:16], split))
                last = max(last, example.number)
                if len(waiting) >= _CHUNK_ROWS:
                    self._store.check_stop()
                    database.executemany("INSERT INTO inputs VALUES (?, ?, ?)", waiting)
                    waiting = []
            database.executemany("INSERT INTO inputs VALUES (?, ?, ?)", waiting)
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
        wanted = max(len(forms) * _BANDS / _PARTITION_ENTRIES, 1)
        bits = min(math.ceil(math.log2(wanted)), int(math.log2(_PARTITIONS_MOST)))
        paths = [Path(self._folder.name) / f"bands-{number}" for number in range(1 << bits)]
        with ExitStack() as stack:
            targets = [stack.enter_context(path.open("wb")) for path in paths]
            for start in range(0, len(forms), _CHUNK_ROWS):
                self._store.check_stop()
                chunk = forms[start : start + _CHUNK_ROWS]
                hashed = np.empty((len(chunk), _PERMUTATIONS), np.uint32)
                for at, form in enumerate(chunk):
                    shingles = self._without_common(self._form(int(form)))
                    hashed[at] = _signature(shingles)
                    self._files.write(int(form), hashed[at], shingles)
                entries = np.empty(len(chunk) * _BANDS, _ENTRY)
                entries["key"] = _band_keys(hashed).ravel()
                entries["form"] = np.repeat(chunk, _BANDS)
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
        return every if len(every) else np.array([_hash(form)], np.uint64)

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

    def _look(self, search: _Search) -> None:
        """Compare the candidates that the search wants compared."""
        for path in self._partitions:
            self._store.check_stop()
            entries = np.fromfile(path, _ENTRY)
            entries.sort(order=["key", "form"])
            edges = np.flatnonzero(np.diff(entries["key"])) + 1
            for start, end in pairwise([0, *edges.tolist(), len(entries)]):
                if end - start > 1:
                    self._look_into(entries["form"][start:end], search)

    def _look_into(self, bucket: Numbers, search: _Search) -> None:
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
            hashed = np.roll(self._files.signatures(bucket), int(bucket[0]) % _PERMUTATIONS, axis=1)
            order = np.lexsort(hashed.T[::-1])
            bucket, sizes = bucket[order], sizes[order]
        yield from np.split(bucket, np.flatnonzero(np.diff(np.cumsum(sizes) // _BLOCK_SHINGLES)) + 1)


class _IndexFiles:
    """Signature and shingles of each form, found by the form's number."""

    def __init__(self, folder: Path) -> None:
        self._heads = (folder / "heads").open("w+b")
        self._shingles = (folder / "shingles").open("w+b")
        self._end = 0

    def write(self, form: int, signature: npt.NDArray[np.uint32], shingles: Shingles) -> None:
        """Append a form's shingles and write its head."""
        head = np.zeros((), _HEAD)
        head["start"], head["size"], head["signature"] = self._end, len(shingles), signature
        self._heads.seek(form * _HEAD.itemsize)
        self._heads.write(head.tobytes())
        self._shingles.write(shingles.tobytes())
        self._end += shingles.nbytes

    def written(self) -> None:
        """Call after the last `write`: what is buffered goes to the files."""
        self._heads.flush()
        self._shingles.flush()

    def signatures(self, forms: Numbers) -> npt.NDArray[np.uint32]:
        """Signatures of forms, (forms, permutations)."""
        return np.array([self._head(int(form))["signature"] for form in forms], np.uint32)

    def sizes(self, forms: Numbers) -> Numbers:
        """How many shingles each form has."""
        return np.array([self._head(int(form))["size"] for form in forms], np.int64)

    def shingles(self, form: int) -> Shingles:
        """Sorted shingles of a form."""
        head = self._head(form)
        data = os.pread(self._shingles.fileno(), int(head["size"]) * 8, int(head["start"]))
        return np.frombuffer(data, np.uint64)

    def close(self) -> None:
        """Close the files."""
        self._heads.close()
        self._shingles.close()

    def _head(self, form: int) -> npt.NDArray[np.void]:
        data = os.pread(self._heads.fileno(), _HEAD.itemsize, form * _HEAD.itemsize)
        return np.frombuffer(data, _HEAD).reshape(())


class _Joining:
    """Union of the near-duplicates within one split; the smaller form becomes the root."""

    def __init__(self, size: int, within: npt.NDArray[np.bool_]) -> None:
        self._parent = np.arange(size)
        self._within = within

    def roots(self, forms: Numbers) -> Numbers:
        """The smallest form of each form's cluster."""
        found: Numbers = self._parent[forms]
        while True:
            higher: Numbers = self._parent[found]
            if np.array_equal(higher, found):
                self._parent[forms] = found
                return found
            found = higher

    def worth(self, bucket: Numbers) -> bool:
        """See _Search."""
        return len(np.unique(self.roots(bucket[self._within[bucket]]))) > 1

    def open(self, form: int, others: Numbers) -> Numbers:
        """See _Search."""
        if not len(others) or not self._within[form]:
            return others[:0]
        inside: Numbers = others[self._within[others]]
        apart: Numbers = inside[self.roots(inside) != self.roots(np.array([form]))[0]]
        return apart

    def hit(self, form: int, other: int) -> None:
        """See _Search."""
        low, high = sorted(self.roots(np.array([form, other])).tolist())
        self._parent[high] = low


class _Leaking:
    """Forms that are learned from and near a held-out one.

    Where the clusters are known (`roots`, 0 = not), forms of two clusters have been compared and are not near.
    """

    def __init__(self, learned: npt.NDArray[np.bool_], held: npt.NDArray[np.bool_], roots: Numbers) -> None:
        self._learned, self._held, self._roots = learned, held, roots
        self.found = np.where(learned & held, np.arange(len(learned)), 0)
        """By form: the held-out form it is near to; 0 = none."""

    def worth(self, bucket: Numbers) -> bool:
        """See _Search."""
        asking = bucket[self._learned[bucket] & (self.found[bucket] == 0)]
        held = bucket[self._held[bucket]]
        if not len(asking) or not len(held):
            return False
        roots = self._roots[asking], self._roots[held]
        return not roots[0].all() or not roots[1].all() or bool(np.isin(*roots).any())

    def open(self, form: int, others: Numbers) -> Numbers:
        """See _Search."""
        asks = self._learned[form] and not self.found[form]
        wanted = (self._held[others] & asks) | (self._learned[others] & (self.found[others] == 0) & self._held[form])
        mine, theirs = self._roots[form], self._roots[others]
        chosen: Numbers = others[wanted & ((mine == theirs) | (mine == 0) | (theirs == 0))]
        return chosen

    def hit(self, form: int, other: int) -> None:
        """See _Search."""
        for one, held in ((form, other), (other, form)):
            if self._learned[one] and self._held[held] and not self.found[one]:
                self.found[one] = held


def _signature(shingles: Shingles) -> npt.NDArray[np.uint32]:
    hashes = shingles & np.uint64(0xFFFFFFFF)
    minimum = MinHash(num_perm=_PERMUTATIONS, hashfunc=int, permutations=_permutations(), scheme=_SCHEME)
    for start in range(0, len(hashes), _AT_ONCE):
        minimum.update_batch(hashes[start : start + _AT_ONCE].tolist())
    return np.asarray(minimum.hashvalues, np.uint32)


@lru_cache(maxsize=1 << 16)
def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


@lru_cache(maxsize=1)
def _permutations() -> npt.NDArray[np.uint32]:
    return np.asarray(MinHash(num_perm=_PERMUTATIONS, scheme=_SCHEME).permutations, np.uint32)


def _combined(columns: Sequence[Shingles]) -> Shingles:
    """One hash of several, in their order."""
    total = columns[0] * _PRIME
    for column in columns[1:]:
        total = (total ^ (total >> np.uint64(29))) * _MIX + column * _PRIME
    return total ^ (total >> np.uint64(32))


def _band_keys(hashed: npt.NDArray[np.uint32]) -> Shingles:
    """Keys of all bands of signatures, (rows, bands)."""
    bands = hashed.reshape(len(hashed), _BANDS, -1).astype(np.uint64)
    number = np.broadcast_to(np.arange(_BANDS, dtype=np.uint64), bands.shape[:2])
    return _combined([number, *(bands[:, :, at] for at in range(bands.shape[2]))])
