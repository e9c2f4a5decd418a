"""What a domain was prepared from: the files that were read, by their content, so that a folder may be moved."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from shlex import quote
from typing import Any, cast

from ckd.data.domain import Domain
from ckd.data.ingest.raw import RawDomain
from ckd.errors import DataError
from ckd.pipelines.workspace import content_hash


def inputs_of(raw: RawDomain, source: Path) -> dict[str, str]:
    """Hashes of the files that were read: by name, or by path of an item file that does not lie in the source."""
    folder = _folder(source).absolute()
    read = [path.absolute() for path in (raw.file, raw.items_file, *raw.also) if path is not None]
    return {path.name if path.parent == folder else str(path): content_hash(path) for path in read}


def require_prepared_from(described: Path, notes: Mapping[str, Any], source: Path, items: Path | None = None) -> None:
    """Refuse a domain that was prepared from other files than those of `source`; one that does not say is taken.

    Args:
        described: the domain's `domain.json`, whose notes these are.
        source: a file or folder, as `prepare` takes it.
        items: what `prepare.items` names now; none: what it named then.

    Raises:
        DataError: names the domain, both sources, the first file that differs, and the remedy.
    """
    folder, then = _folder(source), notes.get("source")
    for name, known in notes.get("inputs", {}).items():
        path = items if items is not None and Path(name).is_absolute() else folder / name
        if path.is_file() and content_hash(path) == known:
            continue
        how = "is not what it was then" if path.is_file() else "is not there"
        now = "" if then == str(source.absolute()) else f", not from {source.absolute()}"
        raise DataError(
            f"{described}: prepared from {then}{now}: {path} {how}. Take another --work, or prepare the domain again "
            f"with `ckd prepare {quote(str(source))} --name {described.parent.name} --replace`."
        )


def require_same_domain(folder: Path, domain: Domain) -> None:
    """Refuse to put another domain in the place of one that is there; one that is damaged is in nobody's way.

    Raises:
        DataError: it holds other interactions or items.
    """
    if not folder.exists():
        return
    try:
        there = Domain.load(folder)
    except DataError:
        return
    if there.fingerprint == domain.fingerprint and there.item_table.equals(domain.item_table):
        return
    settings, new = (cast(dict[str, Any], notes.get("config", {})) for notes in (there.notes, domain.notes))
    changed = [f"prepare.{key}={settings[key]}" for key in settings if settings[key] != new.get(key)]
    how = f" with {', '.join(changed)}" if changed else ""
    raise DataError(
        f"{folder / 'domain.json'}: is another domain, prepared from {there.notes.get('source')}{how}, to which plans, "
        f"scores and runs may belong. Give {domain.notes['source']} another --name or --work, or say --replace."
    )


def _folder(source: Path) -> Path:
    return source if source.is_dir() else source.parent
