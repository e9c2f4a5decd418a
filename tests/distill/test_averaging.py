"""The moving average of the weights, by itself and in the training loop."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from ckd.config import TrainConfig
from ckd.distill.averaging import Average
from ckd.distill.trainer import Trainer

MakeTrainer = Callable[..., Trainer]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=8), st.floats(0.01, 0.999))
def test_the_average_is_the_sum_of_its_weighted_past(values: list[float], decay: float) -> None:
    parameter = nn.Parameter(torch.full((3,), values[0]))
    average = Average([parameter], decay)
    expected = values[0]
    for value in values[1:]:
        parameter.data.fill_(value)
        average.update()
        expected = decay * expected + (1 - decay) * value
    torch.testing.assert_close(average.tensors()["0"], torch.full((3,), expected), rtol=1e-4, atol=1e-4)


def test_the_parameters_hold_the_average_for_a_while_only() -> None:
    parameter = nn.Parameter(torch.tensor([1.0, 2.0]))
    average = Average([parameter], 0.5)
    parameter.data.copy_(torch.tensor([3.0, 0.1]))
    average.update()

    def fail() -> None:
        with average.in_place():
            assert parameter.tolist() == pytest.approx([2.0, 1.05])
            raise RuntimeError("on the way")

    with pytest.raises(RuntimeError, match="on the way"):
        fail()
    assert torch.equal(parameter, torch.tensor([3.0, 0.1]))
    assert average.tensors()["0"].tolist() == pytest.approx([2.0, 1.05])


def test_what_is_kept_is_the_average_and_the_steps_are_the_same(make_trainer: MakeTrainer, tmp_path: Path) -> None:
    """Averaging looks on: the weights move as without it, and validation and the best checkpoint see their average."""
    decay = 0.7
    expected: dict[str, torch.Tensor] = {}
    after: list[dict[str, torch.Tensor]] = []
    seen: list[dict[str, torch.Tensor]] = []

    def weights() -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}

    def note(*_: Any) -> None:
        for name, value in weights().items():
            expected[name] = decay * expected[name] + (1 - decay) * value

    def validate() -> dict[str, float]:
        seen.append(weights())
        after.append({name: value.clone() for name, value in expected.items()})
        return {"ndcg@10": next(scripted)}

    plain = make_trainer(tmp_path / "plain", seed=5, teachers=2)
    plain.fit()
    trainer = make_trainer(tmp_path / "averaged", seed=5, teachers=2, ema=decay, on_step=note)
    expected = weights()
    scripted = iter([0.1, 0.4, 0.2, 0.3])
    trainer.validate = validate  # type: ignore[method-assign]
    trained = trainer.fit()
    assert len(seen) == 4
    for found, right in zip(seen, after, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-6)
    assert trained.best_epoch == 1
    best, last = (load_file(tmp_path / "averaged" / f"{name}.safetensors") for name in ("best", "last"))
    assert all(torch.equal(best[name], value) for name, value in seen[1].items())
    assert all(torch.equal(value, dict(trainer.model.named_parameters())[name]) for name, value in seen[1].items())
    steps = load_file(tmp_path / "plain" / "last.safetensors")
    assert {name for name in last if name.startswith("average.")}
    assert last.keys() - steps.keys() == {name for name in last if name.startswith("average.")}
    assert all(torch.equal(last[name], value) for name, value in steps.items())


def test_a_run_without_an_average_is_the_run_it_was_before_there_was_one() -> None:
    assert "ema" not in TrainConfig().identity()
    assert TrainConfig(ema=0.9).identity()["ema"] == 0.9
