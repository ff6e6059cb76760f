"""One call of every public function, for the laws that hold for all of them."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import checkify

import jaxunpool as jup

# As programs, which need nothing of the host, not in eager mode either.
ones = jax.jit(jnp.ones, static_argnums=(0, 1))
square = jax.jit(jnp.square)
interop = jup.interop
WINDOW = {"window_shape": (3, 3), "strides": 2, "padding": 1}
KEY = jax.random.key(0)


@dataclasses.dataclass(frozen=True)
class Entry:
    """A function of one float array, `x` of `(*batch, 7, 8, 2)` or `y` of `(*batch, 4, 4, 2)`.

    Or of any other sizes: it takes its own from those of its argument.
    """

    run: Callable[[jax.Array], Any]
    of: str = "x"
    differentiable: bool = True
    integers: bool = True  # it takes them too

    def shape(self, scale: int = 1, batch: tuple[int, ...] = ()) -> tuple[int, ...]:
        """The shape of an argument, every size of which grows with the scale and stays as odd."""
        sizes = (8 * scale - 1, 8 * scale) if self.of == "x" else (4 * scale, 4 * scale)
        return (*batch, *sizes, 2 * scale)

    def loss(self, x: jax.Array) -> Any:
        """A scalar that depends on all floats of the result, not linearly."""
        return sum((leaf**3).sum() for leaf in floats(self.run(x)))


def batch_for(entry: Entry, count: int = 3) -> jax.Array:
    """So many arguments: normally distributed, with zeros, where norms have no derivative."""
    x = jax.random.normal(jax.random.key(1), entry.shape(batch=(count,)), jnp.float32)
    return x.at[:, :3, :3].set(0)


def floats(tree: Any) -> list[jax.Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)]


def pooled_sizes(x: jax.Array) -> tuple[int, int]:
    """`(4, 4)` for 7x8: the sizes that `WINDOW` gives."""
    return -(-x.shape[-3] // 2), -(-x.shape[-2] // 2)


def unpooled_sizes(y: jax.Array) -> tuple[int, int]:
    """`(7, 8)` for 4x4."""
    return 2 * y.shape[-3] - 1, 2 * y.shape[-2]


@jax.jit
def corner(x: jax.Array) -> jax.Array:
    """As much of `x` as a pooled array has."""
    height, width = pooled_sizes(x)
    return x[..., :height, :width, :]


def indices_of(x: jax.Array) -> jup.PoolIndices:
    return jup.max_pool_with_indices(x, **WINDOW)[1]


def geometry_of(x: jax.Array, data_format: str = "channels_last") -> jup.WindowGeometry:
    return dataclasses.replace(
        jup.WindowGeometry.for_input(x.shape, **WINDOW), data_format=data_format
    )


def validated(x: jax.Array) -> jax.Array:
    flat = indices_of(x).flat
    validate = functools.partial(jup.validate_indices, output_shape=x.shape[-3:-1])
    if isinstance(flat, jax.core.Tracer):
        validate = checkify.checkify(validate)
    validate(flat)
    return flat


def round_trip(into: Callable, out_of: Callable, data_format: str = "channels_last") -> Entry:
    """Indices to another framework's and back."""

    def run(x):
        theirs = into(indices_of(x))
        found = out_of(theirs, geometry_of(x, data_format))
        return theirs, found.offsets

    return Entry(run, differentiable=False)


TABLE = {
    "adaptive_avg_pool": Entry(
        lambda x: jup.adaptive_avg_pool(x, (x.shape[-3] // 2, x.shape[-2] // 2)), integers=False
    ),
    "adaptive_max_pool": Entry(
        lambda x: jup.adaptive_max_pool(x, (x.shape[-3] // 2, x.shape[-2] // 2))
    ),
    "adaptive_max_pool_with_indices": Entry(
        lambda x: jup.adaptive_max_pool_with_indices(x, (x.shape[-3] // 2, x.shape[-2] // 2))
    ),
    "avg_pool": Entry(lambda x: jup.avg_pool(x, **WINDOW), integers=False),
    "avg_unpool": Entry(
        lambda y: jup.avg_unpool(y, **WINDOW, output_shape=unpooled_sizes(y)), "y", integers=False
    ),
    "bed_of_nails_unpool": Entry(
        lambda y: jup.bed_of_nails_unpool(y, **WINDOW, output_shape=unpooled_sizes(y), position=1),
        "y",
    ),
    "conv_general_dilated": Entry(
        lambda x: jup.conv_general_dilated(
            x.reshape((-1, *x.shape[-3:])),
            ones((3, 3, x.shape[-1], 4), x.dtype),
            (2, 2),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        ),
        integers=False,
    ),
    "conv_transpose": Entry(
        lambda y: jup.conv_transpose(y, ones((3, 3, y.shape[-1], 4), y.dtype), strides=2),
        "y",
        integers=False,
    ),
    "fixed_unpool": Entry(lambda y: jup.fixed_unpool(y, ones((2, 3), y.dtype)), "y"),
    "fractional_avg_pool": Entry(
        lambda x: jup.fractional_avg_pool(x, pooled_sizes(x), key=KEY), integers=False
    ),
    "fractional_max_pool": Entry(
        lambda x: jup.fractional_max_pool(x, None, pooled_sizes(x), key=KEY)
    ),
    "fractional_max_pool_with_indices": Entry(
        lambda x: jup.fractional_max_pool_with_indices(x, (2, 2), pooled_sizes(x), key=KEY)
    ),
    "global_avg_pool": Entry(lambda x: jup.global_avg_pool(x, spatial_ndim=2), integers=False),
    "global_max_pool": Entry(lambda x: jup.global_max_pool(x, spatial_ndim=2)),
    "global_max_pool_with_indices": Entry(
        lambda x: jup.global_max_pool_with_indices(x, spatial_ndim=2)
    ),
    "interop.from_onnx": round_trip(interop.to_onnx, interop.from_onnx, "channels_first"),
    "interop.from_tensorflow": round_trip(interop.to_tensorflow, interop.from_tensorflow),
    "interop.from_torch": round_trip(
        lambda indices: jnp.moveaxis(indices.flat, -1, -3), interop.from_torch
    ),
    "interop.to_onnx": Entry(lambda x: interop.to_onnx(indices_of(x)), differentiable=False),
    "interop.to_tensorflow": Entry(
        lambda x: interop.to_tensorflow(indices_of(x)), differentiable=False
    ),
    "interpolate": Entry(
        lambda x: jup.interpolate(x, (x.shape[-3] - 2, x.shape[-2] + 3), mode="cubic"),
        integers=False,
    ),
    "inverse": Entry(
        lambda x: jup.inverse(lambda x: jup.max_pool(square(x), **WINDOW), x)(corner(x)),
        integers=False,
    ),
    "lp_pool": Entry(lambda x: jup.lp_pool(x, 2, **WINDOW), integers=False),
    "max_pool": Entry(lambda x: jup.max_pool(x, **WINDOW)),
    "max_pool_with_argmax_and_mask": Entry(
        lambda x: jup.max_pool_with_argmax_and_mask(x, **WINDOW)
    ),
    "max_pool_with_indices": Entry(lambda x: jup.max_pool_with_indices(x, **WINDOW)),
    "max_pool_with_packed_indices": Entry(lambda x: jup.max_pool_with_packed_indices(x, **WINDOW)),
    "max_unpool": Entry(lambda x: jup.max_unpool(square(corner(x)), indices_of(x))),
    "max_unpool_like": Entry(lambda x: jup.max_unpool_like(x, corner(x), **WINDOW)),
    "min_pool": Entry(lambda x: jup.min_pool(x, **WINDOW)),
    "min_pool_with_indices": Entry(lambda x: jup.min_pool_with_indices(x, **WINDOW)),
    "nearest_unpool": Entry(
        lambda y: jup.nearest_unpool(y, **WINDOW, output_shape=unpooled_sizes(y)), "y"
    ),
    "pool_at": Entry(lambda x: jup.pool_at(square(x), indices_of(x))),
    "validate_indices": Entry(validated, differentiable=False),
}


def with_gradient(entry: Entry) -> Callable[[jax.Array], Any]:
    """The results and, where there is one, the gradient; it makes no constants of its own."""

    def run(x):
        if not (entry.differentiable and jnp.issubdtype(x.dtype, jnp.floating)):
            return entry.run(x)

        def results(x):
            found = entry.run(x)
            return floats(found), found

        values, pullback, found = jax.vjp(results, x, has_aux=True)
        return found, pullback(values)

    return run


@contextlib.contextmanager
def strict(**settings: Any):
    """No implicit promotion of types and ranks, and other settings by their names."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(jax.numpy_dtype_promotion("strict"))
        stack.enter_context(jax.numpy_rank_promotion("raise"))
        for name, value in settings.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


def public_functions() -> list[str]:
    found = [name for name in jup.__all__ if callable(getattr(jup, name))]
    found += [f"interop.{name}" for name in jup.interop.__all__]
    # Not of arrays, and not of traced ones.
    apart = {"backends", "explain", "interop.load_torch", "interop.to_torch"}
    found = sorted(set(found) - apart)
    return [name for name in found if not isinstance(getattr(jup, name, None), type)]
