"""One contract that every codec passes, and what each promises beyond it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ckd.errors import ConfigError
from ckd.store.codecs import CODECS
from ckd.store.codecs.base import LOWEST, divergence, log_softmax
from ckd.store.codecs.u8 import MIXES, best_mixes

#: A contract runs once in each of its subclasses, which hypothesis takes for different executors.
FAST = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.differing_executors])

EXTREMES = st.one_of(
    st.floats(-60, 0, width=32),
    st.floats(float(np.finfo(np.float32).min), 0, width=32),
    st.sampled_from([0.0, -0.0, -1e-45, -6e-8, -65504.0, -65519.0, -65520.0, float(np.finfo(np.float32).min)]),
)
MATRICES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=EXTREMES)


def softmax_scores(rows: int, cols: int, spread: float = 4.0, seed: int = 0) -> np.ndarray:
    """Log-scores as a teacher gives them."""
    return log_softmax(np.random.default_rng(seed).standard_normal((rows, cols)) * spread).astype(np.float32)


class CodecContract:
    """What every codec of matrices keeps. A subclass names its codec and how a matrix makes the round trip."""

    name: str

    @property
    def codec(self) -> Any:
        return CODECS.get(self.name)

    def stored(self, log_scores: np.ndarray) -> np.ndarray:
        return self.codec.decode(self.codec.encode(log_scores), *log_scores.shape)

    def check(self, log_scores: np.ndarray) -> np.ndarray:
        found = self.stored(log_scores)
        assert found.shape == log_scores.shape
        assert found.dtype in (np.float16, np.float32)
        assert np.isfinite(found).all()
        error = np.abs(found.astype(np.float64) - log_scores)
        assert (error <= self.codec.tolerance(log_scores)).all()
        return found

    @given(MATRICES)
    @FAST
    def test_any_finite_matrix_is_within_the_bound(self, log_scores: np.ndarray) -> None:
        self.check(log_scores)

    @pytest.mark.parametrize("size", [2, 3, 17, 511, 512, 513])
    @pytest.mark.parametrize("spread", [0.0, 1.0, 10.0, 1000.0])
    def test_batches_of_any_size(self, size: int, spread: float) -> None:
        self.check(softmax_scores(size, size, spread))

    def test_the_largest_batch(self) -> None:
        self.check(softmax_scores(4096, 4096))

    @pytest.mark.parametrize("shape", [(1, 1), (7, 1), (1, 7), (5, 3)])
    def test_short_and_narrow_batches(self, shape: tuple[int, int]) -> None:
        self.check(softmax_scores(*shape))

    @given(st.floats(-30, 0, width=32), st.integers(1, 40))
    @FAST
    def test_equal_scores_stay_equal(self, value: float, cols: int) -> None:
        found = self.check(np.full((3, cols), value, dtype=np.float32))
        assert (found == found[:, :1]).all()

    @given(st.integers(0, 1000), st.sampled_from([0.01, 0.07, 0.5, 1.0, 20.0]))
    @FAST
    def test_another_temperature_is_a_renormalisation(self, seed: int, wanted: float) -> None:
        logits = np.random.default_rng(seed).standard_normal((6, 20))
        exact, stored = log_softmax(logits / 0.07).astype(np.float32), 0.07

        def renormalised(scores: np.ndarray) -> np.ndarray:
            return log_softmax(scores.astype(np.float64) * (stored / wanted))

        # Exact but for rounding: nothing of the matrix at the wanted temperature is lost by storing another.
        np.testing.assert_allclose(renormalised(exact), log_softmax(logits / wanted), atol=2e-3)
        # What the codec loses scales with the ratio, at most twice over after the softmax.
        drift = np.abs(renormalised(self.stored(exact)) - renormalised(exact))
        bound = 2 * np.broadcast_to(self.codec.tolerance(exact), exact.shape).max(axis=1, keepdims=True)
        assert (drift <= bound * (stored / wanted) + 1e-9).all()

    def test_equal_input_gives_equal_output(self) -> None:
        scores = softmax_scores(33, 21)
        assert np.array_equal(self.stored(scores), self.stored(scores.copy(order="F")))

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 0.5])
    def test_what_is_no_log_score_is_refused(self, bad: float) -> None:
        scores = softmax_scores(4, 4)
        scores[1, 2] = bad
        with pytest.raises(ValueError, match="finite and at most 0"):
            self.stored(scores)

    def test_what_is_no_matrix_is_refused(self) -> None:
        with pytest.raises(ValueError, match="shape"):
            self.stored(np.zeros(3, dtype=np.float32))

    def test_the_bound_is_stated(self) -> None:
        assert len(self.codec.bound) > 20


class PayloadContract(CodecContract):
    """Codecs that give one binary value."""

    @given(st.data())
    @FAST
    def test_a_cut_or_longer_value_is_refused(self, data: st.DataObject) -> None:
        payload = self.codec.encode(softmax_scores(8, 9))
        size = data.draw(st.integers(0, len(payload) - 1))
        with pytest.raises(ValueError):
            self.codec.decode(payload[:size], 8, 9)
        with pytest.raises(ValueError):
            self.codec.decode(payload + b"x", 8, 9)

    def test_another_shape_is_refused(self) -> None:
        with pytest.raises(ValueError):
            self.codec.decode(self.codec.encode(softmax_scores(8, 9)), 8, 10)


class TestF16(PayloadContract):
    name = "f16"

    @given(MATRICES)
    @FAST
    def test_bit_exact(self, log_scores: np.ndarray) -> None:
        wanted = np.clip(log_scores, LOWEST, -0.0).astype(np.float16)
        assert np.array_equal(self.stored(log_scores), wanted)

    def test_both_modes_are_written_and_read(self) -> None:
        narrow, wide = softmax_scores(64, 64), softmax_scores(64, 64, 3.0)
        wide[:, ::3] = -1e-3
        assert [self.codec.encode(scores)[0] for scores in (narrow, wide)] == [0, 1]
        for scores in (narrow, wide):
            assert np.array_equal(self.stored(scores), scores.astype(np.float16))

    @pytest.mark.parametrize("spread", [0.5, 2.0, 4.0, 8.0])
    def test_three_quarters_of_the_size(self, spread: float) -> None:
        scores = softmax_scores(512, 512, spread)
        assert len(self.codec.encode(scores)) <= 0.77 * 2 * scores.size

    @pytest.mark.parametrize("header", [b"\x02\x00", b"\x00\xff", b"\x01\x05"])
    def test_an_unknown_header_is_refused(self, header: bytes) -> None:
        payload = self.codec.encode(softmax_scores(8, 8))
        with pytest.raises(ValueError):
            self.codec.decode(header + payload[2:], 8, 8)

    def test_rounding_is_that_of_float16(self) -> None:
        # Every float16 from 0 to -65504, what lies half way to the next, and a little beside it.
        every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
        middle = (every[1:] + every[:-1]) / 2
        values = -np.concatenate([every, middle, np.nextafter(middle, 0), np.nextafter(middle, np.float32(1e9))])
        wanted = np.clip(values, LOWEST, 0).astype(np.float16)[None]
        assert np.array_equal(self.stored(values[None]), wanted)


class TestU8(PayloadContract):
    name = "u8"

    @pytest.mark.parametrize("spread", [0.5, 2.0, 4.0, 6.0])
    def test_half_the_size_and_hardly_any_divergence(self, spread: float) -> None:
        scores = softmax_scores(512, 512, spread)
        assert len(self.codec.encode(scores)) <= 0.51 * 2 * scores.size
        found = divergence(scores, self.stored(scores))
        assert found.mean() <= 1e-4
        # Rows of teachers span some 10 nats, as those of a spread of 2 do; the wildest here span 40.
        assert spread > 2 or found.max() <= 1e-4

    def test_the_mix_of_a_row_is_the_best_there_is(self) -> None:
        scores = softmax_scores(64, 512, 3.0)
        depths = scores.max(axis=1, keepdims=True) - scores
        p = np.exp(scores.astype(np.float64))
        share = (p * depths).sum(axis=1) / p.sum(axis=1) / depths.max(axis=1)
        mixes = np.linspace(0, 1, 1001)[:, None]
        first_order = (1 - mixes) ** 2 + 4 * mixes * share
        found = best_mixes(depths)[:, 0] / MIXES
        assert found == pytest.approx(mixes[first_order.argmin(axis=0), 0], abs=1e-3)


class TestTensor(CodecContract):
    name = "tensor"

    def stored(self, log_scores: np.ndarray) -> np.ndarray:
        from ckd.store.binding import BatchIndex
        from ckd.store.layout import columns, matrix_of, tensor_schema
        from ckd.store.writer import tensor_group

        rows, cols = log_scores.shape if log_scores.ndim == 2 else (1, 1)
        index = BatchIndex(np.ones(1, np.uint64), np.array([rows], np.int32), np.array([cols], np.int32))
        table = tensor_group(tensor_schema(cols), index, 0, log_scores, cols)
        return matrix_of(table[columns.SCORES])


class TestVectors:
    """The same contract for what stores vectors: a matrix is what two of them give."""

    codec = CODECS.get("vectors")

    def check(self, users: np.ndarray, items: np.ndarray, temperature: float) -> None:
        exact = log_softmax(users.astype(np.float64) @ items.T.astype(np.float64) / temperature)
        stored_users = self.codec.restore(*self.codec.quantise(users)).astype(np.float64)
        stored_items = self.codec.restore(*self.codec.quantise(items)).astype(np.float64)
        stored = log_softmax(stored_users @ stored_items.T / temperature)
        assert (np.abs(stored - exact) <= self.codec.tolerance(users, items, temperature)).all()

    @given(
        st.integers(1, 6).flatmap(
            lambda d: st.tuples(
                hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(d)), elements=st.floats(-99, 99, width=32)),
                hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.just(d)), elements=st.floats(-99, 99, width=32)),
            )
        ),
        st.sampled_from([0.01, 0.07, 1.0, 10.0]),
    )
    @FAST
    def test_any_finite_vectors_are_within_the_bound(
        self, pair: tuple[np.ndarray, np.ndarray], temperature: float
    ) -> None:
        self.check(*pair, temperature)

    @pytest.mark.parametrize("size", [2, 3, 512, 1024])
    @pytest.mark.parametrize("scale", [1e-20, 1e-3, 1.0, 1e8])
    def test_batches_of_any_size_and_vectors_of_any_length(self, size: int, scale: float) -> None:
        rng = np.random.default_rng(0)
        users = (rng.standard_normal((size, 32)) * scale).astype(np.float32)
        items = (rng.standard_normal((size, 32)) / scale).astype(np.float32)
        self.check(users, items, 0.07)

    @given(
        hnp.arrays(
            np.float32,
            hnp.array_shapes(min_dims=2, max_dims=2, max_side=6),
            elements=st.floats(allow_nan=False, allow_infinity=False, width=32),
        )
    )
    @FAST
    def test_any_vector_comes_back_to_float16(self, vectors: np.ndarray) -> None:
        values, scales = self.codec.quantise(vectors)
        found = self.codec.restore(values, scales)
        assert np.isfinite(found).all()
        largest = np.abs(vectors.astype(np.float64)).max(axis=1, keepdims=True)
        assert (np.abs(found.astype(np.float64) - vectors) <= largest * 2.0**-11 + 2.0**-140).all()

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_what_is_not_finite_is_refused(self, bad: float) -> None:
        with pytest.raises(ValueError, match="finite"):
            self.codec.quantise(np.array([[0.0, bad]], dtype=np.float32))


def test_every_codec_has_its_contract() -> None:
    tested = {"f16": TestF16, "u8": TestU8, "tensor": TestTensor, "vectors": TestVectors}
    assert CODECS.names() == sorted(tested)


def test_an_unknown_codec_is_named() -> None:
    with pytest.raises(ConfigError, match=r"unknown codec 'f61'.*'f16'"):
        CODECS.get("f61")


def test_divergence_of_equals_is_nothing() -> None:
    scores = softmax_scores(5, 9)
    assert divergence(scores, scores).max() == 0.0
    assert divergence(scores, softmax_scores(5, 9, seed=1)).min() > 0.1
