"""Settings of calls, drawn at random: keyword arguments as a user gives them.

Names that begin with an underscore are for this package: `_sizes` are the spatial sizes.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

Settings = dict[str, Any]
Draw = Callable[[np.random.Generator, int], Any]
Ints = tuple[int, ...]
MOST = (12, 6, 4)  # sizes, by the number of spatial axes
WIDEST = (7, 4, 3)  # windows
WINDOW = ("window_shape", "strides", "padding", "dilation", "ceil_mode")


def axes(rng: np.random.Generator, n: int, low: int, high: int) -> Ints:
    """An int for each axis."""
    return tuple(rng.integers(low, high + 1, n).tolist())


def choice(*values: Any) -> Draw:
    """One of some values; None leaves the setting out."""
    return lambda rng, n: values[rng.integers(len(values))]


def also(base: Draw, **more: Draw) -> Draw:
    """Settings of a base, and some more."""

    def drawn(rng: np.random.Generator, n: int) -> Settings:
        settings = base(rng, n) | {name: draw(rng, n) for name, draw in more.items()}
        return {name: value for name, value in settings.items() if value is not None}

    return drawn


def windows(rng: np.random.Generator, n: int) -> Settings:
    """Windows and the sizes they are for, ordinary ones and degenerate ones."""
    sizes, window = axes(rng, n, 1, MOST[n - 1]), axes(rng, n, 1, WIDEST[n - 1])
    shape = rng.integers(12)
    if shape == 0:
        window = sizes  # the whole plane
    elif shape == 1:
        sizes = (1,) * n
    elif shape == 2:
        window = (1,) * n
    dilation = axes(rng, n, 1, 3) if rng.random() < 0.25 else (1,) * n
    reach = [(k - 1) * d for k, d in zip(window, dilation)]
    paddings = [
        None,
        "SAME",
        "SAME_LOWER",
        tuple((int(rng.integers(r + 1)), int(rng.integers(r + 1))) for r in reach),
        tuple((r + 1) // 2 for r in reach),
        int(rng.integers(min(reach) + 1)),
    ]
    settings = {
        "_sizes": sizes,
        "window_shape": window,
        "strides": None if rng.random() < 0.35 else axes(rng, n, 1, (2, 4, 9)[rng.integers(3)]),
        "padding": paddings[rng.integers(len(paddings))],
        "dilation": None if set(dilation) == {1} else dilation,
        "ceil_mode": True if rng.random() < 0.3 else None,
    }
    return {name: value for name, value in settings.items() if value is not None}


def sizes(rng: np.random.Generator, n: int) -> Settings:
    return {"_sizes": axes(rng, n, 1, MOST[n - 1])}


def plane(rng: np.random.Generator, n: int) -> Settings:
    """A plane that raw indices are for."""
    return {**sizes(rng, n), "output_shape": axes(rng, n, 1, (200, 16, 6)[n - 1])}


def parts(rng: np.random.Generator, n: int) -> Settings:
    """Output sizes, also larger than the input; None keeps an axis."""
    outputs = axes(rng, n, 1, MOST[n - 1] + 1)
    kept = rng.random(n) < 0.1
    return {**sizes(rng, n), "output_shape": tuple(
        None if is_kept else size for is_kept, size in zip(kept, outputs)
    )}  # fmt: skip


def position(rng: np.random.Generator, n: int) -> Any:
    return (None, int(rng.integers(3)), axes(rng, n, 0, 2))[rng.integers(3)]


def sequences(rng: np.random.Generator, n: int) -> Settings:
    """Increasing numbers from 0 to the size."""
    found = sizes(rng, n)
    inner = [np.flatnonzero(rng.random(size - 1) < 0.5) + 1 for size in found["_sizes"]]
    found["sequences"] = tuple(
        (0, *some.tolist(), size) for some, size in zip(inner, found["_sizes"])
    )
    return found | ({"overlapping": True} if rng.random() < 0.5 else {})


def fractional(rng: np.random.Generator, n: int) -> Settings:
    """Sequences, or a window and random samples."""
    if rng.random() < 0.5:
        return sequences(rng, n)
    found = sizes(rng, n)
    window = tuple(int(rng.integers(1, min(size, 4) + 1)) for size in found["_sizes"])
    outputs = tuple(int(rng.integers(1, n - k + 2)) for n, k in zip(found["_sizes"], window))
    return {**found, "window_shape": window, "output_shape": outputs}


def interpolation(rng: np.random.Generator, n: int) -> Settings:
    """All modes; scales are exact, so that they mean a fraction."""
    mode = ("nearest", "nearest-exact", "linear", "cubic", "area")[rng.integers(5)]
    found = {**sizes(rng, n), "mode": mode}
    if rng.random() < 0.5:
        found["output_shape"] = axes(rng, n, 1, MOST[n - 1] + 3)
    else:
        found["scale"] = tuple((rng.integers(1, 25, n) / 8).tolist())
    rules: list[Settings] = [
        {"align_corners": True},
        {"coordinates": "asymmetric"},
        {"antialias": True},
        {"antialias": True, "coordinates": "align_corners"},
        {},
    ]
    return found | (rules[rng.integers(5)] if mode in ("linear", "cubic") else {})


def _kernel(rng: np.random.Generator, n: int) -> tuple[Settings, Ints, Ints, Ints]:
    """Sizes of what is convolved and of the kernel; window, strides and dilation."""
    window, strides = axes(rng, n, 1, (4, 3, 2)[n - 1]), axes(rng, n, 1, (4, 3, 2)[n - 1])
    found = {"_sizes": axes(rng, n, 1, (9, 5, 3)[n - 1]), "_window": window}
    return {**found, "_outputs": int(rng.integers(1, 3))}, window, strides, axes(rng, n, 1, 2)


def convolution(rng: np.random.Generator, n: int) -> Settings:
    found, window, strides, dilation = _kernel(rng, n)
    pads = tuple(axes(rng, 2, -1, (k - 1) * d + 1) for k, d in zip(window, dilation))
    return found | {
        "window_strides": strides,
        "padding": pads,
        "rhs_dilation": dilation,
        "feature_group_count": int(rng.integers(1, 3)),
    }


def transposed(rng: np.random.Generator, n: int) -> Settings:
    found, window, strides, dilation = _kernel(rng, n)
    pads = tuple(axes(rng, 2, 0, (k - 1) * d + 1) for k, d in zip(window, dilation))
    extra = tuple(int(rng.integers(max(s, d))) for s, d in zip(strides, dilation))
    return found | {
        "strides": strides,
        "padding": pads,
        "dilation": dilation,
        "output_padding": extra,
        "groups": int(rng.integers(1, 3)),
    }
