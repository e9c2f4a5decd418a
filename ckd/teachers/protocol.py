"""What stage one needs of a teacher, whatever it is inside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol, Self, runtime_checkable

import torch

from ckd.config import TrainConfig
from ckd.data.batch import Batch
from ckd.data.domain import Domain

Similarity = Literal["dot", "cosine"]

#: Receives how far long work has come: done, total (None where unknown), unit, a short note.
Report = Callable[[int, int | None, str, str], None]


#: Receives the row of each finished epoch, with `epoch` from 0 and, where it was validated, `valid_ndcg@10`, while the
#: teacher holds that epoch's weights and before the checkpoint that counts the epoch is written.
Keep = Callable[[dict[str, Any]], None]


@runtime_checkable
class Teacher(Protocol):
    """A fine-tuned model that gives one vector per instance and one per item (paper 3.5.2).

    Attributes:
        Config: pydantic class of the teacher's configuration; unknown keys are refused.
        similarity: how the vectors are compared. Cosine teachers return vectors of any length; the scorer normalises.
        temperature: tau of Eq. (2) when the run names none: the one the teacher was trained with.
    """

    Config: ClassVar[type[Any]]
    similarity: Similarity
    temperature: float

    @classmethod
    def create(cls, config: Any, domain: Domain) -> Self:
        """A model before fine-tuning on this domain, drawn from torch's global generator."""
        ...

    @classmethod
    def load(cls, folder: Path, domain: Domain) -> Self:
        """The model that `save` wrote to `folder`, ready to score `domain`. Pickles are never executed.

        Raises:
            DataError: a file is missing or a tensor has another shape than the domain calls for.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` and whatever `load` needs into an existing folder."""
        ...

    def encode_instances(self, batch: Batch) -> torch.Tensor:
        """(B, d) float32 vectors of the instances' histories, in evaluation mode and without gradient."""
        ...

    def encode_items(self, items: torch.Tensor) -> torch.Tensor:
        """(n, d) float32 vectors of the items (n,), in evaluation mode and without gradient."""
        ...


@dataclass(frozen=True)
class FinetuneResult:
    """How a teacher's own fine-tuning went.

    Attributes:
        metric: validation NDCG@10 of the weights that the teacher holds now.
        epochs: epochs trained in all.
        rows: one entry per validation, in order: `epoch`, `stage`, `loss`, `lr`, `ndcg@10`.
    """

    metric: float
    epochs: int
    rows: list[dict[str, float]]


@runtime_checkable
class SelfFinetuning(Protocol):
    """A teacher that brings its own fine-tuning; all others are trained by cross-entropy over the catalogue."""

    def finetune(self, domain: Domain, train: TrainConfig, seed: int, folder: Path, progress: Report) -> FinetuneResult:
        """Train on `domain` and leave the teacher holding its best weights by validation NDCG@10.

        Goes on from checkpoints in `folder`, with the result of an uninterrupted run; the caller saves the teacher.
        One that takes `keep: Keep | None = None` besides tells its epochs, see `Keep`.
        """
        ...


@runtime_checkable
class Pretrainable(Protocol):
    """A teacher class that can be pre-trained over several domains, to start fine-tuning from.

    Attributes:
        PretrainConfig: pydantic class of what pre-training can be told, where it differs from `Config`.
        PRETRAIN_DEFAULTS: training settings that the teacher's paper chooses otherwise than `TrainConfig`.

    Both attributes are optional.
    """

    @classmethod
    def pretrain(
        cls, domains: Sequence[Domain], config: Any, train: TrainConfig, seed: int, folder: Path, progress: Report
    ) -> None:
        """Pre-train and write `model.safetensors` and `teacher.json` into the existing `folder`.

        Goes on from checkpoints in `folder`, with the result of an uninterrupted run.

        Raises:
            DataError: a domain lacks what the teacher reads, or `folder` holds checkpoints of another run.
        """
        ...


@runtime_checkable
class Importable(Protocol):
    """A teacher class that understands the checkpoints its authors published."""

    @classmethod
    def import_checkpoint(
        cls, tensors: Mapping[str, torch.Tensor], config: Mapping[str, Any], where: str, folder: Path
    ) -> list[str]:
        """Write the weights into the existing `folder` as pre-trained ones; returns the keys left out.

        Args:
            tensors: the checkpoint's state dict.
            config: the teacher's own keys, for what no shape tells.
            where: the checkpoint, for messages.

        Raises:
            DataError: names every key that is missing, unknown or of the wrong shape.
        """
        ...
