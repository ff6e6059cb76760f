"""Convolutions as primitives: each is the derivative of another.

`sum(u * k * y)` over all elements `u` of an input that an element `k` of the kernel takes to a
result `y` is linear in each of the three arrays. Its derivatives are the convolution itself (`"y"`,
from `u` and `k`), its gradient by the input (`"u"`, from `k` and `y`: a transposed convolution),
and its gradient by the kernel (`"k"`, from `u` and `y`), so that one rule serves all three.

XLA's CPU compiler makes the last two of them convolutions with spread out inputs, or with windows
as large as images. Here a kernel in C++ makes all three. Where there is none, they are one
convolution for all phases of a stride, or products of matrices (`im2col`).
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from jaxunpool.core import backends, im2col, lowering
from jaxunpool.core.eager import eager
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import Axis
from jaxunpool.core.messages import shown
from jaxunpool.kernels import varying

Pairs = tuple[tuple[int, int], ...]
Ints = tuple[int, ...]

SMALL = 48 * 48  # results of an image, up to which XLA's gradient by the kernel is fast
MOST = 64  # elements of a window, of which each is a slice in a program
LONGEST = 8 * im2col.ELEMENTS  # elements in the matrix of one row of results: 32 MB of float32
SHORT = 32  # positions of the results, below which XLA is faster than the kernel in C++
NARROW = 4  # channels of what is written, up to which it is
FEW = 8  # channels of the input, below which rows of a matrix are too short
FLOATS = tuple(map(jnp.dtype, ["float16", "bfloat16", "float32", "float64"]))
ARRAYS = {"y": "uk", "u": "ky", "k": "uy"}  # what each of the three is made of
PRIMITIVES = {name: Primitive(f"jaxunpool_convolution_{name}") for name in ARRAYS}


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A convolution, as it is asked for.

    Attributes:
        sizes: spatial, of the input.
        window, strides, padding, dilation: per spatial axis.
        layout: where the axes of the three arrays are.
        groups: into how many groups channels are divided.
        precision: as in `jax.lax.conv_general_dilated`.
    """

    sizes: Ints
    window: Ints
    strides: Ints
    padding: Pairs
    dilation: Ints
    layout: lax.ConvDimensionNumbers
    groups: int = 1
    precision: Any = None

    @property
    def ndim(self) -> int:
        """How many spatial axes there are."""
        return len(self.sizes)

    @property
    def results(self) -> Ints:
        """Spatial sizes of the result."""
        axes = zip(self.sizes, self.window, self.strides, self.padding, self.dilation)
        return tuple(
            max(0, (n + low + high - (k - 1) * d - 1) // s + 1) for n, k, s, (low, high), d in axes
        )

    @property
    def spatial(self) -> tuple[Axis, ...]:
        """The windows along each axis."""
        pads = zip(*self.padding)
        return tuple(
            map(Axis, self.sizes, self.results, self.window, self.strides, self.dilation, *pads)
        )

    @property
    def unreached(self) -> Ints:
        """How far padding at the low end exceeds the reach of a window, if it does."""
        axes = zip(self.window, self.padding, self.dilation)
        return tuple(max(low - (k - 1) * d, 0) for k, (low, _), d in axes)

    @property
    def is_slow(self) -> bool:
        """Whether XLA is slow on a CPU, whichever of the three it makes."""
        one, strided = math.prod(self.window) == 1, max(self.strides) > 1
        return self.groups > 1 or self.ndim == 3 or one or strided

    def axes(self, name: str) -> Ints:
        """Of `u` or `y` the axes of the batch, of space and of channels; of `k` those of the
        window, of input channels and of outputs."""
        at, layout = {"u": 0, "k": 1, "y": 2}[name], self.layout
        first, second, *spatial = (layout.lhs_spec, layout.rhs_spec, layout.out_spec)[at]
        return (*spatial, second, first) if name == "k" else (first, *spatial, second)

    def last(self, name: str, array: jax.Array) -> jax.Array:
        """One of the arrays with its axes in that order."""
        return array.transpose(self.axes(name))

    def back(self, name: str, array: jax.Array) -> jax.Array:
        """Such an array in its own order."""
        return array.transpose(np.argsort(self.axes(name)))

    def shape(self, name: str, have: dict[str, Any]) -> Ints:
        """The shape of one of `u`, `k` and `y`, from the two others."""
        u, k, y = (
            [have[other].shape[axis] for axis in self.axes(other)] if other in have else []
            for other in "uky"
        )
        shape = {
            "u": lambda: (y[0], *self.sizes, k[-2] * self.groups),
            "k": lambda: (*self.window, u[-1] // self.groups, y[-1]),
            "y": lambda: (u[0], *self.results, k[-1]),
        }[name]()
        return tuple(shape[axis] for axis in np.argsort(self.axes(name)))

    def bind(self, name: str, *arrays: jax.Array) -> Any:
        """One of the three from the two others, in the order of `ARRAYS`."""
        return PRIMITIVES[name].bind(*arrays, name=name, conv=self)


def on_known_mesh(*arrays: jax.Array) -> bool:
    """Whether types know of a mesh, with Explicit or Manual axes: there `plain` is left to JAX."""
    meshes = (jax.typeof(array).sharding.mesh for array in arrays)
    return any(map(varying.axes, arrays)) or any(mesh.explicit_axes for mesh in meshes)


def as_precision(precision: Any) -> Any:
    """A precision that can be hashed, or a TypeError; which ones there are, is left to `lax`."""
    precision = tuple(precision) if isinstance(precision, list) else precision
    try:
        hash(precision)
    except TypeError:
        raise TypeError(
            f"precision: expected one of lax.PrecisionLike, got {shown(precision)}"
        ) from None
    return precision


# What XLA makes of each


def plain(name: str, conv: Convolution, *arrays: Any) -> jax.Array:
    """One of the three from the two others, by XLA's convolution."""
    numbers = (*conv.sizes, *itertools.chain(*conv.padding))
    if all(isinstance(number, int) for number in numbers) and min(map(min, conv.padding)) < 0:
        return _cropping(name, conv, *arrays)
    if name == "y":
        return _convolve(conv, *arrays)
    if name == "u":
        return _spread(conv, *arrays)
    u, y = arrays
    missing = jax.ShapeDtypeStruct(conv.shape("k", {"u": u, "y": y}), u.dtype)
    return jax.linear_transpose(functools.partial(_convolve, conv, u), missing)(y)[0]


def _cropping(name: str, conv: Convolution, *arrays: Any) -> jax.Array:
    """With negative padding cut off the input, which XLA's partitioner gets wrong."""
    cuts, pads = [], []
    for size, (low, high) in zip(conv.sizes, conv.padding):
        start = min(size, max(0, -low))
        stop = max(start, size - max(0, -high))
        # More may be cut off than there is: then padding alone is left.
        left = (max(0, low), max(0, high)) if stop > start else (size + low + high, 0)
        cuts.append((start, stop))
        pads.append(left)
    sizes = tuple(stop - start for start, stop in cuts)
    inner = dataclasses.replace(conv, sizes=sizes, padding=tuple(pads))
    if name == "u":
        u = plain(name, inner, *arrays)
        around = [(0, 0, 0)] * u.ndim
        for axis, size, (start, stop) in zip(conv.axes("u")[1:], conv.sizes, cuts):
            around[axis] = (start, size - stop, 0)
        return lax.pad(u, jnp.zeros((), u.dtype), around)
    u = arrays[0]
    for axis, (start, stop) in zip(conv.axes("u")[1:], cuts):
        u = lax.slice_in_dim(u, start, stop, axis=axis)
    return plain(name, inner, u, arrays[1])


def _spread(conv: Convolution, k: jax.Array, y: jax.Array) -> jax.Array:
    """The gradient by the input: a convolution of `y`, spread out by the strides, with the kernel
    turned around.
    """
    n = conv.ndim
    k = conv.last("k", k)
    inputs, outputs = k.shape[-2], k.shape[-1] // conv.groups
    k = k.reshape((*conv.window, inputs, conv.groups, outputs))
    k = jnp.moveaxis(k, -1, n).swapaxes(n + 1, n + 2)  # outputs, groups, inputs
    spans = [(w - 1) * d for w, d in zip(conv.window, conv.dilation)]
    before = [span - low for span, (low, _) in zip(spans, conv.padding)]
    spread = [(o - 1) * s + 1 if o else 0 for o, s in zip(conv.results, conv.strides)]
    after = [
        size - length - b + span for size, length, b, span in zip(conv.sizes, spread, before, spans)
    ]
    # XLA's partitioner aborts the process for negative low padding: the result is cropped.
    crops = conv.unreached
    layout = conv.layout
    kernel = (n + 1, n, *range(n))
    u = lax.conv_general_dilated(
        y,
        lax.rev(k.reshape((*conv.window, outputs, conv.groups * inputs)), range(n)),
        (1,) * n,
        [(b + crop, a) for b, crop, a in zip(before, crops, after)],
        lhs_dilation=conv.strides,
        rhs_dilation=conv.dilation,
        dimension_numbers=lax.ConvDimensionNumbers(layout.out_spec, kernel, layout.lhs_spec),
        feature_group_count=conv.groups,
        precision=conv.precision,
    )
    for crop, axis in zip(crops, conv.axes("u")[1:]):
        u = lax.slice_in_dim(u, crop, None, axis=axis) if crop else u
    return u


def _convolve(conv: Convolution, u: jax.Array, k: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        u,
        k,
        conv.strides,
        conv.padding,
        rhs_dilation=conv.dilation,
        dimension_numbers=conv.layout,
        feature_group_count=conv.groups,
        precision=conv.precision,
    )


# Formulations for CPU


def by_phases(conv: Convolution, k: jax.Array, y: jax.Array) -> jax.Array:
    """The gradient by the input: elements at the same place between strides read the same part of
    the kernel, so that one convolution of `y` makes all of them, as channels.
    """
    n, groups, strides = conv.ndim, conv.groups, conv.strides
    k, y = conv.last("k", k), conv.last("y", y)
    many = tuple(-(-w // s) for w, s in zip(conv.window, strides))  # results that meet an element
    ends = [m * s - w for m, s, w in zip(many, strides, conv.window)]
    k = lax.pad(k, jnp.zeros((), k.dtype), [*((0, e, 0) for e in ends), (0, 0, 0), (0, 0, 0)])
    inputs, outputs = k.shape[-2], k.shape[-1] // groups
    # (m, s, ..., inputs of a group, groups, outputs) to (m, ..., outputs, groups, s, ..., inputs)
    k = k.reshape((*itertools.chain(*zip(many, strides)), inputs, groups, outputs))
    order = (*range(0, 2 * n, 2), 2 * n + 2, 2 * n + 1, *range(1, 2 * n, 2), 2 * n)
    k = k.transpose(order).reshape((*many, outputs, groups * math.prod(strides) * inputs))
    # The first result that matters, and how many places between strides there are from it on.
    first = [low // s for (low, _), s in zip(conv.padding, strides)]
    count = [
        -(-(low + size) // s) - f
        for (low, _), size, s, f in zip(conv.padding, conv.sizes, strides, first)
    ]
    pads = [(m - 1 - f, c + f - o) for m, f, c, o in zip(many, first, count, conv.results)]
    spatial = "XYZ"[:n]
    places = lax.conv_general_dilated(
        y,
        lax.rev(k, range(n)),
        (1,) * n,
        pads,
        dimension_numbers=(f"N{spatial}C", f"{spatial}IO", f"N{spatial}C"),
        feature_group_count=groups,
        precision=conv.precision,
    )
    # (batch, places, ..., groups, s, ..., inputs) to (batch, places * s, ..., groups * inputs)
    u = places.reshape((y.shape[0], *count, groups, *strides, inputs))
    order = (0, *itertools.chain(*((1 + i, n + 2 + i) for i in range(n))), n + 1, 2 * n + 2)
    u = u.transpose(order)
    u = u.reshape((y.shape[0], *(c * s for c, s in zip(count, strides)), groups * inputs))
    cut = [low - f * s for (low, _), f, s in zip(conv.padding, first, strides)]
    stops = [c + size for c, size in zip(cut, conv.sizes)]
    return conv.back("u", lax.slice(u, (0, *cut, 0), (u.shape[0], *stops, u.shape[-1])))


def compiled(name: str, conv: Convolution, *arrays: jax.Array) -> jax.Array:
    """One of the three by the kernel in C++, which takes channels last."""
    have = {other: conv.last(other, array) for other, array in zip(ARRAYS[name], arrays)}
    shape = conv.shape(name, dict(zip(ARRAYS[name], arrays)))
    shapes = {other: array.shape for other, array in have.items()}
    shapes[name] = tuple(shape[axis] for axis in conv.axes(name))
    spatial, examples = conv.spatial, shapes["y"][0]
    positions = math.prod(shapes["y"][:-1])
    is_one = all(axis == Axis(axis.size, axis.size) for axis in spatial)
    if name != "k" and is_one and positions < 2**31:
        # A product of two matrices, whose rows are positions.
        spatial, examples = (Axis(positions, positions),), 1
    sizes = (examples, conv.groups, shapes["k"][-2], shapes["k"][-1] // conv.groups)
    native = backends.folder("native_cpu")
    operands = (have[other] for other in "uyk" if other in have)
    return conv.back(name, native.convolve(name, spatial, sizes, shapes[name], *operands))


def is_compiled(name: str, conv: Convolution, shapes: dict[str, Ints], dtype: Any) -> bool:
    """Whether one of the three is for the kernel in C++.

    Args:
        name: of the result.
        conv: the convolution.
        shapes: of all three, with their axes as `Convolution.axes` has them.
        dtype: of all three.
    """
    (*positions, outputs), channels = shapes["y"], shapes["u"][-1]
    # What windows see of an axis, and what they step over.
    seen = [(a.outputs - 1) * a.stride + a.span for a in conv.spatial]
    steps = [max(a.outputs * a.stride, a.dilation, abs(a.low)) for a in conv.spatial]
    if max(seen[-1] * channels, *seen, *steps) > LONGEST or dtype not in FLOATS:
        return False
    if backends.folder("native_cpu").missing():
        return False
    if name == "k" or conv.is_slow:
        return True
    # The kernel is copied first, and columns fill vectors.
    return math.prod(positions) >= SHORT and (channels if name == "u" else outputs) > NARROW


def formulation(
    name: str, conv: Convolution, channels: int, outputs: int
) -> Callable[..., jax.Array]:
    """For a CPU without kernels the formulation that is the fastest, or never much slower.

    `benchmarks/NOTES.md` has the measurements.

    Args:
        name: of the result.
        conv: the convolution.
        channels, outputs: of the input and of the results.
    """
    strides, window = conv.strides, conv.window
    # A block has at least a row of results, and a program a slice for each element of the window.
    row = math.prod((*conv.results[1:], *window)) * (outputs if name == "u" else channels)
    fits = row <= LONGEST and math.prod(window) <= MOST and math.prod(strides[:-1]) <= MOST
    if name == "k" and fits and (conv.is_slow or math.prod(conv.results) > SMALL):
        return im2col.kernel_gradient
    if name == "y" and fits and conv.is_slow and conv.ndim > 1:
        return im2col.convolve
    if name == "u" and conv.is_slow and max(conv.dilation) == 1:
        exact = window != strides and not any(w % s for w, s in zip(window, strides))
        in_blocks = not exact or max(strides) == 1
        if fits and conv.ndim > 1 and in_blocks and channels >= FEW:
            return im2col.input_gradient
        if max(strides) > 1:
            return by_phases
    return functools.partial(plain, name)


# Rules


def _types(*avals: Any, name: str, conv: Convolution) -> Any:
    """Abstract evaluation."""
    if name == "y":
        jax.eval_shape(functools.partial(_convolve, conv), *avals)  # raises what `lax` does
    have = dict(zip(ARRAYS[name], avals))
    return avals[0].update(shape=conv.shape(name, have), weak_type=False)


def _jvp(primals: Any, tangents: Any, *, name: str, conv: Convolution) -> Any:
    """A term for each array with a tangent."""
    out = conv.bind(name, *primals)
    terms = [
        conv.bind(name, *primals[:k], tangent, *primals[k + 1 :])
        for k, tangent in enumerate(tangents)
        if type(tangent) is not ad.Zero
    ]
    zero = ad.Zero(jax.typeof(out).to_tangent_aval())
    return out, functools.reduce(jnp.add, terms) if terms else zero


def _transpose(ct: Any, *arrays: Any, name: str, conv: Convolution) -> Any:
    if type(ct) is ad.Zero:
        return [None, None]
    have = dict(zip(ARRAYS[name], arrays)) | {name: ct}
    return [
        conv.bind(k, *(have[other] for other in ARRAYS[k])) if ad.is_undefined_primal(a) else None
        for k, a in zip(ARRAYS[name], arrays)
    ]


def _batch(arrays: Any, dims: Any, *, name: str, conv: Convolution) -> Any:
    """Where the kernel is one for all, `vmap` is a larger batch; else each of them is a group.

    JAX makes groups of them too, of the axis of examples where the kernel is wanted: XLA's code for
    that reads outside of its arrays on CPU if a window lies in the padding (jax 0.10 and 0.12).
    """
    kernel = ARRAYS[name].find("k")
    sizes = [array.shape[dim] for array, dim in zip(arrays, dims) if dim is not None]
    if kernel < 0 or dims[kernel] is not None:
        if sizes[0] == 0:
            have = {n: _one(array, dim) for n, array, dim in zip(ARRAYS[name], arrays, dims)}
            return jnp.zeros((0, *conv.shape(name, have)), arrays[0].dtype), 0
        many = dataclasses.replace(conv, groups=sizes[0] * conv.groups)
        groups = map(functools.partial(_grouped, conv, sizes[0]), ARRAYS[name], arrays, dims)
        out, at = many.bind(name, *groups), conv.axes(name)[-1]
        channels = out.shape[at] // sizes[0]
        return out.reshape((*out.shape[:at], sizes[0], channels, *out.shape[at + 1 :])), at
    other = ARRAYS[name][1 - kernel]
    array, dim = arrays[1 - kernel], dims[1 - kernel]
    batch, size = conv.axes(other)[0], array.shape[dim]
    array = jnp.moveaxis(array, dim, batch)
    shape = (*array.shape[:batch], size * array.shape[batch + 1], *array.shape[batch + 2 :])
    operands = [arrays[kernel], array.reshape(shape)]
    out = conv.bind(name, *(operands if kernel == 0 else operands[::-1]))
    batch = conv.axes(name)[0]
    examples = out.shape[batch] // max(1, size)
    return out.reshape((*out.shape[:batch], size, examples, *out.shape[batch + 1 :])), batch


def _one(array: jax.Array, dim: int | None) -> Any:
    """The type of one of a stack of arrays."""
    shape = array.shape if dim is None else (*array.shape[:dim], *array.shape[dim + 1 :])
    return jax.ShapeDtypeStruct(shape, array.dtype)


def _grouped(conv: Convolution, size: int, name: str, array: jax.Array, dim: int | None) -> Any:
    """A stack of so many arrays, or one for all, with each one's channels as a group."""
    if dim is None:
        array, dim = jnp.broadcast_to(array, (size, *array.shape)), 0
    at = conv.axes(name)[-1]  # of the outputs, of a kernel
    array = jnp.moveaxis(array, dim, at)
    return array.reshape((*array.shape[:at], size * array.shape[at + 1], *array.shape[at + 2 :]))


def _lower(
    ctx: mlir.LoweringRuleContext,
    *values: Any,
    name: str,
    conv: Convolution,
    on_cpu: bool = False,
) -> Any:
    """Blocks and kernels want known sizes, and all examples on the device."""
    run: Callable[..., Any] = functools.partial(plain, name)
    sizes = [size for aval in (*ctx.avals_in, *ctx.avals_out) for size in aval.shape]
    if on_cpu and lowering.is_local(ctx) and all(isinstance(n, int) and n for n in sizes):
        have = dict(zip((*ARRAYS[name], name), (*ctx.avals_in, *ctx.avals_out)))
        shapes = {n: tuple(have[n].shape[axis] for axis in conv.axes(n)) for n in have}
        leaves = lowering.TOOL.get() or ctx.module_context.lowering_parameters.for_export
        if not leaves and is_compiled(name, conv, shapes, ctx.avals_out[0].dtype):
            run = functools.partial(compiled, name)
        elif not leaves or name != "y":  # other tools have convolutions of their own
            run = formulation(name, conv, shapes["u"][-1], shapes["y"][-1])

    def scoped(*arrays: jax.Array) -> jax.Array:
        with jax.named_scope(f"convolution_{name}"):  # what profilers show
            return run(conv, *arrays)

    return mlir.lower_fun(scoped, multiple_results=False)(ctx, *values)


for _primitive in PRIMITIVES.values():
    _primitive.def_abstract_eval(_types)
    _primitive.def_impl(functools.partial(eager, _primitive))
    batching.primitive_batchers[_primitive] = _batch
    ad.primitive_jvps[_primitive] = _jvp
    ad.primitive_transposes[_primitive] = _transpose
    mlir.register_lowering(_primitive, _lower)
    mlir.register_lowering(_primitive, functools.partial(_lower, on_cpu=True), platform="cpu")
