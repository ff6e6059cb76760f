"""Linear operators on planes, in NumPy, and how near to them a result has to be.

Every function of the library is linear in its values once it is known which elements it selects.
Such an operator gives the result, its transpose the gradient, and itself again the gradient of the
gradient. Arrays are `(inputs, planes, elements)`; the two parts of complex numbers are two planes.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from .kinds import is_complex, is_float

FLUSHED = {np.dtype(t) for t in (jnp.bfloat16, np.float32, np.float64)}  # subnormal numbers, by XLA


@dataclasses.dataclass(frozen=True)
class Expected:
    """What a result has to be.

    Attributes:
        value: of the result's type; of float64 if there is a slack.
        slack: how far each element may be from it; None for the same bits. Infinite where a sum
            overflows on the way.
        zeros: the sign of a zero counts.
    """

    value: np.ndarray
    slack: np.ndarray | None = None
    zeros: bool = True

    def differs(self, found: np.ndarray) -> np.ndarray:
        """Which elements of a result are wrong."""
        if self.slack is None:
            return ~_same(found, self.value, self.zeros)
        with np.errstate(all="ignore"):
            wide = found.astype(np.float64)
            near = abs(wide - self.value) <= self.slack
        near |= (wide == self.value) | (np.isnan(wide) & np.isnan(self.value))
        return ~(near | np.isinf(self.slack))


def _same(found: np.ndarray, value: np.ndarray, zeros: bool) -> np.ndarray:
    """Equal bit for bit; but NaN has no sign, and a subnormal number may be zero."""
    if not is_float(value.dtype):
        return found == value
    with np.errstate(invalid="ignore"):  # NaN of float8
        a, b = found.astype(np.float64), value.astype(np.float64)
    same = (a == b) & ((np.signbit(a) == np.signbit(b)) | (a != 0) | (not zeros))
    same |= np.isnan(a) & np.isnan(b)
    if value.dtype in FLUSHED:
        same |= (a == 0) & (abs(b) < float(jnp.finfo(value.dtype).smallest_normal))
    return same


def flushed(x: np.ndarray) -> np.ndarray:
    """Subnormal numbers as zero, where XLA has them so on CPU; in float64."""
    with np.errstate(invalid="ignore"):
        wide = x.astype(np.float64)
    if x.dtype not in FLUSHED:
        return wide
    return np.where(abs(wide) < float(jnp.finfo(x.dtype).smallest_normal), 0 * np.sign(wide), wide)


def rounded(
    value: np.ndarray,
    terms: np.ndarray,
    magnitude: np.ndarray,
    dtype: np.dtype,
    exact: np.ndarray,
    largest: np.ndarray | None = None,
) -> Expected:
    """A sum of float64 as a result of a type.

    Args:
        value: the sum.
        terms: how many roundings there are on the way to it.
        magnitude: the sum of the magnitudes of the terms.
        dtype: of the result. Sums run in float32, or in float64 of that.
        exact: where the sum has no rounding but the one to its type.
        largest: how large it may be on the way; the magnitude by default.
    """
    sums, own = jnp.finfo(np.float64 if dtype == np.float64 else np.float32), jnp.finfo(dtype)
    with np.errstate(all="ignore"):
        narrow = float(own.eps) / 2 if own.bits < 32 else 0.0
        least = float(own.smallest_subnormal) if own.bits < 32 else float(own.smallest_normal)
        slack = terms * float(sums.eps) / 2 * magnitude * (1 + 1e-5)
        slack = slack + narrow * (np.where(np.isfinite(value), abs(value), 0) + slack)
        # Subnormal numbers may be zero, before and after products with weights of up to 4.
        slack = slack + 4 * (terms + 1) * float(sums.smallest_normal) + least
        # The sum of no element but zeros is zero, and positive.
        slack = np.where(
            exact,
            np.nan_to_num(abs(value), posinf=0) * narrow + (least if own.bits < 32 else 0),
            slack,
        )
        slack = np.where(exact & (value == 0), 0, slack)
        largest = magnitude if largest is None else largest
        too_large = (largest >= 0.99 * float(sums.max)) | (
            np.isfinite(value) & (abs(value) + slack >= float(own.max))
        )
        return Expected(value, np.where(too_large, np.inf, slack))


class Moves:
    """Each result is one element, or zero.

    Attributes:
        at: `(inputs or 1, planes or 1, results)`: the element's number; -1 for zero.
        size: how many elements there are.
        signed: a negative zero stays one.
    """

    def __init__(self, at: np.ndarray, size: int, signed: bool = True) -> None:
        self.at, self.size, self.signed = at, size, signed

    def apply(self, x: np.ndarray) -> Expected:
        at = np.broadcast_to(self.at, (*x.shape[:2], self.at.shape[2]))
        there = np.take_along_axis(x, np.maximum(at, 0), 2)
        return Expected(np.where(at < 0, np.zeros((), x.dtype), there), zeros=self.signed)

    def transpose(self, y: np.ndarray) -> Expected:
        """Sums of what was read from each element."""
        at = np.broadcast_to(self.at, y.shape)
        plane = np.arange(y.shape[0] * y.shape[1]).reshape(*y.shape[:2], 1)
        target = np.where(at < 0, 0, at) + plane * self.size
        use, shape = (at >= 0).ravel(), (*y.shape[:2], self.size)

        def added(values: np.ndarray) -> np.ndarray:
            total = np.zeros(plane.size * self.size, values.dtype)
            np.add.at(total, target.ravel()[use], values.ravel()[use])
            return total.reshape(shape)

        return sums(added, y)


class Matrix:
    """Sums of elements times weights.

    Attributes:
        weights: `(results, elements)`, or one for each input and plane.
        reads: which elements a result reads; those of weight 0 give NaN if they are not finite.
        roundings: of a result besides those of the additions.
    """

    def __init__(
        self, weights: np.ndarray, roundings: int = 4, reads: np.ndarray | None = None
    ) -> None:
        self.weights, self.roundings = weights, roundings
        self.reads = weights != 0 if reads is None else reads

    def apply(self, x: np.ndarray) -> Expected:
        return self._times(self.weights, self.reads, x)

    def transpose(self, y: np.ndarray) -> Expected:
        return self._times(np.swapaxes(self.weights, -1, -2), np.swapaxes(self.reads, -1, -2), y)

    def _times(self, weights: np.ndarray, reads: np.ndarray, x: np.ndarray) -> Expected:
        def by(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
            return (matrix @ values[..., None])[..., 0]

        if not is_float(x.dtype):
            return _of_integers(by(weights.astype(np.int64), x.astype(np.int64)), x.dtype)
        unit = bool(np.isin(weights, (0, 1)).all())
        with np.errstate(all="ignore"):
            wide = x.astype(np.float64)
            finite = np.where(np.isfinite(wide), wide, 0)
            value, magnitude = by(weights, finite), by(abs(weights), abs(finite))
            largest = np.maximum(magnitude, by(1.0 * reads, abs(finite)))  # before a division
            up, down = ((weights > 0) * 1.0), ((weights < 0) * 1.0)
            high = by(up, 1.0 * (wide == np.inf)) + by(down, 1.0 * (wide == -np.inf))
            low = by(down, 1.0 * (wide == np.inf)) + by(up, 1.0 * (wide == -np.inf))
            nan = by(up + down, 1.0 * np.isnan(wide)) + high * low
            nan = nan + by(1.0 * (reads & (weights == 0)), 1.0 * ~np.isfinite(wide))
        value = np.where(high > 0, np.inf, np.where(low > 0, -np.inf, value))
        value = np.where(nan > 0, np.nan, value)
        terms = np.broadcast_to((weights != 0).sum(-1), value.shape)
        few = _has_few_bits(finite, magnitude) if unit else np.zeros(value.shape, bool)
        terms = terms + self.roundings * (not unit)
        return rounded(value, terms, magnitude, x.dtype, few, largest)


class Transposed:
    """An operator the other way."""

    def __init__(self, of: "Moves | Matrix") -> None:
        self.apply, self.transpose = of.transpose, of.apply


Operator = Moves | Matrix | Transposed


def sums(add: Callable[[np.ndarray], np.ndarray], y: np.ndarray) -> Expected:
    """Plain sums: of integers they wrap around, of booleans they are a logical or."""
    if not is_float(y.dtype):
        return _of_integers(add(y.astype(np.int64)), y.dtype)
    with np.errstate(all="ignore"):
        wide = y.astype(np.float64)
        value, magnitude = add(wide), add(np.where(np.isfinite(wide), abs(wide), 0))
    terms = add(np.ones(y.shape))
    return rounded(value, terms, magnitude, y.dtype, _has_few_bits(wide, magnitude))


def _has_few_bits(x: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    """Where sums of eighths are exact, in any order."""
    with np.errstate(all="ignore"):
        eighths = (np.rint(8 * x) == 8 * x).all(-1, keepdims=True)
    return eighths & (magnitude < 2**20)


def _of_integers(total: np.ndarray, dtype: np.dtype) -> Expected:
    if dtype.kind == "b":
        return Expected(total != 0)
    return Expected(total.astype(dtype))


def to_planes(x: np.ndarray, n: int, data_format: str) -> np.ndarray:
    """`(inputs, *batch, *spatial, channels)` as planes; channels first likewise."""
    if data_format == "channels_last":
        x = np.moveaxis(x, -1, -n - 1)
    planes = int(np.prod(x.shape[1:-n], dtype=int))
    x = x.reshape(x.shape[0], planes, int(np.prod(x.shape[-n:])))
    return np.concatenate([x.real, x.imag], 1) if is_complex(x.dtype) else x
