"""PyTorch's answers to the calls that it has, as those of one more backend."""

from collections.abc import Callable
from typing import Any

import numpy as np

try:
    import torch
    from torch.nn import functional as F
except ImportError:
    torch = None

from .calls import Call, Spec
from .windows import resolved

SELECTING = ("max_pool", "max_pool_with_indices")
ADAPTIVE = ("adaptive_max_pool", "adaptive_max_pool_with_indices", "adaptive_avg_pool")
GLOBAL = ("global_max_pool", "global_max_pool_with_indices", "global_avg_pool")
FRACTIONAL = ("fractional_max_pool", "fractional_max_pool_with_indices")
FUNCTIONS = (
    *SELECTING,
    *ADAPTIVE,
    *GLOBAL,
    *FRACTIONAL,
    "avg_pool",
    "interpolate",
    "conv_transpose",
)
TYPES = ("float32", "float64")


def answers_it(spec: Spec) -> bool:
    """Whether PyTorch has the call, and means the same."""
    if torch is None or spec.function not in FUNCTIONS or spec.dtype not in TYPES:
        return False
    n, settings = spec.ndim, spec.settings
    if 0 in spec.batch:
        return False
    if spec.function in (*SELECTING, "avg_pool"):
        window, _, padding, dilation, _ = resolved(spec.sizes, settings)
        if isinstance(padding, str):
            return padding == "VALID" and (spec.function != "avg_pool" or set(dilation) == {1})
        if any(low != high or low > k // 2 for (low, high), k in zip(padding, window)):
            return False
        return spec.function != "avg_pool" or (
            set(dilation) == {1} and not (n == 1 and "divisor_override" in settings)
        )
    if spec.function in FRACTIONAL:
        if "sequences" in settings or n == 1:
            return False
        room = zip(settings["output_shape"], settings["window_shape"], spec.sizes)
        return all(o + k - 1 + (n == 3) <= size for o, k, size in room)
    if spec.function == "interpolate":
        return settings["mode"] == "area"  # in others its positions are rounded
    if spec.function == "conv_transpose":
        return all(low == high for low, high in settings["padding"])
    return True


def _function(spec: Spec, others: tuple[np.ndarray, ...]) -> Callable[[Any], Any]:
    """PyTorch's function of arrays that are channels first, with one batch axis."""
    n, name, settings = spec.ndim, spec.function, spec.settings
    base = name.replace("_with_indices", "").replace("global", "adaptive")
    function = getattr(F, f"{base}{n}d", None)
    more = {"return_indices": True} if "_with_" in name else {}
    if name in (*SELECTING, "avg_pool"):
        window, strides, padding, dilation, ceil_mode = resolved(spec.sizes, settings)
        pads = (0,) * n if isinstance(padding, str) else tuple(low for low, _ in padding)
        if name == "avg_pool":
            averages = ("count_include_pad", "divisor_override")
            more = {key: settings[key] for key in averages if key in settings}
            return lambda x: function(x, window, strides, pads, ceil_mode, **more)
        return lambda x: function(x, window, strides, pads, dilation, ceil_mode, **more)
    if name in GLOBAL:
        return lambda x: function(x, 1, **more)
    if name in ADAPTIVE:
        outputs = [o or size for o, size in zip(settings["output_shape"], spec.sizes)]
        return lambda x: function(x, outputs, **more)
    if name in FRACTIONAL:
        samples = others[0].reshape(-1, spec.channels, n)
        window, outputs = settings["window_shape"], settings["output_shape"]

        def pool(x: Any) -> Any:
            repeated = np.tile(samples, (len(x) // len(samples), 1, 1))
            given = {"_random_samples": torch.from_numpy(repeated), **more}
            return function(x, window, outputs, **given)

        return pool
    if name == "interpolate":
        options = {"size": settings.get("output_shape"), "scale_factor": settings.get("scale")}
        return lambda x: F.interpolate(x, mode="area", **options)
    kernel, options = others[0], {k: v for k, v in spec.keywords.items() if k != "strides"}
    if spec.data_format == "channels_last":
        kernel = np.moveaxis(kernel, (-2, -1), (0, 1))
    options |= {"stride": settings["strides"], "padding": [low for low, _ in settings["padding"]]}
    return lambda x: function(x, torch.from_numpy(kernel.copy()), **options)


def answers(spec: Spec, call: Call) -> Callable[[Any], dict[str, Any]]:
    """A program that takes what one of the library's does."""
    torch.set_num_threads(1)
    last = spec.data_format == "channels_last"

    def into(array: np.ndarray) -> Any:
        if last:
            array = np.moveaxis(array, -1, -spec.ndim - 1)
        shape = array.shape[-spec.ndim - 1 :]
        return torch.from_numpy(np.ascontiguousarray(array).reshape(-1, *shape).copy())

    def out_of(tensor: Any, count: int) -> np.ndarray:
        array = tensor.detach().numpy()
        array = array.reshape(count, *spec.batch, *array.shape[1:])
        return np.moveaxis(array, -spec.ndim - 1, -1) if last else array

    def run(given: Any) -> dict[str, Any]:
        count, x = len(given.x), into(given.x).requires_grad_()
        found = _function(spec, given.others)(x)
        y, *indices = found if isinstance(found, tuple) else (found,)
        (dx,) = torch.autograd.grad(y, x, into(given.dy))
        return {
            "result": out_of(y, count),
            "integers": [out_of(one, count) for one in indices],
            "gradient": out_of(dx, count),
        }

    return run
