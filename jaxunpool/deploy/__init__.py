"""Programs for other runtimes.

`to_onnx` makes ONNX models, `to_tflite` models for TFLite. SavedModel and `jax.export` need nothing
of this library: what JAX has for them takes every function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from jaxunpool.core.listing import listing

__all__ = ["to_onnx", "to_tflite"]
__dir__ = listing(globals())


def to_onnx(fn: Callable[..., Any], inputs: Sequence[Any], **options: Any) -> Any:
    """An ONNX model of a function or a Flax module.

    This is `jax2onnx.to_onnx`, with plugins for the functions of this library. Max pooling of
    float32 becomes ONNX's `MaxPool`. Max unpooling at the indices of such a pooling becomes
    `MaxUnpool`, unless the windows overlap and duplicates are added. Everything else becomes plain
    operators of ONNX.

    Results agree with JAX's up to rounding in ONNX Runtime, with one exception: `MaxPool` there
    does not find every NaN. ONNX has no random numbers of JAX: fractional pooling needs
    `random_samples` or `sequences`.

    Args:
        fn: a function of arrays that returns arrays, or a module. Return `indices.offsets`,
            `indices.flat` or `interop.to_onnx(indices)` in place of `PoolIndices`.
        inputs: for each argument an array, a `jax.ShapeDtypeStruct`, or a shape of float32. The
            size of a batch can be a name, as in `("B", 32, 32, 3)`; not with `interop.to_onnx`,
            which checks that ONNX can number all elements.
        options: as in `jax2onnx.to_onnx`: `model_name`, `opset`, `return_mode`, `output_path`, and
            others.

    Returns:
        An `onnx.ModelProto`; or as `return_mode` says.

    Raises:
        ImportError: jax2onnx is not installed, or does not work with this version of JAX.
        NotImplementedError: `fn` has an operation that jax2onnx does not know, or asks by name for
            an implementation other than `"xla"`.

    Example:
        >>> from jaxunpool import deploy
        >>> pool = lambda x: jaxunpool.max_pool(x, (2, 2))
        >>> model = deploy.to_onnx(pool, [("B", 4, 4, 3)])  # doctest: +SKIP
        >>> [node.op_type for node in model.graph.node]  # doctest: +SKIP
        ['Transpose', 'MaxPool', 'Transpose']
    """
    try:
        from jaxunpool.deploy import onnx
    except ImportError as error:
        raise ImportError(
            f"to_onnx: expected jax2onnx and a JAX that it works with ({error}); pip install"
            " 'jaxunpool[onnx]' brings both"
        ) from error
    return onnx.convert(fn, inputs, **options)


def to_tflite(fn: Callable[..., Any], inputs: Sequence[Any], **options: Any) -> bytes:
    """A TFLite model of a function or a Flax module, of TFLite's built-in operators alone.

    The library's primitives become operators that TFLite's interpreter has for arrays of any number
    of batch and spatial axes. Everything else is converted as `jax2tf` and TensorFlow's converter
    do it.

    Results of float32 agree with JAX's up to rounding; the page "Deploy" lists the exceptions.
    TFLite has no random numbers of JAX: fractional pooling needs `random_samples` or `sequences`.

    Args:
        fn: a function of arrays that returns arrays, or a module (of Linen: a bound one). Return
            `indices.offsets` or `indices.flat` in place of `PoolIndices`.
        inputs: for each argument an array, a `jax.ShapeDtypeStruct`, or a shape of float32. A model
            has one size for every axis. Types are those that JAX computes with: float32 for an
            array of float64, unless JAX has 64 bits.
        options: attributes of `tf.lite.TFLiteConverter`, such as `optimizations` and
            `representative_dataset`, which quantize a model.

    Returns:
        The model, for `tf.lite.Interpreter(model_content=...)` or a file. It has the arguments in
        their order, and the leaves of what `fn` returns in theirs.

    Raises:
        ImportError: TensorFlow is not installed.
        NotImplementedError: `fn` asks by name for an implementation other than `"xla"`.
        TypeError: an option is no attribute of the converter, or an input is no array and no shape.
        ValueError: the size of an axis is not known, or zero.

    Example:
        >>> from jaxunpool import deploy
        >>> pool = lambda x: jaxunpool.max_pool(x, (2, 2))
        >>> model = deploy.to_tflite(pool, [(1, 4, 4, 3)])  # doctest: +SKIP
    """
    try:
        from jaxunpool.deploy import tflite
    except ImportError as error:
        raise ImportError(
            f"to_tflite: expected TensorFlow ({error}); pip install 'jaxunpool[tflite]' brings it"
        ) from error
    return tflite.convert(fn, inputs, **options)
