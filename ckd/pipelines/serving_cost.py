"""What a request costs the base student, the distilled one and their teachers (the paper's Table 5)."""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ckd.data.batch import Batch, Batches
from ckd.data.domain import Domain
from ckd.errors import ConfigError, DataError
from ckd.evaluation.ranks import scoring
from ckd.nn.device import pick_device
from ckd.nn.recommender import Recommender
from ckd.pipelines.evaluate import run_folder
from ckd.pipelines.finetune_teacher import RESULT, load_teacher
from ckd.pipelines.progress import Progress, silent
from ckd.pipelines.recommend import top_k
from ckd.pipelines.train_student import load_student
from ckd.pipelines.workspace import domain_folder, versions
from ckd.teachers.protocol import Teacher

#: Items that a request asks for.
K = 10

#: Items scored at a time.
ITEM_BLOCK = 65536

#: Most users in a request; their scores of a block of items would be 260 GB.
MOST_USERS = 1_000_000

#: Requests before the first that counts.
WARM_UP = 2


@dataclass(frozen=True)
class Latency:
    """Milliseconds of a request: the median, and the quartiles as what it spreads over."""

    median_ms: float
    low_ms: float
    high_ms: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Latency:
        low, median, high = 1e3 * np.percentile(seconds, (25, 50, 75))
        return cls(float(median), float(low), float(high))


@dataclass(frozen=True)
class ServingCost:
    """What one run costs.

    Attributes:
        run: its name.
        kind: student or teacher.
        model: the registered name.
        parameters: number of weights; 0 of a teacher that is vectors alone.
        flops: floating-point operations in matrix products for a request of one history.
        resident_bytes: what lies ready between requests: weights, buffers, and the items' vectors where these are
            computed.
        peak_bytes: by batch size, the most held at a time by a request, what lies ready included.
        latency: by batch size, the time of a request.
    """

    run: str
    kind: Literal["student", "teacher"]
    model: str
    parameters: int
    flops: int
    resident_bytes: int
    peak_bytes: dict[int, int]
    latency: dict[int, Latency]


@dataclass(frozen=True)
class ServingTable:
    """The runs side by side; the first is what the others are compared with.

    Attributes:
        domain: name of the domain.
        n_items: items ranked by a request.
        device, threads: where it was measured.
        repeats: requests that a median is over.
        versions: of what it was measured with.
        rows: one a run.
    """

    domain: str
    n_items: int
    device: str
    threads: int
    repeats: int
    versions: dict[str, str]
    rows: tuple[ServingCost, ...]

    def memory_ratio(self, row: ServingCost, batch_size: int) -> float:
        """The row's peak memory over the first row's (Table 5, "Memory")."""
        return row.peak_bytes[batch_size] / self.rows[0].peak_bytes[batch_size]

    def time_ratio(self, row: ServingCost, batch_size: int) -> float:
        """The row's latency over the first row's (Table 5, "Time Cost")."""
        return row.latency[batch_size].median_ms / self.rows[0].latency[batch_size].median_ms

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ratios included."""
        sizes = self.rows[0].latency
        ratios = [
            {
                "memory_ratio": {size: self.memory_ratio(row, size) for size in sizes},
                "time_ratio": {size: self.time_ratio(row, size) for size in sizes},
                "user_ms": {size: row.latency[size].median_ms / size for size in sizes},
            }
            for row in self.rows
        ]
        rows = [{**asdict(row), **ratio} for row, ratio in zip(self.rows, ratios, strict=True)]
        return {**asdict(self), "rows": rows}


def serving_cost(
    work: Path,
    domain_name: str,
    runs: Sequence[str],
    batch_sizes: Sequence[int] = (1, 256),
    repeats: int = 50,
    device: str = "auto",
    progress: Progress = silent,
    key: str = "train.device",
) -> ServingTable:
    """Measure requests of the runs.

    A request encodes histories, scores all items for them and picks the best ten. The histories are the domain's test
    histories, spread evenly over their lengths (of one: the median length), the same for every run. What depends on
    items alone is made beforehand, as when serving: a teacher encodes its items once.

    Time is that of the wall from the histories as tensors on the device to the best items there, the device waited for
    at both ends, with torch's present number of threads. The runs take turns, one request each, so that a busy moment
    hits all of them; the first two rounds of each size do not count. Medians and quartiles are over the rounds.

    Memory counts the bytes of tensors, not what the process itself needs. Operations are those of matrix products, two
    for each multiplication with its addition; lookups, sums and functions of single numbers are left out.

    Args:
        runs: students' and teachers'; the others are compared with the first.
        batch_sizes: histories in a request.
        repeats: requests of each run and size, after a warm-up.
        key: what the user has named the device by, for the message.

    Raises:
        ConfigError: no runs, a size or number that is not positive, or a size above `MOST_USERS`.
        DataError: no such run, or the domain has no test histories.
    """
    if not runs or not batch_sizes or repeats < 1:
        raise ConfigError(f"{len(runs)} runs, {len(batch_sizes)} sizes, {repeats} repeats: give at least one of each.")
    for size in batch_sizes:
        if not 1 <= size <= MOST_USERS:
            raise ConfigError(f"a request of {size:,} users: give from 1 to {MOST_USERS:,}.")
    domain = Domain.load(domain_folder(work, domain_name))
    place = pick_device(device, key)
    batches = {size: _batch(domain, size).to(place) for size in batch_sizes}
    one = _batch(domain, 1).to(place)
    served = [_Served(work, domain, run, one, place) for run in runs]
    total = len(served) * len(batches) * (repeats + WARM_UP)
    times: dict[tuple[int, int], list[float]] = {}
    done = 0
    for size, batch in batches.items():
        for repeat in range(-WARM_UP, repeats):
            for number, model in enumerate(served):
                seconds = model.timed(batch)
                if repeat >= 0:
                    times.setdefault((number, size), []).append(seconds)
                done += 1
                progress(done, total, "request", model.run)
    rows = []
    for number, model in enumerate(served):
        latency = {size: Latency.of(times[number, size]) for size in batches}
        rows.append(model.cost(one, batches, latency))
    return ServingTable(
        domain=domain.name,
        n_items=domain.n_items,
        device=str(place),
        threads=torch.get_num_threads(),
        repeats=repeats,
        versions=versions(),
        rows=tuple(rows),
    )


def _batch(domain: Domain, size: int) -> Batch:
    """Test histories at evenly spread ranks of length; there may be fewer than `size`, then they repeat."""
    instances = domain.instances("test")
    if not len(instances):
        raise DataError(f"{domain.name}: no test target with a history to make requests of.")
    order = np.argsort(instances.lengths, kind="stable")
    middles = (np.arange(size) + 0.5) / size * len(order)
    return Batches(domain, instances, share_prefixes=False)(order[middles.astype(np.int64)])


class _Served:
    """A model ready for requests."""

    def __init__(self, work: Path, domain: Domain, run: str, one: Batch, device: torch.device) -> None:
        self.run, self.domain, self.device = run, domain, device
        self.kind: Literal["student", "teacher"]
        model: Recommender | Teacher
        if (run_folder(work, domain.name, run) / RESULT).exists():
            model, _, result = load_teacher(work, domain, run)
            self.kind, self.name = "teacher", result["identity"]["teacher"]
        else:
            model, described = load_student(work, domain, run)
            self.kind, self.name = "student", described["identity"]["student"]
        self.parameters, self.weights = 0, 0
        if isinstance(model, nn.Module):
            model.to(device).eval()
            self.parameters = sum(weight.numel() for weight in model.parameters())
            self.weights = _distinct_bytes([*model.parameters(), *model.buffers()])
        self.memory = _LiveBytes()
        with torch.no_grad(), _counted(), self.memory:
            self.encode, self.score = scoring(model, domain, device, even=False)
            self.request(one)  # what a model keeps from its first request on is held from here on

    @torch.no_grad()
    def request(self, batch: Batch) -> torch.Tensor:
        """(B, K) the best items."""
        return top_k(self.score, self.encode(batch), self.domain.n_items, K, [[]] * len(batch), ITEM_BLOCK)[1]

    def timed(self, batch: Batch) -> float:
        """Seconds of a request."""
        self._wait()
        began = time.perf_counter()
        self.request(batch)
        self._wait()
        return time.perf_counter() - began

    def cost(self, one: Batch, batches: Mapping[int, Batch], latency: dict[int, Latency]) -> ServingCost:
        """Everything, given the latencies."""
        ready = self.weights + self.memory.now
        with _counted():
            peaks = {size: ready + self.memory.peak_of(partial(self.request, batch)) for size, batch in batches.items()}
        # A fused attention kernel's operations are not counted on every device; the plain products are.
        with _counted(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.request(one)
        return ServingCost(
            run=self.run,
            kind=self.kind,
            model=self.name,
            parameters=self.parameters,
            flops=int(counter.get_total_flops()),
            resident_bytes=ready,
            peak_bytes=peaks,
            latency=latency,
        )

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@contextmanager
def _counted() -> Iterator[None]:
    """While bytes and operations are counted: oneDNN's own tensors and products, and cuDNN's recurrences, would not
    be."""
    libraries: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [library.enabled for library in libraries]
    for library in libraries:
        library.enabled = False
    try:
        yield
    finally:
        for library, enabled in zip(libraries, before, strict=True):
            library.enabled = enabled


class _LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that operations have made and that are still held; inputs are not counted.

    Attributes:
        now: bytes held.
        peak: the most so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._known: set[int] = set()

    def peak_of(self, work: Callable[[], object]) -> int:
        """The most held at a time while `work` runs, over what was held before."""
        before = self.peak = self.now
        with self:
            work()
        return self.peak - before

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {_storage(each)._cdata for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                storage = _storage(each)
                if storage._cdata not in before | self._known:
                    self._hold(storage)
        return result

    def _hold(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._release, key, size)

    def _release(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def _distinct_bytes(tensors: Sequence[torch.Tensor]) -> int:
    """Bytes of the storages behind the tensors, shared ones counted once."""
    return sum({_storage(tensor)._cdata: _storage(tensor).nbytes() for tensor in tensors}.values())
