"""The primitives in plain JAX: strided slices, comparisons and selects, for every platform.

The window primitives use no scatter instruction and let XLA make no padded copy of the large array;
`benchmarks/NOTES.md` keeps the formulations that lost. `*_flat` serve indices without a window.
"""

from jaxunpool.kernels.xla.correlate import correlate
from jaxunpool.kernels.xla.flat import gather_flat, scatter_flat
from jaxunpool.kernels.xla.gather import gather
from jaxunpool.kernels.xla.reduce import reduce
from jaxunpool.kernels.xla.replicate import replicate
from jaxunpool.kernels.xla.scatter import scatter
from jaxunpool.kernels.xla.select import select

__all__ = [
    "correlate",
    "gather",
    "gather_flat",
    "reduce",
    "replicate",
    "scatter",
    "scatter_flat",
    "select",
]
