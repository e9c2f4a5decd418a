"""SASRec against recorded numbers of RecBole's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from ckd.data.batch import Batch
from ckd.students.sasrec import SASRec, SASRecConfig


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    with safe_open(golden_dir / "sasrec_golden.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])


def build(recorded: tuple[dict[str, torch.Tensor], dict[str, object]], dtype: torch.dtype) -> tuple[SASRec, Batch]:
    tensors, c = recorded
    config = SASRecConfig(
        hidden_size=c["hidden_size"],
        inner_size=c["inner_size"],
        n_layers=c["n_layers"],
        n_heads=c["n_heads"],
        hidden_dropout=c["hidden_dropout_prob"],
        attention_dropout=c["attn_dropout_prob"],
        layer_norm_eps=c["layer_norm_eps"],
        initializer_range=c["initializer_range"],
    )
    model = SASRec(config, n_items=c["n_items"] - 1, max_length=c["max_len"])
    model.load_state_dict({k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")})
    batch = Batch.from_histories(tensors["in.item_id_list"], tensors["in.item_length"], tensors["in.item_id"])
    return model.to(dtype).eval(), batch


def test_golden_sasrec_outputs(recorded) -> None:
    tensors, _ = recorded
    model, batch = build(recorded, torch.float32)
    encoded, table = model(batch)
    scores = encoded @ table.T
    torch.testing.assert_close(encoded, tensors["out.seq_output"], atol=1e-5, rtol=0)
    torch.testing.assert_close(scores, tensors["out.full_sort_scores"], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.score_items(encoded, batch.targets).diag(), tensors["out.predict_item_id"], atol=1e-5, rtol=0)
    torch.testing.assert_close(F.cross_entropy(scores, batch.targets), tensors["out.loss_CE"], atol=1e-5, rtol=0)


def test_golden_sasrec_outputs_in_double(recorded) -> None:
    tensors, _ = recorded
    model, batch = build(recorded, torch.float64)
    encoded, table = model(batch)
    torch.testing.assert_close(encoded @ table.T, tensors["out64.full_sort_scores"], atol=1e-8, rtol=0)


@pytest.mark.parametrize("loss", ["loss_CE", "loss_BPR"])
def test_golden_sasrec_gradients(recorded, loss: str) -> None:
    tensors, _ = recorded
    model, batch = build(recorded, torch.float32)
    encoded, table = model(batch)
    if loss == "loss_CE":
        value = F.cross_entropy(encoded @ table.T, batch.targets)
    else:
        positive = (encoded * table[batch.targets]).sum(1)
        negative = (encoded * table[tensors["in.neg_item_id"]]).sum(1)
        value = -torch.log(1e-10 + torch.sigmoid(positive - negative)).mean()
    torch.testing.assert_close(value, tensors[f"out.{loss}"], atol=1e-5, rtol=0)
    value.backward()
    names = [name for name, _ in model.named_parameters()]
    assert {f"grad.{loss}.{name}" for name in names} <= set(tensors)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, tensors[f"grad.{loss}.{name}"], atol=1e-5, rtol=1e-4, msg=name)
