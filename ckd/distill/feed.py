"""Batches ready for a training step, prepared ahead in a background thread."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Generic, TypeVar

A = TypeVar("A")
B = TypeVar("B")


class Ahead(Generic[A, B]):
    """Maps `work` over `inputs` in a background thread, at most `depth` results ahead of the consumer.

    An exception in the thread is raised in the consumer, at its place in the order. Leaving the loop early stops the
    thread.
    """

    def __init__(self, inputs: Iterable[A], work: Callable[[A], B], depth: int = 4) -> None:
        self.inputs = inputs
        self.work = work
        self.depth = depth
        self._waited = 0.0

    def take_waited(self) -> float:
        """Seconds the consumer has waited for results since this was last asked."""
        waited, self._waited = self._waited, 0.0
        return waited

    def __iter__(self) -> Iterator[B]:
        done = object()
        ready: queue.Queue[object] = queue.Queue(self.depth)
        stop = threading.Event()

        def put(value: object) -> None:
            while not stop.is_set():
                try:
                    ready.put(value, timeout=0.1)
                    return
                except queue.Full:
                    continue

        def run() -> None:
            inputs = iter(self.inputs)
            try:
                for value in inputs:
                    if stop.is_set():
                        return
                    put(self.work(value))
                put(done)
            except BaseException as error:
                put(_Failure(error))
            finally:
                # Whatever the inputs hold, such as threads of their own, is let go with this thread.
                if isinstance(inputs, Generator):
                    inputs.close()

        thread = threading.Thread(target=run, name="ckd-ahead", daemon=True)
        thread.start()
        try:
            while True:
                before = time.perf_counter()
                value = ready.get()
                self._waited += time.perf_counter() - before
                if value is done:
                    return
                if isinstance(value, _Failure):
                    raise value.error
                yield value  # type: ignore[misc]
        finally:
            stop.set()
            thread.join()


class _Failure:
    def __init__(self, error: BaseException) -> None:
        self.error = error
