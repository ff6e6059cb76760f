"""Every public function: how its calls are drawn, and what makes them."""

import math
from typing import Any

from . import draws, indexed, linear, selecting
from .calls import Function
from .draws import also, choice

FLOATS = ("float32", "float64", "float16", "bfloat16")
FLOAT8 = ("float8_e3m4", "float8_e4m3", "float8_e4m3b11fnuz", "float8_e4m3fn", "float8_e4m3fnuz")
FLOAT8 += ("float8_e5m2", "float8_e5m2fnuz")
INTEGERS = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64")
SMALL = ("int4", "uint4")
COMPLEX = ("complex64", "complex128")
# The more frequent ones several times.
ORDERED = (*FLOATS * 8, *INTEGERS, *SMALL, "bool", *FLOAT8)
NUMBERS = (*ORDERED, *COMPLEX * 2)
INDICES = ("int32", "int64", "uint32", "int8")
PLAIN = ("xla", None)  # None takes kernels where they are faster

SELECTING = Function(draws.windows, selecting.window_pooling, ORDERED)
GLOBAL = Function(draws.sizes, selecting.global_pooling, ORDERED)
ADAPTIVE = Function(draws.parts, selecting.adaptive_pooling, ORDERED, PLAIN, signed_zeros=False)
FRACTIONAL = Function(
    draws.fractional, selecting.fractional_pooling, ORDERED, PLAIN, signed_zeros=False
)
# JAX does not split the channels of a convolution over Explicit axes by itself. XLA's partitioner
# ends the process for some convolutions whose spatial axes are split.
CONVOLVED: dict[str, Any] = {
    "dtypes": FLOATS[:2],
    "backends": (None,),
    "hows": ("batch", "map", "vmap", "vmap of the last axis", "eager", "Auto"),
    "finite": True,
    "splits": False,
}
EXACT = {"_exact": choice(None, True)}  # without an `output_shape`
FORMS = {"_form": choice("flat", "indices", "packed", "hostile")}


def converted(**options: draws.Draw) -> Function:
    """Indices of another framework."""
    return Function(
        also(draws.windows, **options),
        selecting.conversion,
        (*FLOATS, "int8", "uint32"),
        differentiable=False,
    )


FUNCTIONS = {
    "adaptive_avg_pool": Function(draws.parts, linear.uneven_averages, NUMBERS, PLAIN),
    "adaptive_max_pool": ADAPTIVE,
    "adaptive_max_pool_with_indices": ADAPTIVE,
    "avg_pool": Function(
        also(
            draws.windows,
            count_include_pad=choice(None, None, False),
            divisor_override=choice(None, None, None, 1, 3, -2),
        ),
        linear.avg_pool,
        NUMBERS,
    ),
    "avg_unpool": Function(
        also(
            draws.windows,
            mode=choice(None, "adjoint"),
            count_include_pad=choice(None, False),
            **EXACT,
        ),
        linear.avg_unpool,
        NUMBERS,
    ),
    "bed_of_nails_unpool": Function(
        also(draws.windows, position=draws.position, **EXACT), linear.bed_of_nails_unpool, NUMBERS
    ),
    "conv_general_dilated": Function(draws.convolution, linear.conv_general_dilated, **CONVOLVED),
    "conv_transpose": Function(draws.transposed, linear.conv_transpose, **CONVOLVED),
    "fixed_unpool": Function(also(draws.windows, **EXACT), linear.fixed_unpool, NUMBERS),
    "fractional_avg_pool": Function(draws.sequences, linear.uneven_averages, NUMBERS, PLAIN),
    "fractional_max_pool": FRACTIONAL,
    "fractional_max_pool_with_indices": FRACTIONAL,
    "global_avg_pool": Function(draws.sizes, linear.global_avg_pool, NUMBERS, (None,)),
    "global_max_pool": GLOBAL,
    "global_max_pool_with_indices": GLOBAL,
    "interop.from_onnx": converted(storage_order=choice(None, 1)),
    "interop.from_tensorflow": converted(include_batch_in_index=choice(None, True)),
    "interop.from_torch": converted(),
    "interop.to_onnx": converted(storage_order=choice(None, 1)),
    "interop.to_tensorflow": converted(include_batch_in_index=choice(None, True)),
    "interpolate": Function(draws.interpolation, linear.interpolate, NUMBERS, PLAIN),
    "inverse": Function(
        also(draws.windows, _of=choice("max_pool", "avg_pool")), indexed.inverse, FLOATS
    ),
    "lp_pool": Function(
        also(draws.windows, norm_type=choice(1, 2, 3, 4, 2.5, 0.5, 7, math.inf)),
        indexed.lp_pool,
        FLOATS,
        finite=True,
    ),
    "max_pool": SELECTING,
    "max_pool_with_argmax_and_mask": SELECTING,
    "max_pool_with_indices": SELECTING,
    "max_pool_with_packed_indices": SELECTING,
    "max_unpool": Function(
        also(draws.windows, duplicates=choice(None, "sum"), **FORMS), indexed.indexed, NUMBERS
    ),
    "max_unpool_like": Function(
        also(draws.windows, duplicates=choice(None, "last")), indexed.max_unpool_like, NUMBERS
    ),
    "min_pool": SELECTING,
    "min_pool_with_indices": SELECTING,
    "nearest_unpool": Function(
        also(draws.windows, duplicates=choice(None, None, "mean"), **EXACT),
        linear.nearest_unpool,
        NUMBERS,
    ),
    "pool_at": Function(also(draws.windows, **FORMS), indexed.indexed, NUMBERS),
    "validate_indices": Function(
        draws.plane, selecting.validation, INDICES, (None,), ("eager",), differentiable=False
    ),
}
