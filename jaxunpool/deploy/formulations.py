"""The library's primitives as functions of plain JAX, for tools that do not know them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxunpool.core import convolution, irregular, lowering, primitives, resample
from jaxunpool.core.backends import check_runs_on
from jaxunpool.core.calls import Call
from jaxunpool.kernels.common import accumulator


def formulations(platform: str) -> dict[str, Callable[..., Any]]:
    """By name of the primitive, functions that take its arrays and its parameters.

    Args:
        platform: the name of the tool, for an implementation that was asked for and is not there.
    """

    def on_device(*arrays: jax.Array, call: Call, lead: int) -> Any:
        check_runs_on(call, platform, export=True)
        return lowering.on_device(platform, call, *arrays, lead=lead, export=True)

    def convolve(*arrays: jax.Array, name: str, conv: convolution.Convolution) -> jax.Array:
        return convolution.plain(name, conv, *arrays)

    def resampled(x: jax.Array, *, plan: resample.Plan, transposed: bool, **_: Any) -> jax.Array:
        with jax.ensure_compile_time_eval():  # constants: a model is for one size
            tables = resample.tables(x.shape, accumulator(x.dtype), plan, transposed)
        return resample.apply(x, tables, transposed)

    found: dict[str, Callable[..., Any]] = {
        irregular.UNEVEN.name: irregular.plain,
        resample.RESAMPLE.name: resampled,
    }
    found |= {primitive.name: on_device for primitive in primitives.PRIMITIVES.values()}
    found |= {primitive.name: convolve for primitive in convolution.PRIMITIVES.values()}
    return found
