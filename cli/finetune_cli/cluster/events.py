"""Events of a job, read and followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from finetune_api.finetunejob import FineTuneJob
from finetune_cli.cluster.connection import Connection
from finetune_cli.cluster.follow import Patience
from finetune_cli.cluster.objects import read_as
from finetune_cli.cluster.refusals import Refusal, explain
from finetune_cli.cluster.resources import EVENTS, FINETUNE_JOBS
from finetune_cli.render.happenings import Belonging, Happening, happening


def read_events(connection: Connection, job: FineTuneJob) -> tuple[list[Happening], str]:
    """What happened so far, oldest first, and the resourceVersion from which to follow."""
    ours = Belonging(job)
    with connection.asking("list", EVENTS):
        listed = connection.api.list(EVENTS, connection.namespace)
    return sorted(happening(event) for event in listed["items"] if event in ours), listed["metadata"]["resourceVersion"]


def follow_events(
    connection: Connection, job: FineTuneJob, resource_version: str, seen: set[Happening], say: Callable[[str], None]
) -> Iterator[Happening]:
    """What happens from then on, for ever, each once; what happened while the API server was gone comes afterwards."""
    patience = Patience(say)
    name, version = job.metadata.name, resource_version
    while True:
        try:
            if not version:
                listed = connection.api.list(EVENTS, connection.namespace)
                version = listed["metadata"]["resourceVersion"]
                missed = {happening(event) for event in listed["items"] if event in Belonging(job)} - seen
                seen.update(missed)
                yield from sorted(missed)
            patience.fine()
            for kind, event in connection.api.watch(EVENTS, connection.namespace, version):
                version = event["metadata"]["resourceVersion"]
                if kind not in ("ADDED", "MODIFIED") or event not in Belonging(job):
                    continue
                if (item := happening(event)) not in seen:
                    seen.add(item)
                    yield item
                if item.about == f"{FINETUNE_JOBS.kind}/{name}":
                    # It went on: another run has other children, an end has a version.
                    job = read_as(FineTuneJob, connection.api.get(FINETUNE_JOBS, connection.namespace, name))
        except Refusal as refusal:
            if refusal.code == 410:
                version = ""
            try:
                patience.trouble(refusal)
            except Refusal as final:
                raise explain(final, "watch", EVENTS, connection.namespace, "", connection.api.server) from final
