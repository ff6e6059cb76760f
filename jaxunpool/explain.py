"""Which implementation each primitive of a program runs on, and why."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax

from jaxunpool.dispatch import PROGRAM_NAME, Call, choose
from jaxunpool.geometry import WindowGeometry, check_choice

PLATFORMS = ("cpu", "gpu", "tpu")


class Explained(NamedTuple):
    """One primitive of a program.

    Attributes:
        primitive: `"select"`, `"gather"`, `"scatter"`, `"reduce"` or `"replicate"`.
        arrays: types and shapes of its arrays, those of one device under a `shard_map`.
        windows: the windows in words; empty for indices that have none, and for plain JAX.
        implementation: `"xla"`, `"mosaic_gpu"` or `"mosaic_tpu"`.
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
    platform = check_choice("platform", platform or jax.default_backend(), PLATFORMS)
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
        shown = ", ".join(map(_short, arrays[:2]))
        bound = getattr(parameters.get("partition"), "args", ())
        call = next((argument for argument in bound if isinstance(argument, Call)), None)
        name = str(parameters.get("name", ""))
        if call is not None:
            choice = choose(call, arrays, platform)
            yield Explained(call.primitive, shown, _windows(call), *choice)
        elif name.startswith(PROGRAM_NAME):
            reason = "plain JAX, asked for by name"
            yield Explained(name.removeprefix(PROGRAM_NAME), shown, "", "xla", reason)
        else:
            for inner in jax.tree.leaves(list(parameters.values()), is_leaf=_is_program):
                if _is_program(inner):
                    yield from _walk(getattr(inner, "jaxpr", inner), platform)


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns")


def _short(array: Any) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"


def _windows(call: Call) -> str:
    g = call.geometry
    if not isinstance(g, WindowGeometry):
        return ""
    said = f"{_times(g.window_shape)} every {_times(g.strides)}"
    if any(map(any, g.padding)):
        said += f", padding {_times(f'{low}+{high}' for low, high in g.padding)}"
    if max(g.dilation) > 1:
        said += f", dilation {_times(g.dilation)}"
    return f"{said}, {g.data_format}"


def _times(sizes: Any) -> str:
    return "x".join(map(str, sizes))
