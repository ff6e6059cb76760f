"""What errors say: values in short, and what a name or value of another library is called here.

`public` is around every public function and the constructor of every module. It does nothing until
a call fails, so that a right call pays for no checks of how it was made.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import re
import reprlib
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import jax
from jax.errors import InconclusiveDimensionOperation

Function = TypeVar("Function", bound=Callable[..., Any])

# Settings: arguments that a program is made of, and that cannot be traced.
STATIC = """
    align_corners antialias ceil_mode coordinates count_include_pad data_format dilation
    divisor_override duplicates groups implementation include_batch_in_index mode output_padding
    output_ratio output_shape overlapping padding position pseudo_random scale sequences
    spatial_ndim storage_order strides window_shape
""".split()  # noqa: SIM905, as readable

# Names of PyTorch, TensorFlow, Keras, ONNX, Flax and JAX. Of several names here, the function has
# the first, or else the next.
_WINDOW = ("window_shape", "kernel_size", "pattern")
_SIZE = ("output_shape", "scale")
_ARRAY = ("x", "y", "pool_input")
_ARGUMENTS = {
    "kernel_size": _WINDOW,
    "kernel_shape": _WINDOW,
    "ksize": _WINDOW,
    "pool_size": _WINDOW,
    "window": _WINDOW,
    "window_size": _WINDOW,
    "window_dimensions": _WINDOW,
    "size": ("window_shape", "output_shape"),
    "stride": ("strides",),
    "window_strides": ("strides",),
    "pad": ("padding",),
    "pads": ("padding",),
    "auto_pad": ("padding",),
    "dilations": ("dilation",),
    "dilation_rate": ("dilation",),
    "kernel_dilation": ("dilation",),
    "rhs_dilation": ("dilation",),
    "window_dilation": ("dilation",),
    "output_size": _SIZE,
    "output_ratio": _SIZE,
    "pooling_ratio": ("output_ratio", *_SIZE),
    "shape": _SIZE,
    "scale_factor": ("scale", "window_shape"),
    "scales": ("scale", "window_shape"),
    "input": _ARRAY,
    "inputs": _ARRAY,
    "image": _ARRAY,
    "images": _ARRAY,
    "operand": _ARRAY,
    "tensor": _ARRAY,
    "value": _ARRAY,
    "x": ("y", "pool_input"),
    "y": ("x", "unpool_input"),
    "argmax": ("indices",),
    "ind": ("indices",),
    "filter": ("kernel",),
    "filters": ("kernel", "features", "out_features"),
    "weight": ("kernel",),
    "in_channels": ("in_features",),
    "out_channels": ("out_features", "features"),
    "feature_group_count": ("groups",),
    "data_layout": ("data_format",),
    "interpolation": ("mode",),
    "method": ("mode",),
    "coordinate_transformation_mode": ("coordinates",),
    "p": ("norm_type",),
    "rng": ("key", "rngs"),
    "seed": ("key", "rngs"),
    "_random_samples": ("random_samples",),
    "row_pooling_sequence": ("sequences",),
    "col_pooling_sequence": ("sequences",),
}
_INDICES = ("return_indices", "return_mask", "include_indices")

# Values likewise, without capitals and signs between words.
_VALUES = {
    **dict.fromkeys(("nwc", "nhwc", "ndhwc", "nlc", "hwc"), "channels_last"),
    **dict.fromkeys(("ncw", "nchw", "ncdhw", "ncl", "chw"), "channels_first"),
    **dict.fromkeys(("bilinear", "trilinear"), "linear"),
    "bicubic": "cubic",
    **dict.fromkeys(("average", "avg"), "mean"),
    "add": "sum",
    "transpose": "adjoint",
    "sameupper": "SAME",
    **dict.fromkeys(("notset", "none"), "VALID"),
    "cuda": "gpu",
    "jax": "xla",
    "native": "native_cpu",
    "cpu": "native_cpu",
    "gpu": "mosaic_gpu",
    "tpu": "mosaic_tpu",
}
_PADDINGS = {
    "full": "is the window's size - 1 here, as an int",
    "causal": "is a pair (size - 1, 0) per axis here, with the window's size",
    **dict.fromkeys(
        ("reflect", "circular", "wrap", "edge", "replicate", "constant"),
        "is jnp.pad before the call",
    ),
}


class _Short(reprlib.Repr):
    """Values in one short line: arrays by type and shape, long sequences and texts cut."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = 60
        self.maxlevel = 3

    def repr1(self, x: Any, level: int) -> str:
        traced = isinstance(x, jax.core.Tracer)
        if traced or (hasattr(x, "dtype") and x.ndim):
            return f"{'a traced ' * traced}{x.dtype}[{','.join(map(str, x.shape))}]"
        return super().repr1(x, level)


_SHORT = _Short()


def shown(value: Any) -> str:
    """A value as a message shows it."""
    return " ".join(_SHORT.repr(value).split())


def named(value: Any, choices: Collection[Any]) -> str:
    """What a message adds about a wrong choice: the one that is meant, if that can be told."""
    if not isinstance(value, str):
        return ""
    plain = {_plain(choice): choice for choice in choices if isinstance(choice, str)}
    meant = _VALUES.get(_plain(value))
    if meant not in choices:
        close = difflib.get_close_matches(_plain(value), plain, 1, 0.75)
        meant = plain[close[0]] if close else None
    return "" if meant is None else f"; {shown(value)} is {meant!r} here"


def named_padding(value: str, choices: Collection[str]) -> str:
    """The same of a word for padding."""
    note = _PADDINGS.get(_plain(value))
    return f"; {shown(value)} {note}" if note else named(value, choices)


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", text.lower())


def public(function: Function, title: str = "") -> Function:
    """The same function, whose errors say which argument or which kind of value was meant."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (TypeError, ValueError):
            problem = _problem(function, title or function.__name__, args, kwargs)
            if problem is None:
                raise
            raise TypeError(problem) from None
        except InconclusiveDimensionOperation as error:
            raise ValueError(_open(function, args, kwargs, error)) from None

    return call  # type: ignore[return-value]


def _problem(
    function: Callable[..., Any], title: str, args: Sequence[Any], kwargs: dict[str, Any]
) -> str | None:
    """What is wrong with how a function was called, if the call itself shows it."""
    signature = inspect.signature(function)
    takes_any = inspect.Parameter.VAR_KEYWORD in {p.kind for p in signature.parameters.values()}
    for name in kwargs:
        if name not in signature.parameters and not takes_any:
            names = [each for each in signature.parameters if each not in ("self", "parent")]
            return f"{title}() has no argument {name!r}: {_meant(name, names, title)}"
    try:
        given = signature.bind(*args, **kwargs).arguments
    except TypeError:
        return None  # Python's message names the argument
    traced = [name for name in given if name in STATIC and _is_traced(given[name])]
    if not traced:
        return None
    first = traced[0]
    way = f"pass static_argnames={traced} to jax.jit, or jit a function that sets it itself:"
    way += f" jax.jit(functools.partial({title}, {first}=...))"
    if inspect.isfunction(function) and function.__name__ == "__init__":
        way = "make the module outside of the function that is traced"
    return f"{first}: expected a static value, got {shown(given[first])}; {way}"


def _open(
    function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], error: Exception
) -> str:
    """What to do where symbolic sizes leave open what depends on them."""
    given = inspect.signature(function).bind(*args, **kwargs).arguments
    shapes = {name: getattr(value, "shape", ()) for name, value in given.items()}
    if "shape" in given:  # of WindowGeometry, for an array of this name
        shapes = {given.get("name", "y"): given["shape"]}
    symbolic = (
        name for name, shape in shapes.items() if not all(isinstance(n, int) for n in shape)
    )
    name = next(symbolic, "x")
    shape = shapes.get(name)
    reason = " ".join(str(error).partition("\n")[0].split())
    return (
        f"{name}: shape {shape} has symbolic sizes that leave this call open ({reason}); give"
        " jax.export.symbolic_shape constraints such as 'h >= 8', or multiples such as '8*h'"
    )


def _meant(name: str, names: list[str], title: str) -> str:
    if name in _INDICES and re.search("(max|min)_?pool$", title.lower()):
        other = f"{title}_with_indices" if title.islower() else f"{title}WithIndices"
        return f"{other} returns the indices too"
    if name in _INDICES:
        return "the name of a function says whether it returns indices"
    for meant in _ARGUMENTS.get(name, ()):
        if meant in names:
            return f"it is {meant!r} here"
    close = difflib.get_close_matches(name, names, 1)
    if close:
        return f"is it {close[0]!r}?"
    return f"expected some of {', '.join(names)}"


def _is_traced(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_traced, value))
    return isinstance(value, jax.core.Tracer)
