"""TensorFlow's SavedModel and TFLite's interpreter compute what JAX does."""

import jax
import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="in the extra 'deploy'")
from cases import ENTRIES, FUNCTIONS, FURTHER, GRADIENTS, SAVED, WINDOWS  # noqa: E402
from jax.experimental import jax2tf  # noqa: E402

import jaxunpool as jup  # noqa: E402
from jaxunpool import models  # noqa: E402

LITE = {**FUNCTIONS, **FURTHER, **WINDOWS, **GRADIENTS}
# docs/deploy.md has the reasons. TFLite's interpreter aborts the process for the second list.
NOT_LITE = (
    "max_unpool flat",
    "max_unpool flat, sum",
    "two batches",
    "gradient of adaptive_max_pool",
)
ABORTED = ("3d", "dilation", "gradient of max_unpool")


def concrete(run, x):
    """A function of TensorFlow's, for one shape."""
    arrays = lambda x: jax.tree.leaves(run(x))
    program = tf.function(
        jax2tf.convert(arrays, with_gradient=False),
        autograph=False,
        input_signature=[tf.TensorSpec(x.shape, x.dtype)],
    )
    return program, program.get_concrete_function()


def lite(run, x):
    """A model of TFLite's built-in operators alone."""
    program, function = concrete(run, x)
    return tf.lite.TFLiteConverter.from_concrete_functions([function], program).convert()


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


@pytest.mark.parametrize("name", [name for name in LITE if name not in NOT_LITE + ABORTED])
def test_lite(name):
    run, x = LITE[name]
    close(interpret(lite(run, x), x), jax.tree.leaves(jax.jit(run)(x)))


@pytest.mark.parametrize("decoder", models.DECODERS)
def test_lite_segnet(decoder):
    from flax import nnx

    network = models.SegNetBasic(
        3, 5, features=8, kernel_size=3, stages=2, decoder=decoder, rngs=nnx.Rngs(0)
    )
    network.eval()
    x = np.random.default_rng(0).standard_normal((2, 21, 30, 3), np.float32)
    close(interpret(lite(network, x), x), [np.asarray(network(x))])


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


@pytest.mark.parametrize("name", NOT_LITE)
def test_limits_of_lite(name):
    """Where one of these works, the page may say so."""
    run, x = LITE[name]
    with pytest.raises(Exception, match=r"legalize|stablehlo\.scatter"):
        interpret(lite(run, x), x)


def test_random_numbers_are_no_part_of_a_lite_model():
    key = jax.random.key(0)
    run = lambda x: jup.fractional_max_pool(x, (2, 2), (4, 4), key=key)
    with pytest.raises(Exception, match="legalize"):
        lite(run, np.ones((1, 7, 8, 2), np.float32))
