"""Reading log-scores: proven at opening, checked at every batch, read ahead in the background."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from ckd.errors import StoreError
from ckd.store.binding import BatchIndex, Binding, Members
from ckd.store.codecs import CODECS
from ckd.store.codecs.base import Float
from ckd.store.layout import check_footer
from ckd.store.location import Location
from ckd.store.manifest import MANIFEST, Manifest, ShardRecord, refuse
from ckd.store.sources import MatrixSource, PayloadSource, TensorSource
from ckd.store.vectors import VectorSource

T = TypeVar("T")

#: Threads that check the shards' footers at opening.
OPENING = 8


class ScoreReader:
    """The log-scores of one teacher for every batch of a plan.

    Opening proves that the format is known, that the store was made for what is expected, and that every shard is
    there with its size and its footer. Every read verifies CRCs and compares the batch's hash with the plan's.

    Args:
        location: the store's folder, a path or a URI.
        expected: what the scores must have been made for.
        index: what the plan says of its batches.
        allow_mismatch: read a store made for another domain, plan or teacher all the same. `mismatch` then says what
            differs, to be stamped into whatever comes of it. Batch hashes are still compared unless the plan differs.
        members: of a store of vectors, instance ids and target items of each batch.

    Attributes:
        manifest: what the store says of itself.
        temperature: tau at which the scores were made.
        mismatch: what differs from the expectation, None where nothing does.

    Raises:
        StoreError: one line that names the file, what was expected and what was found.
    """

    def __init__(
        self,
        location: str | Path,
        expected: Binding,
        index: BatchIndex,
        *,
        allow_mismatch: bool = False,
        members: Members | None = None,
    ) -> None:
        self.location = Location(location)
        self.manifest = Manifest.load(self.location)
        self.index = index
        header, path = self.manifest.header, self.location.path(MANIFEST)
        self.mismatch = header.binding.mismatch(expected)
        if not self.mismatch and header.index != index.fingerprint:
            self.mismatch = f"made for batches {header.index}, expected batches {index.fingerprint}"
        if not allow_mismatch:
            refuse(self.mismatch, path)
        if header.batches != len(index):
            refuse(f"made for {header.batches} batches, expected {len(index)}", path)
        if header.binding.temperature is None or header.binding.codec is None:
            refuse("made without temperature or codec, expected both", path)
        self.temperature = float(header.binding.temperature or 0.0)
        check_shards(self.location, self.manifest)
        self._source = self._open(members)

    def _open(self, members: Members | None) -> MatrixSource:
        codec = CODECS.get(str(self.manifest.header.binding.codec))
        # With a plan that is known to differ there is nothing to compare hashes with.
        index = None if self.mismatch and self.manifest.header.index != self.index.fingerprint else self.index
        if codec.layout == "payload":
            return PayloadSource(self.location, self.manifest, codec, self.index, index is not None)
        if codec.layout == "tensor":
            return TensorSource(self.location, self.manifest, self.index, index is not None)
        if members is None:
            raise StoreError(
                f"{self.location.path(MANIFEST)}: holds vectors, expected the plan's members to rebuild matrices from."
            )
        return VectorSource(self.location, self.manifest, self.index, members)

    def __len__(self) -> int:
        return len(self.index)

    def read(self, batch_id: int, dtype: npt.DTypeLike | None = np.float32) -> Float:
        """(rows, cols) log-scores of a batch, a new array.

        Args:
            batch_id: in 0..len - 1.
            dtype: float32, or None for the type that the codec decodes to, without conversion.

        Raises:
            StoreError: the bytes on the disk are not what was written, or the batch is another than the plan's.
        """
        if not 0 <= batch_id < len(self.index):
            raise IndexError(f"batch {batch_id} of a plan of {len(self.index)}")
        found = self._source.read(batch_id)
        # A view of Arrow's memory is read-only, which torch does not take.
        return found.astype(found.dtype if dtype is None else dtype, copy=not found.flags.writeable)

    def stream(
        self,
        batch_ids: Iterable[int],
        *,
        read_ahead: int = 8,
        threads: int = 1,
        dtype: npt.DTypeLike | None = np.float32,
    ) -> Stream[Float]:
        """Batch id and log-scores of each batch in the given order, read ahead in the background.

        Args:
            batch_ids: any order, repeats allowed; taken only as far ahead as is read.
            read_ahead: batches read before they are asked for: what the stream holds in memory at most.
            threads: that read and decode.
            dtype: as in `read`.
        """
        return Stream(batch_ids, lambda batch_id: self.read(batch_id, dtype), read_ahead, threads)

    @property
    def vectors(self) -> VectorSource:
        """The source of a store of vectors, which also scores against the whole catalogue.

        Raises:
            StoreError: the store holds matrices.
        """
        if not isinstance(self._source, VectorSource):
            codec = self.manifest.header.binding.codec
            raise StoreError(
                f"{self.location.path(MANIFEST)}: codec {codec} holds in-batch scores, expected codec vectors to score "
                "against the whole catalogue. Score into a place of their own, `ckd teacher-score --codec vectors "
                "--scores FOLDER`, and train with the same --scores."
            )
        return self._source


def check_shards(location: Location, manifest: Manifest) -> None:
    """Prove that every shard of a manifest is there, with its size and its footer.

    Raises:
        StoreError: names the first file that is not.
    """
    sizes = location.sizes()
    for record in manifest.shards:
        found = sizes.get(record.file)
        if found != record.bytes:
            state = "no such file" if found is None else f"{found} bytes"
            raise StoreError(
                f"{location.path(record.file)}: {state}, expected {record.bytes} bytes. "
                "Run `ckd teacher-score` again, which repairs it."
            )

    def check(record: ShardRecord) -> None:
        check_footer(location, record, manifest)

    with ThreadPoolExecutor(OPENING) as pool:
        for _ in pool.map(check, manifest.shards):
            pass


class Stream(Generic[T]):
    """Iterates over (batch id, value), computed ahead by background threads.

    At most `read_ahead` values exist at a time beyond the one in use. An error in the background is raised at its place
    in the order. Leaving the loop early stops the threads.

    Attributes:
        waited_s: seconds the consumer has waited for values.
    """

    def __init__(self, ids: Iterable[int], work: Callable[[int], T], read_ahead: int, threads: int) -> None:
        if read_ahead < 1 or threads < 1:
            raise ValueError(f"read_ahead={read_ahead} and threads={threads} are at least 1")
        self.ids = ids
        self.work = work
        self.read_ahead = read_ahead
        self.threads = threads
        self.waited_s = 0.0

    def __iter__(self) -> Iterator[tuple[int, T]]:
        ids = iter(self.ids)
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="ckd-scores")
        ahead: deque[tuple[int, Future[T]]] = deque()
        try:
            for batch_id in islice(ids, self.read_ahead):
                ahead.append((batch_id, pool.submit(self.work, batch_id)))
            while ahead:
                batch_id, future = ahead.popleft()
                before = time.perf_counter()
                value = future.result()
                self.waited_s += time.perf_counter() - before
                del future
                for following in islice(ids, 1):
                    ahead.append((following, pool.submit(self.work, following)))
                yield batch_id, value
                del value
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


class ZippedReaders:
    """Several teachers' scores of the same plan, batch by batch.

    Args:
        readers: one for each teacher.

    Raises:
        StoreError: there is none, or two cover different plans or domains.
    """

    def __init__(self, readers: Sequence[ScoreReader]) -> None:
        if not readers:
            raise StoreError("no teacher's scores were given. Name at least one.")
        first = readers[0].manifest.header
        for reader in readers[1:]:
            header = reader.manifest.header
            for key, found, wanted in (
                ("domain", header.binding.domain, first.binding.domain),
                ("plan", header.binding.plan, first.binding.plan),
                ("batches", header.index, first.index),
            ):
                if found != wanted:
                    refuse(
                        f"made for {key} {found}, expected {key} {wanted} as {readers[0].location.text} is",
                        reader.location.path(MANIFEST),
                    )
        self.readers = list(readers)

    def __len__(self) -> int:
        return len(self.readers[0])

    def read(self, batch_id: int, dtype: npt.DTypeLike | None = np.float32) -> list[Float]:
        """The log-scores of a batch by each teacher, in the readers' order."""
        return [reader.read(batch_id, dtype) for reader in self.readers]

    def stream(
        self,
        batch_ids: Iterable[int],
        *,
        read_ahead: int = 8,
        threads: int = 1,
        dtype: npt.DTypeLike | None = np.float32,
    ) -> Stream[list[Float]]:
        """Batch id and each teacher's log-scores; see `ScoreReader.stream`."""
        return Stream(batch_ids, lambda batch_id: self.read(batch_id, dtype), read_ahead, threads)


class ZippedVectors(ZippedReaders):
    """Several teachers' vectors for the same plan, from which they score the whole catalogue.

    Args:
        readers: one for each teacher, of codec vectors.

    Attributes:
        items: of each teacher, (n_items + 1, d) float32 item vectors, row 0 padding.

    Raises:
        StoreError: as `ZippedReaders`, or a store holds matrices.
    """

    def __init__(self, readers: Sequence[ScoreReader]) -> None:
        super().__init__(readers)
        self.items: list[Float] = [reader.vectors.items for reader in self.readers]

    def read(self, batch_id: int, dtype: npt.DTypeLike | None = np.float32) -> list[Float]:
        """Of each teacher, (rows, d) vectors of the batch's instances over its temperature.

        Their products with `items` are the stored scores over all items, up to a constant in each row.
        """
        found = [reader.vectors.batch_users(batch_id) / np.float32(reader.temperature) for reader in self.readers]
        return found if dtype is None else [users.astype(dtype, copy=False) for users in found]


def zip_readers(readers: Sequence[ScoreReader]) -> ZippedReaders:
    """Several teachers' scores of the same plan; see `ZippedReaders`."""
    return ZippedReaders(readers)
