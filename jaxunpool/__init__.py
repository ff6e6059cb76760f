"""Max pooling with indices, and unpooling, for JAX."""

from jaxunpool import interop
from jaxunpool.adaptive import (
    adaptive_avg_pool,
    adaptive_max_pool,
    adaptive_max_pool_with_indices,
)
from jaxunpool.at import pool_at
from jaxunpool.average import avg_pool, avg_unpool, global_avg_pool
from jaxunpool.conv import conv_general_dilated
from jaxunpool.conv_transpose import conv_transpose
from jaxunpool.core.explain import backends, explain
from jaxunpool.core.geometry import Plane, WindowGeometry
from jaxunpool.core.listing import listing
from jaxunpool.fixed import bed_of_nails_unpool, fixed_unpool
from jaxunpool.fractional import (
    fractional_avg_pool,
    fractional_max_pool,
    fractional_max_pool_with_indices,
)
from jaxunpool.indices import PackedIndices, PoolIndices, validate_indices
from jaxunpool.interpolate import interpolate
from jaxunpool.inverse import inverse
from jaxunpool.lp import lp_pool
from jaxunpool.max import (
    global_max_pool,
    global_max_pool_with_indices,
    max_pool,
    max_pool_with_argmax_and_mask,
    max_pool_with_indices,
    max_pool_with_packed_indices,
    max_unpool,
    max_unpool_like,
)
from jaxunpool.min import min_pool, min_pool_with_indices
from jaxunpool.nearest import nearest_unpool

__all__ = [
    "PackedIndices",
    "Plane",
    "PoolIndices",
    "WindowGeometry",
    "adaptive_avg_pool",
    "adaptive_max_pool",
    "adaptive_max_pool_with_indices",
    "avg_pool",
    "avg_unpool",
    "backends",
    "bed_of_nails_unpool",
    "conv_general_dilated",
    "conv_transpose",
    "explain",
    "fixed_unpool",
    "fractional_avg_pool",
    "fractional_max_pool",
    "fractional_max_pool_with_indices",
    "global_avg_pool",
    "global_max_pool",
    "global_max_pool_with_indices",
    "interop",
    "interpolate",
    "inverse",
    "lp_pool",
    "max_pool",
    "max_pool_with_argmax_and_mask",
    "max_pool_with_indices",
    "max_pool_with_packed_indices",
    "max_unpool",
    "max_unpool_like",
    "min_pool",
    "min_pool_with_indices",
    "nearest_unpool",
    "pool_at",
    "validate_indices",
]
__dir__ = listing(globals())

__version__ = "0.2.0"
