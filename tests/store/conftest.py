"""A small plan, a teacher's log-scores of it, and stores of both."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from ckd.store import BatchIndex, Binding, Manifest, ScoreReader, write_store
from ckd.store.codecs.base import log_softmax

BINDING = Binding("domain-a", "plan-a", "teacher-a", 0.07, None, "cosine")


@dataclass
class Case:
    """A plan of batches of one size but the last, and log-scores that are a function of the batch id."""

    batches: int = 10
    size: int = 16
    shard_batches: int = 4
    codec: str = "f16"
    binding: Binding = BINDING
    seed: int = 0
    scored: list[int] = field(default_factory=list)

    @property
    def index(self) -> BatchIndex:
        hashes = np.random.default_rng(self.seed).integers(0, 2**63, self.batches).astype(np.uint64)
        rows = np.full(self.batches, self.size, np.int32)
        rows[-1] = max(1, self.size // 3)
        return BatchIndex(hashes, rows, rows.copy())

    def exact(self, batch_id: int) -> np.ndarray:
        shape = (int(self.index.rows[batch_id]), int(self.index.cols[batch_id]))
        logits = np.random.default_rng([self.seed, batch_id]).standard_normal(shape) * 4
        return log_softmax(logits).astype(np.float32)

    def score(self, batch_ids: range) -> Iterator[tuple[int, np.ndarray]]:
        for batch_id in batch_ids:
            self.scored.append(batch_id)
            yield batch_id, self.exact(batch_id)

    def write(self, folder: str | Path) -> Manifest:
        return write_store(folder, self.binding, self.index, self.codec, self.score, shard_batches=self.shard_batches)

    def open(self, folder: str | Path) -> ScoreReader:
        return ScoreReader(folder, self.binding, self.index)

    @staticmethod
    def files(folder: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    def read(self, folder: str | Path) -> list[np.ndarray]:
        reader = self.open(folder)
        return [reader.read(batch_id) for batch_id in range(self.batches)]


@pytest.fixture
def case() -> Case:
    return Case()


@pytest.fixture
def make_case() -> type[Case]:
    return Case


@pytest.fixture
def whole(tmp_path: Path, case: Case) -> Path:
    """A finished store of the case."""
    case.write(tmp_path / "whole")
    case.scored.clear()
    return tmp_path / "whole"
