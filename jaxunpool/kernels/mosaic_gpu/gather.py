"""gather: (u, offsets) -> y, the element of each window that its offset names."""

from __future__ import annotations

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.mosaic_gpu import program, tiles
from jaxunpool.kernels.varying import result_like


def gather(u: jax.Array, offsets: jax.Array, geometry: WindowGeometry) -> jax.Array:
    """One element per window; zero where the offset names none."""
    t = tiles.of_windows(geometry, u.shape, u.dtype)
    taps = list(itertools.product(*map(range, t.geometry.window_shape)))

    def gather_kernel(u_ref: Any, offsets_ref: Any, y_ref: Any) -> None:
        p = program.Program(t)
        elements = p.read_elements(u_ref)
        names = p.pooled(offsets_ref).read(p.first, t.each_window())
        for window in t.each_window():
            name, y = names[window].value.astype(jnp.int32), p.full(0, u.dtype)
            for offset, tap in enumerate(taps):
                element = elements[t.element(window, tap)]
                y = jnp.where(name == offset, p.where(element.exists, element.value, 0), y)
            p.pooled(y_ref).write(names[window].position, y)

    out = result_like(u, t.pooled, u.dtype)
    arrays = [u.reshape(t.unpooled), offsets.reshape(t.pooled)]
    return program.run(gather_kernel, t, arrays, out).reshape(offsets.shape)
