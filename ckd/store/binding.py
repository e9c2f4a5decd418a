"""What a store was made for, and what the plan says of its batches."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from ckd.errors import StoreError

#: Instance ids (rows,) and their target items (cols,) of a batch: what the `vectors` codec rebuilds a matrix from.
Members = Callable[[int], tuple[npt.NDArray[np.integer], npt.NDArray[np.integer]]]


@dataclass(frozen=True)
class Binding:
    """The content that a store's numbers depend on.

    Attributes:
        domain: fingerprint of the domain.
        plan: fingerprint of the batch plan.
        teacher: fingerprint of the teacher's weights and configuration.
        temperature: tau of Eq. (2). As an expectation, None accepts any.
        codec: name of the codec. As an expectation, None accepts any.
        similarity: how the teacher compares its vectors, `dot` or `cosine`. As an expectation, None accepts any.
    """

    domain: str
    plan: str
    teacher: str
    temperature: float | None = None
    codec: str | None = None
    similarity: str | None = None

    def mismatch(self, expected: Binding) -> str | None:
        """`"teacher a, expected teacher b"` for what differs from `expected`, None where everything agrees."""
        for field in fields(self):
            found, wanted = getattr(self, field.name), getattr(expected, field.name)
            optional = field.name in ("temperature", "codec", "similarity")
            if found != wanted and not (optional and wanted is None):
                return f"made for {field.name} {found}, expected {field.name} {wanted}"
        return None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Binding:
        return cls(**{field.name: values[field.name] for field in fields(cls)})


@dataclass(frozen=True)
class BatchIndex:
    """What the plan says of each of its n batches; a batch's id is its row here.

    Attributes:
        hashes: (n,) uint64, hash of the batch's instance ids.
        rows: (n,) int32, instances in the batch.
        cols: (n,) int32, items that its instances are scored against.
    """

    hashes: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.int32]
    cols: npt.NDArray[np.int32]

    def __post_init__(self) -> None:
        shapes = {self.hashes.shape, self.rows.shape, self.cols.shape}
        if len(shapes) != 1 or self.hashes.ndim != 1:
            raise ValueError(f"hashes, rows and cols are vectors of one length, found {sorted(shapes)}")
        if len(self) and min(int(self.rows.min()), int(self.cols.min())) < 1:
            raise ValueError("a batch has at least one row and one column")

    def __len__(self) -> int:
        return len(self.hashes)

    @property
    def fingerprint(self) -> str:
        """Hash over the whole index."""
        digest = hashlib.blake2b(digest_size=16)
        for values, kind in ((self.hashes, "<u8"), (self.rows, "<i4"), (self.cols, "<i4")):
            digest.update(np.ascontiguousarray(values).astype(kind, copy=False).tobytes())
        return digest.hexdigest()

    def check(self, batch_id: int, found: int, path: str) -> None:
        """Compare a stored batch's hash with the plan's.

        Raises:
            StoreError: they differ.
        """
        wanted = int(self.hashes[batch_id])
        if found != wanted:
            raise StoreError(
                f"{path}: batch {batch_id} has hash {found:016x}, the plan says {wanted:016x}. "
                "The scores were made for another plan: score again."
            )
