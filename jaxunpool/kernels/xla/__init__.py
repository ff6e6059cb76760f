"""The primitives in plain JAX: strided slices, comparisons and selects, for every platform.

The reference for the bits of the others, and what runs where there are none. Programs are made for
other tools to read as well: no branches by platform, no interior padding, and no select of unsigned
integers of 8 or 16 bits, which not all converters know. The window primitives use no scatter
instruction; `*_flat` serve indices without a window. `benchmarks/NOTES.md` has what was tried.
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
