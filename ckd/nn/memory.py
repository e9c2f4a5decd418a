"""What a process holds on to while it trains: memory that is freed and asked for again, and compiled kernels."""

from __future__ import annotations

import ctypes
import os

#: Numbers of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3

#: Bytes: an allocation up to so many comes out of memory that is held, and so much is held while nothing uses it.
HELD = 1 << 30
#: The most that older versions of glibc take for the first.
MOST_OF_OLD = 1 << 25

#: Kernels that oneDNN keeps, and torch's layer above it, by the variables that say so; each would keep 1,024.
KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "96", "LRU_CACHE_CAPACITY": "96"}


def hold_freed_memory() -> bool:
    """Keep what is freed, for the rest of the process; False where the C library offers no such setting.

    glibc gives large blocks back to the system at once and asks for them anew. A step of training frees and allocates
    tens of megabytes, and the kernel provides and zeroes every page of them again: on the average a seventh of the step
    where it was measured, and more while the host was busy (docs/speed.md, "Where memory goes").
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library; no library of that kind (Windows)
        return False
    # First what may be refused: to set the other alone would fix the limit for blocks at 128 KiB.
    taken = mallopt(M_MMAP_THRESHOLD, HELD) or mallopt(M_MMAP_THRESHOLD, MOST_OF_OLD)
    return bool(taken and mallopt(M_TRIM_THRESHOLD, HELD))


def keep_few_kernels() -> None:
    """Let oneDNN keep a few steps' kernels, for the rest of the process; what the user has set stays.

    In bf16 it compiles one for each shape of a product. A batch has its own number of positions, and so a dozen kernels
    of its own, which are kept until there are a thousand of them: a hundred megabytes that are hardly ever used again.
    It counts before the first such product.
    """
    for name, value in KERNELS.items():
        os.environ.setdefault(name, value)
