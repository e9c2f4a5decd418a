"""The folder of a run: one process at a time, and a restart that discards nothing before there is something new."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ckd.errors import DataError

#: Files without which a run's folder holds nothing that one could use.
WEIGHTS = "*.safetensors"
#: Holds what is on its way aside or back.
MOVING = ".replacing"


@contextmanager
def only_process(folder: Path, restart: bool = False) -> Iterator[None]:
    """Make the folder, and keep other processes that ask for the same out of it; the lock ends with the process.

    Where the operating system or the file system knows no such lock, nobody is kept out. A folder in which nothing was
    made is gone afterwards. On a restart, what lies there makes room for what the body makes, and comes back where that
    ends before there are weights: who is refused, or interrupts, loses nothing. After a kill it is still aside, for
    whoever goes on or restarts.

    Raises:
        DataError: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        try:
            with _replacing(folder, restart):
                yield
        finally:
            with suppress(OSError):
                folder.rmdir()  # where nothing came of it: a folder that holds something stays


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if sys.platform == "win32":
        yield
        return
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"{folder}: another process is at work here. Wait for it, or give another --run.") from None
        except OSError:
            pass  # a file system without such locks
        yield
    finally:
        os.close(handle)


@contextmanager
def _replacing(folder: Path, restart: bool) -> Iterator[None]:
    aside = folder / ".replaced"
    _take_back(folder)
    if restart:
        if any(folder.glob(WEIGHTS)):
            _remove([aside])
        if aside.exists():
            _remove(entry for entry in folder.iterdir() if entry != aside)
        else:
            _put_aside(folder, aside)
    try:
        yield
    except BaseException:
        if any(folder.glob(WEIGHTS)):
            _remove([aside])
        elif aside.exists():
            _remove(entry for entry in folder.iterdir() if entry != aside)
            aside.rename(folder / MOVING)
            _take_back(folder)
        raise
    _remove([aside])


def _put_aside(folder: Path, aside: Path) -> None:
    """Move all that lies in the folder; where `aside` is there, it is whole, whoever is killed here."""
    moving = folder / MOVING
    moving.mkdir()
    _move(folder, moving)
    moving.rename(aside)


def _take_back(folder: Path) -> None:
    """Undo a move that was cut off, in whichever direction: nothing new is made before it is over."""
    moving = folder / MOVING
    if moving.exists():
        _move(moving, folder)
        moving.rmdir()


def _move(source: Path, target: Path) -> None:
    for entry in [entry for entry in source.iterdir() if entry != target]:
        entry.rename(target / entry.name)


def _remove(entries: Iterable[Path]) -> None:
    for entry in list(entries):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)
