"""The backends: which kernels serve which platform, and in which order they are asked.

A backend is a folder of `jaxunpool.kernels` and an entry here. `None` takes the first backend of a
platform that is preferred for a primitive and serves the call, and else `xla`, which serves all.
"""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType
from typing import Any, Literal, NamedTuple

import jax

from jaxunpool.core.calls import UNPOOL, Call
from jaxunpool.core.carriers import carried, carrier
from jaxunpool.core.geometry import WindowGeometry, check_choice
from jaxunpool.kernels.common import PER_WINDOW

Name = Literal["native_cpu", "mosaic_tpu", "mosaic_gpu"]  # of a backend
Implementation = Literal["xla"] | Name | None
CACHED = 2**24  # bytes of a result; larger ones the kernels for CPU write past the caches


class Backend(NamedTuple):
    """The kernels of a folder.

    Attributes:
        name: of the folder, and what `implementation` names it by.
        platform: where they run, as a user names it.
        preferred: per primitive that None takes them for, the evidence that they are better there.
        otherwise: why None leaves the other primitives to `xla`.
        exported: whether `jax.export` takes the kernels into a program.
        outdone: why `xla` is better for a call of a preferred primitive, or None.
    """

    name: Name
    platform: str
    preferred: Mapping[str, str]
    otherwise: str = ""
    exported: bool = True
    outdone: Callable[[Call, Sequence[Any]], str | None] = lambda call, arrays: None


class Choice(NamedTuple):
    """An implementation, and why it is the one."""

    implementation: str
    reason: str


def _small_copies(call: Call, arrays: Sequence[Any]) -> str | None:
    """By planes of short rows: XLA's loops know their sizes."""
    g = call.geometry
    if call.primitive != "replicate" or len(arrays) > 1:
        return None
    if not isinstance(g, WindowGeometry) or g.overlaps:
        return None
    if g.data_format == "channels_last" or call.weighting in PER_WINDOW:
        return None
    size, row, plane = arrays[0].dtype.itemsize, g.spatial[-1].size, math.prod(g.input_shape)
    short = plane > 1024 and row < 100 if size >= 4 else size == 1 and row < 50
    if not short or any(axis.low for axis in g.spatial):
        return None
    if math.prod(g.unpooled_shape(arrays[0].shape)) * size > CACHED:
        return None
    return "xla mostly takes 0.4 to 1 times as long for copies by planes with short rows"


# The platforms by a user's names, and by those that programs are lowered for.
PLATFORMS = {"cpu": "cpu", "gpu": "cuda", "tpu": "tpu"}

# In the order they are asked. On TPU the evidence is for windows 2x2 every 2 and 3x3 every 2;
# `benchmarks/NOTES.md` has all numbers.
COMPILED = "compiled for float32[8,224,224,128] it moves"
TIMES = "on 32x56x56x64 xla takes"
BACKENDS = (
    Backend(
        "native_cpu",
        "cpu",
        {
            "select": f"{TIMES} 8.1 times as long (2.2 to 24, with the window and the type)",
            "gather": f"{TIMES} 6.6 times as long (1.3 to 22)",
            "scatter": f"{TIMES} 2.3 times as long (1.1 to 10)",
            "reduce": f"{TIMES} 2.1 times as long (0.6 to 4.3)",
            "replicate": f"{TIMES} 0.9 times as long (0.4 to 3.1)",
            "uneven": f"{TIMES} 6 to 11 times as long (to 7x7, float32 and bfloat16)",
            "resample": f"{TIMES} 5 times as long, channels first",
        },
        exported=False,
        outdone=_small_copies,
    ),
    Backend(
        "mosaic_tpu",
        "tpu",
        {
            "select": f"{COMPILED} 0.27-0.28 GB and needs no temporaries; xla 1.3-2.9 GB",
            "gather": "compiled, it reads every byte once and needs no temporaries",
            "scatter": f"{COMPILED} 0.27-0.28 GB and needs no temporaries; xla 1.3-5.0 GB",
            "reduce": "compiled, it reads every byte once and needs no temporaries",
            "replicate": f"{COMPILED} 0.26 GB; xla 0.77 GB at best",
        },
    ),
    # XLA compiles each primitive to one fusion without temporaries, and tiny ones for masks. Mosaic
    # GPU aborts the process for devices it does not know (compute capability 8 and 12), so only a
    # measured gain is worth choosing it.
    Backend("mosaic_gpu", "gpu", {}, "the kernel was not yet timed against it on a GPU"),
)
NAMES = tuple(backend.name for backend in BACKENDS)
PATTERN_PER_EXAMPLE = "no kernel takes a pattern for each example"
IMPLEMENTATIONS = (None, "xla", *NAMES)

# Other tools that programs are made for: their folders have the primitives in plain JAX that they
# read, in place of `xla`.
TOOLS = ("tflite",)


def check_implementation(implementation: Any) -> Implementation:
    """A ValueError for an unknown name."""
    return check_choice("implementation", implementation, IMPLEMENTATIONS)


def check_plain(implementation: Implementation, what: str) -> None:
    """A NotImplementedError for kernels where there is nothing but plain JAX."""
    if implementation in NAMES:
        raise NotImplementedError(
            f"implementation={implementation!r}: {what} has no kernels to ask for by name; None and"
            " 'xla' run it on every platform"
        )


def choose(
    call: Call, arrays: Sequence[Any], platform: str, lead: int = 0, export: bool = False
) -> Choice:
    """What a call runs on a platform (`"cpu"`, `"gpu"`, `"tpu"` or another).

    Args:
        call: the call.
        arrays: its arrays, or anything with their shapes and types.
        platform: where.
        lead: so many leading dimensions have a pattern for each of their elements.
        export: whether the program is for `jax.export`.
    """
    if call.primitive == "correlate":
        return Choice("xla", "a plain reduction, for which no backend has a kernel")
    if lead:
        return Choice("xla", PATTERN_PER_EXAMPLE)
    if platform in TOOLS:
        return Choice(platform, "plain JAX that the tool reads")
    if call.implementation is not None:
        return Choice(call.implementation, "asked for by name")
    reasons = []
    for backend in BACKENDS:
        if backend.platform != platform:
            continue
        evidence = backend.preferred.get(call.primitive)
        if evidence is None:  # before the kernels are imported
            reasons.append(backend.otherwise)
            continue
        if export and not backend.exported:
            reasons.append(f"an exported program holds no kernel of {backend.name}")
            continue
        reason = unsupported(call, arrays, backend.name)
        if reason is None:
            better = backend.outdone(call, arrays)
            return Choice("xla", better) if better else Choice(backend.name, evidence)
        reasons.append(f"{backend.name} does not serve this: {reason}")
    return Choice("xla", "; ".join(reasons) or f"there are no kernels for {platform}")


def serving(call: Call, arrays: Sequence[Any], platform: str) -> list[str]:
    """The backends of a platform that have kernels for a call."""
    there = [backend.name for backend in BACKENDS if backend.platform == platform]
    return [name for name in there if unsupported(call, arrays, name) is None]


def check_runs_on(call: Call, platform: str, export: bool) -> None:
    """A NotImplementedError where the backend asked for by name is none for such a program."""
    for backend in BACKENDS:
        if backend.name != call.implementation:
            continue
        if backend.platform != platform:
            raise NotImplementedError(
                f"implementation={backend.name!r} runs on {backend.platform}, and this program is"
                f" for {platform}; None chooses by the platform"
            )
        if export and not backend.exported:
            raise NotImplementedError(
                f"implementation={backend.name!r}: an exported program holds no kernel of it; None"
                " exports 'xla'"
            )


def check_serves(call: Call, arrays: Sequence[Any], lead: int = 0) -> None:
    """A NotImplementedError where a backend was asked for by name and does not serve the call."""
    if call.implementation not in NAMES or call.primitive == "correlate":
        return
    reason = PATTERN_PER_EXAMPLE if lead else unsupported(call, arrays, call.implementation)
    if reason is not None:
        raise NotImplementedError(
            f"implementation={call.implementation!r} has no kernel for this {call.primitive}:"
            f" {reason}; None falls back to 'xla'"
        )


def unsupported(call: Call, arrays: Sequence[Any], backend: str) -> str | None:
    """Why a backend's kernels do not serve a call; None if they do."""
    has_windows = isinstance(call.geometry, WindowGeometry)
    if not has_windows and not hasattr(folder(backend), call.primitive + "_flat"):
        return "indices without a window"
    shape = arrays[0].shape
    if call.primitive in UNPOOL:
        shape = call.geometry.unpooled_shape(shape)
    if not all(isinstance(size, int) for size in shape):
        return "a size that is not known before it runs"
    options = call.options
    if call.primitive in ("reduce", "replicate"):
        options["pattern"] = len(arrays) > 1
    dtype = carrier(call, arrays[0].dtype)
    return folder(backend).unsupported(call.primitive, call.geometry, shape, dtype, **options)


def kernel(call: Call, arrays: Sequence[Any], backend: str) -> Callable[..., Any]:
    """The function of a backend that runs a call, of its arrays alone.

    Raises:
        NotImplementedError: the backend was asked for by name and does not serve the call.
    """
    check_serves(call, arrays)  # these may be shards
    name, options = call.primitive, {"geometry": call.geometry, **call.options}
    if name == "gather" and call.duplicates == "last" and finds_winners(backend):
        name += "_last"
    if not isinstance(call.geometry, WindowGeometry):
        name += "_flat"
    run = getattr(folder(backend), name)

    def weighted(array: jax.Array, pattern: jax.Array | None = None) -> jax.Array:
        return run(array, pattern, **options)

    of_type = functools.partial(run, **options) if call.weighting is None else weighted
    return carried(of_type, call, arrays[0].dtype)


def finds_winners(backend: str) -> bool:
    """Whether one kernel reads zero where a later window names the same element."""
    return hasattr(folder(backend), "gather_last")


@functools.cache
def folder(backend: str) -> ModuleType:
    """A package of kernels, imported when a call first asks for it."""
    return importlib.import_module(f"jaxunpool.kernels.{backend}")
