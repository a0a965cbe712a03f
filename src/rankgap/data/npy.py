"""Images saved as NumPy arrays: reading a .npy file without trusting its header."""

from __future__ import annotations

import math
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from rankgap.data.levels import TYPES, Values

MAGIC = b"\x93NUMPY"
_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_TYPES = tuple(name for name in TYPES if np.dtype(name).itemsize <= 4)
_FEW = 4  # channels; an axis this short is never a width


class ArrayHeader(NamedTuple):
    """The header of a .npy file, checked against the file's size.

    Attributes:
        shape: (H, W) or (H, W, C).
        fortran: whether the first axis varies fastest.
        dtype: one of `TYPES` of at most 32 bits, of either byte order.
    """

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]

    @property
    def channels(self) -> int:
        """C; 1 of (H, W)."""
        return self.shape[2] if len(self.shape) == 3 else 1


def read_array_header(file: BinaryIO) -> ArrayHeader:
    """Read the header of a .npy file without loading pixels, and leave the file at the first pixel.

    Raises:
        ValueError: it is not an image, its channels seem to come first, or the file is shorter than it says.
    """
    version = np.lib.format.read_magic(file)
    if version not in _READERS:
        raise ValueError(f"expected a .npy file of version 1.0 or 2.0, got {version[0]}.{version[1]}")
    shape, fortran, dtype = _READERS[version](file)
    if dtype.name not in _TYPES or len(shape) not in (2, 3) or min(shape) < 1:
        wide = "; save array.astype(numpy.float32)" if dtype.name == "float64" else ""
        raise ValueError(
            f"expected an array (H, W) or (H, W, C) of {', '.join(_TYPES)}, got {shape} of {dtype}{wide}"
        )
    check_axes(shape)
    begin = file.tell()
    have, wanted = file.seek(0, 2) - begin, math.prod(shape) * dtype.itemsize
    file.seek(begin)
    if have < wanted:
        raise ValueError(f"the file is cut short: an array {shape} takes {wanted:,} bytes, and {have:,} are there")
    return ArrayHeader(shape, fortran, dtype)


def check_axes(shape: tuple[int, ...]) -> None:
    """Refuse (C, H, W), which would be an image of height C with W channels.

    The last axis is taken for the channels where it is short, where the first two are equal, or where it is not
    longer than the first.
    """
    if len(shape) == 3 and shape[2] > max(_FEW, shape[0]) and shape[0] != shape[1]:
        raise ValueError(
            f"expected an array (H, W, C), and {shape} seems to have its channels first: save "
            "array.transpose(1, 2, 0)"
        )


def read_array(file: BinaryIO) -> Values:
    """A .npy file as (H, W, C), in its own type and this machine's byte order.

    Raises:
        ValueError: as for `read_array_header`.
    """
    header = read_array_header(file)
    values = np.frombuffer(file.read(math.prod(header.shape) * header.dtype.itemsize), header.dtype)
    array = values.reshape(header.shape, order="F" if header.fortran else "C")
    native = np.ascontiguousarray(array, header.dtype.newbyteorder("="))
    return native[:, :, None] if native.ndim == 2 else native
