"""What a call is: its spec, and what that stands for."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .draws import Settings
from .operators import Expected, Operator


@dataclasses.dataclass(frozen=True)
class Spec:
    """A call: all that is needed to make it again.

    `settings` are the keyword arguments as a user gives them. Those that begin with an underscore
    are for this file.
    """

    function: str
    sizes: tuple[int, ...]
    batch: tuple[int, ...]
    channels: int
    dtype: str
    data_format: str
    settings: Settings
    backend: str | None = None
    how: str = "batch"
    seed: int = 0
    kinds: tuple[str, ...] | None = None  # all of the type's

    @property
    def ndim(self) -> int:
        return len(self.sizes)

    @property
    def planes(self) -> int:
        return math.prod(self.batch) * self.channels

    @property
    def keywords(self) -> Settings:
        return {name: value for name, value in self.settings.items() if name[0] != "_"}

    def shape(self, sizes: Sequence[int], channels: int | None = None) -> tuple[int, ...]:
        """A full shape with spatial sizes, in the layout of the call."""
        channels = self.channels if channels is None else channels
        if self.data_format == "channels_last":
            return (*self.batch, *sizes, channels)
        return (*self.batch, channels, *sizes)

    def rng(self, *more: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *more])


@dataclasses.dataclass(frozen=True)
class Call:
    """What a spec stands for.

    Attributes:
        run: `implementation -> (x, *others) -> (y, integers)`.
        define: planes of `x` -> the operator, the result, and the integers. The result is None
            where it is what the operator gives.
        shapes: of `x` and of `y`.
        code: the call, for arrays `x` and others by their names.
        others: arrays that are the same for every input.
        result_dtype: if it is not that of `x`.
        weights: planes of `x` and of a cotangent -> the gradient by the first of the others, for
            each input.
    """

    run: Callable[[Any], Callable[..., Any]]
    define: Callable[[np.ndarray], tuple[Operator, Expected | None, list[np.ndarray]]]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    code: str
    others: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    result_dtype: str | None = None
    weights: Callable[[np.ndarray, np.ndarray], Expected] | None = None


@dataclasses.dataclass(frozen=True)
class Function:
    """How calls of a function are drawn and made.

    Attributes:
        draw: settings for a number of spatial axes; `_sizes` among them.
        make: the call of a spec; raises InvalidCallError where the library has to refuse it.
        dtypes: its types, the more frequent ones several times.
        backends: what `implementation` may be; None leaves it out.
        hows: the transformations, all by default.
        finite: of finite numbers alone, neither huge nor tiny.
        differentiable: whether it has derivatives.
        splits: whether spatial axes may be split over devices.
        signed_zeros: whether a zero keeps its sign where Auto axes split spatial axes. XLA's
            partitioner adds what the devices have, and a sum that is zero is positive.
    """

    draw: Callable[[np.random.Generator, int], Settings]
    make: Callable[[Spec], Call]
    dtypes: tuple[str, ...]
    backends: tuple[str | None, ...] = ("xla", "native_cpu")
    hows: tuple[str, ...] | None = None
    finite: bool = False
    differentiable: bool = True
    splits: bool = True
    signed_zeros: bool = True


class Name(str):
    """A name in the text of a call."""

    def __repr__(self) -> str:
        return str(self)


def implementation(name: str | None) -> Settings:
    """The argument of a backend."""
    return {} if name is None else {"implementation": name}


BACKEND = "<implementation>"  # where the text of a call has it


def text(function: str, arguments: str, keywords: Settings, has_backend: bool = True) -> str:
    """A call as code."""
    given = ", ".join([arguments, *(f"{name}={value!r}" for name, value in keywords.items())])
    return f"jup.{function}({given}{BACKEND * has_backend})"


def keywords(spec: Spec) -> Settings:
    """What a function is given, layout included."""
    layout = {} if spec.data_format == "channels_last" else {"data_format": spec.data_format}
    return {**spec.keywords, **layout}
