"""spec.data: what is learned from, and what is held out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.common import JSONPath, SecretRef
from finetune_api.job.model import Source, source_rules

Format = Literal["auto", "chat", "alpaca", "promptCompletion", "preference"]
Column = Annotated[str, Field(min_length=1, max_length=128)]

PREFERENCE_RULE = Rule(
    cel="!has(self.format) || self.format != 'preference'",
    message="format preference belongs to objective dpo, which is not available in this version; "
    "use chat, alpaca or promptCompletion",
    holds=lambda s: s.format != "preference",
    field_path="format",
)


class Columns(Contract):
    """Names of the columns when they differ from the format's own."""

    messages: Annotated[Column | None, Field(description="Column with the list of messages. Default `messages`.")] = (
        None
    )
    prompt: Annotated[
        Column | None, Field(description="Column with the input. Default `prompt` (alpaca: `instruction`).")
    ] = None
    completion: Annotated[
        Column | None, Field(description="Column with the answer. Default `completion` (alpaca: `output`).")
    ] = None
    system: Annotated[Column | None, Field(description="Column with a system prompt per row. Default `system`.")] = None

    RULES = (
        Rule(
            cel="!has(self.messages) || (!has(self.prompt) && !has(self.completion) && !has(self.system))",
            message="columns.messages belongs to chat rows, prompt, completion and system to the others; keep one kind",
            holds=lambda c: c.messages is None or (c.prompt is None and c.completion is None and c.system is None),
        ),
    )


class Dataset(Contract):
    """One file or folder of rows: JSONL (plain or gzip), JSON, CSV or Parquet, by its extension."""

    source: Annotated[
        Source,
        Field(
            description="`s3://bucket/key`, `hf://datasets/owner/name/file` (`owner/name@revision` for another than "
            "`main`), `pvc://claim/path`, `oci://registry/image:tag/path`; `file://path` only without a cluster. A "
            "folder means all data files in it, in the order of their names; see subset and split."
        ),
    ]
    subset: Annotated[
        str | None,
        Field(
            description="Which part of a folder or data set: a configuration of the data set's card (`configs:`), "
            "else a subfolder. Default: the card's default configuration; else the files directly in the folder, or "
            "in its folder `data`.",
            min_length=1,
            max_length=128,
            pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*(/[A-Za-z0-9_][A-Za-z0-9_.+-]*)*$",
        ),
    ] = None
    split: Annotated[
        str | None,
        Field(
            description="Which split's files: as the data set's card says, else by their names "
            "(`train-00000-of-00002.parquet`, `dev.jsonl`, `test/a.csv`). Default: `train` where the source has such "
            "files, else all. data.validation and data.test take the split of their own name where there is one.",
            min_length=1,
            max_length=64,
            pattern=r"^[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*$",
        ),
    ] = None
    format: Annotated[
        Format,
        Field(
            description="Layout of a row: `chat` (messages with role and content), `alpaca` (instruction, input, "
            "output), `promptCompletion` (prompt, completion). `auto` looks at the first rows and says what it saw."
        ),
    ] = "auto"
    weight: Annotated[
        float,
        Field(
            description="How often each train row is used per epoch: 1 once, 2 twice, 0.5 every second row. "
            "Range 0.01-100.",
            ge=0.01,
            le=100,
        ),
    ] = 1.0
    columns: Annotated[Columns | None, Field(description="Column names that differ from the format's own.")] = None
    secret_ref: Annotated[SecretRef | None, Field(description="Secret to read this source with.")] = None

    RULES = (*source_rules(), PREFERENCE_RULE)


class _Holdout(Contract):
    """A split of its own file, or a share of data.train."""

    source: Annotated[
        Source | None, Field(description="A file of its own for this split, instead of a share of data.train.")
    ] = None
    format: Annotated[Format, Field(description="Layout of a row of `source`; see data.train[].format.")] = "auto"
    secret_ref: Annotated[SecretRef | None, Field(description="Secret to read `source` with.")] = None

    RULES = (
        *source_rules(optional=True),
        PREFERENCE_RULE,
        Rule(
            cel="has(self.source) || (self.format == 'auto' && !has(self.secretRef))",
            message="format and secretRef of a split describe its own source; add source, or leave them out",
            holds=lambda s: s.source is not None or (s.format == "auto" and s.secret_ref is None),
            field_path="source",
        ),
    )


class Validation(_Holdout):
    """The split that steers training."""

    fraction: Annotated[
        float,
        Field(
            description="Share of the clusters of data.train kept for validation; without meaning beside `source`. "
            "Range 0.01-0.3, default 0.1.",
            ge=0.01,
            le=0.3,
        ),
    ] = 0.1


class Test(_Holdout):
    """The split nobody sees but baseline and release evaluation."""

    __test__ = False

    fraction: Annotated[
        float,
        Field(
            description="Share of the clusters of data.train kept for test; raised towards 200 rows where the data "
            "allow, never above 0.3; without meaning beside `source`. Range 0.01-0.3, default 0.15.",
            ge=0.01,
            le=0.3,
        ),
    ] = 0.15


class Replay(Contract):
    """General data mixed into training so that the base forgets less."""

    source: Annotated[Source, Field(description="Where the general rows are; see data.train[].source.")]
    format: Annotated[Format, Field(description="Layout of a row; see data.train[].format.")] = "auto"
    fraction: Annotated[
        float,
        Field(description="Share of the training mix that is replay. Range 0.01-0.9, default 0.15.", ge=0.01, le=0.9),
    ] = 0.15
    secret_ref: Annotated[SecretRef | None, Field(description="Secret to read this source with.")] = None

    RULES = (*source_rules(), PREFERENCE_RULE)


class Checks(Contract):
    """What is checked before a GPU is held."""

    minimum_rows: Annotated[
        int,
        Field(
            description="Fewer usable train rows than this end the job with InvalidData. Default 50: below it a "
            "prompt with examples usually beats tuning.",
            ge=1,
            le=100_000_000,
        ),
    ] = 50
    duplicates: Annotated[
        Literal["drop", "warn", "fail"],
        Field(description="Exact duplicates: keep the first (`drop`), report only (`warn`), or end the job (`fail`)."),
    ] = "drop"
    pii: Annotated[
        Literal["ignore", "redact"],
        Field(description="Personal data in rows. `redact` is not available in this version and is refused."),
    ] = "ignore"

    RULES = (
        Rule(
            cel="self.pii == 'ignore'",
            message="pii: redact is not available in this version; redact before upload and set pii: ignore",
            holds=lambda s: s.pii == "ignore",
            field_path="pii",
        ),
    )


class Data(Contract):
    """The data of the job."""

    train: Annotated[
        list[Dataset],
        Field(
            description="Rows to learn from; they are also what validation and test are split off.",
            min_length=1,
            max_length=16,
        ),
    ]
    validation: Annotated[Validation, Field(description="Steers early stopping and the choice of the checkpoint.")] = (
        Validation()
    )
    test: Annotated[Test, Field(description="Judges baseline and result; train pods never read it.")] = Test()
    replay: Annotated[Replay | None, Field(description="General data mixed into training against forgetting.")] = None
    checks: Annotated[Checks, Field(description="Checks made before a GPU is held.")] = Checks()
    group_by: Annotated[
        JSONPath | None,
        Field(
            description="Rows with the same value here (a customer, a conversation) stay in one split, for example "
            "`$.customer_id`. Default: near-duplicate clusters."
        ),
    ] = None

    RULES = (
        Rule(
            cel="has(self.validation.source) || has(self.test.source) || "
            "self.validation.fraction + self.test.fraction <= 0.5",
            message="data.validation.fraction + data.test.fraction must not exceed 0.5; lower one of them",
            holds=lambda d: (
                bool(d.validation.source or d.test.source) or d.validation.fraction + d.test.fraction <= 0.5
            ),
            field_path="test.fraction",
        ),
    )
