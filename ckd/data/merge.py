"""Several domains as one, for pre-training: users and items are renumbered, nothing is shared between domains."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from ckd.data.domain import Domain, columns
from ckd.data.features import ItemFeatures
from ckd.errors import ConfigError, DataError


def item_offsets(domains: Sequence[Domain]) -> npt.NDArray[np.int64]:
    """(n,) what is added to the item numbers of each domain: the items of those before it."""
    return np.cumsum([0, *(domain.n_items for domain in domains)])[:-1]


def merge_domains(domains: Sequence[Domain]) -> Domain:
    """One domain in memory with all users and items; those of the first domain keep their numbers.

    Histories are capped as in the domain with the longest cap. Raw ids are prefixed with the domain's name.

    Raises:
        ConfigError: no domain is given, or two have the same name.
    """
    names = [domain.name for domain in domains]
    if not names:
        raise ConfigError("pre-training needs at least one domain.")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"domain {twice!r} is given twice. Name each domain once.")
    starts = np.cumsum([0, *(domain.indptr[-1] for domain in domains)])
    return Domain(
        name="+".join(names),
        indptr=np.concatenate(
            [[0], *(domain.indptr[1:] + start for domain, start in zip(domains, starts, strict=False))]
        ).astype(np.int64),
        items=np.concatenate(
            [domain.items + offset for domain, offset in zip(domains, item_offsets(domains), strict=True)]
        ).astype(np.int32),
        split=np.concatenate([domain.split for domain in domains]),
        item_table=_merge_items(domains),
        user_ids=pl.concat([(domain.name + "/" + domain.user_ids).rename(columns.RAW) for domain in domains]),
        history_cap=max(domain.history_cap for domain in domains),
        notes={"source": "merged", "domains": names},
    )


def _merge_items(domains: Sequence[Domain]) -> pl.DataFrame:
    tables = [
        domain.item_table.drop(columns.IMAGE, strict=False).with_columns(
            (pl.lit(domain.name + "/") + pl.col(columns.RAW)).alias(columns.RAW)
        )
        for domain in domains
    ]
    merged = pl.concat(tables, how="diagonal_relaxed")
    return merged.with_columns(pl.Series(columns.ITEM, np.arange(1, merged.height + 1, dtype=np.int32)))


def same_encoder(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two encoder identities give vectors of one space; numeric precision and text length may differ."""
    return all(one.get(key) == other.get(key) for key in ("kind", "weights", "pooling"))


def merge_features(features: Sequence[ItemFeatures]) -> ItemFeatures:
    """The features of the merged domain, from those of its domains in the same order.

    Raises:
        DataError: the vectors have different sizes, or come from different encoders as far as that is known.
    """
    sizes = {feature.dim for feature in features}
    if len(sizes) > 1:
        found = ", ".join(str(feature.dim) for feature in features)
        raise DataError(
            f"feature {features[0].name!r} has vectors of different sizes ({found}) in the domains given. "
            "Encode the items of all domains with one encoder."
        )
    encoders = [encoder for feature in features if (encoder := feature.source.get("encoder"))]
    if not all(same_encoder(encoder, encoders[0]) for encoder in encoders):
        raise DataError(
            f"feature {features[0].name!r} comes from different encoders in the domains given. "
            "Encode the items of all domains with one encoder."
        )
    return ItemFeatures(
        name=features[0].name,
        vectors=np.concatenate([features[0].vectors[:1], *(feature.vectors[1:] for feature in features)]),
        present=np.concatenate([[False], *(feature.present[1:] for feature in features)]),
        source={
            "merged": [feature.fingerprint for feature in features],
            "encoder": encoders[0] if encoders else None,
        },
    )
