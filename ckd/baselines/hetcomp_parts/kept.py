"""The ranking lists that a teacher keeps while it is fine-tuned: the folder `rankings` in the teacher's own.

`rankings.json` in it is written when fine-tuning begins, and again when it has ended: then it names the teacher's
fingerprint, and the lists from the first kept epoch to the best one with the hash of each. Only then can they be read.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ckd.baselines.hetcomp_parts.rankings import (
    LENGTH,
    RankingLists,
    list_length,
    load_rankings,
    ranking_lists,
    save_rankings,
)
from ckd.data.atomic import discard_partials, write_json
from ckd.data.described import read_json
from ckd.data.domain import Domain
from ckd.errors import ConfigError, DataError
from ckd.nn.recommender import Recommender
from ckd.teachers.protocol import Teacher

FOLDER = "rankings"
INDEX = "rankings.json"
FORMAT = 1

#: What mends a damaged index.
AGAIN = "Delete the teacher's folder, and fine-tune it again."


@dataclass(frozen=True)
class RankingRecorder:
    """Keeps a model's ranking lists while it is trained, as `keep` of `ckd.distill.trainer.Trainer`.

    Attributes:
        model: what is trained.
        domain: where its users are.
        teacher: the teacher's folder.
        every: epochs between lists; the first epoch's are kept, and in the end the best one's.
        length: K.

    Raises:
        ConfigError: `every` is below 1.
        DataError: a user has nearly every item.
    """

    model: Recommender | Teacher
    domain: Domain
    teacher: Path
    every: int = 1
    length: int = LENGTH

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ConfigError(f"every={self.every}: ranking lists are kept every 1 epoch or more.")
        list_length(self.domain, self.length)

    @property
    def folder(self) -> Path:
        return self.teacher / FOLDER

    def begin(self) -> None:
        """Call before training begins or goes on.

        Raises:
            DataError: training has begun already, and not every list that is due has been kept.
        """
        begun = _index(self.teacher)
        if begun is None or begun.get("every") != self.every:
            how = "no ranking lists" if begun is None else f"those of every {begun.get('every')} epochs"
            # What a restart has put aside is hidden.
            if any(path.name != FOLDER for path in self.teacher.glob("[!.]*")):
                raise DataError(
                    f"{self.teacher}: fine-tuning began keeping {how}, and epochs that are over cannot be ranked with "
                    "any more. "
                    "Go on as it began, or give another --run."
                )
        if begun is None:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            discard_partials(self.folder)
        write_json(self.folder / INDEX, {"format": FORMAT, "every": self.every})

    def __call__(self, row: dict[str, Any]) -> None:
        """Keep the lists of the epoch that this log row is of, where they are due."""
        if row["epoch"] % self.every == 0:
            self._save(row["epoch"], row.get("valid_ndcg@10"))

    def finish(self, fingerprint: str, best_epoch: int, quality: float) -> None:
        """Call with the model at its best weights: keep its lists too, and none of later epochs.

        Args:
            fingerprint: of the teacher that was made.
            best_epoch: epoch of its weights.
            quality: its validation NDCG@10.
        """
        self._save(best_epoch, quality)
        listed = []
        for path in sorted(self.folder.glob("rankings-*.parquet")):
            lists = load_rankings(path, self.domain)
            if lists.epoch > best_epoch:
                path.unlink()
            else:
                described = {"epoch": lists.epoch, "quality": lists.quality, "content": lists.content}
                listed.append({"file": path.name, **described})
        index = {"format": FORMAT, "every": self.every, "teacher": fingerprint, "lists": listed}
        write_json(self.folder / INDEX, {**index, "domain": self.domain.fingerprint})

    def _save(self, epoch: int, quality: float | None) -> None:
        items = ranking_lists(self.model, self.domain, self.length)
        lists = RankingLists(items, self.domain.fingerprint, epoch, quality)
        save_rankings(lists, self.folder / f"rankings-{epoch:05d}.parquet")


def drop_begun(teacher: Path) -> None:
    """Give up keeping lists: training goes on without, and what is missing must not look kept."""
    shutil.rmtree(teacher / FOLDER, ignore_errors=True)


def kept_epochs(teacher: Path) -> tuple[int, ...]:
    """Epochs whose lists a fine-tuned teacher has kept; empty where it has none."""
    index = _index(teacher) or {}
    return tuple(each["epoch"] for each in index.get("lists", []))


def kept_every(teacher: Path) -> int | None:
    """Epochs between the lists that a fine-tuned teacher has kept; None where it has none."""
    index = _index(teacher) or {}
    return index.get("every") if "lists" in index else None


def kept_rankings(teacher: Path, domain: Domain, fingerprint: str) -> list[RankingLists]:
    """The lists that a teacher has kept, earliest first; the last is the best epoch's.

    Args:
        teacher: its folder.
        domain: where its users are.
        fingerprint: the teacher's.

    Raises:
        DataError: it has kept none, they are another teacher's or domain's, or a file is missing or changed.
    """
    index = _index(teacher) or {}
    if "lists" not in index:
        raise DataError(
            f"{teacher}: no ranking lists kept. Fine-tune it with `ckd finetune-teacher --keep-rankings 1` and another "
            "--run, or delete its folder where `ckd reproduce` named it: the same settings and seed give the same "
            "teacher."
        )
    if index["teacher"] != fingerprint:
        raise DataError(
            f"{teacher / FOLDER}: ranking lists of a teacher with fingerprint {index['teacher']}, the one beside them "
            f"has {fingerprint}. Delete its folder, and fine-tune it again with --keep-rankings {index['every']}."
        )
    found = []
    for each in index["lists"]:
        path = teacher / FOLDER / each["file"]
        lists = load_rankings(path, domain)
        if lists.content != each["content"]:
            raise DataError(f"{path}: lists of content {lists.content}, {INDEX} says {each['content']}. {AGAIN}")
        found.append(lists)
    return found


def choose_checkpoints(kept: Sequence[RankingLists], count: int = 4) -> list[RankingLists]:
    """`count` moments of a teacher's training, evenly spread from its first kept epoch to its best.

    HetComp publishes the number, four from early to converged, but not which; the spread is inferred. Fewer are
    returned where fewer were kept. One alone is the best.

    Args:
        kept: what `kept_rankings` read, at least one.

    Raises:
        ConfigError: `count` is below 1.
    """
    if count < 1:
        raise ConfigError(f"count={count}: a teacher needs at least 1 checkpoint.")
    at = np.unique(np.round(np.linspace(0, len(kept) - 1, count)).astype(int))
    return [kept[-1]] if count == 1 else [kept[i] for i in at]


def _index(teacher: Path) -> dict[str, Any] | None:
    """What `rankings.json` says; None where there is none.

    Raises:
        DataError: it is damaged, of another format, or lists nothing.
    """
    path = teacher / FOLDER / INDEX
    if not path.exists():
        return None
    found = read_json(path, AGAIN)
    if found.get("format") != FORMAT:
        raise DataError(f"{path}: no index of format {FORMAT}. {AGAIN}")
    # The best epoch's are always kept.
    lists = found.get("lists", [{}])
    if not (lists and isinstance(lists, list) and all(isinstance(each, dict) for each in lists)):
        raise DataError(f"{path}: names no ranking lists. {AGAIN}")
    return found
