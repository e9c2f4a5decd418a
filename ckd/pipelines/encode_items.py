"""Item features of a domain: texts or pictures through an encoder, or vectors that somebody else has made.

Nothing is encoded twice: vectors are kept by content and encoder under `cache/features`, whatever the domain.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from ckd.config import Section
from ckd.data.domain import Domain
from ckd.data.feature_files import align, read_vectors
from ckd.data.features import (
    DROPPED_TEXT,
    IMAGE,
    TEXT,
    ItemFeatures,
    feature_path,
    list_features,
    load_features,
    save_features,
)
from ckd.errors import ConfigError, DataError, file_name
from ckd.pipelines.item_contents import Contents, find_pictures, picture_contents, text_contents
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.workspace import domain_folder
from ckd.teachers.encoders.cache import KEY, VectorCache
from ckd.teachers.encoders.common import json_hash
from ckd.teachers.encoders.image import ImageEncoder, ImageEncoderConfig
from ckd.teachers.encoders.text import TextEncoder, TextEncoderConfig


class EncodeConfig(Section):
    """What `encode-items` encodes, and with what."""

    modality: Literal["text", "image"] = "text"
    feature: str | None = Field(None, description="the feature's name; none: text, text-dropped or image")
    word_drop: float = Field(0.0, ge=0, lt=1, description="share of words left out, for UniSRec's word drop")
    seed: int = Field(2024, ge=0, lt=2**63, description="draws the words that are left out")
    images: str | None = Field(None, description="folder of pictures named by raw item id; none: the image column")
    text: TextEncoderConfig = TextEncoderConfig()
    image: ImageEncoderConfig = ImageEncoderConfig()


@dataclass(frozen=True)
class EncodedItems:
    """A feature that `encode_items` has written. The four counts add up to the domain's items.

    Attributes:
        path: the feature's JSON.
        feature: its name.
        fingerprint: hash over its vectors and presence.
        dim: length of a vector.
        encoded: items whose text or picture went through the encoder in this run.
        cached: items whose vector was there, from an earlier run or from another item of the same content.
        missing: items that have no text or picture.
        undecodable: items whose picture could not be opened, or was too large to be.
        traits: pictures opened in this run by what they were: rgb, grey-scale, palette, alpha, downscaled, undecodable,
            too large.
        unknown: files in the folder of pictures that belong to no item.
    """

    path: Path
    feature: str
    fingerprint: str
    dim: int
    encoded: int
    cached: int
    missing: int
    undecodable: int = 0
    traits: dict[str, int] = field(default_factory=dict)
    unknown: int = 0


@dataclass(frozen=True)
class ImportedFeatures:
    """A feature that `import_features` has written.

    Attributes:
        path: the feature's JSON.
        feature: its name.
        fingerprint: hash over its vectors and presence.
        dim: length of a vector.
        present: items that have a vector now.
        missing: items that have none: the file has no row for them, or one of zeros.
        zero: items whose row is all zeros, which stands for a missing vector.
        unknown: rows of the file whose id is no item of the domain.
    """

    path: Path
    feature: str
    fingerprint: str
    dim: int
    present: int
    missing: int
    zero: int
    unknown: int


def encode_items(work: Path, domain_name: str, config: EncodeConfig, progress: Progress = silent) -> EncodedItems:
    """Encode the texts or pictures of a domain's items, and save them as a feature in place of one of its name.

    Raises:
        ConfigError: an option that does not go with the modality, an unknown model, or no encoder at all.
        DataError: no such domain, no item has the content, or the model cannot be loaded.
    """
    name = file_name("feature", config.feature or _default_name(config))
    _check_options(config)
    domain = Domain.load(domain_folder(work, domain_name))
    assert domain.folder is not None
    encoder: TextEncoder | ImageEncoder
    if config.modality == "text":
        encoder = TextEncoder(config.text)
        contents = text_contents(domain, encoder, config.word_drop, config.seed)
    else:
        # Before a model, which may have to be fetched.
        pictures = find_pictures(domain, None if config.images is None else Path(config.images).expanduser())
        encoder = ImageEncoder(config.image)
        contents = picture_contents(pictures, encoder, progress)
    dropped = {"word_drop": config.word_drop, "seed": config.seed} if config.word_drop else {}
    source = {"model": encoder.name, "encoder": encoder.identity, "contents": contents.hash, **dropped}
    features = _saved(domain, name, source)
    encoded = 0
    if features is None:
        cache = VectorCache(work / "cache" / "features" / json_hash(encoder.identity))
        encoded = _encode_new(contents, cache, encoder.name, progress)
        with _assembled(domain, cache, contents) as (vectors, present):
            save_features(domain.folder, ItemFeatures(name, vectors, present, source))
        features = load_features(domain, name)
    there = int(np.count_nonzero(features.present))
    return EncodedItems(
        path=feature_path(domain.folder, name),
        feature=name,
        fingerprint=features.fingerprint,
        dim=features.dim,
        encoded=encoded,
        cached=there - encoded,
        missing=domain.n_items - contents.table.height,
        undecodable=contents.table.height - there,
        traits=dict(sorted(contents.traits.items())),
        unknown=contents.unknown,
    )


def import_features(
    work: Path,
    domain_name: str,
    name: str,
    vectors: Path,
    ids: Path | None = None,
    *,
    dim: int | None = None,
    vector_column: str | None = None,
    id_column: str | None = None,
) -> ImportedFeatures:
    """Take vectors from a file into a domain as a feature, joined by raw item id. Items without a row are missing.

    Args:
        vectors: `.npy`, `.safetensors`, `.parquet`, or raw little-endian float32 under any other name.
        ids: raw item ids of the rows: a text file with an id on each line or with UniSRec's `id TAB row`, or a column
            of a Parquet file. Not needed where `vectors` is a Parquet file with an id column.
        dim: length of a vector; only raw files of which it cannot be worked out need it, others are checked.
        vector_column: column of a Parquet file or tensor of a safetensors file that holds the vectors.
        id_column: column of a Parquet file that holds the ids.

    Raises:
        ConfigError: the name cannot be a file name.
        DataError: no such domain or file, the two do not fit, a value is not finite, an id comes twice, or no id is an
            item of the domain.
    """
    file_name("feature", name)
    domain = Domain.load(domain_folder(work, domain_name))
    assert domain.folder is not None
    table = read_vectors(vectors, ids, dim=dim, vector_column=vector_column, id_column=id_column)
    with _scratch(domain.folder, domain.n_items + 1, table.dim) as out:
        present, counts = align(domain, table, out)
        source = {"imported": vectors.name, "ids": ids.name if ids else None, "unknown": counts.unknown}
        features = ItemFeatures(name, out, present, source)
        path = save_features(domain.folder, features)
        there = int(np.count_nonzero(present))
        return ImportedFeatures(
            path=path,
            feature=name,
            fingerprint=features.fingerprint,
            dim=table.dim,
            present=there,
            missing=domain.n_items - there,
            zero=counts.zero,
            unknown=counts.unknown,
        )


def _default_name(config: EncodeConfig) -> str:
    if config.modality == "image":
        return IMAGE
    return DROPPED_TEXT if config.word_drop else TEXT


def _check_options(config: EncodeConfig) -> None:
    if config.modality == "image" and config.word_drop:
        raise ConfigError(f"word_drop={config.word_drop}: pictures have no words. Leave it out, or encode texts.")
    if config.modality == "text" and config.images is not None:
        raise ConfigError(f"images={config.images!r}: texts are encoded. Set modality=image as well.")


def _saved(domain: Domain, name: str, source: dict[str, Any]) -> ItemFeatures | None:
    """The feature that is there already, if it is whole, of this item list and from this source."""
    assert domain.folder is not None
    if name not in list_features(domain.folder):
        return None
    try:
        features = load_features(domain, name)
    except DataError:
        return None
    return features if features.source == source else None


def _encode_new(contents: Contents, cache: VectorCache, model: str, progress: Progress) -> int:
    """Encode each content that the cache does not have, block by block; returns how many could be encoded."""
    found = cache.find(contents.table.with_row_index("at"))
    new = found.filter(pl.col("block").is_null()).unique(subset=KEY, keep="first", maintain_order=True)
    # An order by content alone: a run that was killed goes on with the very blocks that an unbroken one writes.
    new = new.sort("order", *KEY)
    encoded = done = 0

    def report(count: int) -> None:
        nonlocal done
        done += count
        progress(done, new.height, contents.unit)

    report(0)
    for start in range(0, new.height, contents.block):
        block = new.slice(start, contents.block)
        vectors, able = contents.encode(block["at"].to_numpy(), report)
        if not np.isfinite(vectors).all():
            raise DataError(f"{model}: gave vectors that are not finite. Encode with precision fp32, or another model.")
        if able.any():
            cache.write(block.filter(pl.Series(able)), vectors[able])
        encoded += int(np.count_nonzero(able))
    return encoded


@contextmanager
def _assembled(
    domain: Domain, cache: VectorCache, contents: Contents
) -> Iterator[tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]]:
    """All the items' vectors from the cache, on disk, and which are present."""
    found = cache.find(contents.table)
    if found["block"].null_count() == found.height:
        raise DataError(
            f"none of {found.height} {contents.unit}s could be encoded ({dict(sorted(contents.traits.items()))})."
        )
    dim = cache.dim
    assert dim is not None
    assert domain.folder is not None
    present = np.zeros(domain.n_items + 1, dtype=np.bool_)
    with _scratch(domain.folder, domain.n_items + 1, dim) as vectors:
        for items, block in cache.read(found):
            vectors[items] = block
            present[items] = True
        yield vectors, present


@contextmanager
def _scratch(folder: Path, n: int, d: int) -> Iterator[npt.NDArray[np.float32]]:
    """(n, d) zeros in a nameless file of `folder`: it may be larger than memory, and a killed run leaves nothing."""
    with tempfile.TemporaryFile(dir=folder) as file:
        yield np.memmap(file, dtype=np.float32, mode="w+", shape=(n, d))
