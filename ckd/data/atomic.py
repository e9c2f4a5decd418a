"""Files and folders that appear whole or not at all: written aside, synced, renamed."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ckd.errors import CkdError


def fsync_path(path: Path) -> None:
    """Flush a file or directory to the disk."""
    if sys.platform == "win32" and path.is_dir():
        return  # which cannot be opened there
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


#: How polars and safetensors end what they say of an error of the system, and errors that are the written file's own.
_SYSTEM = re.compile(r"\(os error (\d+)\)")
_WRITING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of the system name `path` where they name nothing: of a full disk, writing says nothing else.

    What libraries tell in words alone becomes an error of the system.
    """
    try:
        yield
    except CkdError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            if error.filename is None:
                error.filename = str(path)
            raise
        said = _SYSTEM.search(str(error))
        number = int(said[1]) if said else None
        if number not in _WRITING:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it takes the place of `path`, on an error it is removed.

    Who may read the file is as for every new file there: safetensors writes ones that their owner alone may read.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming(path):
            partial.touch()
            mode = stat.S_IMODE(partial.stat().st_mode)
            partial.unlink()
            yield partial
            if stat.S_IMODE(partial.stat().st_mode) != mode:
                partial.chmod(mode)
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
    Where `path` is a link the folder takes the place of the link, and what it leads to stays.

    Raises:
        CkdError: another process has put a folder there at the same time; its folder stays.
    """
    path = path.absolute()
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        with naming(path):
            yield partial
        for entry in partial.rglob("*"):
            fsync_path(entry)
        _keep(keep, path, partial)
        fsync_path(partial)
        if path.exists():
            with suppress(FileNotFoundError):  # another process has just put it aside
                path.rename(old)
        _put(partial, path)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        if path.exists():
            _let_go(old, path, keep)
        elif old.exists():
            old.rename(path)
        raise
    _let_go(old, path, keep)
    fsync_path(path.parent)


def _put(partial: Path, path: Path) -> None:
    """Rename the new folder to `path`, where nothing is but what another process has put there since."""
    try:
        partial.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise CkdError(
            f"{path}: another process has put a folder here at the same time, which stays. Run this again where it "
            "should be replaced."
        ) from error


def _let_go(old: Path, path: Path, keep: tuple[str, ...]) -> None:
    """Remove what was put aside, if anything was: a folder, or the link or file that was in its place."""
    # A process that came to `path` while this had put it aside found nothing to keep there.
    _keep(keep, old, path)
    if old.is_dir() and not old.is_symlink():
        shutil.rmtree(old, ignore_errors=True)
    else:
        old.unlink(missing_ok=True)


def _keep(names: tuple[str, ...], source: Path, target: Path) -> None:
    """Entries of one folder are in another as well, unless it has its own."""
    for name in names:
        if (source / name).exists() and not (target / name).exists():
            _take_over(source / name, target / name)


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


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON with sorted keys, atomically."""
    with replace_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, sort_keys=True, default=str) + "\n")
