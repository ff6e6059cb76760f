"""Pooling with indices, and every way to undo it, for JAX."""

from jaxunpool.geometry import WindowGeometry
from jaxunpool.indices import PoolIndices, validate_indices
from jaxunpool.max import max_pool, max_pool_with_indices, max_unpool

__all__ = [
    "PoolIndices",
    "WindowGeometry",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "validate_indices",
]

__version__ = "0.1.0"
