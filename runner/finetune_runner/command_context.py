"""The context of a short command that reads rows as stage prepare does, outside of any run."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.common import Storage
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import JobIdentity, StageTask
from finetune_runner.context import Environment, StageContext, open_context


def command_context(
    spec: FineTuneJobSpec, scratch: Path, *, storage: Storage | None = None, namespace: str = "default", name: str = ""
) -> StageContext:
    """A context whose scratch is this folder.

    Args:
        spec: of a job.
        scratch: folder for copies.
        storage: where versions are; None = the scratch folder.
        namespace: of the job.
        name: of the job.
    """
    now = datetime.now(UTC)
    task = StageTask(
        stage="prepare",
        job=JobIdentity(namespace=namespace, name=name or "command", uid="command", run=1),
        adapter=spec.output.adapter_ref.name,
        attempt=1,
        storage=storage or Storage(uri=f"file://{scratch}"),
        spec=spec,
        created_at=now,
    )
    return open_context(
        task,
        Environment.of({**os.environ, "FINETUNE_SCRATCH": str(scratch)}, str(scratch)),
        clock=lambda: now,
        progress=lambda _progress: None,
        stop=threading.Event(),
    )
