"""Flax Linen modules, one for each public function: settings as fields, arrays at the call."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import linen as nn
from flax.core import lift
from flax.linen.linear import default_kernel_init
from flax.linen.transforms import lift_direct_transform

import jaxunpool
from jaxunpool.core import modules
from jaxunpool.core.listing import listing


class _Module(nn.Module):
    """Settings are static and hashable: lists and arrays become tuples."""

    at_call: ClassVar[tuple[str, ...]] = ()
    checks: ClassVar[modules.Checks] = {}

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            setattr(self, field.name, modules.setting(self, field.name, getattr(self, field.name)))
        super().__post_init__()

    def _supply(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments


class _Learnable(_Module):
    """One setting is a constant; `learnable` makes it the start of a parameter."""

    weight: ClassVar[str]

    learnable: bool = modules.keyword(False)
    param_dtype: Any = modules.keyword(jnp.float32)

    def setup(self) -> None:
        if self.learnable:
            start = jnp.asarray(getattr(self, self.weight), self.param_dtype)
            self.learned = self.param(self.weight, lambda _: start)

    def _supply(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments | {self.weight: self.learned} if self.learnable else arguments


class _Patterned(_Learnable):
    """`pattern` is a constant; `learnable` makes it the start of a parameter of `param_dtype`."""

    weight = "pattern"


class _Normed(_Learnable):
    """`norm_type` is a constant; `learnable` makes it the start of a parameter of `param_dtype`."""

    weight = "norm_type"


class _Random(_Module):
    """Without `sequences`, and without `key` or `random_samples` at the call, a call draws from
    `make_rng("fractional")`. With `deterministic`, here or at the call, every call uses one and the
    same key.
    """

    at_call = ("deterministic",)

    deterministic: bool = modules.keyword(False)

    def _supply(self, arguments: dict[str, Any]) -> dict[str, Any]:
        deterministic = arguments.pop("deterministic", self.deterministic)
        if modules.needs_key(arguments):
            key = modules.fixed_key() if deterministic else self.make_rng("fractional")
            return arguments | {"key": key}
        return arguments


class _Convolution(_Module):
    """`kernel`, of shape `(*kernel_size, in_features, features // groups)` in both layouts, and
    `bias` are parameters of type `param_dtype`. As in Flax, `x` and they are promoted to one type,
    or cast to `dtype`.
    """

    features: int
    kernel_size: Sequence[int]
    use_bias: bool = modules.keyword(True)
    dtype: Any = modules.keyword(None)
    param_dtype: Any = modules.keyword(jnp.float32)
    kernel_init: nn.initializers.Initializer = modules.keyword(default_kernel_init)
    bias_init: nn.initializers.Initializer = modules.keyword(nn.initializers.zeros_init())

    @nn.compact
    def _supply(self, arguments: dict[str, Any]) -> dict[str, Any]:
        size = self.kernel_size
        in_features = modules.channels(arguments["x"], size, arguments["data_format"])
        shape = modules.kernel_shape(size, in_features, self.features, arguments["groups"])
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = None
        if self.use_bias:
            bias = self.param("bias", self.bias_init, (self.features,), self.param_dtype)
        return modules.convolved(arguments, kernel, bias, self.dtype)


# The base of functions that have this argument. Editors see the classes in the stub beside this.
_BASES = {
    "pattern": _Patterned,
    "norm_type": _Normed,
    "key": _Random,
    "kernel": _Convolution,
    "": _Module,
}
_CLASSES = modules.classes(_BASES)
globals().update(_CLASSES)
__all__ = sorted([*_CLASSES, "Inverse", "Paired"])
__dir__ = listing(globals())


class Inverse(nn.Module):
    """The transposed Jacobian of a function or module: `jaxunpool.inverse` as a module.

    Call it with `y`, the array to map back, and `x`, the input at which the Jacobian is taken. The
    parameters of the module have gradients. What the module writes (statistics) is dropped.

    Attributes:
        fn: a function or module of one argument, such as an encoder; the decoder shares it.

    Example:
        >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])[..., None]
        >>> Inverse(MaxPool((2, 2))).apply({}, jnp.array([[[5.0]]]), x)[..., 0]
        Array([[0., 0.],
               [0., 5.]], dtype=float32)
    """

    fn: Callable[[Any], Any]

    def __call__(self, y: Any, x: Any) -> Any:
        """Apply the transposed Jacobian at `x` to `y`."""
        if not isinstance(self.fn, nn.Module):
            return jaxunpool.inverse(self.fn, x)(y)
        if self.is_initializing():
            self.fn(x)  # makes its parameters
        return lift_direct_transform(_inverse, (lambda fn, x: fn(x),), self.fn, y, x)


def _inverse(fn: Callable[..., Any], scope: Any, y: Any, x: Any) -> Any:
    """`jaxunpool.inverse` of a function of variables: what it writes is not carried out."""

    def inner(scope_of: Any, _: Any, variables: Any, rngs: Any, y: Any, x: Any) -> Any:
        return jaxunpool.inverse(lambda x: fn(scope_of(variables, rngs), x), x)(y), variables

    return lift.pack(inner, (True,), (True,), (True,))(scope, y, x)


class Paired(nn.Module):
    """A pooling and its unpooling, with layers in between: `unpool(inner(y), indices)`.

    It takes one array, returns one array and has no state. So it can be nested, and fits into
    `nn.Sequential`.

    Attributes:
        pool: a module or function that returns a pooled array and its indices.
        inner: takes the pooled array and returns one of its shape.
        unpool: takes that and the indices.

    Example:
        >>> hourglass = Paired(MaxPoolWithIndices((2, 2)), jnp.sqrt)
        >>> hourglass.apply({}, jnp.array([[1.0, 2.0], [3.0, 4.0]])[..., None])[..., 0]
        Array([[0., 0.],
               [0., 2.]], dtype=float32)
    """

    pool: Callable[..., Any]
    inner: Callable[..., Any]
    unpool: Callable[..., Any] = jaxunpool.max_unpool

    def __call__(self, x: Any) -> Any:
        """Pool `x`, run `inner` and put the result where the maxima of `x` were."""
        y, indices = modules.paired(self.pool(x))
        return self.unpool(self.inner(y), indices)
