"""What became of the rows of each source: in which split they ended, and sources that ended with nothing."""

from __future__ import annotations

from collections.abc import Mapping

from finetune_api.wording import counted
from finetune_runner.data.checking import Remark
from finetune_runner.data.row_store import RowStore
from finetune_runner.data.wanted import POOL, SplitSource

_KEPT = "SELECT split, count(*) FROM rows WHERE split IS NOT NULL AND number > ? AND number <= ? GROUP BY split"


def rows_kept(store: RowStore, after: int, until: int) -> dict[str, int]:
    """Rows of a source by the split they are in now; its rows were read behind number `after`, up to `until`."""
    return dict(store.database.execute(_KEPT, (after, until)))


def emptied(named: SplitSource, rows: int, kept: Mapping[str, int]) -> list[Remark]:
    """A remark about a source of which nothing is left where it was meant to be; replay tells that by itself.

    Args:
        named: the source.
        rows: that were read from it.
        kept: what is left, by split.
    """
    target = "train" if named.split == POOL else named.split
    if kept.get(target) or target == "replay":
        return []
    place = named.wanted.place
    why = f"checks and weight {named.weight:g}" if named.weight != 1 else "checks"
    elsewhere = " and ".join(f"{count} in {split}" for split, count in kept.items())
    left = f"nothing is left in {target} of its {counted(rows, 'row')}"
    message = f"{place} ({named.wanted.source}): {left}" + (f" ({elsewhere})" if elsewhere else "")
    hint = f"see what {why} took, or leave {place} out"
    return [Remark("sources", "warning", f"{message}; {hint}", rows)]
