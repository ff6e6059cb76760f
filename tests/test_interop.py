"""Index conventions: arrays from the frameworks' own documentation, and round trips."""

import dataclasses
import itertools
import sys

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from strategies import examples, poolings

import jaxunpool as jup
from jaxunpool import interop

# tf.nn.max_pool_with_argmax(x, 2, 2, "SAME") of two 4x4 images; indices with the batch in front.
TENSORFLOW_X = np.array(
    [
        [[0, 3, 0, 0], [4, 0, 4, 8], [7, 8, 4, 5], [2, 3, 4, 5]],
        [[2, 5, 2, 7], [4, 3, 4, 6], [8, 3, 2, 0], [7, 5, 9, 3]],
    ]
)[..., None]
TENSORFLOW_Y = np.array([[[4, 8], [8, 5]], [[5, 7], [8, 9]]])[..., None]
TENSORFLOW_ARGMAX = np.array([[[4, 7], [9, 11]], [[17, 19], [24, 30]]])[..., None]

# ONNX's own examples of MaxPool with indices, input 1..25 in a 5x5 plane.
ONNX_X = np.arange(1.0, 26).reshape(1, 1, 5, 5)


def test_tensorflow_documents_its_indices():
    y, indices = jup.max_pool_with_indices(TENSORFLOW_X, (2, 2), padding="SAME")
    np.testing.assert_array_equal(y, TENSORFLOW_Y)
    theirs = interop.to_tensorflow(indices, include_batch_in_index=True)
    np.testing.assert_array_equal(theirs, TENSORFLOW_ARGMAX)
    assert theirs.dtype == np.int64
    without = TENSORFLOW_ARGMAX - np.array([0, 16]).reshape(2, 1, 1, 1)
    np.testing.assert_array_equal(interop.to_tensorflow(indices), without)
    for argmax, batch in ((TENSORFLOW_ARGMAX, True), (without, False)):
        again = interop.from_tensorflow(argmax, indices.geometry, include_batch_in_index=batch)
        np.testing.assert_array_equal(again.offsets, indices.offsets)


@pytest.mark.few(2)
@pytest.mark.parametrize(("height", "width"), [(301, 201), (5, 5), (6, 7), (7, 6)])
def test_tensorflows_same_padding(height, width):
    """Its argmax counts in the unpadded width; read in the padded one, rows shear apart."""
    rng = np.random.default_rng(0)
    x = rng.permutation(height * width * 2).reshape(1, height, width, 2)
    y, indices = jup.max_pool_with_indices(x, (2, 2), padding="SAME")
    argmax = np.zeros(y.shape, np.int64)
    for i, j, c in np.ndindex(*y.shape[1:]):
        rows, columns = range(2 * i, min(2 * i + 2, height)), range(2 * j, min(2 * j + 2, width))
        _, r, k = max((x[0, r, k, c], r, k) for r, k in itertools.product(rows, columns))
        argmax[0, i, j, c] = (r * width + k) * 2 + c
    np.testing.assert_array_equal(interop.to_tensorflow(indices), argmax)
    again = interop.from_tensorflow(argmax, indices.geometry)
    np.testing.assert_array_equal(again.offsets, indices.offsets)
    u = np.asarray(jup.max_unpool(y, again))
    np.testing.assert_array_equal(u[u > 0], x[u > 0])


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"window_shape": (5, 5), "strides": 1, "padding": 2},
            [[12, 13, 14, 14, 14], [17, 18, 19, 19, 19]] + [[22, 23, 24, 24, 24]] * 3,
        ),
        ({"window_shape": (2, 2), "strides": 2, "storage_order": 1}, [[6, 16], [8, 18]]),
        ({"window_shape": (2, 2), "strides": 2}, [[6, 8], [16, 18]]),
    ],
)
def test_onnx_documents_its_indices(options, expected):
    order = {"storage_order": options.pop("storage_order", 0)}
    _, indices = jup.max_pool_with_indices(ONNX_X, **options, data_format="channels_first")
    np.testing.assert_array_equal(interop.to_onnx(indices, **order)[0, 0], expected)
    again = interop.from_onnx(np.array(expected)[None, None], indices.geometry, **order)
    np.testing.assert_array_equal(again.offsets, indices.offsets)


def test_onnx_max_unpool():
    """Its two examples: without an output shape, and grown to 5x5 at the end."""
    y, places = np.arange(1.0, 5).reshape(1, 1, 2, 2), np.array([[[[5, 7], [13, 15]]]])
    implied = jup.WindowGeometry.for_output(y.shape, (2, 2), 2, data_format="channels_first")
    u = jup.max_unpool(y, interop.from_onnx(places, implied))
    expected = np.zeros((5, 5))
    expected[[1, 1, 3, 3], [1, 3, 1, 3]] = [1, 2, 3, 4]
    np.testing.assert_array_equal(u[0, 0], expected[:4, :4])
    for size in (5, 9):
        u = jup.max_unpool(y, interop.from_onnx(places, implied, output_shape=(size, size)))
        np.testing.assert_array_equal(u[0, 0, :5, :5], expected)
        assert u.shape == (1, 1, size, size)
        assert u.sum() == 10
    with pytest.raises(ValueError, match=r"output_shape=\(3, 3\): too small"):
        interop.from_onnx(places, implied, output_shape=(3, 3))


# What ONNX Runtime 1.32.0 (CPU) and onnx.reference.ReferenceEvaluator of onnx 1.23.2 gave.

# MaxPool with kernel_shape and strides [2, 2] of 1..18 in two 3x3 images; MaxUnpool of the same.
RUNTIME_I = np.array([4, 13]).reshape(2, 1, 1, 1)
RUNTIME_U = np.zeros((2, 1, 3, 3))
RUNTIME_U[:, 0, 1, 1] = [5, 14]
# MaxPool with kernel_shape [3, 3], strides [2, 2] of two 5x5 images, 1 in the middle, else 0; then
# MaxUnpool of 1..8: where indices repeat, the last value stays.
RUNTIME_OVERLAP_I = np.array([12] * 4 + [37] * 4).reshape(2, 1, 2, 2)
# MaxPool(storage_order=1), kernel_shape [2, 2], strides [2, 2], of 0..29 in a 5x6 plane.
RUNTIME_COLUMNS = np.array([[6, 16, 26], [8, 18, 28]])
# MaxUnpool of 1..4 at indices made by hand (ONNX Runtime's own tests have them), by output_shape.
RUNTIME_BY_HAND = {
    (4, 4): ([1, 3, 4, 6], [[0, 1, 0, 2], [3, 0, 4, 0], [0] * 4, [0] * 4]),
    (5, 5): ([1, 3, 10, 12], [[0, 1, 0, 2, 0], [0] * 5, [3, 0, 4, 0, 0], [0] * 5, [0] * 5]),
}
# MaxUnpool of 1..4 at [5, 7, 13, 15] with output_shape 5x5: rows 1 to 3.
EXAMPLE_I = np.array([[[[5, 7], [13, 15]]]])
RUNTIME_EXAMPLE = [[1, 0, 2, 0, 0], [0, 0, 0, 3, 0], [4, 0, 0, 0, 0]]
REFERENCE_EXAMPLE = [[0, 1, 0, 2, 0], [0, 0, 0, 0, 0], [0, 3, 0, 4, 0]]


def test_onnx_runtime_unpools_what_it_pooled():
    """Indices of its MaxPool, in the shape that was pooled, which windows need not cover."""
    x = np.arange(1.0, 19).reshape(2, 1, 3, 3)
    y, indices = jup.max_pool_with_indices(x, (2, 2), data_format="channels_first")
    np.testing.assert_array_equal(interop.to_onnx(indices), RUNTIME_I)
    pooled = jup.WindowGeometry.for_input(x.shape, (2, 2), data_format="channels_first")
    plane = jup.Plane(input_shape=(3, 3), data_format="channels_first")
    for geometry in (pooled, plane):
        ours = interop.from_onnx(RUNTIME_I, geometry)
        np.testing.assert_array_equal(jup.max_unpool(y, ours), RUNTIME_U)
    implied = jup.WindowGeometry.for_output(y.shape, (2, 2), data_format="channels_first")
    with pytest.raises(
        ValueError, match=r"indices\[0, 0, 0, 0\] = 4: .*a Plane takes indices made by hand"
    ):
        interop.from_onnx(RUNTIME_I, implied, output_shape=(3, 3))  # both run times fail as well

    overlapping = jup.WindowGeometry.for_input((2, 1, 5, 5), 3, 2, data_format="channels_first")
    values = np.arange(1.0, 9).reshape(2, 1, 2, 2)
    u = np.array(jup.max_unpool(values, interop.from_onnx(RUNTIME_OVERLAP_I, overlapping)))
    np.testing.assert_array_equal(u[:, 0, 2, 2], [4, 8])
    assert u.sum() == 12


def test_onnx_runtime_counts_columns():
    x = np.arange(30.0).reshape(1, 1, 5, 6)
    _, indices = jup.max_pool_with_indices(x, (2, 2), data_format="channels_first")
    columns = interop.to_onnx(indices, storage_order=1)[0, 0]
    np.testing.assert_array_equal(columns, RUNTIME_COLUMNS)


@pytest.mark.parametrize("sizes", RUNTIME_BY_HAND)
def test_onnx_indices_made_by_hand_go_through_a_plane(sizes):
    numbers, expected = RUNTIME_BY_HAND[sizes]
    numbers = np.reshape(numbers, (1, 1, 2, 2))
    y = np.arange(1.0, 5).reshape(1, 1, 2, 2)
    plane = jup.Plane(input_shape=sizes, data_format="channels_first")
    u = jup.max_unpool(y, interop.from_onnx(numbers, plane))
    np.testing.assert_array_equal(u[0, 0, : len(expected)], expected)
    assert u.sum() == 10
    if sizes == (4, 4):  # 4 and 6 are in the second row, their windows begin in the third
        window = jup.WindowGeometry.for_output(y.shape, (2, 2), data_format="channels_first")
        with pytest.raises(ValueError, match=r"= 4: .*a Plane takes indices made by hand"):
            interop.from_onnx(numbers, window)


def test_onnx_runtime_and_the_reference_evaluator_differ():
    y = np.arange(1.0, 5).reshape(1, 1, 2, 2)
    plane = jup.Plane(input_shape=(5, 5), data_format="channels_first")
    u = jup.max_unpool(y, interop.from_onnx(EXAMPLE_I, plane))
    np.testing.assert_array_equal(u[0, 0, 1:4], RUNTIME_EXAMPLE)
    implied = jup.WindowGeometry.for_output(y.shape, (2, 2), data_format="channels_first")
    u = jup.max_unpool(y, interop.from_onnx(EXAMPLE_I, implied, output_shape=(5, 5)))
    np.testing.assert_array_equal(u[0, 0, 1:4], REFERENCE_EXAMPLE)


def test_tensorflow_indices_made_by_hand_go_through_a_plane():
    """TensorFlow Addons' own tests of MaxUnpooling2D: 2x2 values in a 4x2 plane, strides 2x1."""
    argmax = np.array([1, 6, 10, 13]).reshape(1, 2, 2, 1)
    y = np.arange(1.0, 5).reshape(1, 2, 2, 1)
    plane = jup.Plane(input_shape=(4, 4))
    u = jup.max_unpool(y, interop.from_tensorflow(argmax, plane), duplicates="sum")
    np.testing.assert_array_equal(np.flatnonzero(u), [1, 6, 10, 13])
    window = jup.WindowGeometry.for_input((1, 4, 4, 1), (2, 2), padding="SAME")
    with pytest.raises(
        ValueError, match=r"argmax\[0, 1, 0, 0\] = 10: .*a Plane takes indices made by hand"
    ):
        interop.from_tensorflow(argmax, window)


@hypothesis.settings(max_examples=examples(1, 40))
@hypothesis.given(pooling=poolings(), seed=st.integers(0, 2**32 - 1))
def test_round_trips_are_exact(pooling, seed):
    x = np.random.default_rng(seed).standard_normal(pooling.shape)
    try:
        _, indices = jup.max_pool_with_indices(x, **pooling.options)
    except ValueError:
        hypothesis.reject()
    geometry = indices.geometry
    for into, out_of, options in (
        (interop.to_torch, interop.from_torch, {}),
        (interop.to_tensorflow, interop.from_tensorflow, {"include_batch_in_index": True}),
        (interop.to_tensorflow, interop.from_tensorflow, {"include_batch_in_index": False}),
        (interop.to_onnx, interop.from_onnx, {"storage_order": 0}),
        (interop.to_onnx, interop.from_onnx, {"storage_order": 1}),
    ):
        theirs = np.asarray(into(indices, **options))
        again = out_of(theirs, geometry, **options)
        assert again.geometry == geometry
        np.testing.assert_array_equal(again.offsets, indices.offsets)
        inside = jax.jit(lambda i, f=out_of, o=options: f(i, geometry, **o).offsets)(theirs)
        np.testing.assert_array_equal(inside, indices.offsets)
        plane = jup.Plane(input_shape=geometry.input_shape, data_format=geometry.data_format)
        flat = out_of(theirs, plane, **options)
        np.testing.assert_array_equal(flat.flat, indices.flat)
        np.testing.assert_array_equal(into(flat, **options), theirs)


def test_each_numbers_the_elements_of_the_input(rng):
    """x, read at its indices in the framework's own order, gives the pooled array."""
    x = rng.standard_normal((2, 5, 7, 3))
    y, indices = jup.max_pool_with_indices(x, (3, 2), 2, "SAME")
    np.testing.assert_array_equal(
        x.ravel()[interop.to_tensorflow(indices, include_batch_in_index=True)], y
    )
    first, last = np.moveaxis(x, -1, 1), np.moveaxis(np.asarray(y), -1, 1)
    np.testing.assert_array_equal(first.ravel()[interop.to_onnx(indices)], last)
    columns = np.moveaxis(first, -1, -2)  # column-major planes
    np.testing.assert_array_equal(columns.ravel()[interop.to_onnx(indices, storage_order=1)], last)
    flat = np.asarray(interop.to_torch(indices))
    planes = np.take_along_axis(first.reshape(2, 3, -1), flat.reshape(2, 3, -1), -1)
    np.testing.assert_array_equal(planes.reshape(last.shape), last)


def test_int32_without_x64(rng):
    _, indices = jup.max_pool_with_indices(rng.standard_normal((4, 4, 1)), (2, 2))
    with jax.enable_x64(False):
        for into in (interop.to_tensorflow, interop.to_onnx):
            assert into(indices).dtype == np.int32
        wide = interop.to_torch(indices)
        assert np.asarray(wide).dtype == np.int64
        assert (interop.from_torch(wide, indices.geometry).offsets == indices.offsets).all()
        large = jup.Plane(input_shape=(2**15, 2**15))
        many = jup.PoolIndices(jnp.zeros((3, 1, 1, 1), jnp.int32), large)
        assert interop.to_tensorflow(many).size == 3
        with pytest.raises(ValueError, match="enable jax_enable_x64"):
            interop.to_tensorflow(many, include_batch_in_index=True)


@pytest.mark.few(3)
@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32", "int64", "uint64"])
@pytest.mark.parametrize("x64", [False, True])
def test_indices_of_any_integer_type(dtype, x64):
    """In arrays of NumPy and of JAX; one that is too large is named."""
    x = np.arange(32, dtype=np.float32).reshape(1, 4, 4, 2)
    with jax.enable_x64(x64):
        _, indices = jup.max_pool_with_indices(x, (2, 2))
        for into, out_of in (
            (interop.to_torch, interop.from_torch),
            (interop.to_tensorflow, interop.from_tensorflow),
            (interop.to_onnx, interop.from_onnx),
        ):
            theirs = np.asarray(into(indices)).astype(dtype)
            arrays = [theirs] if dtype.endswith("64") and not x64 else [theirs, jnp.asarray(theirs)]
            for array in arrays:
                again = out_of(array, indices.geometry)
                np.testing.assert_array_equal(again.offsets, indices.offsets, strict=True)
            theirs.flat[0] = np.iinfo(dtype).max
            with pytest.raises(ValueError, match=r"\[0, 0, 0, 0\] = .*: expected"):
                out_of(theirs, indices.geometry)


def test_wrong_indices_select_nothing_inside_jit(rng):
    _, indices = jup.max_pool_with_indices(rng.standard_normal((1, 4, 4, 1)), (2, 2))
    theirs = np.array(interop.to_tensorflow(indices, include_batch_in_index=True))
    theirs[0, 0, 0, 0] += 16  # the next image
    theirs[0, 1, 1, 0] = 0  # another window
    run = jax.jit(
        lambda i: interop.from_tensorflow(i, indices.geometry, include_batch_in_index=True).flat
    )
    np.testing.assert_array_equal(np.ravel(run(theirs)) == -1, [True, False, False, True])


def test_torch_tensors_come_in_as_they_are():
    torch = pytest.importorskip("torch")
    x = torch.randn(2, 3, 7, 8)
    y, theirs = torch.nn.functional.max_pool2d(x, 3, 2, 1, return_indices=True)
    geometry = jup.WindowGeometry.for_input((2, 7, 8, 3), (3, 3), 2, 1)  # channels last
    ours = interop.from_torch(theirs, geometry)
    _, expected = jup.max_pool_with_indices(x.permute(0, 2, 3, 1).numpy(), (3, 3), 2, 1)
    np.testing.assert_array_equal(ours.offsets, expected.offsets)
    back = interop.to_torch(ours)
    assert (type(back), back.dtype) == (torch.Tensor, torch.int64)
    u = torch.nn.functional.max_unpool2d(y, back, 3, 2, 1, output_size=(7, 8))
    mine = jup.max_unpool(y.permute(0, 2, 3, 1).numpy(), ours)
    np.testing.assert_array_equal(u.permute(0, 2, 3, 1), mine)
    _, theirs = torch.nn.functional.adaptive_max_pool2d(x, (3, 5), return_indices=True)
    plane = dataclasses.replace(jup.Plane(input_shape=(7, 8)), data_format="channels_first")
    np.testing.assert_array_equal(interop.from_torch(theirs, plane).flat, theirs)


@pytest.mark.few(1)
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("batch", [0, 2])
def test_pytorch_takes_what_to_torch_gives(x64, batch):
    """Of one device and of several, packed or not: a tensor of its own, which may be written to."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).standard_normal((batch, 6, 8, 3)).astype(np.float32)
    sharding = jax.sharding.NamedSharding(jax.make_mesh((2,), ("x",)), jax.P("x"))
    with jax.enable_x64(x64):
        for array in (x, jax.device_put(x, sharding)):
            y, indices = jup.max_pool_with_indices(array, (2, 2))
            first = torch.from_numpy(np.moveaxis(np.asarray(y), -1, 1).copy())
            for given in (indices, indices.pack()):
                theirs = interop.to_torch(given)
                if batch:
                    u = torch.nn.functional.max_unpool2d(first, theirs, 2)
                    np.testing.assert_array_equal(
                        np.moveaxis(u.numpy(), 1, -1), jup.max_unpool(y, indices)
                    )
                before = np.asarray(indices.flat).copy()
                theirs[:] = 0
                np.testing.assert_array_equal(indices.flat, before)


def test_without_pytorch_to_torch_gives_numpy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # cannot be imported
    _, indices = jup.max_pool_with_indices(np.arange(16.0).reshape(4, 4, 1), (2, 2))
    theirs = interop.to_torch(indices)
    np.testing.assert_array_equal(theirs, np.array([[[5, 7], [13, 15]]]), strict=True)


def test_to_torch_while_tracing_says_where_to_call_it():
    pool = lambda x: interop.to_torch(jup.max_pool_with_indices(x, (2, 2))[1])
    with pytest.raises(
        TypeError, match=r"indices: expected concrete ones, .* convert them outside"
    ):
        jax.jit(pool)(np.zeros((4, 4, 1)))
