"""A teacher from files: any program that can write embeddings becomes one, without code.

`user_vectors` holds a vector for every instance (training, validation and test: validation decides the teacher's
weight), or one for every user that then serves all of the user's instances; `item_vectors` holds one for every item.
Their forms are in `ckd.teachers.vectors_parts.files`, their ids in `ckd.teachers.vectors_parts.instances`:

- items: column `item`, the raw item id;
- users: column `user`, the raw user id, alone or with `position` (place of the target in the user's sequence, from 0)
  or `target` (raw item id of the target). `instance_table(domain)` lists all of them.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
import torch
from pydantic import Field, computed_field, field_validator
from torch.nn import functional as F

from ckd.config import TrainConfig
from ckd.data.batch import Batch
from ckd.data.domain import Domain
from ckd.errors import DataError
from ckd.evaluation.metrics import ranking_metrics
from ckd.evaluation.ranks import rank_targets
from ckd.nn.recommender import ModelConfig, Recommender
from ckd.nn.weights import read_weights
from ckd.teachers.common.folder import WEIGHTS, read_info, write_teacher
from ckd.teachers.protocol import FinetuneResult, Report
from ckd.teachers.vectors_parts.files import VectorFile, check_exists, describe, id_file, read_vectors
from ckd.teachers.vectors_parts.instances import history_keys, instance_keys, match_items, match_users

NAME = "vectors"


class VectorsConfig(ModelConfig):
    """Where the vectors are and how they are compared."""

    user_vectors: Path = Field(description="file of user vectors, by user or by instance")
    item_vectors: Path = Field(description="file of item vectors")
    similarity: Literal["cosine", "dot"] = Field("cosine", description="how a user and an item vector are compared")
    temperature: float | None = Field(None, gt=0, description="tau of Eq. (2); none: 0.07 for cosine, 1 for dot")

    @field_validator("user_vectors", "item_vectors")
    @classmethod
    def _readable(cls, path: Path) -> Path:
        check_exists(path)
        return path

    @computed_field  # type: ignore[prop-decorator]
    @property
    def content(self) -> str:
        """Hash over the files, so that a run knows when they were written anew."""
        digest = hashlib.blake2b(digest_size=16)
        for path in (self.user_vectors, self.item_vectors):
            for part in (path, id_file(path)):
                if part is not None:
                    with part.open("rb") as file:
                        digest.update(hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).digest())
        return digest.hexdigest()


class Vectors(Recommender):
    """Looks vectors up.

    Args:
        similarity: cosine or dot; vectors of a cosine teacher are normalised.
        temperature: tau.
        table: (n_items + 1, d) item vectors, row 0 zero.
        users: (m, d) user vectors.
        rows: (n_users,) or (n_instances,) int64, the row of `users` for each.
        keys: (n_instances,) int64 ascending keys of the instances that `rows` belongs to; none: it belongs to users.
        domain: fingerprint of the domain.
    """

    Config = VectorsConfig
    table: torch.Tensor
    users: torch.Tensor
    rows: torch.Tensor
    keys: torch.Tensor | None

    def __init__(
        self,
        similarity: Literal["cosine", "dot"],
        temperature: float,
        table: torch.Tensor,
        users: torch.Tensor,
        rows: torch.Tensor,
        keys: torch.Tensor | None,
        domain: str,
    ) -> None:
        super().__init__()
        self.similarity: Literal["cosine", "dot"] = similarity
        self.temperature = temperature
        self.domain = domain
        for name, value in (("table", table), ("users", users), ("rows", rows), ("keys", keys)):
            self.register_buffer(name, value)

    @classmethod
    def create(cls, config: VectorsConfig, domain: Domain) -> Self:
        """Read both files and match them with the domain.

        Raises:
            DataError: a file is damaged, or a vector is missing, doubled, not finite or of another length.
        """
        items, users = read_vectors(config.item_vectors), read_vectors(config.user_vectors)
        if items.vectors.shape[1] != users.vectors.shape[1]:
            raise DataError(
                f"{users.path}: user vectors have {users.vectors.shape[1]} numbers, the item vectors in {items.path} "
                f"have {items.vectors.shape[1]}. They must have one length to be compared."
            )
        cosine = config.similarity == "cosine"
        item_rows = match_items(items, domain)
        per_instance, user_rows = match_users(users, domain)
        kept, rows = np.unique(user_rows, return_inverse=True)
        positions = torch.from_numpy(rows.astype(np.int64))
        keys = None
        if per_instance:
            keys, order = instance_keys(domain).sort(stable=True)
            positions = positions[order]
        return cls(
            config.similarity,
            config.temperature or (0.07 if cosine else 1.0),
            F.pad(_select(items, item_rows, cosine), (0, 0, 1, 0)),
            _select(users, kept, cosine),
            positions,
            keys,
            domain.fingerprint,
        )

    def save(self, folder: Path) -> None:
        """Copy the vectors, normalised where the teacher is cosine; the files they came from are not needed again."""
        info = {"similarity": self.similarity, "temperature": self.temperature, "domain": self.domain}
        write_teacher(folder, NAME, "fine-tuned", self, info)

    @classmethod
    def load(cls, folder: Path, domain: Domain) -> Self:
        meta, tensors = read_info(folder, NAME, domain=domain), read_weights(folder / WEIGHTS)
        return cls(
            meta["similarity"],
            meta["temperature"],
            tensors["table"],
            tensors["users"],
            tensors["rows"],
            tensors.get("keys"),
            meta["domain"],
        )

    def encode(self, batch: Batch) -> torch.Tensor:
        """(B, d) vectors of the instances.

        Raises:
            DataError: a history is none of the domain's instances.
        """
        if self.keys is None:
            return self.users[self.rows[batch.users]]
        wanted = history_keys(batch)
        found = torch.searchsorted(self.keys, wanted).clamp_(max=len(self.keys) - 1)
        known = self.keys[found] == wanted
        if not bool(known.all()):
            user = int(batch.users[~known][0])
            raise DataError(
                f"{int((~known).sum())} of {len(batch)} histories have no vector, the first is of user number {user}: "
                "they are no instances of the domain that the user vectors were written for. "
                "Write vectors by user to serve any history."
            )
        return self.users[self.rows[found]]

    def item_table(self) -> torch.Tensor:
        return self.table

    def encode_instances(self, batch: Batch) -> torch.Tensor:
        return self.encode(batch)

    def encode_items(self, items: torch.Tensor) -> torch.Tensor:
        return self.table[items]

    def finetune(self, domain: Domain, train: TrainConfig, seed: int, folder: Path, progress: Report) -> FinetuneResult:
        """Train nothing: the vectors come from a model that is trained already."""
        metrics: dict[str, Any] = ranking_metrics(rank_targets(self, domain, "valid").rank)
        progress(1, 1, "epoch", "vectors read from files")
        return FinetuneResult(metrics["ndcg@10"], 0, [])


def _select(file: VectorFile, rows: npt.NDArray[np.int64], cosine: bool) -> torch.Tensor:
    """(n, d) the vectors of `rows`, of length one for cosine."""
    vectors = torch.from_numpy(file.vectors[rows])
    if not cosine:
        return vectors
    zero = ~vectors.any(dim=1)
    if bool(zero.any()):
        first = describe(file.keys, int(rows[int(zero.nonzero()[0])]))
        raise DataError(
            f"{file.path}: the vector of {first} is zero and has no direction. Use similarity=dot, or drop it."
        )
    return F.normalize(vectors.double(), dim=1).float()


TEACHER = Vectors
