"""Store a job as the API server would: identity once, a new generation per edit, no edit while it runs."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.spec import MUTABLE_WHILE_RUNNING
from finetune_api.job.status import FINISHED_PHASES
from finetune_cli.errors import CliError
from finetune_cli.local.objects import ConflictError, ObjectStore
from finetune_operator.decide.hashing import spec_hash
from finetune_operator.decide.stages.publish import AUTHOR_ANNOTATION
from finetune_operator.decide.types import Key


def edit_job(store: ObjectStore, key: Key, change: Callable[[FineTuneJob], FineTuneJob]) -> FineTuneJob:
    """Change a stored job, again when somebody else wrote it meanwhile. Raises CliError when it does not exist."""
    while True:
        job = store.get(FineTuneJob, key.namespace, key.name)
        if job is None:
            raise CliError(
                f"there is no FineTuneJob {key.name} in namespace {key.namespace}", "`finetune list` shows them."
            )
        try:
            return store.replace(change(job))
        except ConflictError:
            continue


def with_spec(job: FineTuneJob, **changes: Any) -> FineTuneJob:
    """The job with some fields of its spec changed."""
    return job.model_copy(update={"spec": job.spec.model_copy(update=changes)})


def _edited_fields(stored: FineTuneJob, wanted: FineTuneJob) -> list[str]:
    before, after = stored.spec.to_wire(), wanted.spec.to_wire()
    names = sorted((before.keys() | after.keys()) - MUTABLE_WHILE_RUNNING)
    return [f"spec.{name}" for name in names if before.get(name) != after.get(name)]


def _merged(stored: FineTuneJob, wanted: FineTuneJob) -> FineTuneJob:
    status = stored.status
    edited = _edited_fields(stored, wanted)
    if edited and status is not None and status.phase not in FINISHED_PHASES:
        name = stored.metadata.name
        # The API server's own words, for the fields that were edited.
        refusals = [rule.message for rule in FineTuneJob.RULES if rule.transition and rule.field_path in edited]
        raise CliError(
            "\n".join([f"FineTuneJob {name} is {status.phase}", *(f"  {message}" for message in refusals)]),
            f"Undo the edit and run again to let it finish, or `finetune cancel {name}` first.",
        )
    if status is not None and status.phase in FINISHED_PHASES and status.spec_hash == spec_hash(wanted.spec):
        # Typing `run` again asks for another run even of the same spec: the data behind it may have changed. When
        # they have not, prepare finds that out and the run ends as Unchanged.
        status = status.model_copy(update={"spec_hash": ""})
    metadata = stored.metadata.model_copy(
        update={"labels": wanted.metadata.labels, "annotations": wanted.metadata.annotations}
    )
    return stored.model_copy(update={"metadata": metadata, "spec": wanted.spec, "status": status})


def apply_job(store: ObjectStore, wanted: FineTuneJob, author: str, now: datetime) -> FineTuneJob:
    """Create the job, or bring the stored one to what the file says. Returns it as stored.

    Raises CliError when the spec of a running job would change.
    """
    annotations = wanted.metadata.annotations | {AUTHOR_ANNOTATION: author}
    wanted = wanted.model_copy(update={"metadata": wanted.metadata.model_copy(update={"annotations": annotations})})
    key = Key(wanted.metadata.namespace, wanted.metadata.name)
    if store.get(FineTuneJob, key.namespace, key.name) is None:
        return store.create(wanted.model_copy(update={"status": None}), now)
    return edit_job(store, key, lambda stored: _merged(stored, wanted))
