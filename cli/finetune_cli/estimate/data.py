"""Rows and tokens of a job, from local files or from two numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import ModelFacts, PrepareResult, RowCounts, TokenLengths
from finetune_cli.errors import CliError
from finetune_cli.jobfile import FILE_SCHEME
from finetune_cli.sampling import EXTENSIONS, SAMPLE_ROWS, sample_rows

CHARACTERS_PER_TOKEN = 4.0
"""Of Latin text, the usual rule of thumb; other scripts take more tokens."""
OTHER_CHARACTERS_PER_TOKEN = 1.5
TEMPLATE_TOKENS = 12
"""Roles and turn marks that a chat template adds to a row."""
TEST_ROWS_WANTED, TEST_SHARE_MOST, TEST_SHARE_STEP = 220, 0.3, 0.05
"""How prepare raises the test share for small data (runner, data/splitting.py)."""
LONGEST_TO_MEAN = 1.5
"""Longest row against the mean where only --tokens-per-row is known; assumed."""


@dataclass(frozen=True)
class Counted:
    """What is known of the rows that train, validation and test are taken from."""

    rows: int
    lengths: tuple[int, ...]
    """Tokens of a sample of rows."""
    origin: str

    @property
    def mean(self) -> float:
        """Tokens of a mean row."""
        return sum(self.lengths) / len(self.lengths)


def counted(spec: FineTuneJobSpec, rows: int | None, tokens_per_row: int | None) -> Counted:
    """Rows of data.train. Options win over files.

    Raises CliError when the data are elsewhere and the numbers are not given, or a file cannot be read.
    """
    if rows is not None and tokens_per_row is not None:
        spread = round((LONGEST_TO_MEAN - 1) * tokens_per_row)
        lengths = (tokens_per_row - spread, tokens_per_row, tokens_per_row + spread)
        return Counted(rows, lengths, "as given")
    local = [dataset for dataset in spec.data.train if dataset.source.startswith(FILE_SCHEME)]
    if len(local) < len(spec.data.train):
        raise CliError("data.train is not on this machine", "Say how much there is: --rows 10000 --tokens-per-row 400.")
    total, sampled = 0.0, []
    for dataset in local:
        for file in _files(Path(dataset.source.removeprefix(FILE_SCHEME))):
            some = sample_rows(file)
            total += _all_rows(file, some) * dataset.weight
            sampled += [_tokens(row) for row in some]
    if tokens_per_row is not None:
        sampled = [tokens_per_row]
    names = ", ".join(Path(dataset.source).name for dataset in local)
    about = f"{names}; tokens are estimated, about {CHARACTERS_PER_TOKEN:g} characters each"
    return Counted(rows if rows is not None else round(total), tuple(sampled), about)


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(item for item in path.iterdir() if item.name.removesuffix(".gz").endswith(EXTENSIONS))
        if files:
            return files
        raise CliError(f"{path} holds no data files", f"Use files that end in {', '.join(EXTENSIONS)}.")
    return [path]


def _all_rows(file: Path, sample: list[dict[str, Any]]) -> int:
    """Rows of a file of which only the first were read: by its size, when its rows are lines."""
    if len(sample) < SAMPLE_ROWS or file.suffix not in (".jsonl", ".ndjson"):
        return len(sample)
    mean_bytes = sum(len(json.dumps(row, ensure_ascii=False).encode()) + 1 for row in sample) / len(sample)
    return max(len(sample), round(file.stat().st_size / mean_bytes))


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for member in value.values():
            yield from _texts(member)
    elif isinstance(value, list):
        for member in value:
            yield from _texts(member)


def _tokens(row: dict[str, Any]) -> int:
    text = "".join(_texts(row))
    latin = sum(character.isascii() for character in text)
    return TEMPLATE_TOKENS + round(latin / CHARACTERS_PER_TOKEN + (len(text) - latin) / OTHER_CHARACTERS_PER_TOKEN)


def _test_share(fraction: float, rows: int) -> float:
    wanted = math.ceil(TEST_ROWS_WANTED / max(rows, 1) / TEST_SHARE_STEP) * TEST_SHARE_STEP
    return max(fraction, min(wanted, TEST_SHARE_MOST))


def prepared(spec: FineTuneJobSpec, facts: ModelFacts, data: Counted) -> PrepareResult:
    """What prepare would report, as far as it can be known. Splits of their own files count as their usual shares."""
    validation = round(data.rows * spec.data.validation.fraction)
    test = round(data.rows * _test_share(spec.data.test.fraction, data.rows))
    taken = (0 if spec.data.validation.source else validation) + (0 if spec.data.test.source else test)
    train = max(0, data.rows - taken)
    share = spec.data.replay.fraction if spec.data.replay is not None else 0.0
    replay = round(train * share / (1 - share))
    limit = spec.training.max_length
    ordered = sorted(data.lengths)
    mean = sum(min(length, limit) for length in ordered) / len(ordered)
    return PrepareResult(
        revision="",
        model_digest="",
        model=facts,
        rows=RowCounts(train=train, validation=validation, test=test, replay=replay),
        train_tokens=round((train + replay) * mean),
        lengths=TokenLengths(
            p50=ordered[len(ordered) // 2],
            p95=ordered[min(int(0.95 * len(ordered)), len(ordered) - 1)],
            maximum=ordered[-1],
            over_maximum=sum(length > limit for length in ordered),
        ),
        data_digest="",
        test_digest="",
    )
