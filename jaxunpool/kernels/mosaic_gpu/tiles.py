"""How a call is cut up into programs: what their threads share out, and where windows slide.

Windows slide along spatial axes. The other axes are parallel: batch, channels, and the windows of a
spatial axis that they tile (whose elements are then a short axis of their own). The threads of a
program hold a box along the parallel axes, in vectors of up to 16 bytes: the windows at one place
are such a box, and so is each of their elements. Positions along spatial axes are scalars, so that
a tap is a load, a border is a scalar condition, and nothing outside an array is ever touched.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.common import devices

THREADS = 128  # a warpgroup
VECTOR_BYTES = 16  # the widest access
SECTOR_BYTES = 32  # contiguous: the unit of a memory transaction
WINDOWS = 16  # per thread, at most: reads in flight hide the latency of memory
REGISTERS = 128  # for the values of a thread, at most
MAX_POSITIONS = 2**30  # positions are 32-bit integers
MAX_VOLUME = 32  # elements of a window: the loop over them is unrolled

Shift = tuple[int, ...]  # along every spatial axis


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A call cut up into programs.

    Parallel and spatial axes alternate, with parallel ones first and last.

    Attributes:
        geometry: with a single window along the axes that windows tile.
        parallel: sizes of the parallel axes.
        box: what a program covers of them.
        vector: elements per access.
        counts: sizes of the spatial axes, in windows or in cells.
        steps: what a program covers of them.
    """

    geometry: WindowGeometry
    parallel: tuple[int, ...]
    box: tuple[int, ...]
    vector: int
    counts: tuple[int, ...]
    steps: tuple[int, ...]

    @property
    def pooled(self) -> tuple[int, ...]:
        """Shape of the view of a pooled array that a kernel gets."""
        return self._view(self.geometry.output_shape)

    @property
    def unpooled(self) -> tuple[int, ...]:
        """Shape of the view of an unpooled array that a kernel gets."""
        return self._view(self.geometry.input_shape)

    @property
    def runs(self) -> list[tuple[range, int]]:
        """Spatial axes that are one axis of the views, each with the parallel axis behind it.

        Fewer axes mean simpler addresses, in which the compiler sees that vectors are aligned.
        """
        n = self.geometry.ndim
        ends = [i + 1 for i in range(n) if i + 1 == n or self.parallel[i + 1] > 1]
        return [(range(start, end), end) for start, end in zip([0, *ends], ends)]

    @property
    def extents(self) -> list[tuple[int, int]]:
        """Per axis, its size and how much of it a program covers."""
        sizes = zip(self.parallel, (*self.counts, 1))
        covered = zip(self.box, (*self.steps, 1))
        flat = itertools.chain.from_iterable
        return list(zip(flat(sizes), flat(covered)))

    def _view(self, sizes: Sequence[int]) -> tuple[int, ...]:
        shape = [self.parallel[0]]
        for axes, behind in self.runs:
            shape += [math.prod(sizes[i] for i in axes), self.parallel[behind]]
        return tuple(shape)

    def each_window(self) -> Iterator[Shift]:
        """The windows of a program, from the first."""
        return itertools.product(*map(range, self.steps))

    def each_element(self) -> Iterator[Shift]:
        """The elements of the cells of a program, from the first, column after column.

        What is read then serves a few elements in a row, and after that needs no registers.
        """
        sizes = zip(self.steps, self.geometry.strides)
        columns = itertools.product(*(range(n * stride) for n, stride in reversed(list(sizes))))
        return (column[::-1] for column in columns)

    def element(self, window: Shift, tap: Shift) -> Shift:
        """The distance of an element of a window from the first element of the first window."""
        axes = zip(self.geometry.spatial, window, tap)
        return tuple(axis.position(w, t) - axis.position(0) for axis, w, t in axes)

    def covering(self, element: Shift) -> Iterator[tuple[Shift, Shift]]:
        """The windows that have an element of the cells, and as which tap, in raster order."""
        axes = self.geometry.spatial
        pairs = (list(axis.covering(e)) for axis, e in zip(axes, element))
        for pair in itertools.product(*pairs):
            windows, taps = zip(*pair)
            yield windows, taps


def of_windows(geometry: WindowGeometry, shape: Sequence[int], dtype: Any) -> Tiles:
    """For a kernel that computes windows; `shape` is the full shape of the unpooled array."""
    g = _folded(geometry)
    return _tiles(
        g, _parallel(geometry, shape), dtype, g.output_shape, lambda g, n: len(elements_of(g, n))
    )


def of_cells(geometry: WindowGeometry, shape: Sequence[int], dtype: Any) -> Tiles:
    """For a kernel that computes cells, as `kernels.xla.cells` does."""
    g = _folded(geometry).in_cells
    counts = tuple(axis.cells for axis in g.spatial)

    def registers(g: WindowGeometry, steps: Sequence[int]) -> int:
        """A value and an offset per window, or a sum per element."""
        return max(2 * len(windows_of(g, steps)), math.prod(steps) * math.prod(g.strides))

    return _tiles(g, _parallel(geometry, shape), dtype, counts, registers)


def unsupported(
    primitive: str, geometry: WindowGeometry, shape: Sequence[int], dtype: Any, **options: Any
) -> str | None:
    """Why the kernels do not serve a call; None if they do.

    Args:
        primitive: `"select"`, `"gather"`, `"scatter"`, `"reduce"` or `"replicate"`.
        geometry: the windows.
        shape: full shape of the unpooled array.
        dtype: of the arrays that are not offsets.
        options: `duplicates`, `weighting`, `pattern`: any will do.
    """
    if jnp.dtype(dtype) not in (jnp.float32, jnp.bfloat16, jnp.float16):
        return f"{jnp.dtype(dtype)} (the kernels know float32, bfloat16 and float16)"
    if geometry.volume > MAX_VOLUME:
        return f"windows of more than {MAX_VOLUME} elements"
    if other := _other_gpu():
        return other
    if math.prod(shape) == 0:
        return "an empty array"
    if max(math.prod(geometry.input_shape), math.prod(geometry.output_shape)) > MAX_POSITIONS:
        return f"more than {MAX_POSITIONS} spatial positions"
    try:
        (of_cells if primitive in ("scatter", "replicate") else of_windows)(geometry, shape, dtype)
    except NotImplementedError as error:
        return str(error)
    return None


def missing() -> str | None:
    """Why the kernels cannot run on this machine, and what brings them; None if they can."""
    if not devices("cuda"):
        return "JAX finds no NVIDIA GPU; where there is one, `pip install 'jax[cuda13]'` brings it"
    return _other_gpu()


@functools.cache
def _other_gpu() -> str | None:
    """A GPU of this process that Mosaic GPU does not compile for."""
    capabilities = {str(device.compute_capability) for device in devices("cuda")}
    others = [c for c in capabilities if c.split(".")[0] not in ("9", "10")]
    return f"compute capability {others[0]} (the kernels need 9 or 10)" if others else None


def elements_of(g: WindowGeometry, steps: Sequence[int]) -> list[Shift]:
    """The elements of so many windows, from the first element of the first window."""
    axes = zip(steps, g.window_shape, g.strides, g.dilation)
    return list(
        itertools.product(
            *(sorted({w * s + t * d for w in range(n) for t in range(k)}) for n, k, s, d in axes)
        )
    )


def windows_of(g: WindowGeometry, steps: Sequence[int]) -> list[Shift]:
    """The windows that reach so many cells, from the one numbered like the first cell."""
    return list(itertools.product(*(axis.reaching(n) for axis, n in zip(g.spatial, steps))))


def _folded(g: WindowGeometry) -> WindowGeometry:
    """The geometry of one cell along axes that are tiled."""
    tiled = [axis.is_tiled for axis in g.spatial]
    return dataclasses.replace(
        g,
        input_shape=tuple(s if t else n for t, s, n in zip(tiled, g.strides, g.input_shape)),
        output_shape=tuple(1 if t else n for t, n in zip(tiled, g.output_shape)),
        padding=tuple((0, 0) if t else pad for t, pad in zip(tiled, g.padding)),
    )


def _parallel(g: WindowGeometry, shape: Sequence[int]) -> tuple[int, ...]:
    """Sizes of the parallel axes: leading axes, windows of tiled axes, channels."""
    tiled = [axis.outputs if axis.is_tiled else 1 for axis in g.spatial]
    leading, channels = shape[: g.axes[0]], shape[g.axes[-1] :][1:]
    return (math.prod(leading) * tiled[0], *tiled[1:], math.prod(channels))


def _tiles(
    g: WindowGeometry,
    parallel: tuple[int, ...],
    dtype: Any,
    counts: tuple[int, ...],
    registers: Callable[[WindowGeometry, Sequence[int]], int],
) -> Tiles:
    """The widest vectors, and as many of them per thread as are worth while."""
    itemsize = jnp.dtype(dtype).itemsize
    for vector, vectors in itertools.product((8, 4, 2, 1), (4, 2, 1)):
        if vector * itemsize > VECTOR_BYTES or vector * vectors > WINDOWS:
            continue
        each = itertools.product(*(range(1, min(n, vectors) + 1) for n in counts))
        choices = [steps for steps in each if vectors % math.prod(steps) == 0]
        # Neighbouring windows read some elements in common; neighbouring boxes do not.
        steps = min(choices, key=lambda steps: (-math.prod(steps), registers(g, steps)))
        box = _box(parallel, vector, vectors // math.prod(steps))
        if box is None:
            reason = f"batch and channels do not fill {THREADS} threads"
        elif registers(g, steps) * math.prod(box) > REGISTERS * THREADS:
            reason = "windows or strides too large for the registers of a thread"
        elif _beside(g, parallel, box) * itemsize < SECTOR_BYTES:
            reason = f"less than {SECTOR_BYTES} bytes side by side, in channels or tiled windows"
        else:
            return Tiles(g, parallel, box, vector, counts, steps)
    raise NotImplementedError(reason)


def _beside(g: WindowGeometry, parallel: tuple[int, ...], box: tuple[int, ...]) -> int:
    """Elements of a box that are side by side in memory, those of the same windows included."""
    goes_on = box[-1] == parallel[-1] and g.output_shape[-1] == 1
    return box[-1] * (g.input_shape[-1] * box[-2] if goes_on else 1)


def _box(parallel: tuple[int, ...], vector: int, vectors: int) -> tuple[int, ...] | None:
    """A box of so many vectors per thread, or an odd multiple, as long as can be along later axes.

    Only along an axis of a power of two do compilers see that vectors are aligned.
    """
    multiple = THREADS * vector * vectors
    box = [1] * len(parallel)
    box[-1] = math.gcd(parallel[-1], multiple)
    if vector == 1:
        box[-1], multiple = min(parallel[-1], multiple), THREADS
    if box[-1] % vector:
        return None
    missing = multiple // math.gcd(box[-1], multiple)
    for exact in (True, False):  # if False, the last two boxes along an axis overlap
        for i in reversed(range(len(box) - 1)):
            while (
                missing > 1
                and 2 * box[i] <= parallel[i]
                and not (exact and parallel[i] % (2 * box[i]))
            ):
                box[i], missing = 2 * box[i], missing // 2
    return tuple(box) if missing == 1 else None
