"""spec.data: what is learned from, and what is held out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract, Rule
from finetune_api.common import JSONPath, SecretRef
from finetune_api.job.model import Source, source_rules

Format = Literal["auto", "chat", "alpaca", "promptCompletion", "preference", "text"]
Column = Annotated[str, Field(min_length=1, max_length=128)]


class Columns(Contract):
    """Names of the columns when they differ from the format's own."""

    messages: Annotated[Column | None, Field(description="Column with the list of messages. Default `messages`.")] = (
        None
    )
    conversations: Annotated[
        Column | None,
        Field(description="Column with ShareGPT's list of `from` and `value`. Default `conversations`."),
    ] = None
    prompt: Annotated[
        Column | None, Field(description="Column with the input. Default `prompt` (alpaca: `instruction`).")
    ] = None
    completion: Annotated[
        Column | None, Field(description="Column with the answer. Default `completion` (alpaca: `output`).")
    ] = None
    system: Annotated[Column | None, Field(description="Column with a system prompt per row. Default `system`.")] = None
    chosen: Annotated[
        Column | None, Field(description="Column with the better answer (preference). Default `chosen`.")
    ] = None
    rejected: Annotated[
        Column | None, Field(description="Column with the worse answer (preference). Default `rejected`.")
    ] = None
    label: Annotated[
        Column | None,
        Field(
            description="Column that says whether an answer is wanted, true or false, 1 or 0 (KTO). Default `label`."
        ),
    ] = None
    text: Annotated[Column | None, Field(description="Column with plain text (text). Default `text`.")] = None
    annotations: Annotated[
        Column | None,
        Field(
            description="Column with the labels that several people gave the row, a list or an object by person; only "
            "for the check `agreement`. Default `annotations`."
        ),
    ] = None

    RULES = (
        Rule(
            cel="(!has(self.messages) && !has(self.conversations)) || (!has(self.prompt) && !has(self.completion) && "
            "!has(self.chosen) && !has(self.rejected) && !has(self.label))",
            message="columns.messages belongs to chat rows, prompt, completion, chosen, rejected and label to the "
            "others; keep one kind",
            holds=lambda c: (
                (c.messages is None and c.conversations is None)
                or not (c.prompt or c.completion or c.chosen or c.rejected or c.label)
            ),
        ),
        Rule(
            cel="!has(self.messages) || !has(self.conversations)",
            message="columns.messages and columns.conversations name the same list; keep one of them",
            holds=lambda c: c.messages is None or c.conversations is None,
            field_path="conversations",
        ),
        Rule(
            cel="!has(self.label) || (!has(self.chosen) && !has(self.rejected))",
            message="columns.label judges one answer, chosen and rejected compare two; keep one kind",
            holds=lambda c: c.label is None or (c.chosen is None and c.rejected is None),
            field_path="label",
        ),
        Rule(
            cel="!has(self.text) || (!has(self.messages) && !has(self.conversations) && !has(self.prompt) && "
            "!has(self.completion) && !has(self.system) && !has(self.chosen) && !has(self.rejected) && "
            "!has(self.label))",
            message="columns.text belongs to plain text, which has no other part; leave the others out, or use prompt "
            "for an input",
            holds=lambda c: (
                c.text is None
                or not (
                    c.messages
                    or c.conversations
                    or c.prompt
                    or c.completion
                    or c.system
                    or c.chosen
                    or c.rejected
                    or c.label
                )
            ),
            field_path="text",
        ),
    )


class Provenance(Contract):
    """Where a data set comes from and what it may be used for; recorded in the lineage of every version."""

    origin: Annotated[
        str | None,
        Field(
            description="Where the rows come from, for example `support tickets 2025, exported by team-a`. At most "
            "512 characters.",
            min_length=1,
            max_length=512,
        ),
    ] = None
    licence: Annotated[
        str | None,
        Field(
            description="Licence of the data, best an SPDX identifier such as `CC-BY-4.0`, or `proprietary`. At most "
            "128 characters.",
            min_length=1,
            max_length=128,
        ),
    ] = None
    collected_at: Annotated[
        str | None,
        Field(
            description="When the rows were collected: a year, a month or a day, `2025`, `2025-11` or `2025-11-30`.",
            max_length=10,
            pattern=r"^[0-9]{4}(-(0[1-9]|1[0-2])(-(0[1-9]|[12][0-9]|3[01]))?)?$",
        ),
    ] = None
    contact: Annotated[
        str | None,
        Field(
            description="Who answers for the data: a team or a mail address. At most 256 characters.",
            min_length=1,
            max_length=256,
        ),
    ] = None


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
            "output), `promptCompletion` (prompt, completion), `preference` (prompt, chosen, rejected, or prompt, "
            "completion, label), `text` (plain text). `auto` looks at the first rows and says what it saw."
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
    provenance: Annotated[
        Provenance | None, Field(description="Origin, licence, date and contact, recorded in the lineage.")
    ] = None
    secret_ref: Annotated[SecretRef | None, Field(description="Secret to read this source with.")] = None

    RULES = source_rules()


class _Holdout(Contract):
    """A split of its own file, or a share of data.train."""

    source: Annotated[
        Source | None, Field(description="A file of its own for this split, instead of a share of data.train.")
    ] = None
    format: Annotated[Format, Field(description="Layout of a row of `source`; see data.train[].format.")] = "auto"
    secret_ref: Annotated[SecretRef | None, Field(description="Secret to read `source` with.")] = None

    RULES = (
        *source_rules(optional=True),
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

    RULES = source_rules()


class Checks(Contract):
    """What is checked before a GPU is held: `ignore`, `warn` (a finding), `fail` (the job ends) or a way to mend it."""

    minimum_rows: Annotated[
        int,
        Field(
            description="Fewer usable train rows than this end the job with InvalidData. Default 50: below it a "
            "prompt with examples usually beats tuning.",
            ge=1,
            le=100_000_000,
        ),
    ] = 50
    size: Annotated[
        Literal["ignore", "warn", "fail"],
        Field(
            description="Train rows against the breadth of the task: 100 a class, 500 for answers of a given form, "
            "1,000 for free ones (docs/data.md names the sources). Default `warn`."
        ),
    ] = "warn"
    duplicates: Annotated[
        Literal["ignore", "warn", "fail", "drop"],
        Field(
            description="Exact duplicates: keep the first (`drop`, default), report only (`warn`), or end the job "
            "(`fail`)."
        ),
    ] = "drop"
    near_duplicates: Annotated[
        Literal["ignore", "warn", "fail", "drop"],
        Field(
            description="Inputs that differ in little more than case, punctuation or a word (MinHash, Jaccard 0.85): "
            "`drop` keeps one of each cluster. They never cross splits, whatever this says. Default `warn`."
        ),
    ] = "warn"
    leaks: Annotated[
        Literal["warn", "fail", "drop"],
        Field(
            description="Inputs of train or replay that are (nearly) held out too: `drop` (default) removes them from "
            "what is trained. `warn` keeps them and the numbers of the evaluation are too good."
        ),
    ] = "drop"
    seen_before: Annotated[
        Literal["ignore", "warn", "fail"],
        Field(
            description="Test rows that one of the adapter's three newest versions, the version now released, or the "
            "one training starts from, was trained on: comparisons with it are unfair. Default `warn`."
        ),
    ] = "warn"
    conflicting_answers: Annotated[
        Literal["ignore", "warn", "fail", "drop"],
        Field(
            description="The same input with different answers: `drop` removes every row of such an input. Default "
            "`warn`."
        ),
    ] = "warn"
    balance: Annotated[
        Literal["ignore", "warn", "fail"],
        Field(
            description="Classes that are rare (under 10 rows), dominate (over 80 %), or are spelled in two ways. "
            "Default `warn`."
        ),
    ] = "warn"
    agreement: Annotated[
        Literal["ignore", "warn", "fail"],
        Field(
            description="Agreement of the people in column `annotations`: Krippendorff's alpha below 0.667 is "
            "reported. Default `warn`."
        ),
    ] = "warn"
    answers: Annotated[
        Literal["ignore", "warn", "fail", "drop"],
        Field(
            description="Answers that break evaluation.task (schema, labelPath): end the job (`fail`, default), or "
            "`drop` the rows."
        ),
    ] = "fail"
    empty_answers: Annotated[
        Literal["ignore", "warn", "fail", "drop"],
        Field(
            description="Answers that say nothing, such as `N/A`, `-` or `TODO`. Default `warn`. An answer without any "
            "text always ends the job, unless this is `drop`."
        ),
    ] = "warn"
    refusals: Annotated[
        Literal["ignore", "warn", "fail", "drop"],
        Field(
            description="Answers that refuse, such as `As an AI`: usually left over from the model that wrote the "
            "data. Default `warn`."
        ),
    ] = "warn"
    encoding: Annotated[
        Literal["ignore", "warn", "fail", "repair"],
        Field(
            description="Mojibake, replacement, control and bidirectional characters. `repair` mends what can be "
            "mended without guessing and removes the others. Default `warn`."
        ),
    ] = "warn"
    language: Annotated[
        Literal["ignore", "warn", "fail", "drop"],
        Field(
            description="Rows in another language than most rows: reported while they are at most 20 %, which is "
            "likely an accident; `drop` removes them. Default `warn`."
        ),
    ] = "warn"
    edge_cases: Annotated[
        Literal["ignore", "warn", "fail"],
        Field(
            description="Share of rows with an unusually short or long input or a rare class: told, and a warning "
            "where it is smaller than chance explains. Default `warn`."
        ),
    ] = "warn"
    pii: Annotated[
        Literal["ignore", "warn", "fail", "redact"],
        Field(
            description="Personal data (mail, phone, IBAN, card, IP, national ids). `redact` puts `<EMAIL_ADDRESS>` "
            "and the like in their place, in every split; the changed share of test is told. Default `ignore`: it "
            "takes time (docs/data.md)."
        ),
    ] = "ignore"


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
    loss: Annotated[
        Literal["assistant", "completion", "all"],
        Field(
            description="Which tokens are learned: `assistant` (default) all answers of a conversation, `completion` "
            "the last one, `all` every token, prompts included. Plain text needs `all`. Evaluation always judges the "
            "last answer."
        ),
    ] = "assistant"
    overlong: Annotated[
        Literal["truncate", "drop", "fail"],
        Field(
            description="Examples longer than training.maxLength: `truncate` (default) cuts the left of the prompt "
            "behind its system message, `drop` leaves the row out, `fail` ends the job. An answer is never cut: where "
            "it does not fit alone the row is dropped."
        ),
    ] = "truncate"
    system_prompt: Annotated[
        str | None,
        Field(
            description="System prompt for rows that have none of their own, in every split but replay and "
            "outOfDomain. Serve with the same one. At most 8,192 characters.",
            min_length=1,
            max_length=8192,
        ),
    ] = None
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
