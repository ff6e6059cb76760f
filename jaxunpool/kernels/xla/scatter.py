"""scatter: (y, offsets) -> u, each window's value at the element its offset names, else zero."""

from __future__ import annotations

import jax

from jaxunpool.core.frozen import jnp
from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.common import accumulator, unsigned_zero
from jaxunpool.kernels.xla import cells


def scatter(
    y: jax.Array, offsets: jax.Array, geometry: WindowGeometry, duplicates: str = "sum"
) -> jax.Array:
    """Where windows meet, `"sum"` adds them in raster order and `"last"` keeps the last of them."""
    is_sum = duplicates == "sum"

    def contribute(
        u: jax.Array, reached: cells.Reached, value: jax.Array, name: jax.Array
    ) -> jax.Array:
        hit = reached.inside & (name == reached.offset)
        return jnp.where(hit, u + value if is_sum else value, u)

    sources = [(y.astype(accumulator(y.dtype)), 0), (offsets.astype(jnp.int32), -1)]
    return cells.assemble(
        sources,
        geometry,
        contribute,
        lambda u, _: (unsigned_zero(u) if is_sum else u).astype(y.dtype),
    )
