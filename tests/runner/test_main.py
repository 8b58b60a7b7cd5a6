"""The process around a stage: exit codes, termination message, report, signals."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.stages import Finding, PrepareResult, StageReport, StageResults, StageTask, decode_report
from finetune_runner.context import StageContext
from finetune_runner.errors import StageError, interrupted
from finetune_runner.main import main
from tests.cluster.harness.process import free_ports
from tests.runner.stores import PrepareWorld, varied


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Leave the handlers as they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, StageReport]]:
    """Run `main` here with a stage of our own."""

    def start(task: StageTask, stage: Callable[[StageContext], Any]) -> tuple[int, StageReport]:
        (tmp_path / "task.json").write_text(json.dumps(task.to_wire()))
        module = ModuleType("finetune_runner.stages.prepare")
        module.run = stage  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
        for name, value in environment(tmp_path).items():
            monkeypatch.setenv(name, value)
        code = main(["prepare", "--task", str(tmp_path / "task.json")])
        return code, decode_report((tmp_path / "termination").read_bytes())

    return start


def environment(folder: Path) -> dict[str, str]:
    return {
        "FINETUNE_TERMINATION_LOG": str(folder / "termination"),
        "FINETUNE_PROGRESS_FILE": str(folder / "progress.json"),
        "FINETUNE_SCRATCH": str(folder / "scratch"),
        "FINETUNE_SECRETS": str(folder / "secrets"),
    }


@pytest.fixture
def task(world: PrepareWorld) -> StageTask:
    return world.task({"train": [{"source": world.write("a.jsonl", varied(200))}]})


def test_progress_that_nobody_hears_does_not_reach_the_stage(
    process: Callable[..., tuple[int, StageReport]], task: StageTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_PROGRESS_URL", f"https://localhost:{free_ports(1)[0]}/v1/progress/team/triage")
    monkeypatch.setenv("FINETUNE_PROGRESS_CREDENTIALS", str(tmp_path / "none"))

    def stage(context: StageContext) -> StageResults:
        for done in range(100):
            context.report_progress("fetching \x1b[2J" + "x" * 300, done, 100)
        return RESULT

    code, report = process(task, stage)
    assert (code, report.outcome) == (0, "Succeeded")
    assert json.loads((tmp_path / "progress.json").read_text())["percent"] == 99


def stored(tmp_path: Path, name: str = "report.json") -> Path:
    return tmp_path / "store/team/triage/runs/uid-1/1/prepare" / name


RESULT = StageResults(
    prepare=PrepareResult.from_wire(
        {
            "revision": "r",
            "modelDigest": "m",
            "model": {"architecture": "A", "parameters": 1},
            "rows": {"train": 1},
            "trainTokens": 1,
            "lengths": {},
            "dataDigest": "d",
            "testDigest": "t",
        }
    )
)


def test_success_is_stored_whole_and_sent_short(tmp_path: Path, task: StageTask, process: Any) -> None:
    findings = [Finding(check=f"check-{n}", severity="info", message="x" * 400) for n in range(30)]
    code, report = process(task, lambda _context: (RESULT, findings))
    assert code == 0
    assert (report.outcome, report.exit_code, report.truncated) == ("Succeeded", 0, True)
    assert report.result == RESULT
    assert (tmp_path / "termination").stat().st_size <= 4000
    assert len(decode_report(stored(tmp_path).read_bytes()).findings) == 30


class OutOfMemoryError(RuntimeError):
    """Like torch's, which is known by its name and module."""


OutOfMemoryError.__module__ = "torch"


@pytest.mark.parametrize(
    ("error", "code", "cause"),
    [
        (StageError(ExitCode.INVALID_DATA, "row 3", "mend it"), 81, "InvalidData"),
        (interrupted(), 85, "Interrupted"),
        (OutOfMemoryError("CUDA out of memory. Tried to allocate"), 86, "GPUOutOfMemory"),
        (RuntimeError("CUDA out of memory. Tried to allocate"), 86, "GPUOutOfMemory"),
        (MemoryError(), 87, "HostOutOfMemory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 87, "HostOutOfMemory"),
        (OSError(28, "No space left on device", "/scratch/x"), 84, "DiskFull"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), 84, "DiskFull"),
        (RuntimeError("I/O error: File too large (os error 27)"), 84, "DiskFull"),  # a limit or a quota of NFS
        (RuntimeError("I/O error: Disk quota exceeded (os error 122)"), 84, "DiskFull"),
        (RuntimeError("the request entity is too large"), 1, "InternalError"),
        (PermissionError(13, "Permission denied", "/mnt/pvc/models/base"), 83, "AccessDenied"),
        (PermissionError("the process may not ask for more files"), 1, "InternalError"),
        (ZeroDivisionError("division by zero"), 1, "InternalError"),
        (KeyboardInterrupt(), 85, "Interrupted"),
    ],
)
def test_every_failure_is_typed_stored_and_sent(
    tmp_path: Path, task: StageTask, process: Any, error: BaseException, code: int, cause: str
) -> None:
    def stage(_context: StageContext) -> StageResults:
        raise error

    exit_code, report = process(task, stage)
    assert (exit_code, report.exit_code, report.cause, report.outcome) == (code, code, cause, "Failed")
    assert report.message
    assert report.hint
    assert decode_report(stored(tmp_path).read_bytes()) == report
    assert (report.uid, report.run, report.attempt) == ("uid-1", 1, 1)


def test_an_unexpected_error_gives_its_last_line_and_no_traceback(task: StageTask, process: Any) -> None:
    _, report = process(task, lambda _context: 1 / 0)
    assert report.evidence == "ZeroDivisionError: division by zero"
    assert "Traceback" not in json.dumps(report.to_wire())


@pytest.mark.parametrize("obeys", [True, False])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stopped_stage_never_ends_with_zero(
    tmp_path: Path, task: StageTask, process: Any, number: int, obeys: bool
) -> None:
    def stage(context: StageContext) -> StageResults:
        os.kill(os.getpid(), number)
        assert context.stop.wait(10)
        if obeys:
            raise interrupted()
        return RESULT

    code, report = process(task, stage)
    assert (code, report.cause) == (85, "Interrupted")
    assert decode_report(stored(tmp_path).read_bytes()).outcome == "Failed"


def test_what_a_stop_breaks_is_a_consequence(task: StageTask, process: Any) -> None:
    def stage(context: StageContext) -> StageResults:
        context.stop.set()
        raise ConnectionResetError("the child is gone")

    assert process(task, stage)[1].cause == "Interrupted"


def test_a_fenced_attempt_does_not_overwrite_the_report(tmp_path: Path, task: StageTask, process: Any) -> None:
    def stage(_context: StageContext) -> StageResults:
        stored(tmp_path, "epoch-2").write_text("{}")
        stored(tmp_path).write_text("the newer attempt's")
        return RESULT

    code, report = process(task, stage)
    assert (code, report.cause) == (90, "Fenced")
    assert stored(tmp_path).read_text() == "the newer attempt's"


def test_a_report_that_cannot_be_stored_does_not_hide_the_cause(tmp_path: Path, task: StageTask, process: Any) -> None:
    def stage(_context: StageContext) -> StageResults:
        stored(tmp_path).mkdir()  # a folder cannot be replaced by a file
        raise StageError(ExitCode.INVALID_DATA, "row 3", "mend it")

    assert process(task, stage)[1].cause == "InvalidData"


def test_recover_sends_the_stored_report_again(tmp_path: Path, task: StageTask, process: Any) -> None:
    _, first = process(task, lambda _context: RESULT)
    (tmp_path / "termination").unlink()
    epochs = len(list(stored(tmp_path).parent.glob("epoch-*")))

    def never(_context: StageContext) -> StageResults:
        raise AssertionError("recover runs no stage")

    code, again = process(task.model_copy(update={"mode": "recover", "attempt": 2}), never)
    assert code == 0
    assert again == first
    assert len(list(stored(tmp_path).parent.glob("epoch-*"))) == epochs


def test_recover_of_a_failure_ends_with_its_code(task: StageTask, process: Any) -> None:
    def stage(_context: StageContext) -> StageResults:
        raise StageError(ExitCode.MODEL_UNUSABLE, "no model", "name one")

    process(task, stage)
    code, report = process(task.model_copy(update={"mode": "recover"}), stage)
    assert (code, report.cause, report.message) == (91, "ModelUnusable", "no model")


def test_recover_without_a_report_is_source_not_found(task: StageTask, process: Any) -> None:
    code, report = process(task.model_copy(update={"mode": "recover"}), lambda _context: RESULT)
    assert (code, report.cause) == (92, "SourceNotFound")


def test_other_pods_of_a_gang_neither_claim_nor_store(
    tmp_path: Path, task: StageTask, process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PET_NODE_RANK", "1")
    assert process(task, lambda _context: RESULT)[0] == 0
    assert not stored(tmp_path).exists()
    assert not stored(tmp_path, "epoch-1").exists()


def command(tmp_path: Path, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "finetune_runner", *arguments],
        env={**os.environ, **environment(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def test_the_command_prepares_real_data(tmp_path: Path, task: StageTask) -> None:
    (tmp_path / "task.json").write_text(json.dumps(task.to_wire()))
    done = command(tmp_path, "prepare", "--task", str(tmp_path / "task.json"))
    assert done.returncode == 0, done.stderr
    report = decode_report((tmp_path / "termination").read_bytes())
    assert report.result.prepare is not None
    assert report.result.prepare.rows.train > 100
    assert done.stdout == ""
    assert json.loads((tmp_path / "progress.json").read_text())["phase"] == "writing the splits"


def test_bad_data_end_the_command_without_a_traceback(tmp_path: Path, world: PrepareWorld) -> None:
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "p", "completion": "c"}\n{"prompt": "p"}\n')
    task = world.task({"train": [{"source": f"file://{tmp_path}/a.jsonl"}]})
    (tmp_path / "task.json").write_text(json.dumps(task.to_wire()))
    done = command(tmp_path, "prepare", "--task", str(tmp_path / "task.json"))
    assert done.returncode == 81
    assert "Traceback" not in done.stderr
    assert "a.jsonl line 2: has no `completion`" in decode_report((tmp_path / "termination").read_bytes()).message


def test_a_disk_that_is_full_ends_the_command_as_disk_full(tmp_path: Path, world: PrepareWorld) -> None:
    task = world.task({"train": [{"source": world.write("a.jsonl", varied(1500))}]})
    (tmp_path / "task.json").write_text(json.dumps(task.to_wire()))
    limit = 8_000  # bytes of a file: the split is larger, claim and report are not

    done = command(
        tmp_path,
        "prepare",
        "--task",
        str(tmp_path / "task.json"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    report = decode_report((tmp_path / "termination").read_bytes())
    assert (done.returncode, report.cause) == (84, "DiskFull"), done.stderr
    assert not stored(tmp_path, "manifest.json").exists()
    assert not stored(tmp_path, "train.jsonl.gz").exists()


def test_an_unreachable_store_is_named(tmp_path: Path, world: PrepareWorld) -> None:
    endpoint = f"http://127.0.0.1:{free_ports(1)[0]}"
    world.storage = {"uri": "s3://bucket/store", "endpoint": endpoint, "secretRef": {"name": "store"}}
    (tmp_path / "secrets" / "store").mkdir(parents=True)
    (tmp_path / "secrets" / "store" / "AWS_ACCESS_KEY_ID").write_text("key")
    (tmp_path / "secrets" / "store" / "AWS_SECRET_ACCESS_KEY").write_text("secret")
    task = world.task({"train": [{"source": "s3://bucket/a.jsonl"}]})
    (tmp_path / "task.json").write_text(json.dumps(task.to_wire()))
    done = command(tmp_path, "prepare", "--task", str(tmp_path / "task.json"))
    report = decode_report((tmp_path / "termination").read_bytes())
    assert (done.returncode, report.cause) == (82, "StorageUnavailable")
    assert endpoint in report.message


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "No such file"),
        ("{", "is not JSON"),
        ("{}", "stage: Field required"),
    ],
)
def test_a_bad_task_file_is_named(tmp_path: Path, content: str | None, says: str) -> None:
    if content is not None:
        (tmp_path / "task.json").write_text(content)
    done = command(tmp_path, "train", "--task", str(tmp_path / "task.json"))
    report = decode_report((tmp_path / "termination").read_bytes())
    assert (done.returncode, report.cause, report.stage) == (80, "InvalidSpec", "train")
    assert says in report.message


def test_a_task_for_another_stage_is_refused(tmp_path: Path, task: StageTask) -> None:
    (tmp_path / "task.json").write_text(json.dumps(task.to_wire()))
    done = command(tmp_path, "train", "--task", str(tmp_path / "task.json"))
    assert done.returncode == 80
    assert "is for stage prepare, not train" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code"), [(["--help"], 0), ([], 80), (["nonsense", "--task", "x"], 80), (["prepare"], 80)]
)
def test_usage(tmp_path: Path, arguments: list[str], code: int) -> None:
    done = command(tmp_path, *arguments)
    assert done.returncode == code
    assert "usage: finetune-runner" in done.stdout
