"""ENet, block by block beside a PyTorch definition with the same weights."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from strategies import only

from jaxunpool import models
from jaxunpool.models import enet

# PyTorch's with fewer bottlenecks, but of each kind, that compiles in seconds.
SMALL = {"features": (8, 16, 24), "first": [(3, 2, False)], "section": [(5, 1, True)]}


@pytest.fixture
def small(monkeypatch):
    """`ENet` has the sizes of `SMALL`."""
    monkeypatch.setattr(enet, "FEATURES", SMALL["features"])
    monkeypatch.setattr(enet, "FIRST", ({"dilation": 2},))
    monkeypatch.setattr(enet, "SECTION", (enet.ASYMMETRIC,))


def test_parameters_are_those_of_the_paper():
    """As counted in PyTorch: 349,644 for five classes."""
    model = nnx.eval_shape(lambda: models.ENet(3, 5, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == 349_644
    assert model.last.kernel.shape == (3, 3, 16, 5)  # 144 for a class
    bottlenecks = [*(4 * [4]), *(2 * [4, 4, 5, 4, 4, 4, 5, 4])]
    assert sum(leaf.shape == () for leaf in leaves) == 1 + 2 * 4 + sum(bottlenecks)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("decoder", only(among=models.DECODERS))
def test_sizes_and_types_and_forward_mode(decoder):
    """The image's size; float32 weights and statistics in bfloat16; `jvp` with plain JAX."""
    make = functools.partial(models.ENet, 3, 12, decoder=decoder)

    def run(*images):
        model = make(dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        logits = [model(x) for x in images]
        model = make(implementation="xla", dropout=(0.0, 0.0), rngs=nnx.Rngs(0))
        f = lambda x: nnx.merge(*nnx.split(model), copy=True)(x)
        state = nnx.state(model, (nnx.Param, nnx.BatchStat))
        return logits, state, jax.jvp(f, images[:1], images[:1])

    sizes = [(7, 9), (8, 45)]
    images = [jax.ShapeDtypeStruct((2, *n, 3), jnp.float32) for n in sizes]
    logits, state, (_, tangent) = jax.eval_shape(run, *images)
    assert [(y.shape, y.dtype) for y in logits] == [((2, *n, 12), jnp.bfloat16) for n in sizes]
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {jnp.dtype("float32")}
    assert tangent.shape == (2, *sizes[0], 12)


WRONG = {
    "colours": (
        lambda: models.ENet(8, 2, rngs=nnx.Rngs(0)),
        "in_features=8: expected 1 to 7",
    ),
    "decoder": (
        lambda: models.ENet(3, 2, decoder="max", rngs=nnx.Rngs(0)),
        "decoder='max': expected one of",
    ),
    "implementation": (
        lambda: models.ENet(3, 2, implementation="cuda", rngs=nnx.Rngs(0)),
        "implementation='cuda': expected one of",
    ),
    "nothing to pack": (
        lambda: models.ENet(3, 2, decoder="nearest", pack_indices=True, rngs=nnx.Rngs(0)),
        "pack_indices=True: the decoder 'nearest' has no indices to pack",
    ),
    "small image": (
        lambda: jax.eval_shape(
            lambda x: models.ENet(3, 2, rngs=nnx.Rngs(0))(x), jnp.ones((1, 6, 9, 3))
        ),
        "x: expected [batch, height, width, 3] with at least 7 rows and columns, got [1, 6, 9, 3]",
    ),
}


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("name", WRONG)
def test_wrong_use(name):
    use, message = WRONG[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        use()


def seen(model, x):
    """What each block gives, and the logits."""
    found, kept = [], []
    for stage in model.encoder.stages:
        for each in stage:
            x = each(x)
            if isinstance(x, tuple):
                kept.append(x[1])
                x = x[0]
            found.append(x)
    for (first, *blocks), keep in zip(model.stages, reversed(kept)):
        found.append(first(x, keep))
        for each in blocks:
            found.append(each(found[-1]))
        x = found[-1]
    return found


def ours_from(path, value):
    """The layout that a PyTorch array has here."""
    if value.ndim < 4:
        return value.reshape(()) if path[-1] == "negative_slope" else value
    is_transposed = path[0] == "last" or (path[0] == "stages" and path[-3:-1] == ("conv", "conv"))
    return value.transpose((2, 3, 0, 1) if is_transposed else (2, 3, 1, 0))


ENTRIES = {
    "kernel": "weight",
    "scale": "weight",
    "negative_slope": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def name_of(path):
    """PyTorch's name of a variable."""
    return ".".join(map(str, (*path[:-1], ENTRIES[path[-1]])))


def moved(model, arrays):
    """A copy of the model's state with PyTorch's arrays, found by name."""
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    flat = {}
    for path, variable in nnx.to_flat_state(state):
        name = name_of(path)
        value = ours_from(path, np.asarray(arrays[name]))
        assert value.shape == variable.shape, name
        flat[path] = variable.replace(jnp.asarray(value, jnp.float64))
    return nnx.from_flat_state(flat)


def compare(classes, size, torch_options, modes=(True, False), *, blocks=True, gradients=True):
    """Logits, gradients, means and what each block gives, to rounding in float64.

    Args:
        classes: of both networks.
        size: of the images.
        torch_options: what makes PyTorch's as large as ours.
        modes: whether to train.
        blocks, gradients: whether to compare these.
    """
    torch = pytest.importorskip("torch")
    import torch_enet

    torch.manual_seed(0)
    theirs = torch_enet.ENet(classes, rates=(0, 0), **torch_options).double()
    rng = np.random.default_rng(0)
    for name, value in theirs.state_dict().items():
        if value.ndim == 1 and value.numel() > 1:  # of normalisations: not 0 and 1
            low, high = (-0.2, 0.2) if name.endswith(("bias", "mean")) else (0.5, 1.5)
            value.copy_(torch.from_numpy(rng.uniform(low, high, value.shape)))
    start = {name: value.numpy().copy() for name, value in theirs.state_dict().items()}
    with jax.enable_x64(True):
        model = models.ENet(
            3, classes, dropout=(0.0, 0.0), param_dtype=jnp.float64, rngs=nnx.Rngs(0)
        )
        nnx.update(model, moved(model, start))
        graph, weights, rest = nnx.split(model, nnx.Param, ...)

        @functools.partial(jax.jit, static_argnames="train")
        def run(weights, x, w, train):
            def loss(weights, x):
                model = nnx.merge(graph, weights, rest, copy=True)
                model.train() if train else model.eval()
                logits = model(x)
                # A copy: what follows writes into the model's own.
                statistics = jax.tree.map(jnp.copy, nnx.state(model, nnx.BatchStat))
                each = seen(model, x) if blocks else []
                return jnp.vdot(logits, w), (logits, each, statistics)

            if not gradients:
                return (nnx.State({}), x), loss(weights, x)[1]
            return jax.grad(loss, (0, 1), has_aux=True)(weights, x)

        for train in modes:
            theirs.load_state_dict({k: torch.from_numpy(v) for k, v in start.items()})
            theirs.train(train)
            theirs.zero_grad()
            x = rng.standard_normal((2, *size, 3))
            w = rng.standard_normal((2, *size, classes))
            tx = torch.from_numpy(x.transpose(0, 3, 1, 2)).requires_grad_()
            logits = theirs(tx)
            (logits * torch.from_numpy(w.transpose(0, 3, 1, 2))).sum().backward()
            (dw, dx), (found, each, statistics) = run(weights, x, w, train)
            last = lambda each: each.detach().numpy().transpose(0, 2, 3, 1)
            pairs = {"logits": (found, last(logits))}
            if gradients:
                pairs["image"] = dx, last(tx.grad)
            assert len(each) == len(theirs.seen) * blocks
            for i, (a, b) in enumerate(zip(each, theirs.seen)):
                pairs[f"block {i}"] = a, last(b)
            parameters = dict(theirs.named_parameters())
            for path, value in nnx.to_flat_state(dw):
                gradient = ours_from(path, parameters[name_of(path)].grad.numpy())
                pairs[f"gradient of {name_of(path)}"] = value[...], gradient
            after = theirs.state_dict()
            for path, value in nnx.to_flat_state(statistics):
                if path[-1] == "mean":  # PyTorch's variance is the unbiased one
                    pairs[name_of(path)] = value[...], after[name_of(path)].numpy()
            for name, (a, b) in pairs.items():
                atol = 1e-9 * max(np.abs(b).max(), 1e-3)
                np.testing.assert_allclose(a, b, atol=atol, err_msg=name)


@pytest.mark.thorough
@pytest.mark.usefixtures("small")
def test_logits_are_pytorchs():
    compare(2, (23, 30), SMALL, (False,), blocks=False, gradients=False)


@pytest.mark.thorough
@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("size", [(23, 30), (32, 24)])
def test_every_block_is_pytorchs(size):
    compare(2, size, SMALL)


@pytest.mark.thorough
def test_the_papers_network_is_pytorchs():
    compare(12, (45, 61), {}, (True,), blocks=False)


# Training


TINY = {"steps": 3, "batch": 2, "size": 24, "network": "enet", "decoder": "indices"}


@pytest.mark.usefixtures("small")
def test_the_network_of_a_run():
    pytest.importorskip("optax")
    from jaxunpool.training import loop
    from jaxunpool.training.options import Configuration

    model = nnx.eval_shape(lambda: loop.network(Configuration(**TINY), 7))
    assert isinstance(model, models.ENet)
    assert model.last.kernel.shape == (3, 3, 8, 7)
    parameters = jax.tree.map(lambda leaf: np.zeros(leaf.shape), nnx.state(model, nnx.Param))
    assert list(loop.kernels(parameters)) == [
        *("encoder 1", "encoder 2", "encoder 3"),
        *("decoder 1", "decoder 2", "classifier"),
    ]


@pytest.mark.thorough
@pytest.mark.usefixtures("small")
def test_a_resumed_run_drops_what_it_would_have_dropped():
    """Counts of the dropout are part of the state, and of its checkpoint."""
    for package in ("optax", "orbax.checkpoint", "sklearn", "rich"):
        pytest.importorskip(package)
    from jaxunpool.training import checkpoints, loop
    from jaxunpool.training.options import Configuration

    with jax.enable_x64(False):
        run = loop.Run(Configuration(**TINY), jax.devices()[:1])
        start = run.start()
        first = run.step(start)
        packed = checkpoints.pack(first)
        second = run.step(checkpoints.unpack(packed, start))
        np.testing.assert_array_equal(checkpoints.pack(second), checkpoints.pack(run.step(first)))
    counts = lambda state: {
        int(leaf) for leaf in jax.tree.leaves(state.statistics) if leaf.dtype == jnp.uint32
    }
    assert [counts(state) for state in (start, first, second)] == [{0}, {1}, {2}]


@pytest.mark.thorough
def test_the_command_trains_and_predicts(tmp_path, monkeypatch, capfd):
    pytest.importorskip("orbax.checkpoint")
    from PIL import Image

    from jaxunpool.__main__ import main
    from jaxunpool.training import segment, session

    monkeypatch.chdir(tmp_path)
    one = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: one)
    with jax.enable_x64(False):
        command = ["train", "--model", "enet", "--steps", "120", "--output", "run", "--seed", "1"]
        assert main(command) == 0
        trained = session.restore(tmp_path / "run")
        losses = np.asarray(trained.state.losses)
        assert losses[-5:].mean() < 0.92 * losses[:5].mean()
        Image.fromarray(np.zeros((40, 51, 3), np.uint8)).save("black.png")
        assert main(["predict", "run", "black.png", "--output", "found"]) == 0
        with Image.open("found/black_mask.png") as mask:
            assert mask.size == (51, 40)

        # No pixel further away than its reach changes what the network says of one.
        model = trained.run.model(trained.state)
        reach, middle = segment.reach(model), 1000
        image = np.random.default_rng(0).standard_normal((1, 2 * middle, 16, 3)).astype(np.float32)
        other = image.copy()
        other[:, middle:] += 1
        differs = np.abs(np.asarray(model(image)) - np.asarray(model(other))).max((0, 2, 3)) > 1e-4
        assert middle - reach <= differs.argmax() < middle
