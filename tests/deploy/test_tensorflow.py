"""TensorFlow's SavedModel and TFLite's interpreter compute what JAX does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="in the extra 'deploy'")
from cases import AWKWARD, ENTRIES, FUNCTIONS, FURTHER, GRADIENTS, SAVED, WINDOWS  # noqa: E402
from jax.experimental import jax2tf  # noqa: E402

import jaxunpool as jup  # noqa: E402
from jaxunpool import deploy, models  # noqa: E402

LITE = {**FUNCTIONS, **FURTHER, **WINDOWS, **GRADIENTS, **AWKWARD}


def interpret(model, x):
    interpreter = tf.lite.Interpreter(model_content=model)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], x)
    interpreter.invoke()
    results = sorted(interpreter.get_output_details(), key=lambda result: result["name"])
    return [interpreter.get_tensor(result["index"]) for result in results]


def close(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", LITE)
def test_lite(name):
    run, x = LITE[name]
    close(interpret(deploy.to_tflite(run, [x]), x), jax.tree.leaves(jax.jit(run)(x)))


@pytest.mark.parametrize("decoder", models.DECODERS)
def test_lite_segnet(decoder):
    from flax import nnx

    network = models.SegNetBasic(
        3, 5, features=8, kernel_size=3, stages=2, decoder=decoder, rngs=nnx.Rngs(0)
    )
    network.eval()
    x = np.random.default_rng(0).standard_normal((2, 21, 30, 3), np.float32)
    model = deploy.to_tflite(network, [x.shape])
    close(interpret(model, x), [np.asarray(network(x))])


def test_lite_has_arguments_and_results_in_order():
    def run(flat, y):
        u = jup.max_unpool(y, flat, output_shape=(4, 4))
        return {"b": u, "a": (y, flat)}

    y = np.random.default_rng(0).standard_normal((1, 2, 2, 3), np.float32)
    flat = np.random.default_rng(0).integers(0, 16, y.shape, np.int32)
    shapes = [jax.ShapeDtypeStruct(flat.shape, flat.dtype), list(y.shape)]
    interpreter = tf.lite.Interpreter(model_content=deploy.to_tflite(run, shapes))
    interpreter.allocate_tensors()
    for place, array in zip(interpreter.get_input_details(), (flat, y), strict=True):
        interpreter.set_tensor(place["index"], array)
    interpreter.invoke()
    places = interpreter.get_output_details()
    found = [interpreter.get_tensor(place["index"]) for place in places]
    close(found, jax.tree.leaves(run(flat, y)))


def test_lite_takes_options():
    """Here weights of 8 bits."""
    weights = np.random.default_rng(0).standard_normal((128, 64), np.float32)
    run = lambda x: jup.max_pool(x, 2).reshape(1, -1) @ weights
    model = deploy.to_tflite(run, [(1, 8, 8, 8)])
    small = deploy.to_tflite(run, [(1, 8, 8, 8)], optimizations=[tf.lite.Optimize.DEFAULT])
    assert len(small) < len(model) / 2


def test_lite_quantizes_windows_that_meet():
    """All values in 8 bits, which its operators for padding between elements do not have."""
    x = np.random.default_rng(0).standard_normal((1, 8, 8, 4), np.float32)
    y, indices = jax.jit(lambda x: jup.max_pool_with_indices(x, 3, 2, 1))(x)
    offsets = jax.tree.map(np.asarray, indices)

    def run(y):
        return jup.max_unpool(y, jax.tree.map(jnp.asarray, offsets))

    model = deploy.to_tflite(
        run,
        [y],
        optimizations=[tf.lite.Optimize.DEFAULT],
        representative_dataset=lambda: [[np.asarray(y)]] * 8,
    )
    (found,) = interpret(model, y)
    step = float(y.max() - y.min()) / 255
    assert 0 < np.abs(found - run(y)).max() < step


def test_lite_leaves_nothing_behind():
    """What is lowered for TFLite is not what JAX runs, before and after a model or a failure."""
    run, x = AWKWARD["flat, sum, two batches"]
    program, later = jax.jit(run), jax.jit(lambda x: run(x))
    before, wanted = program.lower(x).as_text(), program(x)

    def stop(x):
        run(x)
        raise RuntimeError("no model")

    for one in (program, later):  # one that JAX has lowered already, one that it has not
        deploy.to_tflite(one, [x])
        with pytest.raises(RuntimeError, match="no model"):
            deploy.to_tflite(stop, [x])
        assert "while" not in one.lower(x).as_text()
        close(one(x), wanted)
    jax.clear_caches()
    assert program.lower(x).as_text() == before


@pytest.mark.parametrize(
    ("inputs", "options", "error", "message"),
    [
        ([("B", 8, 8, 3)], {}, ValueError, r"inputs\[0\]: a model of TFLite has one size"),
        ([(0, 8, 8, 3)], {}, ValueError, r"inputs\[0\]: .*of 1 or more"),
        ([3], {}, TypeError, r"inputs\[0\]: expected an array.*got 3"),
        ([[[1.0, 2.0]]], {}, TypeError, r"inputs\[0\]: expected an array"),
        ([jax.random.key(0)], {}, TypeError, r"inputs\[0\]: expected an array of numbers"),
        ([{"x": (1, 8, 8, 3)}], {}, TypeError, r"inputs\[0\]: expected an array"),
        ([(1, 8, 8, 3)], {"optimise": 1}, TypeError, "'optimise' is no attribute"),
    ],
)
def test_lite_refuses(inputs, options, error, message):
    with pytest.raises(error, match=message):
        deploy.to_tflite(lambda x: jup.max_pool(x, 2), inputs, **options)


def test_lite_takes_what_jax_computes_with():
    """Sizes of NumPy, and float32 for arrays of float64."""
    given = [tuple(np.array([1, 4, 4, 3])), np.ones((1, 4, 4, 3)), tf.TensorSpec((1, 4, 4, 3))]
    models = [deploy.to_tflite(lambda x: jup.max_pool(x, 2), [one]) for one in given]
    for model in models:
        (place,) = tf.lite.Interpreter(model_content=model).get_input_details()
        assert place["dtype"] == np.float32


def test_lite_has_no_kernels():
    run = lambda x: jup.max_pool(x, 2, implementation="native_cpu")
    with pytest.raises(NotImplementedError, match="implementation='native_cpu'"):
        deploy.to_tflite(run, [(1, 8, 8, 3)])


@pytest.mark.parametrize("name", SAVED)
def test_saved_model(name, tmp_path):
    """Values and gradients of a model that is saved with an open batch."""
    _, x = FUNCTIONS[name]
    x = np.concatenate([x, 2 * x, -x])
    run = lambda x: ENTRIES[name].run(x)
    module, batch = tf.Module(), "(b, " + ", ".join("_" * (x.ndim - 1)) + ")"
    module.run = tf.function(
        jax2tf.convert(run, polymorphic_shapes=[batch]),
        autograph=False,
        input_signature=[tf.TensorSpec((None, *x.shape[1:]), x.dtype)],
    )
    tf.saved_model.save(
        module,
        str(tmp_path),
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=True),
    )
    restored = tf.saved_model.load(str(tmp_path))
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        y = restored.run(variable)
        loss = tf.reduce_sum(y**3)
    close([y.numpy()], [np.asarray(jax.jit(run)(x))])
    expected = jax.jit(jax.grad(lambda x: (run(x) ** 3).sum()))(x)
    # Cubes of sums of cubes: rounded to the size of the largest.
    gradient = tape.gradient(loss, variable).numpy()
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_random_numbers_are_no_part_of_a_lite_model():
    key = jax.random.key(0)
    run = lambda x: jup.fractional_max_pool(x, (2, 2), (4, 4), key=key)
    with pytest.raises(Exception, match="legalize"):
        deploy.to_tflite(run, [(1, 7, 8, 2)])
