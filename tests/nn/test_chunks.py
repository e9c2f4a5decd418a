"""Blocks, chunks and even rows of large matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ckd.nn.chunks import BLOCK_ELEMENTS, CHUNK_ELEMENTS, EVEN, ON_GPU, block_rows, even_rows, products, row_chunks


@settings(deadline=None)
@given(rows=st.integers(0, 9), width=st.integers(1, 200))
def test_rows_of_any_width_begin_at_even_places(rows, width):
    matrix = even_rows(rows, width, torch.empty(0, dtype=torch.float64))
    assert (matrix.shape, matrix.dtype) == ((rows, width), torch.float64)
    assert matrix.stride() == (next(even for even in range(EVEN, 400, EVEN) if even >= width), 1)


@settings(deadline=None)
@given(rows=st.integers(1, 9), width=st.sampled_from([1, 63, 64, 65, 130]), size=st.integers(1, 8))
def test_products_are_the_dot_products(rows, width, size):
    generator = torch.Generator().manual_seed(rows * width)
    left = torch.randn(rows, size, generator=generator, dtype=torch.float64)
    table = torch.randn(width, size, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(products(left, table), torch.einsum("rd,nd->rn", left, table))


def test_products_refuse_what_wants_a_gradient():
    table = torch.ones(3, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="differentiation"):
        products(torch.ones(2, 2), table)


@settings(deadline=None)
@given(rows=st.integers(0, 40), width=st.sampled_from([1, 7, CHUNK_ELEMENTS // 3, CHUNK_ELEMENTS, 2 * CHUNK_ELEMENTS]))
def test_chunks_cover_every_row_once_in_order(rows, width):
    matrix = torch.empty(1, 1).expand(rows, width)
    chunks = list(row_chunks(matrix))
    assert [i for rows_of in chunks for i in range(rows)[rows_of]] == list(range(rows))
    assert all((chunk.stop - chunk.start) * width <= max(CHUNK_ELEMENTS, width) for chunk in chunks)


def test_a_block_has_a_row_at_least_and_a_gpu_has_larger_ones():
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert block_rows(2 * BLOCK_ELEMENTS, cpu) == 1
    assert block_rows(1024, cpu) == BLOCK_ELEMENTS // 1024
    assert block_rows(1024, gpu) == ON_GPU * block_rows(1024, cpu)
