"""The transposed Jacobian of any function, as a function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxunpool.core.frozen import jnp
from jaxunpool.core.lowering import reshard
from jaxunpool.core.messages import public


@public
def inverse(fn: Callable[[Any], Any], x: Any) -> Callable[[Any], Any]:
    """The function that applies the transposed Jacobian of `fn` at `x`.

    This is Lasagne's `InverseLayer`. For a convolution, the result is the transposed convolution;
    for a dense layer, the transposed weights; for max pooling, `max_unpool(..., duplicates="sum")`;
    for an encoder, all of these in reverse order. It is `jax.vjp` with checks of the arguments. The
    result has derivatives with respect to `y` and to `x`.

    Args:
        fn: a function of one argument; arguments and results are pytrees of arrays.
        x: the point at which the Jacobian is taken: floats or complex numbers, or a pytree of them.

    Returns:
        A function. It takes a pytree with the structure, shapes and types of `fn(x)`, and returns
        one with those of `x`. Integer leaves of `fn(x)`, such as `PoolIndices`, have no derivative;
        their values are ignored.

    Raises:
        TypeError: `fn` is not a function, or `x` contains anything but floats.
        ValueError: raised by the returned function if `y` does not fit; it names the leaf.

    Example:
        >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])[..., None]
        >>> unpool = inverse(lambda x: jaxunpool.max_pool(x, (2, 2)), x)
        >>> unpool(jnp.array([[[5.0]]]))[..., 0]
        Array([[0., 0.],
               [0., 5.]], dtype=float32)
    """
    if not callable(fn):
        raise TypeError(f"fn: expected a function, got {type(fn).__name__}")
    for path, leaf in jax.tree_util.tree_leaves_with_path(x):
        if not _is_floating(leaf):
            raise TypeError(f"x{_name(path)}: expected floats, got {_describe(leaf)}")
    result, pullback = jax.vjp(fn, x)
    shapes = jax.eval_shape(lambda: result)
    expected = jax.tree_util.tree_leaves_with_path(shapes)
    structure: Any = jax.tree.structure(shapes)
    shardings = [jax.typeof(leaf).sharding for leaf in jax.tree.leaves(result)]

    def apply(y: Any) -> Any:
        leaves, found = jax.tree.flatten(y)
        if found != structure:
            raise ValueError(f"y: expected the structure of fn(x), {structure}, got {found}")
        cotangents: list[Any] = []
        for (path, like), leaf, sharding in zip(expected, leaves, shardings):
            if not jnp.issubdtype(like.dtype, jnp.inexact):
                cotangents.append(np.zeros(like.shape, jax.dtypes.float0))
                continue
            if (
                not _is_array(leaf)
                or jnp.shape(leaf) != like.shape
                or jnp.result_type(leaf) != like.dtype
            ):
                raise ValueError(
                    f"y{_name(path)}: expected {like.dtype}{list(like.shape)} like fn(x), got"
                    f" {_describe(leaf)}"
                )
            cotangents.append(_placed(jnp.asarray(leaf), sharding))
        return pullback(jax.tree.unflatten(structure, cotangents))[0]

    return apply


def _placed(leaf: jax.Array, wanted: Any) -> jax.Array:
    """An array on a mesh with Explicit axes, resharded; any other as it is."""
    if not (wanted.mesh.explicit_axes and jax.typeof(leaf).sharding.mesh.explicit_axes):
        return leaf
    return reshard(leaf, wanted.mesh, wanted.spec)


def _is_floating(leaf: Any) -> bool:
    return _is_array(leaf) and jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)


def _describe(leaf: Any) -> str:
    if not _is_array(leaf):
        return type(leaf).__name__
    return f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"


def _is_array(leaf: Any) -> bool:
    try:
        jax.typeof(leaf)
    except (TypeError, ValueError, OverflowError):  # NumPy has arrays of what is no number
        return False
    return True


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path)
