"""reduce: u -> y, the sum over each window. The transpose of replicate."""

from __future__ import annotations

import itertools
from typing import Any

import jax

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels import common
from jaxunpool.kernels.common import accumulator
from jaxunpool.kernels.mosaic_gpu import program, tiles
from jaxunpool.kernels.varying import result_like


def reduce(
    u: jax.Array, pattern: jax.Array | None, geometry: WindowGeometry, weighting: str = "sum"
) -> jax.Array:
    """Sums of the elements times `pattern` (of the window's shape; None: ones), in raster order."""
    t = tiles.of_windows(geometry, u.shape, u.dtype)
    g, dtype = t.geometry, accumulator(u.dtype)
    taps = list(itertools.product(*map(range, g.window_shape)))

    def reduce_kernel(u_ref: Any, *refs: Any) -> None:
        p = program.Program(t)
        elements = p.read_elements(u_ref)
        factors = [p.full(ref[offset], dtype) for ref in refs[:-1] for offset in range(g.volume)]
        terms = {shift: element.value.astype(dtype) for shift, element in elements.items()}
        if weighting == "cover":
            terms = {
                shift: program.rounded(
                    common.by_element(term, g, p.numbers(elements[shift].position))
                )
                for shift, term in terms.items()
            }
        for window in t.each_window():
            position, y = program.shifted(p.first, window), p.full(0, dtype)
            for offset, tap in enumerate(taps):
                shift = t.element(window, tap)
                term, conditions = terms[shift], [elements[shift].exists]
                if pattern is not None:
                    term = program.rounded(term * factors[offset])
                if weighting == "last":
                    conditions += [
                        axis.is_last(index.value, k)
                        for axis, index, k in zip(g.spatial, position, tap)
                    ]
                y = y + p.where(program.all_of(conditions), term, 0)
            y = common.by_window(common.unsigned_zero(y), g, weighting, p.numbers(position))
            p.pooled(refs[-1]).write(position, y.astype(u.dtype))

    patterns = [] if pattern is None else [pattern.astype(dtype).ravel()]
    out = result_like(u, t.pooled, u.dtype)
    y = program.run(reduce_kernel, t, [u.reshape(t.unpooled), *patterns], out)
    return y.reshape(geometry.pooled_shape(u.shape))
