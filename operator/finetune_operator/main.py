"""The operator's process: arguments, wiring, supervision of the watches, and the end."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import importlib.metadata
import importlib.util
import logging
import os
import random
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from finetune_operator.api import Api
from finetune_operator.cluster_executor import ClusterExecutor
from finetune_operator.connection import Connection, NoConnectionError, connect
from finetune_operator.field_manager import field_manager
from finetune_operator.health import Health, serve
from finetune_operator.installation import Installation
from finetune_operator.leader import LOST_LEASE_EXIT_CODE, Leader, Timing
from finetune_operator.logs import configure_logs
from finetune_operator.metrics import Metrics
from finetune_operator.pool import PoolReconciler
from finetune_operator.progress.service import ProgressService
from finetune_operator.progress.service import Settings as ProgressSettings
from finetune_operator.queue import Schedule, Workers
from finetune_operator.reconcile import Item, Reconciler
from finetune_operator.release import ReleaseReconciler
from finetune_operator.store import Store
from finetune_operator.supervise import Supervisor
from finetune_operator.watch import Watches

logger = logging.getLogger(__name__)

LEASE_NAME = "finetune-operator"
SERVICE_NAME, SERVICE_PORT = "finetune-operator", 8443
"""The Service of manifests/base, through which pods push their progress."""
STOP_GRACE_S = 10.0
CONFIGURATION_ERROR = 78
"""EX_CONFIG of sysexits.h."""


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="finetune-operator", description="Takes FineTuneJobs to evaluated, versioned, approvable adapters."
    )
    version = importlib.metadata.version("finetune-operator")
    parser.add_argument("--version", action="version", version=f"finetune-operator {version}")
    parser.add_argument("--namespace", action="append", help="watch this namespace only (repeatable; default: all)")
    parser.add_argument("--kubeconfig", type=Path, help="default: the pod's service account, else $KUBECONFIG")
    parser.add_argument("--health-port", type=int, default=8080, help="/healthz and /readyz (default 8080)")
    parser.add_argument("--metrics-port", type=int, default=8080, help="/metrics (default 8080)")
    parser.add_argument(
        "--progress-certificate-dir",
        type=Path,
        metavar="DIR",
        help="folder with tls.crt, tls.key, ca.crt: pods push their progress over HTTPS (default: they do not)",
    )
    parser.add_argument("--progress-port", type=int, default=8443, help="where pushes are heard (default 8443)")
    parser.add_argument(
        "--progress-url", help="what pods are given (default: https://finetune-operator.<own namespace>.svc:8443)"
    )
    parser.add_argument(
        "--progress-ca-file", type=Path, metavar="FILE", help="whom pods trust (default: ca.crt beside the certificate)"
    )
    parser.add_argument("--lease-namespace", help="where the Lease is (default: the operator's own namespace)")
    parser.add_argument("--lease-seconds", type=int, default=15, help="life of the Lease, 3 or more (default 15)")
    parser.add_argument(
        "--audit-seconds", type=float, default=60.0, help="time between two comparisons of watches with lists (60)"
    )
    parser.add_argument("--workers", type=int, default=8, help="jobs worked on at once (default 8)")
    parser.add_argument("--log-format", choices=("json", "text"), default="json")
    parser.add_argument("--verbose", action="store_true", help="log debug messages")
    arguments = parser.parse_args(argv)
    if arguments.lease_seconds < 3:
        parser.error("--lease-seconds must be 3 or more")
    if arguments.audit_seconds < 1:
        parser.error("--audit-seconds must be 1 or more")
    if arguments.workers < 1:
        parser.error("--workers must be 1 or more")
    if arguments.progress_url and not _is_https(arguments.progress_url):
        parser.error(f"--progress-url {arguments.progress_url}: write https://HOST[:PORT]")
    return arguments


def _is_https(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" and bool(parts.hostname) and not (parts.query or parts.fragment or parts.username)


def _progress_settings(arguments: argparse.Namespace, namespace: str) -> ProgressSettings | None:
    """None: live progress is off."""
    if arguments.progress_certificate_dir is None:
        return None
    return ProgressSettings(
        url=arguments.progress_url or f"https://{SERVICE_NAME}.{namespace}.svc:{SERVICE_PORT}",
        port=arguments.progress_port,
        folder=arguments.progress_certificate_dir,
        ca=arguments.progress_ca_file,
    )


def _now() -> datetime:
    return datetime.now(UTC)


async def _heartbeat(health: Health, metrics: Metrics, workers: Workers[Item], leader: Leader) -> None:
    while True:
        health.beat()
        metrics.queue_depth(len(workers.schedule))
        metrics.leading(leader.leads)
        metrics.ready(not health.reasons)
        await asyncio.sleep(1)


def _leave_at_once() -> None:
    """End without any further step: whatever still runs here may be about to write."""
    logger.error("leaving: this process may no longer write", extra={"exit_code": LOST_LEASE_EXIT_CODE})
    for handler in logging.getLogger().handlers:
        handler.flush()
    os._exit(LOST_LEASE_EXIT_CODE)


async def _lead(leader: Leader, workers: Workers[Item]) -> None:
    """Work while leading. What changed before is in the queue already: the watches fill it on every replica."""
    await leader.acquire()
    working = asyncio.create_task(workers.run())
    try:
        await leader.lead()
        _leave_at_once()
    finally:
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working


async def run(arguments: argparse.Namespace, connection: Connection) -> int:
    """Run until SIGTERM or SIGINT; the exit code."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    identity = f"{socket.gethostname()}_{secrets.token_hex(4)}"
    metrics = Metrics(importlib.metadata.version("finetune-operator"))
    health = Health(time.monotonic)
    store = Store()
    namespace = arguments.lease_namespace or connection.namespace
    async with Api(connection, on_request=metrics.request, field_manager=field_manager(namespace)) as api:
        leader = Leader(api, namespace, LEASE_NAME, identity, timing=Timing(arguments.lease_seconds))
        api.guard = leader.check
        settings = _progress_settings(arguments, namespace)
        progress = (
            ProgressService(settings, api, store, health, metrics, lambda: watches.complete, _now, time.monotonic)
            if settings is not None
            else None
        )
        executor = ClusterExecutor(api, store, identity, _now, progress.offered if progress else lambda: None)
        releases = ReleaseReconciler(api, store, executor, metrics, identity, _now)
        schedule: Schedule[Item] = Schedule(jitter=lambda: random.uniform(0.75, 1.25))  # noqa: S311
        pools = PoolReconciler(store, executor, _now)
        installation = Installation(api, store, namespace, LEASE_NAME, health)
        reconciler = Reconciler(executor, releases, pools, metrics, _now, installation)

        async def work(item: Item) -> float | None:
            # A key that comes too early comes again: once all is read, every object is announced.
            return await reconciler.work(item) if watches.complete else None

        workers = Workers(work, arguments.workers, schedule, time.monotonic)
        health.longest_work_s = lambda: schedule.longest_work_s(time.monotonic())
        watches = Watches(store, workers.add)
        supervisor = Supervisor(
            connection, api, watches, workers, health, metrics, arguments.namespace, arguments.audit_seconds
        )
        async with serve(health, metrics, {arguments.health_port, arguments.metrics_port}):
            tasks = [
                asyncio.create_task(_heartbeat(health, metrics, workers, leader), name="heartbeat"),
                asyncio.create_task(supervisor.run(), name="watches"),
                asyncio.create_task(supervisor.audit(), name="audit"),
                asyncio.create_task(_lead(leader, workers), name="leader"),
            ]
            if progress is not None:
                tasks.append(asyncio.create_task(progress.run(), name="progress"))
            stopping = asyncio.create_task(stop.wait(), name="stop")
            logger.info("started", extra={"identity": identity, "server": connection.server})
            done, _ = await asyncio.wait([*tasks, stopping], return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=STOP_GRACE_S)
            stopping.cancel()
            await leader.release()
            failed = [task for task in tasks if task in done and not task.cancelled() and task.exception()]
            for task in failed:
                logger.error(
                    "a part of the operator failed", extra={"part": task.get_name()}, exc_info=task.exception()
                )
            return 1 if failed else 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """Uvloop where it is installed, else asyncio's own."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    loop: Callable[[], asyncio.AbstractEventLoop] = importlib.import_module("uvloop").new_event_loop
    return loop


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point. Exit codes: 0 asked to stop, 75 lost the lease, 78 no cluster configured, 1 a defect."""
    arguments = _arguments(argv)
    configure_logs(arguments.log_format, arguments.verbose)
    try:
        connection = connect(arguments.kubeconfig)
    except NoConnectionError as error:
        logger.error(str(error))
        return CONFIGURATION_ERROR
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(run(arguments, connection))


if __name__ == "__main__":
    sys.exit(main())
