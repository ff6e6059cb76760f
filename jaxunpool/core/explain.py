"""Which implementation each primitive of a program runs on, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from jaxunpool.core.backends import PLATFORMS, choose
from jaxunpool.core.calls import Call
from jaxunpool.core.geometry import check_choice
from jaxunpool.core.resample import RESAMPLE


class Explained(NamedTuple):
    """One primitive of a program.

    Attributes:
        primitive: `"select"`, `"gather"`, `"scatter"`, `"reduce"` or `"replicate"`; `"correlate"`,
            the gradient of a pattern; `"resample"`, of interpolation and adaptive averages.
        arrays: types and shapes of its arrays, those of one device under a `shard_map`.
        windows: the windows in words; empty for indices that have none.
        implementation: `"xla"` or the name of a backend.
        reason: why this one.
    """

    primitive: str
    arrays: str
    windows: str
    implementation: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """The primitives of a program in the order they run; prints as a table.

    Attributes:
        platform: what the program was explained for.
        calls: one `Explained` per primitive.
    """

    platform: str
    calls: tuple[Explained, ...]

    def __str__(self) -> str:
        rows = [("primitive", "arrays", "windows", "runs on", "because"), *self.calls]
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        return "\n".join([f"on {self.platform}:", *lines])


def explain(
    fn: Callable[..., Any], *args: Any, platform: str | None = None, **kwargs: Any
) -> Explanation:
    """Which implementation each primitive of `fn(*args, **kwargs)` would use, and why.

    Nothing is computed or compiled: the function is traced. What a transformation adds is there
    too: to see the primitives of the backward pass, explain the gradient.

    Args:
        fn: any function that JAX can trace, jitted or not.
        args, kwargs: its arguments. Arrays and `jax.ShapeDtypeStruct` are traced, whatever else
            there is (sizes, names) is passed on as it is.
        platform: `"cpu"`, `"gpu"` or `"tpu"`; the default backend's if None.

    Returns:
        An `Explanation`, to be printed.

    Raises:
        TypeError: `fn` is not callable.
        ValueError: an unknown platform.

    Example:
        >>> step = jax.grad(lambda x: jaxunpool.max_pool(x, (2, 2)).sum())
        >>> x = jax.ShapeDtypeStruct((8, 4, 4, 64), jnp.float32)
        >>> for call in explain(step, x, platform="cpu").calls:
        ...     print(call.primitive, "->", call.implementation)
        select -> xla
        scatter -> xla
    """
    if not callable(fn):
        raise TypeError(f"fn: expected a function, got {type(fn).__name__}")
    platform = check_choice("platform", platform or jax.default_backend(), tuple(PLATFORMS))
    leaves, tree = jax.tree.flatten((args, kwargs))
    traced = [hasattr(leaf, "shape") and hasattr(leaf, "dtype") for leaf in leaves]

    def run(*arrays: Any) -> Any:
        given = iter(arrays)
        filled = [next(given) if flag else leaf for flag, leaf in zip(traced, leaves)]
        args, kwargs = jax.tree.unflatten(tree, filled)
        return fn(*args, **kwargs)

    program = jax.make_jaxpr(run)(*(leaf for flag, leaf in zip(traced, leaves) if flag))
    return Explanation(platform, tuple(_walk(program.jaxpr, platform)))


def _walk(program: Any, platform: str) -> Iterator[Explained]:
    """The primitives of a program and of the programs in it."""
    for equation in program.eqns:
        parameters, arrays = equation.params, [v.aval for v in equation.invars]
        call = parameters.get("call")
        if isinstance(call, Call):
            shown = ", ".join(map(_short, arrays[:2]))
            chosen = choose(call, arrays, platform, parameters["lead"])
            yield Explained(call.primitive, shown, call.windows, *chosen)
            continue
        if equation.primitive is RESAMPLE:
            yield Explained("resample", _short(arrays[0]), "", "xla", "plain JAX on every platform")
            continue
        for inner in jax.tree.leaves(list(parameters.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _walk(getattr(inner, "jaxpr", inner), platform)


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns")


def _short(array: Any) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"
