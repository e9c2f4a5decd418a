"""The manifest: what a finished store holds and what it was made for. Written last."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from ckd.errors import StoreError
from ckd.store.binding import Binding
from ckd.store.location import Location

#: Version of everything in docs/store-format.md.
FORMAT = 1

MANIFEST = "manifest.json"

Kind = Literal["matrices", "vectors"]


@dataclass(frozen=True)
class ShardRecord:
    """One shard as it was finished.

    Attributes:
        file: its name.
        first: the first batch in it (of vectors: the first instance or item).
        count: how many batches (instances, items).
        rows: rows of all its matrices together (of vectors: `count`).
        bytes: size of the file.
        sha256: of the file.
        footer: size in bytes of the Parquet footer with its length and magic.
        footer_sha256: of these bytes.
    """

    file: str
    first: int
    count: int
    rows: int
    bytes: int
    sha256: str
    footer: int
    footer_sha256: str


@dataclass(frozen=True)
class Quality:
    """Measured KL(exact || stored) in nats: mean and largest over this many rows."""

    mean: float
    max: float
    rows: int


@dataclass(frozen=True)
class Header:
    """What every file of a store agrees on.

    Attributes:
        binding: the content that the numbers depend on.
        kind: matrices of log-scores, or vectors.
        index: fingerprint of the plan's batch index.
        batches: number of batches in the plan.
        shard_batches: batches in every shard but the last (of vectors: instances).
    """

    binding: Binding
    kind: Kind
    index: str
    batches: int
    shard_batches: int

    def as_dict(self) -> dict[str, Any]:
        values = {"format": FORMAT, **asdict(self)}
        values["binding"] = self.binding.as_dict()
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any], path: str) -> Header:
        """The header in a manifest or a shard.

        Raises:
            StoreError: another format version, or a key is missing.
        """
        check_format(values, path)
        try:
            return cls(
                binding=Binding.from_dict(values["binding"]),
                **{key: values[key] for key in ("kind", "index", "batches", "shard_batches")},
            )
        except (KeyError, TypeError) as error:
            raise StoreError(f"{path}: no complete header ({error!r}). Run `ckd teacher-score` again.") from None

    def require(self, expected: Header, path: str) -> None:
        """Refuse a file or store made for something else.

        Raises:
            StoreError: names what differs and both values.
        """
        refuse(self.binding.mismatch(expected.binding), path)
        for key in ("kind", "index", "batches", "shard_batches"):
            found, wanted = getattr(self, key), getattr(expected, key)
            if found != wanted:
                refuse(f"made with {key} {found}, expected {key} {wanted}", path)


def refuse(difference: str | None, path: str) -> None:
    """Raise a StoreError for what `Binding.mismatch` found."""
    if difference:
        raise StoreError(f"{path}: {difference}. Score into another folder, or remove this one to score it again.")


@dataclass(frozen=True)
class Manifest:
    """A finished store: its header, its shards in order, the codec's bound and the measured quality."""

    header: Header
    shards: tuple[ShardRecord, ...]
    bound: str
    quality: Quality | None

    @property
    def bytes(self) -> int:
        """Size of all shards."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def rows(self) -> int:
        """Rows of all matrices (of vectors: instances and items)."""
        return sum(shard.rows for shard in self.shards)

    def save(self, location: Location) -> None:
        """Write `manifest.json`, atomically."""
        values = {
            **self.header.as_dict(),
            "bound": self.bound,
            "quality": asdict(self.quality) if self.quality else None,
            "shards": [asdict(shard) for shard in self.shards],
        }
        values["checksum"] = checksum(values)
        with location.create(MANIFEST) as file:
            file.write((json.dumps(values, indent=1, sort_keys=True) + "\n").encode())

    @classmethod
    def load(cls, location: Location) -> Manifest:
        """Read and check `manifest.json`.

        Raises:
            StoreError: there is none, its format is unknown, or it was damaged.
        """
        path = location.path(MANIFEST)
        try:
            with location.reporting(MANIFEST):
                try:
                    values = json.loads(location.read(MANIFEST))
                except FileNotFoundError:
                    raise StoreError(
                        f"{path}: no such file, expected the manifest of a finished store. "
                        "Run `ckd teacher-score`, which resumes what was begun."
                    ) from None
            if not isinstance(values, dict):
                raise ValueError("no JSON object")
        except ValueError as error:
            raise damaged(path, f"not JSON ({error})") from None
        check_format(values, path)
        stated = values.pop("checksum", None)
        if stated != (found := checksum(values)):
            raise damaged(path, f"content hashes to {found}, expected {stated}")
        quality = values["quality"]
        return cls(
            header=Header.from_dict(values, path),
            shards=tuple(ShardRecord(**shard) for shard in values["shards"]),
            bound=values["bound"],
            quality=Quality(**quality) if quality else None,
        )


def checksum(values: dict[str, Any]) -> str:
    """SHA-256 over the canonical JSON: sorted keys, no spaces."""
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def check_format(values: dict[str, Any], path: str) -> None:
    """Refuse a version of the format that this version of ckd does not know.

    Raises:
        StoreError: names both versions.
    """
    if values.get("format") != FORMAT:
        raise StoreError(
            f"{path}: store format {values.get('format')!r}, expected {FORMAT}. "
            "Use the version of ckd that wrote it, or score again."
        )


def damaged(path: str, what: str) -> StoreError:
    """The error for a file that is not what was written."""
    return StoreError(f"{path}: damaged: {what}. Run `ckd teacher-score` again, which repairs it.")
