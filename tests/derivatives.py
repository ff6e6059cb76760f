"""Derivatives of any order against differences, with one compiled program per function."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

STEP = 1e-4


def check(function: Callable[..., Any], *arrays: Any, forward: bool = False) -> list[jax.Array]:
    """First and second derivatives of a function of float64 arrays; returns its gradients.

    The first is compared with differences of values, the second, reverse over reverse, with
    differences of the first, along a random direction. `forward`: forward mode gives the same, and
    so does forward over reverse.
    """
    rng = np.random.default_rng(1)
    draw = lambda like: jnp.asarray(rng.standard_normal(np.shape(like)))
    direction = tuple(map(draw, arrays))
    weights = draw(jax.eval_shape(function, *arrays))

    @jax.jit
    def program(*arrays):
        along = lambda gradients: sum(map(jnp.vdot, gradients, direction))
        value = lambda *arrays: jnp.vdot(function(*arrays) ** 3, weights)  # not linear
        gradient = jax.grad(value, tuple(range(len(arrays))))
        slope, pullback = jax.vjp(lambda *arrays: along(gradient(*arrays)), *arrays)
        found = {"value": value(*arrays), "gradient": gradient(*arrays), "slope": slope}
        found["curvature"] = along(pullback(jnp.ones_like(slope)))
        if forward:
            _, found["forward slope"] = jax.jvp(value, arrays, direction)
            _, turned = jax.jvp(gradient, arrays, direction)
            found["forward curvature"] = along(turned)
        return found

    moved = [tuple(a + s * d for a, d in zip(arrays, direction)) for s in (-STEP, STEP)]
    below, above = (program(*some) for some in moved)
    here = program(*arrays)
    for derivative, of in (("slope", "value"), ("curvature", "slope")):
        difference = (above[of] - below[of]) / (2 * STEP)
        scale = max(1.0, abs(float(here["curvature"])))
        np.testing.assert_allclose(here[derivative], difference, rtol=1e-5, atol=1e-6 * scale)
        if forward:
            other = here[f"forward {derivative}"]
            np.testing.assert_allclose(other, here[derivative], rtol=1e-10, atol=1e-10 * scale)
    assert max(float(jnp.abs(g).max()) for g in here["gradient"]) > 0
    return list(here["gradient"])
