"""WindowGeometry: sizes, padding, derived properties."""

import itertools

import hypothesis
import jax
import numpy as np
import oracle
import pytest
from hypothesis import strategies as st
from jax import export
from strategies import examples

import jaxunpool as jup
from jaxunpool import WindowGeometry


def grid():
    for size, window, stride, dilation, ceil_mode in itertools.product(
        range(1, 12), range(1, 6), range(1, 5), range(1, 4), (False, True)
    ):
        extent = dilation * (window - 1) + 1
        for padding in (
            "VALID",
            "SAME",
            "SAME_LOWER",
            *((lo, hi) for lo in range(3) for hi in range(3)),
        ):
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
    ("window", "dtype"),
    [
        ((15, 17), "uint8"),
        ((16, 16), "uint16"),
        ((5, 51, 257), "uint16"),
        ((256, 256), "uint32"),
        ((41, 41, 41), "uint32"),
    ],
)
def test_offsets_take_the_smallest_unsigned_type_with_room_for_nothing(window, dtype):
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


LIMIT = 2**31 - 1


def test_axes_up_to_the_limit_of_int32():
    at = lambda size, *args, **kwargs: WindowGeometry.for_input((size, 1), *args, **kwargs)
    assert at(LIMIT, (2,)).input_shape == (LIMIT,)
    assert at(LIMIT, (LIMIT,)).volume == LIMIT
    assert at(LIMIT - 2, (3,), 1, 1).output_shape == (LIMIT - 2,)
    assert WindowGeometry.for_output((2**30, 1), (1,), 2).input_shape == (LIMIT,)
    limit = f"expected at most {LIMIT} elements along an axis, got"
    for name, make in {
        "x": lambda: at(LIMIT + 1, (2,)),
        "padding=1": lambda: at(LIMIT - 1, (3,), 1, 1),
        "padding='SAME'": lambda: at(LIMIT, (3,), 1, "SAME"),
        "padding='VALID'": lambda: at(LIMIT, (2,), 2, ceil_mode=True),
        "y": lambda: WindowGeometry.for_output((LIMIT + 1, 1), (2,)),
        r"strides=\(2,\) with window_shape=\(2,\)": lambda: WindowGeometry.for_output(
            (2**30, 1), (2,)
        ),
        "input_shape": lambda: jup.Plane(input_shape=(LIMIT + 1,)),
    }.items():
        with pytest.raises(ValueError, match=rf"^{name}: {limit}"):
            make()
    with pytest.raises(ValueError, match=rf"^window_shape=.*: expected at most {LIMIT} elements$"):
        WindowGeometry.for_input((2**16, 2**15, 1), (2**16, 2**15))


@hypothesis.settings(max_examples=examples(60, 500))
@hypothesis.given(st.data())
def test_axis_is_what_counting_says(data):
    """All border arithmetic, against lists of positions."""
    draw = lambda low, high: data.draw(st.integers(low, high))
    window, stride, dilation = draw(1, 4), draw(1, 4), draw(1, 3)
    span = (window - 1) * dilation + 1
    pads, ceil_mode = ((draw(0, span - 1), draw(0, span - 1)),), data.draw(st.booleans())
    options = {"strides": stride, "padding": pads, "dilation": dilation, "ceil_mode": ceil_mode}
    try:
        geometry = jup.WindowGeometry.for_input((draw(1, 12), 1), (window,), **options)
    except ValueError:
        hypothesis.reject()
    (axis,) = geometry.spatial
    inside, padded = range(axis.size), range(-axis.low, axis.size + axis.high)
    grid = np.arange(24)[:, None], np.arange(12)  # of one shape: compiled once
    members = [
        [o * stride - axis.low + tap * axis.dilation for tap in range(window)]
        for o in range(axis.outputs)
    ]
    covering = [[(o, own.index(p)) for o, own in enumerate(members) if p in own] for p in inside]

    assert [[axis.position(o, t) for t in range(window)] for o in range(axis.outputs)] == members
    assert axis.stop == members[-1][-1] + 1
    meet = any(len(some) > 1 for some in covering)
    assert axis.overlaps or not meet
    assert axis.overlaps == meet or dilation > 1  # elements apart may interleave
    none_meet = len({p for own in members for p in own}) == axis.outputs * window
    assert (axis.is_last(*grid) is True) == none_meet  # padding counts
    for is_padded, there in ((False, inside), (True, padded)):
        counts = [sum(p in there for p in own) for own in members]
        assert [int(axis.count(o, padded=is_padded)) for o in range(axis.outputs)] == counts
        assert axis.is_full(padded=is_padded) == (set(counts) == {window})
    for o, own in enumerate(members):
        assert int(axis.first(o)) == next(t for t, p in enumerate(own) if p in inside)
        assert [bool(axis.has(o, t)) for t in range(window)] == [p in inside for p in own]
    taps, is_element = map(np.asarray, axis.tap(*grid))
    wanted = [[p in own for p in range(12)] for own in members]
    assert is_element[: axis.outputs].tolist() == wanted
    for p, some in zip(inside, covering):
        assert int(axis.covers(p)) == len(some) <= axis.most_covers
        assert [w for w in axis.covering(p) if 0 <= w[0] < axis.outputs] == some
        for o, t in some:
            assert bool(axis.is_last(o, t)) == ((o, t) == some[-1])
            assert taps[o, p] == t
        cell, element = divmod(p, stride)
        assert {o - cell for o, _ in some} <= {*axis.reaching(1)} <= {*axis.shifts}
        assert {o for o, _ in axis.covering(element)} <= {*axis.shifts}

    # In cells of `stride` elements, with as many more windows at both ends as it takes.
    assert axis.overhang == max(members[-1][-1] + 1 - axis.size, 0)
    assert axis.cells == len({p // stride for p in inside})
    starts = {o: o * stride - axis.low for o in range(-20, 30)}
    reach = [o for o, start in starts.items() if start < stride and start + span > 0]
    assert list(axis.shifts) == reach
    assert axis.cells_without == max(axis.cells - 1 + reach[-1] - (axis.outputs - 1), 0)
    starts_of_cells = range(0, axis.size, stride)
    are_whole = len(starts_of_cells) == axis.outputs and axis.size % stride == 0
    in_cell = all(p // stride == o for o, own in enumerate(members) for p in own)
    assert axis.is_tiled == (are_whole and in_cell)
    for shards in range(1, 5):
        assert axis.divides(shards) == (are_whole and axis.outputs % shards == 0)
    own = [axis.position(0, tap) for tap in range(window)]
    others = {p // stride for p in own} | {o for p in own for o, _ in axis.covering(p)}
    assert axis.halo >= max(map(abs, others))
    assert axis.halo <= max(-(-(span - 1) // stride), 1)
    assert (axis.halo == 0) == (others == {0})


def test_many_taps_that_are_apart():
    """Windows over a position are counted by a loop."""
    geometry = WindowGeometry.for_input((40, 1), (9,), 3, 4, dilation=2)
    (axis,) = geometry.spatial
    members = [{axis.position(o, tap) for tap in range(9)} for o in range(axis.outputs)]
    counts = [sum(p in own for own in members) for p in range(40)]
    np.testing.assert_array_equal(axis.covers(np.arange(40)), counts)
    assert {*counts} == {1, 2, 3}


def test_an_open_size_takes_the_most_that_windows_can_reach_beyond():
    (n,) = export.symbolic_shape("n", constraints=["n >= 12"])
    settings = itertools.product(
        (1, 2, 3, 4), (1, 2, 3), (1, 2), [(0, 0), (1, 0), (0, 1), (2, 2)], (False, True)
    )
    left_open = 0
    for window, strides, dilation, pads, ceil_mode in itertools.islice(settings, 0, None, 5):
        if max(pads) > (window - 1) * dilation:
            continue
        options = {"padding": (pads,), "dilation": dilation, "ceil_mode": ceil_mode}
        make = lambda size: WindowGeometry.for_input((size, 1), (window,), strides, **options)
        try:
            (axis,) = make(n).spatial
        except ValueError:  # whether they reach beyond the padding is left open
            continue
        if isinstance(axis.overhang, int):
            assert axis.overhang == max(make(size).spatial[0].overhang for size in range(12, 18))
            left_open += strides > 1
    assert left_open > 5
