"""Which implementation of a primitive runs where.

| platform | `None` means                | because                                                |
| -------- | --------------------------- | ------------------------------------------------------ |
| CPU      | `xla`, borders apart        | a padded copy of the input costs more than the pooling |
| GPU, TPU | see `PREFERRED`, else `xla` | there XLA fuses the padding                            |
| others   | `xla`                       | the same                                               |

The choice is made for every platform while tracing and taken at lowering, so that one traced or
exported program runs everywhere.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax
from jax import lax

from jaxunpool.geometry import Plane, WindowGeometry, check_choice
from jaxunpool.kernels import xla

Implementation = Literal["xla", "mosaic_gpu", "mosaic_tpu"] | None

KERNELS = ("mosaic_gpu", "mosaic_tpu")
IMPLEMENTATIONS = (None, "xla", *KERNELS)
PLATFORMS = {"gpu": "cuda", "tpu": "tpu"}  # a user's name for it, and the one programs lower for


@dataclasses.dataclass(frozen=True)
class Call:
    """A use of a primitive: all of it that is static.

    Attributes:
        primitive: `"select"`, `"gather"`, `"scatter"`, `"reduce"` or `"replicate"`.
        geometry: the windows, or the bare plane that flat indices point into.
        implementation: the one asked for; None to choose.
        duplicates: what `scatter` does where windows meet.
        weights: how `reduce` and `replicate` weigh elements.
    """

    primitive: str
    geometry: Plane
    implementation: Implementation = None
    duplicates: str | None = None
    weights: str | None = None

    def to(self, primitive: str, **options: Any) -> Call:
        """Another primitive on the same windows."""
        return Call(primitive, self.geometry, self.implementation, **options)

    @property
    def options(self) -> dict[str, Any]:
        """What the primitive takes besides arrays and geometry."""
        options = {"duplicates": self.duplicates, "weights": self.weights}
        return {name: value for name, value in options.items() if value is not None}


class Choice(NamedTuple):
    """An implementation, and why it is the one."""

    implementation: str
    reason: str


UNMEASURED = "not yet measured against the kernel"
PREFERRED: dict[tuple[str, str], Choice] = {}


def check_implementation(implementation: Implementation) -> Implementation:
    """A ValueError for an unknown name."""
    return check_choice("implementation", implementation, IMPLEMENTATIONS)


def check_plain(implementation: Implementation, what: str) -> None:
    """A NotImplementedError for kernels where there is nothing but plain JAX."""
    if implementation in KERNELS:
        raise NotImplementedError(
            f"implementation={implementation!r}: {what} has no kernels; None and 'xla' run it on"
            " every platform"
        )


def choose(call: Call, arrays: Sequence[Any], platform: str) -> Choice:
    """What a call runs on a platform (`"cpu"`, `"gpu"`, `"tpu"` or another).

    Args:
        call: the call.
        arrays: its arrays, or anything with their shapes and types.
        platform: where.
    """
    if call.implementation is not None:
        return Choice(call.implementation, "asked for by name")
    backend = f"mosaic_{platform}"
    if backend not in KERNELS:
        return Choice("xla", f"there are no kernels for {platform}")
    choice = PREFERRED.get((backend, call.primitive), Choice("xla", UNMEASURED))
    if choice.implementation == "xla":  # decides without the kernels being imported
        return choice
    reason = unsupported(call, arrays, backend)
    return choice if reason is None else Choice("xla", f"{backend} does not serve this: {reason}")


def unsupported(call: Call, arrays: Sequence[Any], backend: str) -> str | None:
    """Why a backend's kernels do not serve a call; None if they do."""
    if not isinstance(call.geometry, WindowGeometry):
        return "indices without a window"
    shape = arrays[0].shape
    if call.primitive in ("scatter", "replicate"):
        shape = call.geometry.unpooled_shape(shape)
    options = call.options
    if call.primitive in ("reduce", "replicate"):
        options["pattern"] = len(arrays) > 1
    kernels = _backend(backend)
    return kernels.unsupported(call.primitive, call.geometry, shape, arrays[0].dtype, **options)


def on_device(call: Call, *arrays: jax.Array) -> Any:
    """A call on the arrays of one device, by the implementation chosen for its platform."""
    return _named_program(call)(*arrays)


PROGRAM_NAME = "jaxunpool_"


@functools.lru_cache(maxsize=1024)
def _named_program(call: Call) -> Callable[..., Any]:
    """`_on_device` under a name that says what it is, in profiles and to `explain`."""

    def program(*arrays: jax.Array) -> Any:
        return _on_device(call, *arrays)

    program.__name__ = program.__qualname__ = PROGRAM_NAME + call.primitive
    return jax.jit(program)


def _on_device(call: Call, *arrays: jax.Array) -> Any:
    if call.implementation in KERNELS:
        reason = unsupported(call, arrays, call.implementation)
        if reason is not None:
            raise NotImplementedError(
                f"implementation={call.implementation!r} has no kernel for this {call.primitive}:"
                f" {reason}; None falls back to 'xla'"
            )
        return _kernel(call, call.implementation)(*arrays)
    if not isinstance(call.geometry, WindowGeometry):
        return _kernel(call, "xla")(*arrays)
    branches: dict[str, Callable[..., Any]] = {
        "cpu": functools.partial(_kernel(call, "xla"), borders_apart=True)
    }
    for platform, lowered in PLATFORMS.items():
        choice = choose(call, arrays, platform).implementation
        if choice in KERNELS:
            branches[lowered] = _kernel(call, choice)
    padded = functools.partial(_kernel(call, "xla"), borders_apart=False)
    return lax.platform_dependent(*arrays, default=padded, **branches)


def _kernel(call: Call, implementation: str) -> Callable[..., Any]:
    """The function of a backend that runs a call, of its arrays alone."""
    kernels, name = _backend(implementation), call.primitive
    if not isinstance(call.geometry, WindowGeometry):
        name += "_flat"
    kernel = getattr(kernels, name)
    if call.weights is not None:  # a pattern may follow
        return lambda u, pattern=None, **how: kernel(
            u, pattern, geometry=call.geometry, **call.options, **how
        )
    return functools.partial(kernel, geometry=call.geometry, **call.options)


@functools.cache
def _backend(implementation: str) -> ModuleType:
    """A package of kernels, imported when one is first asked for."""
    if implementation == "xla":
        return xla
    return importlib.import_module(f"jaxunpool.kernels.{implementation}")


def fence(arrays: tuple[jax.Array, ...], axis: int) -> tuple[jax.Array, ...]:
    """The same arrays, which XLA does not compute again for everything that reads them.

    An optimization barrier; on CPU, where that is not enough before jax 0.11, the last row along an
    axis is written again in a loop of two steps.
    """
    rows = [lax.slice_in_dim(a, a.shape[axis] - 1, None, axis=axis) for a in arrays]

    def write(_: Any, arrays: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        return tuple(
            lax.dynamic_update_slice_in_dim(a, row, a.shape[axis] - 1, axis)
            for a, row in zip(arrays, rows)
        )

    return lax.platform_dependent(
        arrays, cpu=lambda a: lax.fori_loop(0, 2, write, a), default=lax.optimization_barrier
    )
