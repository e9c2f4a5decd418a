"""UniSRec against recorded numbers of the published code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from ckd.data.batch import Batch
from ckd.distill.losses import full_softmax_loss
from ckd.teachers.unisrec import UniSRec, UniSRecConfig
from ckd.teachers.unisrec_parts.config import UniSRecPretrainConfig
from ckd.teachers.unisrec_parts.pretrain import Views, pretraining_losses

Recorded = tuple[dict[str, torch.Tensor], dict[str, Any]]

MODES = ("inductive", "transductive")
VIEWS = ("item_drop", "word_drop")
PARTS = {"loss_seq_item": "item", "loss_seq_seq": "sequence", "loss_total": "loss"}


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> Recorded:
    with safe_open(golden_dir / "unisrec_golden.safetensors", "pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, json.loads(file.metadata()["config"])  # noqa: SIM118


def sizes(c: dict[str, Any]) -> dict[str, Any]:
    return {
        "hidden_size": c["hidden_size"],
        "inner_size": c["inner_size"],
        "n_layers": c["n_layers"],
        "n_heads": c["n_heads"],
        "n_experts": c["n_exps"],
        "hidden_dropout": c["hidden_dropout_prob"],
        "attention_dropout": c["attn_dropout_prob"],
        "adaptor_dropout": c["adaptor_dropout_prob"],
        "temperature": c["temperature"],
        "layer_norm_eps": c["layer_norm_eps"],
        "initializer_range": c["initializer_range"],
    }


def build(recorded: Recorded, mode: str, dtype: torch.dtype) -> tuple[UniSRec, Batch]:
    tensors, c = recorded
    features = torch.zeros_like(tensors["param.plm_embedding.weight"])
    model = UniSRec(UniSRecConfig(mode=mode, **sizes(c)), features, c["n_items"] - 1, c["max_len"])
    state = {k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")}
    if mode == "inductive":
        del state["item_embedding.weight"]
    model.load_state_dict(state)
    batch = Batch.from_histories(tensors["in.item_id_list"], tensors["in.item_length"], tensors["in.item_id"])
    return model.to(dtype).eval(), batch


def golden(recorded: Recorded, key: str, dtype: torch.dtype) -> torch.Tensor:
    return recorded[0][("out64." if dtype == torch.float64 else "out.") + key]


def assert_golden(found: torch.Tensor, expected: torch.Tensor, what: str = "") -> None:
    tolerance = 1e-8 if found.dtype == torch.float64 else 1e-5
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0, msg=lambda text: f"{what}: {text}")


def fine_tuning_loss(model: UniSRec, batch: Batch) -> torch.Tensor:
    encoded, table = model(batch)
    scale, pad_in_softmax = model.logit_scale, model.pad_in_softmax
    return full_softmax_loss(encoded, table, batch.targets, scale=scale, pad_in_softmax=pad_in_softmax)[0]


def views_of(recorded: Recorded, view: str, dtype: torch.dtype) -> tuple[UniSRec, Views]:
    """A pre-training model over the texts and the texts with words dropped, and the recorded batch and view."""
    tensors, c = recorded
    table, dropped = tensors["param.plm_embedding.weight"], tensors["param_aux.plm_embedding_aug.weight"]
    prefix = f"in.pretrain.{view}."
    ids, lengths = tensors[prefix + "item_id_list_aug"].clone(), tensors[prefix + "item_length_aug"]
    # Which items of the view read the second table is not recorded; their vectors tell.
    from_dropped = (tensors[prefix + "item_emb_list_aug"] != table[ids]).any(dim=-1) & (ids > 0)
    assert view == "word_drop" or not bool(from_dropped.any())
    ids += len(table) * from_dropped
    stacked = torch.cat([table, dropped])
    inside = ids > 0
    assert torch.equal(stacked[ids][inside], tensors[prefix + "item_emb_list_aug"][inside])
    model = UniSRec(UniSRecPretrainConfig(**sizes(c)), stacked, len(stacked) - 1, c["max_len"])
    keys = set(model.state_dict())
    model.load_state_dict({key: tensors[f"param.{key}"] for key in keys})
    batch = Batch.from_histories(tensors["in.item_id_list"], tensors["in.item_length"], tensors["in.item_id"])
    views = Views.of(batch, Batch.from_histories(ids, lengths, batch.targets))
    return model.to(dtype).eval(), views


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_golden_unisrec_adaptor(recorded: Recorded, dtype: torch.dtype) -> None:
    model, _ = build(recorded, "inductive", dtype)
    features = model.plm_embedding.weight
    assert_golden(model.moe_adaptor(features), golden(recorded, "moe_item_table", dtype))
    if dtype == torch.float32:
        assert_golden(model.moe_adaptor.gates(features), golden(recorded, "moe_gates_item_table", dtype))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])
def test_golden_unisrec_fine_tuning(recorded: Recorded, mode: str, dtype: torch.dtype, grad: bool) -> None:
    model, batch = build(recorded, mode, dtype)
    with torch.set_grad_enabled(grad):
        expected = F.normalize(golden(recorded, f"{mode}.seq_output", dtype), dim=-1)
        encoded, table = model(batch)
        for found in (encoded, model.encode(batch)):
            assert_golden(found, expected)
            assert_golden(found @ table.T, golden(recorded, f"{mode}.full_sort_scores", dtype))
            assert_golden(model.score_items(found), golden(recorded, f"{mode}.full_sort_scores", dtype))
        assert_golden(fine_tuning_loss(model, batch), golden(recorded, f"{mode}.ft_loss", dtype))


@pytest.mark.parametrize("mode", MODES)
def test_golden_unisrec_as_a_teacher(recorded: Recorded, mode: str) -> None:
    model, batch = build(recorded, mode, torch.float32)
    model.train()
    scores = model.encode_instances(batch) @ model.encode_items(torch.arange(1, model.n_items + 1)).T
    assert_golden(scores, golden(recorded, f"{mode}.full_sort_scores", torch.float32)[:, 1:])
    assert model.training


@pytest.mark.parametrize("mode", MODES)
def test_golden_unisrec_fine_tuning_gradients(recorded: Recorded, mode: str) -> None:
    model, batch = build(recorded, mode, torch.float32)
    fine_tuning_loss(model, batch).backward()
    assert_gradients(model, recorded, f"grad.{mode}.ft_loss.")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_golden_unisrec_pretraining_losses(recorded: Recorded, view: str, dtype: torch.dtype) -> None:
    model, views = views_of(recorded, view, dtype)
    losses = pretraining_losses(model, views, recorded[1]["lambda"])
    for key, name in PARTS.items():
        assert_golden(losses[name], golden(recorded, f"pretrain.{view}.{key}", dtype), name)
    alone = pretraining_losses(model, views, 0.0)
    assert torch.equal(alone["loss"], losses["item"])


@pytest.mark.parametrize("view", VIEWS)
def test_golden_unisrec_pretraining_gradients(recorded: Recorded, view: str) -> None:
    tensors, c = recorded
    prefixes = {
        key.rpartition(f"{view}.")[0] + f"{view}.{part}."
        for key in tensors
        for part in PARTS
        if key.startswith("grad.pretrain.") and f".{view}.{part}." in key
    }
    assert prefixes
    for prefix in sorted(prefixes):
        model, views = views_of(recorded, view, torch.float32)
        pretraining_losses(model, views, c["lambda"])[PARTS[prefix.split(".")[-2]]].backward()
        assert_gradients(model, recorded, prefix)


def assert_gradients(model: UniSRec, recorded: Recorded, prefix: str) -> None:
    tensors, _ = recorded
    found = {name: p.grad for name, p in model.named_parameters()}
    expected = {key.removeprefix(prefix) for key in tensors if key.startswith(prefix)}
    assert expected
    assert expected <= set(found)
    for name, grad in found.items():
        if name not in expected:
            # Not recorded because nothing flows there: the noise of the gates is off outside training.
            assert grad is None or not bool(grad.any()), name
            continue
        expected_grad = tensors[prefix + name]
        assert grad is not None, name
        torch.testing.assert_close(grad, expected_grad, atol=1e-5, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("stage", ["inductive", "transductive", "pretrain"])
def test_golden_unisrec_key_layout(recorded: Recorded, golden_dir: Path, stage: str) -> None:
    published = set(json.loads((golden_dir / "unisrec_state_dict_keys.json").read_text())[stage])
    if stage == "pretrain":
        model, _ = views_of(recorded, "item_drop", torch.float32)
        assert set(model.state_dict()) == published
    else:
        model, _ = build(recorded, stage, torch.float32)
        # The frozen text vectors stay with the domain.
        assert set(model.state_dict()) == published - {"plm_embedding.weight"}
