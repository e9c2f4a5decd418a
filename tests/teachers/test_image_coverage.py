"""Image coverage: which items keep their vectors, and the same fine-tuning at several shares."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.config import RunConfig, TrainConfig
from ckd.data.domain import Domain
from ckd.data.features import ItemFeatures, list_features, load_features, save_features
from ckd.errors import ConfigError, DataError
from ckd.pipelines.image_coverage import cover, image_coverage


def make(n_items: int, name: str, size: int) -> ItemFeatures:
    vectors = np.random.default_rng(size).standard_normal((n_items + 1, size)).astype(np.float32)
    vectors[0] = 0.0
    return ItemFeatures(name, vectors, np.arange(n_items + 1) > 0)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.floats(0, 1), st.floats(0, 1), st.integers(0, 2**32))
def test_a_smaller_share_lies_within_a_larger_one(n_items: int, one: float, other: float, seed: int) -> None:
    features = make(n_items, "image", 3)
    small, large = (cover(features, share, seed) for share in sorted((one, other)))
    assert not (small.present & ~large.present).any()
    for share, covered in zip(sorted((one, other)), (small, large), strict=True):
        assert np.count_nonzero(covered.present) == round(share * n_items)
        assert np.array_equal(covered.vectors[covered.present], features.vectors[covered.present])
        assert not covered.vectors[~covered.present].any()


def test_the_whole_share_changes_nothing_and_has_the_same_fingerprint() -> None:
    features = make(20, "image", 3)
    assert cover(features, 1.0, 5).fingerprint == features.fingerprint
    assert cover(features, 0.5, 5).fingerprint != features.fingerprint


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_beyond_all_items_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="is not in"):
        cover(make(5, "image", 3), share, 0)


def test_each_coverage_is_fine_tuned_on_its_own_features(tiny: dict[str, Domain], tmp_path: Path) -> None:
    domain = list(tiny.values())[-1]
    domain = domain.save(tmp_path / "domains" / domain.name)
    for features in (make(domain.n_items, "text", 8), make(domain.n_items, "image", 6)):
        save_features(tmp_path / "domains" / domain.name, features)
    config = RunConfig(
        teacher={"hidden_size": 8, "inner_size": 8, "n_experts": 2},
        train=TrainConfig(epochs=2, batch_size=128, device="cpu"),
    )
    found = image_coverage(tmp_path, domain.name, [0.0, 0.36, 1.0], config)
    assert [covered.coverage for covered in found] == pytest.approx([0.0, 0.35, 1.0], abs=0.01)
    assert all(0.0 <= covered.metrics["test"]["ndcg@10"] <= 1.0 for covered in found)
    assert load_features(domain, "image-36-seed2024").coverage == pytest.approx(0.35)
    assert len({covered.metrics["valid"]["mrr"] for covered in found}) == 3
    with pytest.raises(ConfigError, match=r"^coverages 0\.251 and 0\.254: both are named by 25 percent"):
        image_coverage(tmp_path, domain.name, [0.5, 0.251, 0.254], config)
    assert list_features(domain.folder) == ["image", *(f"image-{n}-seed2024" for n in (0, 100, 36)), "text"]
    with pytest.raises(DataError, match="no such feature"):
        image_coverage(tmp_path, domain.name, [0.5], config, feature="pictures")
