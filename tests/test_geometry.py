"""WindowGeometry: sizes, padding, derived properties."""

import itertools

import jax
import numpy as np
import oracle
import pytest

from jaxunpool import WindowGeometry


def grid():
    for size, window, stride, dilation, ceil_mode in itertools.product(
        range(1, 12), range(1, 6), range(1, 5), range(1, 4), (False, True)
    ):
        extent = dilation * (window - 1) + 1
        for padding in ("VALID", "SAME", *((lo, hi) for lo in range(3) for hi in range(3))):
            if isinstance(padding, str) or max(padding) < extent:
                yield size, window, stride, padding, dilation, ceil_mode


def test_sizes_agree_with_the_definitions():
    made = 0
    for size, window, stride, padding, dilation, ceil_mode in grid():
        resolved = padding if isinstance(padding, str) else (padding,)
        pads, (expected,) = oracle.pads_and_outputs(
            (size,), (window,), (stride,), resolved, (dilation,), ceil_mode
        )
        try:
            geometry = WindowGeometry.for_input(
                (3, size, 2), (window,), stride, resolved, dilation=dilation, ceil_mode=ceil_mode
            )
        except ValueError:
            # Refused: no window fits, or one of them would hold padding alone.
            inside = [
                any(0 <= o * stride - pads[0][0] + t * dilation < size for t in range(window))
                for o in range(expected)
            ]
            assert expected < 1 or not all(inside)
            continue
        assert geometry.output_shape == (expected,)
        assert geometry.padding == tuple(pads)
        assert geometry.pooled_shape((3, size, 2)) == (3, expected, 2)
        made += 1
    assert made > 4000


def test_last_window_starts_inside_the_input_or_its_low_padding():
    sizes = {
        (size, ceil): WindowGeometry.for_input((size, 1), (2,), 2, 1, ceil_mode=ceil).output_shape
        for size in (4, 5)
        for ceil in (False, True)
    }
    assert sizes == {(4, False): (3,), (4, True): (3,), (5, False): (3,), (5, True): (3,)}


@pytest.mark.parametrize("shape", [(6, 7, 3), (2, 6, 7, 3), (5, 2, 6, 7, 3)])
def test_spatial_axes_do_not_depend_on_leading_ones(shape):
    last = WindowGeometry.for_input(shape, (2, 2))
    assert last.axes == (-3, -2)
    assert last.input_shape == (6, 7)
    first = WindowGeometry.for_input((*shape[:-3], 3, 6, 7), (2, 2), data_format="channels_first")
    assert first.axes == (-2, -1)
    assert first.input_shape == (6, 7)


@pytest.mark.parametrize(("ndim", "expected"), [(3, (4,)), (4, (4, 4)), (5, (4, 4, 4))])
def test_an_int_window_covers_all_but_batch_and_channels(ndim, expected):
    assert WindowGeometry.for_input((8,) * ndim, 2).output_shape == expected


@pytest.mark.parametrize(
    ("window", "dtype"), [((16, 16), "uint8"), ((257,), "uint16"), ((41, 41, 41), "uint32")]
)
def test_offsets_take_the_smallest_unsigned_type(window, dtype):
    geometry = WindowGeometry.for_input((*(300,) * len(window), 1), window)
    assert geometry.offset_dtype == np.dtype(dtype)


@pytest.mark.parametrize(
    ("window", "strides", "dilation", "expected"),
    [(2, 2, 1, False), (3, 2, 1, True), (2, 3, 1, False), (2, 2, 2, True), (9, 1, 1, False)],
)
def test_overlaps(window, strides, dilation, expected):
    geometry = WindowGeometry.for_input((9, 1), (window,), strides, dilation=dilation)
    assert geometry.overlaps is expected


def test_geometry_is_a_static_value():
    make = lambda: WindowGeometry.for_input((8, 8, 1), [2, 2], np.int64(2), padding=1)
    assert make() == make()
    assert hash(make()) == hash(make())
    assert jax.jit(lambda x, g: x * g.volume, static_argnums=1)(1, make()) == 4
