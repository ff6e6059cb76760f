"""A fixed linear map along one axis, a few elements of the input for each of the output.

Interpolation and adaptive averages are such maps, one axis after the other. The transpose is
another, so gradients read too and scatter nothing: fast on CPU, the same bits every time on GPU.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxunpool.dispatch import Implementation, check_plain

# Up to here the elements are slices in one fused program; beyond, a loop keeps it small.
UNROLLED_TAPS = 16


@dataclasses.dataclass(frozen=True)
class Taps:
    """Which elements of the input each element of the output reads, and their weights.

    Attributes:
        elements, weights: per tap, a tuple with one entry per element of the output. Weight 0
            stands for no tap at all.
        input_size: size of the input.
        divisors: numbers the output is divided by, element by element, if any: the mean of equal
            numbers is then one of them.
        input_divisors: numbers the input is divided by.
    """

    elements: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    input_size: int
    divisors: tuple[int, ...] = ()
    input_divisors: tuple[int, ...] = ()

    @classmethod
    def from_lists(cls, rows: Sequence[dict[int, float]], input_size: int) -> Self:
        """From one `{element: weight}` per element of the output."""
        width = max(1, *map(len, rows))
        padded = [list(row.items()) + [(0, 0.0)] * (width - len(row)) for row in rows]
        return cls(
            elements=tuple(tuple(row[t][0] for row in padded) for t in range(width)),
            weights=tuple(tuple(row[t][1] for row in padded) for t in range(width)),
            input_size=input_size,
        )

    @functools.cached_property
    def transpose(self) -> Taps:
        """The map whose matrix is the transpose of this one's."""
        rows: list[dict[int, float]] = [{} for _ in range(self.input_size)]
        for elements, weights in zip(self.elements, self.weights):
            for out, (element, weight) in enumerate(zip(elements, weights)):
                if weight:
                    rows[element][out] = weight
        taps = Taps.from_lists([dict(sorted(row.items())) for row in rows], len(self.elements[0]))
        return dataclasses.replace(taps, divisors=self.input_divisors, input_divisors=self.divisors)


def resample(
    x: jax.Array, taps: Sequence[Taps], axes: Sequence[int], implementation: Implementation
) -> jax.Array:
    """The maps applied to their axes in turn, those that shrink an axis most first.

    16-bit floats are added in float32 and rounded once.
    """
    check_plain(implementation, "resampling")
    run = _apply if implementation == "xla" else _resample
    is_float = jnp.issubdtype(x.dtype, jnp.floating)
    y = x.astype(jnp.promote_types(x.dtype, jnp.float32)) if is_float else x
    growth = [len(t.elements[0]) / t.input_size for t in taps]
    for i in sorted(range(len(axes)), key=lambda i: (growth[i], -i)):
        y = run(y, taps[i], axes[i])
    return y.astype(x.dtype)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _apply(x: jax.Array, taps: Taps, axis: int) -> jax.Array:
    elements, weights = np.array(taps.elements), np.array(taps.weights)
    axis %= x.ndim
    shape = [1] * x.ndim
    shape[axis] = -1

    def divided(a: jax.Array, divisors: tuple[int, ...]) -> jax.Array:
        if not divisors:
            return a
        # Behind a barrier: XLA turns division by a constant into a product with its reciprocal.
        return a / lax.optimization_barrier(jnp.asarray(divisors, a.dtype).reshape(shape))

    x = divided(x, taps.input_divisors)

    def add(y: Any, element: Any, weight: Any, has_gaps: bool) -> Any:
        weight = jnp.asarray(weight, x.dtype).reshape(shape)
        value = jnp.take(x, element, axis, mode="clip") * weight
        # Where there is no tap, an infinity must not become a NaN.
        return y + (jnp.where(weight != 0, value, 0) if has_gaps else value)

    nothing = jnp.zeros((*x.shape[:axis], elements.shape[1], *x.shape[axis + 1 :]), x.dtype)
    if len(elements) > UNROLLED_TAPS:
        table = jnp.asarray(elements), jnp.asarray(weights, x.dtype)
        y = lax.fori_loop(
            0, len(elements), lambda t, y: add(y, table[0][t], table[1][t], True), nothing
        )
        return divided(y, taps.divisors)
    gaps = (weights == 0).any(axis=1)
    y = functools.reduce(lambda y, tap: add(y, *tap), zip(elements, weights, gaps), nothing)
    return divided(y, taps.divisors)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _resample(x: jax.Array, taps: Taps, axis: int) -> jax.Array:
    return _apply(x, taps, axis)


_resample.defvjp(
    lambda x, taps, axis: (_resample(x, taps, axis), None),
    lambda taps, axis, _, dy: (_resample(dy, taps.transpose, axis),),
)
