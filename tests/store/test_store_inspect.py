"""Looking at a store and proving it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ckd.errors import StoreError
from ckd.store.inspect import draw_matrix, inspect_store, open_store
from ckd.store.verify import verify_sample, verify_store


@pytest.mark.parametrize("codec", ["f16", "u8", "tensor"])
def test_a_summary(tmp_path: Path, make_case: Any, codec: str) -> None:
    case = make_case(codec=codec)
    manifest = case.write(tmp_path)
    found = inspect_store(tmp_path)
    assert (found.domain, found.plan, found.teacher) == ("domain-a", "plan-a", "teacher-a")
    assert (found.temperature, found.codec, found.similarity) == (0.07, codec, "cosine")
    assert (found.batches, found.shards, found.bytes, found.rows) == (10, 3, manifest.bytes, manifest.rows)
    assert found.quality == manifest.quality
    assert found.mb_per_s is not None
    assert found.mb_per_s > 0
    reader = open_store(tmp_path)
    assert reader.index.fingerprint == case.index.fingerprint
    np.testing.assert_array_equal(reader.read(9), case.open(tmp_path).read(9))


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_a_picture(tmp_path: Path, case: Any, suffix: str) -> None:
    case.write(tmp_path / "s")
    path = tmp_path / f"matrix{suffix}"
    inspect_store(tmp_path / "s", figure=path, batch=9)
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == [path.name]
    if suffix == ".png":
        with Image.open(path) as image:
            # Not one blank page.
            assert np.unique(np.asarray(image.convert("L"))).size > 20
            assert min(image.size) > 500
    else:
        assert path.read_bytes()[:5] in (b"<?xml", b"%PDF-")


def test_what_cannot_be_drawn_is_refused(tmp_path: Path, case: Any) -> None:
    case.write(tmp_path / "s")
    with pytest.raises(StoreError, match=r"no batch 10, expected 0..9"):
        inspect_store(tmp_path / "s", figure=tmp_path / "x.png", batch=10)
    with pytest.raises(StoreError, match=r"ends in .png, .svg, .pdf, found '.gif'"):
        draw_matrix(np.zeros((2, 2)), tmp_path / "x.gif")


def test_a_sound_store_has_no_problems(tmp_path: Path, make_case: Any) -> None:
    for codec in ("f16", "u8", "tensor"):
        case = make_case(codec=codec)
        manifest = case.write(tmp_path / codec)
        found = verify_store(tmp_path / codec, case.binding, case.index)
        assert (found.shards, found.bytes, found.problems) == (3, manifest.bytes, ())


def test_a_store_for_something_else_is_refused(tmp_path: Path, case: Any) -> None:
    case.write(tmp_path)
    with pytest.raises(StoreError, match="made for plan plan-a, expected plan other"):
        verify_store(tmp_path, replace(case.binding, plan="other"))
    with pytest.raises(StoreError, match="made with index"):
        verify_store(tmp_path, case.binding, replace(case, seed=3).index)


def test_every_problem_is_named(tmp_path: Path, case: Any) -> None:
    case.write(tmp_path)
    (tmp_path / "part-00000.parquet").unlink()
    other = tmp_path / "part-00001.parquet"
    content = bytearray(other.read_bytes())
    content[100] ^= 1
    other.write_bytes(content)
    (tmp_path / "stray").write_text("")
    missing, changed, stray = verify_store(tmp_path).problems
    assert "part-00000.parquet: no such file" in missing
    assert "part-00001.parquet: damaged: content hashes to" in changed
    assert "stray: belongs to no shard" in stray


class TestSample:
    """Scoring again."""

    def test_the_same_teacher_passes(self, tmp_path: Path, make_case: Any) -> None:
        case = make_case(codec="u8", size=64)
        case.write(tmp_path)
        rng = np.random.default_rng(0)

        def elsewhere(batch_id: int) -> np.ndarray:
            # Another machine's arithmetic.
            exact = case.exact(batch_id)
            return exact + rng.normal(0, 1e-4, exact.shape).astype(np.float32)

        found = verify_sample(case.open(tmp_path), elsewhere, fraction=0.25)
        assert found.batches == 3
        assert 0 < found.mean_kl <= found.max_kl <= 1e-3

    def test_another_teacher_fails(self, tmp_path: Path, make_case: Any) -> None:
        case = make_case()
        case.write(tmp_path)
        with pytest.raises(StoreError, match=r"row \d+ of batch \d+ differs from the teacher by .* nats"):
            verify_sample(case.open(tmp_path), make_case(seed=1).exact, fraction=1.0)

    def test_one_percent_is_at_least_one_batch(self, tmp_path: Path, case: Any) -> None:
        case.write(tmp_path)
        assert verify_sample(case.open(tmp_path), case.exact, fraction=0.01).batches == 1

    def test_scores_that_are_not_numbers_fail(self, tmp_path: Path, case: Any) -> None:
        case.write(tmp_path)
        with pytest.raises(StoreError, match="differs from the teacher by nan"):
            verify_sample(case.open(tmp_path), lambda b: case.exact(b) * np.float32(np.nan))

    @pytest.mark.parametrize("fraction", [0.0, -1.0, 1.5])
    def test_no_share_is_refused(self, tmp_path: Path, case: Any, fraction: float) -> None:
        case.write(tmp_path)
        with pytest.raises(StoreError, match="share of the batches"):
            verify_sample(case.open(tmp_path), case.exact, fraction=fraction)
