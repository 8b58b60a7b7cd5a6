"""From a source of the spec to examples: fetch, read, detect the format, parse; every bad row is counted."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, Protocol, cast

from finetune_api.common import SecretRef
from finetune_api.exit_codes import ExitCode
from finetune_api.job.data import Columns
from finetune_api.stages import Finding
from finetune_api.wording import counted
from finetune_runner.context import StageContext
from finetune_runner.data.fields import NoAnswerError, column_names
from finetune_runner.data.json_path import value_at
from finetune_runner.data.listing import Listing
from finetune_runner.data.records import BadRow, BadRows, Record, RowError
from finetune_runner.data.registry import modules_of
from finetune_runner.data.row_parts import annotations_of, as_parsed, with_system_prompt
from finetune_runner.data.rows import Message, Parsed, Row, make_row
from finetune_runner.data.source_files import Choice, Chosen, choose_files
from finetune_runner.errors import StageError

_LOOKED_AT = 20
_STOP_EVERY = 1000
_GROUP_DIGITS = 16
_SHOWN = 3
_PATTERN = re.compile(r"[*?\[]")
_NO_PATTERNS = "patterns are not read: name a folder, of which all data files are, or choose with subset and split"
_NO_ROWS = frozenset(["config.json", "dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"])
"""Files that the `datasets` library writes beside the rows (datasets/data_files.py, FILES_TO_IGNORE)."""


class Container(Protocol):
    """A module of `data/containers`."""

    EXTENSIONS: tuple[str, ...]

    def read(self, path: Path, name: str) -> Iterator[Record | BadRow]:
        """Rows of a file."""


class RowFormat(Protocol):
    """A module of `data/formats`."""

    NAME: str
    SHAPE: str
    RANK: int

    def matches(self, value: dict[str, Any], columns: Columns) -> bool:
        """Whether a row looks like this format."""

    def parse(self, value: dict[str, Any], columns: Columns) -> list[Message] | Parsed:
        """The row's messages, or what more a row of this format holds. Raises RowError."""


class SourceScheme(Protocol):
    """A module of `data/sources`."""

    SCHEMES: tuple[str, ...]

    def list_source(self, context: StageContext, uri: str, secret_ref: SecretRef | None, folder: Path) -> Listing:
        """What is there; copies go into the folder."""


@dataclass(frozen=True)
class Wanted:
    """One source as the spec names it."""

    place: str
    """Field of the spec, for example `data.train[0]`."""
    source: str
    format: str = "auto"
    columns: Columns = field(default_factory=Columns)
    secret_ref: SecretRef | None = None
    group_by: str | None = None
    choice: Choice = field(default_factory=Choice)
    """Subset and split."""
    system_prompt: str | None = None
    """For rows without a system message of their own."""
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """What the spec says about where the rows come from, for the lineage."""
    columns_of_train: bool = False
    """Whether `columns` is what data.train says: it counts where the rows have such columns."""
    judged: bool = False
    """Whether answers with a label are judged by it, whatever way it says true or false (objective kto)."""
    drop_empty_answers: bool = False
    """Whether rows whose answer has no text are left out, rather than refused."""
    columns_hint: str = ""
    """What to do about columns that no format knows, where it is not the spec that names them."""


@dataclass(frozen=True)
class DataFiles:
    """The data files of a source, on this machine."""

    paths: dict[str, Path]
    """By name."""
    revision: str = ""
    """Commit of a data set of the hub."""
    said: str = ""
    """What of the source was left out; empty when nothing was."""


@dataclass(frozen=True)
class Fetched:
    """The files of a source, on this machine, with what the lineage tells of them."""

    wanted: Wanted
    paths: dict[str, Path]
    """By name."""
    files: list[dict[str, Any]]
    """Name, bytes and sha256 of every file."""
    revision: str = ""
    """Commit of a data set of the hub."""
    said: str = ""
    """What of the source was left out; empty when nothing was."""


@dataclass(frozen=True)
class Loaded:
    """What a source gave."""

    rows: int
    format: str
    finding: Finding
    empty: Finding | None = None
    system_prompts_added: int = 0
    """Rows that got the spec's system prompt."""
    empty_answers: int = 0
    """Rows that were left out because their answer has no text."""

    @property
    def findings(self) -> list[Finding]:
        """What was seen, and what was left out."""
        return [self.finding, *([self.empty] if self.empty else [])]


def fetch(context: StageContext, wanted: Wanted, folder: Path) -> Fetched:
    """Bring a source's files here.

    Args:
        context: for storage, secrets and stopping.
        wanted: what to read.
        folder: where copies may be put.

    Raises:
        StageError: INVALID_DATA when there is no data file; SOURCE_NOT_FOUND, ACCESS_DENIED, STORAGE_UNAVAILABLE.
    """
    found = _data_files(context, wanted, folder)
    facts = [_facts(wanted.place, name, path) for name, path in found.paths.items()]
    return Fetched(wanted, found.paths, facts, found.revision, found.said)


def load(context: StageContext, fetched: Fetched, keep: Callable[[Row, str], object]) -> Loaded:
    """Read a fetched source, one row at a time.

    Args:
        context: for stopping.
        fetched: the files.
        keep: is given each row and its origin.

    Raises:
        StageError: INVALID_DATA naming file, row and fix.
    """
    wanted = fetched.wanted
    where = f"{wanted.place} ({wanted.source})"
    bad = BadRows()
    records = _records(context, fetched.paths, bad)
    first = list(islice(records, _LOOKED_AT))
    if not first:
        bad.raise_if_any(where)
        raise StageError(
            ExitCode.INVALID_DATA, f"{where}: {', '.join(fetched.paths)} has no rows", "give it rows, or leave it out"
        )
    if wanted.columns_of_train and not _has_mapped(first, wanted.columns):
        wanted = replace(wanted, columns=Columns())
    if wanted.judged:
        wanted = replace(wanted, columns=_judging(wanted.columns))
    row_format, saw = choose_format(first, wanted, bad)
    rows = added = 0
    empty: list[str] = []
    read_as: Counter[str] = Counter()
    for record in chain(first, records):
        try:
            parsed = as_parsed(row_format.parse(record.value, wanted.columns))
            parsed = replace(parsed, annotations=annotations_of(record.value, wanted.columns))
            group = _group(record, wanted.group_by)
        except NoAnswerError as error:
            if wanted.drop_empty_answers:
                empty.append(record.origin)
            else:
                bad.add(BadRow(record.file, record.position, error.message, error.hint))
            continue
        except RowError as error:
            seems = _other_format(record, row_format, wanted.columns)
            message = f"{error.message}; it looks like format {seems}" if seems else error.message
            hint = (
                f"give rows of format {seems} a file and an entry of data.train of their own" if seems else error.hint
            )
            bad.add(BadRow(record.file, record.position, message, hint))
            continue
        prompted = with_system_prompt(parsed, wanted.system_prompt)
        added += prompted is not parsed
        rows += 1
        read_as[parsed.read_as] += 1
        keep(make_row(prompted, group), record.origin)
    bad.raise_if_any(where)
    saw = "; ".join([saw, *(f"{count} of {counted(rows, 'row')} {words}" for words, count in read_as.items() if words)])
    if wanted.system_prompt is not None:
        saw = f"{saw}; data.systemPrompt was added to {added} of {counted(rows, 'row')}"
    message = "; ".join(filter(None, (f"{wanted.place}: {saw}", fetched.said)))
    finding = Finding(check="format", severity="info", message=message[:512], rows=rows)
    if not rows:
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{where}: data.checks.emptyAnswers dropped every row: "
            f"{counted(len(empty), '[answer has|answers have]')} no text",
            "name the column of the answers with columns, or give the rows answers",
        )
    return Loaded(rows, row_format.NAME, finding, _left_out(wanted, empty), added, len(empty))


def _left_out(wanted: Wanted, empty: Sequence[str]) -> Finding | None:
    if not empty:
        return None
    shown = ", ".join(empty[:_SHOWN]) + (f" and {len(empty) - _SHOWN} more" if len(empty) > _SHOWN else "")
    message = f"{wanted.place}: {counted(len(empty), 'answer')} without any text, dropped: {shown}"
    return Finding(check="emptyAnswers", severity="info", message=message[:512], rows=len(empty))


def _has_mapped(records: Sequence[Record], columns: Columns) -> bool:
    mapped = set(columns.to_wire().values())
    return any(mapped & record.value.keys() for record in records)


def _judging(columns: Columns) -> Columns:
    """The columns with a name for the judgement, so that a label of any kind is taken for one."""
    if columns.label or columns.chosen or columns.rejected or columns.messages or columns.conversations:
        return columns
    return columns.model_copy(update={"label": "label"})


def _records(context: StageContext, paths: dict[str, Path], bad: BadRows) -> Iterator[Record]:
    """The rows of all files; bad ones are counted instead."""
    for name, path in paths.items():
        for number, item in enumerate(_container(name).read(path, name)):
            if number % _STOP_EVERY == 0:
                context.check_stop()
            if isinstance(item, BadRow):
                bad.add(item)
            else:
                yield item


def _formats() -> dict[str, RowFormat]:
    modules = modules_of("finetune_runner.data.formats").values()
    return {item.NAME: item for item in (cast(RowFormat, module) for module in modules)}


def _other_format(record: Record, used: RowFormat, columns: Columns) -> str:
    """The format that a row looks like when it does not look like the one that is used; empty when there is none."""
    if used.matches(record.value, columns):
        return ""
    return next((name for name, item in _formats().items() if item.matches(record.value, columns)), "")


def choose_format(records: Sequence[Record], wanted: Wanted, bad: BadRows) -> tuple[RowFormat, str]:
    """The format asked for, or the one that at least half of the first rows look like, and words for what was seen.

    Raises:
        StageError: INVALID_DATA naming the columns that were seen, when no format fits.
    """
    formats = _formats()
    names = list(dict.fromkeys(column for record in records for column in record.value))
    columns = column_names(names, 12)
    if wanted.format != "auto":
        return formats[wanted.format], f"format {wanted.format} as asked for; columns: {columns}"
    scores = {name: sum(item.matches(r.value, wanted.columns) for r in records) for name, item in formats.items()}
    likely = [name for name, score in scores.items() if score * 2 >= len(records)]
    best = min(likely, key=lambda name: formats[name].RANK, default="")
    if not best:
        bad.raise_if_any(f"{wanted.place} ({wanted.source})")
        shapes = "; ".join(f"{item.NAME} ({item.SHAPE})" for item in formats.values())
        raise StageError(
            ExitCode.INVALID_DATA,
            f"{wanted.place} ({wanted.source}): {records[0].origin} has columns {columns}, which is none of: {shapes}",
            _columns_hint(wanted),
        )
    like = f"{scores[best]} of the first {counted(len(records), '[row has|rows have]')} {formats[best].SHAPE}"
    return formats[best], f"format {best}: {like}; columns: {columns}"


def _columns_hint(wanted: Wanted) -> str:
    if wanted.columns_hint:
        return wanted.columns_hint
    if wanted.place.startswith("data.train"):
        return (
            "rename the columns (a CSV begins with a line of their names), or map them, for example columns: "
            "{prompt: question, completion: answer}"
        )
    return "rename the columns, or name them as in data.train"


def _data_files(context: StageContext, wanted: Wanted, folder: Path) -> DataFiles:
    scheme = wanted.source.partition("://")[0]
    sources = [cast(SourceScheme, module) for module in modules_of("finetune_runner.data.sources").values()]
    source = next((item for item in sources if scheme in item.SCHEMES), None)
    if source is None:
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"{wanted.place}.source {wanted.source}: unknown scheme",
            f"use {', '.join(f'{s}://' for item in sources for s in item.SCHEMES)}",
        )
    where = f"{wanted.place} ({wanted.source})"
    try:
        listing = source.list_source(context, wanted.source, wanted.secret_ref, folder)
        readable = sorted(name for name in listing.names if _container_of(name) is not None)
        if not listing.single:
            readable = [name for name in readable if name.rpartition("/")[2] not in _NO_ROWS]
        if not readable:
            raise StageError(
                ExitCode.INVALID_DATA,
                f"{wanted.source} has no data file among {', '.join(sorted(listing.names)[:5]) or 'nothing'}",
                f"name files *{', *'.join(_extensions())}; JSONL, JSON and CSV also gzipped (.gz)",
            )
        if listing.single and (wanted.choice.subset or wanted.choice.split):
            raise StageError(
                ExitCode.INVALID_SPEC,
                f"{wanted.source} is one file: subset and split choose among the files of a folder or data set",
                "leave subset and split out, or name the folder",
            )
    except StageError as error:
        pattern = error.exit_code == ExitCode.SOURCE_NOT_FOUND and _PATTERN.search(wanted.source)
        hint = _NO_PATTERNS if pattern else error.hint
        raise StageError(error.exit_code, f"{wanted.place}: {error.message}", hint, error.evidence) from error
    chosen = Chosen(readable) if listing.single else choose_files(where, readable, wanted.choice, listing.card())
    try:
        return DataFiles(listing.copy(chosen.names), listing.revision, chosen.said)
    except StageError as error:
        raise StageError(error.exit_code, f"{wanted.place}: {error.message}", error.hint, error.evidence) from error


def _containers() -> list[Container]:
    return [cast(Container, module) for module in modules_of("finetune_runner.data.containers").values()]


def _extensions() -> list[str]:
    return [extension for container in _containers() for extension in container.EXTENSIONS]


def _container_of(name: str) -> Container | None:
    plain = name.lower().removesuffix(".gz")
    return next(
        (
            item
            for item in _containers()
            if not plain.rpartition("/")[2].startswith(".") and plain.endswith(item.EXTENSIONS)
        ),
        None,
    )


def _container(name: str) -> Container:
    found = _container_of(name)
    assert found is not None, name  # noqa: S101 - _data_files let only readable names through
    return found


def _group(record: Record, path: str | None) -> str:
    """What rows of one group share: a hash, since a customer's address may be what they are grouped by."""
    if path is None:
        return ""
    value = value_at(record.value, path)
    if value is None or isinstance(value, dict | list) or value != value:  # NaN: a gap in a column of numbers
        raise RowError(f"has no value at data.groupBy {path}", "add it to every row, or leave data.groupBy out")
    # A column with gaps holds its whole numbers as 1.0: the same group as 1 in another file.
    text = str(int(value) if isinstance(value, float) and value.is_integer() else value)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:_GROUP_DIGITS] if text else ""


def _facts(place: str, name: str, path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
            return {"name": name, "bytes": path.stat().st_size, "sha256": digest}
    except PermissionError as error:
        raise StageError(
            ExitCode.ACCESS_DENIED, f"{place}: no right to read {name}", "let the user that runs this read it"
        ) from error
    except OSError as error:
        raise StageError(
            ExitCode.SOURCE_NOT_FOUND,
            f"{place}: {name} cannot be read ({error.strerror})",
            "correct or remove it: a link may lead nowhere",
        ) from error
