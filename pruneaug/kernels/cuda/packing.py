"""Packing: a block-sparse weight matrix as the tiles that thread blocks copy to shared memory as they are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.errors import InputError
from pruneaug.kernels.cuda.formats import PIECE, Format, place


@dataclass(frozen=True, slots=True, eq=False)
class PackedTiles:
    """The kept chunks of each row group, `depth` columns of them to a tile.

    Group g is `height` rows of the matrix; its tiles are indptr[g] to indptr[g + 1]. A tile has depth / chunk chunks,
    each `chunk` columns that follow each other in the matrix; the last tile of a group is filled up with chunks of
    zeros, whose column is `padding`, behind the last of the matrix.
    """

    words: npt.NDArray[np.uint32]  # [tiles * height * depth * bytes of a value / 4]
    columns: npt.NDArray[np.int32]  # [tiles * depth / chunk]; first column of each chunk
    indptr: npt.NDArray[np.int32]  # [row groups + 1]
    padding: int


@dataclass(frozen=True, slots=True)
class TileShape:
    """How a matrix is packed: see `PackedTiles`.

    `together` rows that follow each other are dealt out to the columns of the matrix product so that each of four lanes
    gets a run of them as its sums; 0 keeps the order. `swizzled` puts the pieces of a row in the order of `place`.
    """

    height: int
    chunk: int
    depth: int
    together: int = 0
    swizzled: bool = True

    def __post_init__(self) -> None:
        if self.chunk < 1 or self.depth % self.chunk or self.height < 1:
            raise InputError(
                f"a tile's columns must be whole chunks, but got {self.depth} columns and chunks of {self.chunk}; "
                "choose a chunk that divides them"
            )
        if self.together and (self.together % 16 or self.height % self.together):
            raise InputError(
                f"rows that lie together must be a multiple of 16 that divides the height, but got {self.together} of "
                f"{self.height}; choose another number"
            )


def pack_tiles(matrix: torch.Tensor, mask: torch.Tensor, shape: TileShape, form: Format) -> PackedTiles:
    """Pack a weight matrix [N, K] under its mask (bool [N, K]), rounded to the format.

    A chunk is kept if the mask keeps any of its weights in any row of the group; the others are zero in it. Raises
    InputError for a matrix and a mask that do not belong together.
    """
    if matrix.dim() != 2 or mask.shape != matrix.shape or mask.dtype != torch.bool:
        raise InputError(
            f"packing needs a matrix [N, K] and a bool mask of the same shape, but got {list(matrix.shape)} and "
            f"{mask.dtype} {list(mask.shape)}; give it both"
        )
    (rows, cols), height, chunk = matrix.shape, shape.height, shape.chunk
    groups, chunks, per_tile = -(-rows // height), -(-cols // chunk), shape.depth // chunk
    keep = np.zeros((groups * height, chunks * chunk), np.bool_)
    keep[:rows, :cols] = mask.cpu().numpy()
    kept = np.zeros(keep.shape, np.float32)
    np.copyto(kept[:rows, :cols], matrix.detach().float().cpu().numpy(), where=keep[:rows, :cols])

    group, column = np.nonzero(keep.reshape(groups, height, chunks, chunk).any(axis=(1, 3)))  # of each kept chunk
    counts = np.bincount(group, minlength=groups)
    indptr = np.zeros(groups + 1, np.int32)
    np.cumsum(-(-counts // per_tile), out=indptr[1:])
    rank = np.arange(len(group)) - (np.cumsum(counts) - counts)[group]  # among the chunks of its group
    position = indptr[group] * per_tile + rank
    columns = np.full(indptr[-1] * per_tile, chunks * chunk, np.int32)
    columns[position] = column * chunk
    values = np.zeros((indptr[-1] * per_tile, height, chunk), np.float32)
    values[position] = kept.reshape(groups, height, chunks, chunk)[group, :, column]
    # [tiles, chunks, height, chunk] -> [tiles, height, depth]
    tiles = values.reshape(-1, per_tile, height, chunk).transpose(0, 2, 1, 3).reshape(-1, height, shape.depth)
    if shape.together:
        tiles = tiles[:, row_order(height, shape.together)]
    words = form.words(tiles.reshape(-1)).reshape(len(tiles), height, shape.depth // form.per_piece, PIECE // 4)
    if shape.swizzled:
        pieces = words.shape[2]
        row, piece = np.arange(height)[:, None], np.arange(pieces)[None]
        words = words[:, row, place(row, piece, pieces)]
    return PackedTiles(np.ascontiguousarray(words).reshape(-1), columns, indptr, chunks * chunk)


def row_order(height: int, together: int) -> npt.NDArray[np.int64]:
    """The row of the group that lies at each place of a tile.

    An mma of 8 columns leaves two columns that follow each other in each of four lanes. Of `together` / 8 such mma, a
    lane gets `together` / 4 rows that follow each other.
    """
    at = np.arange(height)
    mma, column = at % together // 8, at % 8
    run = together // 4
    return at // together * together + column // 2 * run + mma * 2 + column % 2
