"""Composing batches: which instances share one. A pure function of the samples, their buckets and the seed."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import IntEnum
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ckd.distill.difficulty.samples import Samples


class Stream(IntEnum):
    """Independent random streams of one seed."""

    COMPOSITION = 0
    ORDER = 1


def random_order(n: int, seed: int, stream: Stream, *key: int) -> npt.NDArray[np.int64]:
    """A random permutation of 0..n-1, the same on every machine and with every version of numpy.

    It sorts raw 64-bit words of Philox: bit generators and `SeedSequence` are numpy's only streams that are promised
    never to change. Seed and key (the epoch first) enter apart: a sum would give seed s + 1 the epochs of seed s.
    """
    words = np.random.Philox(np.random.SeedSequence(seed, spawn_key=(stream, *key))).random_raw(n)
    return np.argsort(words, kind="stable")


def batch_hash(ids: npt.NDArray[np.integer]) -> int:
    """64-bit hash of a batch's instance ids, in order: BLAKE2b-8 over little-endian uint32, read little-endian."""
    content = np.ascontiguousarray(ids, dtype="<u4")
    return int.from_bytes(hashlib.blake2b(content.tobytes(), digest_size=8).digest(), "little")


def batch_hashes(indptr: npt.NDArray[np.int64], ids: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """`batch_hash` of each of the batches `ids[indptr[i]:indptr[i + 1]]`."""
    content = memoryview(np.ascontiguousarray(ids, dtype="<u4").data).cast("B")
    ends = (indptr * 4).tolist()
    digests = [hashlib.blake2b(content[start:stop], digest_size=8).digest() for start, stop in pairwise(ends)]
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def pack(counts: npt.NDArray[np.int64], capacity: int) -> npt.NDArray[np.int64]:
    """Cut a sequence of pieces into batches of at most `capacity` instances: next fit, the last two evened out.

    Next fit leaves on average half a piece free in a batch. The last batch may come out tiny, and one of a single
    instance has no negatives at all; so the last two are cut anew where the larger of them is smallest.

    Args:
        counts: (n,) int64 instances in each piece, in 1..capacity, n >= 1.
        capacity: T.

    Returns:
        (n_batches + 1,) int64 borders in the sequence of pieces; no batch is empty.
    """
    ends = np.cumsum(counts)
    cuts = [0]
    filled = 0
    while cuts[-1] < len(counts):
        cuts.append(int(ends.searchsorted(filled + capacity, side="right")))
        filled = int(ends[cuts[-1] - 1])
    if len(cuts) > 2:
        first, last = cuts[-3], cuts[-1]
        start = ends[first] - counts[first]
        left = ends[first : last - 1] - start
        cuts[-2] = first + 1 + int(np.maximum(left, ends[last - 1] - start - left).argmin())
    return np.array(cuts, dtype=np.int64)


@dataclass(frozen=True)
class Block:
    """One composition: which buckets it draws on, and its number among the compositions of these.

    Attributes:
        lowest: first bucket.
        highest: last bucket.
        number: counts the compositions of the same buckets; the epoch where every epoch has its own.
    """

    lowest: int
    highest: int
    number: int


@dataclass(frozen=True)
class Composer:
    """Composes batches of pieces: runs of instances that must not be parted.

    Attributes:
        starts: (n,) int64, first instance id of each piece, ascending.
        counts: (n,) int64, instances in it, at most T.
        buckets: (n,) uint32, the bucket it belongs to, from 1.
        batch_size: T.
        seed: of the plan.
    """

    starts: npt.NDArray[np.int64]
    counts: npt.NDArray[np.int64]
    buckets: npt.NDArray[np.uint32]
    batch_size: int
    seed: int

    @classmethod
    def of(cls, samples: Samples, buckets: npt.NDArray[np.uint32], batch_size: int, seed: int) -> Composer:
        """A piece is a sample's instances; a sample with more than T is parted into runs equal within one."""
        counts = np.diff(samples.indptr)
        parts = -(-counts // batch_size)
        owners = np.repeat(np.arange(len(counts)), parts)
        which = np.arange(len(owners)) - np.repeat(np.cumsum(parts) - parts, parts)
        low = counts[owners] * which // parts[owners]
        high = counts[owners] * (which + 1) // parts[owners]
        return cls(samples.indptr[owners] + low, high - low, buckets[owners], batch_size, seed)

    def compose(self, block: Block) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.uint32]]:
        """The batches of one composition, every instance of its buckets in exactly one.

        Pieces are shuffled and packed; within a batch ids ascend, so that a user's instances lie together in time order
        and a batch's hash depends on its content alone.

        Returns:
            indptr (n_batches + 1,) and ids: batch i is `ids[indptr[i]:indptr[i + 1]]`.
        """
        chosen = np.flatnonzero((self.buckets >= block.lowest) & (self.buckets <= block.highest))
        key = (block.number, block.lowest, block.highest)
        chosen = chosen[random_order(len(chosen), self.seed, Stream.COMPOSITION, *key)]
        cuts = pack(self.counts[chosen], self.batch_size)
        indptr = np.concatenate([[0], np.cumsum(self.counts[chosen])])[cuts]
        batch = np.repeat(np.arange(len(cuts) - 1, dtype=np.uint64), np.diff(cuts))
        ordered = (batch << np.uint64(32)) | chosen.astype(np.uint64)
        ordered.sort()
        pieces = (ordered & np.uint64(0xFFFFFFFF)).astype(np.int64)
        return indptr, _runs(self.starts[pieces], self.counts[pieces])


def _runs(starts: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
    """The numbers starts[i], starts[i] + 1, ... (counts[i] of them), one run after the other."""
    before = np.cumsum(counts) - counts
    return (np.repeat(starts - before, counts) + np.arange(int(counts.sum()))).astype(np.uint32)
