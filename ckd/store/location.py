"""Where a store lies: a local folder, or a folder of any file system that Arrow knows by URI.

Files appear whole or not at all. On a local disk they are written aside, synced and renamed; object stores have no
rename, but an object only appears once its upload is complete.
"""

from __future__ import annotations

import os
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.fs as pafs

from ckd.data.atomic import fsync_path
from ckd.errors import StoreError

PARTIAL = ".partial"

#: Files of an object store that are held open. A local file costs microseconds to open, and none is held.
OPEN_FILES = 64

#: Bytes of an upload that are held in memory, beyond which they go to a temporary file; and those sent at a time.
SPOOL = 1 << 26
PIECE = 1 << 22

#: Bytes of a local file that are written before the disk is asked to take them.
SYNC = 1 << 22


class _Synced:
    """A raw file that goes to the disk in the background while more is written, so that the last wait is short."""

    def __init__(self, file: FileIO, pool: ThreadPoolExecutor) -> None:
        self._file, self._pool = file, pool
        self._pending: Future[None] | None = None
        self._unsynced = 0

    def write(self, data: Any) -> int:
        """Write all of `data`; how many bytes. A raw file may take less at once than it is given."""
        view = memoryview(data).cast("B")
        written = 0
        while written < len(view):
            written += self._file.write(view[written:])
        self._unsynced += written
        if self._unsynced >= SYNC and (self._pending is None or self._pending.done()):
            self._raise_failure()
            self._pending = self._pool.submit(os.fsync, self._file.fileno())
            self._unsynced = 0
        return written

    def finish(self) -> None:
        """Return when everything is on the disk."""
        self._raise_failure()
        os.fsync(self._file.fileno())

    def _raise_failure(self) -> None:
        # The system reports a failed write-back once: whoever asks later hears nothing of it.
        if self._pending is not None:
            self._pending.result()


class Location:
    """A folder that files are written to atomically and read from by name.

    Args:
        place: a path, or a URI such as `s3://bucket/folder` or `gs://bucket/folder`; credentials and endpoints come
            from the environment or the URI's query, as Arrow documents them.

    Raises:
        StoreError: Arrow knows no such file system.
    """

    def __init__(self, place: str | Path) -> None:
        self.local: Path | None = None
        if "://" not in str(place):
            self.local, self.text = Path(place), str(place)
        else:
            parts = urlsplit(str(place))
            # No keys and no query: a location appears in messages.
            self.text = f"{parts.scheme}://{parts.hostname or ''}{parts.path}".rstrip("/")
            try:
                self.fs, self.root = pafs.FileSystem.from_uri(str(place))
            except (pa.ArrowException, OSError, ValueError) as error:
                raise StoreError(f"{self.text}: {_one_line(error)}. Use a path, or a URI that Arrow knows.") from None
            if isinstance(self.fs, pafs.LocalFileSystem):
                self.local, self.text = Path(self.root), self.root
            self.root = self.root.rstrip("/")
            if not self.root:
                raise StoreError(f"{self.text}: names no bucket or folder. Use a path, or a URI that Arrow knows.")
        self._file = lru_cache(maxsize=OPEN_FILES)(self._open_remote)

    def path(self, name: str) -> str:
        """The file's path or URI, for messages."""
        return f"{self.text}/{name}"

    def sizes(self) -> dict[str, int]:
        """The size in bytes of every file here, by name; empty where the folder does not exist."""
        with self.reporting():
            if self.local is not None:
                try:
                    with os.scandir(self.local) as entries:
                        return dict(_size(entry) for entry in entries if entry.is_file())
                except (FileNotFoundError, NotADirectoryError):
                    return {}
            found = self.fs.get_file_info(pafs.FileSelector(self.root, allow_not_found=True))
            return {i.base_name: i.size for i in found if i.type == pafs.FileType.File}

    def read(self, name: str) -> bytes:
        """All bytes of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        if self.local is not None:
            return (self.local / name).read_bytes()
        with self.fs.open_input_file(f"{self.root}/{name}") as file:
            content: bytes = file.read()
        return content

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`, or fewer where the file ends. Safe to call from several threads."""
        if self.local is None:
            part: bytes = self._file(name).read_at(size, offset)
            return part
        fd = os.open(self.local / name, os.O_RDONLY)
        try:
            return os.pread(fd, size, offset)
        finally:
            os.close(fd)

    def open(self, name: str) -> Any:
        """The file for random access through Arrow."""
        if self.local is not None:
            return pa.OSFile(str(self.local / name), "rb")
        return self.fs.open_input_file(f"{self.root}/{name}")

    def _open_remote(self, name: str) -> Any:
        return self.fs.open_input_file(f"{self.root}/{name}")

    def make(self) -> None:
        """Create the folder and its parents.

        Raises:
            StoreError: that is not possible, or a file is in its place.
        """
        with self.reporting():
            if self.local is not None:
                self.local.mkdir(parents=True, exist_ok=True)
            else:
                self.fs.create_dir(self.root, recursive=True)

    @contextmanager
    def create(self, name: str) -> Iterator[Any]:
        """A stream whose content becomes the file `name` when the block ends, and vanishes when it raises.

        An existing file is replaced.

        Raises:
            StoreError: the disk is full, or the folder cannot be written to.
        """
        with self.reporting(name):
            if self.local is None:
                # Collected here first: an upload that is begun and then closed, or dropped, becomes an object.
                with tempfile.SpooledTemporaryFile(SPOOL) as spool:
                    yield spool
                    spool.seek(0)
                    self._upload(name, spool)
                return
            partial = self.local / f".{name}.{uuid.uuid4().hex[:12]}{PARTIAL}"
            try:
                with partial.open("wb", buffering=0) as file, ThreadPoolExecutor(1, "ckd-sync") as pool:
                    synced = _Synced(file, pool)
                    yield synced
                    synced.finish()
                try:
                    partial.replace(self.local / name)
                except FileNotFoundError:
                    # Another owner, who took this one for dead, has written the same and cleared up.
                    if not (self.local / name).exists():
                        raise
            except BaseException:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)
                raise
            fsync_path(self.local)

    def _upload(self, name: str, content: Any) -> None:
        with self.fs.open_output_stream(f"{self.root}/{name}") as stream:
            while piece := content.read(PIECE):
                stream.write(piece)
        # Streams that were opened before still read what was there.
        self._file.cache_clear()

    def create_exclusive(self, name: str, content: bytes) -> bool:
        """Create a small file unless it exists; whether this call created it.

        Atomic on a local disk. Object stores in Arrow have no such operation, so two callers may both succeed there.
        """
        with self.reporting(name):
            if self.local is None:
                if self.fs.get_file_info(f"{self.root}/{name}").type != pafs.FileType.NotFound:
                    return False
                self.touch(name, content)
                return True
            try:
                fd = os.open(self.local / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
            except FileExistsError:
                return False
            try:
                os.write(fd, content)
            except OSError:
                self.delete(name)
                raise
            finally:
                os.close(fd)
            return True

    def touch(self, name: str, content: bytes) -> None:
        """Give a small file that `create_exclusive` made a new modification time."""
        if self.local is not None:
            with suppress(FileNotFoundError):
                os.utime(self.local / name)
            return
        with self.fs.open_output_stream(f"{self.root}/{name}") as stream:
            stream.write(content)

    def modified(self, name: str) -> int | None:
        """Modification time in nanoseconds, None where there is no such file."""
        if self.local is not None:
            try:
                return (self.local / name).stat().st_mtime_ns
            except FileNotFoundError:
                return None
        found: int | None = self.fs.get_file_info(f"{self.root}/{name}").mtime_ns
        return found

    def delete(self, name: str) -> None:
        """Delete a file if it exists."""
        with self.reporting(name):
            if self.local is not None:
                (self.local / name).unlink(missing_ok=True)
            else:
                self._file.cache_clear()
                with suppress(FileNotFoundError):
                    self.fs.delete_file(f"{self.root}/{name}")

    @contextmanager
    def reporting(self, name: str = "") -> Iterator[None]:
        """Turn what the file system refuses into one line for the user.

        Raises:
            StoreError: an operation in the block raised an OSError.
        """
        try:
            yield
        except (OSError, pa.ArrowException) as error:
            reason = _one_line(getattr(error, "strerror", None) or error)
            raise StoreError(
                f"{self.path(name) if name else self.text}: {reason}. "
                "Mend that and run again: what is finished is kept."
            ) from error


def _size(entry: os.DirEntry[str]) -> tuple[str, int]:
    try:
        return entry.name, entry.stat().st_size
    except FileNotFoundError:
        # Another process deleted its claim after the folder was listed: as it was listed, it was there.
        return entry.name, 0


def _one_line(error: object) -> str:
    return " ".join(str(error).split()).rstrip(".")
