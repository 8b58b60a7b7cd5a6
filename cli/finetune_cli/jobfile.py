"""A FineTuneJob's YAML from disk: read, judged, and made absolute so that a process anywhere finds its files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_api.finetunejob import FineTuneJob
from finetune_api.validation import Problem, accepted_values, validate_document
from finetune_api.wording import counted
from finetune_cli.errors import CliError
from finetune_cli.options import checked_name

FILE_SCHEME = "file://"


class InvalidDocumentError(CliError):
    """The YAML has problems; all of them are listed."""

    def __init__(self, file: Path, problems: list[Problem]) -> None:
        lines = [f"{counted(len(problems), 'problem')} in {file}"]
        for problem in problems:
            lines.append(f"  {file}:{problem.line}: {problem.path or 'document'} {problem.message}")
            lines.append(f"      fix: {problem.fix}")
        super().__init__("\n".join(lines))
        self.problems = problems


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the file."""

    data: str | None = None
    model: str | None = None
    storage: str | None = None
    name: str | None = None
    namespace: str | None = None


def read_text(file: Path) -> str:
    """Text of a YAML file. Raises CliError when it cannot be read or is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise CliError(f"there is no file {file}", "`finetune init --data FILE` writes a first one.") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise CliError(f"{file}:{line}: byte {error.start} is not UTF-8", "Save the file as UTF-8.") from error
    except OSError as error:
        raise CliError(f"cannot read {file}: {error.strerror}") from error


def absolute_uri(text: str, folder: Path, what: str) -> str:
    """`file://` URI of a path given relative to `folder`; other schemes stay. Raises CliError on white space."""
    if "://" in text and not text.startswith(FILE_SCHEME):
        return text
    path = (folder / Path(text.removeprefix(FILE_SCHEME)).expanduser()).resolve()
    if any(character.isspace() for character in str(path)):
        raise CliError(
            f"{what}: the path {str(path)!r} contains white space", "Rename it, or make a link without white space."
        )
    return f"{FILE_SCHEME}{path}"


def _sources(spec: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Every place of a (valid) spec that can hold a file:// URI: its name, the object that holds it, the key."""
    data, evaluation, output = spec["data"], spec.get("evaluation") or {}, spec["output"]
    yield "spec.model.source", spec["model"], "source"
    for number, dataset in enumerate(data["train"]):
        yield f"spec.data.train[{number}].source", dataset, "source"
    for name in ("validation", "test", "replay"):
        if isinstance(data.get(name), dict) and "source" in data[name]:
            yield f"spec.data.{name}.source", data[name], "source"
    if evaluation.get("outOfDomain"):
        yield "spec.evaluation.outOfDomain.source", evaluation["outOfDomain"], "source"
    if output.get("storage"):
        yield "spec.output.storage.uri", output["storage"], "uri"


def _override(document: dict[str, Any], overrides: Overrides, folder: Path) -> list[str]:
    spec = document["spec"]
    notes = []
    if overrides.data is not None:
        columns = spec["data"]["train"][0].get("columns")
        dataset = {"source": absolute_uri(overrides.data, folder, "--data")}
        spec["data"]["train"] = [dataset | ({"columns": columns} if columns else {})]
        replaced = [name for name in ("validation", "test") if (spec["data"].get(name) or {}).pop("source", None)]
        notes += [f"--data: {name} is split off your file; data.{name}.source is not used" for name in replaced]
    if overrides.model is not None:
        spec["model"] = {"source": absolute_uri(overrides.model, folder, "--model")}
    if overrides.storage is not None:
        spec["output"]["storage"] = {"uri": absolute_uri(overrides.storage, folder, "--storage")}
    return notes


def _not_used(job: FineTuneJob) -> list[str]:
    compute = job.spec.compute
    unused = []
    if compute.pool not in (None, "local"):
        unused.append(f"compute.pool {compute.pool} is this machine")
    if compute.queue is not None:
        unused.append(f"compute.queue {compute.queue} is not waited for")
    if job.spec.service_account_name != "default":
        unused.append("serviceAccountName is not used; credentials come from your environment")
    return [f"without a cluster: {'; '.join(unused)}"] if unused else []


def missing_files(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Field and path of every absolute `file://` source (not of storage, which is made) that is not there."""
    named = [
        (field, holder[key].removeprefix(FILE_SCHEME))
        for field, holder, key in _sources(document["spec"])
        if key == "source" and holder[key].startswith(FILE_SCHEME)
    ]
    return [(field, path) for field, path in named if not Path(path).exists()]


def file_sources(document: dict[str, Any]) -> list[tuple[str, str]]:
    """Field and URI of everything of a (valid) job that only this machine has."""
    named = [(field, str(holder[key])) for field, holder, key in _sources(document["spec"])]
    return [(field, uri) for field, uri in named if uri.startswith(FILE_SCHEME)]


def load_document(file: Path, overrides: Overrides) -> tuple[dict[str, Any], list[str]]:
    """The YAML with overrides and absolute paths, and notes for the user.

    Raises InvalidDocumentError with every problem of the file.
    """
    text = read_text(file)
    problems = validate_document(text)
    if problems:
        raise InvalidDocumentError(file, problems)
    objects = accepted_values(text)
    jobs = [item for item in objects if item["kind"] == "FineTuneJob"]
    if len(jobs) != 1:
        raise CliError(
            f"{file} holds {counted(len(jobs), 'FineTuneJob')}; one is needed", "Put each into a file of its own."
        )
    document = jobs[0]
    others = sorted(f"{item['kind']} {item['metadata'].get('name', '')}" for item in objects if item is not document)
    for field, holder, key in _sources(document["spec"]):
        if str(holder[key]).startswith(FILE_SCHEME):
            holder[key] = absolute_uri(holder[key], file.resolve().parent, field)
    notes = [f"without a cluster: {name} in {file} is not used" for name in others]
    notes += _override(document, overrides, Path.cwd())
    metadata = document["metadata"]
    if not (overrides.name or metadata.get("name")):
        raise CliError(f"{file}: metadata.name is missing", "Name the job there, or with --name.")
    namespace = overrides.namespace or metadata.get("namespace") or "default"
    metadata["name"] = checked_name(overrides.name or metadata["name"], "metadata.name")
    metadata["namespace"] = checked_name(namespace, "metadata.namespace")
    return document, notes


def load_job(file: Path, overrides: Overrides) -> tuple[FineTuneJob, list[str]]:
    """The job of a YAML file, ready for a run without a cluster, and notes for the user.

    Raises CliError naming what is wrong, where, and the fix.
    """
    document, notes = load_document(file, overrides)
    missing = missing_files(document)
    if missing:
        told = "\n".join(f"  {field}: there is no {path}" for field, path in missing)
        raise CliError(
            f"files that {file} names are missing\n{told}", "Correct the path, or give your own with --data or --model."
        )
    job = FineTuneJob.from_wire(document)
    return job, notes + _not_used(job)
