"""Files of several documents, and the objects that kubectl makes of them; `tests/cluster` asks a real kubectl."""

from __future__ import annotations

from dataclasses import dataclass

_JOB = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: {0}}}
spec:
  model: {{source: hf://acme/base}}
  data: {{train: [{{source: s3://team-a/train.jsonl}}]}}
  output: {{adapterRef: {{name: triage}}}}
"""
ONE, TWO = _JOB.format("one"), _JOB.format("two")


@dataclass(frozen=True)
class Several:
    """A text, and what comes of it."""

    id: str
    text: str
    names: tuple[str, ...] = ()
    """Names of the objects; none where it is refused."""
    says: str = ""
    """Words of our refusal."""
    passed_over: bool = False
    """Whether kubectl takes the text, but for a part of it that it does not tell of."""


SEVERAL = (
    Several("a marker first", f"---\n{ONE}", ("one",)),
    Several("two markers first", f"---\n---\n{ONE}", ("one",)),
    Several("a comment between two markers", f"---\n# nothing\n---\n{ONE}", ("one",)),
    Several("a marker last", f"{ONE}---\n", ("one",)),
    Several("a marker without line end last", f"{ONE}---", ("one",)),
    Several("markers with nothing between", f"{ONE}---\n\n---\n# nothing\n---\n{TWO}", ("one", "two")),
    Several("null between", f"{ONE}---\nnull\n---\n{TWO}", ("one", "two")),
    Several("a comment behind the marker", f"{ONE}--- # the second\n{TWO}", ("one", "two")),
    Several("white space behind the marker", f"{ONE}--- \t \n{TWO}", ("one", "two")),
    Several("line ends of Windows", f"---\n{ONE}---\n{TWO}".replace("\n", "\r\n"), ("one", "two")),
    Several("end and marker", f"{ONE}...\n---\n{TWO}", ("one", "two")),
    Several("two files with byte order marks", f"\ufeff{ONE}---\n\ufeff{TWO}", ("one", "two")),
    Several("an object behind the marker", f"{ONE}--- {{a: b}}\n", says="has something behind `---`"),
    Several("an object behind the first marker", f"--- {{a: b}}\n{ONE}", says="has something behind `---`"),
    Several("four dashes", f"{ONE}----\n{TWO}", says="has something behind `---`"),
    Several("a directive", f"%YAML 1.1\n---\n{ONE}", says="directive %YAML 1.1"),
    Several("a text between", f"{ONE}---\nhello\n", says="is not an object with fields"),
    Several("an empty object last", f"{ONE}---\n{{}}\n", says="kind is missing"),
    Several("an anchor of another document", f"{ONE}# &a\n---\n{TWO}a: *a\n", says="not defined above"),
    Several("nothing at all", "---\n# nothing\n---\n", says="is empty"),
    Several("an end without a marker", f"{ONE}...\n{TWO}", says="write --- between", passed_over=True),
)
