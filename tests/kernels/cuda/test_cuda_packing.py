"""Tiles of packed weights against loops over single weights."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaug.errors import InputError
from pruneaug.kernels.cuda.formats import BFLOAT16, FLOAT16, FLOAT32, TF32, place, round_tf32
from pruneaug.kernels.cuda.packing import TileShape, pack_tiles, row_order


def values_of(packed, shape, form):
    """float64 [tiles, height, depth] as they lie, the order of pieces undone."""
    words = torch.from_numpy(packed.words.view(np.int32))
    values = words.view(form.torch_dtype).double().reshape(-1, shape.height, shape.depth)
    if shape.swizzled:
        pieces = shape.depth // form.per_piece
        found = torch.empty_like(values)
        for row in range(shape.height):
            for piece in range(pieces):
                at = place(row, piece, pieces) * form.per_piece
                start = piece * form.per_piece
                found[:, row, start : start + form.per_piece] = values[:, row, at : at + form.per_piece]
        values = found
    return values


def brute_force(matrix, mask, shape):
    """(values [tiles, height, depth], first column of each chunk, indptr), weight by weight."""
    rows, cols = matrix.shape
    chunks = -(-cols // shape.chunk)
    order = row_order(shape.height, shape.together) if shape.together else range(shape.height)
    tiles, columns, indptr = [], [], [0]
    for first in range(0, rows, shape.height):
        group_mask = mask[first : first + shape.height]
        kept = [c for c in range(chunks) if group_mask[:, c * shape.chunk : (c + 1) * shape.chunk].any()]
        kept += [chunks] * (-len(kept) % (shape.depth // shape.chunk))
        columns += [c * shape.chunk for c in kept]
        group_columns = [c * shape.chunk + i for c in kept for i in range(shape.chunk)]
        for start in range(0, len(group_columns), shape.depth):
            tile = torch.zeros(shape.height, shape.depth, dtype=torch.float64)
            for at, row in enumerate(order):
                for k, column in enumerate(group_columns[start : start + shape.depth]):
                    if first + row < rows and column < cols and mask[first + row, column]:
                        tile[at, k] = matrix[first + row, column]
            tiles.append(tile)
        indptr.append(len(tiles))
    return tiles, columns, indptr


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 70), st.integers(1, 50), st.sampled_from([16, 32]), st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([0, 16]), st.booleans(), st.floats(0, 1), st.sampled_from([FLOAT16, BFLOAT16, TF32, FLOAT32]),
    st.integers(0, 2**31),
)  # fmt: skip
def test_tiles_hold_the_kept_chunks(rows, cols, height, chunk, together, swizzled, density, form, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randint(-100, 100, (rows, cols), generator=generator).float()  # exact in every format
    grid = torch.rand(-(-rows // height), -(-cols // chunk), generator=generator) < density
    mask = grid.repeat_interleave(height, 0).repeat_interleave(chunk, 1)[:rows, :cols].contiguous()
    mask &= torch.rand(rows, cols, generator=generator) < 0.8
    shape = TileShape(height, chunk, 16, together, swizzled)
    packed = pack_tiles(matrix, mask, shape, form)
    tiles, columns, indptr = brute_force(matrix.double(), mask, shape)
    assert (packed.words.dtype, packed.columns.dtype, packed.indptr.dtype) == (np.uint32, np.int32, np.int32)
    assert packed.indptr.tolist() == indptr
    assert packed.columns.tolist() == columns
    found = values_of(packed, shape, form)
    assert len(found) == len(tiles)
    assert all(torch.equal(got, want) for got, want in zip(found, tiles))


@pytest.mark.parametrize("pieces", [2, 4, 8, 16])
def test_eight_rows_of_a_tile_lie_in_different_banks(pieces):
    for piece in range(pieces):
        for first in (0, 8):
            banks = {(row * pieces + place(row, piece, pieces)) % 8 for row in range(first, first + 8)}
            assert len(banks) == 8
    for row in range(16):
        assert sorted(place(row, piece, pieces) for piece in range(pieces)) == list(range(pieces))


def test_a_lane_gets_rows_that_follow_each_other():
    # Of 32 rows in four products of 8 columns, lane t of four gets columns 2 t and 2 t + 1 of each.
    order = row_order(64, 32)
    for first in (0, 32):
        for lane in range(4):
            at = [first + 8 * product + 2 * lane + i for product in range(4) for i in range(2)]
            assert order[at].tolist() == list(range(first + 8 * lane, first + 8 * lane + 8))


def test_tf32_rounds_ties_away_from_zero_and_keeps_infinities_and_nan():
    unit = 2.0**-10
    values = np.array([1 + unit / 2, -1 - unit / 2, 1 + unit / 4, np.inf, -np.inf, np.nan, 0.0], np.float32)
    rounded = round_tf32(values).view(np.float32)
    np.testing.assert_array_equal(rounded, np.float32([1 + unit, -1 - unit, 1, np.inf, -np.inf, np.nan, 0]))


def test_removed_weights_may_be_anything():
    matrix = torch.tensor([[1.0, float("nan")], [float("inf"), 2.0]])
    shape = TileShape(16, 2, 16)
    packed = pack_tiles(matrix, torch.eye(2, dtype=torch.bool), shape, FLOAT16)
    assert values_of(packed, shape, FLOAT16)[0, :2, :2].tolist() == [[1, 0], [0, 2]]


def test_what_cannot_be_packed_is_refused():
    with pytest.raises(InputError, match="must be whole chunks, but got 32 columns and chunks of 12"):
        TileShape(16, 12, 32)
    with pytest.raises(InputError, match="multiple of 16 that divides the height, but got 32 of 48"):
        TileShape(48, 16, 32, together=32)
    with pytest.raises(InputError, match=r"a bool mask of the same shape, but got \[4, 4\] and torch.float32 \[4, 4\]"):
        pack_tiles(torch.ones(4, 4), torch.ones(4, 4), TileShape(16, 16, 32), FLOAT16)
