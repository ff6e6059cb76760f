"""Fractional pooling (Graham 2014): window positions advance by a random mix of two steps."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxunpool.core import irregular
from jaxunpool.core.arguments import Sizes, as_averaged, as_ordered, check_ratio
from jaxunpool.core.backends import Implementation, check_implementation, check_plain
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import (
    DATA_FORMATS,
    DataFormat,
    Plane,
    as_array,
    as_sequence,
    check_choice,
    check_flag,
    check_known,
    per_axis,
    spatial_ndim,
    spatial_sizes,
)
from jaxunpool.core.messages import public, shown
from jaxunpool.core.resample import divide
from jaxunpool.indices import PoolIndices, check_plane, raise_first


@public
def fractional_max_pool(
    x: jax.typing.ArrayLike,
    window_shape: Sizes | None,
    output_shape: Sizes | None = None,
    *,
    output_ratio: float | Sequence[float] | None = None,
    key: jax.Array | None = None,
    random_samples: jax.typing.ArrayLike | None = None,
    sequences: Sequence[Any] | None = None,
    pseudo_random: bool = True,
    overlapping: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Maximum over windows at randomly spaced positions.

    As in Graham, "Fractional Max-Pooling" (2014), in two forms.

    With a `window_shape`, every window has that size, and each channel of each image has its own
    positions. This equals `torch.nn.functional.fractional_max_pool2d/3d`, bit for bit with
    `random_samples`.

    With `window_shape=None`, a window goes from one element of a sequence to the next, and the
    whole array shares one sequence per axis. This equals `tf.nn.fractional_max_pool`; pass its
    sequences as `sequences`. TensorFlow skips NaN; here ties, NaN and subnormal numbers are treated
    as in `max_pool`.

    Args:
        x: floats, integers or booleans, as in `max_pool`.
        window_shape: sizes of the windows; or None: windows go from one element of a sequence to
            the next.
        output_shape: spatial sizes of the result. An int is the size along each of `x.ndim - 2`
            spatial axes. None is allowed only with `output_ratio` or `sequences`.
        output_ratio: instead of `output_shape`, PyTorch's: sizes are multiplied by it and rounded
            down. A number above 0 and up to 1, or one per spatial axis. TensorFlow's
            `pooling_ratio` is its reciprocal.
        key: a `jax.random` key; the same key gives the same windows.
        random_samples: instead of a key, if there is a window: numbers in [0, 1) of shape
            `(*batch, channels, spatial axes)`, PyTorch's `_random_samples`. They are in PyTorch's
            order: in 2-D the first is for columns, in 3-D for depth.
        sequences: instead of a key, if there is no window. For each spatial axis, increasing ints
            from 0: the first element of each window, then the size of the axis. (If windows
            overlap, its last element is accepted too.) They cannot be traced.
        pseudo_random: with a key. True: `floor(alpha * (i + u))`, which makes steps as even as
            possible. False: the same steps in random order.
        overlapping: without a window: each window includes the first element of the next.
        data_format, implementation: as in `max_pool`.

    Returns:
        An array of x's type.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.
        NotImplementedError: as in `max_pool`.

    Example:
        >>> x = jnp.arange(7).reshape(7, 1)
        >>> fractional_max_pool(x, None, sequences=[(0, 1, 3, 5, 7)])[..., 0]
        Array([0, 2, 4, 6], dtype=int32)
        >>> fractional_max_pool(x, (2,), (5,), key=jax.random.key(0)).shape
        (5, 1)
    """
    return fractional_max_pool_with_indices(
        x,
        window_shape,
        output_shape,
        output_ratio=output_ratio,
        key=key,
        random_samples=random_samples,
        sequences=sequences,
        pseudo_random=pseudo_random,
        overlapping=overlapping,
        data_format=data_format,
        implementation=implementation,
    )[0]


@public
def fractional_max_pool_with_indices(
    x: jax.typing.ArrayLike,
    window_shape: Sizes | None,
    output_shape: Sizes | None = None,
    *,
    output_ratio: float | Sequence[float] | None = None,
    key: jax.Array | None = None,
    random_samples: jax.typing.ArrayLike | None = None,
    sequences: Sequence[Any] | None = None,
    pseudo_random: bool = True,
    overlapping: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> tuple[jax.Array, PoolIndices]:
    """Maximum of each randomly placed window, and its position.

    Args:
        x, window_shape, output_shape, output_ratio, key, random_samples, sequences, pseudo_random,
            overlapping, data_format, implementation: as in `fractional_max_pool`.

    Returns:
        The pooled array, and `PoolIndices` for `max_unpool`: flat int32 positions, equal to
        PyTorch's indices.

    Raises:
        ValueError, TypeError, NotImplementedError: as in `fractional_max_pool`.

    Example:
        >>> x = jnp.arange(7).reshape(7, 1)
        >>> y, indices = fractional_max_pool_with_indices(x, None, sequences=[(0, 1, 3, 5, 7)])
        >>> jaxunpool.max_unpool(y, indices)[..., 0]
        Array([0, 0, 2, 0, 4, 0, 6], dtype=int32)
    """
    x = as_ordered("x", x)
    check_choice("data_format", data_format, DATA_FORMATS)
    check_implementation(implementation)
    if output_ratio is not None:
        output_shape = _shape_of_ratio(x, output_ratio, output_shape, sequences, data_format)
    _check_source(window_shape, output_shape, key, random_samples, sequences)
    for name, flag in (("pseudo_random", pseudo_random), ("overlapping", overlapping)):
        check_flag(name, flag)
    if overlapping and window_shape is not None:
        raise ValueError("overlapping=True: only without a window (window_shape=None)")
    plane, outputs = _sizes(x, window_shape, output_shape, sequences, data_format)
    check_plane("x", plane.input_shape)
    if window_shape is not None:
        window = per_axis("window_shape", as_sequence(window_shape), plane.ndim, minimum=1)
        _check_room(plane.input_shape, window, outputs)
        if key is not None and not pseudo_random:
            starts = _shuffled_starts(key, _planes(x, plane), plane, window, outputs)
        else:
            samples = _samples(key, random_samples, x, plane)
            starts = _starts(samples, plane, window, outputs)
        starts, stops = [_for_planes(start, plane, i) for i, start in enumerate(starts)], None
        widths = list(window)
    else:
        starts, stops, widths = _without_window(
            key, sequences, plane, outputs, pseudo_random, bool(overlapping), x.ndim
        )
    y, flat = irregular.select(x, starts, stops, widths, plane, implementation)
    return y, PoolIndices(flat, plane)


@public
def fractional_avg_pool(
    x: jax.typing.ArrayLike,
    output_shape: Sizes | None = None,
    *,
    output_ratio: float | Sequence[float] | None = None,
    key: jax.Array | None = None,
    sequences: Sequence[Any] | None = None,
    pseudo_random: bool = True,
    overlapping: bool = False,
    data_format: DataFormat = "channels_last",
    implementation: Implementation = None,
) -> jax.Array:
    """Mean over windows at randomly spaced positions.

    Equal to `tf.nn.fractional_avg_pool` up to rounding; pass its sequences as `sequences`. The
    windows are those of `fractional_max_pool` without a `window_shape`. Floats of 8 and 16 bits are
    added in float32.

    Args:
        x: numbers or booleans, as in `avg_pool`.
        output_shape, output_ratio, key, sequences, pseudo_random, overlapping, data_format: as in
            `fractional_max_pool`.
        implementation: None or `"xla"`; both are plain JAX, with forward mode.

    Returns:
        An array of the type that `avg_pool` returns.

    Raises:
        ValueError, TypeError: an argument is wrong; the message names it. Raised at trace time.

    Example:
        >>> x = jnp.arange(7.0).reshape(7, 1)
        >>> fractional_avg_pool(x, sequences=[(0, 1, 3, 5, 7)])[..., 0]
        Array([0. , 1.5, 3.5, 5.5], dtype=float32)
        >>> fractional_avg_pool(x, output_ratio=(0.6,), key=jax.random.key(0)).shape
        (4, 1)
    """
    x = as_averaged("x", x)
    check_choice("data_format", data_format, DATA_FORMATS)
    check_plain(check_implementation(implementation), "averaging over uneven windows")
    if output_ratio is not None:
        output_shape = _shape_of_ratio(x, output_ratio, output_shape, sequences, data_format)
    _check_source(None, output_shape, key, None, sequences)
    for name, flag in (("pseudo_random", pseudo_random), ("overlapping", overlapping)):
        check_flag(name, flag)
    plane, outputs = _sizes(x, None, output_shape, sequences, data_format)
    starts, stops, widths = _without_window(
        key, sequences, plane, outputs, pseudo_random, bool(overlapping), x.ndim
    )
    return irregular.mean(x, starts, stops, widths, plane)


def _shape_of_ratio(
    x: jax.Array, ratio: Any, output_shape: Any, sequences: Any, data_format: DataFormat
) -> tuple[int, ...]:
    """The spatial sizes that an `output_ratio` asks for."""
    if output_shape is not None or sequences is not None:
        other = "output_shape" if output_shape is not None else "sequences"
        raise ValueError(f"output_ratio={shown(ratio)}: not together with {other}")
    ratio = as_sequence(ratio)
    factors = check_ratio(ratio)
    n = spatial_ndim("x", x.shape, "output_ratio", factors if isinstance(ratio, Sequence) else 1)
    sizes = spatial_sizes("x", x.shape, n, data_format)
    check_known("x", sizes)
    found = tuple(
        int(size * factor)
        for size, factor in zip(sizes, factors if isinstance(ratio, Sequence) else factors * n)
    )
    if min(found) < 1:
        raise ValueError(f"output_ratio={shown(ratio)}: leaves nothing of {sizes}, {found}")
    return found


def _without_window(
    key: Any,
    sequences: Any,
    plane: Plane,
    outputs: tuple[int, ...],
    pseudo_random: bool,
    overlapping: bool,
    ndim: int,
) -> tuple[list[jax.Array], list[jax.Array], list[int]]:
    """Starts, stops and largest widths of windows from one element of a sequence to the next."""
    if sequences is None:
        edges = _random_edges(key, plane.input_shape, outputs, pseudo_random)
        widths = [-(-size // output) for size, output in zip(plane.input_shape, outputs)]
    else:
        given = [
            _sequence(s, n, i, overlapping)
            for i, (s, n) in enumerate(zip(sequences, plane.input_shape))
        ]
        widths = [int(np.diff(edge).max()) for edge in given]
        edges = list(map(jnp.asarray, given))  # under jit, constants of its program
    starts, stops = _bounds(edges, plane, overlapping, ndim)
    return starts, stops, [width + overlapping for width in widths]


def _check_source(window: Any, output_shape: Any, key: Any, samples: Any, sequences: Any) -> None:
    """Exactly one source of positions, and one that fits the form of pooling."""
    given = {"key": key, "random_samples": samples, "sequences": sequences}
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ValueError(
            "key, random_samples, sequences: expected one of them, got"
            f" {' and '.join(names) or 'none'}"
        )
    if window is None and samples is not None:
        raise ValueError("random_samples: expected a window_shape with them, got None")
    if window is not None and sequences is not None:
        raise ValueError(f"window_shape={shown(window)}: expected None with sequences")
    if output_shape is None and sequences is None:
        raise ValueError(
            "output_shape=None: expected the spatial sizes of the result, or an output_ratio"
        )
    if key is not None:
        try:
            jax.eval_shape(jax.random.bits, key)
        except (TypeError, ValueError, AttributeError, OverflowError):
            raise TypeError(f"key: expected a jax.random key, got {shown(key)}") from None


def _sizes(
    x: jax.Array, window: Any, output_shape: Any, sequences: Any, data_format: DataFormat
) -> tuple[Plane, tuple[int, ...]]:
    """The spatial grid, from whichever argument has one entry per axis, and the result's sizes."""
    if sequences is not None and not isinstance(sequences, Sequence):
        raise TypeError(f"sequences: expected one per spatial axis, got {shown(sequences)}")
    candidates = {"output_shape": output_shape, "window_shape": window}
    if sequences is not None:
        candidates["sequences"] = [1] * len(sequences)
    given = {name: as_sequence(v) for name, v in candidates.items() if v is not None}
    name = next((n for n, v in given.items() if isinstance(v, Sequence)), next(iter(given)))
    n = spatial_ndim("x", x.shape, name, given[name])
    plane = Plane(input_shape=spatial_sizes("x", x.shape, n, data_format), data_format=data_format)
    check_known("x", plane.input_shape)
    if sequences is not None:
        if len(sequences) != n:
            raise ValueError(f"sequences: expected {n}, one per spatial axis, got {len(sequences)}")
        for i, sequence in enumerate(sequences):
            if not hasattr(sequence, "__len__"):
                raise TypeError(
                    f"sequences[{i}]: expected a vector of integers, got {shown(sequence)}"
                )
        found = tuple(len(sequence) - 1 for sequence in sequences)
        if output_shape is not None:
            outputs = per_axis("output_shape", given["output_shape"], n, minimum=1)
            if outputs != found:
                raise ValueError(
                    f"output_shape={shown(output_shape)}: sequences have {found} windows"
                )
        return plane, found
    outputs = per_axis("output_shape", given["output_shape"], n, minimum=1)
    check_known("output_shape", outputs)
    if any(output > size for output, size in zip(outputs, plane.input_shape)):
        raise ValueError(
            f"output_shape={shown(output_shape)}: expected at most the input's {plane.input_shape}"
        )
    return plane, outputs


def _check_room(sizes: Sequence[int], window: Sequence[int], outputs: Sequence[int]) -> None:
    """PyTorch's condition: the windows can start at as many different positions."""
    for size, k, output in zip(sizes, window, outputs):
        if output + k - 1 > size:
            raise ValueError(
                f"output_shape={tuple(outputs)}: expected at most {size - k + 1} windows of size"
                f" {k} along an axis of size {size} (window_shape={tuple(window)})"
            )


def _samples(key: Any, samples: Any, x: jax.Array, plane: Plane) -> jax.Array:
    """One number in [0, 1) per plane of x and spatial axis."""
    shape = (*_planes(x, plane), plane.ndim)
    if key is not None:
        return _uniform(key, shape, jnp.float64 if x.dtype == jnp.float64 else jnp.float32)
    samples = as_array("random_samples", samples)
    if not jnp.issubdtype(samples.dtype, jnp.floating):
        raise TypeError(f"random_samples: expected floats, got {samples.dtype}")
    if samples.shape != shape:
        raise ValueError(
            f"random_samples: expected shape {shape} (batch, channels, spatial axes), got"
            f" {samples.shape}"
        )
    if not isinstance(samples, jax.core.Tracer):
        raise_first("random_samples", samples, (samples >= 0) & (samples < 1), "a number in [0, 1)")
    return samples


# Jitted, as are those below, so that eager calls transfer nothing from the host.
_uniform = jax.jit(jax.random.uniform, static_argnums=(1, 2))


def _planes(x: jax.Array, plane: Plane) -> tuple[int, ...]:
    """Shape of x without its spatial axes: batch and channels."""
    spatial = {axis % x.ndim for axis in plane.axes}
    return tuple(size for axis, size in enumerate(x.shape) if axis not in spatial)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _starts(
    samples: jax.Array, plane: Plane, window: tuple[int, ...], outputs: tuple[int, ...]
) -> list[jax.Array]:
    """PyTorch's intervals, per spatial axis `(*batch, channels, windows)`, in the samples' type."""
    starts = []
    for i, (size, k, output) in enumerate(zip(plane.input_shape, window, outputs)):
        # PyTorch counts columns first in two dimensions, depth first in three.
        sample = samples[..., i if plane.ndim != 2 else 1 - i, None]
        last = size - k
        dtype = np.dtype(samples.dtype)
        alpha = dtype.type(last) / dtype.type(max(output - 1, 1))
        numbers = jnp.arange(output - 1, dtype=dtype).reshape((1,) * (sample.ndim - 1) + (-1,))
        steps = ((numbers + sample) * alpha).astype(jnp.int32)
        steps -= (sample * alpha).astype(jnp.int32)
        steps = jnp.clip(steps, 0, last)  # a traced sample may be anything
        end = jnp.full((*steps.shape[:-1], 1), last, jnp.int32)
        starts.append(jnp.concatenate([steps, end], -1))
    return starts


@functools.partial(jax.jit, static_argnums=(1, 2, 3, 4))
def _shuffled_starts(
    key: jax.Array,
    planes: tuple[int, ...],
    plane: Plane,
    window: tuple[int, ...],
    outputs: tuple[int, ...],
) -> list[jax.Array]:
    """Starts whose steps come in random order, another one for each plane."""
    starts = []
    for part, size, k, output in zip(
        jax.random.split(key, plane.ndim), plane.input_shape, window, outputs
    ):
        if output == 1:
            starts.append(jnp.full((*planes, 1), size - k, jnp.int32))
            continue
        steps = jnp.broadcast_to(_steps(size - k, output - 1), (*planes, output - 1))
        steps = jax.random.permutation(part, steps, axis=-1, independent=True)
        starts.append(jnp.pad(jnp.cumsum(steps, -1), [(0, 0)] * (steps.ndim - 1) + [(1, 0)]))
    return starts


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _random_edges(
    key: Any, sizes: tuple[int, ...], outputs: tuple[int, ...], pseudo_random: bool
) -> list[jax.Array]:
    """Per axis, the first element of each window and the size of the axis."""
    edges: list[jax.Array] = []
    for part, size, output in zip(jax.random.split(key, len(sizes)), sizes, outputs):
        if pseudo_random:
            edges.append(_even_edges(part, size, output))
        else:
            steps = jax.random.permutation(part, _steps(size, output))
            edges.append(jnp.pad(jnp.cumsum(steps), (1, 0)))
    return edges


def _even_edges(key: jax.Array, size: int, output: int) -> jax.Array:
    """`floor(alpha * i + v)` for `alpha = size / output` and a random `v` in [0, 1)."""
    v = jax.random.randint(key, (), 0, output).astype(np.uint32)  # in parts of `output`
    whole, rest = divide(output + 1, size, 0, output)
    return whole + (rest.astype(np.uint32) >= np.uint32(output) - v).astype(np.int32)


def _steps(total: int, count: int) -> jax.Array:
    """`count` steps that add up to `total`, of two neighbouring sizes at most."""
    small, larger = divmod(total, count)
    return small + (lax.iota(jnp.int32, count) < larger).astype(np.int32)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def _bounds(
    edges: list[jax.Array], plane: Plane, overlapping: bool, ndim: int
) -> tuple[list[jax.Array], list[jax.Array]]:
    """Per axis, the first element of each window and the one after its last."""
    starts, stops = [], []
    for edge, size, axis in zip(edges, plane.input_shape, plane.axes):
        stop = jnp.minimum(edge[1:] + 1, size) if overlapping else edge[1:]
        starts.append(irregular.aligned(edge[:-1], axis, ndim))
        stops.append(irregular.aligned(stop, axis, ndim))
    return starts, stops


def _sequence(sequence: Any, size: int, i: int, overlapping: bool) -> np.ndarray:
    """A given sequence, checked."""
    if isinstance(sequence, jax.core.Tracer):
        raise TypeError(f"sequences[{i}]: expected concrete integers, got {shown(sequence)}")
    try:
        values = np.asarray(sequence)
    except (TypeError, ValueError):  # tracers inside, or ragged lists
        raise TypeError(
            f"sequences[{i}]: expected concrete integers, got {shown(sequence)}"
        ) from None
    if values.ndim != 1 or not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"sequences[{i}]: expected a vector of integers, got {shown(sequence)}")
    values = values.astype(np.int64)  # differences of unsigned integers wrap around
    ends = (size - 1, size) if overlapping else (size,)
    if len(values) < 2 or values[0] != 0 or values[-1] not in ends or (np.diff(values) < 1).any():
        raise ValueError(
            f"sequences[{i}]: expected increasing integers from 0 to {size}, got {values.tolist()}"
        )
    return values.astype(np.int32)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _for_planes(starts: jax.Array, plane: Plane, i: int) -> jax.Array:
    """`(*batch, channels, windows)` with the windows along spatial axis `i` and 1 along others."""
    shape = (*starts.shape[:-1], *(starts.shape[-1] if j == i else 1 for j in range(plane.ndim)))
    starts = starts.reshape(shape)
    if plane.data_format == "channels_last":
        return jnp.moveaxis(starts, -plane.ndim - 1, -1)
    return starts
