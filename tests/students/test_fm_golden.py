"""FM and DeepFM against recorded numbers of RecBole's: with token fields only, and with list and number fields."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from ckd.students.common.fields import Fields, FieldSpec, PaddedBag, Values
from ckd.students.deepfm import DeepFM, DeepFMConfig
from ckd.students.fm import FM, FMConfig

#: The recorded fields that describe the user.
USER_FIELDS = ("user_id", "age", "gender")


@pytest.fixture(params=["tokens", "mixed"])
def kind(request) -> str:
    return request.param


def build(golden, dtype):
    """The model, and the values of both sides of every recorded pair."""
    c = golden.config

    def specs(kind: str, names: str, sizes: str) -> list[FieldSpec]:
        return [
            FieldSpec(name, kind, "user" if name in USER_FIELDS else "item", size)
            for name, size in zip(c[names], c[sizes], strict=True)
        ]

    fields = Fields(
        [
            *specs("token", "token_fields", "token_dims"),
            *specs("number", "float_fields", "float_dims"),
            *specs("list", "token_seq_fields", "token_seq_dims"),
        ]
    )
    if c["mlp_hidden_size"]:
        config = DeepFMConfig(embedding_size=c["embedding_size"], mlp_sizes=tuple(c["mlp_hidden_size"]))
        model = DeepFM(config, fields)
    else:
        model = FM(FMConfig(embedding_size=c["embedding_size"]), fields)
    golden.load(model, dtype)

    def values(side: str) -> Values:
        own = [spec for spec in fields.specs if spec.side == side]
        lists = tuple(PaddedBag(golden[f"in.{spec.name}"]) for spec in own if spec.kind == "list")
        tokens = torch.stack([golden[f"in.{spec.name}"] for spec in own if spec.kind == "token"], dim=1)
        numbers = [golden[f"in.{spec.name}"].to(dtype) for spec in own if spec.kind == "number"]
        return Values(lists, tokens, torch.stack(numbers, 1) if numbers else tokens.new_zeros(len(tokens), 0, 2))

    return model, values("user"), values("item")


def check_parts(golden, model: FM, user: Values, item: Values) -> None:
    """The fields in the recorded order, the first-order and the second-order term."""
    sides = {"user": user, "item": item}
    order = [*model.fields.positions("user"), *model.fields.positions("item")]
    vectors = torch.cat([model.fields.embed(model, side, values) for side, values in sides.items()], dim=1)
    vectors = vectors[:, torch.tensor(order).argsort()]
    golden.check(vectors, "concat_embed")
    first = sum(model.fields.total(model.first_order_linear, side, values) for side, values in sides.items())
    golden.check(first + model.first_order_linear.bias, "first_order")
    golden.check((vectors.sum(1).square() - vectors.square().sum(1)).sum(1, keepdim=True) / 2, "fm_second_order")


def test_golden_fm_outputs(recorded, kind: str, dtype) -> None:
    golden = recorded(f"fm_{kind}")
    model, user, item = build(golden, dtype)
    check_parts(golden, model, user, item)
    logits = (model.user_vectors(user) * model.item_vectors(item)).sum(1)
    golden.check(logits, "logits")
    golden.check(logits.sigmoid(), "predict")
    labels = golden["in.label"].to(dtype)
    golden.check_gradients(model, F.binary_cross_entropy_with_logits(logits, labels), "loss_bce")


def test_golden_deepfm_outputs(recorded, kind: str, dtype) -> None:
    golden = recorded(f"deepfm_{kind}")
    model, user, item = build(golden, dtype)
    check_parts(golden, model, user, item)
    logits = model.logits(model.user_vectors(user), model.item_vectors(item))
    golden.check(logits, "logits")
    golden.check(logits.sigmoid(), "predict")
    labels = golden["in.label"].to(dtype)
    golden.check_gradients(model, F.binary_cross_entropy_with_logits(logits, labels), "loss_bce")


def test_golden_fm_factors_exactly(recorded, kind: str) -> None:
    """Every user with every item, of which the recorded pairs are the diagonal, as FM's plain formula has it."""
    golden = recorded(f"fm_{kind}")
    model, user, item = build(golden, torch.float64)
    scores = model.user_vectors(user) @ model.item_vectors(item).T
    golden.check(scores.diag(), "logits")
    users, items = model.fields.embed(model, "user", user), model.fields.embed(model, "item", item)
    first = model.first_order_linear
    for row in range(len(scores)):
        for column in range(len(scores)):
            vectors = torch.cat([users[row], items[column]])
            products = vectors @ vectors.T
            pairs = products.triu(diagonal=1).sum()
            weights = model.fields.total(first, "user", user)[row] + model.fields.total(first, "item", item)[column]
            torch.testing.assert_close(scores[row, column], first.bias[0] + weights[0] + pairs, atol=1e-10, rtol=0)


def test_golden_deepfm_scores_all_pairs_as_one_by_one(recorded, kind: str, dtype, monkeypatch) -> None:
    golden = recorded(f"deepfm_{kind}")
    model, user, item = build(golden, dtype)
    users, items = model.user_vectors(user), model.item_vectors(item)
    monkeypatch.setattr(model, "item_values", lambda _: item)
    # With gradient and without: two ways through the network. In blocks of less than a user and of several.
    for gradient, pairs in itertools.product((True, False), (1 << 12, 2 * len(items) + 1, 3, 1)):
        monkeypatch.setattr("ckd.students.deepfm.CPU_PAIRS", pairs)
        with torch.set_grad_enabled(gradient):
            scores = model.score_items(users)
            again = model.score_side(users, model.item_side(None))
        assert torch.equal(again, scores)
        golden.check(scores.diag(), "logits")
        for column in range(len(items)):
            expected = model.logits(users, items[column].expand_as(items))
            atol = 1e-5 if dtype == torch.float32 else 1e-12
            torch.testing.assert_close(scores[:, column], expected, atol=atol, rtol=0)
