"""`encode-items` on texts: counted, cached by content, resumable, and the same bytes every time."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ckd.data.domain import Domain
from ckd.data.features import list_features, load_features
from ckd.errors import ConfigError, DataError
from ckd.pipelines import item_contents
from ckd.pipelines.encode_items import EncodeConfig, EncodedItems, encode_items
from ckd.teachers.encoders.text import TextEncoder, TextEncoderConfig, drop_words

TEXTS = ["red saw", "green drill of glue", "", "blue saw number 3", "red saw", "  ", "item 5 of 7"]

MakeDomain = Callable[..., Domain]


@pytest.fixture
def encoded_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every text that went through the encoder."""
    seen: list[str] = []
    encode = TextEncoder.encode

    def counted(self: TextEncoder, texts: list[str], *rest: Any) -> object:
        seen.extend(texts)
        return encode(self, texts, *rest)

    monkeypatch.setattr(TextEncoder, "encode", counted)
    return seen


def config(tiny_bert: Path, **options: object) -> EncodeConfig:
    return EncodeConfig(text=TextEncoderConfig(model=str(tiny_bert)), **options)  # type: ignore[arg-type]


def counts(result: EncodedItems) -> tuple[int, int, int]:
    return result.encoded, result.cached, result.missing


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_vectors_are_the_encoder_s_own(tiny_bert: Path, save_domain: MakeDomain, tmp_path: Path) -> None:
    domain = save_domain(TEXTS)
    result = encode_items(tmp_path, "toy", config(tiny_bert))
    assert counts(result) == (4, 1, 2)
    features = load_features(domain, "text")
    assert (result.feature, result.dim, result.fingerprint) == ("text", 16, features.fingerprint)
    assert result.path.is_file()
    assert features.present.tolist() == [False, True, True, False, True, True, False, True]
    expected = TextEncoder(TextEncoderConfig(model=str(tiny_bert))).encode([t for t in TEXTS if t.strip()])
    np.testing.assert_allclose(features.vectors[features.present], expected, atol=1e-5)
    assert features.source["encoder"]["pooling"] == "mean"


def test_nothing_is_encoded_twice(
    tiny_bert: Path, save_domain: MakeDomain, tmp_path: Path, encoded_texts: list[str]
) -> None:
    save_domain(TEXTS)
    encode_items(tmp_path, "toy", config(tiny_bert))
    assert sorted(encoded_texts) == sorted({t for t in TEXTS if t.strip()})
    encoded_texts.clear()
    assert counts(encode_items(tmp_path, "toy", config(tiny_bert))) == (0, 5, 2)
    # The feature is gone, the cache is not.
    shutil.rmtree(tmp_path / "domains" / "toy" / "features")
    assert counts(encode_items(tmp_path, "toy", config(tiny_bert))) == (0, 5, 2)
    assert counts(encode_items(tmp_path, "toy", config(tiny_bert, feature="again"))) == (0, 5, 2)
    assert encoded_texts == []
    # The catalogue grows, and another domain has some of the same texts.
    save_domain(["blue glue", *TEXTS])
    assert counts(encode_items(tmp_path, "toy", config(tiny_bert))) == (1, 5, 2)
    save_domain(["red saw", "green glue"], name="other")
    assert counts(encode_items(tmp_path, "other", config(tiny_bert))) == (1, 1, 0)
    assert encoded_texts == ["blue glue", "green glue"]


def test_another_encoder_has_its_own_cache(
    tiny_bert: Path, save_domain: MakeDomain, tmp_path: Path, encoded_texts: list[str]
) -> None:
    domain = save_domain(TEXTS)
    first = encode_items(tmp_path, "toy", config(tiny_bert))
    cls = EncodeConfig(text=TextEncoderConfig(model=str(tiny_bert), pooling="cls"))
    second = encode_items(tmp_path, "toy", cls)
    assert counts(second) == (4, 1, 2)
    assert second.fingerprint != first.fingerprint
    assert load_features(domain, "text").fingerprint == second.fingerprint, "a feature of the same name is replaced"
    assert counts(encode_items(tmp_path, "toy", config(tiny_bert))) == (0, 5, 2)
    assert len(encoded_texts) == 8


def test_the_same_run_gives_the_same_bytes(tiny_bert: Path, save_domain: MakeDomain, tmp_path: Path) -> None:
    for work in ("a", "b"):
        save_domain(TEXTS, work=tmp_path / work)
        encode_items(tmp_path / work, "toy", config(tiny_bert))
    assert files(tmp_path / "a") == files(tmp_path / "b")


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    tiny_bert: Path, save_domain: MakeDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"red item number {i}" + " glue" * (i % 5) for i in range(11)]
    monkeypatch.setattr(item_contents, "TEXT_BLOCK", 3)
    for work in ("whole", "killed"):
        save_domain(texts, work=tmp_path / work)
    encode_items(tmp_path / "whole", "toy", config(tiny_bert))

    def killer(done: int, total: int | None, unit: str, note: str = "") -> None:
        if done == 9:  # the third block is encoded, and not yet written
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_items(tmp_path / "killed", "toy", config(tiny_bert), killer)
    assert list_features(tmp_path / "killed" / "domains" / "toy") == []
    assert counts(encode_items(tmp_path / "killed", "toy", config(tiny_bert))) == (5, 6, 0)
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_a_damaged_cache_or_feature_is_made_again(
    tiny_bert: Path, save_domain: MakeDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(item_contents, "TEXT_BLOCK", 2)
    domain = save_domain(TEXTS)
    first = encode_items(tmp_path, "toy", config(tiny_bert))
    whole = files(tmp_path)
    blocks = sorted((tmp_path / "cache").rglob("*.safetensors"))
    assert len(blocks) == 2
    damaged = bytearray(blocks[0].read_bytes())
    damaged[-3] ^= 1
    blocks[0].write_bytes(damaged)
    blocks[1].write_bytes(b"nothing like it")
    first.path.with_suffix(".safetensors").write_bytes(b"")
    assert counts(encode_items(tmp_path, "toy", config(tiny_bert))) == (4, 1, 2)
    assert files(tmp_path) == whole
    assert load_features(domain, "text").fingerprint == first.fingerprint


def test_word_drop_is_a_feature_of_its_own(
    tiny_bert: Path, save_domain: MakeDomain, tmp_path: Path, encoded_texts: list[str]
) -> None:
    texts = ["red green blue saw drill glue of item number 1 2 3", "saw"]
    domain = save_domain(texts)
    encode_items(tmp_path, "toy", config(tiny_bert))
    dropped = encode_items(tmp_path, "toy", config(tiny_bert, word_drop=0.4))
    assert dropped.feature == "text-dropped"
    assert list_features(domain.folder) == ["text", "text-dropped"]
    assert encoded_texts[2:] == [drop_words(texts[0], 0.4, 2024)]
    assert encoded_texts[2] != texts[0]
    whole, without = (load_features(domain, name) for name in ("text", "text-dropped"))
    assert (whole.vectors[1] != without.vectors[1]).any()
    assert (whole.vectors[2] == without.vectors[2]).all(), "a single word stays"
    assert without.source["word_drop"] == 0.4
    other = encode_items(tmp_path, "toy", config(tiny_bert, word_drop=0.4, seed=5))
    assert other.fingerprint != dropped.fingerprint


def test_progress_ends_at_the_total(tiny_bert: Path, save_domain: MakeDomain, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None, str]] = []
    save_domain(TEXTS)
    encode_items(
        tmp_path, "toy", config(tiny_bert), lambda done, total, unit, note="": seen.append((done, total, unit))
    )
    assert seen == [(0, 4, "text"), (4, 4, "text")]


def test_no_item_has_a_text(tiny_bert: Path, save_domain: MakeDomain, tmp_path: Path) -> None:
    save_domain(["", " "])
    with pytest.raises(DataError, match="no item has a text"):
        encode_items(tmp_path, "toy", config(tiny_bert))


def test_vectors_that_are_not_finite_never_reach_the_cache(
    tiny_bert: Path, save_domain: MakeDomain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_domain(TEXTS)
    monkeypatch.setattr(
        TextEncoder, "encode", lambda _, texts, *rest: np.full((len(texts), 4), np.nan, dtype=np.float32)
    )
    with pytest.raises(DataError, match="not finite"):
        encode_items(tmp_path, "toy", config(tiny_bert))
    assert not (tmp_path / "cache").exists()


def test_bad_options(tiny_bert: Path, save_domain: MakeDomain, tmp_path: Path) -> None:
    save_domain(TEXTS)
    cases: list[tuple[str, EncodeConfig, type[Exception], str]] = [
        ("toy", config(tiny_bert, images="pictures"), ConfigError, "modality=image"),
        ("toy", EncodeConfig(modality="image", word_drop=0.2), ConfigError, "pictures have no words"),
        ("toy", config(tiny_bert, feature="a b"), ConfigError, "use letters"),
        ("toy", EncodeConfig(text=TextEncoderConfig(model=str(tmp_path / "x"))), DataError, "no such folder"),
        ("nowhere", config(tiny_bert), DataError, "ckd prepare"),
    ]
    for name, options, kind, message in cases:
        with pytest.raises(kind, match=message):
            encode_items(tmp_path, name, options)
