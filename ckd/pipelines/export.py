"""Exports a trained student for serving elsewhere: an ONNX graph, or a checkpoint of RecBole's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ckd.data.atomic import replace_folder, write_json
from ckd.data.domain import Domain, columns
from ckd.errors import ConfigError
from ckd.nn.recommender import Recommender
from ckd.pipelines.export_onnx import write_onnx
from ckd.pipelines.export_recbole import write_recbole
from ckd.pipelines.train_student import load_student
from ckd.pipelines.workspace import content_hash, domain_folder, student_folder, versions

#: Describes an export, and marks a folder as one.
EXPORT_FILE = "export.json"

#: The raw id of every item number, beside every export.
ITEMS_FILE = "items.json"

Target = Literal["onnx", "recbole"]

#: Writes a student of this identity, from its run's folder, into a folder and says what is worth knowing of it.
Writer = Callable[[Path, Recommender, Domain, dict[str, Any], Path], dict[str, Any]]

WRITERS: dict[Target, Writer] = {"onnx": write_onnx, "recbole": write_recbole}


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
        out: the folder; none: `export-onnx` or `export-recbole` in the run's.

    Raises:
        ConfigError: the student cannot be exported so, a package is missing, or `out` holds something else.
        DataError: no such run, or the domain cannot be written out.
        CkdError: the exported graph scores otherwise than the student.
    """
    if to not in WRITERS:
        raise ConfigError(f"export to {to!r}: onnx or recbole.")
    domain = Domain.load(domain_folder(work, domain_name))
    model, described = load_student(work, domain, run)
    source = student_folder(work, domain_name, run)
    folder = out or source / f"export-{to}"
    if folder.exists() and not (folder / EXPORT_FILE).is_file() and not _is_empty(folder):
        raise ConfigError(f"{folder}: there is something here that is no export of ckd. Name another --out.")
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
        write_json(partial / EXPORT_FILE, about)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = tuple(str(path.relative_to(folder)) for path in files)
    return Exported(folder, names, sum(path.stat().st_size for path in files), about)


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())
