"""One rank fails: all end together, soon, with the first cause. Real processes."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.stages import train
from finetune_runner.training.launch import (
    FIRST_FAILURE_FILE,
    FOLDER_VARIABLE,
    OUTCOME_FILE,
    TASK_FILE,
    out_of_memory_kills,
    outcome_of,
)
from finetune_runner.training.worker import lost_peer
from tests.runner.tiny import World, make_world

FAULTS = Path(__file__).parent / "faults"


SHORT: dict[str, Any] = {"validation": 4, "total_steps": 4, "eval_steps": 2}
ANSWERING = {"learningRate": 1e-2, "globalBatchSize": 8, "maxLength": 128, "earlyStopping": {"patience": 0}}
SILENT = {**ANSWERING, "validationSamples": 0}
"""Training that asks the model nothing, which takes sharded ranks longer than the steps; no rank fails by it here."""


def pair(
    folder: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    strategy: str = "ddp",
    training: dict[str, Any] = SILENT,
) -> World:
    """A run of two processes."""
    world = make_world(folder, model, strategy=strategy, micro_batch_size=2, spec={"training": training}, **SHORT)
    monkeypatch.setenv("FINETUNE_CPU_PROCESSES", "2")
    monkeypatch.setenv("FINETUNE_SCRATCH", str(folder / "scratch"))
    return world


def run_folder(world: World) -> Path:
    return world.folder / "store/team/triage/runs/uid-1/1"


def curve(world: World) -> list[dict[str, Any]]:
    points: list[dict[str, Any]] = json.loads((run_folder(world) / "train/history.json").read_text())
    return points


@pytest.mark.parametrize(
    ("fault", "strategy", "code", "words"),
    [
        ("raise", "ddp", ExitCode.DISK_FULL, "no space left for /scratch/x"),
        ("kill", "ddp", ExitCode.INTERNAL, "rank 1 was killed by SIGKILL"),
        ("kill-torchrun", "ddp", ExitCode.INTERNAL, "torchrun, which starts the ranks, was killed by SIGKILL"),
        ("hang", "ddp", ExitCode.HUNG, "rank 0 waited in vain"),
        ("kill", "fsdp", ExitCode.INTERNAL, "rank 1 was killed by SIGKILL"),
        ("hang", "fsdp", ExitCode.HUNG, "rank 0 waited in vain"),
        ("kill", "deepspeed", ExitCode.INTERNAL, "rank 1 was killed by SIGKILL"),
        ("hang", "deepspeed", ExitCode.HUNG, "rank 0 waited in vain"),
    ],
)
def test_all_ranks_end_with_the_first_cause(
    fault: str,
    strategy: str,
    code: ExitCode,
    words: str,
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = pair(tmp_path, tiny_model, monkeypatch, strategy)
    monkeypatch.setenv("FAULT", fault)
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    monkeypatch.setenv("FINETUNE_COLLECTIVE_TIMEOUT_S", "20" if fault == "hang" else "120")
    with pytest.raises(StageError) as failed:
        train.run(world.context("train"))
    assert words in failed.value.message
    assert failed.value.exit_code == code
    assert_nothing_runs(world)


def assert_nothing_runs(world: World) -> None:
    """No process of the run is there any more; what the kernel was told to kill has a moment to go."""
    ranks = world.folder / "scratch/ranks"
    assert (ranks / TASK_FILE).is_file(), "this is the folder that its processes were told of"
    deadline = time.monotonic() + 10
    while left := told_of(ranks):
        assert time.monotonic() < deadline, left


def told_of(ranks: Path) -> list[str]:
    """Command lines of the processes with this folder in their environment."""
    wanted = f"{FOLDER_VARIABLE}={ranks}".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                found.append((process / "cmdline").read_text().replace("\0", " "))
        except OSError:
            continue  # it has ended, or is another user's
    return found


def test_a_process_that_is_left_running_would_be_seen(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "print('runs', flush=True); input()"]
    environment = {FOLDER_VARIABLE: str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as left:
        assert left.stdout
        assert left.stdout.readline() == b"runs\n"  # the kernel sets its environment up after Popen has returned
        assert len(told_of(tmp_path)) == 1
        left.communicate(b"\n")
    assert told_of(tmp_path) == []


def test_the_main_process_that_cannot_write_the_curve_fails_the_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = pair(tmp_path, tiny_model, monkeypatch)
    (run_folder(world) / "train/history.json").mkdir(parents=True)
    with pytest.raises(StageError) as failed:
        train.run(world.context("train"))
    assert "history.json" in failed.value.message + failed.value.evidence


def test_sharded_ranks_save_on_a_stop_and_another_world_resumes(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = make_world(tmp_path / "alone", tiny_model, spec={"training": SILENT}, **SHORT)
    undisturbed, _ = train.run(alone.context("train"))
    world = pair(tmp_path / "pair", tiny_model, monkeypatch, "fsdp")
    monkeypatch.setenv("FAULT", "stop")
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    with pytest.raises(StageError, match="saved a checkpoint at step 1") as stopped:
        train.run(world.context("train"))
    assert stopped.value.exit_code == ExitCode.INTERRUPTED
    folder = run_folder(world) / "train/checkpoints/step-1"
    files = json.loads((folder / "checkpoint.json").read_text())["files"]
    assert {"adapter_model.safetensors", "optimizer-1-of-2.safetensors", "optimizer-2-of-2.safetensors"} <= set(files)

    resumed, _ = train.run(world.with_plan(strategy="single", micro_batch_size=4).context("train"))
    assert undisturbed.train is not None
    assert resumed.train is not None
    assert resumed.train.resumed_from_step == 1
    assert resumed.train.best_validation_loss == pytest.approx(undisturbed.train.best_validation_loss, rel=1e-5)


def test_a_stop_during_a_slow_evaluation_of_two_ranks_loses_no_step(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = make_world(tmp_path / "alone", tiny_model, **SHORT)
    train.run(undisturbed.context("train"))
    world = pair(tmp_path / "pair", tiny_model, monkeypatch, "fsdp", ANSWERING)
    monkeypatch.setenv("FAULT", "stop-evaluation")
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    with pytest.raises(StageError, match="saved a checkpoint at step 2") as stopped:
        train.run(world.context("train"))
    assert stopped.value.exit_code == ExitCode.INTERRUPTED
    assert_nothing_runs(world)

    resumed, _ = train.run(world.with_plan(strategy="single", micro_batch_size=4).context("train"))
    assert resumed.train is not None
    assert resumed.train.resumed_from_step == 2
    losses, wanted = ({point["step"]: point["validation_loss"] for point in curve(run)} for run in (world, undisturbed))
    assert losses == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("strategy", "resumed_by"),
    [("fsdp", {"strategy": "single", "micro_batch_size": 4}), ("deepspeed", {"strategy": "deepspeed"})],
    ids=["fsdp, resumed by one process", "deepspeed"],
)
def test_a_damaged_shard_of_a_checkpoint_is_named_and_the_one_before_is_used(
    strategy: str,
    resumed_by: dict[str, Any],
    tmp_path: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    world = pair(tmp_path, tiny_model, monkeypatch, strategy)
    undisturbed, _ = train.run(world.context("train"))
    shard = run_folder(world) / "train/checkpoints/step-4/optimizer-2-of-2.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with caplog.at_level(logging.WARNING):
        resumed, _ = train.run(world.with_plan(**resumed_by).context("train"))
    captured = capfd.readouterr()
    said = caplog.text + captured.out + captured.err  # of this process, or of its ranks
    assert "step-4 is skipped: optimizer-2-of-2.safetensors does not have the recorded sha256" in said
    assert undisturbed.train is not None
    assert resumed.train is not None
    assert resumed.train.resumed_from_step == 2
    assert resumed.train.best_validation_loss == pytest.approx(undisturbed.train.best_validation_loss, rel=1e-5)


@pytest.mark.parametrize(
    ("exit_code", "memory_kills", "code", "words"),
    [
        (-9, 0, ExitCode.INTERNAL, "rank 3 was killed by SIGKILL"),
        (-9, 1, ExitCode.HOST_OUT_OF_MEMORY, "rank 3 was killed by SIGKILL"),
        (-6, 0, ExitCode.INTERNAL, "rank 3 was killed by SIGABRT"),
        (1, 0, ExitCode.INTERNAL, "rank 3 ended with 1 and left no cause"),
    ],
)
def test_a_rank_that_leaves_nothing_is_named(
    exit_code: int, memory_kills: int, code: ExitCode, words: str, tmp_path: Path
) -> None:
    (tmp_path / FIRST_FAILURE_FILE).write_text(json.dumps({"rank": 3, "exitCode": exit_code}))
    with pytest.raises(StageError) as failed:
        outcome_of(tmp_path, 1, memory_kills)
    assert words in failed.value.message
    assert failed.value.exit_code == code


@pytest.mark.parametrize(("memory_kills", "code"), [(0, ExitCode.INTERNAL), (1, ExitCode.HOST_OUT_OF_MEMORY)])
def test_torchrun_itself_may_be_what_was_killed(memory_kills: int, code: ExitCode, tmp_path: Path) -> None:
    with pytest.raises(StageError, match="torchrun, which starts the ranks, was killed by SIGKILL") as failed:
        outcome_of(tmp_path, -9, memory_kills)
    assert failed.value.exit_code == code


@pytest.mark.parametrize(
    ("text", "kills"),
    [
        ("low 0\nhigh 0\nmax 41\noom 3\noom_kill 2\noom_group_kill 0\n", 2),  # memory.events of cgroup v2
        ("oom_kill_disable 0\nunder_oom 0\noom_kill 1\n", 1),  # memory.oom_control of cgroup v1
        ("oom_kill_disable 0\nunder_oom 0\n", 0),  # before Linux 4.13
    ],
)
def test_kills_for_want_of_memory_are_counted_in_both_versions_of_cgroups(
    text: str, kills: int, tmp_path: Path
) -> None:
    (tmp_path / "counter").write_text(text)
    assert out_of_memory_kills([tmp_path / "none", tmp_path / "counter"]) == kills


def test_a_cause_goes_before_what_torchrun_saw(tmp_path: Path) -> None:
    (tmp_path / FIRST_FAILURE_FILE).write_text(json.dumps({"rank": 0, "exitCode": -15}))
    failure = {"exitCode": 88, "message": "diverged", "hint": "", "evidence": ""}
    (tmp_path / OUTCOME_FILE).write_text(json.dumps({"failure": failure}))
    with pytest.raises(StageError, match="diverged"):
        outcome_of(tmp_path, 1, 0)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("[/gloo/transport/tcp/pair.cc:552] Connection closed by peer [127.0.0.1]:4711", ExitCode.INTERRUPTED),
        ("[/gloo/transport/tcp/unbound_buffer.cc] Timed out waiting 20000ms for recv operation", ExitCode.HUNG),
        ("mat1 and mat2 shapes cannot be multiplied", None),
    ],
)
def test_losing_a_peer_is_no_cause_and_waiting_in_vain_is_a_hang(text: str, code: ExitCode | None) -> None:
    found = lost_peer(RuntimeError(text), 0)
    assert (found.exit_code if found else None) == code
