"""Random configurations of an operator: what jaxunpool answers, and what a peer does.

A row is a peer's operator. Its maker draws one call from a generator and returns a `Case`. `check`
compares `CALLS` of them, `CONFIGURATIONS` with all their inputs, and records what it found, for the
table of docs/peers.md. Compiling takes nearly all of the time; `--thorough` compiles more calls.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from strategies import examples, values

CONFIGURATIONS = 200
CALLS = examples(20, 200)
FIRST = {"data_format": "channels_first"}
Arrays = tuple[np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a library answers to one call.

    Attributes:
        value: the result.
        indices: integers that are the second result, or None.
        cotangent: what the gradients are for, or None if there are none.
        gradients: with respect to each input.
    """

    value: np.ndarray
    indices: np.ndarray | None = None
    cotangent: np.ndarray | None = None
    gradients: tuple[np.ndarray, ...] = ()


@dataclasses.dataclass(frozen=True)
class Case:
    """One call of jaxunpool and the same call of a peer.

    Attributes:
        ours: JAX arrays -> array, or (array, indices).
        theirs: inputs, and a function that gives a cotangent for a shape -> Answer.
        inputs: the first arrays; others have the same elements in another order. Gradients are
            with respect to all of them.
        rounding: how far values may differ, in units of eps of the largest value; 0 means that they
            are equal.
        gradient_rounding: the same for gradients.
        rule: where the peer's rule is another one: inputs, cotangent -> the peer's `Answer`,
            computed with NumPy. The peer has to be as close to that.
    """

    ours: Callable[..., Any]
    theirs: Callable[[Arrays, Callable[[Any], np.ndarray]], Answer]
    inputs: Arrays
    rounding: float = 0
    gradient_rounding: float = 0
    rule: Callable[[Arrays, Any], Answer] | None = None


@dataclasses.dataclass
class Found:
    """What the configurations of a row showed, for the table."""

    calls: int = 0
    configurations: int = 0
    indices: int = 0
    gradients: int = 0
    value_bound: float = 0
    value_error: float = 0
    gradient_bound: float = 0
    gradient_error: float = 0
    different: int = 0


Maker = Callable[[np.random.Generator], Case]


def check(
    peer: str,
    operator: str,
    maker: Maker,
    record_property: Callable[..., None],
    calls: int = CALLS,
) -> None:
    """Compare all configurations of a row, and record what was found."""
    found = Found()
    for number in range(calls):
        rng = np.random.default_rng([zlib.crc32(f"{peer} {operator}".encode()), number])
        try:
            case = maker(rng)
            compare(case, rng, found, CONFIGURATIONS // calls)
        except Exception as error:
            error.add_note(f"{peer}, {operator}, call {number}")
            raise
    assert found.configurations == CONFIGURATIONS
    assert (found.different > 0) == (case.rule is not None)
    record_property("row", (peer, operator, dataclasses.asdict(found)))


def compare(case: Case, rng: np.random.Generator, found: Found, count: int) -> None:
    """One call with that many inputs."""
    inputs, program = case.inputs, jax.jit(functools.partial(answer, case.ours))
    kind = "plain" if case.rule is None else "eighths"  # whose sums are exact, in any order
    cotangent = lambda shape: values(rng, tuple(shape), inputs[0].dtype, kind)
    found.calls += 1
    for _ in range(count):
        theirs = case.theirs(inputs, cotangent)
        ours = Answer(*jax.tree.map(np.asarray, program(inputs, theirs.cotangent)))
        found.configurations += 1
        found.indices += theirs.indices is not None
        found.gradients += bool(theirs.gradients)
        if case.rule is None:
            _compare(case, ours, theirs, found)
        else:
            _check_rule(case, theirs, case.rule(inputs, theirs.cotangent))
            found.different += not _is_equal(case, ours, theirs)
        inputs = tuple(rng.permuted(a.ravel()).reshape(a.shape) for a in inputs)


def _compare(case: Case, ours: Answer, theirs: Answer, found: Found) -> None:
    error = close(ours.value, theirs.value, case.rounding, "value")
    found.value_bound = max(found.value_bound, case.rounding)
    found.value_error = max(found.value_error, error)
    if theirs.indices is not None:
        np.testing.assert_array_equal(ours.indices, theirs.indices, "indices")
    for number, pair in enumerate(zip(ours.gradients, theirs.gradients, strict=True)):
        error = close(*pair, case.gradient_rounding, f"gradient {number}")
        found.gradient_bound = max(found.gradient_bound, case.gradient_rounding)
        found.gradient_error = max(found.gradient_error, error)


def answer(ours: Callable[..., Any], inputs: Any, cotangent: Any) -> tuple[Any, ...]:
    """What jaxunpool answers: values, indices, and gradients if there is a cotangent."""

    def split(*inputs: Any) -> tuple[Any, Any]:
        result = ours(*inputs)
        return result if isinstance(result, tuple) else (result, None)

    if cotangent is None:
        return *split(*inputs), None, ()
    y, pullback, indices = jax.vjp(split, *inputs, has_aux=True)
    return y, indices, cotangent, pullback(cotangent)


def close(actual: np.ndarray, expected: np.ndarray, bound: float, what: str) -> float:
    """The error, which may not be above the bound."""
    assert (actual.shape, actual.dtype) == (expected.shape, expected.dtype), what
    error = error_of(actual, expected)
    if error > bound:
        np.testing.assert_array_equal(actual, expected, f"{what}: off by {error:.1f}, not {bound}")
    return error


def error_of(actual: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference, in units of eps of the largest value; infinity for other NaN."""
    if actual.shape != expected.shape:
        return math.inf
    if np.array_equal(actual, expected, equal_nan=expected.dtype.kind == "f"):
        return 0.0
    if expected.dtype.kind != "f" or not np.isfinite([actual, expected]).all():
        return math.inf
    difference = np.abs(actual.astype(np.float64) - expected.astype(np.float64)).max()
    return float(difference / (np.finfo(expected.dtype).eps * max(1, np.abs(expected).max())))


def _check_rule(case: Case, answer: Answer, rule: Answer) -> None:
    close(answer.value, rule.value, case.rounding, "value by the peer's rule")
    if rule.indices is not None:
        np.testing.assert_array_equal(answer.indices, rule.indices, "indices by the peer's rule")
    for pair in zip(answer.gradients, rule.gradients, strict=True):
        close(*pair, case.gradient_rounding, "gradient by the peer's rule")


def _is_equal(case: Case, ours: Answer, theirs: Answer) -> bool:
    """Whether jaxunpool answers the same, where the peer has another rule."""
    return (
        error_of(ours.value, theirs.value) <= case.rounding
        and (theirs.indices is None or np.array_equal(ours.indices, theirs.indices))
        and all(
            error_of(*pair) <= case.gradient_rounding
            for pair in zip(ours.gradients, theirs.gradients)
        )
    )
