"""What a process of the runner imports: seconds of every pod and every rank (benchmarks/start_time.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.start_time import BEGIN, METRICS, MODEL
from finetune_runner.training.eager_imports import VARIABLE, nothing_compiles

HEAVY = ("torch._inductor.compile_fx", "nltk", "sklearn", "pandas", "deepspeed")
"""What nothing needs that trains on a base with LoRA and judges answers."""


def test_a_base_with_an_adapter_and_its_answers_judged_need_no_compiler_and_no_statistics(tiny_model: Path) -> None:
    facts = f'print(json.dumps([[name for name in {HEAVY} if name in sys.modules], os.environ.get("{VARIABLE}")]))'
    code = BEGIN + "import json\n" + MODEL.format(method="lora") + METRICS + facts
    done = subprocess.run([sys.executable, "-c", code, str(tiny_model)], check=True, capture_output=True, text=True)
    heavy, variable = json.loads(done.stdout.splitlines()[-1])
    assert heavy == []
    assert variable is None, "vLLM, which may come after it in this process, compiles"


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
