"""A convolution and its gradients for CPU, as products of matrices: a block of rows at a time.

The elements of each window become a row of a matrix (im2col). A block has few enough of them for
its matrices to stay in the caches.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.kernels.common import accumulator

if TYPE_CHECKING:
    from jaxunpool.core.convolution import Convolution

ELEMENTS = 1 << 20  # of a block's matrices: 4 MB of float32 (benchmarks/NOTES.md)

Ints = Sequence[int]
Pairs = Sequence[tuple[int, int]]


@dataclasses.dataclass(frozen=True)
class Blocks:
    """All rows of all examples, in blocks of several examples or of rows of one.

    Attributes:
        batch: how many examples there are.
        examples, rows: how many of them a block has.
        count: how many blocks there are of the rows of an example. The last may go beyond them.
    """

    batch: int
    examples: int
    rows: int
    count: int

    @classmethod
    def of(cls, batch: int, rows: int, elements: int) -> Blocks:
        """Blocks of about `ELEMENTS`, where each row has so many."""
        most = max(1, ELEMENTS // max(1, elements))
        if most >= rows:
            fitting = range(1, min(batch, most // rows) + 1)
            return cls(batch, max(n for n in fitting if batch % n == 0), rows, 1)
        whole = [n for n in range(most // 2 + 1, most + 1) if rows % n == 0]
        count = rows // whole[-1] if whole else -(-rows // most)
        return cls(batch, 1, -(-rows // count), count)

    @property
    def all_rows(self) -> int:
        """The rows of an example, with those that the last block has beyond them."""
        return self.count * self.rows

    def starts(self) -> tuple[np.ndarray, np.ndarray]:
        """The first example and the first row of every block."""
        block = np.arange(self.batch // self.examples * self.count, dtype=np.int32)
        return block // self.count * self.examples, block % self.count * self.rows

    def row(self, start: Any) -> Any:
        """The first row of a block, known where there are no others."""
        return start if self.count > 1 else 0


def convolve(conv: Convolution, u: jax.Array, k: jax.Array) -> jax.Array:
    """The convolution of `u` with the kernel."""
    given, u, k = conv, conv.last("u", u), conv.last("k", k)
    conv, u = _merged(conv, u)
    kernel = _by_group(k.reshape(-1, k.shape[-1]), conv.groups)
    blocks = _blocks(conv, u, k.shape[-1])

    def block(_: None, start: Any) -> tuple[None, jax.Array]:
        part = _product(conv, _input_windows(conv, u, blocks, start), kernel).swapaxes(0, 1)
        shape = (blocks.examples, blocks.rows, *conv.results[1:], -1)
        return None, part.reshape(shape).astype(u.dtype)

    y = lax.scan(block, None, blocks.starts())[1]
    y = y.reshape(len(u), blocks.all_rows, *conv.results[1:], -1)
    return given.back("y", y[:, : conv.results[0]])


def kernel_gradient(conv: Convolution, u: jax.Array, y: jax.Array) -> jax.Array:
    """The gradient by the kernel: the results, times what the windows have at each element."""
    given, u, y = conv, conv.last("u", u), conv.last("y", y)
    shape = (*conv.window, u.shape[-1] // conv.groups, y.shape[-1])
    conv, u = _merged(conv, u)
    blocks = _blocks(conv, u, shape[-1])
    beyond = [(0, blocks.all_rows - conv.results[0]), *[(0, 0)] * (conv.ndim - 1)]

    def block(k: jax.Array, start: Any) -> tuple[jax.Array, None]:
        part = _part(y, blocks.examples, blocks.rows, start[0], blocks.row(start[1]), beyond)
        results = _by_group(part.reshape(-1, shape[-1]), conv.groups)
        # Transposed before the product, which is slower where it does that itself.
        results = lax.optimization_barrier(results.swapaxes(1, 2))
        return k + _product(conv, results, _input_windows(conv, u, blocks, start)), None

    outputs = shape[-1] // conv.groups
    k = jnp.zeros((conv.groups, outputs, math.prod(shape[:-1])), accumulator(u.dtype))
    k = lax.scan(block, k, blocks.starts())[0]
    return given.back("k", k.transpose(2, 0, 1).reshape(shape).astype(u.dtype))


def input_gradient(conv: Convolution, k: jax.Array, y: jax.Array) -> jax.Array:
    """The gradient by the input, of 2 or 3 axes, by a kernel that is not dilated.

    Elements at the same place between the strides, a phase, meet the same elements of the kernel.
    All phases of the last axis are columns of one product; those of other axes are products each.
    """
    n, groups, sizes, strides = conv.ndim, conv.groups, conv.sizes, conv.strides
    k, y = conv.last("k", k), conv.last("y", y)
    inputs, outputs = k.shape[-2], y.shape[-1] // groups
    phases = [_phases(conv, axis) for axis in range(n - 1)]
    shifts = [[shift for phase in axis for shift, _ in phase] for axis in phases]
    # The last axis: results that meet a stride's elements, and the strides that are asked for.
    stride, low = strides[-1], conv.padding[-1][0]
    meet, first = -(-conv.window[-1] // stride), low // stride
    last = -(-(low + sizes[-1]) // stride) - first
    cut = low - first * stride
    places = [*(-(-size // s) for size, s in zip(sizes[:-1], strides)), last]
    elements = math.prod(strides) * groups * inputs
    elements += math.prod(conv.window[:-1]) * meet * y.shape[-1]
    blocks = Blocks.of(len(y), places[0], elements * math.prod(places[1:]))
    counts = (blocks.all_rows, *places[1:-1])
    around = [
        (-min(shift), max(shift) + count - results)
        for shift, count, results in zip(shifts, counts, conv.results)
    ]
    y = _padded(y, [*around, (meet - 1 - first, first + last - conv.results[-1])])
    # From (..., window, inputs, outputs) to (..., meet, outputs, groups, stride, inputs).
    ends = [(0, 0)] * (n - 1) + [(0, meet * stride - conv.window[-1]), (0, 0)]
    k = _padded(k[None], ends)[0]
    k = k.reshape(*conv.window[:-1], meet, stride, inputs, groups, outputs)
    k = lax.rev(k, [n - 1]).transpose(*range(n), n + 3, n + 2, n, n + 1)

    def of_phase(part: jax.Array, met: Sequence[Sequence[tuple[int, int]]]) -> jax.Array:
        """The elements of one phase of every axis but the last."""
        lengths = (blocks.rows, *places[1:])
        shape = (blocks.examples, *lengths)
        pairs = list(itertools.product(*met))
        if not pairs:  # between windows
            return jnp.zeros((*shape[:n], sizes[-1], groups * inputs), part.dtype)
        rows = [[shift - min(s) for (shift, _), s in zip(pair, shifts)] for pair in pairs]
        taps = [(*row, column) for row in rows for column in range(meet)]
        kernel = jnp.stack([k[tuple(tap for _, tap in pair)] for pair in pairs])
        kernel = _by_group(kernel.reshape(len(taps) * outputs, -1), groups)
        windows = _windows(part, taps, lengths, (1,) * n, groups)
        result = _product(conv, windows, kernel).reshape(groups, *shape, stride, inputs)
        result = jnp.moveaxis(result, 0, -2).reshape(*shape[:n], -1, groups * inputs)
        return lax.slice_in_dim(result, cut, cut + sizes[-1], axis=n)

    def of_all(part: jax.Array, axis: int, met: Sequence[Any]) -> jax.Array:
        """The elements of all phases of an axis and of those after it."""
        if axis == n - 1:
            return of_phase(part, met)
        parts = [of_all(part, axis + 1, (*met, phase)) for phase in phases[axis]]
        shape = parts[0].shape
        result = jnp.stack(parts, axis + 2).reshape(*shape[: axis + 1], -1, *shape[axis + 2 :])
        return result[:, :, : sizes[axis]] if axis else result

    def block(_: None, start: Any) -> tuple[None, jax.Array]:
        rows = blocks.rows + max(shifts[0]) - min(shifts[0])
        part = _part(y, blocks.examples, rows, start[0], blocks.row(start[1]), [(0, 0)] * n)
        return None, of_all(part, 0, ()).astype(y.dtype)

    u = lax.scan(block, None, blocks.starts())[1]
    u = u.reshape(len(y), blocks.all_rows * strides[0], *u.shape[3:])
    return conv.back("u", u[:, : sizes[0]])


def _phases(conv: Convolution, axis: int) -> list[list[tuple[int, int]]]:
    """For each element between two strides: which results it meets, counted from the stride's own,
    and with which elements of the kernel.
    """
    stride, window, (low, _) = conv.strides[axis], conv.window[axis], conv.padding[axis]
    return [
        [((q + low) // stride - t // stride, t) for t in range((q + low) % stride, window, stride)]
        for q in range(stride)
    ]


def _merged(conv: Convolution, u: jax.Array) -> tuple[Convolution, jax.Array]:
    """A convolution without its last axis where windows lie side by side: they are channels."""
    stride, size = conv.strides[-1], conv.sizes[-1]
    is_side_by_side = (
        conv.groups == conv.dilation[-1] == 1
        and stride == conv.window[-1]
        and conv.padding[-1] == (0, 0)
        and size % stride == 0
    )
    if not is_side_by_side:
        return conv, u
    sizes = (*conv.sizes[:-1], size // stride)
    window, strides = (*conv.window[:-1], 1), (*conv.strides[:-1], 1)
    u = u.reshape(*u.shape[:-2], size // stride, stride * u.shape[-1])
    return dataclasses.replace(conv, sizes=sizes, window=window, strides=strides), u


def _blocks(conv: Convolution, u: jax.Array, outputs: int) -> Blocks:
    """Of the results."""
    elements = math.prod(conv.window) * u.shape[-1] + outputs
    return Blocks.of(len(u), conv.results[0], elements * math.prod(conv.results[1:]))


def _input_windows(conv: Convolution, u: jax.Array, blocks: Blocks, start: Any) -> jax.Array:
    """All windows of the results of a block."""
    stride, low, spread = conv.strides[0], conv.padding[0][0], conv.dilation[0]
    rows, reach = (
        (count - 1) * stride + (conv.window[0] - 1) * spread + 1
        for count in (blocks.rows, blocks.all_rows)
    )
    padding = [(low, reach - low - u.shape[1]), *conv.padding[1:]]
    row = blocks.row(start[1]) * stride - low
    part = _part(u, blocks.examples, rows, start[0], row, padding)
    taps = itertools.product(*(range(0, w * d, d) for w, d in zip(conv.window, conv.dilation)))
    return _windows(part, taps, (blocks.rows, *conv.results[1:]), conv.strides, conv.groups)


def _part(
    array: jax.Array, examples: int, rows: int, example: Any, row: Any, padding: Pairs
) -> jax.Array:
    """Some examples and rows, in the type of sums; what is outside of the array is zero.

    Args:
        array: `(examples, rows, ..., channels)`.
        examples, rows: how many.
        example, row: the first of them. Rows may be outside.
        padding: along rows, how far they may be outside; along the other axes, what is added.
    """
    size = array.shape[1]
    if isinstance(row, int):
        taken, before, after = size, -row, row + rows - size
        first: Any = 0
    else:
        taken = min(rows, size)
        first = jnp.clip(row, 0, size - taken)
        before, after = max(0, padding[0][0]), max(0, padding[0][1]) + rows - taken
    part = _slice(array, example, first, examples, taken)
    part = _padded(part, [(before, after), *padding[1:]])
    if part.shape[1] != rows:
        part = _slice(part, 0, row - first + before, examples, rows)
    return part.astype(accumulator(array.dtype))


def _slice(array: jax.Array, example: Any, row: Any, examples: int, rows: int) -> jax.Array:
    rest = array.shape[2:]
    starts = [jnp.asarray(start, np.int32) for start in (example, row, *[0] * len(rest))]
    return lax.dynamic_slice(array, starts, (examples, rows, *rest), allow_negative_indices=False)


def _padded(array: jax.Array, padding: Pairs) -> jax.Array:
    """With zeros along the axes between the first and the last."""
    if not any(map(any, padding)):
        return array
    zero = jnp.zeros((), array.dtype)
    return lax.pad(array, zero, [(0, 0, 0), *((*pair, 0) for pair in padding), (0, 0, 0)])


def _windows(
    part: jax.Array, taps: Iterable[Ints], lengths: Ints, strides: Ints, groups: int
) -> jax.Array:
    """For each group a matrix with a row for each window: all channels of its taps."""
    ends = [(length - 1) * stride + 1 for length, stride in zip(lengths, strides)]
    columns = [
        lax.slice(
            part,
            (0, *tap, 0),
            (len(part), *(t + end for t, end in zip(tap, ends)), part.shape[-1]),
            (1, *strides, 1),
        )
        for tap in taps
    ]
    windows = jnp.concatenate(columns, -1).reshape(
        -1, len(columns), groups, part.shape[-1] // groups
    )
    return windows.transpose(2, 0, 1, 3).reshape(groups, len(windows), -1)


def _by_group(matrix: jax.Array, groups: int) -> jax.Array:
    """For each group a matrix with its columns, in the type of sums."""
    matrix = matrix.astype(accumulator(matrix.dtype))
    return matrix.reshape(len(matrix), groups, -1).swapaxes(0, 1)


def _product(conv: Convolution, a: jax.Array, b: jax.Array) -> jax.Array:
    """A product for each group."""
    if conv.groups == 1:
        return lax.dot(a[0], b[0], precision=conv.precision)[None]
    return lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,))), precision=conv.precision)
