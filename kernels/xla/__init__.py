"""The primitives in plain JAX: strided slices, comparisons and selects, for every platform.

No formulation here uses a scatter instruction, and none lets XLA materialise a padded copy of the
large array; `benchmarks/NOTES.md` keeps the ones that lost and their times.
"""

from jaxunpool.kernels.xla.flat import gather_flat, scatter_flat
from jaxunpool.kernels.xla.gather import gather
from jaxunpool.kernels.xla.scatter import scatter
from jaxunpool.kernels.xla.select import select

__all__ = ["gather", "gather_flat", "scatter", "scatter_flat", "select"]
