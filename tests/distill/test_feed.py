"""Batches prepared ahead: in order, with errors at their place, and no thread left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.distill.feed import Ahead


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "ckd-ahead"]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 40), depth=st.integers(1, 6))
def test_results_come_in_order(count: int, depth: int) -> None:
    assert list(Ahead(range(count), lambda n: n * n, depth)) == [n * n for n in range(count)]
    assert threads() == []


def test_work_is_done_in_the_background_and_not_far_ahead() -> None:
    started: list[int] = []
    places = set()

    def work(n: int) -> int:
        started.append(n)
        places.add(threading.current_thread().name)
        return n

    for n in Ahead(range(50), work, depth=3):
        # At most: this one, three that wait, and one that is being put.
        assert len(started) <= n + 5
    assert places == {"ckd-ahead"}


@pytest.mark.parametrize("failing", [0, 1, 7])
def test_an_error_is_raised_at_its_place(failing: int) -> None:
    def work(n: int) -> int:
        if n == failing:
            raise KeyError(f"bad {n}")
        return n

    feed = iter(Ahead(range(10), work, depth=4))
    assert [next(feed) for _ in range(failing)] == list(range(failing))
    with pytest.raises(KeyError, match=f"bad {failing}"):
        next(feed)
    assert threads() == []


def test_an_error_of_the_inputs_is_raised_too() -> None:
    def inputs() -> Iterator[int]:
        yield 1
        raise OSError("disk gone")

    feed = iter(Ahead(inputs(), lambda n: n))
    assert next(feed) == 1
    with pytest.raises(OSError, match="disk gone"):
        next(feed)


def test_leaving_early_stops_the_thread_and_closes_the_inputs() -> None:
    closed = threading.Event()

    def inputs() -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            closed.set()

    for n in Ahead(inputs(), lambda n: n, depth=2):
        if n == 3:
            break
    assert threads() == []
    assert closed.wait(5)


def test_an_error_in_the_loop_stops_the_thread() -> None:
    closed = threading.Event()

    def inputs() -> Iterator[int]:
        try:
            yield from range(1_000_000)
        finally:
            closed.set()

    feed = Ahead(inputs(), lambda n: n)

    def loop() -> list[float]:
        return [1 / (n - 2) for n in feed]

    with pytest.raises(ZeroDivisionError):
        loop()
    # Though the error, and `feed`, are still held here.
    assert threads() == []
    assert closed.is_set()


def test_waiting_is_measured_once() -> None:
    gate = threading.Event()
    feed = Ahead(range(2), lambda n: gate.wait(5) and n)
    threading.Timer(0.2, gate.set).start()
    assert len(list(feed)) == 2
    assert feed.take_waited() > 0.1
    assert feed.take_waited() == 0
