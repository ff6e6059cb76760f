"""PoolIndices: which element of each window was selected, together with the window's geometry.

PackedIndices are the same in a quarter or half of the bytes.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn, Self

import jax
import numpy as np
from jax.experimental import checkify

from jaxunpool.core import saving
from jaxunpool.core.frozen import jnp
from jaxunpool.core.geometry import (
    MAX_INT32,
    Plane,
    WindowGeometry,
    along,
    as_array,
    as_sequence,
    decided,
    in_range,
    in_range_or,
    per_axis,
)
from jaxunpool.core.messages import public, shown
from jaxunpool.core.packing import Packing


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PoolIndices:
    """One selected element per window, stored as its position inside the window.

    `PoolIndices` are a pytree with one leaf, `offsets`, and a static `geometry`. They pass through
    `jit`, `vmap`, `scan`, `checkpoint` and `device_put` like an array. An offset takes one byte for
    windows of up to 255 elements; a flat int64 index takes eight. `flax.serialization` saves the
    offsets, and restores them into `PoolIndices` of the same geometry.

    If windows are not evenly spaced (adaptive and fractional pooling), `geometry` is a bare
    `Plane`, and the offsets are flat int32 positions in the plane.

    Attributes:
        offsets: integers of the pooled array's shape: the raster position inside the window. An
            offset that is not less than the number of elements of the window selects nothing.
        geometry: the `WindowGeometry`, or bare `Plane`, that the offsets refer to.

    Example:
        >>> y, indices = jaxunpool.max_pool_with_indices(jnp.arange(16.0).reshape(4, 4, 1), (2, 2))
        >>> indices
        PoolIndices(uint8[2,2,1], window=(2, 2), strides=(2, 2), input=(4, 4), 4 bytes)
        >>> indices.flat[..., 0]
        Array([[ 5,  7],
               [13, 15]], dtype=int32)
    """

    offsets: jax.Array
    geometry: Plane

    @classmethod
    def from_flat(cls, flat: jax.typing.ArrayLike, geometry: Plane) -> Self:
        """Indices from flat spatial positions (PyTorch's and ONNX's rule, per plane).

        Args:
            flat: integers of the pooled array's shape; `row * width + column` in the input plane.
            geometry: the `WindowGeometry` that was pooled with, or a bare `Plane`.

        Raises:
            TypeError: `flat` does not hold integers.
            ValueError: its shape does not fit the geometry, or a position is not an element of its
                window. Inside `jit`, where values are unknown, such a position selects nothing.
        """
        positions = as_indices("flat", flat)
        check_geometry("geometry", geometry)
        check_pooled_shape("flat", positions.shape, geometry)
        return cls.from_positions("flat", positions, flat, geometry)

    @classmethod
    def from_positions(cls, name: str, flat: jax.Array, given: Any, geometry: Plane) -> Self:
        """`from_flat` of checked arrays; an error shows the value the user gave, under its name."""
        offsets, inside = _offsets_from_flat(flat, geometry)
        if not isinstance(inside, jax.core.Tracer):
            has_windows = isinstance(geometry, WindowGeometry)
            place = f"a position in a {geometry.input_shape} plane"
            element = (
                f"an element of its window ({geometry}); a Plane takes indices made by hand, of any"
                " element of the same image and channel"
            )
            raise_first(name, given, inside, element if has_windows else place)
        return cls(offsets, geometry)

    @property
    def flat(self) -> jax.Array:
        """Flat spatial position in the input plane, int32 (PyTorch's and ONNX's rule); -1: none."""
        return flat_positions(narrow(self.offsets), self.geometry)

    def pack(self) -> PackedIndices:
        """The same indices in 2 bits for a window of up to 4 elements, in 4 bits up to 16.

        Packing is exact: `indices.pack().unpack()` has the same offsets. Indices from a pooling
        always fit. Indices made by hand can contain offsets that select nothing; for a window of
        exactly 4 or 16 elements, no bits are left for these.

        Raises:
            ValueError: the window has more than 16 elements, or there are no windows (adaptive and
                fractional pooling), or an offset does not fit. Inside `jit`, where values are
                unknown, such an offset becomes the largest that fits; to find these, call
                `validate_indices` before.
            TypeError: the offsets, made by hand, are no integers.

        Example:
            >>> _, indices = jaxunpool.max_pool_with_indices(jnp.ones((2, 8, 8, 16)), (2, 2))
            >>> indices.nbytes, indices.pack().nbytes
            (512, 128)
        """
        check_pool_indices(self)
        if not isinstance(self.geometry, WindowGeometry):
            raise ValueError(
                f"indices.geometry: expected a WindowGeometry to pack, got {self.geometry}, whose"
                " flat positions take 32 bits"
            )
        packing = Packing.for_pooled(self.shape, self.geometry)
        offsets = jnp.asarray(narrow(self.offsets))
        unsigned = offsets.astype(f"uint{8 * offsets.dtype.itemsize}")  # -1 is a large one
        if not isinstance(offsets, jax.core.Tracer):
            room = f"{packing.bits} bits have room for 0..{packing.largest}"
            raise_first(
                "indices.offsets",
                self.offsets,
                _is_position(unsigned, packing.largest + 1),
                f"an element of the window {self.geometry.window_shape} ({room})",
            )
        return PackedIndices(packing.pack(unsigned), self.geometry, packing)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pooled array."""
        return self.offsets.shape

    @property
    def nbytes(self) -> int:
        """Bytes the offsets take."""
        return math.prod(self.offsets.shape) * np.dtype(self.offsets.dtype).itemsize

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "PoolIndices are not an array: indices.flat has positions in the input plane,"
            " indices.offsets those in the windows"
        )

    def __repr__(self) -> str:
        if not hasattr(self.offsets, "dtype"):  # a placeholder put there by a tree transformation
            return f"PoolIndices({self.offsets!r}, {self.geometry!r})"
        return _described(self, self.offsets.dtype)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class PackedIndices:
    """`PoolIndices` in 2 bits for a window of up to 4 elements, in 4 bits up to 16.

    `PoolIndices.pack()` and `max_pool_with_packed_indices` return them. They are a pytree with one
    leaf, `data`, and static `geometry` and `packing`. Like `PoolIndices`, they pass through `jit`,
    `vmap`, `scan`, `checkpoint`, `device_put` and `flax.serialization`. Leading axes can be mapped
    over, sliced and sharded. `max_unpool` accepts them, and keeps them packed for the gradient.

    The SegNet paper also counts 2 bits for a 2x2 window: "A Deep Convolutional Encoder-Decoder
    Architecture for Image Segmentation", 2017, section 3.

    Attributes:
        data: uint8. It has the shape of the pooled array except along one axis, where 4 or 2
            neighbours share a byte: the channels, or a spatial axis if that takes fewer bytes.
        geometry: the `WindowGeometry` that the offsets refer to.
        packing: which axis, its size, and the bits of an offset.

    Example:
        >>> _, indices = jaxunpool.max_pool_with_indices(jnp.ones((2, 8, 8, 16)), (2, 2))
        >>> indices.pack()
        PackedIndices(uint2[2,4,4,16], window=(2, 2), strides=(2, 2), input=(8, 8), 128 bytes)
        >>> bool((indices.pack().unpack().offsets == indices.offsets).all())
        True
    """

    data: jax.Array
    geometry: WindowGeometry
    packing: Packing

    def unpack(self) -> PoolIndices:
        """The `PoolIndices` that were packed, with offsets of type uint8.

        Raises:
            TypeError: `data`, put there by hand, is not of type uint8.
            ValueError: its shape does not fit.
        """
        check_pool_indices(self)
        return PoolIndices(self.packing.unpack(jnp.asarray(self.data)), self.geometry)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the pooled array."""
        return self.packing.unpacked_shape(self.data.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that they take."""
        return math.prod(self.data.shape)

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            "PackedIndices are not an array: indices.unpack() returns PoolIndices; their flat has"
            " positions in the input plane, their offsets those in the windows"
        )

    def __repr__(self) -> str:
        if not hasattr(self.data, "dtype"):  # a placeholder, as in PoolIndices
            return f"PackedIndices({self.data!r}, {self.geometry!r})"
        return _described(self, f"uint{self.packing.bits}")


def _described(indices: PoolIndices | PackedIndices, dtype: Any) -> str:
    """The text that stands for indices."""
    g, name = indices.geometry, type(indices).__name__
    shape = ",".join(map(str, indices.shape))
    size = f"{indices.nbytes:,}" if isinstance(indices.nbytes, int) else indices.nbytes  # symbolic
    if not isinstance(g, WindowGeometry):
        return f"{name}({dtype}[{shape}], flat{_layout(g)}, input={g.input_shape}, {size} bytes)"
    extras = "".join(
        f", {name}={value}"
        for name, value, default in (
            ("padding", g.padding, ((0, 0),) * g.ndim),
            ("dilation", g.dilation, (1,) * g.ndim),
        )
        if value != default
    )
    return (
        f"{name}({dtype}[{shape}], window={g.window_shape}, strides={g.strides}{extras}"
        f"{_layout(g)}, input={g.input_shape}, {size} bytes)"
    )


def _register(kind: type, leaf: str) -> None:
    """Make a dataclass a pytree with this one leaf, its other fields being static."""
    static = [field.name for field in dataclasses.fields(kind) if field.name != leaf]

    def split(indices: Any) -> tuple[tuple[Any], tuple[Any, ...]]:
        return (getattr(indices, leaf),), tuple(getattr(indices, name) for name in static)

    def split_with_key(indices: Any) -> Any:
        (array,), rest = split(indices)
        return ((jax.tree_util.GetAttrKey(leaf), array),), rest

    def join(rest: tuple[Any, ...], leaves: Iterable[Any]) -> Any:
        # Of all pytrees, `nnx.tabulate` of Flax shows dicts, lists and tuples only, and what else
        # it finds leaves the classes of the model broken. In its tables the leaf stands for all.
        (array,) = leaves
        is_shown = type(array).__module__ == "flax.nnx.summary"
        return array if is_shown else kind(array, *rest)

    jax.tree_util.register_pytree_with_keys(kind, split_with_key, join, split)


LEAVES: dict[type, str] = {PoolIndices: "offsets", PackedIndices: "data"}
for _kind, _leaf in LEAVES.items():
    _register(_kind, _leaf)
saving.register(LEAVES)


@functools.partial(jax.jit, static_argnums=1)
def flat_positions(offsets: jax.Array, geometry: Plane) -> jax.Array:
    """Flat spatial position of every offset, int32; -1 where the offset selects nothing."""
    if not isinstance(geometry, WindowGeometry):
        return in_range_or(offsets, math.prod(geometry.input_shape), -1)
    check_plane("geometry.input_shape", geometry.input_shape)
    flat, inside = jnp.int32(0), geometry.names_element(offsets)
    for position, size in zip(geometry.positions(offsets), geometry.input_shape):
        flat = flat * size + position
        inside &= (position >= 0) & (position < size)
    return jnp.where(inside, flat, -1)


@public
def validate_indices(
    indices: PoolIndices | PackedIndices | jax.typing.ArrayLike,
    *,
    output_shape: int | tuple[int, ...] | None = None,
) -> None:
    """Raise if an index points outside the array it unpools into.

    Outside `jit`, the error names the first index that is out of range. Inside `jit`, the check is
    a `checkify.check`: transform the function with `jax.experimental.checkify.checkify`.

    Args:
        indices: `PoolIndices`, packed or not, or integers: flat positions, as in PyTorch.
        output_shape: spatial sizes of the plane, for raw integers; not for `PoolIndices`.

    Raises:
        ValueError: an index is out of range, or `output_shape` is missing or superfluous.
        TypeError: `indices` holds no integers.

    Example:
        >>> validate_indices(jnp.array([[[4]]]), output_shape=(2, 2))
        Traceback (most recent call last):
        ...
        ValueError: indices[0, 0, 0] = 4: expected a flat position in 0..3 of a (2, 2) plane
    """
    if isinstance(indices, PoolIndices | PackedIndices):
        if output_shape is not None:
            raise ValueError(f"output_shape={shown(output_shape)}: PoolIndices know theirs")
        indices = as_pool_indices(indices)
        flat, sizes = indices.flat, indices.geometry.input_shape
        values: Any = indices.offsets
        has_windows = isinstance(indices.geometry, WindowGeometry)
    else:
        flat, values, has_windows = as_indices("indices", indices), indices, False
        sizes = plane_sizes("indices", flat.shape, output_shape)
    position = f"a flat position in 0..{math.prod(sizes) - 1} of a {sizes} plane"
    expected = "an offset to an element of its window" if has_windows else position
    inside = _is_position(flat, math.prod(sizes))
    if isinstance(inside, jax.core.Tracer):
        checkify.check(jnp.all(inside), f"indices: expected {expected}")
    else:
        raise_first("indices", values, inside, expected)


def as_indices(name: str, values: Any) -> jax.Array:
    """`values` as an array of signed integers of 32 bits or more, or a TypeError."""
    if not isinstance(values, jax.Array):
        try:
            host = np.asarray(values)
        except (TypeError, ValueError):  # ragged lists
            raise TypeError(f"{name}: expected an array of integers") from None
        if host.dtype in (np.int64, np.uint64) and not jax.config.read("jax_enable_x64"):
            # JAX would wrap these around, perhaps into the plane; -1 is outside any.
            host = host.astype(np.int64)
            values = np.where((host >= 0) & (host <= MAX_INT32), host, -1).astype(np.int32)
    array = as_array(name, values)
    check_integers(name, array)
    if array.dtype.itemsize < 4:
        return array.astype(jnp.int32)
    # What is too large for the signed type becomes negative, which is outside any plane too.
    signed = {np.dtype(np.uint32): jnp.int32, np.dtype(np.uint64): jnp.int64}
    return array.astype(signed.get(array.dtype, array.dtype))


def narrow(offsets: Any) -> Any:
    """Offsets in 32 bits or fewer. Larger ones, of 64 bits, become -1, which selects nothing."""
    if offsets.dtype.itemsize < 8:
        return offsets
    offsets = as_indices("indices.offsets", offsets)
    return in_range_or(offsets, MAX_INT32, -1)


def check_integers(name: str, array: jax.Array) -> None:
    """A TypeError unless the array holds integers."""
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise TypeError(f"{name}: expected integers, got {array.dtype}{list(array.shape)}")


def check_geometry(name: str, geometry: Any) -> None:
    """A TypeError unless it is a WindowGeometry or a bare Plane."""
    if not isinstance(geometry, Plane):
        raise TypeError(f"{name}: expected a WindowGeometry, got {shown(geometry)}")


def check_pool_indices(indices: PoolIndices | PackedIndices) -> None:
    """Refuse indices, made by hand, whose offsets are no integers or not one per window."""
    check_geometry("indices.geometry", indices.geometry)
    if isinstance(indices, PackedIndices):
        data, packing = indices.data, indices.packing
        if getattr(data, "dtype", None) != np.uint8:
            got = getattr(data, "dtype", type(data).__name__)
            raise TypeError(f"indices.data: expected an array of uint8, got {got}")
        if len(data.shape) < indices.geometry.ndim + 1 or (
            packing.packed_shape(indices.shape) != tuple(data.shape)
        ):
            raise ValueError(f"indices.data: shape {tuple(data.shape)} does not fit {packing}")
        check_pooled_shape("indices", indices.shape, indices.geometry)
        return
    if not hasattr(indices.offsets, "dtype"):
        raise TypeError(f"indices.offsets: expected an array, got {type(indices.offsets).__name__}")
    check_integers("indices.offsets", indices.offsets)
    if jnp.iinfo(indices.offsets.dtype).bits < 8:
        raise TypeError(
            f"indices.offsets: expected integers of 8 bits or more, got {indices.offsets.dtype}"
        )
    check_pooled_shape("indices.offsets", indices.offsets.shape, indices.geometry)


def as_pool_indices(indices: PoolIndices | PackedIndices) -> PoolIndices:
    """Checked, and unpacked where they are packed."""
    check_pool_indices(indices)
    return indices.unpack() if isinstance(indices, PackedIndices) else indices


def check_owner(
    indices: PoolIndices | PackedIndices, sizes: Any = None, data_format: str | None = None
) -> None:
    """PoolIndices carry their geometry: what is said besides (not None) may only repeat it."""
    check_pool_indices(indices)
    geometry = indices.geometry
    if data_format not in (None, geometry.data_format):
        raise ValueError(
            f"data_format={data_format!r}: the PoolIndices were made with {geometry.data_format!r}"
        )
    if sizes is None:
        return
    given = per_axis("output_shape", as_sequence(sizes), geometry.ndim, minimum=1)
    if given != geometry.input_shape:
        raise ValueError(
            f"output_shape={sizes!r}: the PoolIndices were made for an input of spatial"
            f" size {geometry.input_shape}"
        )


def leaf_of(indices: PoolIndices | PackedIndices) -> tuple[jax.Array, Packing | None]:
    """The array of checked indices, and how it is packed."""
    if isinstance(indices, PackedIndices):
        return jnp.asarray(indices.data), indices.packing
    return narrow(indices.offsets), None


def plane_sizes(name: str, shape: tuple[int, ...], output_shape: Any) -> tuple[int, ...]:
    """The spatial sizes that raw indices, or an array with them, of the given shape point into."""
    output_shape = as_sequence(output_shape)
    if output_shape is None:
        raise ValueError(
            "output_shape: raw indices do not know it; expected the spatial sizes of the result"
            " (PoolIndices, from max_pool_with_indices, know theirs)"
        )
    n = len(output_shape) if isinstance(output_shape, Sequence) else len(shape) - 2
    if not 1 <= n <= 3 or len(shape) < n + 1:
        raise ValueError(
            f"output_shape={shown(output_shape)} does not fit {name} of shape {shape}: expected"
            f" 1 to 3 spatial axes and a channel axis (an int means {name}.ndim - 2 spatial axes)"
        )
    sizes = per_axis("output_shape", output_shape, n, minimum=1)
    check_plane("output_shape", sizes)
    return sizes


def check_plane(name: str, sizes: tuple[int, ...]) -> None:
    """Flat positions are int32: refuse a plane that has more."""
    if decided(lambda: math.prod(sizes) > MAX_INT32, False):
        raise ValueError(f"{name}: {sizes} has more positions than an int32 index can name")


def check_pooled_shape(name: str, shape: tuple[int, ...], geometry: Plane) -> None:
    """Refuse an array that is not one element per window of the geometry."""
    if not isinstance(geometry, WindowGeometry):
        if len(shape) < geometry.ndim + 1:
            raise ValueError(f"{name}: shape {tuple(shape)} does not fit {geometry}")
        return
    if len(shape) < geometry.ndim + 1 or geometry.pooled_shape(shape) != tuple(shape):
        raise ValueError(
            f"{name}: shape {tuple(shape)} does not fit {geometry}: expected spatial sizes"
            f" {geometry.output_shape} and a channel axis ({geometry.data_format})"
        )


def _layout(plane: Plane) -> str:
    return "" if plane.data_format == "channels_last" else f", data_format={plane.data_format}"


_is_position = jax.jit(in_range, static_argnums=1)


@functools.partial(jax.jit, static_argnums=1)
def _offsets_from_flat(flat: jax.Array, geometry: Plane) -> tuple[jax.Array, jax.Array]:
    """Offset of every flat position inside its window, and whether it is an element of it."""
    inside = _is_position(flat, math.prod(geometry.input_shape))
    if not isinstance(geometry, WindowGeometry):
        return jnp.where(inside, flat, -1).astype(jnp.int32), inside
    check_plane("geometry.input_shape", geometry.input_shape)
    rest = jnp.where(inside, flat, 0).astype(jnp.int32)
    offsets, weight = jnp.int32(0), 1
    for i in reversed(range(geometry.ndim)):
        rest, position = jnp.divmod(rest, geometry.input_shape[i])
        tap, is_element = geometry.spatial[i].tap(along(flat, geometry.axes[i]), position)
        inside &= is_element
        offsets, weight = offsets + tap * weight, weight * geometry.window_shape[i]
    return jnp.where(inside, offsets, geometry.volume).astype(geometry.offset_dtype), inside


def raise_first(name: str, values: Any, ok: Any, expected: str) -> None:
    """A ValueError that shows the first of the values that are not ok."""
    wrong = np.argwhere(~np.asarray(jax.device_get(ok)))
    if len(wrong):
        at = tuple(wrong[0].tolist())
        more = f" ({len(wrong)} of {np.size(values)} are wrong)" if len(wrong) > 1 else ""
        value = np.asarray(jax.device_get(values))[at]
        raise ValueError(f"{name}[{', '.join(map(str, at))}] = {value}: expected {expected}{more}")
