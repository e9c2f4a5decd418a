"""The rank of every user's target among all items: what all metrics and paired tests derive from.

Nothing is sorted: a rank is one plus the number of items that score higher, and one of the places that items which tie
with the target share with it, drawn for each target once and for all. In expectation every metric is then that over all
orders of the tied items; the result depends neither on the order of the catalogue nor on anything but the scores, and
two models that tie alike draw alike. Ties are no rarity where models read texts: products of one description score the
same to the bit.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import nn
from torch.nn import functional as F

from ckd.data.atomic import replace_file
from ckd.data.batch import Batch, Batches
from ckd.data.described import parse_json
from ckd.data.domain import SPLITS, Domain, Instances, Split
from ckd.distill.parallel import ALONE, Parallel
from ckd.errors import CkdError, DataError, first_line
from ckd.nn.chunks import row_chunks
from ckd.nn.device import device_of
from ckd.nn.evaluating import evaluating
from ckd.nn.recommender import Recommender
from ckd.teachers.protocol import Teacher

#: 2: ties are drawn; before, a target was behind half of those that tie with it, rounded up.
FORMAT = 2
#: Key of the Parquet schema's metadata.
META = b"ckd.ranks"

#: What ranks belong to, kept in the metadata.
BELONGS = ("n_items", "domain", "fingerprint", "split", "model", "mask_history")
#: Numbers of each target, a column each.
NUMBERS = ("user", "target", "rank", "history_length", "popularity")

#: Items that a teacher encodes at once.
ITEM_BATCH = 1024
#: Columns of a product are multiples of this: libraries round what is left over by other instructions, so that of two
#: equal items one could score higher.
COLUMNS = 64

#: Positions of histories, padding counted, that are encoded in one forward pass, and items scored at a time.
POSITIONS, ITEM_BLOCK = 1 << 11, 1 << 13
#: The same on a GPU, which needs more work at once to be busy.
GPU_POSITIONS, GPU_ITEM_BLOCK = 1 << 16, 1 << 16

#: Batches that are taken up together: the longer each of two steps goes on, the more of its data caches still hold.
TOGETHER = 16

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Ranks:
    """One row for each target of a split, ordered by user and then time.

    Attributes:
        user: (n,) int64 users.
        raw_id: (n,) the users' raw ids.
        target: (n,) int64 target items.
        rank: (n,) int64 rank of the target, from 1 to `n_items`.
        history_length: (n,) int64 items in the history that the model saw.
        popularity: (n,) int64 how often the target occurs in the training part.
        n_items: number of items ranked, padding not counted.
        domain: name of the domain.
        fingerprint: fingerprint of the domain.
        split: the split whose targets are ranked.
        model: what was evaluated, such as a run's name or the hash of its weights.
        mask_history: items of the user's past were left out of the ranking, the target excepted.
    """

    user: Ints
    raw_id: pl.Series
    target: Ints
    rank: Ints
    history_length: Ints
    popularity: Ints
    n_items: int
    domain: str
    fingerprint: str
    split: Split
    model: str
    mask_history: bool

    def __len__(self) -> int:
        return len(self.user)


def rank_targets(
    recommender: Recommender | Teacher,
    domain: Domain,
    split: Split,
    *,
    batch_size: int = 512,
    device: torch.device | str | None = None,
    mask_history: bool = False,
    item_block: int | None = None,
    model: str = "",
    parallel: Parallel = ALONE,
) -> Ranks:
    """Rank the target of every instance of `split` among all items of the domain, in one pass.

    Scores of `batch_size` x `item_block` are held at a time, whatever the size of the catalogue. `TOGETHER` batches are
    encoded before any is scored; each instance is scored with those whose target is of the same block of items. The
    model is switched to evaluation mode meanwhile and left as it was.

    Args:
        recommender: a student or a teacher.
        batch_size: most instances that are scored together; they go by length, so that little is padded, and long
            histories are encoded in several passes.
        device: where to compute; a model elsewhere is moved there. None: where the model is.
        mask_history: leave out all items of the user's past except the target. The published tables do not.
        item_block: items scored at a time; none: 8,192, and 65,536 on a GPU.
        model: name of what is evaluated, kept with the ranks.
        parallel: this process among those that rank together, each some of the batches; all get all ranks.

    Raises:
        DataError: the split has no target with a history, or the model was made for another number of items.
        CkdError: the model gives NaN for a score.
    """
    if batch_size < 1 or (item_block is not None and item_block < 1):
        raise ValueError(f"batch_size {batch_size} and item_block {item_block} must be at least 1")
    instances = domain.instances(split)
    if not len(instances):
        raise DataError(f"{domain.name}: no {split} target with a history to rank.")
    if isinstance(recommender, nn.Module) and device is not None:
        recommender.to(device)
    device = torch.device(device) if device is not None else device_of(recommender)
    on_gpu = device.type != "cpu"
    item_block = item_block or (GPU_ITEM_BLOCK if on_gpu else ITEM_BLOCK)
    positions = GPU_POSITIONS if on_gpu else POSITIONS
    # Several processes share the work evenly in smaller portions, which only a catalogue of many blocks makes larger.
    together = batch_size * (TOGETHER if parallel.size == 1 else min(TOGETHER, -(-domain.n_items // item_block)))
    order = np.argsort(instances.lengths, kind="stable")
    build = Batches(domain, instances)
    found = torch.zeros(len(order), dtype=torch.int64, device=device)
    with evaluating(recommender):
        encode, score = scoring(recommender, domain, device)
        for start in range(parallel.rank * together, len(order), parallel.size * together):
            ids = order[start : start + together]
            parts = [encode(build(ids[here]).to(device)) for here in _passes(instances.lengths[ids], positions)]
            encoded = torch.cat(parts) if len(parts) > 1 else parts[0]
            seen = _seen(domain, instances, ids) if mask_history else None
            draws = tie_draws(instances, ids)
            sizes = batch_size, domain.n_items, item_block
            found[start : start + together] = _rank_batch(score, encoded, instances.targets[ids], draws, seen, *sizes)
    rank = np.empty(len(order), dtype=np.int64)
    rank[order] = parallel.sum(found).cpu().numpy()
    failed = np.flatnonzero(rank < 1)
    if len(failed):
        user = domain.user_ids[int(instances.users[failed[0]])]
        raise CkdError(
            f"{model or type(recommender).__name__}: NaN among the scores of {len(failed)} of {len(rank)} targets of "
            f"{domain.name}, the first of user {user!r}. It diverged: use an earlier checkpoint, or lower lr."
        )
    return Ranks(
        user=instances.users.astype(np.int64),
        raw_id=domain.user_ids[instances.users].rename("raw_id"),
        target=instances.targets.astype(np.int64),
        rank=rank,
        history_length=instances.lengths,
        popularity=domain.popularity[instances.targets].astype(np.int64),
        n_items=domain.n_items,
        domain=domain.name,
        fingerprint=domain.fingerprint,
        split=split,
        model=model,
        mask_history=mask_history,
    )


def _passes(lengths: Ints, positions: int) -> Iterator[slice]:
    """Slices of ascending lengths, each as many as `positions` hold when all are padded to the last, one at least."""
    start = 0
    while start < len(lengths):
        ahead = lengths[start : start + positions]
        padded = np.arange(1, len(ahead) + 1) * ahead
        stop = start + max(1, int(np.searchsorted(padded, positions, side="right")))
        yield slice(start, stop)
        start = stop


#: Scores (B, hi - lo) of the items lo..hi-1 for encoded instances.
Score = Callable[[torch.Tensor, int, int], torch.Tensor]


def scoring(
    recommender: Recommender | Teacher, domain: Domain, device: torch.device, *, even: bool = True
) -> tuple[Callable[[Batch], torch.Tensor], Score]:
    """How to encode a batch, and how to score a block of items for what came out.

    What can be made once for all batches is made here: the item table, or what a model that does not factor needs of
    items.

    Args:
        even: have equal items score the same to the bit, by as many columns more as that takes, 63 at most.

    Raises:
        DataError: the model was made for another number of items.
    """
    if isinstance(recommender, Recommender) and not recommender.factored:
        model = recommender
        ids = torch.split(torch.arange(1, domain.n_items + 1, device=device), ITEM_BATCH)
        side = torch.cat([model.item_side(part) for part in ids])

        def score_side(encoded: torch.Tensor, low: int, high: int) -> torch.Tensor:
            return model.score_side(encoded, side[low - 1 : high - 1]).float()

        return model.encode, score_side
    if isinstance(recommender, Recommender):
        encode = recommender.encode
        table = recommender.item_table().float()
        if len(table) != domain.n_items + 1:
            raise DataError(
                f"{type(recommender).__name__} knows {len(table) - 1} items, {domain.name} has {domain.n_items}: "
                "it was made for another domain."
            )
        table = table[1:]
        cosine = False
    else:
        encode = recommender.encode_instances
        ids = torch.split(torch.arange(1, domain.n_items + 1, device=device), ITEM_BATCH)
        table = torch.cat([recommender.encode_items(part).to(device).float() for part in ids])
        cosine = recommender.similarity == "cosine"
        table = F.normalize(table, dim=1) if cosine else table

    def encode_vectors(batch: Batch) -> torch.Tensor:
        vectors = encode(batch).to(device).float()
        return F.normalize(vectors, dim=1) if cosine else vectors

    def score_vectors(encoded: torch.Tensor, low: int, high: int) -> torch.Tensor:
        block = table[low - 1 : high - 1]
        over = len(block) % COLUMNS if even else 0
        if not over:
            return encoded @ block.T
        # What is left over apart, so that of the table no more is copied; both into one matrix, which has room for it.
        rest = len(block) - over
        scores = encoded.new_empty(len(encoded), rest + COLUMNS)
        torch.mm(encoded, block[:rest].T, out=scores[:, :rest])
        torch.mm(encoded, F.pad(block[rest:], (0, 0, 0, COLUMNS - over)).T, out=scores[:, rest:])
        return scores[:, : len(block)]

    return encode_vectors, score_vectors


def _rank_batch(
    score: Score,
    encoded: torch.Tensor,
    targets: npt.NDArray[np.int32],
    draws: Floats,
    seen: tuple[Ints, Ints] | None,
    most: int,
    n_items: int,
    item_block: int,
) -> torch.Tensor:
    """(B,) int64 ranks of the targets, 0 where a score is NaN.

    Instances whose targets share an item block go together, at most `most` of them, their own block first: the score of
    the target then comes out of the same product as its rivals', so equal items tie exactly, and each is computed once.
    """
    starts = range(1, n_items + 1, item_block)
    own = (targets - 1) // item_block
    ranks = torch.empty(len(targets), dtype=torch.int64, device=encoded.device)
    for block in np.unique(own):
        blocks = [starts[block], *(start for start in starts if start != starts[block])]
        bounds = [(low, min(low + item_block, n_items + 1)) for low in blocks]
        there = np.flatnonzero(own == block)
        for rows in np.split(there, range(most, len(there), most)):
            index = torch.from_numpy(rows).to(encoded.device)
            part = encoded if len(rows) == len(targets) else encoded[index]
            ranks[index] = _count(score, part, targets[rows], draws[rows], _of_rows(seen, rows), bounds)
    return ranks


def _count(
    score: Score,
    encoded: torch.Tensor,
    targets: npt.NDArray[np.int32],
    draws: Floats,
    seen: tuple[Ints, Ints] | None,
    bounds: list[tuple[int, int]],
) -> torch.Tensor:
    """(B,) int64 ranks by comparing the target's score, found in the first of the blocks, with all others."""
    device = encoded.device
    columns = torch.from_numpy(targets.astype(np.int64) - bounds[0][0]).to(device)[:, None]
    higher = torch.zeros(len(targets), dtype=torch.int64, device=device)
    tied = torch.full_like(higher, -1)  # the target ties with itself
    valid = torch.ones_like(higher, dtype=torch.bool)
    target = torch.empty(0, device=device)
    for low, high in bounds:
        scores = score(encoded, low, high)
        if low == bounds[0][0]:
            target = scores.gather(1, columns)
        for rows in row_chunks(scores):
            part, own = scores[rows], target[rows]
            # Comparing into floats is several times faster to sum than booleans; counts below 2**24 are exact.
            flags = torch.empty_like(part)
            higher[rows] += torch.gt(part, own, out=flags).sum(1).long()
            tied[rows] += torch.eq(part, own, out=flags).sum(1).long()
            valid[rows] &= ~part.amax(1).isnan()
        if seen is not None:
            inside = (seen[1] >= low) & (seen[1] < high)
            users, items = (torch.from_numpy(part[inside]).to(device) for part in seen)
            masked, limit = scores[users, items - low], target[users, 0]
            higher.index_add_(0, users, (masked > limit).long(), alpha=-1)
            tied.index_add_(0, users, (masked == limit).long(), alpha=-1)
    behind = (torch.from_numpy(draws).to(device) * (tied + 1)).long()
    return torch.where(valid, 1 + higher + behind, 0)


def tie_draws(instances: Instances, ids: Ints) -> Floats:
    """(B,) numbers in [0, 1), uniform and fixed: the share of its tied rivals that each target is placed behind.

    SplitMix64 (Steele, Lea and Flood 2014) of the target's position among the domain's interactions.
    """
    bits = (instances.stops[ids].astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _seen(domain: Domain, instances: Instances, ids: Ints) -> tuple[Ints, Ints]:
    """(m,) rows of the batch and (m,) items: the distinct items of each user's whole past, the target excepted."""
    first = domain.indptr[instances.users[ids]]
    counts = instances.stops[ids] - first
    rows = np.repeat(np.arange(len(ids)), counts)
    positions = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts) + np.repeat(first, counts)
    items = domain.items[positions].astype(np.int64)
    rivals = items != instances.targets[ids][rows]
    pairs = np.unique(rows[rivals] * (domain.n_items + 1) + items[rivals])
    return pairs // (domain.n_items + 1), pairs % (domain.n_items + 1)


def _of_rows(seen: tuple[Ints, Ints] | None, rows: Ints) -> tuple[Ints, Ints] | None:
    """The pairs of the given rows (ascending), which are numbered anew."""
    if seen is None:
        return None
    at = np.minimum(np.searchsorted(rows, seen[0]), len(rows) - 1)
    kept = rows[at] == seen[0]
    return at[kept], seen[1][kept]


def save_ranks(ranks: Ranks, path: Path) -> None:
    """Write the ranks as Parquet with checksums: one row a target, what they belong to in the schema's metadata."""
    table = pa.table(
        {
            "user": pa.array(ranks.user, pa.int32()),
            "raw_id": pa.array(ranks.raw_id.to_list(), pa.string()),
            "target": pa.array(ranks.target, pa.int32()),
            "rank": pa.array(ranks.rank, pa.int32()),
            "history_length": pa.array(ranks.history_length, pa.int32()),
            "popularity": pa.array(ranks.popularity, pa.int64()),
        }
    )
    meta = {"format": FORMAT, **{name: getattr(ranks, name) for name in BELONGS}}
    table = table.replace_schema_metadata({META: json.dumps(meta, sort_keys=True)})
    with replace_file(path) as partial:
        pq.write_table(table, partial, compression="zstd", write_page_checksum=True)


def load_ranks(path: Path, domain: Domain | None = None) -> Ranks:
    """Read ranks that `save_ranks` wrote.

    Args:
        domain: refuse ranks of anything else.

    Raises:
        DataError: no such file, damaged, not ranks, another format, or ranks of another domain.
    """
    try:
        table = pq.read_table(path, page_checksum_verification=True)
    except FileNotFoundError:
        raise DataError(f"{path}: no ranks here. Run `ckd evaluate` first.") from None
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: damaged ({first_line(error)}). Delete it and evaluate again.") from None
    stored = (table.schema.metadata or {}).get(META)
    if stored is None:
        raise DataError(f"{path}: Parquet, but holds no ranks. Name a file that `ckd evaluate` wrote.")
    meta = parse_json(stored, path, "Evaluate again.")
    if meta.get("format") != FORMAT or meta["split"] not in SPLITS:
        raise DataError(f"{path}: ranks of another format than {FORMAT}, the one read here. Evaluate again.")
    if domain is not None and meta["fingerprint"] != domain.fingerprint:
        raise DataError(
            f"{path}: ranks of {meta['domain']} with fingerprint {meta['fingerprint']}, but {domain.name} has "
            f"{domain.fingerprint}. Evaluate again on this domain."
        )
    for name in ("raw_id", *NUMBERS):
        if name not in table.column_names:
            raise DataError(f"{path}: has no column {name!r}. Evaluate again.")
    numbers = {name: table[name].to_numpy().astype(np.int64) for name in NUMBERS}
    raw_id = pl.Series("raw_id", table["raw_id"].to_pylist(), dtype=pl.String)
    return Ranks(raw_id=raw_id, **numbers, **{name: meta[name] for name in BELONGS})
