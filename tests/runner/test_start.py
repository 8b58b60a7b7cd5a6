"""What a process of the runner imports: seconds of every pod and every rank (benchmarks/start_time.py)."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.start_time import BEGIN, METRICS, MODEL
from finetune_runner.training.eager_imports import VARIABLE, import_unseen, nothing_compiles

HEAVY = ("torch._inductor.compile_fx", "nltk", "sklearn", "pandas", "deepspeed")
"""What nothing needs that trains on a base with LoRA and judges answers."""


def test_a_base_with_an_adapter_and_its_answers_judged_need_no_compiler_and_no_statistics(tiny_model: Path) -> None:
    facts = f"""
heavy = [name for name in {HEAVY} if name in sys.modules]
print(json.dumps([heavy, os.environ.get("{VARIABLE}"), gc.isenabled(), gc.get_freeze_count(), len(gc.get_objects())]))
"""
    code = BEGIN + "import gc, json\n" + MODEL.format(method="lora") + METRICS + facts
    done = subprocess.run([sys.executable, "-c", code, str(tiny_model)], check=True, capture_output=True, text=True)
    heavy, variable, collects, frozen, seen = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    assert variable is None, "vLLM, which may come after it in this process, compiles"
    assert collects
    assert seen < frozen / 5, "the collector looks at little more than what the model itself made"


@pytest.mark.parametrize("before", [None, "0"])
def test_nothing_compiles_until_it_ends(before: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def double(number: int) -> int:
        return 2 * number

    monkeypatch.delenv(VARIABLE, raising=False)
    if before is not None:
        monkeypatch.setenv(VARIABLE, before)
    with nothing_compiles():
        assert torch.compile(double) is double
    assert os.environ.get(VARIABLE) == before
    with pytest.raises(KeyError), nothing_compiles():
        raise KeyError
    assert os.environ.get(VARIABLE) == before


@pytest.mark.parametrize("collects", [True, False])
def test_modules_are_imported_out_of_the_collectors_sight_once(
    collects: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "made_unseen.py").write_text("import gc\nwas_enabled, made = gc.isenabled(), [[]]\n")
    (tmp_path / "fails_unseen.py").write_text("raise KeyError\n")
    monkeypatch.syspath_prepend(tmp_path)
    if not collects:
        gc.disable()
    try:
        import_unseen("made_unseen")
        module = sys.modules.pop("made_unseen")
        assert not module.was_enabled
        assert gc.isenabled() == collects
        assert not any(seen is module.made for seen in gc.get_objects())
        with pytest.raises(KeyError):
            import_unseen("fails_unseen")
        assert gc.isenabled() == collects

        garbage: list[object] = []
        import_unseen("json")
        assert any(seen is garbage for seen in gc.get_objects()), "nothing was imported, so nothing is kept"
    finally:
        gc.enable()
