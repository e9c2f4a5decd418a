"""Which run a folder holds, wherever its inputs lie and from whatever version of this package it comes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ckd.teachers.common.folder import INFO, WEIGHTS

#: Keys of a teacher's configuration that say where inputs lie.
PLACES = ("start", "user_vectors", "item_vectors")

Identity = dict[str, Any]


def as_found(identity: Identity, found: Mapping[str, Any], added: tuple[str, ...] = ()) -> Identity:
    """`identity` as the run of `found` would have written it, where both may be one run.

    Places are spelled as there: relative or absolute, they are the same inputs. Whether what lies there is the same is
    told by `start` and `config.content`; of a run from before they were noted, the place itself has to be the same.

    Args:
        identity: of this run.
        found: of the run that is there.
        added: keys that runs may lack which are from before there were these keys.
    """
    kept = {key: value for key, value in identity.items() if key in found or key not in added}
    ours, theirs = identity["config"], found.get("config")
    if not isinstance(theirs, dict):
        return kept
    known = "start" in found and "start" in identity
    both = [key for key in PLACES if ours.get(key) and theirs.get(key)]
    spelled = {key: theirs[key] for key in both if known or _same_place(ours[key], theirs[key])}
    return {**kept, "config": {**ours, **spelled}}


def continued(identity: Identity, checkpoint: Path, added: tuple[str, ...] = ()) -> Identity:
    """`as_found` for the run whose checkpoint this is; as it is where there is none, or none that can be read."""
    try:
        with safe_open(checkpoint, "pt") as file:
            found = json.loads((file.metadata() or {}).get("identity", "{}"))
    except (SafetensorError, OSError, ValueError):
        return identity
    return as_found(identity, found, added)


def start_content(start: Path | None) -> dict[str, str]:
    """What lies in the folder that training starts from, for a run's identity; nothing where there is none."""
    paths = [] if start is None else [start / WEIGHTS, start / INFO]
    if not paths or not all(path.is_file() for path in paths):
        return {}
    digest = hashlib.blake2b(digest_size=16)
    for path in paths:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
    return {"start": digest.hexdigest()}


def without_places(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration for a teacher's own file, which is the same wherever its start lay."""
    return {**config, "start": None} if "start" in config else dict(config)


def _same_place(one: str, other: str) -> bool:
    return Path(one).expanduser().resolve() == Path(other).expanduser().resolve()
