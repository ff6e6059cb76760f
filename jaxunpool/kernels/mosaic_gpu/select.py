"""select: x -> (y, offsets), the maximum of each window and which of its elements that was."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.common import lowest
from jaxunpool.kernels.mosaic_gpu import program, tiles
from jaxunpool.kernels.varying import result_like


def select(x: jax.Array, geometry: WindowGeometry) -> tuple[jax.Array, jax.Array]:
    """Maximum of each window and its offset: the first of equals, the last NaN, never padding."""
    t = tiles.of_windows(geometry, x.shape, x.dtype)
    taps = list(itertools.product(*map(range, t.geometry.window_shape)))

    def select_kernel(x_ref: Any, y_ref: Any, offsets_ref: Any) -> None:
        p = program.Program(t)
        elements = p.read_elements(x_ref)
        for window in t.each_window():
            position = program.shifted(p.first, window)
            values = [elements[t.element(window, tap)] for tap in taps]
            y, *others = (p.where(v.exists, v.value, lowest(x.dtype)) for v in values)
            offsets = p.full(_first(t.geometry, position), jnp.int32)
            for offset, value in enumerate(others, start=1):
                take = (value > y) | (value != value)
                y, offsets = jnp.where(take, value, y), jnp.where(take, offset, offsets)
            p.pooled(y_ref).write(position, y)
            p.pooled(offsets_ref).write(position, offsets.astype(offsets_ref.dtype))

    out = [result_like(x, t.pooled, dtype) for dtype in (x.dtype, geometry.offset_dtype)]
    y, offsets = program.run(select_kernel, t, [x.reshape(t.unpooled)], out)
    shape = geometry.pooled_shape(x.shape)
    return y.reshape(shape), offsets.reshape(shape)


def _first(g: WindowGeometry, window: program.Position) -> Any:
    """Offset of the first element of a window that is not padding."""
    tap: list[Any] = [0] * g.ndim
    for i, axis in enumerate(g.spatial):
        if axis.position(window[i].least) < 0:
            padding = jnp.maximum(-axis.position(window[i].value), 0).astype(jnp.int32)
            tap[i] = lax.div(padding + (axis.dilation - 1), np.int32(axis.dilation))
    return program.raster(tap, g.window_shape)
