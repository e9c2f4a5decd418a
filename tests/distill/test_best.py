"""The best model of a run, whenever it was killed."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import pytest
import torch

from ckd.distill.best import Best
from ckd.nn.weights import read_weights


class Killed(Exception):
    """Stands for the end of the process."""


def model(value: float) -> torch.nn.Module:
    linear = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(linear.weight, value)
    return linear


def saved_twice(folder: Path) -> Best:
    best = Best(folder)
    for epoch in (1, 2):
        best.save(model(epoch), {"epoch": epoch}, {"seed": 0})
    return best


def held(best: Best) -> tuple[float, int]:
    return float(read_weights(best.weights)["weight"]), json.loads(best.log.read_text())["log"]["epoch"]


@pytest.mark.parametrize("epoch", [1, 2])
def test_the_best_is_that_of_the_epoch_that_the_checkpoint_says(tmp_path: Path, epoch: int) -> None:
    best = saved_twice(tmp_path)
    best.settle(epoch)
    assert held(best) == (epoch, epoch)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.json", "best.safetensors"]


def test_an_attempt_that_no_checkpoint_counts_gives_way_to_the_next(tmp_path: Path) -> None:
    best = Best(tmp_path)
    for value in (111, 222):
        best.save(model(value), {"epoch": 0}, {"seed": 0})
    best.settle(0)
    assert held(best) == (222, 0)


@pytest.mark.parametrize("epoch", [1, 2])
@pytest.mark.parametrize("step", range(4))
def test_a_kill_while_it_is_settled_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int, step: int
) -> None:
    best = saved_twice(tmp_path)
    steps = 0
    with monkeypatch.context() as patch:
        for name in ("replace", "unlink"):
            real = getattr(Path, name)

            def dying(self: Path, *words: object, real=real, **keys: object) -> object:
                nonlocal steps
                if steps == step:
                    raise Killed
                steps += 1
                return real(self, *words, **keys)

            patch.setattr(Path, name, dying)
        with contextlib.suppress(Killed):
            best.settle(epoch)
    best.settle(epoch)
    assert held(best) == (epoch, epoch)
    assert not list(tmp_path.glob(".former.*"))
