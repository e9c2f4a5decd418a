"""Recformer against recorded numbers of the published code, and against transformers' own Longformer."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from safetensors import safe_open
from tokenizers import Tokenizer
from torch.nn import functional as F
from transformers import RobertaTokenizer

from ckd.teachers.recformer_parts import model as network
from ckd.teachers.recformer_parts.losses import (
    IGNORED,
    contrastive_loss,
    cosine_logits,
    masked_token_loss,
    next_item_loss,
)
from ckd.teachers.recformer_parts.model import Architecture, Longformer, PretrainingModel
from ckd.teachers.recformer_parts.tokenise import (
    PADDING,
    ItemTokens,
    SpecialTokens,
    TokenBatch,
    TokenLimits,
    compose,
    newest_first,
    read_tokenizer,
)


class Recording:
    """The recorded tensors, texts and configuration."""

    def __init__(self, folder: Path) -> None:
        with safe_open(folder / "recformer_golden.safetensors", "pt") as file:
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
            self.config: dict[str, Any] = json.loads(file.metadata()["config"])
        texts = json.loads((folder / "recformer_golden.json").read_text())
        self.items: list[dict[str, str]] = texts["items"]
        self.tokenized: dict[str, list[list[int]]] = texts["tokenized_items"]
        self.sequences: list[list[int]] = texts["sequences_old_to_new"]
        toy = folder / "recformer_toy_tokenizer"
        roberta = RobertaTokenizer(vocab=str(toy / "vocab.json"), merges=str(toy / "merges.txt"))
        self.tokenizer: Tokenizer = read_tokenizer(roberta.backend_tokenizer.to_str(), str(toy))
        special = texts["special"]
        self.special = SpecialTokens(special["bos"], special["pad"], special["mask"])

    def __getitem__(self, key: str) -> torch.Tensor:
        return self.tensors[key]

    def limits(self, tokens: int | None = None) -> TokenLimits:
        c = self.config
        return TokenLimits(
            c["max_attr_num"], c["max_attr_length"], c["max_item_embeddings"] - 1, tokens or c["max_token_num"]
        )

    @property
    def shape(self) -> Architecture:
        c = self.config
        return Architecture(
            vocab_size=c["vocab_size"],
            hidden_size=c["hidden_size"],
            n_layers=c["num_hidden_layers"],
            n_heads=c["num_attention_heads"],
            inner_size=c["intermediate_size"],
            activation=c["hidden_act"],
            hidden_dropout=c["hidden_dropout_prob"],
            attention_dropout=c["attention_probs_dropout_prob"],
            layer_norm_eps=c["layer_norm_eps"],
            initializer_range=c["initializer_range"],
            windows=tuple(c["attention_window"]),
            max_positions=c["max_position_embeddings"],
            max_item_positions=c["max_item_embeddings"],
            first_token=self.special.first,
            pad_token=self.special.pad,
            mask_token=self.special.mask,
        )

    def model(self, dtype: torch.dtype = torch.float32) -> PretrainingModel:
        model = PretrainingModel(self.shape)
        left_out = ("param.longformer.embeddings.position_ids", "param.lm_head.bias")
        weights = {k.removeprefix("param."): v for k, v in self.tensors.items() if k.startswith("param.")}
        model.load_state_dict({k: v for k, v in weights.items() if f"param.{k}" not in left_out})
        assert torch.equal(self["param.lm_head.bias"], self["param.lm_head.decoder.bias"])
        return model.to(dtype).eval()

    def tokens(self, name: str, side: str = "", ids: str = "input_ids") -> TokenBatch:
        fields = (ids, f"token_type_ids{side}", f"item_position_ids{side}")
        if ids == "input_ids":
            fields = (f"input_ids{side}", *fields[1:])
        found = [self[f"in.{name}.{field}"] for field in fields]
        mask = self[f"in.{name}.attention_mask{side}"]
        batch = TokenBatch(*found, mask.sum(1))
        assert torch.equal(batch.mask.long(), mask)
        assert torch.equal(
            self[f"in.{name}.global_attention_mask{side}"], F.one_hot(torch.zeros(len(mask)).long(), mask.shape[1])
        )
        return batch

    def cut(self, name: str) -> tuple[TokenBatch, str]:
        """The tokens of an output group; one called after another with a number is that one cut to so many tokens."""
        if f"in.{name}.input_ids" in self.tensors:
            return self.tokens(name), name
        source, width = re.fullmatch(r"(.*?)(\d+)", name).groups()
        whole = self.tokens(source)
        ids, types, items = (x[:, : int(width)] for x in (whole.ids, whole.types, whole.items))
        return TokenBatch(ids, types, items, whole.lengths.clamp(max=int(width))), source


@pytest.fixture(scope="module")
def recorded(golden_dir: Path) -> Recording:
    return Recording(golden_dir)


@pytest.fixture(scope="module")
def item_tokens(recorded: Recording) -> ItemTokens:
    names = list(dict.fromkeys(name for item in recorded.items for name in item))
    table = pl.DataFrame({name: [item.get(name) for item in recorded.items] for name in names})
    return ItemTokens.of(table, recorded.tokenizer, recorded.limits())


def recent(sequences: list[list[int]], most: int) -> np.ndarray:
    """Items newest first; the recording numbers them from 0, the domain from 1."""
    flat = np.array([item + 1 for sequence in sequences for item in sequence])
    stops = np.cumsum([len(sequence) for sequence in sequences])
    starts = stops - [len(sequence) for sequence in sequences]
    return newest_first(flat, starts, stops, most)


def close(found: torch.Tensor, expected: torch.Tensor, atol: float = 1e-5) -> None:
    torch.testing.assert_close(found, expected, atol=atol, rtol=0, check_dtype=False)


PRECISIONS = [("out", torch.float32, 1e-5), ("out64", torch.float64, 2e-6)]


# --- tokens ----------------------------------------------------------------------------------------------------


def test_golden_recformer_item_tokens(recorded: Recording, item_tokens: ItemTokens) -> None:
    assert item_tokens.n_items == len(recorded.items) == len(recorded.tokenized)
    for item, (ids, types) in recorded.tokenized.items():
        low, high = item_tokens.indptr[int(item) + 1 : int(item) + 3]
        assert item_tokens.ids[low:high].tolist() == ids
        assert item_tokens.types[low:high].tolist() == types


def test_golden_recformer_sequences(recorded: Recording, item_tokens: ItemTokens) -> None:
    names = {match[1] for key in recorded.tensors if (match := re.fullmatch(r"in\.(\w+)\.input_ids", key))}
    names -= {"long"}  # synthetic, made of no items
    assert {"batch", "items"} < names
    for name in names:
        sequences = [[i] for i in range(len(recorded.items))] if name == "items" else recorded.sequences
        cut = re.fullmatch(r"trunc(\d+)", name)
        limits = recorded.limits(int(cut[1]) if cut else None)
        found = compose(item_tokens, recent(sequences, limits.items), limits, recorded.special)
        expected = recorded.tokens(name)
        extra = expected.ids.shape[1] - found.ids.shape[1]
        assert extra == 0 or name.startswith("padmax")
        padding = (recorded.special.pad, PADDING, recorded.config["max_item_embeddings"] - 1)
        for field, value in zip(("ids", "types", "items"), padding, strict=True):
            wanted = getattr(expected, field)
            assert torch.equal(F.pad(getattr(found, field), (0, extra), value=value), wanted), f"{name}.{field}"
        assert torch.equal(found.lengths, expected.lengths)


# --- the network -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dense_windows", [0, 10**6])
@pytest.mark.parametrize(("kind", "dtype", "atol"), PRECISIONS)
def test_golden_recformer_hidden_states(
    recorded: Recording, monkeypatch: pytest.MonkeyPatch, kind: str, dtype: torch.dtype, atol: float, dense_windows: int
) -> None:
    monkeypatch.setattr(network, "DENSE_WINDOWS", dense_windows)
    model = recorded.model(dtype).longformer
    names = {match[1] for key in recorded.tensors if (match := re.fullmatch(kind + r"\.(\w+)\.pooler_output", key))}
    assert {"batch", "items", "long"} <= names
    for name in names:
        tokens, _ = recorded.cut(name)
        states, real = list(model.states(tokens)), tokens.mask
        assert torch.equal(states[-1], model(tokens))
        close(model.pooled(tokens), recorded[f"{kind}.{name}.pooler_output"], atol)
        close(states[-1][:, 0], recorded[f"{kind}.{name}.pooler_output"], atol)
        for key in (k for k in recorded.tensors if k.startswith(f"{kind}.{name}.hidden_states.")):
            close(states[int(key.rpartition(".")[2])][real], recorded[key][real], atol)
        if f"{kind}.{name}.last_hidden_state" in recorded.tensors:
            close(states[-1][real], recorded[f"{kind}.{name}.last_hidden_state"][real], atol)


def test_golden_recformer_embeddings(recorded: Recording) -> None:
    embeddings, tokens = recorded.model().longformer.embeddings, recorded.tokens("batch")
    assert torch.equal(embeddings.positions(tokens), recorded["out.batch.position_ids"])
    close(embeddings(tokens), recorded["out.batch.embedding_output"])


def test_golden_recformer_alone_as_in_a_batch(recorded: Recording) -> None:
    model, tokens = recorded.model().longformer, recorded.tokens("batch")
    for row, length in enumerate(tokens.lengths.tolist()):
        ids, types, items = (x[row : row + 1, :length] for x in (tokens.ids, tokens.types, tokens.items))
        alone = TokenBatch(ids, types, items, tokens.lengths[row : row + 1])
        close(model.pooled(alone)[0], recorded["out.batch.pooler_output_unbatched"][row])


# --- fine-tuning -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "dtype", "atol"), PRECISIONS)
def test_golden_recformer_scores_and_losses(recorded: Recording, kind: str, dtype: torch.dtype, atol: float) -> None:
    model, temperature = recorded.model(dtype).longformer, recorded.config["temp"]
    vectors, table = model.pooled(recorded.tokens("batch")), recorded[f"{kind}.items.pooler_output"].to(dtype)
    labels = recorded["in.labels"]
    # A cosine over the temperature is that much further off than the vectors that the tolerance is meant for.
    atol = max(atol, 1e-5)
    expected = {
        key.removeprefix(f"{kind}.ft."): value for key, value in recorded.tensors.items() if f"{kind}.ft." in key
    }
    found = {
        "scores_all_items": cosine_logits(vectors, table, temperature),
        "scores_candidates": cosine_logits(vectors, table[recorded["in.ft.candidates"]], temperature),
        "loss_full_softmax": next_item_loss(vectors, table, labels, temperature).mean(),
        "loss_sampled_softmax": next_item_loss(
            vectors, table, labels, temperature, recorded["in.ft.sampled_negatives"]
        ).mean(),
    }
    assert expected
    for name, value in expected.items():
        close(found[name], value, atol)


# --- pre-training ----------------------------------------------------------------------------------------------


def pretraining_losses(recorded: Recording, model: PretrainingModel) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    vectors = [model.longformer.pooled(recorded.tokens("pretrain", f"_{side}")) for side in "ab"]
    found["cos_sim_over_temp"] = cosine_logits(*vectors, recorded.config["temp"])
    found["loss_contrastive"] = contrastive_loss(*vectors, recorded.config["temp"])
    for side in "ab":
        tokens = recorded.tokens("pretrain", f"_{side}", ids=f"mlm_input_ids_{side}")
        labels = recorded[f"in.pretrain.mlm_labels_{side}"]
        hidden = model.longformer(tokens)
        found[f"mlm_logits_{side}"] = model.lm_head(hidden)
        count = (labels != IGNORED).sum()
        found[f"loss_mlm_{side}"] = masked_token_loss(model.lm_head, hidden, labels) / count
    masked = found["loss_mlm_a"] + found["loss_mlm_b"]
    found["loss_total"] = found["loss_contrastive"] + recorded.config["mlm_weight"] * masked
    return found


@pytest.mark.parametrize(("kind", "dtype", "atol"), PRECISIONS)
def test_golden_recformer_pretraining(recorded: Recording, kind: str, dtype: torch.dtype, atol: float) -> None:
    found = pretraining_losses(recorded, recorded.model(dtype))
    assert int((found["cos_sim_over_temp"].argmax(1) == torch.arange(len(found["cos_sim_over_temp"]))).sum()) == int(
        recorded["out.pretrain.cl_correct_num"]
    )
    names = [key.removeprefix(f"{kind}.pretrain.") for key in recorded.tensors if key.startswith(f"{kind}.pretrain.")]
    assert "loss_total" in names
    for name in set(names) - {"cl_correct_num"}:
        expected = recorded[f"{kind}.pretrain.{name}"]
        if name.startswith("mlm_logits"):
            real = recorded.tokens("pretrain", name[-2:]).mask
            found[name], expected = found[name][real], expected[real]
        close(found[name], expected, atol)


@pytest.mark.parametrize("loss", ["ft.loss_full_softmax", "pretrain.loss_total"])
def test_golden_recformer_gradients(recorded: Recording, loss: str) -> None:
    model = recorded.model()
    if loss == "pretrain.loss_total":
        value = pretraining_losses(recorded, model)["loss_total"]
    else:
        vectors = model.longformer.pooled(recorded.tokens("batch"))
        table = recorded["out.items.pooler_output"]
        value = next_item_loss(vectors, table, recorded["in.labels"], recorded.config["temp"]).mean()
    value.backward()
    names = {key.removeprefix(f"grad.{loss}.") for key in recorded.tensors if key.startswith(f"grad.{loss}.")}
    ours = dict(model.named_parameters())
    # The bias of the head has two names in the recording; a table of items is no parameter of ours.
    assert names - {"lm_head.bias", "item_embedding.weight"} <= set(ours)
    for name in names & set(ours):
        gradient = ours[name].grad
        gradient = torch.zeros_like(ours[name]) if gradient is None else gradient
        expected = recorded[f"grad.{loss}.{name}"]
        torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


# --- transformers' own forward pass ----------------------------------------------------------------------------


@pytest.mark.parametrize("windows", [(4, 4), (4, 8), (16, 8)])
@pytest.mark.parametrize("length", [1, 2, 5, 16, 17, 61])
@pytest.mark.parametrize("dense_windows", [0, 1, 10**6])
def test_recformer_equals_the_longformer_of_transformers(
    recorded: Recording, monkeypatch: pytest.MonkeyPatch, windows: tuple[int, ...], length: int, dense_windows: int
) -> None:
    monkeypatch.setattr(network, "DENSE_WINDOWS", dense_windows)
    torch.manual_seed(length)
    shape = recorded.shape.model_copy(update={"windows": windows, "n_layers": 2})
    model = Longformer(shape).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    lengths = torch.tensor([length, max(1, length - 3), 1])
    inside = torch.arange(length) < lengths[:, None]
    ids = torch.randint(5, shape.vocab_size, inside.shape) * inside + shape.pad_token * ~inside
    items = torch.randint(0, shape.max_item_positions, inside.shape)
    tokens = TokenBatch(ids, torch.randint(0, 4, inside.shape), items, lengths)
    with torch.no_grad():
        extra = -length % max(windows)
        embedded = F.pad(model.embeddings(tokens), (0, 0, 0, extra))
        mask = F.pad(torch.where(inside, 0.0, -10000.0), (0, extra), value=-10000.0)
        mask[:, 0] = 10000.0
        expected = model.encoder(embedded, attention_mask=mask, padding_len=extra).last_hidden_state
        close(model(tokens)[inside], expected[inside])
        close(model.pooled(tokens), expected[:, 0])
