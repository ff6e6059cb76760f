"""Beginner's mistakes: names and values of other libraries, settings that are arrays or traced.

The message names the argument or value that is meant, in one short line.
"""

import functools
import inspect
import typing

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from test_modules import TABLE, class_name

import jaxunpool as jup
import jaxunpool.linen
import jaxunpool.models
import jaxunpool.nnx
from jaxunpool.core import backends, messages
from jaxunpool.models.decoders import Decoder

FRAMEWORKS = {"nnx": jaxunpool.nnx, "linen": jaxunpool.linen}
NAMESPACES = {"jaxunpool": jup, "interop": jup.interop, "models": jaxunpool.models} | FRAMEWORKS
NOT_OF_ARRAYS = {"backends", "explain"}
FUNCTIONS = {
    f"{space}.{name}": getattr(NAMESPACES[space], name)
    for space in ("jaxunpool", "interop")
    for name in NAMESPACES[space].__all__
    if inspect.isfunction(getattr(NAMESPACES[space], name)) and name not in NOT_OF_ARRAYS
} | {
    "for_input": jup.WindowGeometry.for_input,
    "for_output": jup.WindowGeometry.for_output,
}
MODULES = {
    f"{flax}.{class_name(name)}": getattr(framework, class_name(name))
    for flax, framework in FRAMEWORKS.items()
    for name in [*TABLE, "conv_transpose"]
}
X = np.arange(192, dtype=np.float32).reshape(1, 8, 8, 3)
IMAGE = np.ones((512, 512, 3), np.float32)


def message_of(call, kind=(TypeError, ValueError)):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) in (TypeError, ValueError)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 300, text
    return text


@pytest.mark.parametrize("space", NAMESPACES)
def test_dir_shows_what_is_public(space):
    namespace = NAMESPACES[space]
    shown = {name for name in dir(namespace) if not name.startswith("__")}
    also = {"deploy", "linen", "models", "nnx"} if namespace is jup else set()
    assert shown - also == set(namespace.__all__)
    assert all(hasattr(namespace, name) for name in dir(namespace))


# Takes any keyword, as Flax passes them, and leaves it to `lax` to refuse.
TAKES_ANY = {"jaxunpool.conv_general_dilated"}


@pytest.mark.parametrize("name", sorted({*FUNCTIONS, *MODULES} - TAKES_ANY))
def test_every_argument_has_its_name_elsewhere(name):
    """Whatever another library calls it: the answer is an argument that there is."""
    function = (FUNCTIONS | MODULES)[name]
    parameters = inspect.signature(function).parameters
    assert not {"args", "kwargs"} & set(parameters)
    for other in messages._ARGUMENTS.keys() - parameters.keys():
        text = message_of(functools.partial(function, **{other: 1}), TypeError)
        head, _, meant = text.partition(f"() has no argument {other!r}: ")
        assert head in name
        if meant.startswith("it is "):
            assert meant.split("'")[1] in parameters
    for other in ("return_indices", "windwo_shape", "nothing_like_it"):
        text = message_of(functools.partial(function, **{other: 1}), TypeError)
        assert f"() has no argument {other!r}: " in text


NAMES = [
    ("max_pool", "kernel_size", "'window_shape'"),  # PyTorch
    ("max_pool", "stride", "'strides'"),
    ("max_pool", "return_indices", "max_pool_with_indices returns the indices too"),
    ("max_pool_with_indices", "return_indices", "the name of a function says"),
    ("max_pool", "input", "'x'"),
    ("max_unpool", "output_size", "'output_shape'"),
    ("max_unpool", "input", "'y'"),
    ("adaptive_avg_pool", "output_size", "'output_shape'"),
    ("fractional_max_pool", "pooling_ratio", "'output_ratio'"),
    ("interpolate", "size", "'output_shape'"),
    ("interpolate", "scale_factor", "'scale'"),
    ("conv_transpose", "weight", "'kernel'"),
    ("avg_pool", "ksize", "'window_shape'"),  # TensorFlow
    ("min_pool", "pool_size", "'window_shape'"),  # Keras
    ("nearest_unpool", "size", "'window_shape'"),
    ("interpolate", "interpolation", "'mode'"),
    ("conv_transpose", "dilation_rate", "'dilation'"),
    ("max_pool", "kernel_shape", "'window_shape'"),  # ONNX
    ("max_pool", "auto_pad", "'padding'"),
    ("max_pool", "windwo_shape", "'window_shape'"),  # a slip
]


@pytest.mark.parametrize(("function", "other", "meant"), NAMES)
def test_names_of_other_libraries(function, other, meant):
    assert meant in message_of(lambda: getattr(jup, function)(**{other: 2}), TypeError)


def test_modules_name_the_module_with_indices():
    for framework in FRAMEWORKS.values():
        text = message_of(lambda f=framework: f.MaxPool(2, return_indices=True))
        assert text.endswith("MaxPoolWithIndices returns the indices too")


VALUES = [
    ("interpolate", {"scale": 2, "mode": "bilinear"}, "'linear'"),
    ("interpolate", {"scale": 2, "mode": "bicubic"}, "'cubic'"),
    ("interpolate", {"scale": 2, "mode": "nearest_exact"}, "'nearest-exact'"),
    ("max_pool", {"window_shape": 2, "data_format": "NCHW"}, "'channels_first'"),
    ("max_pool", {"window_shape": 2, "data_format": "NHWC"}, "'channels_last'"),
    ("max_pool", {"window_shape": 2, "data_format": "channels-last"}, "'channels_last'"),
    ("max_pool", {"window_shape": 2, "padding": "FULL"}, "the window's size - 1"),
    ("max_pool", {"window_shape": 2, "padding": "SAME_UPPER"}, "'SAME'"),
    ("max_pool", {"window_shape": 2, "padding": "SAMELOWER"}, "'SAME_LOWER'"),
    ("max_pool", {"window_shape": 2, "padding": "reflect"}, "jnp.pad before the call"),
    ("max_pool", {"window_shape": 2, "implementation": "cpu"}, "'native_cpu'"),
    ("avg_unpool", {"window_shape": 2, "mode": "average"}, "'mean'"),
]


@pytest.mark.parametrize(("function", "settings", "meant"), VALUES)
def test_values_of_other_libraries(function, settings, meant):
    """In a call of the function, and when a module is made."""
    name, value = list(settings.items())[-1]
    calls = [lambda: getattr(jup, function)(X, **settings)]
    for framework in FRAMEWORKS.values():
        calls.append(functools.partial(getattr(framework, class_name(function)), **settings))
    for call in calls:
        text = message_of(call, ValueError)
        assert text.startswith(f"{name}={value!r}: expected ")
        assert f"; {value!r} is {meant} here" in text or f"; {value!r} is {meant}" in text


def static_settings(name):
    return [each for each in inspect.signature(getattr(jup, name)).parameters if each in STATIC]


STATIC = set(messages.STATIC)


@pytest.mark.parametrize("name", TABLE)
def test_traced_settings_say_that_they_are_static(name):
    """Every setting of every function, with the name to give to `jax.jit`."""
    case = TABLE[name]
    for setting in static_settings(name):

        def run(value, setting=setting):
            return getattr(jup, name)(*case.arrays, **case.settings | case.call | {setting: value})

        text = message_of(lambda run=run: jax.jit(run)(2), TypeError)
        assert text.startswith(f"{setting}: expected a static value, got a traced int")
        assert f"static_argnames=['{setting}'] to jax.jit" in text


def test_what_the_message_about_static_settings_says_works():
    text = message_of(lambda: jax.jit(jup.max_pool)(X, (2, 2)), TypeError)
    assert "static_argnames=['window_shape'] to jax.jit" in text
    assert "jax.jit(functools.partial(max_pool, window_shape=...))" in text
    expected = jup.max_pool(X, (2, 2))
    by_name = jax.jit(jup.max_pool, static_argnames=["window_shape"])
    np.testing.assert_array_equal(by_name(X, (2, 2)), expected)
    fixed = jax.jit(functools.partial(jup.max_pool, window_shape=(2, 2)))
    np.testing.assert_array_equal(fixed(X), expected)


@pytest.mark.parametrize("name", TABLE)
def test_an_image_in_the_place_of_a_setting(name):
    """A short message, in functions and when modules are made; its type and shape stand for it."""
    case = TABLE[name]
    for setting in static_settings(name):
        settings = case.settings | {setting: IMAGE}
        calls = [functools.partial(getattr(jup, name), *case.arrays, **settings | case.call)]
        if setting in case.call:
            calls = [functools.partial(getattr(jup, name), *case.arrays, **case.call | settings)]
        for framework in FRAMEWORKS.values():
            if setting != "sequences":  # of any length
                make = getattr(framework, class_name(name))
                calls += [functools.partial(make, **settings)]
                calls += [functools.partial(make, **settings | {setting: jnp.asarray(IMAGE)})]
        for call in calls:
            text = message_of(call)
            assert setting in text
            assert "float32[512,512,3]" in text or setting == "sequences"


@pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)
def test_modules_check_settings_when_they_are_made(framework):
    for make, message in (
        (lambda f: f.MaxPool(IMAGE), "window_shape: expected a setting, got float32[512,512,3]"),
        (lambda f: f.MaxPool("2"), "window_shape: expected an int, got '2'"),
        (lambda f: f.MaxPool(-1), "window_shape=-1: expected at least 1"),
        (lambda f: f.MaxPool((2, -1)), "window_shape=(2, -1): expected at least 1"),
        (lambda f: f.MaxPool((2, 2.5)), "window_shape: expected an int, got 2.5"),
        (lambda f: f.MaxPool((2,) * 4), "window_shape=(2, 2, 2, 2): expected an int, or a tuple"),
        (lambda f: f.MaxPool(None), "window_shape: expected an int, got None"),
        (lambda f: f.MaxPool(2, 0), "strides=0: expected at least 1"),
        (lambda f: f.MaxPool(2, padding=-1), "padding=-1: expected at least 0"),
        (lambda f: f.MaxPool(2, padding=((1, 1, 1),)), "padding=((1, 1, 1),): expected 'VALID'"),
        (lambda f: f.MaxPool(2, padding=None), "padding: expected an int, got None"),
        (lambda f: f.MaxPool(2, ceil_mode=1), "ceil_mode: expected a bool, got 1"),
        (lambda f: f.MaxPool(2, data_format=None), "data_format=None: expected one of"),
        (lambda f: f.MaxPool(2, implementation="cuda"), "implementation='cuda': expected one of"),
        (lambda f: f.MaxUnpool(duplicates="mean"), "duplicates='mean': expected one of 'last'"),
        (lambda f: f.AdaptiveAvgPool(None), "output_shape: expected an int, got None"),
        (lambda f: f.AdaptiveAvgPool((None, 0)), "output_shape=(None, 0): expected at least 1"),
        (lambda f: f.MaxUnpool(output_shape=(None, 2)), "output_shape: expected an int, got None"),
        (lambda f: f.Interpolate(scale="2"), "scale: expected a number"),
        (lambda f: f.Interpolate(scale=0), "scale=0: expected finite numbers above 0"),
        (lambda f: f.LpPool("2", 2), "norm_type: expected a number or a scalar array, got '2'"),
        (lambda f: f.GlobalAvgPool(spatial_ndim=0), "spatial_ndim=0: expected at least 1"),
    ):
        assert message_of(lambda make=make: make(framework)).startswith(message)


def test_settings_of_modules_have_checks():
    for name, made in MODULES.items():
        unchecked = {setting for setting, check in made.checks.items() if check is None}
        assert unchecked <= {"pattern", "sequences", "precision"}, name
        # The exponent of a norm may be traced.
        assert made.checks.keys() - unchecked - {"norm_type"} <= STATIC, name


def test_settings_are_checked_when_they_change():
    module = jaxunpool.nnx.MaxPool(2)
    assert "'SAME'" in message_of(lambda: setattr(module, "padding", "FULL"), ValueError)
    assert module.padding == "VALID"


@pytest.mark.parametrize("framework", FRAMEWORKS.values(), ids=FRAMEWORKS)
def test_modules_that_are_made_while_tracing(framework):
    text = message_of(lambda: jax.jit(framework.MaxPool)(2), TypeError)
    assert text.startswith("window_shape: expected a static value, got a traced int")
    assert text.endswith("make the module outside of the function that is traced")


def test_images_of_different_sizes():
    ragged = [IMAGE, IMAGE[:2]]
    assert message_of(lambda: jup.max_pool(ragged, 2)) == "x: expected an array, got list"
    text = message_of(lambda: jup.max_pool(np.array(ragged, object), 2), TypeError)
    assert text.startswith("x: expected numbers, got object[2] (NumPy makes objects of images of")


@pytest.mark.thorough
def test_models_take_lists_and_name_what_is_none():
    models, rngs = jaxunpool.models, nnx.Rngs(0)
    makes = [
        models.SegNetBasic(3, 2, features=2, stages=1, kernel_size=1, rngs=rngs),
        models.CEDN(rngs=rngs),
        models.ConvBlock(3, 2, 1, rngs=rngs),
        models.Encoder(3, [[2]], 1, rngs=rngs),
    ]
    makes.append(lambda x: models.DeconvNet(makes[-2]).project(x, 0, 0))
    for model in makes:
        assert message_of(lambda m=model: m([X, X[:, :3]])) == "x: expected an array, got list"
        text = message_of(lambda m=model: m(np.array([X, "x"], object)))
        assert text.startswith("x: expected numbers, got object[2]")
    encoder = makes[3]
    np.testing.assert_array_equal(encoder(list(X))[0], encoder(X)[0])


def test_types_list_the_choices():
    """What editors offer is what runs."""
    assert typing.get_args(backends.Name) == backends.NAMES
    assert typing.get_args(Decoder) == jaxunpool.models.DECODERS
    for implementation in backends.IMPLEMENTATIONS:
        jaxunpool.nnx.MaxPool(2, implementation=implementation)


def test_values_are_short():
    for value, text in (
        (X, "float32[1,8,8,3]"),
        ([X, 2], "[float32[1,8,8,3], 2]"),
        ((2, "a\nb"), "(2, 'a\\nb')"),
        (jnp.float32(2), "Array(2., dtype=float32)"),
    ):
        assert messages.shown(value) == text
    assert len(messages.shown("photograph" * 99)) < 70
    assert len(messages.shown([list(range(99))] * 99)) < 300
