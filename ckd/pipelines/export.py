"""Exports a trained student for serving elsewhere: an ONNX graph, or a checkpoint of RecBole's."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ckd.data.atomic import replace_folder, write_json
from ckd.data.described import read_json
from ckd.data.domain import SPLITS, Domain, columns
from ckd.errors import ConfigError, DataError
from ckd.nn.recommender import Recommender
from ckd.pipelines import export_onnx, export_recbole
from ckd.pipelines.train_student import load_student
from ckd.pipelines.workspace import content_hash, domain_folder, student_folder, versions

#: Describes an export, and lists its files: those are replaced by the next.
EXPORT_FILE = "export.json"

#: The raw id of every item number, beside every export.
ITEMS_FILE = "items.json"

Target = Literal["onnx", "recbole"]

#: Writes a student of this identity, from its run's folder, into a folder and says what is worth knowing of it.
Writer = Callable[[Path, Recommender, Domain, dict[str, Any], Path], dict[str, Any]]

WRITERS: dict[Target, Writer] = {"onnx": export_onnx.write_onnx, "recbole": export_recbole.write_recbole}

#: What every export says of itself; a file without is no export's.
SAID = frozenset(("to", "student", "domain", "fingerprint", "weights", "versions"))

#: Files besides `EXPORT_FILE` and `ITEMS_FILE` of exports that do not list theirs; {0} is the domain.
UNLISTED: dict[Target, tuple[str, ...]] = {
    "onnx": (export_onnx.MODEL_FILE, f"{export_onnx.MODEL_FILE}.data"),
    "recbole": (
        *(export_recbole.MODEL_FILE, export_recbole.CONFIG_FILE, "{0}/{0}.item"),
        *(f"{{0}}/{{0}}.{split}.inter" for split in SPLITS),
    ),
}


@dataclass(frozen=True)
class Exported:
    """An exported student.

    Attributes:
        folder: where it lies.
        files: what is in it, relative to the folder, sorted.
        bytes: of all files.
        about: what the export says of itself; of ONNX the largest `difference` to torch that was measured.
    """

    folder: Path
    files: tuple[str, ...]
    bytes: int
    about: dict[str, Any]


def export_student(work: Path, domain_name: str, run: str, to: Target = "onnx", out: Path | None = None) -> Exported:
    """Export the student's best epoch into a folder that appears whole or not at all; an earlier export is replaced.

    `items.json` in it lists the raw id of every item number, with null for padding, number 0.

    Args:
        to: `onnx`: scores of all items for histories, see `write_onnx`; `recbole`: see `write_recbole`.
        out: the folder, or a link to it; none: `export-onnx` or `export-recbole` in the run's.

    Raises:
        ConfigError: the student cannot be exported so, a package is missing, or `out` holds something besides an
            export, or is where the command is run.
        DataError: no such run, or the domain cannot be written out.
        CkdError: the exported graph scores otherwise than the student.
    """
    if to not in WRITERS:
        raise ConfigError(f"export to {to!r}: onnx or recbole.")
    domain = Domain.load(domain_folder(work, domain_name))
    model, described = load_student(work, domain, run)
    source = student_folder(work, domain_name, run)
    # A link stays one: what it leads to is replaced.
    folder = Path(os.path.realpath(out or source / f"export-{to}"))
    _require_replaceable(folder)
    with replace_folder(folder) as partial:
        about = {
            "to": to,
            "student": described["identity"]["student"],
            "domain": domain.name,
            "fingerprint": domain.fingerprint,
            "run": run,
            "weights": content_hash(source / "best.safetensors"),
            "history_cap": domain.history_cap,
            "n_items": domain.n_items,
            "versions": versions(),
            **WRITERS[to](partial, model, domain, described["identity"], source),
        }
        write_json(partial / ITEMS_FILE, [None, *domain.item_table[columns.RAW].to_list()])
        files = tuple(sorted([EXPORT_FILE, *_names(partial)]))
        write_json(partial / EXPORT_FILE, {**about, "files": files})
        size = sum((partial / name).stat().st_size for name in files)
    return Exported(folder, files, size, about)


def _require_replaceable(folder: Path) -> None:
    """Refuse a folder that holds anything besides an export of ckd, or that the command is run in.

    Raises:
        ConfigError: names what is there.
    """
    if Path.cwd().is_relative_to(folder):
        raise ConfigError(
            f"{folder}: an export replaces its whole folder, and this one is where the command is run, or above it. "
            "Name another --out."
        )
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    own = _files_of_export(folder)
    if own is None:
        raise ConfigError(f"{folder}: there is something here that is no export of ckd. Name another --out.")
    foreign = sorted(set(_names(folder)) - own)
    if foreign:
        raise ConfigError(
            f"{folder / foreign[0]}: not of the export in this folder, which would be replaced whole. Move it away, or "
            "name another --out."
        )


def _names(folder: Path) -> list[str]:
    """Everything in a folder that is no folder itself, by path within it; of links, the links."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()]
    return [path.relative_to(folder).as_posix() for path in found]


def _files_of_export(folder: Path) -> set[str] | None:
    """What an earlier export has written here; None where there is none."""
    try:
        about = read_json(folder / EXPORT_FILE, "")
    except DataError:
        return None
    if not about.keys() >= SAID or about["to"] not in list(WRITERS):
        return None
    unlisted = [EXPORT_FILE, ITEMS_FILE, *(name.format(about["domain"]) for name in UNLISTED[about["to"]])]
    listed = about.get("files", unlisted)
    return set(listed) if isinstance(listed, list) and all(isinstance(name, str) for name in listed) else None
