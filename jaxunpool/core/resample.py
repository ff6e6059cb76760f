"""Linear maps along one axis, a few neighbouring elements of the input for each of the output.

Interpolation and adaptive averages are such maps, one axis after the other. The transpose is
another, so gradients read too and scatter nothing: fast on CPU, the same bits every time on GPU.

A map is a few numbers. Which elements it reads, and their weights, the program computes from the
elements' numbers, in exact integers where positions are fractions. So neither the time to trace
nor the program grows with the sizes.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching

from jaxunpool.core import backends, lowering
from jaxunpool.core.backends import Implementation, check_plain
from jaxunpool.core.calls import Call
from jaxunpool.core.carriers import carried, carrier
from jaxunpool.core.eager import eager
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import MAX_INT32, Plane
from jaxunpool.kernels import common
from jaxunpool.kernels.common import accumulator

# Up to here the elements are slices in one fused program; beyond, a loop keeps it small.
UNROLLED_TAPS = 16
# Up to so many pairs a search compares all of them, in one pass.
SMALL_SEARCH = 2**21
# Up to so many bytes XLA's fused program enlarges runs of channels faster, within the caches.
SMALL_RESULT = 2**25
# Up to here runs of equal elements are counted; beyond, there is a bound.
COUNTED_RUNS = 2**20


class Taps(NamedTuple):
    """What each element of a result reads.

    Attributes:
        start: the first element it reads.
        weights: `(taps, result)`, of the elements from there on. Weight 0 stands for no tap at all.
        gapless: so many taps from the first on have no weight 0.
    """

    start: jax.Array
    weights: jax.Array
    gapless: int


class Readers(NamedTuple):
    """Which elements of the output may read each element of the input.

    Attributes:
        start: the first.
        most: how many may.
        gapless: so many do.
    """

    start: jax.Array
    most: int
    gapless: int


@dataclasses.dataclass(frozen=True)
class AxisMap(abc.ABC):
    """A linear map along one axis.

    Attributes:
        size: of the input.
        output: of the result.
        weighted: whether there are weights other than 0 and 1.
    """

    size: int
    output: int
    weighted: ClassVar[bool] = False

    @abc.abstractmethod
    def rows(self, real: Any) -> Taps:
        """What each element of the output reads, with weights of type `real`."""

    @abc.abstractmethod
    def readers(self) -> Readers:
        """Which elements of the output may read each element of the input."""

    def columns(self, real: Any) -> Taps:
        """The transpose: which elements of the output read each element of the input."""
        start, most, gapless = self.readers()
        first, weights = lax.optimization_barrier(self.rows(real)[:2])
        row = start[None] + _column(most)
        inside = jnp.clip(row, 0, self.output - 1)
        tap = lax.iota(jnp.int32, self.size)[None] - _get(first, inside)
        reads = (row == inside) & (tap >= 0) & (tap < len(weights))
        weights = _get(weights, jnp.clip(tap, 0, len(weights) - 1), inside)
        return Taps(start, jnp.where(reads, weights, 0), gapless)

    def divisors(self) -> jax.Array | None:
        """What the output is divided by, element by element, if by anything."""
        return None


@dataclasses.dataclass(frozen=True)
class Mean(AxisMap):
    """The means of `windows`. Sums are divided: the mean of equal numbers is one of them."""

    def rows(self, real: Any) -> Taps:
        """Ones."""
        start, count = windows(self.size, self.output)
        taps = _column(widest_window(self.size, self.output))
        return Taps(start, (taps < count[None]).astype(real), -(-self.size // self.output))

    def readers(self) -> Readers:
        """The windows that hold an element share the output among the input by the same rule."""
        start, _ = windows(self.output, self.size)
        return Readers(start, widest_window(self.output, self.size), -(-self.output // self.size))

    def divisors(self) -> jax.Array:
        """The sizes of the windows."""
        return windows(self.size, self.output)[1]


@dataclasses.dataclass(frozen=True)
class Nearest(AxisMap):
    """The element `floor((i + shift) * step)`, from a product in float64 or in float32.

    PyTorch's rule: where two elements are equally near, rounding decides, in the end to float32.
    (With a shift its bits end at outputs of 2**23 elements: beyond, `i + shift` is rounded here,
    and is a double there.)
    """

    step: float
    shift: float
    double: bool

    def _sources(self, numbers: Any, module: Any) -> Any:
        real = np.float64 if self.double else np.float32
        position = ((numbers.astype(real) + real(self.shift)) * real(self.step)).astype(np.float32)
        return module.minimum(module.floor(position).astype(np.int32), np.int32(self.size - 1))

    def rows(self, real: Any) -> Taps:
        """One element each."""
        sources = self._sources(lax.iota(jnp.int32, self.output), jnp)
        return Taps(sources, jnp.ones((1, self.output), real), gapless=1)

    def readers(self) -> Readers:
        """A search: there is no formula for where roundings put the borders."""
        sources = lax.optimization_barrier(self._sources(lax.iota(jnp.int32, self.output), jnp))
        method = "compare_all" if self.size * self.output <= SMALL_SEARCH else "scan"
        start = jnp.searchsorted(sources, lax.iota(jnp.int32, self.size), method=method)
        return Readers(start.astype(jnp.int32), *self._runs())

    def _runs(self) -> tuple[int, int]:
        """The most and the fewest elements of the output that read the same one, or bounds."""
        if self.output <= COUNTED_RUNS:
            runs = np.bincount(self._sources(np.arange(self.output), np), minlength=1)
            return int(runs.max()), int(runs.min()) if len(runs) == self.size else 0
        # Each border of a run is rounded twice, by as much as float32 cannot tell apart.
        lost = self.output >> 22
        return min(math.ceil(1 / self.step) + 1 + 2 * lost, self.output), 0


@dataclasses.dataclass(frozen=True)
class Kernel(AxisMap):
    """A symmetric kernel laid over the input around the position of each element of the output.

    Element `i` lies at `(slope * i + offset) / unit`, and reads the elements less than
    `reach * width / unit` away. The integers are exact, and so are distances, which are multiples
    of `1 / unit`, up to `_exact`.

    Attributes:
        slope, offset, unit: the position.
        width: the unit of the kernel's argument; `unit` or, where the kernel is widened, more.
        a: of Keys' cubic kernel, which reaches two units; None: linear, which reaches one.
        normalised: weights are divided by their sum over the input. Otherwise the elements beyond
            an end have the value of the outermost.
    """

    weighted: ClassVar[bool] = True

    slope: int
    offset: int
    unit: int
    width: int
    a: float | None
    normalised: bool

    @classmethod
    def at(
        cls,
        size: int,
        output: int,
        step: Fraction,
        centred: bool,
        a: float | None,
        antialias: bool,
    ) -> AxisMap:
        """The kernel at `i * step`, or if centred at `(i + 0.5) * step - 0.5`."""
        if size == 1:
            return Mean(size, output)  # all kernels average here
        p, q = step.numerator, step.denominator
        slope, offset, unit = (2 * p, p - q, 2 * q) if centred else (p, 0, q)
        common = math.gcd(slope, offset, unit)
        slope, offset, unit = slope // common, offset // common, unit // common
        # A step of 0 is that of a single element. Its position does not depend on the slope, which
        # `readers` divides by.
        return cls(
            size=size,
            output=output,
            slope=slope or unit,
            offset=offset,
            unit=unit,
            width=max(slope, unit) if antialias else unit,
            a=a,
            normalised=antialias,
        )

    @property
    def _reach(self) -> int:
        return self.width * (1 if self.a is None else 2)

    def _exact(self, real: Any) -> Any:
        """A type for distances: exact unless a float32 array needs integers of 28 bits or more."""
        if real == np.float64:
            return real
        return np.int32 if max(self.slope, self.width) < 2**27 else real

    def rows(self, real: Any) -> Taps:
        """The kernel at the elements within its reach."""
        exact = self._exact(real)
        before, rest = divide(self.output, self.slope, self.offset - self._reach, self.unit)
        most, gapless = self._taps(self.output, self.slope, self.offset, self.unit, self.size)
        taps = _column(most)
        elements = before[None] + 1 + taps
        # From the first element within reach: exact, as are the distances, which are small.
        above = (rest.dtype.type(self.unit) - rest).astype(exact) - exact(self._reach)
        distances = taps.astype(exact) * exact(self.unit) + above[None]
        if self.a is None:
            weights = self._triangle(distances)
        else:
            weights = self._cubic(self.a, distances, real)
        inside = (elements >= 0) & (elements < self.size)
        kept = jnp.where(inside, weights, 0)
        if not self.normalised:  # elements beyond the input repeat the outermost ones
            below = functools.reduce(jnp.add, jnp.where(elements < 0, weights, 0))
            beyond = functools.reduce(jnp.add, jnp.where(elements >= self.size, weights, 0))
            kept += jnp.where(elements == 0, below[None], 0)
            kept += jnp.where(elements == self.size - 1, beyond[None], 0)
        if self.a is None:
            kept = self._over_width(kept, real)
        if self.normalised:
            kept /= kept.sum(0, keepdims=True)
        # Taps below the input have weight 0.
        start = jnp.maximum(elements[0], 0)
        columns = lax.iota(jnp.int32, self.output)[None]
        taps = taps[: self.size] + (start - elements[0])[None]
        kept = jnp.where(taps < most, _get(kept, jnp.minimum(taps, most - 1), columns), 0)
        return Taps(start, kept, gapless)

    def readers(self) -> Readers:
        """The elements of the output whose positions are within reach."""
        before, _ = divide(self.size, self.unit, -self.offset - self._reach, self.slope)
        most, gapless = self._taps(self.size, self.unit, -self.offset, self.slope, self.output)
        return Readers(jnp.maximum(before + 1, 0), min(most, self.output), gapless)

    def _taps(self, count: int, slope: int, offset: int, unit: int, size: int) -> tuple[int, int]:
        """How many of `size` elements, `unit` apart, are within reach of `slope * i + offset`.

        At most, wherever they end, and at least, for `i` from 0 to `count`.
        """
        common = math.gcd(slope, unit)
        least = (self._reach - self.offset) % common or common  # above the lower end
        most = -(-(2 * self._reach - least) // unit)
        if self.a is not None and self.offset % common == 0:
            return most, 0  # some may lie where a cubic kernel is 0
        at_first = -(-(self._reach + offset) // unit)
        at_last = size - 1 - (slope * (count - 1) + offset - self._reach) // unit
        return most, max(min(at_first, at_last, -(-2 * self._reach // unit) - 1, size), 0)

    def _triangle(self, distances: jax.Array) -> jax.Array:
        """In multiples of `1 / width`: added up while exact."""
        return jnp.maximum(distances.dtype.type(self.width) - abs(distances), 0)

    def _cubic(self, a: float, distances: jax.Array, real: Any) -> jax.Array:
        """Keys' cubic convolution kernel, as products: 0 where it is, and accurate nearby."""
        width = distances.dtype.type(self.width)
        d, to_one, to_two = (
            self._over_width(n, real)
            for n in (abs(distances), width - abs(distances), 2 * width - abs(distances))
        )
        inner = to_one * (1 + d * (1 - (a + 2) * d))
        outer = -a * to_one * to_two * to_two
        return jnp.where(to_one >= 0, inner, jnp.where(to_two > 0, outer, 0))

    def _over_width(self, numerators: jax.Array, real: Any) -> jax.Array:
        # Behind a barrier: XLA turns division by a constant into a product with its reciprocal.
        return numerators.astype(real) / lax.optimization_barrier(jnp.asarray(self.width, real))


def divide(count: int, slope: int, offset: int, unit: int) -> tuple[jax.Array, jax.Array]:
    """Floor and remainder of `(slope * i + offset) / unit` for `i` below `count`, exactly.

    `slope` and `unit` are below 2**32, and the floors int32. The remainders are int32 where all
    numbers on the way are, uint32 otherwise.
    """
    whole_slope, slope = divmod(slope, unit)
    whole_offset, offset = divmod(offset, unit)
    if max(slope * (count - 1) + offset, unit) > MAX_INT32:
        quotient, rest = _divide_by_digits(count, slope, offset, unit)
    else:  # not all tools that read programs can calculate with unsigned integers
        dividend = lax.iota(jnp.int32, count) * np.int32(slope) + np.int32(offset)
        quotient = lax.div(dividend, jnp.full_like(dividend, unit))
        rest = dividend - quotient * np.int32(unit)
    # Integer parts of either sign add up modulo 2**32.
    numbers = lax.iota(jnp.int32, count)
    wholes = (np.array(n % 2**32, np.uint32).view(np.int32) for n in (whole_slope, whole_offset))
    return quotient + numbers * next(wholes) + next(wholes), rest


def _divide_by_digits(
    count: int, slope: int, offset: int, unit: int
) -> tuple[jax.Array, jax.Array]:
    """`divide` by hand, one digit of `i` after the other, so that nothing needs more than 32 bits.

    `slope` and `offset` are less than `unit`. Remainders are uint32.
    """
    numbers = lax.iota(jnp.uint32, count)
    d, a = np.uint32(unit), np.uint32(slope)
    width = max(31 - unit.bit_length(), 1)  # of a digit, in bits
    digits = -(-(count - 1).bit_length() // width)

    def add(quotient: Any, rest: Any, more: Any) -> Any:
        carry = rest >= d - more  # rest + more >= d, without overflow
        rest = jnp.where(carry, rest - (d - more), rest + more)
        return quotient + carry.astype(np.uint32), rest

    def step(t: Any, state: Any) -> Any:
        quotient, rest = state
        shift = lax.convert_element_type((digits - 1 - t) * width, jnp.uint32)
        digit = (numbers >> shift) & np.uint32(2**width - 1)
        if unit >= 2**30:
            quotient, rest = add(quotient + quotient, rest, rest)
            return add(quotient, rest, digit * a)
        dividend = (rest << np.uint32(width)) + digit * a
        part = lax.div(dividend, jnp.full_like(dividend, d))
        return (quotient << np.uint32(width)) + part, dividend - part * d

    state = (jnp.zeros_like(numbers), jnp.zeros_like(numbers))
    quotient, rest = lax.fori_loop(0, digits, step, state)
    quotient, rest = add(quotient, rest, np.uint32(offset))
    return lax.bitcast_convert_type(quotient, jnp.int32), rest


@functools.partial(jax.jit, static_argnums=(0, 1))
def windows(size: int, output: int) -> tuple[jax.Array, jax.Array]:
    """First element of each of `output` windows that share `size` elements, and their number.

    Window `i` goes from `floor(i * size / output)` to `ceil((i + 1) * size / output)`.
    """
    start, rest = divide(output, size, 0, output)
    whole, part = divmod(size, output)
    integer = rest.dtype.type
    count = whole + (rest >= integer(max(1 - part, 0))).astype(np.int32)  # rest + part > 0
    return start, count + (rest > integer(output - part)).astype(np.int32)


def widest_window(size: int, output: int) -> int:
    """The largest number of elements of a window."""
    # Where it starts, remainders are multiples of the common divisor.
    return -(-(size + output - math.gcd(size, output)) // output)


def _get(table: jax.Array, *indices: jax.Array) -> jax.Array:
    """Elements at indices known to lie inside."""
    return table.at[indices].get(mode="promise_in_bounds", wrap_negative_indices=False)


def _column(count: int) -> jax.Array:
    """0, 1, 2 ... down a column."""
    return lax.iota(jnp.int32, count)[:, None]


Plan = tuple[tuple[AxisMap, int], ...]  # with the axis of each


def resample(
    x: jax.Array, maps: Sequence[AxisMap], axes: Sequence[int], implementation: Implementation
) -> jax.Array:
    """The maps applied to their axes in turn, those that shrink an axis most first.

    16-bit floats are added in float32 and rounded once.
    """
    check_plain(implementation, "resampling")

    def first(i: int) -> tuple[float, int]:
        ratio = maps[i].output / maps[i].size
        # Of two alike, the one that leaves the longer runs of elements to the other.
        return ratio, i if ratio < 1 else -i

    plan = tuple((maps[i], axes[i]) for i in sorted(range(len(axes)), key=first))
    x = lowering.gathered(x, axes)
    return RESAMPLE.bind(x, plan=plan, transposed=False, implementation=implementation)


class Table(NamedTuple):
    """A map along an axis as arrays.

    Attributes:
        axis: counted from the last.
        elements: `(taps, outputs)`, of the input.
        weights: likewise; 0 stands for no tap at all.
        divisors: of the outputs, or of a transposed map's inputs; None: none.
        gapless: so many taps from the first on have no weight 0.
        weighted: whether there are weights other than 0 and 1.
    """

    axis: int
    elements: jax.Array
    weights: jax.Array
    divisors: jax.Array | None
    gapless: int
    weighted: bool


def tables(shape: Sequence[int], dtype: Any, plan: Plan, transposed: bool) -> list[Table]:
    """The tables of the maps in the order in which `apply` takes them, with weights of a type."""
    real = jnp.dtype(dtype).type
    found = []
    for axis_map, axis in plan[::-1] if transposed else plan:
        start, weights, gapless = (axis_map.columns if transposed else axis_map.rows)(real)
        elements = jnp.clip(start[None] + _column(len(weights)), 0, shape[axis] - 1)
        counts = axis_map.divisors()
        divisors = None if counts is None else counts.astype(real)
        found.append(Table(axis, elements, weights, divisors, gapless, axis_map.weighted))
    return found


@functools.partial(jax.jit, static_argnames=("plan", "transposed"))
def _apply(x: jax.Array, plan: Plan, transposed: bool) -> jax.Array:
    return apply(x, tables(x.shape, accumulator(x.dtype), plan, transposed), transposed)


def apply(x: jax.Array, tables: Sequence[Table], transposed: bool) -> jax.Array:
    """The maps, or their transposes."""
    y = x.astype(accumulator(x.dtype))
    # The barrier keeps XLA from recomputing the tables for every element that reads them, and from
    # making division by a constant a product.
    fenced = lax.optimization_barrier([table[1:4] for table in tables])
    for table, (elements, weights, divisors) in zip(tables, fenced):
        table = table._replace(elements=elements, weights=weights)
        if divisors is not None:
            divisors = _aligned(divisors, table.axis, y.ndim)
        if divisors is not None and transposed:
            y = common.divide(y, divisors)
        y = _along(y, table)
        if divisors is not None and not transposed:
            y = common.divide(y, divisors)
    return y.astype(x.dtype)


def _along(x: jax.Array, table: Table) -> jax.Array:
    """The sums along one axis, in the order of the taps."""
    axis, elements, weights, _, gapless, weighted = table

    def tap(t: Any, gapless: bool = False) -> jax.Array:
        element, weight = (lax.dynamic_index_in_dim(a, t, 0, False) for a in (elements, weights))
        weight = _aligned(weight, axis, x.ndim)
        value = jnp.take(x, element, axis=axis % x.ndim, mode="clip")
        if weighted:
            value *= weight
        # Mask: infinity times a weight of 0, which means no tap, is NaN.
        return value if gapless else jnp.where(weight != 0, value, 0)

    count = len(weights)
    if count > UNROLLED_TAPS:
        return lax.fori_loop(1, count, lambda t, y: y + tap(t), tap(0))
    return functools.reduce(jnp.add, [tap(t, t < gapless) for t in range(count)])


def _aligned(vector: jax.Array, axis: int, ndim: int) -> jax.Array:
    shape = [1] * ndim
    shape[axis] = -1
    return vector.reshape(shape)


# A primitive with a transpose of its own that gathers; that of `_apply` by JAX would scatter.
RESAMPLE = Primitive("jaxunpool_resample")


@RESAMPLE.def_abstract_eval
def _type(x: Any, **parameters: Any) -> Any:
    return jax.make_jaxpr(functools.partial(_plain, **parameters))(x).out_avals[0]


def _batch(arrays: Any, dims: Any, **parameters: Any) -> Any:
    return RESAMPLE.bind(jnp.moveaxis(arrays[0], dims[0], 0), **parameters), 0


def _transpose(dy: Any, _: Any, *, transposed: bool, **parameters: Any) -> Any:
    return [RESAMPLE.bind(dy, transposed=not transposed, **parameters)]


def choose(
    arrays: Sequence[Any],
    platform: str,
    export: bool = False,
    *,
    plan: Plan,
    transposed: bool,
    implementation: Implementation,
) -> backends.Choice:
    """What maps along axes run on."""
    x, call = arrays[0], _call(arrays[0], plan, implementation)
    chosen = backends.choose(call, [x], platform, export=export)
    if implementation is not None or chosen.implementation != "native_cpu":
        return chosen
    before = after = math.prod(x.shape) * x.dtype.itemsize
    for m, _ in plan:
        after = after // m.output * m.size if transposed else after // m.size * m.output
    if before < after <= SMALL_RESULT and call.geometry.data_format == "channels_last":
        return backends.Choice("xla", "xla takes 0.5 to 0.7 times as long, by channels up to 32 MB")
    return chosen


def _call(x: Any, plan: Plan, implementation: Implementation) -> Call:
    """On the axes from the first that is mapped to the last."""
    axes = [axis for _, axis in plan]
    stop = max(axes) + 1
    plane = Plane(
        input_shape=x.shape[min(axes) : stop or None],
        data_format="channels_last" if stop else "channels_first",
    )
    return Call("resample", plane, implementation)


def _plain(x: jax.Array, *, plan: Plan, transposed: bool, **_: Any) -> jax.Array:
    run = functools.partial(_apply, plan=plan, transposed=transposed)
    return carried(run, _call(x, plan, "xla"), x.dtype)(x)


def _kernel(backend: str, x: jax.Array, *, plan: Plan, transposed: bool, **_: Any) -> jax.Array:
    call = _call(x, plan, None)
    dtype = carrier(call, x.dtype)
    real = accumulator(dtype) if jnp.issubdtype(dtype, jnp.floating) else np.float32
    found = tables(x.shape, real, plan, transposed)
    return backends.kernel(call, [x], backend)(x, found, transposed)


RESAMPLE.def_impl(functools.partial(eager, RESAMPLE))
ad.deflinear2(RESAMPLE, _transpose)
batching.primitive_batchers[RESAMPLE] = _batch
lowering.register(RESAMPLE, lowering.kernel_or_plain(RESAMPLE, choose, _plain, _kernel))
