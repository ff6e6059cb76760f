"""Conversion of indices from and to other frameworks, and weights from PyTorch.

| framework | layout | index |
| --- | --- | --- |
| PyTorch | channels first | position in the plane, `y * width + x` |
| TensorFlow | channels last | `(y * width + x) * channels + c`, or with the batch in front |
| ONNX | channels first | position in the whole tensor; planes by rows or by columns |

`width` is always the width of the array *before* pooling, without padding. Some code computes it
from the size after `"SAME"` padding, or as the pooled size times the stride. If the size is odd,
that shears the unpooled image (tensorflow issue 10216). `PoolIndices` know the size.

Indices come in as they are: arrays of any library, or tensors. They go out as JAX arrays (int64
where x64 is enabled), and for PyTorch as its tensors. Conversions are exact in both directions.
Outside `jit`, a ValueError names an index that is not an element of its window, channel and image.
Inside `jit`, such an index selects nothing. Indices that do not come from a pooling are often
outside their window: pass a bare `Plane` as the geometry, which accepts any position of the plane.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Collection, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import (
    MAX_INT32,
    Plane,
    WindowGeometry,
    as_int,
    as_sequence,
    check_flag,
    per_axis,
)
from jaxunpool.core.listing import listing
from jaxunpool.core.messages import public, shown
from jaxunpool.indices import (
    PackedIndices,
    PoolIndices,
    as_indices,
    as_pool_indices,
    check_geometry,
    check_plane,
    check_pooled_shape,
    narrow,
)

if TYPE_CHECKING:
    import torch
    from flax import nnx

__all__ = [
    "from_onnx",
    "from_tensorflow",
    "from_torch",
    "load_torch",
    "to_onnx",
    "to_tensorflow",
    "to_torch",
]
__dir__ = listing(globals())


@public
def from_torch(indices: Any, geometry: Plane) -> PoolIndices:
    """Indices of `torch.nn.functional.max_pool1d/2d/3d(..., return_indices=True)`.

    For indices of adaptive and fractional pooling, pass a bare `Plane` as `geometry`.

    Args:
        indices: integers of shape `(*batch, channels, *spatial)`: a PyTorch tensor, NumPy or JAX
            array.
        geometry: the windows of the pooling: `WindowGeometry.for_input(...)`, or the geometry of
            other `PoolIndices`. The result has its `data_format`.

    Returns:
        `PoolIndices` in the layout of `geometry`.

    Raises:
        TypeError: `indices` are not integers.
        ValueError: their shape does not fit, or an index is not an element of its window.

    Example:
        >>> window = jaxunpool.WindowGeometry.for_input((4, 4, 1), (2, 2))
        >>> from_torch(np.array([[[5, 7], [13, 15]]]), window).offsets[..., 0]
        Array([[3, 3],
               [3, 3]], dtype=uint8)
    """
    flat = _incoming(indices)
    theirs = _theirs(geometry, "channels_first")
    check_pooled_shape("indices", flat.shape, theirs)
    return _as_ours(flat, flat, theirs, geometry)


@public
def to_torch(indices: PoolIndices | PackedIndices) -> torch.Tensor:
    """Indices for `torch.nn.functional.max_unpool1d/2d/3d`.

    Args:
        indices: `PoolIndices` of either layout, packed or not.

    Returns:
        Positions in the plane, `(*batch, channels, *spatial)`, int64: a PyTorch tensor, on the
        device of the indices if PyTorch can use it, else on the CPU. Without PyTorch a NumPy
        array, for `torch.from_numpy` elsewhere. -1 for an offset that selects nothing.

    Raises:
        TypeError: not `PoolIndices`, or traced: convert what a jitted function returns. Inside it,
            `indices.flat` has the positions, in the layout of the indices.

    Example:
        >>> _, indices = jaxunpool.max_pool_with_indices(jnp.arange(16).reshape(4, 4, 1), (2, 2))
        >>> to_torch(indices).tolist()
        [[[5, 7], [13, 15]]]
    """
    flat = _in_layout(_checked(indices), "channels_first").flat
    if isinstance(flat, jax.core.Tracer):
        raise TypeError(
            "indices: expected concrete ones, got traced ones; return the PoolIndices from the"
            " function that is traced, and convert them outside"
        )
    try:
        import torch  # not before: importing it takes seconds
    except ImportError:
        return np.asarray(flat).astype(np.int64)
    try:
        return torch.from_dlpack(flat).to(torch.int64)
    except (BufferError, RuntimeError, ValueError):  # on several devices, or of another kind
        return torch.from_numpy(np.asarray(flat).astype(np.int64))


@public
def from_tensorflow(
    argmax: Any, geometry: Plane, *, include_batch_in_index: bool = False
) -> PoolIndices:
    """Indices of `tf.nn.max_pool_with_argmax`, with any padding.

    Args:
        argmax: integers of shape `(*batch, *spatial, channels)`: a TensorFlow tensor, NumPy or JAX
            array.
        geometry: the windows of the pooling: `WindowGeometry.for_input(...)` of the shape that was
            pooled, for example with `"SAME"` padding. For indices made by hand, which can be
            outside their windows, pass a bare `Plane` of the unpooled size. The result has its
            `data_format`.
        include_batch_in_index: the value that TensorFlow was called with.

    Returns:
        `PoolIndices` in the layout of `geometry`.

    Raises:
        TypeError: `argmax` are not integers.
        ValueError: their shape does not fit, or an index is not an element of its window, channel
            and image.

    Example:
        >>> window = jaxunpool.WindowGeometry.for_input((1, 3, 3, 1), (2, 2), padding="SAME")
        >>> argmax = np.array([[4, 5], [7, 8]]).reshape(1, 2, 2, 1)
        >>> from_tensorflow(argmax, window).flat[0, ..., 0]
        Array([[4, 5],
               [7, 8]], dtype=int32)
    """
    given = _incoming(argmax, "argmax")
    check_flag("include_batch_in_index", include_batch_in_index)
    theirs = _theirs(geometry, "channels_last")
    check_pooled_shape("argmax", given.shape, theirs)
    places = _run(_places_of_tensorflow, given, theirs, bool(include_batch_in_index))
    return _as_ours(places, given, theirs, geometry, "argmax")


@public
def to_tensorflow(
    indices: PoolIndices | PackedIndices, *, include_batch_in_index: bool = False
) -> jax.Array:
    """Indices as `tf.nn.max_pool_with_argmax` returns them.

    Args:
        indices: `PoolIndices` of either layout, packed or not.
        include_batch_in_index: `((b * H + y) * W + x) * C + c` instead of `(y * W + x) * C + c`,
            where `b` numbers the images.

    Returns:
        Integers of shape `(*batch, *spatial, channels)`: int64 where x64 is enabled, int32
        otherwise. -1 for an offset that selects nothing.

    Raises:
        TypeError: not `PoolIndices`.
        ValueError: the numbers need int64, and x64 is not enabled.

    Example:
        >>> _, indices = jaxunpool.max_pool_with_indices(jnp.arange(16).reshape(4, 2, 2), (2, 2))
        >>> to_tensorflow(indices)
        Array([[[ 6,  7]],
        <BLANKLINE>
               [[14, 15]]], dtype=int32)
    """
    check_flag("include_batch_in_index", include_batch_in_index)
    theirs = _in_layout(_checked(indices), "channels_last")
    n, channels = theirs.geometry.ndim, theirs.shape[-1]
    images = math.prod(theirs.shape[: -n - 1]) if include_batch_in_index else 1
    _check_range(images * math.prod(theirs.geometry.input_shape) * channels)
    return _run(_tensorflow_numbers, theirs.flat, theirs.geometry, bool(include_batch_in_index))


@public
def from_onnx(
    indices: Any,
    geometry: Plane,
    *,
    storage_order: int = 0,
    output_shape: int | tuple[int, ...] | None = None,
) -> PoolIndices:
    """Indices of ONNX `MaxPool`, and those that `MaxUnpool` takes.

    `MaxPool` counts positions in the tensor that was pooled. ONNX Runtime's `MaxUnpool` counts them
    in the tensor of its `output_shape`. If both have the same shape, pass
    `WindowGeometry.for_input` of that shape and no `output_shape`. Then the result equals ONNX
    Runtime's.

    ONNX's reference evaluator counts in the tensor that kernel, strides and pads imply
    (`WindowGeometry.for_output(y.shape, ...)`). Then it extends each axis at its end to
    `output_shape`. For that result, pass both.

    Args:
        indices: integers of shape `(*batch, channels, *spatial)`: a NumPy or JAX array.
        geometry: the tensor that the indices count in: `WindowGeometry.for_input(...)` or
            `for_output(...)`. For indices made by hand, which can be outside their windows, pass a
            bare `Plane` of the unpooled size. The result has its `data_format`.
        storage_order: 0 counts a plane by rows; 1 by columns, with the first spatial axis fastest.
            (ONNX's `MaxUnpool` always counts by rows.)
        output_shape: spatial sizes of the unpooled array, if they differ from the geometry's.

    Returns:
        `PoolIndices` in the layout of `geometry`.

    Raises:
        TypeError: `indices` are no integers.
        ValueError: their shape does not fit, or an index is not an element of its window and plane.

    Example:
        >>> pooled = jaxunpool.WindowGeometry.for_input(
        ...     (1, 1, 3, 3), (2, 2), data_format="channels_first")
        >>> jaxunpool.max_unpool(jnp.array([[[[5]]]]), from_onnx(np.array([[[[4]]]]), pooled))[0, 0]
        Array([[0, 0, 0],
               [0, 5, 0],
               [0, 0, 0]], dtype=int32)

        The example of ONNX's documentation, which ONNX Runtime answers otherwise:

        >>> y, places = np.array([[[[1, 2], [3, 4]]]]), np.array([[[[5, 7], [13, 15]]]])
        >>> implied = jaxunpool.WindowGeometry.for_output(
        ...     y.shape, (2, 2), data_format="channels_first")
        >>> jaxunpool.max_unpool(y, from_onnx(places, implied, output_shape=(5, 5)))[0, 0]
        Array([[0, 0, 0, 0, 0],
               [0, 1, 0, 2, 0],
               [0, 0, 0, 0, 0],
               [0, 3, 0, 4, 0],
               [0, 0, 0, 0, 0]], dtype=int32)
    """
    given = _incoming(indices)
    _check_order(storage_order)
    theirs = _theirs(geometry, "channels_first")
    check_pooled_shape("indices", given.shape, theirs)
    places = _run(_places_of_onnx, given, theirs, as_int("storage_order", storage_order))
    found = _as_ours(places, given, theirs, geometry)
    if output_shape is None:
        return found
    sizes = per_axis("output_shape", as_sequence(output_shape), theirs.ndim, minimum=1)
    if not isinstance(found.geometry, WindowGeometry):
        raise ValueError(f"output_shape={shown(output_shape)}: expected a WindowGeometry with it")
    grown = dataclasses.replace(found.geometry, input_shape=sizes)
    found = PoolIndices(found.offsets, grown)
    outside = _are_outside(found)
    if not isinstance(outside, jax.core.Tracer) and bool(jax.device_get(outside)):
        raise ValueError(f"output_shape={shown(output_shape)}: too small for some of the indices")
    return found


@public
def to_onnx(indices: PoolIndices | PackedIndices, *, storage_order: int = 0) -> jax.Array:
    """Indices as ONNX `MaxPool` returns them.

    Args:
        indices: `PoolIndices` of either layout, packed or not.
        storage_order: as in `from_onnx`.

    Returns:
        Positions in the whole tensor, `(*batch, channels, *spatial)`: int64 where x64 is enabled,
        int32 otherwise. -1 for an offset that selects nothing.

    Raises:
        TypeError: not `PoolIndices`.
        ValueError: the numbers need int64, and x64 is not enabled.

    Example:
        >>> _, indices = jaxunpool.max_pool_with_indices(jnp.arange(32).reshape(4, 4, 2), (2, 2))
        >>> to_onnx(indices, storage_order=1)
        Array([[[ 5, 13],
                [ 7, 15]],
        <BLANKLINE>
               [[21, 29],
                [23, 31]]], dtype=int32)
    """
    _check_order(storage_order)
    theirs = _in_layout(_checked(indices), "channels_first")
    planes = math.prod(theirs.shape[: -theirs.geometry.ndim])
    _check_range(planes * math.prod(theirs.geometry.input_shape))
    order = as_int("storage_order", storage_order)
    return _run(_onnx_numbers, theirs.flat, theirs.geometry, order)


@public
def load_torch(
    module: nnx.Module,
    state_dict: Mapping[str, Any] | str | os.PathLike[str],
    *,
    names: Mapping[str, str | None] | Callable[[str], str | None] | str | None = None,
    skip: str | Collection[str] = (),
    example: tuple[Any, Any] | None = None,
    tolerance: float = 1e-4,
) -> None:
    """Set the weights of a Flax NNX module to those of a PyTorch `state_dict`.

    The type of each layer of the module says how PyTorch lays out its tensors: `nnx.Conv`,
    `nnx.ConvTranspose` and `jaxunpool.nnx.ConvTranspose` of any rank, `nnx.Linear`,
    `nnx.LinearGeneral` without batch axes, `nnx.BatchNorm` with its running statistics,
    `nnx.LayerNorm`, `nnx.GroupNorm`, `nnx.InstanceNorm`, `nnx.RMSNorm`, `nnx.PReLU` and
    `nnx.Embed`. They can be in attributes, lists, dicts and other modules. What PyTorch's layer was
    made without is set to what it stands for: a bias to 0, a scale to 1.

    Layers are paired by their dotted names. (The names in an `nnx.Sequential` are those in PyTorch:
    `features.0`, without `layers`.) Everything is checked before the first value is set: after an
    error the module is as it was. Parameters keep their type and their sharding.

    A state dict holds no settings: strides, padding, `epsilon`, the order of activations. `example`
    checks these too.

    Args:
        module: any module; also an abstract one, from `nnx.eval_shape`.
        state_dict: tensors or arrays by name, in PyTorch's shapes, or the path of a `.npz` or
            `.safetensors` file. Nothing is unpickled.
        names: from the name of a layer here to its name there, as a mapping or a function. None
            there keeps the layer as it is. A mapping can also name what holds layers, so `{"":
            "model"}` puts `"model."` in front of all. By default names are equal. `"order"` pairs
            the first layer with the first, and so on: in the order in which attributes were set
            here and there. If sorting has lost that order, it raises an error.
        skip: what to leave out of the state dict: names, or their beginnings up to a dot.
        example: `(x, y)`, an input and PyTorch's result in eval mode, in the layout of the module
            (channels last). The module must return `y` for `x` in eval mode. If it takes several
            arrays, `x` is a tuple of them. Compute PyTorch's result on the CPU, and on TPU and GPU
            set `jax.default_matmul_precision("highest")`.
        tolerance: the largest difference from `y`, as a part of the largest magnitude in `y`. The
            default is for float32; 0.05 is for bfloat16.

    Returns:
        None; the module is changed.

    Raises:
        TypeError: an argument has the wrong type, or an array is not floating.
        ValueError: a layer does not fit. The message names the first, here and there, and what it
            looks like. Or the module does not return the example's `y`; the message has the
            difference.

    Example:
        >>> from flax import nnx
        >>> layers = [nnx.Conv(3, 8, (3, 3), rngs=nnx.Rngs(0)), nnx.BatchNorm(8, rngs=nnx.Rngs(0))]
        >>> weights = {"0.weight": np.ones((8, 3, 3, 3)), "0.bias": np.zeros(8)}
        >>> weights |= {"1.running_mean": np.zeros(8), "1.running_var": np.ones(8)}
        >>> jaxunpool.interop.load_torch(nnx.Sequential(*layers), weights)
        >>> layers[0].kernel.shape
        (3, 3, 3, 8)
    """
    from flax import nnx  # not before: not everyone who uses the functions has modules

    from jaxunpool.core import state_dicts, weights

    if not isinstance(module, nnx.Module):
        raise TypeError(f"module: expected an nnx.Module, got {shown(module)}")
    theirs = state_dicts.layers(state_dicts.read(state_dict), skip)
    values = weights.pairs(weights.layers_of(module), theirs, names)
    if example is not None:
        weights.check_example(module, values, example, tolerance)
    weights.write(values)


def _incoming(array: Any, name: str = "indices") -> Any:
    """An array as JAX's or NumPy's, without a copy; anything but integers is a TypeError."""
    if not isinstance(array, jax.Array | np.ndarray):
        try:
            on_cpu = not hasattr(array, "__dlpack_device__") or array.__dlpack_device__()[0] == 1
            array = np.asarray(array) if on_cpu else jnp.from_dlpack(array)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"{name}: expected an array of integers") from None
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integers, got {array.dtype}{list(array.shape)}")
    if array.dtype.itemsize < 4:
        return array.astype(np.int32)
    if jnp.issubdtype(array.dtype, jnp.unsignedinteger):  # too large ones become negative
        array = array.astype(np.int64 if isinstance(array, np.ndarray) else _widest())
    return array


def _theirs(geometry: Any, data_format: Any) -> Plane:
    """The geometry in the layout of a framework."""
    check_geometry("geometry", geometry)
    check_plane("geometry.input_shape", geometry.input_shape)
    return dataclasses.replace(geometry, data_format=data_format)


def _checked(indices: Any) -> PoolIndices:
    if not isinstance(indices, PoolIndices | PackedIndices):
        raise TypeError(f"indices: expected PoolIndices, got {type(indices).__name__}")
    return as_pool_indices(indices)


def _as_ours(
    flat: Any, given: Any, theirs: Plane, geometry: Plane, name: str = "indices"
) -> PoolIndices:
    """Positions in the planes of a framework's layout as PoolIndices in the user's."""
    found = PoolIndices.from_positions(name, as_indices(name, flat), given, theirs)
    return _in_layout(found, geometry.data_format)


def _in_layout(indices: PoolIndices, data_format: Any) -> PoolIndices:
    """The same indices with their channels in another place."""
    geometry = indices.geometry
    if geometry.data_format == data_format:
        return indices
    channel = -1, -geometry.ndim - 1
    source, destination = channel if data_format == "channels_first" else channel[::-1]
    offsets = jnp.moveaxis(indices.offsets, source, destination)
    return PoolIndices(offsets, dataclasses.replace(geometry, data_format=data_format))


def _without(places: Any, wrong: Any) -> Any:
    """Positions, with -1 for those that are wrong."""
    where = np.where if isinstance(places, np.ndarray) else jnp.where
    return where(wrong, -1, places)


def _run(fn: Callable[..., Any], array: Any, *options: Any) -> Any:
    """`fn(array, *options)`: NumPy arrays keep their 64 bits, and JAX's need no host."""
    return fn(array, *options) if isinstance(array, np.ndarray) else _jit(fn, array, options)


@functools.partial(jax.jit, static_argnums=(0, 2))
def _jit(fn: Callable[..., Any], array: jax.Array, options: tuple[Any, ...]) -> jax.Array:
    return fn(array, *options)


def _places_of_tensorflow(given: Any, plane: Plane, include_batch: bool) -> Any:
    """Positions in the plane; -1 where an index is none of its own channel or image."""
    channels, volume = given.shape[-1], math.prod(plane.input_shape)
    places, channel = given // channels, given % channels
    wrong = (given < 0) | (channel != _numbers(given, [given.ndim - 1]))
    if include_batch:
        images = _numbers(given, range(given.ndim - plane.ndim - 1))
        wrong |= places // volume != images
        places = places % volume
    return _without(places, wrong)


def _tensorflow_numbers(flat: jax.Array, plane: Plane, include_batch: bool) -> jax.Array:
    """TensorFlow's numbers for positions in the plane."""
    places = flat.astype(_widest())
    if include_batch:
        images = _numbers(places, range(flat.ndim - plane.ndim - 1))
        places = places + images * math.prod(plane.input_shape)
    places = places * flat.shape[-1] + _numbers(places, [flat.ndim - 1])
    return _without(places, flat < 0)


def _places_of_onnx(given: Any, plane: Plane, storage_order: int) -> Any:
    """Positions in the plane; -1 where an index is none of its own plane."""
    volume = math.prod(plane.input_shape)
    places = given % volume
    if storage_order:
        places = _reordered(places, plane.input_shape[::-1])
    planes = _numbers(given, range(given.ndim - plane.ndim))
    return _without(places, (given < 0) | (given // volume != planes))


def _onnx_numbers(flat: jax.Array, plane: Plane, storage_order: int) -> jax.Array:
    """ONNX's numbers for positions in the plane."""
    places = _reordered(flat, plane.input_shape) if storage_order else flat
    places = places.astype(_widest())
    planes = _numbers(places, range(flat.ndim - plane.ndim))
    return _without(places + planes * math.prod(plane.input_shape), flat < 0)


@jax.jit
def _are_outside(indices: PoolIndices) -> jax.Array:
    """Whether any index names an element of its window that lies outside the plane."""
    geometry = indices.geometry
    assert isinstance(geometry, WindowGeometry)
    return ((indices.flat < 0) & geometry.names_element(narrow(indices.offsets))).any()


def _numbers(like: Any, axes: Collection[int]) -> Any:
    """Raster numbers along some neighbouring axes, 1 along the others, in the type of `like`."""
    shape = [n if axis in axes else 1 for axis, n in enumerate(like.shape)]
    count = math.prod(shape)
    if isinstance(like, np.ndarray):
        return np.arange(count, dtype=like.dtype).reshape(shape)
    return lax.iota(like.dtype, count).reshape(shape)


def _reordered(flat: Any, sizes: tuple[int, ...]) -> Any:
    """Positions counted by rows of a plane of the given sizes, counted by columns."""
    result, rest = 0, flat
    for i in reversed(range(len(sizes))):
        position = rest % sizes[i] if i else rest
        rest = rest // sizes[i]
        result = result + position * math.prod(sizes[:i])
    return result


def _widest() -> Any:
    return np.int64 if jax.config.read("jax_enable_x64") else np.int32


def _check_range(count: int) -> None:
    if count - 1 > MAX_INT32 and _widest() == np.int32:
        raise ValueError(
            f"indices: positions among {count} elements need int64; enable jax_enable_x64"
        )


def _check_order(storage_order: Any) -> None:
    if as_int("storage_order", storage_order) not in (0, 1):
        raise ValueError(f"storage_order={shown(storage_order)}: expected 0 (rows) or 1 (columns)")
