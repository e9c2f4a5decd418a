"""Files and folders that appear whole or not at all: written aside, synced, renamed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ckd.errors import DataError


def fsync_path(path: Path) -> None:
    """Flush a file or directory to the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, on an error it is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        fsync_path(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def discard_partials(folder: Path) -> None:
    """Remove what writers of `replace_file` left in `folder` when they were killed; nobody may be writing there."""
    for partial in folder.glob(".*.partial"):
        partial.unlink()


@contextmanager
def replace_folder(path: Path, keep: tuple[str, ...] = ()) -> Iterator[Path]:
    """Yield a temporary folder; on success it takes the place of `path`, on an error it is removed.

    Entries of the old folder named in `keep` move into the new one unless it has its own; an error at any moment
    leaves the old folder as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    moved: list[str] = []
    try:
        yield partial
        for entry in partial.rglob("*"):
            fsync_path(entry)
        fsync_path(partial)
        for name in keep:
            if (path / name).exists() and not (partial / name).exists():
                moved.append(name)
                (path / name).rename(partial / name)
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        for name in moved:
            if (partial / name).exists():
                (partial / name).rename(path / name)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    fsync_path(path.parent)


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes that ask for the same out of it; the lock ends with the process.

    Where the operating system or the file system knows no such lock, nobody is kept out.

    Raises:
        DataError: another process is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
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


def empty_folder(folder: Path) -> None:
    """Remove all that lies in the folder; the folder itself, and a lock on it, stay."""
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    with replace_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
