"""Recorded numbers of one published model, and how to compare with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn


@dataclass(frozen=True)
class Recorded:
    """Tensors and configuration of a recording, whatever its sizes."""

    tensors: dict[str, torch.Tensor]
    config: dict[str, Any]

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def rename(self, names: dict[str, str]) -> dict[str, Any]:
        """The configuration under ckd's names."""
        return {ours: self.config[theirs] for ours, theirs in names.items()}

    def load(self, model: nn.Module, dtype: torch.dtype) -> None:
        """Put the recorded weights into the model, all of them and no others, and switch it to evaluation."""
        model.load_state_dict({k.removeprefix("param."): v for k, v in self.tensors.items() if k.startswith("param.")})
        model.to(dtype).eval()

    def check(self, found: torch.Tensor, name: str, where: torch.Tensor | None = None) -> None:
        """Compare with `out.<name>` at 1e-5, and in double with `out64.<name>` at 1e-8 where it is recorded.

        Args:
            where: compare these rows only.
        """
        pick = ... if where is None else where
        found = found[pick]
        torch.testing.assert_close(
            found.float(), self[f"out.{name}"][pick], atol=1e-5, rtol=1e-5, msg=lambda m: f"{name}: {m}"
        )
        exact = self.tensors.get(f"out64.{name}")
        if exact is not None and found.dtype == torch.float64:
            torch.testing.assert_close(found, exact[pick], atol=1e-8, rtol=0, msg=lambda m: f"{name} in double: {m}")

    def check_gradients(self, model: nn.Module, loss: torch.Tensor, name: str) -> None:
        """Compare the loss with `out.<name>` and the gradient of every parameter with `grad.<name>.<parameter>`."""
        self.check(loss, name)
        model.zero_grad()
        loss.backward()
        expected = {
            k.removeprefix(f"grad.{name}."): v for k, v in self.tensors.items() if k.startswith(f"grad.{name}.")
        }
        assert expected.keys() == {parameter for parameter, _ in model.named_parameters()}
        for parameter, weight in model.named_parameters():
            torch.testing.assert_close(
                weight.grad.float(), expected[parameter], atol=1e-5, rtol=1e-4, msg=lambda m, p=parameter: f"{p}: {m}"
            )


@pytest.fixture(scope="session")
def recorded(golden_dir: Path) -> Callable[[str], Recorded]:
    """Reads the recording `<name>_golden.safetensors`."""

    def read(name: str) -> Recorded:
        with safe_open(golden_dir / f"{name}_golden.safetensors", "pt") as file:
            return Recorded(
                {key: file.get_tensor(key) for key in file.keys()},  # noqa: SIM118 (not a mapping)
                json.loads(file.metadata()["config"]),
            )

    return read


@pytest.fixture(params=[torch.float32, torch.float64], ids=["float", "double"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    """Both precisions that the recordings were compared in."""
    found: torch.dtype = request.param
    return found
