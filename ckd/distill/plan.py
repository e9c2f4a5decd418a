"""The batch plan: which instances share a batch, and which batch is trained on when (paper 3.4, Alg. 1).

Two tables. `batches` holds every distinct batch once: what stage one scores. `schedule` walks through them epoch by
epoch: what stage two trains on. Both are a pure function of the domain's content, the configuration and the seed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ckd.config import PlanConfig
from ckd.data.domain import Domain
from ckd.distill.composition import Block, Composer, Stream, batch_hash, batch_hashes, random_order
from ckd.distill.curriculum import FULL, Bucket, assign_buckets, describe_buckets, stage_of
from ckd.distill.difficulty import DIFFICULTIES, Samples, TeacherScores
from ckd.errors import DataError, StoreError

__all__ = ["FULL", "Plan", "Tables", "batch_hash", "build_plan"]

FORMAT = 1

#: Told of (blocks composed, blocks in all).
OnBlock = Callable[[int, int], None]
ReadBlock = Callable[[int], npt.NDArray[np.uint32]]


def _ignore(done: int, total: int) -> None:
    """Nobody wants to be told."""


@dataclass(frozen=True, eq=False)
class Tables:
    """The two tables, but for the instance ids themselves.

    Attributes:
        indptr: (n_batches + 1,) int64; batch i holds `indptr[i + 1] - indptr[i]` instances.
        hashes: (n_batches,) uint64 hash of each batch's ids, see `batch_hash`.
        buckets: (n_batches,) uint32, the bucket a batch was composed within, `FULL` over several.
        blocks: (n_blocks + 1,) int64; composition b made the batches `blocks[b]` up to `blocks[b + 1]`.
        stages: (epochs,) uint32 curriculum stage of each epoch, from 1, `FULL` for the full data.
        epoch_indptr: (epochs + 1,) int64; epoch e visits `order[epoch_indptr[e]:epoch_indptr[e + 1]]`.
        order: (steps of all epochs,) uint32 batch ids.
    """

    indptr: npt.NDArray[np.int64]
    hashes: npt.NDArray[np.uint64]
    buckets: npt.NDArray[np.uint32]
    blocks: npt.NDArray[np.int64]
    stages: npt.NDArray[np.uint32]
    epoch_indptr: npt.NDArray[np.int64]
    order: npt.NDArray[np.uint32]


@dataclass(frozen=True, eq=False)
class Plan:
    """A batch plan.

    With a finite pool all compositions are held in memory (4 bytes an instance each). `fresh` ones, of which every
    epoch has its own, are composed or read again when a batch of theirs is asked for, and the last two held.

    Attributes:
        config: what was planned.
        seed: of the run.
        domain: fingerprint of the domain.
        n_instances: number of training instances of the domain.
        scores: fingerprint of the teachers' scores that the difficulty was measured on, None where it needs none.
        curriculum: what each bucket holds, easiest first; one entry without a curriculum.
        tables: see `Tables`.
        fingerprint: hash over all of these and the batches' content.
        read_block: gives the (n,) uint32 instance ids of one composition; several threads may call it.
    """

    config: PlanConfig
    seed: int
    domain: str
    n_instances: int
    scores: str | None
    curriculum: tuple[Bucket, ...]
    tables: Tables
    fingerprint: str
    read_block: ReadBlock

    @property
    def id(self) -> str:
        """The first 12 digits of the fingerprint: the plan's name on disk."""
        return self.fingerprint[:12]

    @property
    def n_batches(self) -> int:
        """Number of distinct batches; ids run from 0."""
        return len(self.tables.hashes)

    @cached_property
    def sizes(self) -> npt.NDArray[np.int64]:
        """(n_batches,) instances in each batch."""
        return np.diff(self.tables.indptr)

    @property
    def hashes(self) -> npt.NDArray[np.uint64]:
        """(n_batches,) hash of each batch's ids, see `batch_hash`."""
        return self.tables.hashes

    @property
    def buckets(self) -> npt.NDArray[np.uint32]:
        """(n_batches,) the bucket a batch was composed within, `FULL` over several."""
        return self.tables.buckets

    @property
    def epochs(self) -> int:
        """Number of epochs planned."""
        return len(self.tables.stages)

    def batch(self, batch_id: int) -> npt.NDArray[np.uint32]:
        """The instance ids of a batch: a read-only view, rows of `domain.instances("train")`.

        Raises:
            IndexError: no such batch.
        """
        if not 0 <= batch_id < self.n_batches:
            raise IndexError(f"batch {batch_id} of {self.n_batches}")
        block = int(self.tables.blocks.searchsorted(batch_id, side="right")) - 1
        indptr = self.tables.indptr
        offset = indptr[self.tables.blocks[block]]
        return self.read_block(block)[indptr[batch_id] - offset : indptr[batch_id + 1] - offset]

    def schedule_of(self, epoch: int) -> tuple[int, npt.NDArray[np.uint32]]:
        """The curriculum stage of an epoch (from 1; `FULL`, 0, for the full data) and its batch ids in order.

        Raises:
            IndexError: the epoch is not planned.
        """
        if not 0 <= epoch < self.epochs:
            raise IndexError(f"epoch {epoch} of {self.epochs}")
        start, stop = self.tables.epoch_indptr[epoch : epoch + 2]
        return int(self.tables.stages[epoch]), self.tables.order[start:stop]

    def steps_in(self, epoch: int) -> int:
        """Number of batches that an epoch visits."""
        return len(self.schedule_of(epoch)[1])

    def require_domain(self, domain: Domain) -> None:
        """Refuse a domain that this plan was not made for.

        Raises:
            StoreError: naming both fingerprints.
        """
        if domain.fingerprint != self.domain:
            raise StoreError(
                f"plan {self.id} was made for a domain with fingerprint {self.domain}, "
                f"{domain.name} has {domain.fingerprint}: run `ckd plan` again."
            )

    def describe(self) -> dict[str, Any]:
        """What the fingerprint covers besides the tables, as JSON values."""
        return {
            "format": FORMAT,
            "domain": self.domain,
            "seed": self.seed,
            "config": self.config.model_dump(mode="json"),
            "n_instances": self.n_instances,
            "scores": self.scores,
            "curriculum": [asdict(bucket) for bucket in self.curriculum],
        }

    def save(self, folder: Path) -> None:
        """Write batches.parquet, schedule.parquet and plan.json as a folder that appears whole or not at all."""
        from ckd.distill.plan_file import save_plan

        save_plan(self, folder)

    @classmethod
    def load(cls, folder: Path) -> Plan:
        """Read a plan and check all of its content against its fingerprint.

        Raises:
            StoreError: there is no plan, it is of another format, or damaged; the line names file, expected and found.
        """
        from ckd.distill.plan_file import load_plan

        return load_plan(folder)


def plan_fingerprint(described: dict[str, Any], tables: Tables) -> str:
    """Hash over a plan's description and both tables; the batches' ids enter through their hashes and sizes."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(described, sort_keys=True, separators=(",", ":")).encode())
    for array, kind in (
        (tables.indptr, "<i8"),
        (tables.hashes, "<u8"),
        (tables.buckets, "<u4"),
        (tables.stages, "<u4"),
        (tables.epoch_indptr, "<i8"),
        (tables.order, "<u4"),
    ):
        digest.update(len(array).to_bytes(8, "little"))
        digest.update(np.ascontiguousarray(array, dtype=kind).tobytes())
    return digest.hexdigest()


def build_plan(
    domain: Domain,
    config: PlanConfig,
    seed: int,
    store_scores: TeacherScores | None = None,
    on_block: OnBlock = _ignore,
) -> Plan:
    """Plan the batches and the epochs of a domain.

    In a curriculum's stage r every batch of the buckets 1..r is visited once an epoch, in an order of its own; batches
    are composed within a bucket, so that all stages share them. After the B stages come full random epochs over `pool`
    compositions of the full data, cycled. With `fresh`, every epoch is composed anew over all its stage's instances,
    the paper's literal reading. Only what a planned epoch visits is composed.

    Args:
        domain: whose training instances are planned.
        config: see `PlanConfig`.
        seed: every random choice comes from it and the epoch, as a pair.
        store_scores: what teachers' scores say about the instances, for the measures that need them.
        on_block: told of progress, a composition at a time.

    Raises:
        ConfigError: an unknown difficulty measure, or one that lacks scores.
        DataError: the domain has no training instances, or more than 2^32.
    """
    instances = domain.instances("train")
    if not 0 < len(instances) < 2**32:
        raise DataError(f"{domain.name} has {len(instances)} training instances: a plan takes 1 to 2^32 - 1.")
    samples = Samples.of(domain, instances, config.layout, config.alpha, store_scores)
    del instances
    measure = DIFFICULTIES.get(config.difficulty)
    difficulty = measure(samples) if config.buckets > 1 else None
    n_buckets = 1 if difficulty is None else config.buckets
    buckets = np.ones(len(samples), np.uint32) if difficulty is None else assign_buckets(difficulty, n_buckets)

    epochs = _Epochs(config, n_buckets, last_bucket=int(buckets.max()))
    composer = Composer.of(samples, buckets, config.batch_size, seed)
    tables, held = _tables(composer, epochs, config.pool != "fresh", on_block)
    plan = Plan(
        config=config,
        seed=seed,
        domain=domain.fingerprint,
        n_instances=int(samples.indptr[-1]),
        scores=None if difficulty is None or store_scores is None else store_scores.source,
        curriculum=describe_buckets(samples, difficulty, buckets, n_buckets),
        tables=tables,
        fingerprint="",
        read_block=held.__getitem__ if held else recent(lambda b: frozen(composer.compose(epochs.blocks[b])[1])),
    )
    object.__setattr__(plan, "fingerprint", plan_fingerprint(plan.describe(), tables))
    return plan


class _Epochs:
    """Which compositions there are, and which of them each epoch visits."""

    def __init__(self, config: PlanConfig, n_buckets: int, last_bucket: int) -> None:
        self.stages = [stage_of(e, n_buckets, config.epochs_per_stage) for e in range(config.epochs)]
        self.blocks: list[Block] = []
        self.visits: list[range] = []
        if config.pool == "fresh":
            self.blocks = [Block(1, min(s or n_buckets, last_bucket), e) for e, s in enumerate(self.stages)]
            self.visits = [range(e, e + 1) for e in range(config.epochs)]
            return
        in_curriculum = sum(stage != FULL for stage in self.stages)
        opened = min(max(self.stages), last_bucket)
        distinct = min(config.pool, config.epochs - in_curriculum)
        self.blocks = [Block(b, b, 0) for b in range(1, opened + 1)]
        self.blocks += [Block(1, n_buckets, number) for number in range(distinct)]
        for epoch, stage in enumerate(self.stages):
            full = opened + (epoch - in_curriculum) % max(distinct, 1)
            self.visits.append(range(full, full + 1) if stage == FULL else range(min(stage, opened)))


def _tables(
    composer: Composer, epochs: _Epochs, hold: bool, on_block: OnBlock
) -> tuple[Tables, list[npt.NDArray[np.uint32]]]:
    sizes, hashes, buckets, held = [], [], [], []
    for number, block in enumerate(epochs.blocks):
        indptr, ids = composer.compose(block)
        sizes.append(np.diff(indptr))
        hashes.append(batch_hashes(indptr, ids))
        pure = block.lowest == block.highest and max(epochs.stages) != FULL
        buckets.append(np.full(len(sizes[-1]), block.lowest if pure else FULL, dtype=np.uint32))
        if hold:
            held.append(frozen(ids))
        on_block(number + 1, len(epochs.blocks))
    blocks = np.concatenate([[0], np.cumsum([len(s) for s in sizes])]).astype(np.int64)
    order = []
    for epoch, visited in enumerate(epochs.visits):
        batches = np.arange(blocks[visited.start], blocks[visited.stop], dtype=np.uint32)
        order.append(batches[random_order(len(batches), composer.seed, Stream.ORDER, epoch)])
    tables = Tables(
        indptr=frozen(np.concatenate([[0], np.cumsum(np.concatenate(sizes))]).astype(np.int64)),
        hashes=frozen(np.concatenate(hashes)),
        buckets=frozen(np.concatenate(buckets)),
        blocks=frozen(blocks),
        stages=frozen(np.array(epochs.stages, dtype=np.uint32)),
        epoch_indptr=frozen(np.concatenate([[0], np.cumsum([len(o) for o in order])]).astype(np.int64)),
        order=frozen(np.concatenate(order)),
    )
    return tables, held


def frozen(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array, made read-only: a plan's arrays are handed out as views."""
    array.flags.writeable = False
    return array


def recent(read_block: ReadBlock) -> ReadBlock:
    """`read_block`, holding the last two compositions: a reader ahead may be in the next epoch already."""
    return lru_cache(maxsize=2)(read_block)
