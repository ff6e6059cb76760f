"""ONNX Runtime computes what JAX does."""

import jax
import numpy as np
import pytest

pytest.importorskip("jax2onnx", reason="in the extra 'deploy'", exc_type=ImportError)
runtime = pytest.importorskip("onnxruntime", reason="in the extra 'deploy'")
from cases import FUNCTIONS, FURTHER, GRADIENTS, WINDOWS  # noqa: E402

import jaxunpool as jup  # noqa: E402
from jaxunpool import deploy, models  # noqa: E402
from jaxunpool.kernels.native_cpu import library  # noqa: E402


def evaluate(model, *arrays):
    """The results of a model, and its operators."""
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options)
    names = [argument.name for argument in session.get_inputs()]
    return session.run(None, dict(zip(names, arrays))), [node.op_type for node in model.graph.node]


def agree(run, x, shape=None):
    found, operators = evaluate(deploy.to_onnx(run, [x if shape is None else shape]), x)
    expected = jax.tree.leaves(jax.jit(run)(x))
    assert len(found) == len(expected)
    for a, b in zip(found, expected):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    return operators


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_function(name):
    agree(*FUNCTIONS[name])


@pytest.mark.parametrize("name", FURTHER)
def test_further_arguments(name):
    agree(*FURTHER[name])


@pytest.mark.parametrize("name", GRADIENTS)
def test_gradients(name):
    agree(*GRADIENTS[name])


@pytest.mark.parametrize("name", WINDOWS)
def test_operators_of_onnx(name):
    """Pooling and unpooling are operators of their own, unless values are added."""
    operators = agree(*WINDOWS[name])
    assert operators.count("MaxPool") == 1
    assert operators.count("MaxUnpool") == (name != "sum")


@pytest.mark.parametrize("implementation", [None, "xla"])
def test_plain_model(implementation):
    """Nothing but the two operators where no index is a result, channels first."""
    options = {"data_format": "channels_first", "implementation": implementation}

    def run(x):
        y, indices = jup.max_pool_with_indices(x, (2, 2), **options)
        return jup.max_unpool(y, indices, implementation=implementation)

    x = np.random.default_rng(0).standard_normal((2, 3, 7, 8), np.float32)
    assert agree(run, x) == ["MaxPool", "MaxUnpool"]
    assert agree(run, x, ("B", 3, 7, 8)).count("MaxUnpool") == 1


def test_indices_of_another_pooling():
    """Offsets that do not come from the same windows are unpooled without `MaxUnpool`."""

    def run(x):
        _, indices = jup.max_pool_with_indices(x, (2, 2))
        shifted = jup.PoolIndices((indices.offsets + 1) % 4, indices.geometry)
        return jup.max_unpool(x[:, ::2, ::2], shifted)

    x = np.random.default_rng(0).standard_normal((1, 6, 8, 2), np.float32)
    assert "MaxUnpool" not in agree(run, x)


def test_infinities_ties_and_duplicates():
    """The first of equals, no padding in windows of -inf, the last of values at one element."""
    x = np.random.default_rng(0).integers(0, 3, (2, 7, 8, 3)).astype(np.float32)
    x[0, :4] = -np.inf
    x[1, 3:5] = np.inf
    run, _ = WINDOWS["same"]
    found, _ = evaluate(deploy.to_onnx(run, [x]), x)
    for a, b in zip(found, run(x)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("decoder", models.DECODERS)
def test_segnet(decoder):
    from flax import nnx

    network = models.SegNetBasic(
        3, 5, features=8, kernel_size=3, stages=2, decoder=decoder, rngs=nnx.Rngs(0)
    )
    network.eval()
    x = np.random.default_rng(0).standard_normal((2, 21, 30, 3), np.float32)
    operators = agree(network, x, ("B", 21, 30, 3))
    assert operators.count("MaxPool") == 2
    assert operators.count("MaxUnpool") == 2 * (decoder in ("indices", "inverse"))
    assert decoder != "indices" or set(operators) <= {
        "BatchNormalization", "Conv", "MaxPool", "MaxUnpool", "Relu", "Transpose",
        "Concat", "Shape",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["adaptive_avg_pool", "lp_pool", "max_pool_with_packed_indices"])
def test_a_failed_conversion_leaves_nothing(name, monkeypatch):
    """jax2onnx alone does not know the primitives; the function is then called eagerly."""
    import jax2onnx
    from jax2onnx.plugins.plugin_system import PLUGIN_REGISTRY

    run, x = FUNCTIONS[name]
    for primitive in [name for name in PLUGIN_REGISTRY if name.startswith("jaxunpool_")]:
        monkeypatch.delitem(PLUGIN_REGISTRY, primitive)
    jax.clear_caches()
    with pytest.raises(NotImplementedError, match="jaxunpool_"):
        jax2onnx.to_onnx(run, [x])
    found = run(x)
    monkeypatch.undo()
    for a, b in zip(evaluate(deploy.to_onnx(run, [x]), x)[0], found):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_kernels_cannot_be_exported(monkeypatch):
    monkeypatch.setattr(library, "missing", lambda: None)  # whether compiled or not
    run = lambda x: jup.max_pool(x, (2, 2), implementation="native_cpu")
    with pytest.raises(NotImplementedError, match=r"native_cpu.*onnx"):
        deploy.to_onnx(run, [(1, 4, 4, 1)])
