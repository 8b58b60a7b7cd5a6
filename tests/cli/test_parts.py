"""The parts below the verbs, without processes."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console

from finetune_api.common import ObjectMeta
from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import FineTuneJobStatus, GateResult, StageStatus
from finetune_api.stages import Progress
from finetune_api.validation import accepted_values
from finetune_cli.errors import CliError, CliExit
from finetune_cli.jobfile import absolute_uri
from finetune_cli.local.objects import ConflictError, ObjectStore
from finetune_cli.local.pool import LocalGPUs, parse_nvidia_smi
from finetune_cli.local.state import open_state
from finetune_cli.main import main, verb_files
from finetune_cli.options import parse_version_name
from finetune_cli.render.progress import LiveView, PlainView
from finetune_cli.render.stages import duration, parameters_text, progress_words, size
from finetune_cli.render.summary import exit_code, metrics_table
from finetune_cli.render.tables import age
from tests.cli.conftest import JOB

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def job() -> FineTuneJob:
    parsed = FineTuneJob.from_wire(accepted_values(JOB)[0])
    return parsed.model_copy(update={"metadata": ObjectMeta(name="support-triage", namespace="default")})


@pytest.mark.parametrize(
    ("count", "said"),
    [
        (999, "999 parameters"),
        (99_648, "99.65 k parameters"),
        (494_032_768, "494 M parameters"),
        (8_030_261_248, "8.03 B parameters"),
        (70_553_706_496, "70.55 B parameters"),
    ],
)
def test_a_models_size_is_said_in_its_unit(count: int, said: str) -> None:
    assert parameters_text(count) == said


def test_store_behaves_like_the_api_server(tmp_path: Path) -> None:
    store = ObjectStore(open_state(tmp_path, create=True))
    created = store.create(job(), NOW)
    assert (created.metadata.generation, created.metadata.resource_version) == (1, "1")
    assert created.metadata.creation_timestamp == NOW
    with pytest.raises(ConflictError):
        store.create(job(), NOW)

    with_status = store.replace(created.model_copy(update={"status": FineTuneJobStatus(run=1)}))
    assert (with_status.metadata.generation, with_status.metadata.resource_version) == (1, "2")
    assert store.replace(with_status).metadata.resource_version == "2"

    spec = with_status.spec.model_copy(update={"suspend": True})
    edited = store.replace(with_status.model_copy(update={"spec": spec}))
    assert (edited.metadata.generation, edited.metadata.uid) == (2, created.metadata.uid)
    with pytest.raises(ConflictError):
        store.replace(with_status.model_copy(update={"status": None}))
    assert store.get(FineTuneJob, "default", "support-triage") == edited
    assert store.list(FineTuneJob, "default") == [edited]


@pytest.mark.parametrize("name", ["../x", "a/b", "", "A", "x" * 64])
def test_names_never_become_paths(tmp_path: Path, name: str) -> None:
    store = ObjectStore(open_state(tmp_path, create=True))
    with pytest.raises(CliError, match="not a valid name"):
        store.get(FineTuneJob, "default", name)


@pytest.mark.parametrize(
    ("output", "visible", "expected"),
    [
        ("", None, LocalGPUs()),
        ("81559\n81559\n", None, LocalGPUs(2, 79.6)),
        ("81559\n24564\n", None, LocalGPUs(2, 24.0)),
        ("81559\n24564\n", "0", LocalGPUs(1, 79.6)),
        ("81559\n24564\n", "", LocalGPUs()),
        ("81559\n24564\n", "-1", LocalGPUs()),
        ("81559\n24564\n", "GPU-1234", LocalGPUs(1, 79.6)),
        ("No devices were found\n", None, LocalGPUs()),
    ],
)
def test_gpus_of_this_machine(output: str, visible: str | None, expected: LocalGPUs) -> None:
    assert parse_nvidia_smi(output, visible) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("file://x/y.jsonl", "file:///folder/x/y.jsonl"),
        ("file:///x/y.jsonl", "file:///x/y.jsonl"),
        ("../y.jsonl", "file:///y.jsonl"),
        ("s3://bucket/key", "s3://bucket/key"),
        ("hf://owner/name", "hf://owner/name"),
    ],
)
def test_paths_become_absolute(text: str, expected: str) -> None:
    assert absolute_uri(text, Path("/folder"), "x") == expected


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (None, CliExit.FAILED),
        (FineTuneJobStatus(phase="Succeeded", verdict="Passed"), CliExit.SUCCEEDED),
        (FineTuneJobStatus(phase="Succeeded"), CliExit.SUCCEEDED),
        (FineTuneJobStatus(phase="Succeeded", verdict="Failed"), CliExit.GATES_FAILED),
        (FineTuneJobStatus(phase="Succeeded", verdict="Inconclusive"), CliExit.INCONCLUSIVE),
        (FineTuneJobStatus(phase="Failed"), CliExit.FAILED),
        (FineTuneJobStatus(phase="Cancelled"), CliExit.FAILED),
        (FineTuneJobStatus(phase="Suspended"), CliExit.SUSPENDED),
    ],
)
def test_exit_codes(status: FineTuneJobStatus | None, code: CliExit) -> None:
    assert exit_code(status) == code


@pytest.mark.parametrize(
    ("seconds", "told"), [(0, "0 s"), (59.4, "59 s"), (185, "3 min 05 s"), (7500, "2 h 05 min"), (-1, "0 s")]
)
def test_durations(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(("count", "told"), [(71, "71 B"), (2048, "2.0 KiB"), (5 * 1024**3, "5.0 GiB")])
def test_sizes(count: int, told: str) -> None:
    assert size(count) == told


@pytest.mark.parametrize(("seconds", "told"), [(5, "5s"), (300, "5m"), (7200, "2h"), (200000, "2d")])
def test_ages(seconds: int, told: str) -> None:
    assert age(NOW - timedelta(seconds=seconds), NOW) == told


@pytest.mark.parametrize("text", ["x", "x@", "@v1", "x@v0", "x@latest", "X@v1", "x@v1@v2", "x@1e3"])
def test_version_names_that_are_none(text: str) -> None:
    with pytest.raises(CliError, match="does not name a version"):
        parse_version_name(text)


def shown(table: object) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_table_says_what_decides_and_leaves_unknown_references_open() -> None:
    gates = [
        GateResult(gate="f1 >= 0.85", verdict="Inconclusive", candidate=0.86, low=0.8, high=0.9, rows_to_decide=700),
        GateResult(gate="f1 >= incumbent - 5%", verdict="Passed", candidate=0.86),
    ]
    lines = shown(metrics_table(gates, {"f1": 0.86, "loss": 0.5}, None)).splitlines()

    assert "0.860 (0.800 to 0.900)" in lines[1]
    assert "about 700 test rows would decide" in " ".join(lines)
    passed = next(line for line in lines if "incumbent" in line)
    assert passed.split() == ["f1", "-", "0.860", "-", "f1", ">=", "incumbent", "-", "5%", "Passed"]
    assert "loss (lower is better)" in lines[-1]


def running(percent: float) -> tuple[FineTuneJobStatus, Progress]:
    stage = StageStatus(name="train", attempt=1, state="Running", job_name="x")
    progress = Progress(stage="train", step=int(percent), total_steps=100, percent=percent, eta_seconds=75, loss=0.5)
    return FineTuneJobStatus(run=1, phase="Training", stages=[stage]), progress


@pytest.mark.parametrize(
    ("rates", "words"),
    [
        ({"seconds_per_step": 2.345, "tokens_per_second": 12345.6}, "  2.3 s/step  12,346 tokens/s  "),
        ({"seconds_per_step": 0.04, "tokens_per_second": 900.0}, "  25.0 steps/s  900 tokens/s  "),
        ({"seconds_per_step": 0.0, "tokens_per_second": 0.0}, "left  loss"),
        ({}, "left  loss"),
    ],
)
def test_progress_tells_how_fast_training_goes(rates: dict[str, float], words: str) -> None:
    assert words in progress_words(running(10)[1].model_copy(update=rates))


def test_plain_view_has_one_line_per_change() -> None:
    console = Console(file=io.StringIO(), width=140)
    moments = iter([0.0, 0.0, 1.0, 2.0, 2.0, 12.5, 12.5])
    view = PlainView(console, clock=lambda: next(moments))
    status, progress = running(10)
    view.update(status, progress)
    view.update(status, running(11)[1])
    view.update(status, progress.model_copy(update={"step": 12, "validation_loss": 0.7}))
    view.update(status, progress.model_copy(update={"step": 30, "validation_loss": 0.7}))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]

    assert lines == [
        "3/5 train started",
        "3/5 train 10%  10/100  1 min 15 s left  loss 0.500",
        "3/5 train 10%  12/100  1 min 15 s left  loss 0.500  validation loss 0.700",
        "3/5 train 10%  30/100  1 min 15 s left  loss 0.500  validation loss 0.700",
    ]


def test_live_view_shows_phase_bar_and_time_left() -> None:
    console = Console(file=io.StringIO(), width=140, force_terminal=True)
    with LiveView(console, "support-triage") as view:
        view.update(*running(42))
        view.note("a note")
    written = console.file.getvalue()  # type: ignore[attr-defined]

    for expected in ("support-triage", "Training", "42%", "1 min 15 s left", "loss 0.500", "a note"):
        assert expected in written


def test_every_verb_has_help_with_examples(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"run", "validate", "approve", "reject", "try", "init", "list", "status", "cancel"} <= verb_files().keys()
    for verb in verb_files():
        with pytest.raises(SystemExit) as ended:
            main([verb, "--help"])
        assert ended.value.code == 0
        assert re.search(rf"  (kubectl )?finetune {verb}\b", capsys.readouterr().out)
    assert main(["--help"]) == 0
    assert "exit codes:" in capsys.readouterr().out


def test_internal_errors_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("finetune_cli.verbs.version.print_machine", lambda *_: 1 / 0)

    assert main(["version", "-o", "json"]) == 1
    assert capsys.readouterr().err.startswith("internal error: ZeroDivisionError: division by zero\n  Add --debug")
    with pytest.raises(ZeroDivisionError):
        main(["version", "-o", "json", "--debug"])


def test_nothing_heavy_is_imported() -> None:
    verbs = "finetune_cli.verbs.run, finetune_cli.verbs.validate"
    code = f"import sys, {verbs}; print(sorted({{name.split('.')[0] for name in sys.modules}}))"
    modules = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout

    for heavy in ("torch", "transformers", "boto3", "kopf", "kubernetes", "finetune_runner", "numpy"):
        assert f"'{heavy}'" not in modules
