"""Which implementation each primitive of a program runs on, and which can run on this machine."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from jaxunpool.core import irregular, resample
from jaxunpool.core.backends import BACKENDS, PLATFORMS, choose, folder
from jaxunpool.core.calls import Call
from jaxunpool.core.geometry import check_choice


class Explained(NamedTuple):
    """One primitive of a program.

    Attributes:
        primitive: `"select"`, `"gather"`, `"scatter"`, `"reduce"` or `"replicate"`; `"correlate"`,
            the gradient of a pattern; `"resample"`, of interpolation and adaptive averages.
        arrays: types and shapes of its arrays; under a `shard_map`, those of one device.
        windows: the windows in words; "uneven" if they are not evenly spaced; empty for indices
            without windows.
        implementation: `"xla"` or the name of a backend.
        reason: why this implementation was chosen.
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
        head = ("primitive", "arrays", "windows", "runs on", "because")
        return "\n".join([f"on {self.platform}:", *_table(head, self.calls)])


class Backend(NamedTuple):
    """A backend on this machine.

    Attributes:
        name: what `implementation` names it by.
        platform: `"cpu"`, `"gpu"`, `"tpu"`, or `"every"` for `"xla"`.
        runs: whether it can run here.
        reason: why not, and what brings it; or what it is.
    """

    name: str
    platform: str
    runs: bool
    reason: str


@dataclasses.dataclass(frozen=True)
class Backends:
    """The backends, those that run on this machine and those that do not; prints as a table.

    Attributes:
        found: one `Backend` each.
    """

    found: tuple[Backend, ...]

    def __str__(self) -> str:
        head = ("backend", "platform", "runs here", "because")
        rows = [(b.name, b.platform, "yes" if b.runs else "no", b.reason) for b in self.found]
        return "\n".join(_table(head, rows))


def backends() -> Backends:
    """Which backends can run on this machine, and how to get the others.

    If JAX is not initialised yet, this call initialises it. `"xla"` replaces a missing backend.

    Returns:
        `Backends`, to be printed.

    Example:
        >>> for backend in backends().found:
        ...     print(backend.name, "for", backend.platform)
        xla for every
        native_cpu for cpu
        mosaic_tpu for tpu
        mosaic_gpu for gpu
    """
    found = [Backend("xla", "every", True, "plain JAX")]
    for backend in BACKENDS:
        missing = folder(backend.name).missing()
        found.append(Backend(backend.name, backend.platform, missing is None, missing or "found"))
    return Backends(tuple(found))


def explain(
    fn: Callable[..., Any], *args: Any, platform: str | None = None, **kwargs: Any
) -> Explanation:
    """Which implementation each primitive of `fn(*args, **kwargs)` would use, and why.

    The function is traced; nothing is compiled or computed. To see the primitives of the backward
    pass, explain the gradient.

    Args:
        fn: any function that JAX can trace, jitted or not.
        args, kwargs: its arguments. Arrays and `jax.ShapeDtypeStruct` are traced; other values
            (sizes, names) are passed on unchanged.
        platform: `"cpu"`, `"gpu"` or `"tpu"`; None means the platform of JAX's default backend.

    Returns:
        An `Explanation`, to be printed.

    Raises:
        TypeError: `fn` is not callable.
        ValueError: an unknown platform.

    Example:
        >>> step = jax.grad(lambda x: jaxunpool.max_pool(x, (2, 2)).sum())
        >>> x = jax.ShapeDtypeStruct((8, 4, 4, 64), jnp.float32)
        >>> for call in explain(step, x, platform="tpu").calls:
        ...     print(call.primitive, "->", call.implementation)
        select -> mosaic_tpu
        scatter -> mosaic_tpu
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
        if equation.primitive is irregular.UNEVEN:
            chosen = irregular.choose(arrays, platform, **parameters)
            if chosen.implementation != "xla":
                yield Explained("select", _short(arrays[0]), "uneven", *chosen)
                continue
            plain = functools.partial(irregular.plain, **parameters)
            yield from _walk(jax.make_jaxpr(plain)(*arrays).jaxpr, platform)
            continue
        if isinstance(call, Call):
            shown = ", ".join(map(_short, arrays[:2]))
            chosen = choose(call, arrays, platform, parameters["lead"])
            yield Explained(call.primitive, shown, call.windows, *chosen)
            continue
        if equation.primitive is resample.RESAMPLE:
            chosen = resample.choose(arrays, platform, **parameters)
            yield Explained("resample", _short(arrays[0]), "", *chosen)
            continue
        for inner in jax.tree.leaves(list(parameters.values()), is_leaf=_is_program):
            if _is_program(inner):
                yield from _walk(getattr(inner, "jaxpr", inner), platform)


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> list[str]:
    """Lines of columns."""
    rows = [head, *rows]
    widths = [max(map(len, column)) for column in zip(*rows)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns")


def _short(array: Any) -> str:
    return f"{array.dtype}[{','.join(map(str, array.shape))}]"
