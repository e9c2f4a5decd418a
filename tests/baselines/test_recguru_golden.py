"""RecGURU against recorded numbers of the published program."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch.nn import functional as F

from ckd.baselines.recguru_parts.layers import Critic
from ckd.baselines.recguru_parts.losses import critic_loss, gradient_penalty, products
from ckd.baselines.recguru_parts.pair import SIDES, RecGURUPair
from ckd.baselines.recguru_parts.sequences import Sequences, end_with_mark


@dataclass(frozen=True)
class Sizes:
    d_model: int
    d_ff: int
    d_k: int
    d_v: int
    n_heads: int
    n_blocks: int
    dropout: float


@pytest.fixture(scope="session")
def golden(golden_dir) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(golden_dir / "recguru_golden.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        return tensors, json.loads(file.metadata()["config"])


@pytest.fixture
def pair(golden) -> RecGURUPair:
    tensors, c = golden
    sizes = Sizes(c["d_model"], c["d_ff"], c["d_k"], c["d_v"], c["num_heads"], c["num_blocks"], c["dropout_rate"])
    found = RecGURUPair(sizes, c["vocab_size_a"], c["vocab_size_b"], c["enc_maxlen"])
    found.load_state_dict({k.removeprefix("param."): v for k, v in tensors.items() if k.startswith("param.")})
    return found.eval()


@pytest.fixture
def critic(golden) -> Critic:
    tensors, c = golden
    found = Critic(c["d_model"])
    found.load_state_dict({k.removeprefix("param_disc."): v for k, v in tensors.items() if k.startswith("param_disc.")})
    return found.eval()


def batch_of(tensors: dict[str, torch.Tensor], side: str) -> Sequences:
    return Sequences(*(tensors[f"in.{side}.{name}"] for name in ("enc_in", "dec_in", "dec_out")))


def near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("side", SIDES)
def test_golden_recguru_sequences(golden, side) -> None:
    tensors, c = golden
    raw = []
    while f"in.{side}.raw_seq{len(raw)}" in tensors:
        raw.append(tensors[f"in.{side}.raw_seq{len(raw)}"])
    lengths = torch.tensor([len(each) for each in raw])
    histories = torch.nn.utils.rnn.pad_sequence(raw, batch_first=True)
    encoder = end_with_mark(histories, lengths, c["enc_maxlen"], c[f"vocab_size_{side}"])
    found, expected = Sequences.for_training(encoder), batch_of(tensors, side)
    assert torch.equal(found.encoder, expected.encoder)
    assert torch.equal(found.inputs, expected.inputs)
    assert torch.equal(found.outputs, expected.outputs)


@pytest.mark.parametrize("side", SIDES)
def test_golden_recguru_outputs(golden, pair, side) -> None:
    tensors, c = golden
    batch = batch_of(tensors, side)
    near(pair.states(side, batch.encoder), tensors[f"out.{side}.enc_all"])
    near(pair.users(side, batch.encoder), tensors[f"out.{side}.user_embed"])
    users = pair.users(side, batch.encoder, batch.outputs)
    near(pair.recommend(side, batch, users), tensors[f"out.{side}.recommend_forward"])
    negatives = tensors[f"in.{side}.neg_recon"].view(*batch.encoder.shape, c["n_negs"])
    items = torch.cat([batch.outputs[..., None], negatives], dim=-1)
    logits = products(pair.reconstruct(side, batch, users), pair.table(side)[items])
    near(logits, tensors[f"out.{side}.recon_logits"])


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("kind", ["recon", "bpr"])
def test_golden_recguru_losses(golden, pair, side, kind) -> None:
    tensors, _ = golden
    batch = batch_of(tensors, side)
    negatives = tensors[f"in.{side}.neg_{kind}"].view(*batch.encoder.shape, -1)
    loss_of = pair.reconstruction_loss if kind == "recon" else pair.recommendation_loss
    loss = loss_of(side, batch, negatives)
    near(loss, tensors[f"out.{side}.loss_{kind}"])
    loss.backward()
    prefix = f"grad.{side}.loss_{kind}."
    expected = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
    found = {name: weight.grad for name, weight in pair.named_parameters() if weight.grad is not None}
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, atol=1e-5, rtol=1e-4, msg=lambda m, n=name: f"{n}: {m}")


def test_golden_recguru_critic(golden, pair, critic) -> None:
    tensors, _ = golden
    users = [pair.users(side, tensors[f"in.{side}.enc_in"]) for side in SIDES]
    scores = [critic(each) for each in users]
    near(scores[0], tensors["out.D_a"])
    near(scores[1], tensors["out.D_b"])
    near(critic_loss(*scores), tensors["out.critic_loss_no_gp"])
    near(-critic_loss(*scores), tensors["out.gen_loss"])
    near(F.mse_loss(*users), tensors["out.overlap_mse"])
    (weighted,) = (key for key in tensors if key.startswith("out.grad_penalty_lambda"))
    penalty = gradient_penalty(critic, *users, tensors["in.gp_alpha"])
    near(float(weighted.removeprefix("out.grad_penalty_lambda")) * penalty, tensors[weighted])
