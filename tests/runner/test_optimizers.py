"""Every optimiser of the contract: it learns, and its state goes through a file into the very same steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from finetune_api.job.training import Optimizer, Training
from finetune_runner.training.distributed import World
from finetune_runner.training.horizon import Horizon
from finetune_runner.training.optimizer import (
    OPTIMIZERS,
    new_optimizer,
    parameter_state,
    restore_parameter_state,
    trainable,
)
from finetune_runner.training.optimizer_files import SEPARATOR, read_optimizer, write_optimizer

NAMES = get_args(Optimizer)
STEPS = 20


def model() -> Any:
    import torch

    torch.manual_seed(0)
    # 8,192 weights: states of tensors below 4,096 elements stay in fp32 whatever the optimiser.
    return torch.nn.Sequential(torch.nn.Linear(128, 64), torch.nn.Tanh(), torch.nn.Linear(64, 1))


def learn(trained: Any, optimizer: Any, schedule: Any, steps: range) -> list[float]:
    import torch

    losses = []
    for step in steps:
        torch.manual_seed(1000 + step % 2)  # few batches: what falls is not noise
        inputs = torch.randn(32, 128)
        loss = ((trained(inputs) - inputs[:, :1]) ** 2).mean()
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def training(name: str) -> Training:
    rate = 1e-4 if "lion" in name else 1e-2
    return Training.from_wire({"optimizer": name, "learningRate": rate, "weightDecay": 0.01, "warmupRatio": 0})


def save_optimizer(optimizer: Any, trained: Any, folder: Path) -> Path:
    """As an engine does it."""
    states = {name: parameter_state(optimizer, parameter) for name, parameter in trainable(trained).items()}
    return write_optimizer(states, folder, World())


def load_optimizer(optimizer: Any, trained: Any, folder: Path) -> None:
    """As an engine does it."""
    states = read_optimizer(folder)
    for name, parameter in trainable(trained).items():
        restore_parameter_state(optimizer, parameter, states[name])


def test_every_optimiser_of_the_contract_is_there() -> None:
    assert set(OPTIMIZERS) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_optimiser_makes_the_very_same_steps(name: str, tmp_path: Path) -> None:
    import torch

    whole, first = model(), model()
    losses = learn(whole, *new_optimizer(whole, training(name), Horizon(STEPS), 0), range(STEPS))
    assert losses[-2] < losses[0]  # of the same batch

    optimizer, schedule = new_optimizer(first, training(name), Horizon(STEPS), 0)
    learn(first, optimizer, schedule, range(STEPS // 2))
    save_optimizer(optimizer, first, tmp_path)
    second = model()
    second.load_state_dict(first.state_dict())
    optimizer, schedule = new_optimizer(second, training(name), Horizon(STEPS), STEPS // 2)
    load_optimizer(optimizer, second, tmp_path)
    assert learn(second, optimizer, schedule, range(STEPS // 2, STEPS)) == losses[STEPS // 2 :]
    for left, right in zip(whole.parameters(), second.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("name", [name for name in NAMES if "8bit" in name])
def test_states_in_8_bit_are_saved_in_8_bit(name: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    trained = model()
    optimizer, schedule = new_optimizer(trained, training(name), Horizon(STEPS), 0)
    learn(trained, optimizer, schedule, range(1))
    saved = load_file(str(save_optimizer(optimizer, trained, tmp_path)))
    assert str(saved[f"0.weight{SEPARATOR}state1"].dtype) == "torch.uint8"
    assert str(saved[f"0.bias{SEPARATOR}state1"].dtype) == "torch.float32"
    states = 1 if "lion" in name else 2
    measured = sum(t.nbytes for key, t in saved.items() if key.startswith(f"0.weight{SEPARATOR}") and "qmap" not in key)
    assert measured / trained[0].weight.numel() == pytest.approx(1.0156 * states, abs=0.01)


def test_a_state_of_another_model_is_not_taken(tmp_path: Path) -> None:
    import torch

    trained = model()
    optimizer, schedule = new_optimizer(trained, training("lion"), Horizon(STEPS), 0)
    learn(trained, optimizer, schedule, range(1))
    save_optimizer(optimizer, trained, tmp_path)
    other = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    fresh, _ = new_optimizer(other, training("lion"), Horizon(STEPS), 0)
    with pytest.raises(KeyError):
        load_optimizer(fresh, other, tmp_path)
