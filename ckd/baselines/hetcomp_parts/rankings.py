"""Ranking lists: the first K items of a model for every user, kept at several epochs of its training.

A list holds items from 1, best first, the user's training items left out. A user's list comes from the whole training
part as history. Users without a training part have zeros.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.nn import functional as F

from ckd.baselines.common.histories import UserItems, training_items, user_histories
from ckd.data.atomic import replace_file
from ckd.data.batch import Batch, Batches, to_device
from ckd.data.described import parse_json
from ckd.data.domain import Domain
from ckd.errors import DataError, first_line
from ckd.evaluation.ranks import scoring
from ckd.nn.device import device_of
from ckd.nn.evaluating import evaluating
from ckd.nn.recommender import Recommender
from ckd.teachers.protocol import Teacher

FORMAT = 1
#: Key of the Parquet schema's metadata.
META = b"ckd.rankings"

#: Length of the published lists, and the least that the rank loss can divide.
LENGTH, LEAST = 100, 10

#: Users ranked at once.
BLOCK = 1024

#: Scores held at a time, where the catalogue is so large that fewer users are.
SCORES = 1 << 25


@dataclass(frozen=True)
class RankingLists:
    """The lists of one model at one moment.

    Attributes:
        items: (n_users, K) int32.
        domain: fingerprint of the domain.
        epoch: of training, counted from 0.
        quality: validation NDCG@10 then, None where it was not validated.
    """

    items: npt.NDArray[np.int32]
    domain: str
    epoch: int = 0
    quality: float | None = None

    @property
    def content(self) -> str:
        """Hash over the lists."""
        digest = hashlib.blake2b(str(self.items.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(self.items).astype("<i4", copy=False).tobytes())
        return digest.hexdigest()


def list_length(domain: Domain, wanted: int = LENGTH, training: UserItems | None = None) -> int:
    """How long lists can be: `wanted`, or what the catalogue leaves to the user with the most training items.

    Args:
        training: the domain's `training_items`, where they are at hand.

    Raises:
        DataError: fewer than ten items.
    """
    training = training_items(domain) if training is None else training
    left = domain.n_items - int(np.diff(training.indptr).max(initial=0))
    if left < LEAST:
        raise DataError(
            f"{domain.name}: a user has all but {left} of {domain.n_items} items; ranking lists need {LEAST} others. "
            "Leave that user out when preparing."
        )
    return min(wanted, left)


def ranking_lists(model: Recommender | Teacher, domain: Domain, length: int = LENGTH) -> npt.NDArray[np.int32]:
    """(n_users, K) the first `length` items of each user, fewer where the catalogue has no more.

    Nothing is drawn from any generator, and the model's mode is restored.

    Args:
        model: a student, or a teacher of either kind, wherever it lies.
        length: K, from 10.

    Raises:
        DataError: a user has nearly every item, a score is NaN, or the model knows other histories alone.
    """
    training = training_items(domain)
    k = list_length(domain, length, training)
    histories = user_histories(domain)
    build = Batches(domain, histories)
    found = np.zeros((domain.n_users, k), dtype=np.int32)
    order = np.argsort(histories.lengths, kind="stable")
    size = max(1, min(BLOCK, SCORES // domain.n_items))
    blocks = [order[start : start + size] for start in range(0, len(order), size)]
    for ids, scores in zip(blocks, _scores(model, domain, (build(ids) for ids in blocks)), strict=True):
        users = histories.users[ids]
        own, _ = training.cells(users, scores.shape[1], first=0)
        scores.view(-1).index_fill_(0, to_device(torch.from_numpy(own), scores.device), -torch.inf)
        scores[:, 0] = -torch.inf
        if bool(scores.isnan().any()):
            raise DataError(f"{type(model).__name__}: NaN among its scores on {domain.name}. It diverged; lower lr.")
        found[users] = first_columns(scores, k).to(torch.int32).cpu().numpy()
    return found


def first_columns(scores: torch.Tensor, k: int) -> torch.Tensor:
    """(B, k) columns of the highest scores, equal ones by number: a stable sort's first, several times faster."""
    highest, columns = scores.topk(k, dim=1)
    columns = columns.sort(dim=1).values
    order = scores.gather(1, columns).sort(dim=1, descending=True, stable=True).indices
    first = columns.gather(1, order)
    # Which of the equal scores at the end are in, only a full sort tells.
    tied = (scores >= highest[:, -1:]).sum(1) > k
    first[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, :k]
    return first


def _scores(model: Recommender | Teacher, domain: Domain, batches: Iterable[Batch]) -> Iterator[torch.Tensor]:
    """(B, n_items + 1) scores for each batch, where the model lies; those of padding, column 0, mean nothing."""
    device = device_of(model)
    with evaluating(model):
        encode, score = scoring(model, domain, device)
        for batch in batches:
            scores = score(encode(batch.to(device)), 1, domain.n_items + 1)
            yield F.pad(scores.float(), (1, 0))


def save_rankings(lists: RankingLists, path: Path) -> None:
    """Write ranking lists as Parquet with checksums: one row a user, what they belong to in the metadata."""
    n_users, k = lists.items.shape
    values = pa.array(np.ascontiguousarray(lists.items, dtype=np.int32).reshape(-1))
    table = pa.table({"items": pa.FixedSizeListArray.from_arrays(values, k)})
    meta = {"format": FORMAT, "domain": lists.domain, "epoch": lists.epoch, "quality": lists.quality}
    table = table.replace_schema_metadata({META: json.dumps(meta, sort_keys=True)})
    assert table.num_rows == n_users
    with replace_file(path) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


def load_rankings(path: Path, domain: Domain) -> RankingLists:
    """Read what `save_rankings` wrote.

    Raises:
        DataError: no such file, damaged, no ranking lists, or those of another domain.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Fine-tune the teacher again.") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged ({first_line(error)}). Fine-tune the teacher again.") from None
    stored = (table.schema.metadata or {}).get(META)
    if stored is None:
        raise DataError(f"{path}: Parquet, but holds no ranking lists.")
    meta = parse_json(stored, path, "Fine-tune the teacher again.")
    if meta.get("format") != FORMAT:
        raise DataError(f"{path}: ranking lists of another format than {FORMAT}. Fine-tune the teacher again.")
    if meta["domain"] != domain.fingerprint:
        raise DataError(
            f"{path}: lists of a domain with fingerprint {meta['domain']}, but {domain.name} has {domain.fingerprint}. "
            "Fine-tune the teacher again."
        )
    if "items" not in table.column_names:
        raise DataError(f"{path}: has no column 'items'. Fine-tune the teacher again.")
    column = table["items"].combine_chunks()
    items = column.flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
    return RankingLists(items.astype(np.int32), meta["domain"], meta["epoch"], meta["quality"])
