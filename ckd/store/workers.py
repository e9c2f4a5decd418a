"""Several processes on one store, started from one."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar, cast

from ckd.errors import CkdError, StoreError

T = TypeVar("T")

#: Seconds that the other workers may take to see that the work is finished.
LAST_STEPS = 10.0


def run_workers(count: int, work: Callable[..., T], *args: Any) -> T:
    """Run `work(*args)` in `count` fresh processes at once and return what the first to finish returned.

    The workers share a store through claims: one that dies leaves its shard to the others, and only when none is left
    has the work failed.

    Args:
        count: at least 1; 1 runs here.
        work: a function of a module, that a fresh process can import, returning something that can be pickled.
        args: for `work`, each of which can be pickled.

    Raises:
        CkdError: a worker raised it, and it would be the same for the others.
        StoreError: every worker died.
    """
    if count < 1:
        raise ValueError(f"{count} workers")
    if count == 1:
        return work(*args)
    context = multiprocessing.get_context("spawn")
    processes, results = [], []
    for number in range(count):
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run, args=(theirs, work, args), name=f"ckd-worker-{number}")
        process.start()
        theirs.close()
        processes.append(process)
        results.append(ours)
    try:
        result = _gather(results)
        # What they share is finished: the others see that and end by themselves.
        for process in processes:
            process.join(LAST_STEPS)
        return result
    finally:
        for process in processes:
            process.terminate()
            process.join()
        for connection in results:
            connection.close()


def _run(results: Connection, work: Callable[..., T], args: tuple[Any, ...]) -> None:
    try:
        outcome: tuple[str, Any] = ("done", work(*args))
    except CkdError as error:
        outcome = ("refused", error)
    results.send(outcome)
    results.close()


def _gather(results: Sequence[Any]) -> Any:
    """The first result; the first refusal is raised; a closed pipe is a death."""
    left: list[Any] = list(results)
    while left:
        for connection in cast(list[Any], wait(left)):
            try:
                outcome, value = connection.recv()
            except EOFError:
                left.remove(connection)
                continue
            if outcome == "refused":
                raise value
            return value
    raise StoreError(f"all {len(results)} workers died. Run again: finished shards are kept.")
