"""ENet, block by block beside a PyTorch definition with the same weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from strategies import only

from jaxunpool import models
from jaxunpool.models import enet

# A network as deep, with every kind of bottleneck, that compiles in seconds.
SMALL = {"features": (8, 16, 24), "section": [(3, 2, False), (5, 1, True)]}
SMALL_SECTION = ({"dilation": 2}, enet.ASYMMETRIC)


def small(monkeypatch):
    """`ENet` with the sizes of `SMALL`."""
    monkeypatch.setattr(enet, "FEATURES", SMALL["features"])
    monkeypatch.setattr(enet, "SECTION", SMALL_SECTION)


def test_parameters_are_those_of_the_paper():
    """As counted in PyTorch: 349,644 for five classes."""
    model = nnx.eval_shape(lambda: models.ENet(3, 5, rngs=nnx.Rngs(0)))
    leaves = jax.tree.leaves(nnx.state(model, nnx.Param))
    assert sum(leaf.size for leaf in leaves) == 349_644
    assert model.last.kernel.shape == (3, 3, 16, 5)  # 144 for a class
    bottlenecks = [*(4 * [4]), *(2 * [4, 4, 5, 4, 4, 4, 5, 4])]
    assert sum(leaf.shape == () for leaf in leaves) == 1 + 2 * 4 + sum(bottlenecks)


@pytest.mark.parametrize("decoder", only("conv_transpose", among=models.DECODERS))
def test_exact_sizes_come_back(decoder, monkeypatch):
    small(monkeypatch)

    def run(*images):
        model = models.ENet(3, 12, decoder=decoder, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
        return [model(x) for x in images]

    sizes = [(7, 9), (8, 45)]
    found = jax.eval_shape(run, *(jax.ShapeDtypeStruct((2, *n, 3), jnp.float32) for n in sizes))
    assert [(y.shape, y.dtype) for y in found] == [((2, *n, 12), jnp.bfloat16) for n in sizes]


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


def moved(model, arrays):
    """A copy of the model's state with PyTorch's arrays, found by name."""
    state = nnx.state(model, (nnx.Param, nnx.BatchStat))
    flat = {}
    for path, variable in nnx.to_flat_state(state):
        name = ".".join(map(str, (*path[:-1], ENTRIES[path[-1]])))
        value = ours_from(path, np.asarray(arrays[name]))
        assert value.shape == variable.shape, name
        flat[path] = variable.replace(jnp.asarray(value, jnp.float64))
    return nnx.from_flat_state(flat)


def compare(classes, sizes, torch_options, *, modes=(True, False), blocks=True):
    """Logits, gradients, means and, on request, what each block gives; to rounding in float64.

    Args:
        classes: of both networks.
        sizes: of the images.
        torch_options: what makes PyTorch's as large as ours.
        modes: whether to train.
        blocks: compare these too.
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
                statistics = nnx.state(model, nnx.BatchStat)
                each = seen(model, x) if blocks else []
                return jnp.vdot(logits, w), (logits, each, statistics)

            return jax.grad(loss, (0, 1), has_aux=True)(weights, x)

        for size in sizes:
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
                pairs = {"logits": (found, last(logits)), "image": (dx, last(tx.grad))}
                assert len(each) == len(theirs.seen) * blocks
                for i, (a, b) in enumerate(zip(each, theirs.seen)):
                    pairs[f"block {i}"] = (a, last(b))
                gradients = {k: v.grad.numpy() for k, v in theirs.named_parameters()}
                for path, value in nnx.to_flat_state(dw):
                    name = ".".join(map(str, (*path[:-1], ENTRIES[path[-1]])))
                    pairs[f"gradient of {name}"] = (value[...], ours_from(path, gradients[name]))
                after = {k: v.numpy() for k, v in theirs.state_dict().items()}
                for path, value in nnx.to_flat_state(statistics):
                    name = ".".join(map(str, (*path[:-1], ENTRIES[path[-1]])))
                    if path[-1] == "mean":  # PyTorch's variance is the unbiased one
                        pairs[name] = (value[...], after[name])
                for name, (a, b) in pairs.items():
                    scale = np.abs(b).max()
                    np.testing.assert_allclose(a, b, atol=1e-9 * max(scale, 1e-3), err_msg=name)


def test_small_enet_is_pytorchs(monkeypatch):
    small(monkeypatch)
    compare(2, [(23, 30)], SMALL, modes=(True,), blocks=False)


@pytest.mark.thorough
def test_enet_is_pytorchs():
    compare(12, [(64, 96), (45, 61)], {})
