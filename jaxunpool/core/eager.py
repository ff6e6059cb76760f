"""Eager calls of primitives."""

from __future__ import annotations

import functools
from typing import Any

import jax
from jax.extend.core import Primitive

from jaxunpool.core.frozen import jnp


@functools.lru_cache(maxsize=4096)
def _compiled(primitive: Primitive, **params: Any) -> Any:
    return jax.jit(functools.partial(primitive.bind, **params))


def eager(primitive: Primitive, *arrays: jax.Array, **params: Any) -> Any:
    """An eager call: a compiled program, also under `disable_jit`."""
    run = _compiled(primitive, **params)
    if not (jax.config.jax_disable_jit or jax.config.jax_debug_nans):  # type: ignore[attr-defined]
        return run(*arrays)
    with jax.disable_jit(False), jax.debug_nans(False):  # either would call this function again
        results = run(*arrays)
    if jax.config.jax_debug_nans:  # type: ignore[attr-defined]
        for result in jax.tree.leaves(results):
            if jnp.issubdtype(result.dtype, jnp.inexact) and jnp.isnan(result).any():
                name = primitive.name.removeprefix("jaxunpool_")
                raise FloatingPointError(f"invalid value (nan) encountered in {name}")
    return results
