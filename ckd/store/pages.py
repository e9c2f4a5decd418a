"""Reading one uncompressed Parquet data page straight from its bytes, CRC verified and without a copy.

Parquet readers work through whole row groups and copy every value; a batch is one value in one page at a known place.
"""

from __future__ import annotations

import zlib
from typing import Final

I32: Final = 5
STRUCT: Final = 12

#: Fields of a PageHeader in parquet.thrift.
SIZE, COMPRESSED, CRC, DATA_PAGE = 2, 3, 4, 5
#: Fields of the DataPageHeader inside it count from here; its field 5, the statistics, is empty.
NESTED = 50
STATISTICS = NESTED + 5
#: What every page here states: a data page (1) of one value (51), PLAIN (52), with RLE levels (53, 54).
FIXED = {1: 0, NESTED + 1: 1, NESTED + 2: 0, NESTED + 3: 3, NESTED + 4: 3}


def page(buffer: memoryview) -> memoryview:
    """The data of the one data page that fills `buffer` exactly: a PLAIN value of a required column.

    Raises:
        ValueError: the header is none of such a page, the sizes do not fit, or the CRC-32 differs.
    """
    fields, start = _page_header(buffer)
    data = buffer[start:]
    if CRC not in fields:
        raise ValueError("page header has no CRC")
    found, stated = zlib.crc32(data), fields.pop(CRC) & 0xFFFFFFFF
    wanted = {**FIXED, SIZE: len(data), COMPRESSED: len(data)}
    if fields != wanted:
        raise ValueError(f"page header has fields {fields}, expected {wanted}")
    if found != stated:
        raise ValueError(f"page CRC is {found:08x}, expected {stated:08x}")
    return data


def byte_array(data: memoryview) -> memoryview:
    """The value of a PLAIN page of one BYTE_ARRAY: a uint32 length, then as many bytes.

    Raises:
        ValueError: the length does not fit the page.
    """
    size = int.from_bytes(data[:4], "little")
    if size != len(data) - 4:
        raise ValueError(f"value of {size} bytes in a page of {len(data)}")
    return data[4:]


def _page_header(buffer: memoryview) -> tuple[dict[int, int], int]:
    """Integer fields of a PageHeader in Thrift's compact protocol, and where the data begins."""
    fields: dict[int, int] = {}
    at, field = 0, 0
    outer: list[int] = []
    try:
        while True:
            head = buffer[at]
            at += 1
            if head == 0:
                if not outer:
                    return fields, at
                field = outer.pop()
                continue
            delta, kind = head >> 4, head & 15
            if not delta:
                raise ValueError("page header with a field out of order")
            field += delta
            if kind == I32:
                value, at = _varint(buffer, at)
                fields[field] = (value >> 1) ^ -(value & 1)
            elif kind == STRUCT and field in (DATA_PAGE, STATISTICS):
                outer.append(field)
                field = NESTED if field == DATA_PAGE else 2 * NESTED
            else:
                raise ValueError(f"page header with field {field} of type {kind}")
    except IndexError:
        raise ValueError("page header runs past its page") from None


def _varint(buffer: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 28:
            raise ValueError("page header with a number beyond 32 bits")
