"""Numbers and their words agree."""

from __future__ import annotations

import pytest

from finetune_api.wording import agreeing, counted


@pytest.mark.parametrize(
    ("count", "words", "said"),
    [
        (0, "row", "0 rows"), (1, "row", "1 row"), (2, "row", "2 rows"), (1, "train row", "1 train row"),
        (1, "[row has|rows have] no answer", "1 row has no answer"),
        (0, "[row has|rows have] no answer", "0 rows have no answer"),
        (2, "[class has|classes have] few rows in data.train[0]", "2 classes have few rows in data.train[0]"),
        (1, "[answer loses its|answers lose their] end[|s]", "1 answer loses its end"),
        (3, "[answer loses its|answers lose their] end[|s]", "3 answers lose their ends"),
    ],
)  # fmt: skip
def test_counted(count: int, words: str, said: str) -> None:
    assert counted(count, words) == said
    assert agreeing(count, words) == said.split(" ", 1)[1]
