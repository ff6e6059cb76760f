"""TFLite models: the library's primitives lowered to what its interpreter runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import tensorflow as tf
from jax.experimental import jax2tf

from jaxunpool.core.lowering import TOOL
from jaxunpool.core.messages import shown


def convert(fn: Callable[..., Any], inputs: Sequence[Any], **options: Any) -> bytes:
    """See `deploy.to_tflite`."""
    arrays = [_array(i, given) for i, given in enumerate(inputs)]
    # A function of its own, whose program JAX has not lowered for itself before.
    run = jax2tf.convert(lambda *arrays: jax.tree.leaves(fn(*arrays)), with_gradient=False)
    specs = [tf.TensorSpec(array.shape, array.dtype) for array in arrays]
    program = tf.function(run, autograph=False, input_signature=specs)
    token = TOOL.set("tflite")
    try:
        function = program.get_concrete_function()
    finally:
        TOOL.reset(token)
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], program)
    for name, value in options.items():
        if not hasattr(converter, name):
            raise TypeError(
                f"to_tflite: {name!r} is no attribute of tf.lite.TFLiteConverter, as"
                " `optimizations` and `representative_dataset` are"
            )
        setattr(converter, name, value)
    return converter.convert()


def _array(i: int, given: Any) -> jax.ShapeDtypeStruct:
    """An argument's shape and type; a shape alone is of float32."""
    if hasattr(given, "shape") and hasattr(given, "dtype"):
        shape, dtype = tuple(given.shape), getattr(given.dtype, "as_numpy_dtype", given.dtype)
    elif isinstance(given, (tuple, list)):
        shape, dtype = tuple(given), np.float32
    else:
        shape, dtype = (), None
    try:
        kind = jax.dtypes.canonicalize_dtype(dtype) if dtype is not None else None
    except (TypeError, ValueError):
        kind = None
    if kind is None or any(isinstance(size, (bool, float, tuple, list)) for size in shape):
        raise TypeError(
            f"inputs[{i}]: expected an array of numbers, a jax.ShapeDtypeStruct or a shape, got"
            f" {shown(given)}"
        )
    if not all(isinstance(size, (int, np.integer)) and size > 0 for size in shape):
        raise ValueError(
            f"inputs[{i}]: a model of TFLite has one size, of 1 or more, for every axis, got the"
            f" shape {shown(shape)}"
        )
    return jax.ShapeDtypeStruct(tuple(map(int, shape)), kind)
