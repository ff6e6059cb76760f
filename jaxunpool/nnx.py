"""Flax NNX modules, one for each public function: settings at construction, arrays at the call."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, dataclass_transform

import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.linear import default_bias_init, default_kernel_init

import jaxunpool
from jaxunpool.core import modules
from jaxunpool.core.listing import listing


class _Signature:
    """What `help` shows of a class: its `__init__`, which the metaclass of NNX hides."""

    def __get__(self, instance: Any, owner: type) -> inspect.Signature | None:
        if instance is not None:
            return None  # that of `__call__`
        signature = inspect.signature(owner.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


@dataclass_transform(eq_default=False, field_specifiers=(nnx.data,))
class _Module(nnx.Module):
    """Settings are static and hashable: lists and arrays become tuples."""

    __signature__ = _Signature()
    at_call: ClassVar[tuple[str, ...]] = ()
    checks: ClassVar[modules.Checks] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        dataclasses.dataclass(eq=False, repr=False)(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        is_setting = name in self.__dataclass_fields__  # type: ignore[attr-defined]
        super().__setattr__(name, modules.setting(self, name, value) if is_setting else value)

    def _supply(self, arguments: dict[str, Any]) -> dict[str, Any]:
        return arguments


class _Learnable(_Module):
    """One setting is a constant, or an `nnx.Param` and learned."""

    weight: ClassVar[str]

    def _supply(self, arguments: dict[str, Any]) -> dict[str, Any]:
        value = arguments[self.weight]
        if isinstance(value, nnx.Variable):
            value = value.get_value()
        return arguments | {self.weight: value}


class _Patterned(_Learnable):
    """`pattern` is a constant, or an `nnx.Param` and learned."""

    weight = "pattern"


class _Normed(_Learnable):
    """`norm_type` is a constant, or an `nnx.Param` and learned."""

    weight = "norm_type"


class _Random(_Module):
    """Without `sequences`, and without `key` or `random_samples` at the call, a call draws from the
    stream "fractional" of `rngs`, forked at construction or given at the call. `deterministic`, as
    set by `model.eval()`, uses one and the same key at every call.
    """

    at_call = ("deterministic", "rngs")

    _: dataclasses.KW_ONLY
    deterministic: bool = False
    rngs: nnx.Rngs | nnx.RngStream | None = nnx.data(default=None)

    def __post_init__(self) -> None:
        if self.rngs is not None:
            self.rngs = _stream(self.rngs).fork()

    def _supply(self, arguments: dict[str, Any]) -> dict[str, Any]:
        deterministic = arguments.pop("deterministic", self.deterministic)
        rngs = arguments.pop("rngs", self.rngs)
        if modules.needs_key(arguments):
            if not deterministic and rngs is None:
                raise ValueError(
                    "rngs: expected nnx.Rngs at construction or at the call, or instead a key,"
                    " random_samples or sequences, or deterministic=True; got none"
                )
            arguments["key"] = modules.fixed_key() if deterministic else _stream(rngs)()
        return arguments

    def set_view(self, deterministic: bool | None = None) -> None:
        """What `nnx.view` changes."""
        if deterministic is not None:
            self.deterministic = deterministic


def _stream(rngs: Any) -> nnx.RngStream:
    if not isinstance(rngs, nnx.Rngs | nnx.RngStream):
        raise TypeError(f"rngs: expected nnx.Rngs or an nnx.RngStream, got {type(rngs).__name__}")
    return rngs["fractional"] if isinstance(rngs, nnx.Rngs) else rngs


class _Convolution(_Module):
    """`kernel`, of shape `(*kernel_size, in_features, out_features // groups)` in both layouts, and
    `bias` are parameters of type `param_dtype`, drawn from `rngs`. As in Flax, `x` and they are
    promoted to one type, or cast to `dtype`.
    """

    in_features: int
    out_features: int
    kernel_size: Sequence[int]
    _: dataclasses.KW_ONLY
    use_bias: bool = True
    dtype: Any = None
    param_dtype: Any = jnp.float32
    kernel_init: dataclasses.InitVar[Any] = default_kernel_init
    bias_init: dataclasses.InitVar[Any] = default_bias_init
    rngs: dataclasses.InitVar[nnx.Rngs]

    def __post_init__(self, kernel_init: Any, bias_init: Any, rngs: nnx.Rngs) -> None:
        groups: int = self.groups  # type: ignore[attr-defined]
        shape = modules.kernel_shape(self.kernel_size, self.in_features, self.out_features, groups)
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, self.param_dtype))
        self.bias = nnx.data(None)
        if self.use_bias:
            shape = (self.out_features,)
            self.bias = nnx.Param(bias_init(rngs.params(), shape, self.param_dtype))

    def _supply(self, arguments: dict[str, Any]) -> dict[str, Any]:
        bias = None if self.bias is None else self.bias[...]
        return modules.convolved(arguments, self.kernel[...], bias, self.dtype)


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


class Inverse(nnx.Module):
    """The transposed Jacobian of a function or module: `jaxunpool.inverse` as a module.

    Call it with `y`, the array to map back, and `x`, the input at which the Jacobian is taken. The
    parameters of the module have gradients. What the module writes (statistics, counts) is dropped.

    Args:
        fn: a function or module of one argument, such as an encoder; the decoder shares it.

    Example:
        >>> x = jnp.array([[1.0, 2.0], [3.0, 4.0]])[..., None]
        >>> Inverse(MaxPool((2, 2)))(jnp.array([[[5.0]]]), x)[..., 0]
        Array([[0., 0.],
               [0., 5.]], dtype=float32)
    """

    def __init__(self, fn: Callable[[Any], Any]) -> None:
        self.fn = fn

    def __call__(self, y: Any, x: Any) -> Any:
        """Apply the transposed Jacobian at `x` to `y`."""
        return jaxunpool.inverse(lambda x: nnx.clone(self).fn(x), x)(y)


class Paired(nnx.Module):
    """A pooling and its unpooling, with layers in between: `unpool(inner(y), indices)`.

    It takes one array, returns one array and has no state. So it can be nested, and fits into
    `nnx.Sequential`.

    Args:
        pool: a module or function that returns a pooled array and its indices.
        inner: takes the pooled array and returns one of its shape.
        unpool: takes that and the indices.

    Example:
        >>> hourglass = Paired(MaxPoolWithIndices((2, 2)), jnp.sqrt)
        >>> hourglass(jnp.array([[1.0, 2.0], [3.0, 4.0]])[..., None])[..., 0]
        Array([[0., 0.],
               [0., 2.]], dtype=float32)
    """

    def __init__(
        self,
        pool: Callable[..., Any],
        inner: Callable[..., Any],
        unpool: Callable[..., Any] = jaxunpool.max_unpool,
    ) -> None:
        self.pool = pool
        self.inner = inner
        self.unpool = unpool

    def __call__(self, x: Any) -> Any:
        """Pool `x`, run `inner` and put the result where the maxima of `x` were."""
        y, indices = modules.paired(self.pool(x))
        return self.unpool(self.inner(y), indices)
