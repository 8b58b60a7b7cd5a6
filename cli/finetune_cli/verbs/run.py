"""Run a FineTuneJob's YAML on this machine, without a cluster.

The same YAML, the same decisions and the same stages as in a cluster: prepare, baseline, train, evaluate, publish run
as local processes, and the result is a version in a local registry (`.finetune` in the current folder).
Ctrl-C saves a checkpoint and suspends; the same command resumes. A second Ctrl-C kills at once. Run the file again
after an edit, or after its data changed, and it makes the next version.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.adapterversion import AdapterVersion
from finetune_api.finetunejob import FineTuneJob
from finetune_cli.errors import EXIT_CODES_HELP, CliExit
from finetune_cli.jobfile import Overrides, load_job
from finetune_cli.local.apply import apply_job
from finetune_cli.local.drive import Driver, Interrupts
from finetune_cli.local.executor import LocalExecutor
from finetune_cli.local.objects import ObjectStore
from finetune_cli.local.pool import find_gpus
from finetune_cli.local.registry import refresh_adapter
from finetune_cli.local.state import StateDir, open_state, run_lock
from finetune_cli.options import add_output, add_state, current_user
from finetune_cli.render.machine import print_machine
from finetune_cli.render.progress import RunView, run_view
from finetune_cli.render.summary import console_for, exit_code, local_steps, print_summary
from finetune_operator.decide.types import Key

WORLD = "local"
EXAMPLES = f"""
examples:
  finetune run finetunejob.yaml
  finetune run finetunejob.yaml --data my-tickets.csv --model ./base-model
  finetune run finetunejob.yaml --storage s3://my-bucket/adapters
  finetune run finetunejob.yaml -o json > result.json

{EXIT_CODES_HELP}
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare its arguments."""
    parser.add_argument("file", type=Path, metavar="FILE", help="YAML of a FineTuneJob")
    parser.add_argument("--data", metavar="PATH", help="train on this file or folder instead of data.train")
    parser.add_argument("--model", metavar="PATH", help="start from this model (folder or hf://owner/name)")
    parser.add_argument("--storage", metavar="URI", help="keep versions there (folder or s3://bucket/prefix)")
    parser.add_argument("--name", help="name of the job instead of metadata.name")
    add_state(parser)
    add_output(parser)


def now() -> datetime:
    """The clock of the command line."""
    return datetime.now(UTC)


async def drive_job(state: StateDir, key: Key, view: RunView) -> FineTuneJob:
    """Drive a stored job to its end, or until Ctrl-C suspended it. The caller holds the state's run lock."""
    interrupts = Interrupts()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, interrupts.press)
    executor = LocalExecutor(state, dict(os.environ), now, find_gpus(os.environ), view.event)
    return await Driver(executor, now, view, interrupts).drive(key)


def published_version(store: ObjectStore, job: FineTuneJob) -> AdapterVersion | None:
    """The version the job's status names, with its state brought up to date."""
    if job.status is None or job.status.version is None:
        return None
    namespace = job.metadata.namespace
    refresh_adapter(store, namespace, job.spec.output.adapter_ref.name, now())
    return store.get(AdapterVersion, namespace, job.status.version.name)


def run(args: argparse.Namespace) -> int:
    """Run the file; returns the documented exit code."""
    overrides = Overrides(args.data, args.model, args.storage, args.name, args.namespace)
    wanted, notes = load_job(args.file, overrides)
    state = open_state(args.state, create=True)
    table = args.output == "table"
    console = console_for(stderr=not table)
    with run_lock(state):
        store = ObjectStore(state)
        job = apply_job(store, wanted, current_user(), now())
        key = Key(job.metadata.namespace, job.metadata.name)
        with run_view(console, job.metadata.name) as view:
            for note in notes:
                view.note(note)
            job = asyncio.run(drive_job(state, key, view))
        version = published_version(store, job)
    if table:
        print_summary(console, job, version, local_steps(job, version), state.runs / key.namespace)
        if version is not None and version.status is not None and version.status.phase == "PendingApproval":
            console.print("         four eyes are not asked for in a local registry: you may approve your own version")
    else:
        print_machine(job.to_wire(), args.output)
    code = exit_code(job.status)
    if code == CliExit.FAILED and job.status is not None and job.status.resolved is None:
        print(f"error: {job.status.message}", file=sys.stderr)
        return CliExit.USAGE
    return code
