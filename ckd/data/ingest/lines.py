"""Text files as blocks of whole lines, plain or gzipped, in bounded memory and with line numbers."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ckd.data.ingest.problems import Problems
from ckd.errors import DataError

BLOCK_BYTES = 16 << 20
PIECE_BYTES = 1 << 20
HEAD_BYTES = 1 << 20
LONGEST_LINE = 64 << 20

#: Receives done, total, unit and note of a piece of work.
Report = Callable[[int, int | None, str, str], None]

_GZIP = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Block:
    """Consecutive whole lines: `data` is UTF-8 with line feeds only, its first line has the number `first`."""

    first: int
    data: bytes

    def lines(self) -> Iterator[tuple[int, str]]:
        """Number and text of every line that is not blank."""
        # Not splitlines(): U+2028 and its like may stand inside a value.
        for number, line in enumerate(self.data.decode().split("\n"), self.first):
            if line and not line.isspace():
                yield number, line


def blocks(path: Path, problems: Problems, progress: Report | None = None) -> Iterator[Block]:
    """The file in blocks of about `BLOCK_BYTES`, each ending at the end of a line.

    A line that is not UTF-8 is a problem, and blank in the block. A gzip stream that ends early is a problem at the
    line where it ends. `progress` receives the bytes of the file read so far.

    Raises:
        DataError: no such file, an empty one, a line beyond 64 MiB, or a problem when rows may not be skipped.
    """
    first, rest, total = 1, b"", 0
    with _open(path) as (stream, position):
        while True:
            data, broken = _read(stream, BLOCK_BYTES)
            if not total:
                data = data.removeprefix(_BOM)
            if not data and not broken:
                break
            total += len(data)
            whole, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                yield Block(first, _valid_lines(path, (whole + newline).replace(b"\r\n", b"\n"), first, problems))
                first += whole.count(b"\n") + 1
            if broken:
                remedy = "Fetch the file again, or keep what is there with prepare.on_error=skip."
                problems.row(path, first, broken, remedy=remedy)
                return
            if len(rest) > LONGEST_LINE:
                raise DataError(f"{path}:{first}: a line beyond {LONGEST_LINE >> 20} MiB; expected one row per line.")
            if progress:
                progress(position(), path.stat().st_size, "bytes", path.name)
    if not total:
        raise DataError(f"{path}: the file is empty.")
    if rest:
        yield Block(first, _valid_lines(path, rest.removesuffix(b"\r"), first, problems))


def lines(path: Path, problems: Problems, progress: Report | None = None) -> Iterator[tuple[int, str]]:
    """Number and text of every line that is not blank, without its line end; raises as `blocks` does."""
    for block in blocks(path, problems, progress):
        yield from block.lines()


def head(path: Path, most: int = 100) -> list[str]:
    """The first lines that are not blank, for looking at a file; none where it cannot be read."""
    try:
        with _open(path) as (stream, _):
            data, _ = _read(stream, HEAD_BYTES)
    except (DataError, OSError):
        return []
    text = data.removeprefix(_BOM).decode(errors="replace")
    found = (line.rstrip("\r") for line in text.split("\n") if line.strip())
    return list(islice(found, most))


@contextmanager
def _open(path: Path) -> Iterator[tuple[gzip.GzipFile | io.BufferedReader, Callable[[], int]]]:
    """The decompressed stream, and a function that tells how far the file itself was read."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except IsADirectoryError:
        raise DataError(f"{path}: a folder, expected a file.") from None
    except PermissionError:
        raise DataError(f"{path}: permission denied; it must be readable.") from None
    with file:
        if file.peek(2)[:2] == _GZIP:
            with gzip.GzipFile(fileobj=file) as stream:
                yield stream, file.tell
        else:
            yield file, file.tell


def _read(stream: gzip.GzipFile | io.BufferedReader, size: int) -> tuple[bytes, str]:
    """About `size` bytes, and what is wrong with the stream after them, if anything."""
    pieces: list[bytes] = []
    length = 0
    try:
        # Small pieces, because what a failing read has decompressed so far is lost.
        while length < size and (piece := stream.read1(PIECE_BYTES)):
            pieces.append(piece)
            length += len(piece)
    except EOFError:
        return b"".join(pieces), "the gzip stream ends here, before its end (the file is truncated)"
    except (gzip.BadGzipFile, zlib.error):
        return b"".join(pieces), "the gzip stream is damaged from here on"
    return b"".join(pieces), ""


def _valid_lines(path: Path, data: bytes, first: int, problems: Problems) -> bytes:
    try:
        data.decode()
    except UnicodeDecodeError:
        checked = [_valid(path, line, n, problems) for n, line in enumerate(data.split(b"\n"), first)]
        return b"\n".join(checked)
    return data


def _valid(path: Path, line: bytes, number: int, problems: Problems) -> bytes:
    try:
        line.decode()
    except UnicodeDecodeError as error:
        value = line[error.start]
        problems.row(path, number, "not UTF-8", f"byte 0x{value:02x} at column {error.start + 1}")
        return b""
    return line
