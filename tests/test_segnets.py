"""The kinds of SegNet that PyTorch's users write: their weights here, and what is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from strategies import only

from jaxunpool import models

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
tnn = torch.nn
F = tnn.functional
WIDTHS = ((4, 4), (6, 6))
BACK = ((6, 4), (4,))


class SegNet(tnn.Module):
    """A small SegNet, with its layers in attributes and functions between them."""

    def __init__(
        self,
        widths=WIDTHS,
        back=BACK,
        *,
        order="norm_relu",
        encoder_norm=True,
        decoder_norm=True,
        last_norm=False,
        last_relu=False,
        transposed=False,
    ):
        super().__init__()
        self.order, self.last_relu = order, last_relu
        self.stages = []
        flat = [(w, tnn.Conv2d, encoder_norm) for w in widths]
        flat += [(w, tnn.ConvTranspose2d if transposed else tnn.Conv2d, decoder_norm) for w in back]
        i = 3
        for number, (stage, kind, normalised) in enumerate(flat):
            names = []
            for o in stage:
                names.append(f"{number}_{len(names)}")
                self.add_module(f"conv{names[-1]}", kind(i, o, 3, padding=1))
                self.add_module(f"bn{names[-1]}", tnn.BatchNorm2d(o) if normalised else None)
                i = o
            self.stages.append(names)
        self.down = len(widths)
        last = tnn.ConvTranspose2d if transposed else tnn.Conv2d
        self.classifier = last(i, 5, 3, padding=1)
        self.classifier_bn = tnn.BatchNorm2d(5) if last_norm else None

    def after(self, x, norm, relu=True):
        if relu and self.order == "relu_norm":
            x = F.relu(x)
        x = x if norm is None else norm(x)
        return F.relu(x) if relu and self.order == "norm_relu" else x

    def forward(self, x):
        kept = []
        for number, names in enumerate(self.stages):
            if number >= self.down:
                indices, size = kept.pop()
                x = F.max_unpool2d(x, indices, 2, output_size=size)
            for name in names:
                norm = getattr(self, f"bn{name}")
                x = self.after(getattr(self, f"conv{name}")(x), norm)
            if number < self.down:
                size = x.shape
                x, indices = F.max_pool2d(x, 2, return_indices=True)
                kept.append((indices, size))
        return self.after(self.classifier(x), self.classifier_bn, self.last_relu)


def ours(widths=WIDTHS, back=BACK, **options):
    """The same here, in float64."""
    model = models.EncoderDecoder(
        3, 5, widths, back, param_dtype=jnp.float64, rngs=nnx.Rngs(0), **options
    )
    statistics = nnx.state(model, nnx.BatchStat)
    nnx.update(model, jax.tree.map(lambda leaf: leaf.astype(jnp.float64), statistics))
    return model


def randomised(module):
    rng = np.random.default_rng(0)
    module = module.double().eval()
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                low = 0.5 if name.endswith("running_var") else -1.0
                scale = tensor[0].numel() ** -0.5 if tensor.ndim > 1 else 1
                values = rng.uniform(low, 1.5, tuple(tensor.shape)) * scale
                tensor.copy_(torch.from_numpy(values))
    return module


def pair(module):
    """Images and what PyTorch makes of them, channels last."""
    x = np.random.default_rng(1).standard_normal((2, 3, 13, 10))
    with torch.no_grad():
        y = module(torch.from_numpy(x)).numpy()
    return np.moveaxis(x, 1, -1), np.moveaxis(y, 1, -1)


@functools.cache
def reference(name):
    module = randomised(SegNet(**KINDS[name][0]))
    return module.state_dict(), pair(module)


# What PyTorch's network is made with, the model here, and what its weights leave open.
SQUARE = {"widths": ((4, 4), (4, 4)), "back": ((4, 4), (4,))}
KINDS = {
    "norm, then ReLU": ({}, {}, ["order"]),
    "ReLU, then norm": ({"order": "relu_norm"}, {"order": "relu_norm"}, ["order"]),
    "vgg16": (
        {"encoder_norm": False},
        {"encoder_norm": False},
        ["order"],
    ),
    "without any norm": (
        {"encoder_norm": False, "decoder_norm": False},
        {"encoder_norm": False, "decoder_norm": False},
        [],
    ),
    "ConvTranspose2d": ({"transposed": True}, {}, ["order"]),
    "square ConvTranspose2d": (
        {"transposed": True, **SQUARE},
        SQUARE,
        ["order", "transposed"],
    ),
    "square Conv2d": (SQUARE, SQUARE, ["order", "transposed"]),
    "no square kernels": (
        {"widths": ((4,), (6,)), "back": ((4,), (6,))},
        {"widths": ((4,), (6,)), "back": ((4,), (6,))},
        ["order"],
    ),
    "normalised logits": ({"last_norm": True}, {"last_norm": True}, ["order"]),
    "normalised and rectified logits": (
        {"last_norm": True, "last_relu": True, "order": "relu_norm"},
        {"last_norm": True, "last_relu": True, "order": "relu_norm"},
        ["order"],
    ),
    "one convolution more": (
        {"back": ((6, 4), (4, 4))},
        {"back": ((6, 4), (4, 4))},
        ["order"],
    ),
    "one convolution less": (
        {"widths": ((4, 4), (6,)), "back": ((4,), (4,))},
        {"widths": ((4, 4), (6,)), "back": ((4,), (4,))},
        ["order"],
    ),
}


def chosen(name):
    """What the user says of a kind."""
    given, _, left_open = KINDS[name]
    said = {"order": given.get("order", "norm_relu"), "transposed": given.get("transposed", False)}
    return {key: said[key] for key in left_open}


def state_of(model):
    return [np.copy(leaf) for leaf in jax.tree.leaves(nnx.state(model))]


def unchanged_by(error, model, weights, **options):
    """The message of a refusal."""
    before = state_of(model)
    with pytest.raises(error) as refusal:
        models.load_torch(model, weights, **options)
    jax.tree.map(np.testing.assert_array_equal, state_of(model), before)
    return str(refusal.value)


QUICK = ["ReLU, then norm", "vgg16", "square ConvTranspose2d", "normalised and rectified logits"]


@pytest.mark.few(3)
@pytest.mark.parametrize("name", only(*QUICK, among=KINDS))
def test_outputs_equal_pytorch(name):
    """With what the weights leave open said, and with an example instead."""
    weights, (x, y) = reference(name)
    model = ours(**KINDS[name][1])
    models.load_torch(model, weights, **chosen(name))
    loaded = state_of(model)
    model.eval()
    largest = np.abs(y).max()
    assert largest > 0.5
    # Products of up to 54 numbers, in ten layers.
    np.testing.assert_allclose(model(x) / largest, y / largest, rtol=0, atol=1e-13)
    if KINDS[name][0].get("transposed") and "transposed" in KINDS[name][2]:
        return  # the example alone refuses these, below
    model = ours(**KINDS[name][1])
    models.load_torch(model, weights, example=(x, y), tolerance=1e-12)
    jax.tree.map(np.testing.assert_array_equal, state_of(model), loaded)


@pytest.mark.parametrize("name", only(*QUICK, among=[name for name in KINDS if KINDS[name][2]]))
def test_what_is_open_has_to_be_said(name):
    weights, _ = reference(name)
    model, said = ours(**KINDS[name][1]), chosen(name)
    words = {"order": "whether ReLU or the normal", "transposed": "whether the decoder has Conv2d"}
    for key in said:
        rest = {other: value for other, value in said.items() if other != key}
        message = unchanged_by(ValueError, model, weights, **rest)
        assert message.startswith("weights: they do not tell " + words[key])
    if len(said) > 1:
        message = unchanged_by(ValueError, model, weights)
        assert all(word in message for word in words.values())


def test_another_order_than_the_models():
    weights, (x, y) = reference("ReLU, then norm")
    message = unchanged_by(ValueError, ours(), weights, order="relu_norm")
    assert message == (
        "order: PyTorch's network has 'relu_norm', the model was made with order='norm_relu'"
    )
    message = unchanged_by(ValueError, ours(), weights, example=(x, y))
    assert "the module's result differs from y by" in message
    assert message.endswith(
        "nothing was changed; assumed, as weights do not tell: order='norm_relu'"
    )


def test_square_kernels_of_the_other_kind():
    weights, (x, y) = reference("square ConvTranspose2d")
    message = unchanged_by(ValueError, ours(**SQUARE), weights, example=(x, y))
    assert message.endswith("do not tell: order='norm_relu', Conv2d in the decoder")
    options = {"order": "norm_relu", "example": (x, y)}
    assert "result differs from y" in unchanged_by(ValueError, ours(**SQUARE), weights, **options)
    message = unchanged_by(ValueError, ours(**SQUARE), weights, **options, transposed=False)
    assert "layer 15 does not fit" in message  # the classifier, which is not square


def test_kernels_that_fit_only_swapped():
    weights, _ = reference("ConvTranspose2d")
    message = unchanged_by(ValueError, ours(), weights, order="norm_relu", transposed=False)
    assert "weights: layer 11 does not fit: the module has stages.0.1.conv (Conv: weight" in message
    assert message.endswith("channels swapped: a ConvTranspose2d?")


def test_both_kinds_in_one_decoder():
    """Conv2d and ConvTranspose2d that are not square say nothing of those that are."""
    widths, back = ((4, 4), (6, 6), (8, 8)), ((8, 6), (6, 4), (4,))
    torch_model = SegNet(widths, back)
    torch_model.conv4_1 = tnn.ConvTranspose2d(6, 4, 3, padding=1)
    model = ours(widths, back)
    weights = torch_model.state_dict()
    assert "whether the decoder" in unchanged_by(ValueError, model, weights, order="norm_relu")


def test_decoders_without_square_kernels_leave_one_thing_open():
    weights, _ = reference("no square kernels")
    model = ours(**KINDS["no square kernels"][1])
    message = unchanged_by(ValueError, model, weights)
    assert message.endswith("(order='norm_relu' or 'relu_norm'); pass that, or example=(x, y)")


@pytest.mark.thorough
def test_projections_know_the_order():
    """Of a block, transposed by hand: the ReLU is where the block has it."""
    x = jax.random.normal(jax.random.key(0), (1, 4, 5, 3))
    for order, norm in (("norm_relu", True), ("relu_norm", True), ("norm_relu", False)):
        block = models.ConvBlock(3, 2, norm=norm, order=order, rngs=nnx.Rngs(0))
        block.eval()
        layers = [block.conv, jax.nn.relu]
        if norm:
            block.norm.scale.set_value(jnp.array([2.0, -3.0]))
            layers.insert(1 if order == "norm_relu" else 2, block.norm)
        images = [
            models.DeconvNet([each]).project(x, 0, 1, strongest=False) for each in (block, layers)
        ]
        np.testing.assert_array_equal(*images)
        assert (images[0] != 0).any()
    with pytest.raises(ValueError, match="order='act_norm': expected one of 'norm_relu'"):
        models.ConvBlock(3, 2, order="act_norm", rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "vgg16",
            "layer 2 does not fit: the module has encoder.stages.0.0.norm (BatchNorm: weight",
        ),
        ("normalised logits", "layer 16 does not fit: the module has 15 layers, weights has"),
        ("one convolution more", "layer 15 does not fit: the module has last (Conv: weight [5, 4"),
        ("one convolution less", "layer 7 does not fit: the module has encoder.stages.1.1.conv"),
    ],
)
def test_first_layer_that_does_not_fit(name, message):
    weights, _ = reference(name)
    assert message in unchanged_by(ValueError, ours(), weights)


# Torchvision's encoders, whose nn.Sequential tells the order.


def vgg(normalised, order="norm_relu", dropout=False):
    layers, i = [], 3
    for stage in WIDTHS:
        for o in stage:
            norm = [tnn.BatchNorm2d(o)] if normalised else []
            both = [*norm, tnn.ReLU()] if order == "norm_relu" else [tnn.ReLU(), *norm]
            layers += [tnn.Conv2d(i, o, 3, padding=1), *[tnn.Dropout2d()] * dropout, *both]
            i = o
        layers.append(tnn.MaxPool2d(2))
    whole = tnn.Sequential()
    whole.add_module("features", tnn.Sequential(*layers))
    whole.add_module("classifier", tnn.Sequential(tnn.Linear(6, 7), tnn.ReLU()))
    return randomised(whole)


@pytest.mark.parametrize(
    ("normalised", "order"), [(True, "norm_relu"), (True, "relu_norm"), (False, "norm_relu")]
)
def test_encoders_of_torchvision(normalised, order):
    theirs = vgg(normalised, order)
    make = functools.partial(ours, encoder_norm=normalised, order=order)
    encoder = make().encoder
    weights = theirs.state_dict()
    example = pair(theirs.features)
    models.load_torch(encoder, weights, example=example, tolerance=1e-12)
    expected = state_of(encoder)
    sorted_names = dict(sorted(weights.items()))  # as safetensors has them
    for each in (weights, sorted_names):
        found = make().encoder
        models.load_torch(found, each)
        jax.tree.map(np.testing.assert_array_equal, state_of(found), expected)
    if normalised:
        other = {"norm_relu": "relu_norm", "relu_norm": "norm_relu"}[order]
        message = unchanged_by(ValueError, ours(order=other).encoder, weights)
        assert f"PyTorch's network has {order!r}" in message


def test_an_encoder_has_no_transposed_kernels():
    weights = vgg(False).state_dict()
    message = unchanged_by(ValueError, ours(encoder_norm=False).encoder, weights, transposed=True)
    assert message == "transposed=True: expected a model with a decoder, got an Encoder"


def test_numbers_that_do_not_tell_the_order():
    """A dropout where a ReLU could be; and no ReLU among the modules."""
    encoder = ours().encoder
    assert "ReLU" in unchanged_by(ValueError, encoder, vgg(True, dropout=True).state_dict())
    state = vgg(True).state_dict()
    names = list(dict.fromkeys(name.rpartition(".")[0] for name in state if "features" in name))
    numbers = {name: f"features.{i}" for i, name in enumerate(names)}
    functional = {
        f"{numbers[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value
        for name, value in state.items()
        if "features" in name
    }
    assert "ReLU" in unchanged_by(ValueError, encoder, functional)


def test_dense_layers_of_an_encoder_decoder_are_left_over():
    weights, _ = reference("norm, then ReLU")
    more = dict(weights) | {"fc.weight": np.ones((7, 8))}
    message = unchanged_by(ValueError, ours(), more, order="norm_relu")
    assert "weights has fc (a Linear or an Embedding: weight [7, 8]); skip leaves" in message
    models.load_torch(ours(), more, order="norm_relu", skip="fc")


def test_segnet_passes_its_options_on():
    """Those of `EncoderDecoder`, without weights."""
    options = {"order": "relu_norm", "encoder_norm": False, "decoder_norm": False}
    options |= {"last_norm": True, "last_relu": True}
    back = (*models.segnet.VGG16_BACK[:-1], (64, 64))
    model = nnx.eval_shape(lambda: models.SegNet(3, 5, back=back, rngs=nnx.Rngs(0), **options))
    blocks = [
        block for stages in (model.encoder.stages, model.stages) for s in stages for block in s
    ]
    assert len(blocks) == 13 + 13
    assert all(block.norm is None and block.order == "relu_norm" for block in blocks)
    assert model.last_relu
    assert isinstance(model.last_norm, nnx.BatchNorm)
    assert model.encoder.order == model.order == "relu_norm"
