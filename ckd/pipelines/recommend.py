"""Recommendations of a student for given histories: JSON lines in, JSON lines out, in memory that does not grow."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ckd.data.batch import Batch
from ckd.data.domain import Domain, columns
from ckd.errors import CkdError, ConfigError, DataError, did_you_mean
from ckd.evaluation.ranks import Score, scoring
from ckd.nn.device import pick_device
from ckd.nn.recommender import Recommender
from ckd.pipelines.train_student import load_student
from ckd.pipelines.workspace import domain_folder

#: Keys of a request.
KEYS = ("history", "user", "id")

Ids = Literal["raw", "number"]


def recommend(
    work: Path,
    domain_name: str,
    run: str,
    requests: Iterable[str],
    k: int = 10,
    *,
    exclude_history: bool = False,
    ids: Ids = "raw",
    on_unknown: Literal["skip", "refuse"] = "skip",
    on_error: Literal["fail", "skip"] = "fail",
    batch_size: int = 256,
    item_block: int = 65536,
    device: str = "auto",
) -> Iterator[str]:
    """The best `k` items for each request, in the order of the requests.

    A request is one JSON object a line, `{"history": [item, ...], "user": id, "id": anything}`, the history oldest
    first. Without a history it is that of the user in the domain, and where the student ranks by user, also without a
    known item in it. The answer is
    `{"line": n, "id": ..., "items": [...], "scores": [...], "unknown": m}`: items from the best down, their scores, and
    how many items of the history the domain does not know. Answers come once `batch_size` requests are read.

    Args:
        requests: lines; empty ones are passed over.
        k: most items in an answer; there are fewer where the catalogue has no more.
        exclude_history: leave out the items of the history.
        ids: items are named by raw id, or by their number in the domain from 1, in requests and in answers.
        on_unknown: pass over items that the domain does not know and count them, or refuse the request.
        on_error: a request that cannot be answered: raise, after the answers before it; or answer
            `{"line": n, "id": ..., "error": "..."}` and go on.
        batch_size: requests in one forward pass.
        item_block: items scored at a time.
        device: where to compute: auto, cpu or cuda.

    Raises:
        ConfigError: no such device, or `k` is not positive.
        DataError: no such run; while iterating, a request that cannot be answered, with the number of its line.
        CkdError: while iterating, the student gives NaN for a score.
    """
    if k < 1:
        raise ConfigError(f"k={k}: ask for at least one item.")
    if batch_size < 1 or item_block < 1:
        raise ValueError(f"batch_size {batch_size} and item_block {item_block} must be at least 1")
    domain = Domain.load(domain_folder(work, domain_name))
    model, _ = load_student(work, domain, run)
    reader = _Reader(domain, run, model.reads_users, ids, on_unknown)
    answerer = _Answerer(domain, run, model, pick_device(device, "--device"), k, exclude_history, ids, item_block)
    return _answers(requests, reader, answerer, on_error, batch_size)


@dataclass(frozen=True)
class _Request:
    """A request in the domain's numbers.

    Attributes:
        line: number of its line, from 1.
        id: what the answer carries back; None where the request has no `id`.
        history: items the domain knows, oldest first, at least one.
        user: the user's number; 0 for a student that does not look at it.
        unknown: how many items were passed over.
    """

    line: int
    id: Any
    history: list[int]
    user: int
    unknown: int


def _answers(
    requests: Iterable[str],
    reader: _Reader,
    answerer: _Answerer,
    on_error: Literal["fail", "skip"],
    batch_size: int,
) -> Iterator[str]:
    pending: list[_Request | str] = []
    for number, line in enumerate(requests, start=1):
        if not line.strip():
            continue
        fields: dict[str, Any] = {}
        try:
            fields = _fields(line)
            pending.append(reader.read(number, fields))
        except DataError as error:
            if on_error == "fail":
                yield from answerer(pending)
                raise DataError(f"line {number}: {error}") from None
            pending.append(_line({"line": number, "id": fields.get("id"), "error": str(error)}))
        if len(pending) == batch_size:
            yield from answerer(pending)
            pending = []
    yield from answerer(pending)


def _refuse_constant(name: str) -> None:
    """NaN and infinities, which Python writes and JSON does not know: an answer with one could be read by nobody."""
    raise ValueError(f"{name} is no JSON")


def _fields(line: str) -> dict[str, Any]:
    """The keys of a request, none of them unknown."""
    try:
        fields = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise DataError(f'not valid JSON ({error}). Write one {{"history": [...]}} a line.') from None
    if not isinstance(fields, dict):
        raise DataError(f'a {type(fields).__name__}, not an object. Write one {{"history": [...]}} a line.')
    for key in fields:
        if key not in KEYS:
            raise DataError(f"unknown key {key!r}.{did_you_mean(key, KEYS)}")
    return fields


class _Reader:
    """Puts requests into the domain's numbers."""

    def __init__(
        self, domain: Domain, run: str, reads_users: bool, ids: Ids, on_unknown: Literal["skip", "refuse"]
    ) -> None:
        self.domain, self.run, self.reads_users, self.ids, self.on_unknown = domain, run, reads_users, ids, on_unknown
        self.items = {raw: number for number, raw in enumerate(domain.item_table[columns.RAW].to_list(), start=1)}
        self.users = {raw: number for number, raw in enumerate(domain.user_ids.to_list())}

    def read(self, line: int, fields: dict[str, Any]) -> _Request:
        """Raises DataError, without the line's number, where there is nothing to rank by."""
        user = self._user(fields)
        given = fields.get("history")
        history, unknown = ([], 0) if given is None else self._history(given)
        if given is None or (self.reads_users and not history):
            history = self._own_history(user, fields.get("user"))
        if not history:
            what = f"none of its {unknown} items is in {self.domain.name}" if unknown else "it is empty"
            raise DataError(f"nothing to rank by in the history: {what}. Give at least one item that is known.")
        return _Request(line, fields.get("id"), history, user or 0, unknown)

    def _user(self, fields: dict[str, Any]) -> int | None:
        """The user's number, None where the request does without."""
        raw = fields.get("user")
        if raw is None and self.reads_users:
            raise DataError(f'no user, and {self.run} scores for the users it was trained on alone. Give "user".')
        if raw is None:
            return None
        if not _is_id(raw):
            raise DataError(f"user {raw!r} is no id: a string or a whole number.")
        number = self.users.get(str(raw))
        if number is None and self.reads_users:
            raise DataError(
                f"user {raw!r} is not in {self.domain.name}, and {self.run} scores for the users it was trained on "
                "alone. Use a student that reads histories only, or train again with this user."
            )
        return number

    def _own_history(self, user: int | None, raw: Any) -> list[int]:
        if user is None:
            if raw is None:
                raise DataError(f'neither a history nor a user of {self.domain.name}. Give "history": [...].')
            raise DataError(
                f'user {raw!r} is not in {self.domain.name}, and there is no history. Give "history": [...].'
            )
        start, stop = self.domain.indptr[user : user + 2]
        return [int(item) for item in self.domain.items[start:stop]]

    def _history(self, given: Any) -> tuple[list[int], int]:
        if not isinstance(given, list):
            raise DataError(f"the history is a {type(given).__name__}, not a list of items.")
        numbers = [self._item(raw) for raw in given]
        known = [number for number in numbers if number is not None]
        unknown = len(numbers) - len(known)
        if unknown and self.on_unknown == "refuse":
            raw = given[numbers.index(None)]
            raise DataError(f"item {raw!r} is not in {self.domain.name}. Leave it out, or skip unknown items.")
        return known, unknown

    def _item(self, raw: Any) -> int | None:
        if self.ids == "number":
            if not isinstance(raw, int) or isinstance(raw, bool):
                raise DataError(f"item {raw!r} is no item number. Use whole numbers, or name items by raw id.")
            return raw if 1 <= raw <= self.domain.n_items else None
        if not _is_id(raw):
            raise DataError(f"item {raw!r} is no id: a string or a whole number.")
        return self.items.get(str(raw))


def _is_id(raw: Any) -> bool:
    return isinstance(raw, str | int) and not isinstance(raw, bool)


class _Answerer:
    """Ranks the catalogue for a batch of requests."""

    def __init__(
        self,
        domain: Domain,
        run: str,
        model: Recommender,
        device: torch.device,
        k: int,
        exclude_history: bool,
        ids: Ids,
        item_block: int,
    ) -> None:
        self.domain, self.run, self.device = domain, run, device
        self.k, self.exclude_history, self.item_block = k, exclude_history, item_block
        self.names: Sequence[str] | None = domain.item_table[columns.RAW].to_list() if ids == "raw" else None
        with torch.no_grad():
            self.encode, self.score = scoring(model.to(device), domain, device)

    def __call__(self, pending: Sequence[_Request | str]) -> Iterator[str]:
        """The answers, with those that are lines already in their places."""
        asked = [each for each in pending if isinstance(each, _Request)]
        answers = iter(self._rank(asked) if asked else [])
        for each in pending:
            yield each if isinstance(each, str) else next(answers)

    @torch.no_grad()
    def _rank(self, requests: list[_Request]) -> list[str]:
        batch = batch_of([request.history for request in requests], self.domain.history_cap, [r.user for r in requests])
        seen = [request.history if self.exclude_history else [] for request in requests]
        encoded = self.encode(batch.to(self.device))
        values, items = top_k(self.score, encoded, self.domain.n_items, self.k, seen, self.item_block)
        if values.isnan().any():
            number = requests[int(values.isnan().any(1).nonzero()[0, 0])].line
            raise CkdError(f"line {number}: {self.run} gives NaN for a score. It diverged: train it with a lower lr.")
        return [self._answer(*row) for row in zip(requests, values.tolist(), items.tolist(), strict=True)]

    def _answer(self, request: _Request, values: list[float], items: list[int]) -> str:
        kept = [(value, item) for value, item in zip(values, items, strict=True) if value != -torch.inf]
        return _line(
            {
                "line": request.line,
                "id": request.id,
                "items": [item if self.names is None else self.names[item - 1] for _, item in kept],
                # Seven digits are what a float32 holds.
                "scores": [float(f"{value:.7g}") for value, _ in kept],
                "unknown": request.unknown,
            }
        )


def _line(answer: dict[str, Any]) -> str:
    """One line of JSON, without an `id` that was not given."""
    return json.dumps({key: value for key, value in answer.items() if key != "id" or value is not None})


def batch_of(histories: Sequence[Sequence[int]], cap: int, users: Sequence[int] | None = None) -> Batch:
    """Instances of these histories, of each the last `cap` items, oldest first; their targets are not set."""
    kept = [list(history[-cap:]) for history in histories]
    lengths = torch.tensor([len(history) for history in kept])
    padded = torch.tensor([history + [0] * (int(lengths.max()) - len(history)) for history in kept])
    numbers = None if users is None else torch.tensor(users)
    return Batch.from_histories(padded, lengths, torch.zeros_like(lengths), numbers)


def top_k(
    score: Score, encoded: torch.Tensor, n_items: int, k: int, seen: Sequence[Sequence[int]], item_block: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, K) the best scores from the highest down, and (B, K) their items; K is `k`, or all items where fewer.

    Scores of B x `item_block` are held at a time. A NaN counts as the highest of all, and so is not overlooked.

    Args:
        score: scores a block of items for encoded instances.
        encoded: (B, d) what the model makes of the histories.
        n_items: number of items; padding is never among those ranked.
        seen: of each row the items to leave out; where too few others are left, they come last, as minus infinity.
    """
    rows = torch.tensor([row for row, items in enumerate(seen) for _ in items], dtype=torch.int64)
    left_out = torch.tensor([item for items in seen for item in items], dtype=torch.int64)
    rows, left_out = rows.to(encoded.device), left_out.to(encoded.device)
    best = encoded.new_empty(len(encoded), 0, dtype=torch.float32)
    items = torch.empty(len(encoded), 0, dtype=torch.int64, device=encoded.device)
    for low in range(1, n_items + 1, item_block):
        high = min(low + item_block, n_items + 1)
        scores = score(encoded, low, high)
        inside = (left_out >= low) & (left_out < high)
        scores[rows[inside], left_out[inside] - low] = -torch.inf
        values, at = scores.topk(min(k, high - low), dim=1)
        best, items = torch.cat([best, values], dim=1), torch.cat([items, at + low], dim=1)
        best, kept = best.topk(min(k, best.shape[1]), dim=1)
        items = items.gather(1, kept)
    return best, items
