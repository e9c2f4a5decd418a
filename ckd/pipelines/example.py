"""The example domains as prepared domains on disk."""

from __future__ import annotations

from pathlib import Path

from ckd.data.domain import Domain
from ckd.data.example import DEFAULT, ExampleSize, make_example
from ckd.errors import DataError


def prepare_example(work: Path, seed: int = 2024, size: ExampleSize = DEFAULT) -> list[Domain]:
    """Write the example domains under `work/domains/<name>/`, sources first; what is there already stays untouched.

    Raises:
        ConfigError: the seed is negative.
        DataError: a domain of that name is there that is no example.
    """
    return [_keep_or_save(domain, work / "domains" / name) for name, domain in make_example(seed, size).items()]


def _keep_or_save(domain: Domain, folder: Path) -> Domain:
    """The stored domain where it equals `domain` in content, pictures and notes, otherwise `domain`, saved."""
    if not folder.exists():
        return domain.save(folder)
    try:
        stored = Domain.load(folder)
    except DataError:  # an example that an older version wrote, or that was damaged: made anew
        return domain.save(folder)
    if stored.notes.get("source") != "example":
        raise DataError(f"{folder}: holds a domain that is no example. Move it away, or choose another work folder.")
    same = (
        stored.fingerprint == domain.fingerprint
        and stored.notes == domain.notes
        and stored.item_table.equals(domain.item_table)
    )
    return stored if same else domain.save(folder)
