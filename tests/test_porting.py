"""What the page about porting a whole network says, beside PyTorch, Keras and Equinox."""

import inspect
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from strategies import only
from test_docs import ROOT, names_after

import jaxunpool as jup
from jaxunpool import linen

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
tnn = torch.nn
PAGE = "docs/porting/networks.md"


@pytest.fixture(scope="module")
def page():
    """The names that the page's code defines."""
    with jax.enable_x64(False):
        return names_after(PAGE)


def rows(first_column):
    """The cells of the table with a first column of this name."""
    tables = re.split(r"\n\n+", (ROOT / PAGE).read_text())
    lines = [t.splitlines() for t in tables if t.startswith("|")]
    split = lambda line: [cell.strip() for cell in line.strip()[1:-1].split("|")]
    found = [[split(line) for line in table] for table in lines]
    return next(t[2:] for t in found if t[0][0] == first_column[0] and t[0][1:] == first_column[1:])


# Layouts.


RNGS = nnx.Rngs(0)
X2 = (2, 4, 5, 6)


def flax(layer, kernel="kernel"):
    """From PyTorch's x to the result of a layer of Linen, channels first again."""

    def run(x, w):
        y = layer.apply({"params": {kernel: w}}, np.moveaxis(x, 1, -1))
        return np.moveaxis(y, -1, 1)

    return run


def equinox(make):
    """The same of a layer of Equinox."""

    def run(x, w):
        eqx = pytest.importorskip("equinox")
        layer = make(eqx.nn)
        assert layer.weight.shape == w.shape
        return jax.vmap(eqx.tree_at(lambda layer: layer.weight, layer, w))(x)

    return run


KEY = jax.random.key(0)
no = {"use_bias": False}
pads = [(1, 1), (1, 1)]
flax_transposed = lambda **options: flax(nn.ConvTranspose(6, (3, 3), (2, 2), pads, **no, **options))
# By the first cell of a row: a layer of PyTorch, the shape of x, and what takes it elsewhere.
LAYOUTS = {
    "`Conv2d`": (
        tnn.Conv2d(4, 6, 3, 1, 1, bias=False),
        X2,
        flax(nn.Conv(6, (3, 3), **no)),
        equinox(lambda e: e.Conv2d(4, 6, 3, 1, 1, **no, key=KEY)),
    ),
    "`ConvTranspose2d`": (
        tnn.ConvTranspose2d(4, 6, 3, 2, 1, bias=False),
        X2,
        flax_transposed(),
        equinox(lambda e: e.ConvTranspose2d(4, 6, 3, 2, padding=1, **no, key=KEY)),
    ),
    "`ConvTranspose2d` to `transpose_kernel=True`": (
        tnn.ConvTranspose2d(4, 6, 3, 2, 1, bias=False),
        X2,
        flax_transposed(transpose_kernel=True),
        None,
    ),
    "`ConvTranspose2d` to `jaxunpool`'s": (
        tnn.ConvTranspose2d(4, 6, 3, 2, 1, bias=False),
        X2,
        flax(linen.ConvTranspose(6, (3, 3), 2, 1, **no)),
        None,
    ),
    "`ConvTranspose2d(groups=g)`": (
        tnn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2, bias=False),
        X2,
        None,
        equinox(lambda e: e.ConvTranspose2d(4, 6, 3, 2, padding=1, groups=2, **no, key=KEY)),
    ),
    "`Linear`": (
        tnn.Linear(4, 6, bias=False),
        (3, 4),
        flax(nn.Dense(6, **no)),
        equinox(lambda e: e.Linear(4, 6, **no, key=KEY)),
    ),
    "`Embedding`": (
        tnn.Embedding(4, 6),
        None,
        lambda x, w: nn.Embed(4, 6).apply({"params": {"embedding": w}}, x),
        equinox(lambda e: e.Embedding(4, 6, key=KEY)),
    ),
}


def test_every_layout_is_tested():
    assert [row[0] for row in rows(["PyTorch", "Flax", "Equinox"])[: len(LAYOUTS)]] == list(LAYOUTS)


@pytest.mark.few(1)
@pytest.mark.parametrize("name", only(*list(LAYOUTS)[2:5], among=LAYOUTS))
def test_layouts(name, page, rng):
    cells = next(row for row in rows(["PyTorch", "Flax", "Equinox"]) if row[0] == name)
    layer, shape, *others = LAYOUTS[name]
    x = rng.standard_normal(shape) if shape else np.array([0, 3, 1])
    layer = layer.double()
    with torch.no_grad():
        expected = layer(torch.from_numpy(x)).numpy()
    w = layer.weight.detach().numpy()
    compared = 0
    for cell, run in zip(cells[1:], others):
        assert (cell == "") == (run is None)
        if run is not None:
            kernel = eval(cell.strip("`"), page | {"w": w, "g": 2})
            np.testing.assert_allclose(run(x, jnp.asarray(kernel)), expected, rtol=0, atol=1e-13)
            compared += 1
    assert compared


def test_flatten(page, rng):
    x = rng.standard_normal(X2)
    theirs = torch.flatten(torch.from_numpy(x), 1).numpy()
    np.testing.assert_array_equal(page["flatten"](np.moveaxis(x, 1, -1)), theirs)


def random_norm(layer, rng):
    """A normalisation of PyTorch in eval mode, with random entries, which it returns too."""
    layer = layer.double().eval()
    with torch.no_grad():
        for tensor in (t for t in layer.state_dict().values() if t.is_floating_point()):
            tensor.copy_(torch.from_numpy(rng.uniform(0.5, 1.5, tuple(tensor.shape))))
    return layer, {name: jnp.asarray(value.numpy()) for name, value in layer.state_dict().items()}


NORMS = {
    "BatchNorm": (tnn.BatchNorm2d(4), nn.BatchNorm(True)),
    "LayerNorm": (tnn.LayerNorm(6), nn.LayerNorm(epsilon=1e-5)),
    "GroupNorm": (tnn.GroupNorm(2, 4), nn.GroupNorm(2, epsilon=1e-5)),
}


@pytest.mark.parametrize("name", only("BatchNorm", among=NORMS))
def test_normalisations(name, rng):
    """In Linen and in Equinox, entries as the page has them."""
    theirs, ours = NORMS[name]
    theirs, entries = random_norm(theirs, rng)
    x = rng.standard_normal((2, 6) if name == "LayerNorm" else X2)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x)).numpy()
    variables = {"params": {"scale": entries["weight"], "bias": entries["bias"]}}
    if name == "BatchNorm":
        statistics = entries["running_mean"], entries["running_var"]
        variables["batch_stats"] = dict(zip(("mean", "var"), statistics))
    result = np.moveaxis(ours.apply(variables, np.moveaxis(x, 1, -1)), -1, 1)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)

    eqx = pytest.importorskip("equinox")
    weights = lambda layer: (layer.weight, layer.bias)
    values = entries["weight"], entries["bias"]
    if name == "BatchNorm":
        norm, state = eqx.nn.make_with_state(eqx.nn.BatchNorm)(4, "batch", mode="batch")
        state = state.set(norm.batch_state_index, statistics)
        norm = eqx.nn.inference_mode(eqx.tree_at(weights, norm, values))
        call = lambda x: norm(x, state)[0]
    else:
        norm = eqx.nn.LayerNorm(6) if name == "LayerNorm" else eqx.nn.GroupNorm(2, 4)
        call = eqx.tree_at(weights, norm, values)
    result = jax.vmap(call, axis_name="batch")(x)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-12)


def test_slopes(page, rng):
    x = rng.standard_normal(X2)
    for theirs in (tnn.PReLU(), tnn.PReLU(4)):
        theirs, entries = random_norm(theirs, rng)
        with torch.no_grad():
            expected = theirs(torch.from_numpy(x)).numpy()
        w = entries["weight"]
        variables = {"params": {"negative_slope": w[0] if len(w) == 1 else w}}
        first = 0.25 if len(w) == 1 else jnp.full(4, 0.25)
        result = nn.PReLU(jnp.float64, first).apply(variables, np.moveaxis(x, 1, -1))
        np.testing.assert_array_equal(np.moveaxis(result, -1, 1), expected)
        eqx = pytest.importorskip("equinox")
        slope = w[0] if len(w) == 1 else w[:, None, None]
        np.testing.assert_array_equal(jax.vmap(eqx.nn.PReLU(slope))(x), expected)


# Defaults.


def default(function, name):
    return inspect.signature(function).parameters[name].default


@pytest.mark.thorough
def test_defaults(monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    optax = pytest.importorskip("optax")
    keras = pytest.importorskip("keras")
    layers = keras.layers
    x = np.arange(9, dtype=np.float32).reshape(1, 9, 1)
    stride = lambda length: "the window" if length == 3 else 1
    expected = {
        "BatchNorm: part of the old mean that is kept": (
            f"{1 - tnn.BatchNorm2d(1).momentum} (`momentum={tnn.BatchNorm2d(1).momentum}`)",
            layers.BatchNormalization().momentum,
            default(nnx.BatchNorm.__init__, "momentum"),
        ),
        "BatchNorm: epsilon": (
            tnn.BatchNorm2d(1).eps,
            layers.BatchNormalization().epsilon,
            default(nnx.BatchNorm.__init__, "epsilon"),
        ),
        "LayerNorm: epsilon": (
            tnn.LayerNorm(1).eps,
            layers.LayerNormalization().epsilon,
            default(nnx.LayerNorm.__init__, "epsilon"),
        ),
        "GroupNorm: epsilon": (
            tnn.GroupNorm(1, 1).eps,
            layers.GroupNormalization().epsilon,
            default(nnx.GroupNorm.__init__, "epsilon"),
        ),
        "PReLU: first slope": (
            tnn.PReLU().weight.item(),
            float(layers.PReLU()(-np.ones((1, 1)))[0, 0]) * -1 + 0.0,
            default(nnx.PReLU.__init__, "negative_slope_init"),
        ),
        "LeakyReLU: slope": (
            tnn.LeakyReLU().negative_slope,
            layers.LeakyReLU().negative_slope,
            default(jax.nn.leaky_relu, "negative_slope"),
        ),
        "convolution: padding": (
            tnn.Conv2d(1, 1, 1).padding[0],
            f'"{layers.Conv2D(1, 1).padding}"',
            f'"{default(nnx.Conv.__init__, "padding")}"',
        ),
        "max pooling: strides": (
            stride(tnn.MaxPool1d(3)(torch.zeros(1, 1, 9)).shape[-1]),
            stride(layers.MaxPooling1D(3)(x).shape[1]),
            stride(nn.max_pool(x, (3,)).shape[1]),
        ),
        "Adam: epsilon": (
            default(torch.optim.Adam.__init__, "eps"),
            keras.optimizers.Adam().epsilon,
            f"{default(optax.adam, 'eps')} (optax)",
        ),
    }
    found = rows(["setting", "PyTorch", "Keras", "Flax"])
    assert {row[0]: tuple(row[1:]) for row in found} == {
        name: tuple(map(str, values)) for name, values in expected.items()
    }
    for norm in (nn.BatchNorm, nn.LayerNorm, nn.GroupNorm):
        assert norm.epsilon == default(getattr(nnx, norm.__name__).__init__, "epsilon")
    assert nn.BatchNorm.momentum == nnx.BatchNorm(1, rngs=RNGS).momentum


# Layers that are trained.


@pytest.mark.parametrize(
    "shape", [(2, 3, 2, 1), pytest.param((4, 3, 5, 5), marks=pytest.mark.thorough)]
)
def test_batch_norm_in_training(shape, page, rng):
    """Results and statistics of three steps, of which Flax's own variance is not PyTorch's."""
    theirs = tnn.BatchNorm2d(3).double().train()
    options = {"momentum": 0.9, "param_dtype": jnp.float64, "rngs": RNGS}
    ours, plain = page["TorchBatchNorm"](3, **options), nnx.BatchNorm(3, **options)
    for norm in (ours, plain):
        page["with_float64_statistics"](norm)
    for step in range(3):
        x = rng.standard_normal(shape) + step
        expected = theirs(torch.from_numpy(x)).detach().numpy()
        plain(np.moveaxis(x, 1, -1))
        y = np.moveaxis(np.asarray(ours(np.moveaxis(x, 1, -1))), -1, 1)
        # Flax takes the square of the mean from the mean of squares: of numbers up to 30.
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.mean[...], theirs.running_mean.numpy(), rtol=1e-12)
    np.testing.assert_allclose(ours.var[...], theirs.running_var.numpy(), rtol=1e-12)
    n = np.prod(shape) // 3
    part = (theirs.running_var.numpy() - 0.9**3) / (plain.var[...] - 0.9**3)
    np.testing.assert_allclose(part, n / (n - 1), rtol=1e-12)
    before = np.copy(ours.var[...])
    ours.eval()
    ours(jnp.ones((1, 1, 3)))
    ours(jnp.ones((1, 1, 3)), use_running_average=True)
    np.testing.assert_array_equal(ours.var[...], before)


def test_dropout_of_channels(page):
    for planes, mean in (
        (tnn.Dropout2d(0.5)(torch.ones(2, 16, 4, 4)).numpy(), (2, 3)),
        (page["planes"], (1, 2)),
    ):
        assert set(planes.mean(mean).ravel()) == {0.0, 2.0}


@pytest.mark.few(1)
@pytest.mark.parametrize("padding", [0, 1])
def test_gradients_of_repeated_indices(padding, page, rng):
    """Bit for bit, of values that are not equal where their indices are."""
    x = np.round(rng.standard_normal((2, 3, 7, 8)), 1)
    pooled, indices = tnn.functional.max_pool2d(
        torch.from_numpy(x), 3, 1, padding, return_indices=True
    )
    assert len(np.unique(indices[0, 0])) < indices[0, 0].numel()
    y = torch.from_numpy(rng.standard_normal(tuple(pooled.shape))).requires_grad_()
    torch.set_num_threads(1)
    u = tnn.functional.max_unpool2d(y, indices, 3, 1, padding, (7, 8))
    cotangent = rng.standard_normal(u.shape)
    (gradient,) = torch.autograd.grad(u, y, torch.from_numpy(cotangent))

    window = jup.WindowGeometry.for_input(x.shape, (3, 3), 1, padding, data_format="channels_first")
    ours = jup.interop.from_torch(indices, window)
    value, pull = jax.vjp(lambda y: page["torch_unpool"](y, ours), y.detach().numpy())
    np.testing.assert_array_equal(value, u.detach().numpy())
    np.testing.assert_array_equal(pull(cotangent)[0], gradient.numpy())
    last = jax.vjp(lambda y: jup.max_unpool(y, ours), y.detach().numpy())[1](cotangent)[0]
    assert (last != gradient.numpy()).any()


# Indices.


def max_unpooling_2d(y, mask, size=(2, 2)):
    """ykamikawa's layer in NumPy: positions by the pooled sizes, and values added."""
    batch, height, width, channels = y.shape
    height, width = height * size[0], width * size[1]
    result = np.zeros((batch, height, width, channels), y.dtype)
    b = np.arange(batch)[:, None, None, None] + np.zeros(y.shape, int)
    f = np.arange(channels) + np.zeros(y.shape, int)
    row, column = mask // (width * channels), mask // channels % width
    np.add.at(result, (b, row, column, f), y)
    return result


@pytest.mark.parametrize(("width", "is_right"), [(8, True), (7, False)])
def test_layers_of_ykamikawa(width, is_right, rng):
    x = rng.standard_normal((2, 6, width, 3))
    ours = {"jup": jup, "x": x}
    (_, pool), (_, unpool) = rows(["ykamikawa", "jaxunpool"])
    ours["y"], ours["indices"] = eval(pool.strip("`"), ours)
    u = eval(unpool.strip("`"), ours)
    theirs = max_unpooling_2d(ours["y"], np.asarray(jup.interop.to_tensorflow(ours["indices"])))
    assert np.array_equal(u, theirs[:, :, :width]) == is_right


def test_masks_of_float32():
    """The first index that is not exact."""
    assert int(np.float32(16_777_216)) == 16_777_216
    assert int(np.float32(16_777_217)) != 16_777_217


def test_sliced_indices(rng):
    x = torch.from_numpy(rng.standard_normal((2, 6, 5, 7)))
    _, theirs = tnn.functional.max_pool2d(x, 2, return_indices=True)
    few = torch.from_numpy(rng.standard_normal((2, 4, 2, 3)))
    expected = tnn.functional.max_unpool2d(few, theirs[:, :4], 2, output_size=(5, 7)).numpy()
    _, indices = jup.max_pool_with_indices(x.numpy().transpose(0, 2, 3, 1), (2, 2))
    indices = jax.tree.map(lambda offsets: offsets[..., :4], indices)
    u = jup.max_unpool(few.numpy().transpose(0, 2, 3, 1), indices)
    np.testing.assert_array_equal(np.moveaxis(u, -1, 1), expected)
