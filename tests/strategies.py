"""Random poolings, for hypothesis and for the comparison with PyTorch."""

import dataclasses
from collections.abc import Iterable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import strategies as st

THOROUGH = False  # set by conftest.py before tests are imported


def examples(fast: int, thorough: int) -> int:
    """How many random examples a test draws, in each tier."""
    return thorough if THOROUGH else fast


def only(*fast: Any, among: Iterable[Any]) -> list[Any]:
    """All parameters of a test; those not named run in the thorough tier alone."""
    marks = {False: pytest.mark.thorough, True: ()}
    as_values = lambda one: one if isinstance(one, tuple) else (one,)
    return [pytest.param(*as_values(one), marks=marks[one in fast]) for one in among]


def chunks(fast: int, thorough: int) -> list[Any]:
    """Numbers of the parts of a long test; the fast tier runs the first."""
    later = (pytest.param(i, marks=pytest.mark.thorough) for i in range(fast, thorough))
    return [*range(fast), *later]


FLOATS = [np.dtype(t) for t in (np.float16, ml_dtypes.bfloat16, np.float32, np.float64)]
INTEGERS = [np.dtype(t) for t in ("int8", "uint8", "int16", "uint16", "int32", "uint32", "int64")]


@dataclasses.dataclass(frozen=True)
class Pooling:
    """The arguments of one call."""

    sizes: tuple[int, ...]
    window: tuple[int, ...]
    strides: tuple[int, ...]
    padding: Any
    dilation: tuple[int, ...]
    ceil_mode: bool
    data_format: str
    batch: tuple[int, ...]
    channels: int

    @property
    def options(self) -> dict[str, Any]:
        return {
            "window_shape": self.window,
            "strides": self.strides,
            "padding": self.padding,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
            "data_format": self.data_format,
        }

    @property
    def shape(self) -> tuple[int, ...]:
        if self.data_format == "channels_last":
            return (*self.batch, *self.sizes, self.channels)
        return (*self.batch, self.channels, *self.sizes)


def per_axis(n, low, high):
    return st.tuples(*[st.integers(low, high)] * n)


@st.composite
def poolings(draw) -> Pooling:
    n = draw(st.integers(1, 3))
    window = draw(per_axis(n, 1, (11, 5, 3)[n - 1]))
    dilation = draw(st.one_of(st.just((1,) * n), per_axis(n, 1, 3)))
    pads = st.tuples(
        *[st.tuples(*[st.integers(0, (k - 1) * d)] * 2) for k, d in zip(window, dilation)]
    )
    return Pooling(
        sizes=draw(per_axis(n, 1, (24, 10, 6)[n - 1])),
        window=window,
        strides=draw(per_axis(n, 1, 4)),
        padding=draw(st.one_of(st.sampled_from(["VALID", "SAME", "SAME_LOWER"]), pads)),
        dilation=dilation,
        ceil_mode=draw(st.booleans()),
        data_format=draw(st.sampled_from(["channels_last", "channels_first"])),
        batch=draw(st.sampled_from([(), (2,), (1, 2)])),
        channels=draw(st.integers(1, 3)),
    )


def values(
    rng: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype, kind: str
) -> np.ndarray:
    """An array of a kind: "plain", "ties", "special" (NaN and infinities), "lowest" or "eighths".

    Eighths have so few bits that sums and products of some are exact.
    """
    is_float = dtype in FLOATS
    if kind == "lowest":
        return np.full(shape, -np.inf if is_float else np.iinfo(dtype).min, dtype)
    if not is_float:
        info = np.iinfo(dtype)
        low, high = (info.min, info.max) if kind == "plain" else (0, 3)
        return rng.integers(low, high, shape, dtype, endpoint=True)
    if kind == "eighths":
        return np.asarray(rng.integers(-64, 64, shape) / 8, dtype)
    x = rng.integers(-2, 3, shape) if kind == "ties" else rng.standard_normal(shape)
    x = np.asarray(x, dtype)
    if kind == "special":
        x[rng.random(shape) < 0.2] = -np.inf
        x[rng.random(shape) < 0.1] = np.nan
        x[rng.random(shape) < 0.1] = np.inf
    return x


KINDS = ("plain", "ties", "special", "lowest")
