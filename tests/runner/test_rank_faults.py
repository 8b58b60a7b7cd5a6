"""One rank fails: all end together, soon, with the first cause. Real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetune_api.exit_codes import ExitCode
from finetune_runner.errors import StageError
from finetune_runner.stages import train
from finetune_runner.training.launch import FIRST_FAILURE_FILE, OUTCOME_FILE, out_of_memory_kills, outcome_of
from finetune_runner.training.worker import lost_peer
from tests.runner.tiny import World, make_world

FAULTS = Path(__file__).parent / "faults"


def pair(folder: Path, model: Path, monkeypatch: pytest.MonkeyPatch, strategy: str = "ddp", **plan: Any) -> World:
    """A run of two processes."""
    world = make_world(folder, model, strategy=strategy, micro_batch_size=2, total_steps=4, eval_steps=2, **plan)
    monkeypatch.setenv("FINETUNE_CPU_PROCESSES", "2")
    monkeypatch.setenv("FINETUNE_SCRATCH", str(folder / "scratch"))
    return world


@pytest.mark.parametrize(
    ("fault", "strategy", "code", "words"),
    [
        ("raise", "ddp", ExitCode.DISK_FULL, "no space left for /scratch/x"),
        ("kill", "ddp", ExitCode.INTERNAL, "rank 1 was killed by SIGKILL"),
        ("hang", "ddp", ExitCode.HUNG, "rank 0 waited in vain"),
        ("raise", "fsdp", ExitCode.DISK_FULL, "no space left for /scratch/x"),
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


def test_the_main_process_that_cannot_write_the_curve_fails_the_run(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = pair(tmp_path, tiny_model, monkeypatch)
    (world.folder / "store/team/triage/runs/uid-1/1/train/history.json").mkdir(parents=True)
    with pytest.raises(StageError) as failed:
        train.run(world.context("train"))
    assert "history.json" in failed.value.message + failed.value.evidence


def test_sharded_ranks_save_on_a_stop_and_another_world_resumes(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = make_world(tmp_path / "alone", tiny_model, total_steps=4, eval_steps=2)
    undisturbed, _ = train.run(alone.context("train"))
    world = pair(tmp_path / "pair", tiny_model, monkeypatch, "fsdp")
    monkeypatch.setenv("FAULT", "stop")
    monkeypatch.setenv("PYTHONPATH", str(FAULTS))
    with pytest.raises(StageError, match="saved a checkpoint at step 1") as stopped:
        train.run(world.context("train"))
    assert stopped.value.exit_code == ExitCode.INTERRUPTED
    folder = world.folder / "store/team/triage/runs/uid-1/1/train/checkpoints/step-1"
    files = json.loads((folder / "checkpoint.json").read_text())["files"]
    assert {"adapter_model.safetensors", "optimizer-1-of-2.safetensors", "optimizer-2-of-2.safetensors"} <= set(files)

    resumed, _ = train.run(world.with_plan(strategy="single", micro_batch_size=4).context("train"))
    assert undisturbed.train is not None
    assert resumed.train is not None
    assert resumed.train.resumed_from_step == 1
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
