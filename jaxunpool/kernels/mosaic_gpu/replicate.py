"""replicate: y -> u, each window's value copied into its elements; where windows meet, added."""

from __future__ import annotations

from typing import Any

import jax

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import common
from jaxunpool.kernels.common import accumulator
from jaxunpool.kernels.mosaic_gpu import program, tiles
from jaxunpool.kernels.varying import result_like


def replicate(
    y: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weighting: str = "sum"
) -> jax.Array:
    """Copies times `pattern` (of the window's shape; None: ones), weighted, in raster order."""
    shape = geometry.unpooled_shape(y.shape)
    t = tiles.of_cells(geometry, shape, y.dtype)
    g, dtype = t.geometry, accumulator(y.dtype)

    def replicate_kernel(y_ref: Any, *refs: Any) -> None:
        p = program.Program(t)
        windows = p.read_windows(y_ref)
        factors = [p.full(ref[offset], dtype) for ref in refs[:-1] for offset in range(g.volume)]
        values = {
            shift: common.by_window(w.value.astype(dtype), g, weighting, p.numbers(w.position))
            for shift, w in windows.items()
        }
        if weighting in common.PER_WINDOW:
            values = {shift: program.rounded(value) for shift, value in values.items()}
        for shift in t.each_element():
            position, u = program.shifted(p.cell_corner(), shift), p.full(0, dtype)
            for window, tap in t.covering(shift):
                value, conditions = values[window], [windows[window].exists]
                if pattern is not None:
                    factor = factors[program.raster(tap, g.window_shape)]
                    value = program.rounded(value * factor)
                if weighting == "last":
                    conditions += [
                        axis.is_last(index.value, k)
                        for axis, index, k in zip(g.spatial, windows[window].position, tap)
                    ]
                u = p.where(program.all_of(conditions), u + value, u)
            u = common.unsigned_zero(u)
            if weighting == "cover":
                u = common.by_element(u, g, p.numbers(position))
            p.unpooled(refs[-1]).write(position, u.astype(y.dtype))

    patterns = [] if pattern is None else [pattern.astype(dtype).ravel()]
    out = result_like(y, t.unpooled, y.dtype)
    return program.run(replicate_kernel, t, [y.reshape(t.pooled), *patterns], out).reshape(shape)
