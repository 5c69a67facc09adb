"""Packing: a sparse weight matrix as the arrays that a kernel reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pruneaug.errors import InputError


@dataclass(frozen=True, slots=True, eq=False)
class PackedColumns:
    """The columns of each row group that hold a kept weight, ascending within their group.

    Group g is rows [g*height, (g+1)*height) of the matrix; its columns are entries indptr[g] to indptr[g+1].
    """

    values: npt.NDArray[np.float32]  # [entries, height]; 0 where the mask is off or past the last row
    columns: npt.NDArray[np.int32]  # [entries]; column of the matrix
    indptr: npt.NDArray[np.int32]  # [row groups + 1]

    @property
    def height(self) -> int:
        """Rows of a group."""
        return int(self.values.shape[1])


def pack_columns(matrix: torch.Tensor, mask: torch.Tensor, height: int) -> PackedColumns:
    """Pack a weight matrix [N, K] under its mask (bool [N, K]), `height` rows a group; the last is zero-filled."""
    if matrix.dim() != 2 or mask.shape != matrix.shape or mask.dtype != torch.bool:
        raise InputError(
            f"packing needs a matrix [N, K] and a bool mask of the same shape, but got {list(matrix.shape)} and "
            f"{mask.dtype} {list(mask.shape)}"
        )
    if height < 1:
        raise InputError(f"the height of a row group must be at least 1, but got {height}")
    rows, cols = matrix.shape
    groups = -(-rows // height)
    kept = np.zeros((groups * height, cols), dtype=np.float32)
    np.copyto(kept[:rows], matrix.detach().float().cpu().numpy(), where=mask.cpu().numpy())
    keep = np.zeros((groups * height, cols), dtype=np.bool_)
    keep[:rows] = mask.cpu().numpy()
    active = keep.reshape(groups, height, cols).any(axis=1)  # [groups, cols]
    entries = np.flatnonzero(active)  # group * cols + column: ascending by group, then by column
    by_column = np.ascontiguousarray(kept.reshape(groups, height, cols).transpose(0, 2, 1))  # [groups, cols, height]
    indptr = np.zeros(groups + 1, dtype=np.int32)
    np.cumsum(active.sum(axis=1), out=indptr[1:])
    return PackedColumns(
        values=by_column.reshape(-1, height).take(entries, axis=0),
        columns=(entries % max(cols, 1)).astype(np.int32),
        indptr=indptr,
    )


def unpack_columns(packed: PackedColumns, shape: tuple[int, int]) -> torch.Tensor:
    """The matrix float32 [N, K] that was packed, with zeros where its mask was off."""
    rows, cols = shape
    groups = len(packed.indptr) - 1
    if groups != -(-rows // packed.height):
        raise InputError(
            f"a packed matrix of {groups} groups of {packed.height} rows has at most {groups * packed.height} rows, "
            f"but got shape {shape}"
        )
    group = np.repeat(np.arange(groups), np.diff(packed.indptr))
    grouped = np.zeros((groups, packed.height, cols), dtype=np.float32)
    grouped[group, :, packed.columns] = packed.values
    return torch.from_numpy(grouped.reshape(groups * packed.height, cols)[:rows].copy())
