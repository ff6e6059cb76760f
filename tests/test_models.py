"""Networks: sizes, ways back, gradients, weights of PyTorch, projections."""

import doctest
import functools
import inspect
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax import lax
from strategies import only

import jaxunpool as jup
from benchmarks.memory import torch_segnet
from jaxunpool import models


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


def basic(decoder="indices", stages=2, seed=0):
    rngs = nnx.Rngs(seed)
    return models.SegNetBasic(
        3, 5, features=4, kernel_size=3, stages=stages, decoder=decoder, rngs=rngs
    )


def segnet(decoder="indices"):
    return models.SegNet(3, 5, decoder=decoder, rngs=nnx.Rngs(0))


def forward(model, x):
    return nnx.jit(lambda model, x: model(x))(model, x)


def images(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.few(4)
@pytest.mark.parametrize("decoder", models.DECODERS)
@pytest.mark.parametrize(
    ("make", "size"),
    only(
        (basic, (4, 7)),
        (segnet, (45, 61)),
        among=[(basic, (16, 24)), (basic, (4, 7)), (segnet, (360, 480)), (segnet, (45, 61))],
    ),
)
def test_exact_sizes_come_back(decoder, make, size):
    model = nnx.eval_shape(lambda: make(decoder=decoder))
    x = jax.ShapeDtypeStruct((2, *size, 3), jnp.float32)
    logits = nnx.eval_shape(lambda model, x: model(x), model, x)
    assert (logits.shape, logits.dtype) == ((2, *size, 5), jnp.float32)


def test_segnet_is_vgg16_and_its_mirror():
    model = nnx.eval_shape(segnet)
    down = [block.conv.kernel.shape for stage in model.encoder.stages for block in stage]
    up = [block.conv.kernel.shape for stage in model.stages for block in stage]
    up.append(model.last.kernel.shape)
    vgg = [3, 64, 64, 128, 128, *[256] * 3, *[512] * 6]
    assert down == [(3, 3, i, o) for i, o in itertools.pairwise(vgg)]
    # The mirror image: a convolution's channels the other way round, up to what starts and ends.
    assert up[:-1] == [(3, 3, o, i) for _, _, i, o in down[:0:-1]]
    assert up[-1] == (3, 3, 64, 5)
    assert len(model.unpools) == 5


@pytest.mark.parametrize("decoder", only("indices", among=models.DECODERS))
def test_every_weight_learns(decoder):
    model, x = basic(decoder), images((2, 13, 14, 3))
    labels = jax.random.randint(jax.random.key(1), (2, 13, 14), 0, 5)

    @nnx.jit
    def gradient(model):
        def loss(model):
            losses = optax.softmax_cross_entropy_with_integer_labels(model(x), labels)
            return losses.mean()

        return nnx.grad(loss)(model)

    for path, leaf in jax.tree.leaves_with_path(nnx.to_pure_dict(nnx.state(gradient(model)))):
        if "conv" in str(path[-2]) and "bias" in str(path[-1]):
            continue  # normalisation takes a constant away
        assert jnp.max(jnp.abs(leaf)) > 1e-6, path


def with_weights_of(model, other):
    nnx.update(model, nnx.state(other))
    return model


@pytest.mark.thorough
def test_indices_and_inverse_are_equal():
    one, two = basic("indices"), basic("inverse", seed=1)
    with_weights_of(two, one)
    x = images((2, 13, 22, 3))
    np.testing.assert_array_equal(forward(one, x), forward(two, x))

    def loss(model):
        return jnp.sum(jnp.sin(model(x)))

    gradients = [nnx.state(nnx.jit(nnx.grad(loss))(model)) for model in (one, two)]
    one, two = map(jax.tree.leaves, gradients)
    largest = max(float(jnp.max(jnp.abs(leaf))) for leaf in one)
    for a, b in zip(one, two):  # sums of thousands of terms, added in another order
        np.testing.assert_allclose(a, b, atol=1e-5 * largest)


def small_networks():
    """Those with the option, of few channels; 6 do not fill the bytes that hold them."""
    widths = [[6], [8]]
    return {
        "SegNetBasic": functools.partial(
            models.SegNetBasic, 3, 5, features=6, kernel_size=3, stages=2
        ),
        "AutoEncoder": functools.partial(models.AutoEncoder, 3, (6, 8)),
        "EncoderDecoder": functools.partial(models.EncoderDecoder, 3, 2, widths, [[6], [6]]),
        "SegNet": functools.partial(models.SegNet, 3, 5),
    }


@pytest.mark.thorough
@pytest.mark.parametrize("name", only("EncoderDecoder", among=small_networks()))
def test_packed_indices_change_no_bit(name):
    x = images((2, 33, 38, 3))

    @nnx.jit
    def run(model):
        loss = lambda model: (jnp.sum(jnp.sin(logits := model(x))), logits)
        gradient, logits = nnx.grad(loss, has_aux=True)(model)
        return logits, nnx.state(gradient), nnx.state(model)

    make = small_networks()[name]
    plain, packed = (run(make(pack_indices=p, rngs=nnx.Rngs(0))) for p in (False, True))
    jax.tree.map(np.testing.assert_array_equal, plain, packed)


def test_packed_indices_are_what_the_encoder_keeps():
    make = functools.partial(models.Encoder, 3, [[8], [16]], pack_indices=True)
    _, kept = nnx.eval_shape(
        lambda: make(rngs=nnx.Rngs(0))(jnp.zeros((1, 13, 14, 3))),
    )
    assert [type(each) for each in kept] == [jup.PackedIndices] * 2
    assert [each.nbytes for each in kept] == [6 * 7 * 8 // 4, 3 * 3 * 16 // 4]


@pytest.mark.thorough
def test_segnet_indices_and_inverse_are_equal():
    x = images((1, 33, 40, 3))
    one = segnet()
    graph, _ = nnx.split(nnx.eval_shape(lambda: segnet("inverse")))
    two = nnx.merge(graph, nnx.state(one))
    np.testing.assert_array_equal(forward(one, x), forward(two, x))


def test_decoders_by_the_definitions():
    """One stage whose convolutions pass everything through: only the way back is left."""
    x = images((1, 5, 6, 1))
    y, indices = jup.max_pool_with_indices(x, (2, 2))
    rows, columns = jnp.arange(5)[:, None], jnp.arange(6)
    corner = (rows % 2 == 0) & (columns % 2 == 0) & (rows < 4)
    copies = jnp.pad(jnp.repeat(jnp.repeat(y, 2, 1), 2, 2), ((0, 0), (0, 1), (0, 0), (0, 0)))
    expected = {
        "indices": jnp.where(x == copies, x, 0),
        "nearest": copies,
        "bed_of_nails": jnp.where(corner[..., None], copies, 0),
        "bilinear": jax.image.resize(y, (1, 5, 6, 1), "linear"),
    }
    expected["inverse"] = expected["indices"]
    kernel = jnp.array([[1.0, 2.0], [3.0, 4.0]])
    expected["conv_transpose"] = jnp.pad(
        jnp.kron(y[0, ..., 0], kernel)[None, ..., None], ((0, 0), (0, 1), (0, 0), (0, 0))
    )
    for decoder in models.DECODERS:
        unpool = models.Unpool(decoder, 1, rngs=nnx.Rngs(0))
        if decoder == "conv_transpose":
            unpool.kernel[...] = kernel[..., None, None]
        kept = indices if decoder == "indices" else x
        np.testing.assert_allclose(unpool(y, kept), expected[decoder], rtol=1e-5, atol=1e-6)


@pytest.mark.few(2)
@pytest.mark.parametrize("decoder", ["nearest", "bilinear", "bed_of_nails", "conv_transpose"])
def test_size_comes_from_whatever_was_kept(decoder):
    x = images((2, 5, 6, 3))
    unpool = models.Unpool(decoder, 3, rngs=nnx.Rngs(0))
    y, indices = models.pool(x, "indices")
    for kept in (indices, indices.pack()):
        np.testing.assert_array_equal(unpool(y, kept), unpool(*models.pool(x, decoder)))


@pytest.mark.few(2)
@pytest.mark.parametrize("decoder", models.DECODERS)
def test_types_follow_flax(decoder):
    """Weights are float32 also where JAX's default is not, and promoted with the images."""

    def result(model, dtype):
        x = jax.ShapeDtypeStruct((1, 5, 4, 3), dtype)
        return nnx.eval_shape(lambda model, x: model(x), model, x).dtype

    with jax.enable_x64(True):
        model = nnx.eval_shape(lambda: basic(decoder, stages=1))
        assert result(model, jnp.float32) == jnp.float32
    half = lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16)
    nnx.update(model, jax.tree.map(half, nnx.state(model)))
    model.eval()
    for dtype in (jnp.bfloat16, jnp.float32):
        assert result(model, dtype) == dtype


NETWORKS = small_networks() | {"CEDN": models.CEDN}  # all take images of 3 channels


def traced(network, given, **options):
    """Types of parameters, statistics, result and gradients; nothing is computed."""

    def run(x):
        model = network(**options, rngs=nnx.Rngs(0))

        def loss(model):
            y = model(x)
            return jnp.sum(y.astype(jnp.float32)), y

        gradient, y = nnx.grad(loss, has_aux=True)(model)
        return nnx.state(model, nnx.Param), nnx.state(model, nnx.BatchStat), y, nnx.state(gradient)

    found = jax.eval_shape(run, jax.ShapeDtypeStruct((2, 33, 35, 3), given))
    return [{str(leaf.dtype) for leaf in jax.tree.leaves(part)} for part in found]


PRECISIONS = {  # types of image, parameters and result
    "mixed": ("bfloat16", {"dtype": jnp.bfloat16}, "float32", "bfloat16"),
    "each its own": (
        "float32",
        {"dtype": jnp.float16, "param_dtype": "bfloat16"},
        "bfloat16",
        "float16",
    ),
    "promoted": ("bfloat16", {}, "float32", "float32"),
    "promoted weights": ("float32", {"param_dtype": "bfloat16"}, "bfloat16", "float32"),
    "low": ("float16", {"dtype": "bfloat16", "param_dtype": "bfloat16"}, "bfloat16", "bfloat16"),
}


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("name", "precision"),
    only(
        *((name, "each its own") for name in NETWORKS),
        *(("SegNetBasic", precision) for precision in PRECISIONS),
        among=list(itertools.product(NETWORKS, PRECISIONS)),
    ),
)
def test_types_are_those_of_flax(name, precision):
    given, options, parameters, computed = PRECISIONS[precision]
    statistics = set() if name == "CEDN" else {"float32"}
    found = traced(NETWORKS[name], given, **options)
    assert found == [{parameters}, statistics, {computed}, {parameters}]


@pytest.mark.few(2)
@pytest.mark.parametrize("decoder", models.DECODERS)
def test_mixed_precision_with_every_decoder(decoder):
    network = functools.partial(NETWORKS["SegNetBasic"], decoder=decoder)
    found = traced(network, "bfloat16", dtype=jnp.bfloat16)
    assert found == [{"float32"}, {"float32"}, {"bfloat16"}, {"float32"}]


def error_of(found, expected):
    """The norm of the difference, relative."""
    found, expected = (np.asarray(each, np.float32) for each in (found, expected))
    return np.linalg.norm(found - expected) / np.linalg.norm(expected)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", only("AutoEncoder", among=["AutoEncoder", "SegNetBasic", "EncoderDecoder", "CEDN"])
)
def test_bfloat16_is_float32_rounded(name):
    """With the statistics of the batch, and with the running ones; both are float32.

    A rounding is off by at most 2^-8. Some 25 of them follow each other, which adds up like a
    random walk. Indices are left out: of nearly equal elements rounding may take another.
    """
    x = images((2, 33, 38, 3))
    options = {"dropout": 0.0} if name == "CEDN" else {}

    @nnx.jit
    def run(model):
        model.train()
        trained = model(x)
        model.eval()
        return trained, model(x), nnx.state(model, nnx.BatchStat)

    low, high = (
        run(NETWORKS[name](decoder="nearest", dtype=dtype, rngs=nnx.Rngs(0), **options))
        for dtype in (jnp.bfloat16, jnp.float32)
    )
    errors = [error_of(*pair) for pair in zip(jax.tree.leaves(low), jax.tree.leaves(high))]
    assert 1e-3 < max(errors) < 0.03


@pytest.mark.few(3)
@pytest.mark.parametrize(
    ("name", "decoder"),
    only(
        *((name, "indices") for name in NETWORKS),
        *(("AutoEncoder", decoder) for decoder in models.DECODERS),
        among=list(itertools.product(NETWORKS, models.DECODERS)),
    ),
)
def test_plain_networks_have_forward_mode(name, decoder):
    """Traced, not computed: nothing on the way has only a custom gradient."""
    model = nnx.eval_shape(
        lambda: NETWORKS[name](decoder=decoder, implementation="xla", rngs=nnx.Rngs(0))
    )
    graph, state = nnx.split(model)
    x = jax.ShapeDtypeStruct((1, 33, 35, 3), jnp.float32)

    def run(state, x):
        f = lambda x: nnx.merge(graph, state, copy=True)(x)
        return jax.jvp(f, (x,), (x,))

    y, tangent = jax.eval_shape(run, state, x)
    assert y.shape[:3] == tangent.shape[:3] == (1, 33, 35)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "decoder"),
    only(
        ("SegNetBasic", "indices"),
        among=list(itertools.product(["SegNetBasic", "CEDN"], models.DECODERS)),
    ),
)
def test_forward_mode_is_the_transpose_of_backward_mode(name, decoder):
    """`w . (J v)` in plain JAX is `(J' w) . v` with the default's gradient."""

    @nnx.jit
    def run(plain, other):
        def function(model):
            graph, weights, rest = nnx.split(model, nnx.Param, ...)
            return weights, lambda weights, x: nnx.merge(graph, weights, rest, copy=True)(x)

        weights, f = function(plain)
        v = jax.tree.map(lambda leaf: images(leaf.shape, 1), (weights, x))
        y, tangent = jax.linearize(f, weights, x)
        w = images(y.shape, 2)
        _, back = jax.vjp(function(other)[1], weights, x)
        products = zip(jax.tree.leaves(v), jax.tree.leaves(back(w)))
        return jnp.vdot(tangent(*v), w), sum(jnp.vdot(a, b) for a, b in products)

    with jax.enable_x64(True):
        x = images((1, 33, 35, 3))
        make = functools.partial(NETWORKS[name], decoder=decoder, param_dtype=jnp.float64)
        networks = [make(implementation=how, rngs=nnx.Rngs(0)) for how in ("xla", None)]
        for each in networks:
            each.eval()
        found, expected = run(*networks)
    assert found.dtype == jnp.float64
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.thorough
def test_auto_encoder_learns_digits():
    digits = pytest.importorskip("sklearn.datasets").load_digits().images[:64, ..., None] / 16
    x = jnp.asarray(digits, jnp.float32)
    model = models.AutoEncoder(1, (8, 16), rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        loss, gradient = nnx.value_and_grad(lambda model: jnp.mean((model(x) - x) ** 2))(model)
        optimizer.update(model, gradient)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(30)]
    assert losses[-1] < 0.25 * losses[0]


def recipe():
    """Images and labels of the recipe."""
    rng = np.random.default_rng(123)
    x = jnp.asarray(np.where(rng.random((12, 20, 20, 3)) > 0.5, 1.0, -1.0), jnp.float32)
    return x, jnp.asarray(rng.random((12, 20, 20, 1)) > 0.5, jnp.float32)


@pytest.mark.thorough
def test_cedn_is_the_one_of_the_recipe():
    """The same network written with functions."""
    x, _ = recipe()
    model = models.CEDN(rngs=nnx.Rngs(0))
    model.eval()

    def convolve(layer, x, transposed=False):
        kernel = layer.kernel[...]
        run = lax.conv_transpose if transposed else lax.conv_general_dilated
        y = run(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return y + layer.bias[...]

    relu = jax.nn.relu
    y, first, mask = jup.max_pool_with_argmax_and_mask(relu(convolve(model.conv1, x)), (2, 2))
    assert mask.shape == (12, 20, 20, 16)
    y, second, _ = jup.max_pool_with_argmax_and_mask(relu(convolve(model.conv2, y)), (2, 2))
    u = jup.max_unpool(relu(convolve(model.conv3, y)), second)
    u = jup.max_unpool(relu(convolve(model.deconv2, u, True)), first)
    expected = convolve(model.deconv1, u, True)
    scale = jnp.max(jnp.abs(expected))
    np.testing.assert_allclose(model(x) / scale, expected / scale, atol=1e-6)


@pytest.mark.thorough
def test_cedn_learns():
    """Ten Adam steps of the recipe."""
    x, labels = recipe()
    model = models.CEDN(rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1.0), wrt=nnx.Param)

    def loss(model):
        return optax.sigmoid_binary_cross_entropy(model(x), labels).sum()

    @nnx.jit
    def step(model, optimizer):
        optimizer.update(model, nnx.grad(loss)(model))

    def measure():
        model.eval()
        value = float(loss(model))
        model.train()
        return value

    before = measure()
    for _ in range(10):
        step(model, optimizer)
    assert measure() < 0.5 * before


def randomised(state):
    """Values for every entry of a state dict, with a spread of activations near one."""
    rng = np.random.default_rng(0)
    found = {}
    for name, value in state.items():
        shape, entry = tuple(value.shape), name.rpartition(".")[2]
        if entry == "num_batches_tracked":
            found[name] = np.array(7)
        elif entry == "running_var" or (entry == "weight" and len(shape) == 1):
            found[name] = rng.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            found[name] = rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape)
        else:
            found[name] = rng.normal(0, 0.1, shape)
        found[name] = found[name].astype(np.float32 if shape else np.int64)
    return found


@pytest.mark.thorough
def test_segnet_with_weights_of_pytorch():
    torch = pytest.importorskip("torch")
    theirs = torch_segnet(classes=11).eval()
    weights = randomised(theirs.state_dict())
    theirs.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    x = np.array(images((1, 45, 60, 3)))
    with torch.no_grad():
        expected = theirs(torch.from_numpy(x.transpose(0, 3, 1, 2))).numpy()
    expected = expected.transpose(0, 2, 3, 1)
    assert expected.std() > 0.1
    ours = nnx.eval_shape(lambda: models.SegNet(3, 11, rngs=nnx.Rngs(0)))
    models.load_torch(ours, {name: value.numpy() for name, value in theirs.state_dict().items()})
    ours.eval()
    np.testing.assert_allclose(forward(ours, jnp.asarray(x)), expected, atol=1e-4)


def vgg16_bn():
    """Names and shapes of torchvision's `vgg16_bn`, a classifier of other widths at its end."""
    entries, i, channels = {}, 0, 3
    for width in [64, 64, 0, 128, 128, 0, *[256] * 3, 0, *[512] * 3, 0, *[512] * 3, 0]:
        if not width:
            i += 1
            continue
        entries[f"features.{i}.weight"] = (width, channels, 3, 3)
        entries[f"features.{i}.bias"] = (width,)
        for entry in ("weight", "bias", "running_mean", "running_var"):
            entries[f"features.{i + 1}.{entry}"] = (width,)
        entries[f"features.{i + 1}.num_batches_tracked"] = ()
        i, channels = i + 3, width
    entries |= {"classifier.0.weight": (10, 20), "classifier.0.bias": (10,)}
    return randomised({name: np.broadcast_to(0.0, shape) for name, shape in entries.items()})


def test_encoder_with_weights_of_torchvision():
    weights = vgg16_bn()
    model = nnx.eval_shape(segnet)
    last = model.last.kernel.get_value()
    models.load_torch(model.encoder, weights)
    block = model.encoder.stages[4][2]
    kernel = weights["features.40.weight"].transpose(2, 3, 1, 0)
    np.testing.assert_array_equal(block.conv.kernel[...], kernel)
    np.testing.assert_array_equal(block.conv.bias[...], weights["features.40.bias"])
    np.testing.assert_array_equal(block.norm.scale[...], weights["features.41.weight"])
    np.testing.assert_array_equal(block.norm.bias[...], weights["features.41.bias"])
    np.testing.assert_array_equal(block.norm.mean[...], weights["features.41.running_mean"])
    np.testing.assert_array_equal(block.norm.var[...], weights["features.41.running_var"])
    assert model.last.kernel.get_value() is last  # no values yet


def two_layers():
    return {
        "conv.weight": np.ones((4, 3, 3, 3)),
        "norm.weight": np.ones(4),
        "norm.bias": np.zeros(4),
        "norm.running_mean": np.zeros(4),
        "norm.running_var": np.ones(4),
    }


def test_convolution_without_bias_gets_zeros():
    encoder = models.Encoder(3, [[4]], rngs=nnx.Rngs(0))
    encoder.stages[0][0].conv.bias[...] += 1
    models.load_torch(encoder, two_layers(), order="norm_relu")
    np.testing.assert_array_equal(encoder.stages[0][0].conv.bias[...], np.zeros(4))


def test_normalisation_without_weights_gets_ones_and_zeros():
    encoder = models.Encoder(3, [[4]], rngs=nnx.Rngs(0))
    norm = encoder.stages[0][0].norm
    norm.scale[...] += 1
    norm.bias[...] += 1
    plain = {k: v for k, v in two_layers().items() if k not in ("norm.weight", "norm.bias")}
    plain |= {"mean": np.zeros(3)}  # and a buffer of the whole
    models.load_torch(encoder, plain, order="norm_relu", skip="mean")
    np.testing.assert_array_equal(norm.scale[...], np.ones(4))
    np.testing.assert_array_equal(norm.bias[...], np.zeros(4))


def test_weights_load_into_an_abstract_model():
    encoder = nnx.eval_shape(lambda: models.Encoder(3, [[4]], rngs=nnx.Rngs(0)))
    models.load_torch(encoder, two_layers(), order="norm_relu")
    y, _ = forward(encoder, jnp.ones((1, 4, 4, 3)))
    assert y.shape == (1, 2, 2, 4)


WRONG_WEIGHTS = {
    "a whole checkpoint": (
        lambda w: {"epoch": 3, "state_dict": w},
        ValueError,
        "weights['state_dict']: expected an array, got a mapping; pass that one?",
    ),
    "no mapping": (
        lambda w: [1],
        TypeError,
        "weights: expected a mapping or the path of a file, got list",
    ),
    "empty": (
        lambda w: {},
        ValueError,
        "weights: layer 1 does not fit: the module has stages.0.0.conv (Conv: weight [4, 3, 3, 3],"
        " bias [4]), weights has 0 layers",
    ),
    "too many": (
        lambda w: w | {"more.weight": np.ones((4, 4, 3, 3))},
        ValueError,
        "layer 3 does not fit: the module has 2 layers, weights has more (a 2-D convolution: weight"
        " [4, 4, 3, 3]); skip leaves layers out",
    ),
    "another shape": (
        lambda w: w | {"conv.weight": np.ones((8, 3, 3, 3))},
        ValueError,
        "weights has conv (a 2-D convolution: weight [8, 3, 3, 3]); another number of channels",
    ),
    "swapped": (
        lambda w: w | {"conv.weight": np.ones((3, 4, 3, 3))},
        ValueError,
        "channels swapped: a ConvTranspose2d?",
    ),
    "another order": (
        lambda w: dict(sorted(w.items(), key=lambda item: "conv" in item[0])),
        ValueError,
        "weights has norm (a batch normalisation: weight [4], bias [4], running_mean [4],"
        " running_var [4]); a layer more, or layers declared in another order?",
    ),
    "sorted names": (
        lambda w: dict(sorted(w.items())),
        ValueError,
        "weights: its names are sorted, so the order of 'conv' and 'norm' is not known",
    ),
    "no statistics": (
        lambda w: {name: value for name, value in w.items() if "mean" not in name},
        ValueError,
        "weights has norm (a batch normalisation: weight [4], bias [4], running_var [4]);"
        " it has no running_mean",
    ),
    "a buffer": (
        lambda w: {"mean": np.ones(3)} | w,
        ValueError,
        "weights has the module itself (no layer that is known: mean [3])",
    ),
    "an order that is not told": (
        lambda w: w,
        ValueError,
        "weights: they do not tell whether ReLU or the normalisation comes first (order='norm_relu'"
        " or 'relu_norm'); pass that, or example=(x, y)",
    ),
}


@pytest.mark.parametrize("name", WRONG_WEIGHTS)
def test_wrong_weights_change_nothing(name):
    change, kind, message = WRONG_WEIGHTS[name]
    encoder = models.Encoder(3, [[4]], rngs=nnx.Rngs(0))
    before = [np.copy(leaf) for leaf in jax.tree.leaves(nnx.state(encoder))]
    with pytest.raises(kind) as error:
        models.load_torch(encoder, change(two_layers()))
    assert message in str(error.value)
    for a, b in zip(before, jax.tree.leaves(nnx.state(encoder))):
        np.testing.assert_array_equal(a, b)


@pytest.mark.thorough
def test_projection_by_hand():
    """Two layers of one stage, then one of the next, against transposes written out."""
    encoder = models.Encoder(2, [[3, 4], [5]], rngs=nnx.Rngs(0))
    forward(encoder, images((4, 12, 14, 2), seed=1))  # running statistics other than 0 and 1
    x = images((2, 13, 14, 2))
    seen, path = x, []
    for blocks in encoder.stages:
        for block in blocks:
            norm = block.norm
            scale = norm.scale[...] * lax.rsqrt(norm.var[...] + 1e-5)
            seen = lax.conv_general_dilated(
                seen,
                block.conv.kernel[...],
                (1, 1),
                "SAME",
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
            seen = jax.nn.relu((seen + block.conv.bias[...] - norm.mean[...]) * scale + norm.bias)
            path.append((block.conv.kernel[...], scale))
        seen, indices = jup.max_pool_with_indices(seen, (2, 2))
        path.append(indices)
    feature = int(jnp.argmax(jnp.max(seen, axis=(0, 1, 2))))
    y = np.zeros_like(seen)
    for image in range(2):
        row, column = np.unravel_index(np.argmax(seen[image, ..., feature]), seen.shape[1:3])
        y[image, row, column, feature] = seen[image, row, column, feature]
    for step in reversed(path):
        if isinstance(step, jup.PoolIndices):
            y = jup.max_unpool(y, step)
            continue
        kernel, scale = step
        flipped = kernel[::-1, ::-1].swapaxes(2, 3)
        y = lax.conv_general_dilated(
            jax.nn.relu(y) * scale,
            flipped,
            (1, 1),
            "SAME",
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
    image = models.DeconvNet(encoder).project(x, 1, feature)
    assert jnp.max(jnp.abs(y)) > 0
    np.testing.assert_allclose(image, y, atol=1e-5 * jnp.max(jnp.abs(y)))


@pytest.mark.thorough
def test_projection_of_a_strongest_activation_stays_near_it():
    encoder = models.Encoder(1, [[2], [2]], rngs=nnx.Rngs(0))
    projector = models.DeconvNet(encoder)
    x = images((1, 32, 32, 1))
    everywhere = projector.project(x, 1, 0, strongest=False)
    one = projector.project(x, 1, 0)
    found = np.argwhere(one[0, ..., 0] != 0)
    # A pooled element of the second stage sees 4 + 2 + 4 pixels along an axis.
    assert 0 < len(found) <= 100
    assert np.ptp(found, axis=0).max() < 10
    assert np.count_nonzero(everywhere) > 4 * len(found)


@jax.custom_vjp
def rectified(x):
    """ReLU whose gradient is rectified itself: what makes a gradient a projection."""
    return jnp.maximum(x, 0)


rectified.defvjp(lambda x: (jnp.maximum(x, 0), None), lambda _, y: (jnp.maximum(y, 0),))


def test_projection_from_any_layer():
    """The gradient of the same layers written with `lax`, with that ReLU."""
    rngs = nnx.Rngs(0)
    strided = nnx.Conv(4, 6, (5, 5), strides=2, padding=2, rngs=rngs)
    grouped = nnx.Conv(6, 8, (3, 3), kernel_dilation=2, feature_group_count=2, rngs=rngs)
    norm = nnx.BatchNorm(8, rngs=rngs)
    norm.mean[...], norm.var[...] = images((8,), 1), jnp.square(images((8,), 2)) + 0.5
    dense = nnx.Linear(8 * 3 * 4, 5, rngs=rngs)
    numbers = ("NHWC", "HWIO", "NHWC")

    def convolve(layer, x, strides, padding, **options):
        kernel, options = layer.kernel[...], {"dimension_numbers": numbers, **options}
        y = lax.conv_general_dilated(x, kernel, strides, padding, **options)
        return y + layer.bias[...]

    def pooled(x):
        return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")

    def averaged(x):
        return lax.reduce_window(x, 0.0, lax.add, (1, 2, 2, 1), (1, 1, 1, 1), "SAME") / 4

    def normalised(x):
        return (x - norm.mean[...]) / jnp.sqrt(norm.var[...] + 1e-5) * norm.scale + norm.bias

    flat = lambda x: x.reshape(len(x), -1)
    pairs = [
        (strided, lambda x: convolve(strided, x, (2, 2), [(2, 2), (2, 2)])),
        (
            [jax.nn.relu, jup.nnx.MaxPoolWithIndices((3, 3), (2, 2))],
            lambda x: pooled(rectified(x)),
        ),
        (
            nnx.Sequential(grouped, norm),
            lambda x: normalised(
                convolve(grouped, x, (1, 1), "SAME", rhs_dilation=(2, 2), feature_group_count=2)
            ),
        ),
        (nnx.relu, rectified),
        (
            functools.partial(jup.avg_pool, window_shape=2, strides=1, padding="SAME"),
            averaged,
        ),
        (nnx.Dropout(0.5, rngs=rngs), lambda x: x),
        (flat, flat),
        (dense, lambda x: x @ dense.kernel[...] + dense.bias[...]),
    ]
    deconvnet = models.DeconvNet([layer for layer, _ in pairs])

    def strongest(y):
        return jnp.where(y == jnp.max(y, range(1, y.ndim), keepdims=True), y, 0)

    def at(y):
        return jnp.zeros_like(y).at[:, 1, 3].set(y[:, 1, 3])

    cases = [
        (0, 3, {}, strongest),
        (1, 2, {"position": (1, 3)}, at),
        (2, 7, {"strongest": False}, lambda y: y),
        (4, 1, {}, strongest),
        (7, 4, {}, strongest),
    ]

    def forward(x, stage):
        for _, function in pairs[: stage + 1]:
            x = function(x)
        return x

    @jax.jit
    def run(x):
        found, expected = [], []
        for stage, feature, options, chosen in cases:
            found.append(deconvnet.project(x, stage, feature, **options))
            y, back = jax.vjp(functools.partial(forward, stage=stage), x)
            seed = jnp.zeros_like(y).at[..., feature].set(chosen(y[..., feature]))
            expected += back(seed)
        return found, expected

    for found, expected in zip(*run(images((2, 15, 18, 4)))):
        scale = jnp.max(jnp.abs(expected))
        assert scale > 0
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale)


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "uint8"])
def test_first_of_equal_activations_is_projected(dtype):
    encoder = models.Encoder(1, [[2]], rngs=nnx.Rngs(0))
    kernel = encoder.stages[0][0].conv.kernel
    kernel[...] = jnp.ones_like(kernel[...])
    image = models.DeconvNet(encoder).project(jnp.ones((1, 16, 16, 1), dtype), 0, 0)
    rows, columns = np.nonzero(np.asarray(image[0, ..., 0]))
    assert (set(rows), set(columns)) == ({0, 1, 2}, {0, 1, 2})  # around the pixel (1, 1)


@pytest.mark.thorough
def test_projection_is_a_function_of_the_image_alone():
    """Training or not, and nothing in the encoder is changed by looking at it."""
    encoder = models.Encoder(1, [[2]], rngs=nnx.Rngs(0))
    before = [np.copy(leaf) for leaf in jax.tree.leaves(nnx.state(encoder))]
    x = images((1, 8, 8, 1))
    encoder.train()
    trained = models.DeconvNet(encoder).project(x, 0, 1)
    encoder.eval()
    np.testing.assert_array_equal(trained, models.DeconvNet(encoder).project(x, 0, 1))
    for a, b in zip(before, jax.tree.leaves(nnx.state(encoder))):
        np.testing.assert_array_equal(a, b)


RNGS = nnx.Rngs(0)
small = functools.cache(basic)  # nothing below changes it
WRONG_USE = {
    "decoder": (
        lambda: basic("bicubic"),
        ValueError,
        "decoder='bicubic': expected one of 'indices', 'inverse', 'nearest', 'bilinear',"
        " 'bed_of_nails', 'conv_transpose'",
    ),
    "decoder of segnet": (
        lambda: models.SegNet(3, 2, decoder="max", rngs=RNGS),
        ValueError,
        "decoder='max': expected one of",
    ),
    "decoder of cedn": (
        lambda: models.CEDN(decoder="max", rngs=RNGS),
        ValueError,
        "decoder='max': expected one of",
    ),
    "stages": (lambda: basic(stages=0), ValueError, "widths=(): expected at least one stage"),
    "widths": (
        lambda: models.AutoEncoder(3, (), rngs=RNGS),
        ValueError,
        "widths=[]: expected at least one stage, none of them empty",
    ),
    "back": (
        lambda: models.EncoderDecoder(3, 2, [[4], [8]], [[4]], rngs=RNGS),
        ValueError,
        "back=[[4]]: expected 2 stages, none of them empty",
    ),
    "nothing to pack": (
        lambda: models.SegNet(3, 5, decoder="nearest", pack_indices=True, rngs=RNGS),
        ValueError,
        "pack_indices=True: the decoder 'nearest' has no indices to pack",
    ),
    "nothing to pack in a pooling": (
        lambda: models.pool(jnp.zeros((1, 4, 4, 1)), "inverse", pack_indices=True),
        ValueError,
        "pack_indices=True: the decoder 'inverse' has no indices to pack",
    ),
    "image of a projection": (
        lambda: models.DeconvNet(small().encoder).project(jnp.zeros((8, 8, 3)), 1, 0),
        ValueError,
        "x: expected [batch, height, width, 3] with at least 4 rows and columns, got [8, 8, 3]",
    ),
    "small image": (
        lambda: small()(jnp.zeros((1, 3, 8, 3))),
        ValueError,
        "x: expected [batch, height, width, 3] with at least 4 rows and columns, got [1, 3, 8, 3]",
    ),
    "channels": (
        lambda: small()(jnp.zeros((1, 8, 8, 1))),
        ValueError,
        "x: expected [batch, height, width, 3] with at least 4 rows and columns, got [1, 8, 8, 1]",
    ),
    "no batch": (
        lambda: small()(jnp.zeros((8, 8, 3))),
        ValueError,
        "x: expected [batch, height, width, 3] with at least 4 rows and columns, got [8, 8, 3]",
    ),
    "implementation": (
        lambda: models.SegNet(3, 2, implementation="cuda", rngs=RNGS),
        ValueError,
        "implementation='cuda': expected one of None, 'xla'",
    ),
    "implementation of cedn": (
        lambda: models.CEDN(implementation="cuda", rngs=RNGS),
        ValueError,
        "implementation='cuda': expected one of None, 'xla'",
    ),
    "layers": (
        lambda: models.DeconvNet(small()),
        TypeError,
        "layers: expected an Encoder or a list of layers, got SegNetBasic",
    ),
    "layer": (
        lambda: models.DeconvNet([jax.nn.relu, [3]]),
        TypeError,
        "layers[1][0]: expected a layer, got int",
    ),
    "position": (
        lambda: models.DeconvNet([jnp.sin]).project(jnp.zeros((1, 4, 4, 3)), 0, 0, position=(1,)),
        ValueError,
        "position=(1,): expected 2 ints",
    ),
    "row": (
        lambda: models.DeconvNet([jnp.sin]).project(jnp.zeros((1, 4, 4, 3)), 0, 0, position=(4, 0)),
        ValueError,
        "position[0]=4: expected 0 to 3",
    ),
    "stage": (
        lambda: models.DeconvNet(small().encoder).project(jnp.zeros((1, 8, 8, 3)), 2, 0),
        ValueError,
        "stage=2: expected 0 to 1",
    ),
    "feature": (
        lambda: models.DeconvNet(small().encoder).project(jnp.zeros((1, 8, 8, 3)), 1, -1),
        ValueError,
        "feature=-1: expected 0 to 3",
    ),
    "feature type": (
        lambda: models.DeconvNet(small().encoder).project(jnp.zeros((1, 8, 8, 3)), 1, 0.5),
        TypeError,
        "feature: expected an int, got 0.5",
    ),
    "model of weights": (
        lambda: models.load_torch(models.CEDN(rngs=RNGS), {}),
        TypeError,
        "model: expected an EncoderDecoder or Encoder, got CEDN",
    ),
}


@pytest.mark.parametrize("name", WRONG_USE)
def test_wrong_use(name):
    use, kind, message = WRONG_USE[name]
    with pytest.raises(kind) as error:
        use()
    assert message in str(error.value)


@pytest.mark.thorough
def test_every_network_is_documented():
    documented = [getattr(models, name) for name in set(models.__all__) - {"DECODERS"}]
    names = {"jax": jax, "jnp": jnp, "np": np, "jaxunpool": jup}
    for module in {public.__module__ for public in documented}:
        assert doctest.testmod(sys.modules[module], extraglobs=names).failed == 0
    for public in documented:
        assert ">>> " in inspect.getdoc(public), public
        signature = inspect.signature(public.__init__ if isinstance(public, type) else public)
        for parameter in set(signature.parameters) - {"self"}:
            assert f"{parameter}:" in inspect.getdoc(public), (public, parameter)
