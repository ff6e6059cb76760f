"""Which implementation of a primitive runs where.

| platform | `None` means                | because                                                |
| -------- | --------------------------- | ------------------------------------------------------ |
| CPU      | `xla`, borders apart        | a padded copy of the input costs more than the pooling |
| GPU, TPU | see `PREFERRED`, else `xla` | there XLA fuses the padding                            |
| others   | `xla`                       | the same                                               |

The choice is taken when a program is lowered, for each platform it is lowered for, so that one
traced or exported program runs everywhere.
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
from jax.extend.core import Primitive
from jax.interpreters import mlir

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


# What None prefers where a backend's kernels serve a call, per primitive, and the evidence. Numbers
# are of float32: 8x224x224x128 on TPU, 32x224x224x64 on GPU, windows 2x2 every 2 and 3x3 every 2;
# `benchmarks/NOTES.md` has all of them.
PREFERRED: dict[tuple[str, str], Choice] = {
    ("mosaic_tpu", "select"): Choice(
        "mosaic_tpu", "compiled, it moves 0.27-0.28 GB and needs no temporaries; xla 1.3-2.3 GB"
    ),
    ("mosaic_tpu", "gather"): Choice(
        "mosaic_tpu", "compiled, it reads every byte once and needs no temporaries"
    ),
    ("mosaic_tpu", "scatter"): Choice(
        "mosaic_tpu", "compiled, it moves 0.27-0.28 GB and needs no temporaries; xla 1.3-4.5 GB"
    ),
    ("mosaic_tpu", "reduce"): Choice(
        "mosaic_tpu", "compiled, it reads every byte once and needs no temporaries"
    ),
    ("mosaic_tpu", "replicate"): Choice(
        "mosaic_tpu", "compiled, it moves 0.26 GB; xla 0.36 GB at best"
    ),
    # XLA compiles each of these to one fusion without temporaries, except scatter and replicate
    # where windows overlap (four and three fusions). Mosaic GPU aborts the process for devices it
    # does not know (compute capability 8 and 12), so only a measured gain is worth choosing it.
    **{
        ("mosaic_gpu", primitive): Choice("xla", "the kernel was not yet timed against it on a GPU")
        for primitive in ("select", "gather", "scatter", "reduce", "replicate")
    },
}


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
    preferred = PREFERRED[backend, call.primitive]
    if preferred.implementation == "xla":  # without the kernels being imported
        return preferred
    reason = unsupported(call, arrays, backend)
    if reason is None:
        return preferred
    return Choice("xla", f"{backend} does not serve this: {reason}")


def unsupported(call: Call, arrays: Sequence[Any], backend: str) -> str | None:
    """Why a backend's kernels do not serve a call; None if they do."""
    if not isinstance(call.geometry, WindowGeometry):
        return "indices without a window"
    shape = arrays[0].shape
    if call.primitive in ("scatter", "replicate"):
        shape = call.geometry.unpooled_shape(shape)
    if not all(isinstance(size, int) for size in shape):
        return "a size that is not known before it runs"
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
    if call.implementation == "xla":  # JAX derives and batches this itself
        apart, padded = (
            functools.partial(_kernel(call, "xla"), borders_apart=flag) for flag in (True, False)
        )
        return lax.platform_dependent(*arrays, cpu=apart, default=padded)
    results = _window_primitive.bind(*arrays, call=call)
    return tuple(results) if len(results) > 1 else results[0]


# A window primitive whose implementation is still to be chosen. Nothing of it is traced before it
# is lowered, and then only what its platform runs: a kernel could not be lowered for another.
_window_primitive = Primitive(PROGRAM_NAME + "window")
_window_primitive.multiple_results = True


@_window_primitive.def_abstract_eval
def _results(*arrays: Any, call: Call) -> list[Any]:
    g, array = call.geometry, arrays[0]
    if call.primitive in ("scatter", "replicate"):
        return [array.update(shape=g.unpooled_shape(array.shape), weak_type=False)]
    assert isinstance(g, WindowGeometry)
    y = array.update(shape=g.pooled_shape(array.shape), weak_type=False)
    return [y, y.update(dtype=g.offset_dtype)] if call.primitive == "select" else [y]


def _lower_for(platform: str) -> Callable[..., Any]:
    """The lowering rule of a platform, as a user names it."""

    def run(*arrays: jax.Array, call: Call) -> Sequence[jax.Array]:
        implementation = choose(call, arrays, platform).implementation
        kernel = _kernel(call, implementation)
        if implementation == "xla":
            kernel = functools.partial(kernel, borders_apart=platform == "cpu")
        return jax.tree.leaves(kernel(*arrays))

    def rule(ctx: mlir.LoweringRuleContext, *values: Any, call: Call) -> Any:
        # In a program for several platforms this part is for one of them.
        module = ctx.module_context.replace(platforms=ctx.platforms or ctx.module_context.platforms)
        return mlir.lower_fun(run)(ctx.replace(module_context=module), *values, call=call)

    return rule


mlir.register_lowering(_window_primitive, _lower_for("other platforms"))
for _platform in ("cpu", *PLATFORMS):
    _rule, _lowered = _lower_for(_platform), PLATFORMS.get(_platform, _platform)
    mlir.register_lowering(_window_primitive, _rule, platform=_lowered)


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
