"""The example domains as prepared domains on disk, their pictures encoded."""

from __future__ import annotations

from pathlib import Path

from ckd.data.domain import Domain
from ckd.data.example import DEFAULT, ExampleSize, make_example
from ckd.data.features import IMAGE, load_features
from ckd.errors import DataError
from ckd.pipelines.encode_items import EncodeConfig, encode_items
from ckd.pipelines.workspace import domain_folder
from ckd.teachers.encoders.image import PIXELS, ImageEncoderConfig


def prepare_example(work: Path, seed: int = 2024, size: ExampleSize = DEFAULT, replace: bool = False) -> list[Domain]:
    """Write the example domains under `work/domains/<name>/`, sources first; what is there already stays untouched.

    Their pictures become the feature `image` through the encoder `pixels`, which needs no weights: shapes in colours
    and patterns are what it measures, and trained encoders have seen nothing like them.

    Args:
        replace: put it in the place of one of another seed, to which plans, scores and runs may belong.

    Raises:
        ConfigError: the seed is negative.
        DataError: a domain of that name is there that is no example, or one of another seed.
    """
    domains = []
    for name, domain in make_example(seed, size).items():
        stored = _stored(domain, domain_folder(work, name), replace)
        domains.append(stored or domain.save(domain_folder(work, name)))
        if stored is None or not _has_pictures(stored):
            image = ImageEncoderConfig(model=PIXELS, device="cpu")
            encode_items(work, name, EncodeConfig(modality="image", image=image))
    return domains


def _stored(domain: Domain, folder: Path, replace: bool) -> Domain | None:
    """The stored domain where it equals `domain` in content, pictures and notes."""
    if not folder.exists():
        return None
    try:
        stored = Domain.load(folder)
    except DataError:  # an example that an older version wrote, or that was damaged: made anew
        return None
    if stored.notes.get("source") != "example":
        raise DataError(f"{folder}: holds a domain that is no example. Move it away, or choose another work folder.")
    there, wanted = (notes.get("seed") for notes in (stored.notes, domain.notes))
    if there != wanted and not replace:
        raise DataError(
            f"{folder}: the example of seed {there}, not {wanted}; plans, scores and runs may belong to it. Take "
            f"another --work, or make it anew with `ckd example --seed {wanted} --replace`."
        )
    same = (
        stored.fingerprint == domain.fingerprint
        and stored.notes == domain.notes
        and stored.item_table.equals(domain.item_table)
    )
    return stored if same else None


def _has_pictures(domain: Domain) -> bool:
    """Whether the pictures are encoded, by whatever encoder."""
    try:
        load_features(domain, IMAGE)
    except DataError:  # none, or damaged
        return False
    return True
