"""scatter: (y, offsets) -> u, each window's value at the element its offset names, else zero."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.common import accumulator, unsigned_zero
from jaxunpool.kernels.mosaic_gpu import program, tiles
from jaxunpool.kernels.varying import result_like


def scatter(
    y: jax.Array, offsets: jax.Array, geometry: WindowGeometry, duplicates: str = "sum"
) -> jax.Array:
    """Where windows meet, `"sum"` adds them in raster order and `"last"` keeps the last of them."""
    shape = geometry.unpooled_shape(y.shape)
    t = tiles.of_cells(geometry, shape, y.dtype)
    dtype = accumulator(y.dtype)

    def scatter_kernel(y_ref: Any, offsets_ref: Any, u_ref: Any) -> None:
        p = program.Program(t)
        values, names = p.read_windows(y_ref), p.read_windows(offsets_ref)
        for shift in t.each_element():
            u = p.full(0, dtype)
            for window, tap in t.covering(shift):
                value, name = values[window].value.astype(dtype), names[window]
                offset = program.raster(tap, geometry.window_shape)
                hit = (name.value.astype(jnp.int32) | p.unless(name.exists)) == offset
                u = jnp.where(hit, u + value if duplicates == "sum" else value, u)
            u = unsigned_zero(u) if duplicates == "sum" else u
            p.unpooled(u_ref).write(program.shifted(p.cell_corner(), shift), u.astype(y.dtype))

    out = result_like(y, t.unpooled, y.dtype)
    arrays = [y.reshape(t.pooled), offsets.reshape(t.pooled)]
    return program.run(scatter_kernel, t, arrays, out).reshape(shape)
