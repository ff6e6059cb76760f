"""Flax modules: the same arguments, bits and errors as the functions, in NNX and in Linen.

The table below has to name all public functions: one that is added without a module fails the test.
"""

import copy
import dataclasses
import doctest
import functools
import inspect
import operator
import pathlib
import pickle
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint
import pytest
import stubs
from flax import linen as nn
from flax import nnx

import jaxunpool as jup
import jaxunpool.linen
import jaxunpool.nnx

FRAMEWORKS = (jaxunpool.nnx, jaxunpool.linen)
KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(size=(2, 7, 8, 3)).astype(np.float32)
Y = X[:, :4, :4]
WINDOW = {"window_shape": (3, 3), "strides": 2, "padding": 1}
SIZE = {"output_shape": (7, 8)}
INDICES = jup.max_pool_with_indices(X, **WINDOW)[1]
UNIFORM = {"kernel_init": nn.initializers.uniform(0.5)}  # compiles in no time


@dataclasses.dataclass
class Case:
    """What a function is called with: arrays, settings, and what else only a call can say."""

    arrays: tuple[Any, ...]
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    call: dict[str, Any] = dataclasses.field(default_factory=dict)


TABLE = {
    "adaptive_avg_pool": Case((X,), {"output_shape": (3, 4)}),
    "adaptive_max_pool": Case((X,), {"output_shape": (3, 4)}),
    "adaptive_max_pool_with_indices": Case((X,), {"output_shape": (3, 4)}),
    "avg_pool": Case((X,), WINDOW | {"count_include_pad": False}),
    "avg_unpool": Case((Y,), WINDOW | {"mode": "adjoint"}, SIZE),
    "bed_of_nails_unpool": Case((Y,), WINDOW | {"position": (0, 1)}, SIZE),
    "fixed_unpool": Case((Y,), {"pattern": np.array([[1, 0.5], [0.25, -1]])}),
    "fractional_avg_pool": Case((X,), {"output_shape": (4, 5)}, {"key": KEY}),
    "fractional_max_pool": Case((X,), {"window_shape": None, "output_shape": (4, 5)}, {"key": KEY}),
    "fractional_max_pool_with_indices": Case(
        (X,), {"window_shape": (2, 2)}, {"output_shape": (4, 5), "key": KEY}
    ),
    "global_avg_pool": Case((X,)),
    "global_max_pool": Case((X,), {"data_format": "channels_first"}),
    "global_max_pool_with_indices": Case((X,), {"spatial_ndim": 1}),
    "interpolate": Case((X,), {"scale": 2, "mode": "cubic"}),
    "lp_pool": Case((X,), {"norm_type": 3} | WINDOW),
    "max_pool": Case((X,), WINDOW | {"dilation": 2}),
    "max_pool_with_argmax_and_mask": Case((X,), WINDOW | {"ceil_mode": True}),
    "max_pool_with_indices": Case((X,), WINDOW),
    "max_pool_with_packed_indices": Case((X,), WINDOW),
    "max_unpool": Case((Y, INDICES), {"duplicates": "sum"}),
    "max_unpool_like": Case((X, Y), WINDOW | {"duplicates": "last"}),
    "min_pool": Case((X,), WINDOW | {"dilation": 2}),
    "min_pool_with_indices": Case((X,), WINDOW),
    "nearest_unpool": Case((Y,), WINDOW, SIZE),
    "pool_at": Case((X, INDICES), {"implementation": "xla"}),
}
TESTED_APART = {"conv_transpose", "inverse"}
NO_MODULE = {"backends", "explain", "validate_indices"}  # they return no arrays
NO_MODULE |= {"conv_general_dilated"}  # an argument of Flax's own


def class_name(function):
    return function.title().replace("_", "")


def module_of(framework, name, **settings):
    return getattr(framework, class_name(name))(**settings)


def same(a, b):
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), a, b)


def test_every_function_has_a_module():
    functions = {name for name in jup.__all__ if inspect.isfunction(getattr(jup, name))}
    assert set(TABLE) | TESTED_APART == functions - NO_MODULE
    names = {class_name(name) for name in functions - NO_MODULE} | {"Paired"}
    for framework in FRAMEWORKS:
        assert set(framework.__all__) == names


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_stubs_say_what_there_is(framework):
    """If not: python tests/stubs.py."""
    path = pathlib.Path(framework.__file__).with_suffix(".pyi")
    assert path.read_text() == stubs.stub(framework)


@pytest.fixture(params=FRAMEWORKS, ids=["nnx", "linen"])
def framework(request):
    return request.param


@pytest.fixture(params=TABLE)
def name(request):
    return request.param


def test_module_is_the_function(framework, name):
    """The same program, to the last instruction, and so the same bits."""
    case = TABLE[name]
    module = module_of(framework, name, **case.settings)
    function = functools.partial(getattr(jup, name), **case.settings)

    def program(of):
        def run(*arrays):
            return of(*arrays, **case.call)

        lowered = jax.jit(run).lower(*case.arrays)
        return lowered.as_text(), jax.tree.flatten(lowered.out_info)

    assert program(module) == program(function)


def test_modules_run(framework):
    """As they are, with and without a batch, and under jit."""
    pool, unpool = framework.MaxPoolWithIndices((2, 2)), framework.MaxUnpool()
    expected = jup.max_pool_with_indices(X, (2, 2))
    same(pool(X), expected)
    same(jax.jit(pool)(X), expected)
    same(unpool(*pool(X)), jup.max_unpool(*expected))
    same(unpool(*pool(X[0])), jup.max_unpool(*expected)[0])


def test_signatures(framework, name):
    """All of the function's arguments, each in one of two places, in order and kind."""
    function = inspect.signature(getattr(jup, name)).parameters
    module = module_of(framework, name, **TABLE[name].settings)
    init = dict(inspect.signature(type(module)).parameters)
    call = dict(inspect.signature(module).parameters)
    extras = {"parent", "name", "rngs", "deterministic", "learnable", "param_dtype"}
    kept = [p.replace(annotation=p.empty) for p in init.values() if p.name not in extras]
    assert kept == [p.replace(annotation=p.empty) for p in function.values() if p.name in init]
    assert set(function) <= set(init) | set(call)
    assert set(init) & set(call) <= {"output_shape", "rngs", "deterministic"}
    required = [p.name for p in call.values() if p.default is p.empty]
    assert required == list(function)[: len(TABLE[name].arrays)]
    assert f"`jaxunpool.{name}`" in type(module).__doc__


def test_modules_are_values(framework, name):
    """Settings are hashable whatever they were given as, and survive pickling."""
    settings = TABLE[name].settings
    as_lists = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    one, other = (module_of(framework, name, **s) for s in (settings, as_lists))
    again = pickle.loads(pickle.dumps(one))
    assert repr(again) == repr(one) == repr(other)
    if framework is jaxunpool.linen:
        assert one == other == again == one.clone()
        assert hash(one) == hash(other)
    else:
        assert nnx.graphdef(one) == nnx.graphdef(other) == nnx.graphdef(again)
        assert jax.tree.leaves(one) == []


def test_examples(framework):
    with jax.enable_x64(False):
        result = doctest.testmod(framework)
    assert (result.attempted > 0, result.failed) == (True, 0)


def test_settings_may_be_numpy(framework):
    module = framework.MaxPool(np.array([3, 3]), np.int64(2), [(1, 1), np.array([1, 1])])
    assert (module.window_shape, module.strides, module.padding) == ((3, 3), 2, ((1, 1), (1, 1)))
    same(jax.jit(module)(X), jup.max_pool(X, (3, 3), 2, 1))
    sequences = [np.array([0, 1, 3, 5, 7]), (0, 2, 4, 8)]
    pool = framework.FractionalMaxPool(None, sequences=sequences)
    same(pool(X), jup.fractional_max_pool(X, None, sequences=sequences))


def test_a_call_may_say_the_size(framework):
    """A decoder learns its sizes from its input; what is said at the call goes before."""
    resize = framework.Interpolate((2, 2), mode="linear")
    same(resize(X, output_shape=(9, 5)), jup.interpolate(X, (9, 5), mode="linear"))
    same(resize(X, output_shape=None), jup.interpolate(X, (2, 2), mode="linear"))
    assert resize.output_shape == (2, 2)
    flat = INDICES.flat
    same(framework.MaxUnpool()(Y, flat, **SIZE), jup.max_unpool(Y, flat, **SIZE))
    same(framework.MaxUnpool()(indices=INDICES, y=Y), jup.max_unpool(Y, INDICES))


WRONG = {
    "missing setting": (lambda f: f.MaxPool(), TypeError, "'window_shape'"),
    "unknown setting": (lambda f: f.MaxPool((2, 2), stride=1), TypeError, "'stride'"),
    "keywords only": (lambda f: f.MaxPool((2, 2), 1, "SAME", 2), TypeError, "takes .* 5 were"),
    "setting at the call": (
        lambda f: f.MaxPool((2, 2))(X, 3),
        TypeError,
        r"MaxPool, called with \(x\): too many positional arguments",
    ),
    "unknown at the call": (
        lambda f: f.MaxPool((2, 2))(X, strides=3),
        TypeError,
        r"MaxPool, called with \(x\): got an unexpected keyword argument 'strides'",
    ),
    "no indices": (
        lambda f: f.MaxUnpool()(Y),
        TypeError,
        r"MaxUnpool, called with \(y, indices\): missing a required argument: 'indices'",
    ),
    "no array": (lambda f: f.MaxPool((2, 2))(None), TypeError, "x: expected an array, got None"),
    "tracer": (
        lambda f: jax.jit(lambda pattern: f.FixedUnpool(pattern)(Y))(jnp.eye(2)),
        TypeError,
        "pattern: expected a constant, got",
    ),
    "function's": (lambda f: f.MaxPool((9, 9))(X), ValueError, r"window_shape=\(9, 9\)"),
    "while tracing": (
        lambda f: jax.eval_shape(f.MaxPool((2, 2), implementation="cuda"), X),
        ValueError,
        "implementation='cuda'",
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_wrong_calls(framework, wrong):
    call, kind, message = WRONG[wrong]
    with pytest.raises(kind, match=message):
        call(framework)


def test_pattern_is_constant_or_learned():
    pattern = jnp.array([[1.0, 0.5], [0.25, -1.0]], jnp.float32)
    loss = lambda u: jnp.sum(u**3)
    expected = jax.grad(lambda pattern: loss(jup.fixed_unpool(Y, pattern)))(pattern)
    constant, learned = (jaxunpool.nnx.FixedUnpool(p) for p in (pattern, nnx.Param(pattern)))
    same(learned(Y), constant(Y))
    gradient = nnx.grad(lambda module: loss(module(Y)))
    assert jax.tree.leaves(gradient(constant)) == []
    same(gradient(learned).pattern.get_value(), expected)

    module = jaxunpool.linen.FixedUnpool(pattern, learnable=True)
    variables = module.init(KEY, Y)
    same(variables, {"params": {"pattern": pattern}})
    same(jax.grad(lambda v: loss(module.apply(v, Y)))(variables), {"params": {"pattern": expected}})
    assert jaxunpool.linen.FixedUnpool(pattern).init(KEY, Y) == {}


CONVOLUTIONS = {
    "plain": {},
    "PyTorch's own": {"strides": 2, "padding": 1, "output_padding": 1},
    "groups": {"groups": 3, "dilation": 2, "use_bias": False},
}


@pytest.mark.few(4)
@pytest.mark.parametrize("settings", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_conv_transpose(framework, settings, data_format):
    settings = settings | {"data_format": data_format}
    is_first = data_format == "channels_first"
    x = np.moveaxis(X, -1, 1) if is_first else X
    settings_of_flax = UNIFORM | {"bias_init": nn.initializers.uniform()}
    if framework is jaxunpool.nnx:
        run = framework.ConvTranspose(
            3, 6, (3, 2), **settings, **settings_of_flax, rngs=nnx.Rngs(0)
        )
        params = nnx.to_pure_dict(nnx.state(run, nnx.Param))
    else:
        module = framework.ConvTranspose(6, (3, 2), **settings, **settings_of_flax)
        variables = module.init(KEY, x)
        run, params = module.bind(variables), variables["params"]
    kernel, bias = params["kernel"], params.get("bias")
    assert kernel.shape == (3, 2, 3, 6 // settings.get("groups", 1))
    assert (bias is None) == ("use_bias" in settings)
    kernel = jnp.moveaxis(kernel, (2, 3), (0, 1)) if is_first else kernel
    settings.pop("use_bias", None)
    same(run(x), jup.conv_transpose(x, kernel, bias, **settings))


def test_conv_transpose_to_a_size_at_the_call():
    up = jaxunpool.nnx.ConvTranspose(3, 2, (3, 3), strides=2, padding=1, rngs=nnx.Rngs(0))
    smallest = up(X).shape[1:3]
    sizes = tuple(n + 1 for n in smallest)
    assert up(X, output_shape=sizes).shape[1:3] == sizes
    same = jaxunpool.nnx.ConvTranspose(3, 2, (3, 3), strides=2, padding="SAME", rngs=nnx.Rngs(0))
    assert same(X).shape[1:3] == tuple(2 * n for n in X.shape[1:3])


def test_conv_transpose_types():
    """Flax's rule: promoted to one type, or cast to the one asked for. And its initialiser."""
    half = jnp.asarray(X, jnp.bfloat16)
    make = lambda **types: jaxunpool.nnx.ConvTranspose(3, 2, (2, 2), **types, rngs=nnx.Rngs(0))
    type_of = lambda module, x: jax.eval_shape(module, x).dtype
    assert type_of(make(), half) == jnp.float32
    assert type_of(make(dtype=jnp.bfloat16), X) == jnp.bfloat16
    assert type_of(make(param_dtype=jnp.bfloat16), half) == jnp.bfloat16
    theirs = nnx.ConvTranspose(3, 2, (2, 2), rngs=nnx.Rngs(0))
    same(make().kernel[...], theirs.kernel[...])


@pytest.mark.parametrize(
    ("size", "groups", "kind", "message"),
    [
        (3, 1, TypeError, "kernel_size: expected ints, one for each spatial axis, got 3"),
        ((3, 0), 1, ValueError, r"kernel_size\[1\]=0: expected at least 1"),
        ((3, 2.0), 1, TypeError, r"kernel_size\[1\]: expected an int, got 2.0"),
        ((3, 3), 2, ValueError, "groups=2: expected a divisor of in_features=3 and out_features=6"),
    ],
)
def test_wrong_convolutions(framework, size, groups, kind, message):
    if framework is jaxunpool.nnx:
        make = lambda: framework.ConvTranspose(3, 6, size, groups=groups, rngs=nnx.Rngs(0))
    else:
        make = lambda: framework.ConvTranspose(6, size, groups=groups).init(KEY, X)
    with pytest.raises(kind, match=message):
        make()


@pytest.mark.parametrize("data_format", ["channels_last", "channels_first"])
def test_wrong_inputs_of_convolutions(framework, data_format):
    if framework is jaxunpool.nnx:
        run = framework.ConvTranspose(8, 6, (3, 3), data_format=data_format, rngs=nnx.Rngs(0))
    else:
        module = framework.ConvTranspose(6, (3, 3), data_format=data_format)
        run = functools.partial(module.init, KEY)
    with pytest.raises(ValueError, match=r"x: expected 2 spatial axes .* got shape \(7, 8\)"):
        run(X[0, ..., 0])
    with pytest.raises(TypeError, match=r"x: expected floats .* got int32"):
        run(X.astype(np.int32))


def test_fractional_draws_from_the_stream():
    pool = lambda: jaxunpool.nnx.FractionalMaxPool((2, 2), (5, 5), rngs=nnx.Rngs(0))
    run = nnx.jit(lambda module, x: module(x))
    by_key = jax.jit(lambda key: jup.fractional_max_pool(X, (2, 2), (5, 5), key=key))
    stream, module = pool().rngs, pool()
    draws = [run(module, X) for _ in range(3)]
    for draw in draws:
        same(by_key(stream()), draw)
    assert not any(np.array_equal(draws[0], draw) for draw in draws[1:])

    over_keys = nnx.vmap(lambda module, x: module(x), in_axes=(0, None))
    a, b = nnx.split_rngs(splits=2)(over_keys)(pool(), X)
    assert not np.array_equal(a, b)


@pytest.mark.thorough
def test_fractional_can_be_deterministic():
    run = nnx.jit(lambda module, x: module(x))
    module = jaxunpool.nnx.FractionalMaxPool((2, 2), (5, 5), rngs=nnx.Rngs(0))
    view = nnx.view(module, deterministic=True)
    expected = jaxunpool.linen.FractionalMaxPool((2, 2), (5, 5), deterministic=True)(X)
    module.eval()
    for _ in range(2):
        same(run(module, X), expected)
    same(run(view, X), expected)
    module.train()
    assert not np.array_equal(run(module, X), run(module, X))


def test_fractional_takes_rngs_at_the_call():
    module = jaxunpool.nnx.FractionalMaxPool((2, 2), (5, 5))
    layers = nnx.Sequential(nnx.relu, module)
    expected = module(nnx.relu(X), key=nnx.Rngs(fractional=1).fractional())
    same(layers(X, rngs=nnx.Rngs(1)), expected)
    with pytest.raises(ValueError, match=r"rngs: expected nnx.Rngs at construction"):
        module(X)
    for seed in (0, KEY):
        with pytest.raises(TypeError, match=r"rngs: expected nnx.Rngs or an nnx.RngStream, got"):
            jaxunpool.nnx.FractionalMaxPool((2, 2), (5, 5), rngs=seed)


def test_fractional_makes_rngs():
    pool = jaxunpool.linen.FractionalMaxPoolWithIndices((2, 2), (5, 5))
    draw = lambda seed: pool.apply({}, X, rngs={"fractional": jax.random.key(seed)})
    same(draw(0), jax.jit(draw)(0))
    assert not np.array_equal(draw(0)[0], draw(1)[0])
    with pytest.raises(flax.errors.InvalidRngError, match='"fractional"'):
        pool.apply({}, X)
    same(pool.apply({}, X, deterministic=True), pool(X, deterministic=True))


def nnx_hourglass(rngs, depth=2):
    """Pool, convolve, the same again inside, convolve, unpool."""
    conv = lambda: nnx.Conv(3, 3, (3, 3), **UNIFORM, rngs=rngs)
    inner = conv() if depth == 1 else nnx.Sequential(conv(), nnx_hourglass(rngs, depth - 1), conv())
    return jaxunpool.nnx.Paired(jaxunpool.nnx.MaxPoolWithIndices((2, 2)), inner)


def linen_hourglass(depth=2):
    conv = lambda: nn.Conv(3, (3, 3), **UNIFORM)
    inner = conv() if depth == 1 else nn.Sequential((conv(), linen_hourglass(depth - 1), conv()))
    return jaxunpool.linen.Paired(jaxunpool.linen.MaxPoolWithIndices((2, 2)), inner)


def by_hand(convs, x):
    """The nested hourglass with indices passed as values."""
    first, second, third = convs
    y, outer = jup.max_pool_with_indices(x, (2, 2))
    z, inner = jup.max_pool_with_indices(first(y), (2, 2))
    return jup.max_unpool(third(jup.max_unpool(second(z), inner)), outer)


def test_paired_nests_nnx():
    model = nnx_hourglass(nnx.Rngs(0))
    layers = model.inner.layers
    same(model(X), by_hand((layers[0], layers[1].inner, layers[2]), X))

    loss = lambda model, x: jnp.sum(model(x) ** 2)
    gradient = nnx.grad(loss)(model, X)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    remat = nnx.grad(nnx.remat(loss))
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, nnx.jit(remat)(model, X), gradient)  # sums in another order
    graph, state = nnx.split(model)
    close(jax.jit(lambda state, x: nnx.merge(graph, state)(x))(state, X), model(X))
    for again in (nnx.merge(graph, state), pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        same(again(X), model(X))


def test_paired_nests_linen():
    model = linen_hourglass()
    variables = model.init(KEY, X)
    layers = variables["params"]["inner"]
    params = layers["layers_0"], layers["layers_1"]["inner"], layers["layers_2"]
    conv = lambda p: lambda x: nn.Conv(3, (3, 3)).apply({"params": p}, x)
    same(model.apply(variables, X), by_hand([conv(p) for p in params], X))

    loss = lambda model: lambda variables: jnp.sum(model.apply(variables, X) ** 2)
    gradient = jax.grad(loss(model))(variables)
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradient))
    remat = nn.remat(jaxunpool.linen.Paired)(model.pool, model.inner)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    jax.tree.map(close, jax.jit(jax.grad(loss(remat)))(variables), gradient)
    again = model.clone()
    assert (again, hash(again)) == (model, hash(model))
    restored = flax.serialization.from_bytes(variables, flax.serialization.to_bytes(variables))
    same(again.apply(restored, X), model.apply(variables, X))


def test_tables_name_the_layers():
    layers = jaxunpool.nnx.MaxPool((2, 2)), jaxunpool.nnx.FixedUnpool(nnx.Param(jnp.ones((2, 2))))
    wide = {"console_kwargs": {"width": 300}}
    table = nnx.tabulate(nnx.Sequential(*layers), X, **wide)
    assert all(type(layer).__name__ in table for layer in layers)
    assert "MaxPoolWithIndices" in linen_hourglass().tabulate(KEY, X, **wide)


class Encode(nnx.Module):
    """Returns indices, without being a module of the library."""

    def __call__(self, x):
        return jup.max_pool_with_indices(x, (2, 2))


SHOW_INDICES = {
    name: functools.partial(module_of, name=name, **TABLE[name].settings)
    for name in [*filter(lambda name: "indices" in name, TABLE), "max_pool_with_argmax_and_mask"]
} | {
    "pair": lambda f: f.Paired(f.MaxPoolWithIndices((2, 2)), nnx.relu, f.MaxUnpool()),
    "a user's": lambda f: nnx.Sequential(Encode(), f.MaxUnpool()),
}


@pytest.mark.few(3)
@pytest.mark.parametrize("name", SHOW_INDICES)
def test_tables_show_indices(name):
    """And they leave the classes of the model as they were."""
    wide = {"console_kwargs": {"width": 300, "force_terminal": False}}
    call = TABLE[name].call if name in TABLE else {}
    model = SHOW_INDICES[name](jaxunpool.nnx)
    expected = model(X, **call)
    table = nnx.tabulate(model, X, **call, **wide)
    assert "- int32[" in table or "- uint8[" in table
    same(model(X, **call), expected)
    if name != "a user's":
        table = SHOW_INDICES[name](jaxunpool.linen).tabulate(KEY, X, **call, **wide)
        assert "offsets: " in table or "data: " in table


def test_only_tables_see_offsets_in_place_of_indices():
    names = jax.tree.map(lambda leaf: str(leaf.dtype), INDICES)
    assert (type(names), names.offsets) == (jup.PoolIndices, "uint8")
    assert jax.tree.structure(names) == jax.tree.structure(INDICES)


@pytest.mark.parametrize("output_shape", [(None, 2), (3, None), (None, None), [None, 8]])
def test_adaptive_modules_keep_an_axis(framework, output_shape):
    sizes = [given or size for given, size in zip(output_shape, X.shape[1:3])]
    for name in ("AdaptiveAvgPool", "AdaptiveMaxPool", "AdaptiveMaxPoolWithIndices"):
        module = getattr(framework, name)
        same(module(output_shape)(X), module(sizes)(X))
        same(module((1, 1))(X, output_shape=output_shape), module(sizes)(X))


def test_layers_stack():
    """A stack of hourglasses, created by vmap and run by scan."""
    make = nnx.vmap(lambda key: nnx_hourglass(nnx.Rngs(key), depth=1))
    stack = make(jax.random.split(KEY, 3))
    run = nnx.scan(lambda layer, x: layer(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    expected = X
    for key in jax.random.split(KEY, 3):
        expected = nnx_hourglass(nnx.Rngs(key), depth=1)(expected)
    np.testing.assert_allclose(run(stack, X), expected, rtol=1e-4, atol=1e-6)


def test_sequential_passes_tuples(framework):
    """A pooling's (y, indices) become the unpooling's arguments; a mask after them is left."""
    layers = framework.MaxPoolWithIndices((2, 2)), framework.MaxUnpool()
    expected = jup.max_unpool(*jup.max_pool_with_indices(X, (2, 2)))
    masked = framework.Paired(framework.MaxPoolWithArgmaxAndMask((2, 2)), lambda y: y, layers[1])
    if framework is jaxunpool.nnx:
        same(nnx.Sequential(*layers)(X), expected)
        same(nnx.Sequential(masked, nnx.relu)(X), nnx.relu(expected))
    else:
        same(nn.Sequential(layers).apply({}, X), expected)
        same(nn.Sequential([masked, nn.relu]).apply({}, X), nn.relu(expected))


def test_paired_needs_indices(framework):
    hourglass = framework.Paired(framework.MaxPool((2, 2)), lambda y: y)
    run = hourglass if framework is jaxunpool.nnx else functools.partial(hourglass.apply, {})
    with pytest.raises(TypeError, match=r"pool: expected it to return an array and indices, .*"):
        run(X)


def test_inverse_of_functions(framework):
    fn = lambda x: jup.max_pool_with_indices(jnp.sin(x), (2, 2))
    y = fn(X)
    same(framework.Inverse(fn)(y, X), jup.inverse(fn, X)(y))
    with pytest.raises(ValueError, match=r"y.*: expected float32"):
        framework.Inverse(fn)((y[0][:1], y[1]), X)


class NnxAutoEncoder(nnx.Module):
    def __init__(self, rngs):
        self.encode = nnx.Sequential(
            nnx.Conv(3, 4, (3, 3), **UNIFORM, rngs=rngs),
            nnx.BatchNorm(4, rngs=rngs),
            jaxunpool.nnx.MaxPool((2, 2)),
        )
        self.decode = jaxunpool.nnx.Inverse(self.encode)

    def __call__(self, x):
        return self.decode(self.encode(x), x)


class LinenAutoEncoder(nn.Module):
    @nn.compact
    def __call__(self, x):
        norm = nn.BatchNorm(use_running_average=False)
        encode = nn.Sequential(
            [nn.Conv(4, (3, 3), **UNIFORM), norm, jaxunpool.linen.MaxPool((2, 2))]
        )
        return jaxunpool.linen.Inverse(encode)(encode(x), x)


def inverse_by_hand(params, x):
    """Of convolution, batch norm (by the batch's statistics) and pooling."""

    def encode(x):
        conv, norm = nn.Conv(4, (3, 3)), nn.BatchNorm(use_running_average=False)
        y = conv.apply({"params": params["conv"]}, x)
        stats = {"mean": jnp.zeros(4), "var": jnp.ones(4)}
        variables = {"params": params["norm"], "batch_stats": stats}
        y, _ = norm.apply(variables, y, mutable=["batch_stats"])
        return jup.max_pool(y, (2, 2))

    return jup.inverse(encode, x)(encode(x))


@pytest.mark.thorough
def test_inverse_of_modules():
    """They run as they are, with gradients to their parameters; statistics are written once."""
    square = lambda u: jnp.sum(jnp.sin(u))

    @jax.jit
    def expected(params):
        result, pullback = jax.vjp(lambda params: inverse_by_hand(params, X), params)
        return result, pullback(jnp.cos(result))[0]

    def check(params, found):
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-3)
        jax.tree.map(close, found, expected(params))

    model = NnxAutoEncoder(nnx.Rngs(0))
    rename = lambda state: dict(
        zip(("conv", "norm"), nnx.to_pure_dict(state)["decode"]["fn"]["layers"].values())
    )
    params = rename(nnx.state(model, nnx.Param))

    def loss(model):
        result = model(X)
        return square(result), result

    gradient, result = nnx.jit(nnx.grad(loss, has_aux=True))(model)
    check(params, (result, rename(gradient)))
    encoded = model.encode.layers[0](X)
    written = model.encode.layers[1].mean[...]
    np.testing.assert_allclose(written, 0.01 * encoded.mean((0, 1, 2)), rtol=1e-3, atol=1e-6)

    model = LinenAutoEncoder()
    variables = jax.jit(model.init)(KEY, X)
    rename = lambda params: {"conv": params["Conv_0"], "norm": params["BatchNorm_0"]}

    def loss(params):
        result, updates = model.apply(variables | {"params": params}, X, mutable=["batch_stats"])
        return square(result), (result, updates["batch_stats"]["BatchNorm_0"]["mean"])

    gradient, (result, written) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    check(rename(variables["params"]), (result, rename(gradient)))
    encoded = nn.Conv(4, (3, 3)).apply({"params": variables["params"]["Conv_0"]}, X)
    np.testing.assert_allclose(written, 0.01 * encoded.mean((0, 1, 2)), rtol=1e-3, atol=1e-6)


class Everything(nnx.Module):
    """A module of each kind: static settings, a learned pattern, weights, a random stream."""

    def __init__(self, rngs):
        self.fixed = jaxunpool.nnx.FixedUnpool(nnx.Param(jnp.ones((2, 2))))
        self.up = jaxunpool.nnx.ConvTranspose(3, 3, (2, 2), 2, **UNIFORM, rngs=rngs)
        self.shrink = jaxunpool.nnx.FractionalMaxPoolWithIndices((2, 2), (9, 9), rngs=rngs)

    def __call__(self, x):
        y, indices = self.shrink(self.up(self.fixed(x)))
        return jup.max_unpool(y, indices)


def test_checkpoint(tmp_path):
    run = nnx.jit(lambda model: model(X))
    model = Everything(nnx.Rngs(0))
    run(model)  # the stream has moved
    saved = nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.RngKey)))
    with orbax.checkpoint.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "model", saved)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "model", saved)
    again = Everything(nnx.Rngs(0))
    state = nnx.state(again, nnx.Not(nnx.RngKey))
    nnx.replace_by_pure_dict(state, restored)
    nnx.update(again, state)
    assert operator.eq(*(int(m.shrink.rngs.count[...]) for m in (model, again)))
    same(run(again), run(model))
