"""A teacher's vectors: every instance and every item encoded once, whatever is then made of them.

Encoding is the expensive part of stage one. The vectors lie in the work folder by the teacher's and the domain's
fingerprints, in chunks that several processes share out among themselves and that a killed one leaves whole; the
matrices of any number of planned batches are small products of them.
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F

from ckd.data.batch import Batches
from ckd.data.domain import Domain
from ckd.errors import DataError
from ckd.pipelines.progress import Progress, silent
from ckd.store.claims import Claims
from ckd.store.location import PARTIAL, Location
from ckd.teachers.protocol import Teacher

Floats = npt.NDArray[np.float32]

#: Instances or items in a chunk.
CHUNK = 16384

#: Items in one forward pass.
ITEM_BATCH = 1024

#: Seconds between two looks at what other processes encode.
POLL = 0.2


@dataclass(frozen=True)
class TeacherVectors:
    """Vectors in memory-mapped chunks; of a cosine teacher they have length one.

    Attributes:
        instances: one (<= CHUNK, d) float32 array after the other, by training instance.
        items: the same, by item number from 0 (padding).
        encoded: instances and items that this process encoded, 0 where all were there.
    """

    instances: list[Floats]
    items: list[Floats]
    encoded: int

    @property
    def dim(self) -> int:
        return int(self.items[0].shape[1])

    def log_scores(self, ids: npt.NDArray[np.integer], items: npt.NDArray[np.integer], temperature: float) -> Floats:
        """(n, m) log-softmax over `items` (m,) of u . e / tau for the instances `ids` (n,): the log of Eq. (2)."""
        users = torch.from_numpy(gather(self.instances, ids))
        logits = users @ torch.from_numpy(gather(self.items, items)).T
        return (logits / temperature).log_softmax(dim=1).numpy()


def gather(chunks: list[Floats], rows: npt.NDArray[np.integer]) -> Floats:
    """(n, d) the given rows of an array that lies in chunks."""
    number, inside = np.divmod(rows.astype(np.int64), CHUNK)
    result = np.empty((len(rows), chunks[0].shape[1]), dtype=np.float32)
    for chunk in np.unique(number):
        here = number == chunk
        result[here] = chunks[chunk][inside[here]]
    return result


def encode_teacher(
    folder: Path,
    teacher: Teacher,
    domain: Domain,
    device: torch.device,
    encode_batch: int = 1024,
    progress: Progress = silent,
) -> TeacherVectors:
    """Encode whatever is not yet in `folder`; several processes may do so at once.

    Args:
        folder: named by the teacher's and the domain's fingerprints.
        encode_batch: instances in one forward pass.
    """
    if isinstance(teacher, nn.Module):
        teacher.to(device)
    instances = domain.instances("train")
    causal = bool(getattr(teacher, "causal", False))
    batches = Batches(domain, instances, share_prefixes=causal)
    normalised = teacher.similarity == "cosine"

    def finish(vectors: torch.Tensor) -> torch.Tensor:
        vectors = vectors.float()
        return (F.normalize(vectors, dim=-1) if normalised else vectors).cpu()

    def encode_instances(start: int, stop: int, report: Callable[[int], None]) -> torch.Tensor:
        # A causal encoder shares a pass among the prefixes of a user, which follow one another; for others,
        # histories of one length go together.
        ids = np.arange(start, stop)
        order = ids if causal else ids[np.argsort(instances.lengths[ids], kind="stable")]
        parts = []
        for at in range(0, len(order), encode_batch):
            parts.append(finish(teacher.encode_instances(batches(order[at : at + encode_batch]).to(device))))
            report(len(parts[-1]))
        result = torch.empty(len(order), parts[0].shape[1])
        result[torch.from_numpy(order - start)] = torch.cat(parts)
        return result

    def encode_items(start: int, stop: int, report: Callable[[int], None]) -> torch.Tensor:
        parts = []
        # Item 0 is padding: it is never scored, and a teacher need not have a vector for it.
        for at in range(max(start, 1), stop, ITEM_BATCH):
            parts.append(finish(teacher.encode_items(torch.arange(at, min(at + ITEM_BATCH, stop), device=device))))
            report(len(parts[-1]))
        return F.pad(torch.cat(parts), (0, 0, int(start == 0), 0))

    counter = _Counter(progress, len(instances) + domain.n_items)
    counter.kind(0)
    users = _share(Location(folder), "instances", len(instances), partial(encode_instances, report=counter))
    counter.kind(len(instances))
    items = _share(Location(folder), "items", domain.n_items + 1, partial(encode_items, report=counter))
    return TeacherVectors(users, items, counter.encoded)


@dataclass(frozen=True)
class Outstanding:
    """What of a domain a teacher has not encoded yet: instances, items, and the forward passes that they take."""

    instances: int
    items: int
    passes: int


def vectors_folder(work: Path, teacher: str, domain: Domain) -> Path:
    """Where the vectors of the teacher with that fingerprint lie."""
    return work / "cache" / "vectors" / f"{teacher}-{domain.fingerprint}"


def outstanding(folder: Path, domain: Domain, encode_batch: int) -> Outstanding:
    """What `encode_teacher` would encode now."""
    there = {path.name for path in folder.glob("*.npy")}
    counts, passes = [], 0
    for kind, first, count, size in (
        ("instances", 0, len(domain.instances("train")), encode_batch),
        ("items", 1, domain.n_items + 1, ITEM_BATCH),
    ):
        chunks = [
            min(at + CHUNK, count) - max(at, first)
            for number, at in enumerate(range(0, count, CHUNK))
            if _chunk(kind, number) not in there
        ]
        counts.append(sum(chunks))
        passes += sum(-(-chunk // size) for chunk in chunks)
    return Outstanding(instances=counts[0], items=counts[1], passes=passes)


class _Counter:
    """Counts what this process encodes, and reports how far the whole is."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.progress = progress
        self.total = total
        self.encoded = 0
        self._done = 0
        progress(0, total, "encoded")

    def kind(self, done: int) -> None:
        self._done = done

    def __call__(self, count: int) -> None:
        self.encoded += count
        self._done += count
        self.progress(self._done, self.total, "encoded")


def _share(location: Location, kind: str, count: int, encode: Callable[[int, int], torch.Tensor]) -> list[Floats]:
    """All chunks of one kind; whatever is missing is made, each chunk by the process that claims it first."""
    location.make()
    names = [_chunk(kind, number) for number in range(-(-count // CHUNK))]
    with Claims(location) as claims:
        while True:
            files = location.sizes()
            missing = [number for number, name in enumerate(names) if name not in files]
            if not missing:
                break
            mine = next((number for number in missing if claims.take(names[number], files)), None)
            if mine is None:
                time.sleep(POLL)
                continue
            if names[mine] not in location.sizes():
                buffer = io.BytesIO()
                np.save(buffer, encode(mine * CHUNK, min((mine + 1) * CHUNK, count)).numpy())
                with location.create(names[mine]) as file:
                    file.write(buffer.getbuffer())
                # What killed owners left; one that lives yet finds the file there.
                for left in location.sizes():
                    if left.startswith(f".{names[mine]}.") and left.endswith(PARTIAL):
                        location.delete(left)
            claims.release(names[mine])
    return [_read(location.path(name), min(CHUNK, count - at * CHUNK)) for at, name in enumerate(names)]


def _chunk(kind: str, number: int) -> str:
    return f"{kind}-{number:05d}.npy"


def _read(path: str, rows: int) -> Floats:
    """A chunk, memory-mapped.

    Raises:
        DataError: it is not what was written.
    """
    try:
        chunk: Floats = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise DataError(f"{path}: not a readable chunk of vectors ({error}). Delete it to encode it again.") from None
    if chunk.dtype != np.float32 or chunk.ndim != 2 or len(chunk) != rows:
        raise DataError(
            f"{path}: {chunk.dtype} of shape {chunk.shape}, expected float32 of {rows} rows. "
            "Delete it to encode it again."
        )
    return chunk
