"""What a program costs beside its work: until it is compiled, and at every call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen
import jax
import jax.numpy as jnp

import jaxunpool
from benchmarks.grid import WINDOWS, Cell
from benchmarks.timing import Case, Runs, sizes
from jaxunpool.core.backends import Implementation

COMPILED, SMALL = "32x56x56x64", "1x8x8x8"
COMPILE, CALL = "compile max pool gradient", "call max pool"
OPERATIONS = (COMPILE, CALL)


def cases(implementation: Implementation = None) -> Iterator[Case]:
    """The gradient of every window, from Python to machine code, and a call on a small array."""
    rest = ("float32", "channels_last")
    for name, window in WINDOWS.items():
        cell = Cell(sizes(COMPILED), window, *rest, implementation)
        yield Case(COMPILE, COMPILED, name, *rest, functools.partial(_compiled, cell), calls=1)
    cell = Cell(sizes(SMALL), WINDOWS["2/2"], *rest, implementation)
    yield Case(CALL, SMALL, "2/2", *rest, functools.partial(_called, cell), calls=1000)


def _compiled(cell: Cell) -> Runs:
    pools = {
        "jaxunpool": functools.partial(jaxunpool.max_pool, **cell.our_window),
        "flax": functools.partial(flax.linen.max_pool, **cell.flax_window),
    }
    return {name: functools.partial(_compile_gradient, pool, cell) for name, pool in pools.items()}


def _compile_gradient(pool: Callable[..., Any], cell: Cell) -> None:
    """Trace, lower and compile, through functions that JAX has not seen."""
    x = jax.ShapeDtypeStruct(cell.shape, cell.dtype)
    y = jax.eval_shape(lambda x: pool(x), x)
    jax.jit(lambda x, dy: jax.vjp(lambda x: pool(x), x)[1](dy)).lower(x, y).compile()


def _called(cell: Cell) -> Runs:
    pool = functools.partial(jaxunpool.max_pool, **cell.our_window)
    x = jnp.ones(cell.shape, cell.dtype)
    runs: Runs = {
        "jaxunpool": functools.partial(jax.jit(pool), x),
        "jnp.add": functools.partial(jax.jit(jnp.add), x, x),
    }
    for run in runs.values():
        run()
    return runs
