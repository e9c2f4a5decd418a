"""Files and folders that appear whole or not at all: written aside, synced, renamed."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ckd.errors import ConfigError, DataError

#: Files without which a run's folder holds nothing that one could use.
WEIGHTS = "*.safetensors"


def fsync_path(path: Path) -> None:
    """Flush a file or directory to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # which cannot be opened there
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Errors of the system name `path` where they name nothing: of a full disk, writing says nothing else."""
    try:
        yield
    except OSError as error:
        # One that is a message alone would lose it.
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, on an error it is removed."""
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with _naming(path):
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

    Entries of the old folder named in `keep` are in the new one as well, unless it has its own; an error at any moment
    leaves the old folder as it was. A kill leaves it whole, and in its place but for the moment between two renames.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with _naming(path):
            yield partial
        for entry in partial.rglob("*"):
            fsync_path(entry)
        for name in keep:
            if (path / name).exists() and not (partial / name).exists():
                _take_over(path / name, partial / name)
        fsync_path(partial)
        if path.exists():
            path.rename(old)
        partial.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(partial, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)
    fsync_path(path.parent)


def _take_over(source: Path, target: Path) -> None:
    """The same file or folder in a second place; files are linked, where the file system can, and else copied."""
    if source.is_symlink():
        target.symlink_to(source.readlink())
    elif source.is_dir():
        shutil.copytree(source, target, symlinks=True, copy_function=link_or_copy)
        for folder, _, _ in os.walk(target):
            fsync_path(Path(folder))
    else:
        link_or_copy(source, target)


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """The same file under a second name, in place of one that has it; a copy where the file system has no links."""
    Path(target).unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
        fsync_path(Path(target))


@contextmanager
def only_process(folder: Path) -> Iterator[None]:
    """Make the folder, and keep other processes that ask for the same out of it; the lock ends with the process.

    Where the operating system or the file system knows no such lock, nobody is kept out. A folder in which nothing was
    made is gone afterwards.

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
        try:
            yield
        finally:
            with suppress(OSError):
                folder.rmdir()  # where nothing came of it: a folder that holds something stays
    finally:
        os.close(handle)


def empty_folder(folder: Path) -> None:
    """Remove all that lies in the folder; the folder itself, and a lock on it, stay."""
    _remove(folder.iterdir())


@contextmanager
def replacing(folder: Path, restart: bool, start: Path | None = None) -> Iterator[None]:
    """On a restart, what lies in the folder makes room for what the body makes; it comes back where no weights came.

    So whoever is refused, or interrupts, before there is something new loses nothing. After a kill it is still aside,
    for whoever goes on or restarts.

    Args:
        start: the weights that the body begins with.

    Raises:
        ConfigError: these lie in the folder themselves.
    """
    aside = folder / ".replaced"
    if restart:
        if start is not None and start.expanduser().resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"teacher.start: {start} lies in {folder}, which --restart empties. Give another --run.")
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
            _move(aside, folder)
            aside.rmdir()
        raise
    _remove([aside])


def _put_aside(folder: Path, aside: Path) -> None:
    """Move all that lies in the folder; where `aside` is there, it is whole, whoever is killed here."""
    partial = aside.with_name(".replacing")
    partial.mkdir(exist_ok=True)
    _move(folder, partial)
    partial.rename(aside)


def _move(source: Path, target: Path) -> None:
    for entry in [entry for entry in source.iterdir() if entry != target]:
        entry.rename(target / entry.name)


def _remove(entries: Iterable[Path]) -> None:
    for entry in list(entries):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    with replace_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
