"""What `jaxunpool.nnx` and `jaxunpool.linen` share: a module class made from a public function."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from inspect import Parameter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from flax.linen.kw_only_dataclasses import KW_ONLY

import jaxunpool
from jaxunpool.core.arguments import as_factors, setting_check
from jaxunpool.core.geometry import as_int
from jaxunpool.core.messages import public, shown

Checks = Mapping[str, Callable[[Any], Any] | None]

ARRAYS = ("x", "y", "pool_input")  # first arguments of the functions that have a module
CALLED_WITH = (*ARRAYS, "unpool_input", "indices", "key", "random_samples")
WEIGHTS = ("kernel", "bias")  # which the module makes itself


def classes(bases: dict[str, Any]) -> dict[str, Any]:
    """A class for each public function of an array, by name.

    The first of `bases` whose name is among the function's arguments is its base; `""` always is.
    """
    found = {}
    for name in jaxunpool.__all__:
        parameters = _parameters(getattr(jaxunpool, name))
        if parameters and parameters[0] in ARRAYS:
            base = next(base for argument, base in bases.items() if argument in ["", *parameters])
            made = module(getattr(jaxunpool, name), base)
            made.__init__ = public(made.__init__, made.__name__)
            found[made.__name__] = made
    return found


def _parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters) if inspect.isfunction(function) else []


def module(function: Callable[..., Any], base: Any) -> Any:
    """The class that takes the function's settings, and whose instances take its arrays.

    Settings become dataclass fields with the function's names, order and defaults, after those of
    `base`. A call may name `output_shape`, and what `base.at_call` lists, for that call alone;
    `base._supply` adds what only the module knows: keys and weights.
    """
    takes = inspect.signature(function)
    parameters = takes.parameters.values()
    arrays = [p for p in parameters if p.name in CALLED_WITH]
    settings = [p for p in parameters if p.name not in CALLED_WITH + WEIGHTS]
    at_call = [name for name in ("output_shape",) if name in {p.name for p in settings}]
    options = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=None) for name in (*at_call, *base.at_call)
    ]
    self_ = Parameter("self", Parameter.POSITIONAL_ONLY)
    signature = takes.replace(parameters=[self_, *arrays, *options])
    required = ", ".join(p.name for p in arrays if p.default is Parameter.empty)
    name = "".join(part.capitalize() for part in function.__name__.split("_"))

    def __call__(self: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N807
        try:
            given = signature.bind(self, *args, **kwargs).arguments
        except TypeError as error:
            raise TypeError(f"{name}, called with ({required}): {error}") from None
        del given["self"]
        for option in options:
            if given.get(option.name) is None:
                given.pop(option.name, None)
        arguments = {p.name: getattr(self, p.name) for p in settings}
        return function(**self._supply(arguments | given))

    __call__.__doc__ = f"`jaxunpool.{function.__name__}` of {required}."
    __call__.__qualname__ = f"{name}.__call__"
    __call__.__module__ = base.__module__
    __call__.__signature__ = signature  # type: ignore[attr-defined]

    def define(namespace: dict[str, Any]) -> None:
        summary = inspect.getdoc(function).split("\n")[0]  # type: ignore[union-attr]
        namespace["__doc__"] = (
            f"{summary}\n\n`jaxunpool.{function.__name__}` as a module: called with {required}; all"
            f" other arguments are given here.\n\n{inspect.cleandoc(base.__doc__ or '')}"
        )
        namespace["__module__"] = base.__module__
        namespace["__call__"] = __call__
        hints = typing.get_type_hints(function)
        namespace["__annotations__"] = {p.name: hints[p.name] for p in settings}
        namespace |= {p.name: _field(p) for p in settings}
        checks = {p.name: setting_check(p.name, hints[p.name]) for p in settings}
        namespace["checks"] = types.MappingProxyType(checks)

    return types.new_class(name, (base,), exec_body=define)


def _field(parameter: Parameter) -> Any:
    if parameter.kind is Parameter.KEYWORD_ONLY:
        return keyword(parameter.default)
    is_required = parameter.default is Parameter.empty
    return dataclasses.field(default=dataclasses.MISSING if is_required else parameter.default)


def keyword(default: Any) -> Any:
    """A keyword-only field; Linen counts positional arguments by a mark of its own."""
    return dataclasses.field(default=default, kw_only=True, metadata={KW_ONLY: True})


def setting(module: Any, name: str, value: Any) -> Any:
    """What a module keeps of a setting that it is given, after a check of its own."""
    check = module.checks.get(name)
    if check is None:
        return constant(name, value)
    if getattr(value, "size", 0) > 6:
        call = f"{type(module).__name__}(...)(x)"
        raise TypeError(f"{name}: expected a setting, got {shown(value)}; arrays go to {call}")
    value = constant(name, value)
    check(value)
    return value


def constant(name: str, value: Any) -> Any:
    """A setting that can be hashed: lists and arrays, also inside, as tuples."""
    if isinstance(value, jax.core.Tracer):
        raise TypeError(f"{name}: expected a constant, got {shown(value)}")
    if isinstance(value, np.ndarray | np.generic | jax.Array) and hasattr(value, "tolist"):
        value = value.tolist()  # random keys have none
    if isinstance(value, list | tuple):
        return tuple(constant(name, element) for element in value)
    return value


def paired(pooled: Any) -> tuple[Any, Any]:
    """The array and the indices that a pooling returned."""
    if not isinstance(pooled, tuple) or len(pooled) < 2:
        raise TypeError(
            "pool: expected it to return an array and indices, as MaxPoolWithIndices does, got"
            f" {type(pooled).__name__}"
        )
    return pooled[0], pooled[1]  # a mask may follow


def needs_key(arguments: dict[str, Any]) -> bool:
    """Whether nothing says where the windows of a fractional pooling are."""
    return all(arguments.get(name) is None for name in ("key", "random_samples", "sequences"))


def fixed_key() -> jax.Array:
    """The key of all deterministic calls."""
    return jax.random.key(0)


def channels(x: Any, kernel_size: Sequence[int], data_format: str) -> int:
    """Number of channels of an array that a kernel is for."""
    n, shape = _rank(kernel_size), as_factors("x", x).shape
    if len(shape) <= n:
        raise ValueError(f"x: expected {n} spatial axes and a channel axis, got shape {shape}")
    return shape[-1 if data_format == "channels_last" else -n - 1]


def _rank(kernel_size: Any) -> int:
    if not isinstance(kernel_size, Sequence) or isinstance(kernel_size, str):
        raise TypeError(
            f"kernel_size: expected ints, one for each spatial axis, got {kernel_size!r}"
        )
    return len(kernel_size)


def kernel_shape(
    kernel_size: Sequence[int], in_features: int, out_features: int, groups: int
) -> tuple[int, ...]:
    """Shape of the weights of a transposed convolution, channels last."""
    _rank(kernel_size)
    sizes = {"in_features": in_features, "out_features": out_features, "groups": groups}
    sizes |= {f"kernel_size[{i}]": size for i, size in enumerate(kernel_size)}
    for name, size in sizes.items():
        if as_int(name, size) < 1:
            raise ValueError(f"{name}={size!r}: expected at least 1")
    if in_features % groups or out_features % groups:
        raise ValueError(
            f"groups={groups}: expected a divisor of in_features={in_features} and"
            f" out_features={out_features}"
        )
    return (*kernel_size, in_features, out_features // groups)


def convolved(
    arguments: dict[str, Any], kernel: jax.Array, bias: jax.Array | None, dtype: Any
) -> dict[str, Any]:
    """Arguments of `conv_transpose`: arrays of one type, the kernel in the layout it expects."""
    x, kernel, bias = promote_dtype(as_factors("x", arguments["x"]), kernel, bias, dtype=dtype)
    if arguments["data_format"] == "channels_first":
        kernel = jnp.moveaxis(kernel, (-2, -1), (0, 1))
    return arguments | {"x": x, "kernel": kernel, "bias": bias}
