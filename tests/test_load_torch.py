"""Weights of PyTorch in modules of Flax: every kind of layer, ways to name them, refusals."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from strategies import only

import jaxunpool.nnx as jnn
from jaxunpool import interop

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
tnn = torch.nn
RNGS = nnx.Rngs(0)


def last(array):
    """From channels first to last."""
    return np.moveaxis(array, 1, -1) if array.ndim > 2 else array


def randomised(module, seed=0):
    """A module of PyTorch in float64 and eval mode, all its entries random."""
    rng = np.random.default_rng(seed)
    module = module.double().eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                low = 0.5 if name.endswith("running_var") else -1.0
                values = rng.uniform(low, 1.5, tuple(tensor.shape)).astype(np.float32)
                tensor.copy_(torch.from_numpy(values))  # Flax's statistics are float32
    return module


def answer(module, x):
    with torch.no_grad():
        return module(torch.from_numpy(x)).numpy()


f64 = {"param_dtype": jnp.float64, "rngs": RNGS}
conv = functools.partial(nnx.Conv, padding=1, **f64)
deconv = functools.partial(nnx.ConvTranspose, **f64)
# Makes the layer of PyTorch, the one of Flax, and the shape of x in PyTorch.
# The padding of lax.conv_transpose is dilation * (kernel - 1) - PyTorch's padding.
LAYERS = {
    "Conv1d": lambda: (tnn.Conv1d(4, 6, 3, padding=1), conv(4, 6, (3,)), (2, 4, 9)),
    "Conv2d": lambda: (tnn.Conv2d(4, 6, (3, 5), padding=1), conv(4, 6, (3, 5)), (2, 4, 8, 9)),
    "Conv2d, strided, dilated, grouped, without bias": lambda: (
        tnn.Conv2d(4, 6, 3, 2, 1, 2, 2, bias=False),
        conv(4, 6, (3, 3), 2, kernel_dilation=2, feature_group_count=2, use_bias=False),
        (2, 4, 8, 9),
    ),
    "Conv2d, depthwise": lambda: (
        tnn.Conv2d(4, 8, 3, padding=1, groups=4),
        conv(4, 8, (3, 3), feature_group_count=4),
        (1, 4, 5, 6),
    ),
    "Conv2d without bias, Flax's with one": lambda: (
        tnn.Conv2d(4, 6, 3, padding=1, bias=False),
        conv(4, 6, (3, 3)),
        (1, 4, 5, 6),
    ),
    "Conv3d": lambda: (tnn.Conv3d(2, 3, 3, padding=1), conv(2, 3, (3, 3, 3)), (1, 2, 4, 5, 6)),
    "ConvTranspose1d": lambda: (
        tnn.ConvTranspose1d(4, 6, 3, 2, 1),
        deconv(4, 6, (3,), 2, padding=((1, 1),)),
        (2, 4, 5),
    ),
    "ConvTranspose2d": lambda: (
        tnn.ConvTranspose2d(4, 6, (3, 5), 2, 1),
        deconv(4, 6, (3, 5), (2, 2), padding=((1, 1), (3, 3))),
        (2, 4, 4, 5),
    ),
    "ConvTranspose2d, square": lambda: (
        tnn.ConvTranspose2d(4, 4, 3, 2, 1),
        deconv(4, 4, (3, 3), (2, 2), padding=((1, 1), (1, 1))),
        (2, 4, 4, 5),
    ),
    "ConvTranspose2d, transpose_kernel": lambda: (
        tnn.ConvTranspose2d(4, 6, 3, 2, 1),
        deconv(4, 6, (3, 3), (2, 2), padding=((1, 1), (1, 1)), transpose_kernel=True),
        (2, 4, 4, 5),
    ),
    "ConvTranspose3d": lambda: (
        tnn.ConvTranspose3d(2, 3, 2, 2),
        deconv(2, 3, (2, 2, 2), (2, 2, 2), padding="VALID"),
        (1, 2, 3, 2, 3),
    ),
    "ConvTranspose2d, grouped, ours": lambda: (
        tnn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2),
        jnn.ConvTranspose(
            4, 6, (3, 3), 2, 1, output_padding=1, groups=2, param_dtype=jnp.float64, rngs=RNGS
        ),
        (2, 4, 4, 5),
    ),
    "Linear": lambda: (tnn.Linear(5, 7), nnx.Linear(5, 7, **f64), (3, 5)),
    "Linear to two axes": lambda: (
        tnn.Sequential(tnn.Linear(6, 8), tnn.Unflatten(1, (2, 4))),
        nnx.Sequential(nnx.LinearGeneral(6, (2, 4), **f64)),
        (3, 6),
    ),
    "Linear from two axes": lambda: (
        tnn.Sequential(tnn.Flatten(), tnn.Linear(8, 3, bias=False)),
        nnx.Sequential(
            jnp.asarray, nnx.LinearGeneral((2, 4), 3, axis=(-2, -1), use_bias=False, **f64)
        ),
        (3, 2, 4),
    ),
    "BatchNorm": lambda: (tnn.BatchNorm2d(4), nnx.BatchNorm(4, **f64), (2, 4, 3, 5)),
    "BatchNorm, not affine": lambda: (
        tnn.BatchNorm1d(4, affine=False),
        nnx.BatchNorm(4, **f64),
        (2, 4, 3),
    ),
    "LayerNorm": lambda: (tnn.LayerNorm(5), nnx.LayerNorm(5, epsilon=1e-5, **f64), (3, 5)),
    "GroupNorm": lambda: (
        tnn.GroupNorm(2, 4),
        nnx.GroupNorm(4, num_groups=2, epsilon=1e-5, **f64),
        (2, 4, 3, 5),
    ),
    "InstanceNorm": lambda: (
        tnn.InstanceNorm2d(4, affine=True),
        nnx.InstanceNorm(4, epsilon=1e-5, **f64),
        (2, 4, 3, 5),
    ),
    "RMSNorm": lambda: (tnn.RMSNorm(5, eps=1e-6), nnx.RMSNorm(5, **f64), (3, 5)),
    "PReLU": lambda: (tnn.PReLU(), nnx.PReLU(param_dtype=jnp.float64), (2, 4, 3)),
    "PReLU per channel": lambda: (
        tnn.PReLU(4),
        nnx.PReLU(jnp.full(4, 0.25), param_dtype=jnp.float64),
        (2, 4, 3, 5),
    ),
}


QUICK = [
    "Conv2d, strided, dilated, grouped, without bias",
    "ConvTranspose2d",
    "ConvTranspose2d, square",
    "ConvTranspose2d, transpose_kernel",
    "ConvTranspose2d, grouped, ours",
    "Linear to two axes",
    "Linear from two axes",
    "BatchNorm, not affine",
    "RMSNorm",
    "PReLU",
    "PReLU per channel",
]


@pytest.mark.few(6)
@pytest.mark.parametrize("name", only(*QUICK, among=LAYERS))
def test_layers_equal_pytorch(name, rng):
    theirs, ours, shape = LAYERS[name]()
    theirs = randomised(theirs)
    interop.load_torch(ours, theirs.state_dict())
    ours.eval()
    x = rng.standard_normal(shape)
    channels_last = x if isinstance(ours, nnx.Sequential) else last(x)
    expected = answer(theirs, x)
    expected = expected if isinstance(ours, nnx.Sequential) else last(expected)
    # Sums of up to 100 products of numbers near 1; XLA's rsqrt is not the last bit.
    np.testing.assert_allclose(ours(channels_last), expected, rtol=0, atol=1e-12)


# A network that holds layers in every way.


class Block(nnx.Module):
    """Declared in another order than by name."""

    def __init__(self, i, o, rngs=RNGS):
        self.conv = conv(i, o, (3, 3), rngs=rngs)
        self.bn = nnx.BatchNorm(o, rngs=rngs, param_dtype=jnp.float64)
        self.act = nnx.PReLU(param_dtype=jnp.float64)

    def __call__(self, x):
        return self.act(self.bn(self.conv(x)))


class Net(nnx.Module):
    def __init__(self, rngs=RNGS):
        self.stem = nnx.Sequential(conv(2, 4, (3, 3), rngs=rngs), jax.nn.relu, Block(4, 4, rngs))
        self.stages = nnx.List([nnx.List([Block(4, 3, rngs)]), nnx.List([Block(3, 3, rngs)])])
        self.heads = nnx.Dict({"up": deconv(3, 3, (3, 3), (1, 1), padding="SAME", rngs=rngs)})
        self.drop = nnx.Dropout(0.5, rngs=rngs)
        self.more = nnx.data([nnx.Linear(3, 5, param_dtype=jnp.float64, rngs=rngs)])

    def __call__(self, x):
        x = self.stem(x)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        x = self.drop(self.heads["up"](x))
        return self.more[0](x.mean((1, 2)))


def torch_block(i, o):
    layers = {"conv": tnn.Conv2d(i, o, 3, padding=1), "bn": tnn.BatchNorm2d(o), "act": tnn.PReLU()}
    block = tnn.Sequential()
    for name, layer in layers.items():
        block.add_module(name, layer)
    return block


class TorchNet(tnn.Module):
    def __init__(self):
        super().__init__()
        self.stem = tnn.Sequential(tnn.Conv2d(2, 4, 3, padding=1), tnn.ReLU(), torch_block(4, 4))
        self.stages = tnn.ModuleList(
            [tnn.ModuleList([torch_block(4, 3)]), tnn.ModuleList([torch_block(3, 3)])]
        )
        self.heads = tnn.ModuleDict({"up": tnn.ConvTranspose2d(3, 3, 3, padding=1)})
        self.more = tnn.ModuleList([tnn.Linear(3, 5)])

    def forward(self, x):
        x = self.stem(x)
        for stage in self.stages:
            for block in stage:
                x = block(x)
        return self.more[0](self.heads["up"](x).mean((2, 3)))


@functools.cache
def reference():
    """PyTorch's network, its state dict, an input and the result, channels last."""
    theirs = randomised(TorchNet())
    x = np.random.default_rng(1).standard_normal((2, 2, 6, 5))
    return theirs.state_dict(), (last(x), answer(theirs, x))


def state_of(module):
    return [
        np.copy(leaf) for leaf in jax.tree.leaves(nnx.state(module, (nnx.Param, nnx.BatchStat)))
    ]


def loaded(state_dict, module=None, **options):
    """A network with weights, which agrees with PyTorch's to rounding."""
    module = module or Net()
    _, (x, y) = reference()
    interop.load_torch(module, state_dict, example=(x, y), tolerance=1e-13, **options)
    return module


def renamed(state_dict, change):
    return {change(name): value for name, value in state_dict.items()}


def plain(state_dict):
    return {name: value.numpy() for name, value in state_dict.items()}


def saved(kind, folder):
    """The state dict in a file of a kind."""
    state_dict, _ = reference()
    path = folder / f"weights.{kind}"
    if kind == "npz":
        np.savez(path, **plain(state_dict))
    else:
        pytest.importorskip("safetensors")
        from safetensors.torch import save_file

        save_file(state_dict, path)
    return path


def test_equal_names():
    """Tensors as they are, NumPy's and JAX's arrays; in training mode, as it was."""
    state_dict, _ = reference()
    module = Net()
    loaded(state_dict, module)
    assert not module.drop.deterministic
    assert not module.stem.layers[2].bn.use_running_average
    expected = state_of(module)
    for other in (plain(state_dict), jax.tree.map(jnp.asarray, plain(state_dict))):
        found = Net()
        interop.load_torch(found, other)
        jax.tree.map(np.testing.assert_array_equal, state_of(found), expected)


@pytest.mark.parametrize("kind", ["npz", "safetensors"])
def test_files(kind, tmp_path):
    path = saved(kind, tmp_path)
    for place in (path, str(path)):
        loaded(place)


def test_files_of_bfloat16(tmp_path):
    pytest.importorskip("safetensors")
    from safetensors.torch import save_file

    weight = torch.randn(7, 5, dtype=torch.bfloat16)
    save_file({"weight": weight}, tmp_path / "w.safetensors")
    for source in (tmp_path / "w.safetensors", {"weight": weight}):
        layer = nnx.Linear(5, 7, rngs=RNGS)
        interop.load_torch(layer, source)
        assert layer.kernel.dtype == jnp.float32
        np.testing.assert_array_equal(layer.kernel[...], weight.float().numpy().T)


def test_other_names():
    state_dict, _ = reference()
    theirs = renamed(state_dict, lambda name: "module." + name.replace("stages.0", "down"))
    ours = ["", "stages.0", "stages.1"]
    loaded(theirs, names=dict(zip(ours, ["module", "module.down", "module.stages.1"])))
    loaded(theirs, names=lambda name: f"module.{name.replace('stages.0', 'down')}")


def test_names_of_none_keep_a_layer():
    state_dict, _ = reference()
    module = Net()
    kept = np.copy(module.more[0].kernel[...])
    theirs = {name: value for name, value in state_dict.items() if "more" not in name}
    interop.load_torch(module, theirs, names={"more.0": None})
    interop.load_torch(module, state_dict, names={"more": None}, skip="more")
    np.testing.assert_array_equal(module.more[0].kernel[...], kept)
    np.testing.assert_array_equal(module.stem.layers[0].bias[...], state_dict["stem.0.bias"])


def test_order():
    """Other names, and one layer too many."""
    state_dict, _ = reference()
    theirs = renamed(state_dict, lambda name: "net." + re.sub(r"\.(?=.*\.)", "_", name))
    theirs = {"extra.weight": torch.ones(2, 2)} | theirs
    loaded(theirs, names="order", skip=["extra"])


def test_order_that_sorting_has_lost():
    state_dict, _ = reference()
    with pytest.raises(
        ValueError, match="its names are sorted, so the order of 'heads' and 'more'"
    ):
        loaded(dict(sorted(state_dict.items())), names="order")
    with pytest.raises(ValueError, match="sort attributes, so the order of 'heads' and 'more' is"):
        loaded(state_dict, nnx.eval_shape(lambda: Net(nnx.Rngs(0))), names="order")


def test_order_that_numbers_keep(tmp_path):
    """12 layers, of which sorting as text puts the last before the third."""
    layers = [tnn.Linear(3, 3) for _ in range(12)]
    theirs = randomised(tnn.Sequential(*layers))
    ours = nnx.Sequential(*(nnx.Linear(3, 3, rngs=RNGS) for _ in layers))
    ours = nnx.clone(ours)
    state_dict = plain(theirs.state_dict())
    for each in (state_dict, dict(sorted(state_dict.items()))):
        interop.load_torch(ours, each, names="order")
        for i, layer in enumerate(ours.layers):
            np.testing.assert_array_equal(layer.kernel[...], state_dict[f"{i}.weight"].T)


def test_abstract_module():
    state_dict, (x, y) = reference()
    module = nnx.eval_shape(lambda: Net(nnx.Rngs(0)))
    interop.load_torch(module, state_dict, example=(x, y), tolerance=1e-13)
    module.eval()
    np.testing.assert_allclose(module(x), y, rtol=1e-13)


def test_shared_layers():
    """One layer in two places, which PyTorch lists twice."""
    layer = nnx.Linear(3, 3, rngs=RNGS)
    ours = nnx.Sequential(layer, jax.nn.relu, layer)
    linear = tnn.Linear(3, 3)
    theirs = plain(tnn.Sequential(linear, tnn.ReLU(), linear).state_dict())
    interop.load_torch(ours, theirs)
    np.testing.assert_array_equal(layer.kernel[...], linear.weight.detach().numpy().T)
    with pytest.raises(ValueError, match="'0' and '2' differ, where the module has one layer"):
        interop.load_torch(ours, theirs | {"2.bias": np.ones(3, np.float32)})


def test_parameters_keep_their_type_and_place():
    mesh = jax.make_mesh((8,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(None, "x"))
    layer = nnx.Linear(2, 8, param_dtype=jnp.bfloat16, rngs=RNGS)
    layer.kernel.set_value(jax.device_put(layer.kernel[...], sharding))
    interop.load_torch(layer, {"weight": np.ones((8, 2)), "bias": np.ones(8)})
    kernel = layer.kernel.get_value()
    assert (kernel.dtype, kernel.sharding) == (jnp.bfloat16, sharding)
    assert not layer.bias.get_value().committed
    assert (kernel == 1).all()


def test_example_of_several_arrays():
    """A module of two inputs and two results; integers stay integers."""

    class Two(nnx.Module):
        def __init__(self):
            self.embedding = nnx.Embed(5, 3, rngs=RNGS)

        def __call__(self, tokens, scale):
            y = self.embedding(tokens) * scale
            return {"y": y, "sum": y.sum()}

    theirs = tnn.Embedding(5, 3)
    tokens = torch.tensor([[0, 4, 2]])
    y = theirs(tokens).detach() * 3
    pair = (tokens, np.float32(3)), {"y": y.numpy(), "sum": y.sum().numpy()}
    state_dict = {f"embedding.{name}": value for name, value in theirs.state_dict().items()}
    interop.load_torch(Two(), state_dict, example=pair)
    with pytest.raises(ValueError, match="example: expected 2 results, got 1"):
        interop.load_torch(Two(), state_dict, example=(pair[0], pair[1]["y"]))


def linear(**changes):
    return {"weight": np.ones((3, 2)), "bias": np.ones(3)} | changes


net = functools.cache(Net)  # nothing below changes it


def of_net(change=lambda state_dict: state_dict, **options):
    return lambda: (net(), change(dict(reference()[0])), options)


def of_layer(layer, state_dict, **options):
    return lambda: (layer(), state_dict, options)


class Scaled(nnx.Linear):
    """A layer with a parameter more."""

    def __init__(self):
        super().__init__(2, 3, rngs=RNGS)
        self.factor = nnx.Param(jnp.ones(3))


def without(part):
    return lambda state: {name: value for name, value in state.items() if part not in name}


plain_conv = lambda *args: lambda: nnx.Conv(*args, rngs=RNGS)
REFUSALS = {
    "no module": (
        lambda: (len, {}, {}),
        TypeError,
        "module: expected an nnx.Module, got <built-in",
    ),
    "no mapping": (
        lambda: (net(), [1], {}),
        TypeError,
        "state_dict: expected a mapping or the path of a file, got list",
    ),
    "a module of PyTorch": (
        lambda: (net(), tnn.Linear(2, 3), {}),
        TypeError,
        "got Linear; pass its state_dict()",
    ),
    "a whole checkpoint": (
        of_net(lambda state: {"epoch": 3, "state_dict": state}),
        ValueError,
        "state_dict['state_dict']: expected an array, got a mapping; pass that one?",
    ),
    "a pickle": (
        lambda: (net(), "vgg16.pth", {}),
        ValueError,
        "state_dict: vgg16.pth is a pickle, which can run code when it is read, so it is not read"
        " here; convert it: safetensors.torch.save_file(torch.load(path, weights_only=True),"
        " 'vgg16.safetensors')",
    ),
    "another file": (
        lambda: (net(), "vgg16.h5", {}),
        ValueError,
        "state_dict: expected a .npz or .safetensors file, got vgg16.h5",
    ),
    "objects": (
        of_layer(Scaled, linear(bias=[None])),
        TypeError,
        "state_dict['bias']: expected an array, got [None]",
    ),
    "a tensor without values": (
        of_layer(Scaled, linear(bias=torch.ones(3, device="meta"))),
        TypeError,
        "state_dict['bias']: expected an array, got Tensor",
    ),
    "integers": (
        of_layer(Scaled, linear(bias=np.ones(3, int))),
        TypeError,
        "state_dict['bias']: expected floats, got int64",
    ),
    "a layer is missing": (
        of_net(without("stages.0.0.bn")),
        ValueError,
        "state_dict: no layer 'stages.0.0.bn' for stages.0.0.bn (BatchNorm: weight [3], bias [3],"
        " running_mean [3], running_var [3]) of the module; is it 'stages.1.0.bn'?; pass names",
    ),
    "a layer is left over": (
        of_net(lambda state: state | {"aux.0.weight": torch.ones(2, 3, 1, 1), "z": torch.ones(1)}),
        ValueError,
        "state_dict: aux.0 (a 2-D convolution: weight [2, 3, 1, 1]) and 1 more is for no layer of"
        " the module; skip='aux.0' leaves it out",
    ),
    "a lone entry is left over": (
        of_net(lambda state: state | {"mean": torch.ones(3)}),
        ValueError,
        "skip='mean' leaves it out",
    ),
    "skip of nothing": (
        of_net(skip="fc"),
        ValueError,
        "skip: state_dict has nothing that begins with 'fc'",
    ),
    "a word for names": (
        of_net(names="by order"),
        ValueError,
        "names='by order': expected 'order', a mapping, a function or None",
    ),
    "names of another type": (
        of_net(names=3),
        TypeError,
        "names: expected 'order', a mapping, a function or None, got 3",
    ),
    "names of nothing": (
        of_net(names={"stages.3": "stages.1"}),
        ValueError,
        "names: the module has no layer 'stages.3'; is it",
    ),
    "one name for two": (
        of_net(names={"stages.1": "stages.1", "stages.0.0.bn": "stages.1.0.bn"}),
        ValueError,
        "names: 'stages.0.0.bn' and 'stages.1.0.bn' both come from 'stages.1.0.bn'",
    ),
    "a parameter of no layer": (
        of_layer(Scaled, linear()),
        ValueError,
        "module: factor (Param) belongs to no layer that load_torch knows; set it yourself, and"
        " pass names={'factor': None}",
    ),
    "a parameter of no layer, by order": (
        of_layer(Scaled, linear() | {"factor.weight": np.ones(3)}, names="order"),
        ValueError,
        "layer 2 does not fit: the module has factor (Param), state_dict has factor",
    ),
    "batch axes": (
        of_layer(
            lambda: nnx.LinearGeneral(3, 4, axis=-1, batch_axis={0: 2}, rngs=RNGS),
            {"weight": np.ones((4, 3))},
        ),
        ValueError,
        "kernel (Param) belongs to no layer that load_torch knows",
    ),
    "more layers in the module": (
        of_net(without("more"), names="order"),
        ValueError,
        "layer 12 does not fit: the module has more.0 (Linear: weight [5, 3], bias [5]),"
        " state_dict has 11 layers",
    ),
    "more layers in the state dict": (
        of_net(lambda state: state | {"fc.weight": torch.ones(2, 3)}, names="order"),
        ValueError,
        "layer 13 does not fit: the module has 12 layers, state_dict has fc (a Linear or an"
        " Embedding: weight [2, 3]); skip leaves layers out",
    ),
    "another order": (
        of_net(lambda state: {k: v for k, v in state.items() if ".bn" in k} | state, names="order"),
        ValueError,
        "layer 1 does not fit: the module has stem.0 (Conv: weight [4, 2, 3, 3], bias [4]),"
        " state_dict has stem.2.bn (a batch normalisation: weight [4], bias [4], running_mean [4],"
        " running_var [4]); a layer more, or layers declared in another order?",
    ),
    "no normalisation": (
        of_net(without(".bn"), names="order"),
        ValueError,
        "the module has stem.2.bn (BatchNorm: weight [4], bias [4], running_mean [4], running_var"
        " [4]), state_dict has stem.2.act (a PReLU or a normalisation: weight [1])",
    ),
    "a convolution where the module normalises": (
        of_layer(lambda: nnx.BatchNorm(3, rngs=RNGS), {"weight": np.ones((3, 2, 3, 3))}),
        ValueError,
        "a network without this normalisation?",
    ),
    "no statistics": (
        of_net(without("running_var")),
        ValueError,
        "state_dict: stem.2.bn does not fit: the module has stem.2.bn (BatchNorm: weight [4], bias"
        " [4], running_mean [4], running_var [4]), state_dict has stem.2.bn (a batch normalisation:"
        " weight [4], bias [4], running_mean [4]); it has no running_var",
    ),
    "no bias in the module": (
        of_layer(lambda: nnx.Linear(2, 3, use_bias=False, rngs=RNGS), linear()),
        ValueError,
        "the module itself (Linear: weight [3, 2]), state_dict has the module itself (a Linear:"
        " weight [3, 2], bias [3]); the module has no bias",
    ),
    "channels swapped": (
        of_layer(plain_conv(4, 6, (3, 3)), {"weight": np.ones((4, 6, 3, 3))}),
        ValueError,
        "channels swapped: a ConvTranspose2d?",
    ),
    "channels swapped the other way": (
        of_layer(lambda: nnx.ConvTranspose(4, 6, (3,), rngs=RNGS), {"weight": np.ones((6, 4, 3))}),
        ValueError,
        "channels swapped: a Conv1d?",
    ),
    "transposed": (
        of_layer(lambda: nnx.Linear(2, 3, rngs=RNGS), {"weight": np.ones((2, 3))}),
        ValueError,
        "rows and columns swapped?",
    ),
    "another kernel": (
        of_layer(plain_conv(4, 6, (3, 3)), {"weight": np.ones((6, 4, 5, 5))}),
        ValueError,
        "kernels of another size",
    ),
    "groups": (
        of_layer(plain_conv(4, 6, (3, 3)), {"weight": np.ones((6, 2, 3, 3))}),
        ValueError,
        "another number of channels or groups",
    ),
    "another rank": (
        of_layer(plain_conv(4, 6, (3, 3)), {"weight": np.ones((6, 4, 3))}),
        ValueError,
        "(Conv: weight [6, 4, 3, 3], bias [6]), state_dict has the module itself (a 1-D"
        " convolution: weight [6, 4, 3])",
    ),
    "a slope per channel": (
        of_layer(nnx.PReLU, {"weight": np.ones(4)}),
        ValueError,
        "nnx.PReLU(jnp.full(4, 0.25)) has one per channel",
    ),
    "the example's type": (
        of_net(example=3),
        TypeError,
        "example: expected a pair (x, y), got 3",
    ),
    "the example's layout": (
        of_layer(
            lambda: nnx.Linear(2, 3, rngs=RNGS),
            linear(),
            example=(np.ones((4, 2)), np.ones((3, 4))),
        ),
        ValueError,
        "example: the module returns [4, 3], y is [3, 4]; both x and y have the module's layout",
    ),
    "the example's result": (
        of_layer(
            lambda: nnx.Linear(2, 3, rngs=RNGS),
            linear(),
            example=(np.ones((4, 2)), np.full((4, 3), 3.001)),
        ),
        ValueError,
        "example: with these weights the module's result differs from y by 0.001, where the largest"
        " magnitude of y is 3 (tolerance=0.0001 of it); nothing was changed",
    ),
    "a result that is not finite": (
        of_layer(
            lambda: nnx.Linear(2, 3, rngs=RNGS),
            linear(bias=np.full(3, np.nan)),
            example=(np.ones((4, 2)), np.ones((4, 3))),
        ),
        ValueError,
        "differs from y by nan",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals_change_nothing(name):
    make, kind, message = REFUSALS[name]
    module, state_dict, options = make()
    before = state_of(module) if isinstance(module, nnx.Module) else None
    with pytest.raises(kind) as error:
        interop.load_torch(module, state_dict, **options)
    assert message in str(error.value)
    if before is not None:
        jax.tree.map(np.testing.assert_array_equal, state_of(module), before)


class Shared(nnx.Module):
    """One layer under two names, which do not come in alphabetical order."""

    def __init__(self):
        self.b = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
        self.a = self.b

    def __call__(self, x):
        return self.a(self.b(x))


def test_an_example_of_a_layer_in_two_places(rng):
    weight, bias = rng.standard_normal((3, 3)), rng.standard_normal(3)
    x = rng.standard_normal((2, 3))
    y = (x @ weight.T + bias) @ weight.T + bias
    module = Shared()
    state = {"b.weight": weight, "b.bias": bias}
    interop.load_torch(module, state, example=(x, y), tolerance=1e-5)
    np.testing.assert_allclose(module(x), y, rtol=1e-5)


def test_what_an_example_needs(rng):
    x = rng.standard_normal((2, 3))
    linear = nnx.Linear(3, 3, rngs=nnx.Rngs(0))
    state = {"weight": np.eye(3), "bias": np.zeros(3)}
    with pytest.raises(
        ValueError, match=r"example: the module does not run with x of shape \[2, 4"
    ):
        interop.load_torch(linear, state, example=(np.ones((2, 4)), x))
    with pytest.raises(TypeError, match=r"tolerance: expected a number, got 'a'"):
        interop.load_torch(linear, state, example=(x, x), tolerance="a")
    with pytest.raises(TypeError, match=r"names: expected a name or None for '', got 3"):
        interop.load_torch(linear, state, names=lambda name: 3)
    with pytest.raises(TypeError, match=r"names: expected names or None, got '': 3"):
        interop.load_torch(linear, state, names={"": 3})
