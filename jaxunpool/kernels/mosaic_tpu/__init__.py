"""The primitives as Pallas kernels for TPU: every byte of the large array is read or written once.

Windows of a line are read from VMEM with strided loads and compared or summed in registers, in 32
bits. `views` decides which axes are lines and lanes, `blocks` what is in VMEM at a time, `pooling`
and `unpooling` loop over blocks and windows; a primitive is what it does with the elements.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.kernels.common import devices
from jaxunpool.kernels.mosaic_tpu import pooling, unpooling
from jaxunpool.kernels.mosaic_tpu.gather import gather
from jaxunpool.kernels.mosaic_tpu.reduce import reduce
from jaxunpool.kernels.mosaic_tpu.replicate import replicate
from jaxunpool.kernels.mosaic_tpu.scatter import scatter
from jaxunpool.kernels.mosaic_tpu.select import select
from jaxunpool.kernels.mosaic_tpu.views import LANES, SUBLANES, view

__all__ = ["gather", "missing", "reduce", "replicate", "scatter", "select", "unsupported"]

UNPOOLS = ("scatter", "replicate")
# Loops over the elements of a window, and over those of a cell, are unrolled.
MOST_ELEMENTS = 32
DTYPES = ("float32", "bfloat16", "int32", "int16", "int8", "uint16", "uint8")


def missing() -> str | None:
    """Why the kernels cannot run on this machine, and what brings them; None if they can."""
    if devices("tpu"):
        return None
    return "JAX finds no TPU; where there is one, `pip install 'jax[tpu]'` brings it"


def unsupported(
    primitive: str,
    geometry: WindowGeometry,
    shape: Sequence[int],
    dtype: jax.typing.DTypeLike,
    *,
    duplicates: str = "sum",
    weighting: str = "sum",
    pattern: bool = False,
) -> str | None:
    """Why the kernels do not serve a primitive; None if they do.

    Args:
        primitive: its name.
        geometry: the windows.
        shape: full shape of the unpooled array.
        dtype: of the values.
        duplicates: what scatter does where windows meet; either is served.
        weighting: of reduce and replicate.
        pattern: whether these have one; served if the weighting are.
    """
    dtype, unpools = jnp.dtype(dtype), primitive in UNPOOLS
    if dtype.name not in DTYPES:
        return f"{dtype.name} is not among the types it loads ({', '.join(DTYPES)})"
    if weighting != "sum" and not jnp.issubdtype(dtype, jnp.floating):
        return f"weighting={weighting!r} of integers"
    if math.prod(shape) == 0:
        return "the array is empty"
    if geometry.volume > MOST_ELEMENTS:
        return f"windows of {geometry.volume} elements, more than {MOST_ELEMENTS}"
    look = view(geometry, shape)
    if unpools and math.prod(axis.stride for axis in look.axes) > MOST_ELEMENTS:
        return f"strides {geometry.strides} step over more than {MOST_ELEMENTS} elements"
    if 4 * look.lanes < LANES:
        return f"{look.lanes} channels are too few for {LANES} lanes"
    if look.padded > 2:
        return f"in tiles of {SUBLANES} x {LANES} it takes {look.padded:.1f} times its size"
    arrays = {
        "select": [geometry.offset_dtype, dtype],
        "gather": [geometry.offset_dtype, dtype],
        "scatter": [dtype, geometry.offset_dtype],
    }.get(primitive, [dtype])
    rows = unpooling.plan(look, arrays) if unpools else pooling.plan(look, dtype, arrays)
    return "a row of windows does not fit in VMEM" if rows is None else None
