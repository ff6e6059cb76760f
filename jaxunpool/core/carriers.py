"""Types that no kernel knows, carried by types that all of them know.

| type     | `select`  | `gather`, `scatter` with `"last"` | sums                              |
| -------- | --------- | --------------------------------- | --------------------------------- |
| bool     | uint8     | uint8                             | int32; the result is "not zero"   |
| float8   | bfloat16  | uint8, the same bits              | float32, rounded once             |
| complex  |           | real and imaginary part apart     | real and imaginary part apart     |

All of it is exact but for the one rounding of a sum. So backends agree to the bit here too. A sum
that is divided by a number is carried likewise: 16-bit floats by float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxunpool.core.calls import Call
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.kernels.common import accumulator, comparable, divide


def is_float8(dtype: Any) -> bool:
    """Whether it is a float of 8 bits."""
    return jnp.issubdtype(dtype, jnp.floating) and jnp.dtype(dtype).itemsize == 1


def carrier(call: Call, dtype: Any) -> np.dtype:
    """The type of values that a kernel gets for a type: itself if kernels know it."""
    dtype = jnp.dtype(dtype)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return jnp.finfo(dtype).dtype
    if dtype != jnp.bool_ and not is_float8(dtype):
        return dtype if call.divisor is None else jnp.dtype(accumulator(dtype))
    if call.primitive in ("select", "uneven"):
        return jnp.dtype(jnp.uint8 if dtype == jnp.bool_ else jnp.bfloat16)
    if call.primitive == "gather" or call.duplicates == "last":
        return jnp.dtype(jnp.uint8)
    return jnp.dtype(jnp.int32 if dtype == jnp.bool_ else jnp.float32)


def carried(run: Callable[..., Any], call: Call, dtype: Any) -> Callable[..., Any]:
    """A kernel of the carrier as one of the type itself: a function of the same arrays."""
    dtype, known = jnp.dtype(dtype), carrier(call, dtype)
    if call.divisor is not None:
        run = _divided(run, call)
    if known == dtype:
        return run
    if jnp.issubdtype(dtype, jnp.complexfloating):
        return in_parts(run)
    # A conversion of floats to integers would round; moves keep the bits.
    is_view = is_float8(dtype) and known == jnp.uint8
    convert: Callable[..., jax.Array] = lax.bitcast_convert_type if is_view else _as_type

    def on_carrier(*arrays: Any) -> Any:
        values = (convert(a, known) if _is_of(a, dtype) else a for a in arrays)
        results = run(*values)
        if isinstance(results, tuple):
            return convert(results[0], dtype), *results[1:]
        return convert(results, dtype)

    return on_carrier


def _divided(run: Callable[..., jax.Array], call: Call) -> Callable[..., jax.Array]:
    """A sum that is divided by a number; its transpose copies what is divided."""
    if call.primitive == "reduce":
        return lambda x: divide(run(x), call.divisor)
    return lambda x: run(divide(x, call.divisor))


def _as_type(x: jax.Array, dtype: Any) -> jax.Array:
    """Through a type that every tool compares, for the bool of an integer."""
    return x.astype(comparable(x.dtype)).astype(dtype)


def _is_complex(array: Any) -> bool:
    return jnp.issubdtype(getattr(array, "dtype", jnp.bool_), jnp.complexfloating)


def _is_of(array: Any, dtype: np.dtype) -> bool:
    return getattr(array, "dtype", None) == dtype


def in_parts(run: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """A linear function of real arrays as one of complex arrays, linear in the second one too."""

    def on_parts(x: jax.Array, *others: Any) -> jax.Array:
        parts = lax.real(x), lax.imag(x)
        if not any(_is_complex(other) for other in others):
            return lax.complex(*(run(part, *others) for part in parts))
        (pattern,) = others
        factors = lax.real(pattern), lax.imag(pattern)
        (rr, ri), (ir, ii) = ([run(part, factor) for factor in factors] for part in parts)
        return lax.complex(rr - ii, ri + ir)

    return on_parts
