"""The primitives as Mosaic GPU kernels, for NVIDIA GPUs.

`tiles.py` says how a call is cut up, `program.py` is what the kernels are written with, and
`unsupported` says which calls are left to `xla`.
"""

from jaxunpool.kernels.mosaic_gpu.gather import gather
from jaxunpool.kernels.mosaic_gpu.reduce import reduce
from jaxunpool.kernels.mosaic_gpu.replicate import replicate
from jaxunpool.kernels.mosaic_gpu.scatter import scatter
from jaxunpool.kernels.mosaic_gpu.select import select
from jaxunpool.kernels.mosaic_gpu.tiles import missing, unsupported

__all__ = ["gather", "missing", "reduce", "replicate", "scatter", "select", "unsupported"]
