"""A call as a program: its results and derivatives, under a transformation and for a backend."""

import contextlib
import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from backend_cases import TESTED
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxunpool.core import eager, lowering

from . import pytorch
from .calls import Call, Spec
from .functions import FUNCTIONS
from .kinds import FINITE, draw, kinds_of
from .operators import Expected, to_planes

INTERPRETED = ("mosaic_tpu", "mosaic_gpu")
# How a program takes a stack of inputs.
HOWS = ("batch", "map", "vmap", "vmap of the last axis", "eager", "Auto", "Explicit")
COTANGENTS = 4  # for each kind of input
LARGE = ("wide", "bits", "largest", "huge")
PER_CALL = ("pattern", "kernel")  # arrays that are the same for every example


class Arrays(NamedTuple):
    """What a program takes: inputs, cotangents, tangents, and the arrays that all inputs share."""

    x: np.ndarray
    dy: np.ndarray
    v: np.ndarray
    others: tuple[np.ndarray, ...]


def kinds(spec: Spec) -> tuple[str, ...]:
    """The kinds of inputs that a program of the spec takes."""
    if spec.kinds is not None:
        return spec.kinds
    found = usable(spec, np.dtype(spec.dtype))
    return found[:: math.ceil(len(found) / 6)] if spec.backend in INTERPRETED else found


def names(spec: Spec) -> tuple[str, ...]:
    """The kind of each input of a program: of floats, with several cotangents and tangents."""
    several = is_differentiable(spec) and spec.backend not in INTERPRETED and spec.kinds is None
    return kinds(spec) * (COTANGENTS if several else 1)


def usable(spec: Spec, dtype: np.dtype) -> tuple[str, ...]:
    """The kinds of arrays of a type that the function takes."""
    found = tuple(kinds_of(dtype))
    if FUNCTIONS[spec.function].finite:
        found = tuple(kind for kind in found if kind in FINITE)
    if spec.function == "interpolate":  # sums along one axis can overflow before the next
        found = tuple(kind for kind in found if kind not in LARGE)
    if spec.backend == "pytorch":  # to which subnormal numbers are not zero
        found = tuple(kind for kind in found if "subnormal" not in kind and kind != "bits")
    return found


def result_dtype(spec: Spec, call: Call) -> np.dtype:
    return np.dtype(call.result_dtype or spec.dtype)


def arrays(spec: Spec, call: Call) -> Arrays:
    """Inputs of each kind, each with a cotangent and a tangent of other kinds."""
    dtype, of_result, found = np.dtype(spec.dtype), result_dtype(spec, call), []
    for number, kind in enumerate(names(spec)):
        again, text = number // len(kinds(spec)), zlib.crc32(kind.encode())
        orders, rng = spec.rng(text), spec.rng(text, again)
        choices = [orders.permutation(usable(spec, t)).tolist() for t in (of_result, dtype)]
        others = [some[again % len(some)] for some in choices]
        shapes = (call.shapes[0], call.shapes[1], call.shapes[0])
        types = (dtype, of_result, dtype)
        trio = zip((kind, *others), shapes, types)
        found.append([draw(name, rng, shape, t) for name, shape, t in trio])
    return Arrays(*map(np.stack, zip(*found)), tuple(call.others.values()))


def is_differentiable(spec: Spec) -> bool:
    is_inexact = jnp.issubdtype(np.dtype(spec.dtype), jnp.inexact)
    return FUNCTIONS[spec.function].differentiable and is_inexact


def one(spec: Spec, call: Call) -> Callable[..., dict[str, Any]]:
    """All that is compared, of one input or a batch of them."""
    run = call.run(spec.backend)
    # Where inputs are a batch, the gradient is a sum over them.
    by_weights = call.weights is not None and spec.how.startswith(("map", "vmap"))

    def program(x: Any, dy: Any, v: Any, *others: Any) -> dict[str, Any]:
        if not is_differentiable(spec):
            y, integers = run(x, *others)
            return {"result": y, "integers": integers}

        def gradient(x: Any, dy: Any) -> Any:
            weights, rest = others[:by_weights], others[by_weights:]
            split = lambda x, *weights: run(x, *weights, *rest)
            y, pull, integers = jax.vjp(split, x, *weights, has_aux=True)
            if spec.how == "Explicit":
                dy = jax.sharding.reshard(dy, jax.typeof(y).sharding)
            dx, *dw = pull(dy)
            return dx, (y, integers, dw)

        dx, again, (y, integers, dw) = jax.vjp(gradient, x, dy, has_aux=True)
        of_x, of_dy = again(v)
        found = {
            "result": y,
            "integers": integers,
            "gradient": dx,
            "gradient of the gradient": of_dy,
        }
        if spec.function != "lp_pool":  # whose gradient is not linear in x
            found["gradient of the gradient by x"] = of_x
        if spec.backend == "xla" and spec.how in ("batch", "map"):
            found["forward mode"] = jax.jvp(lambda x: run(x, *others)[0], (x,), (v,))[1]
        if by_weights:
            (found["gradient by weights"],) = dw
        return found

    return program


def compiled(spec: Spec, call: Call) -> Callable[[Arrays], dict[str, Any]]:
    """A program for arrays with the inputs first; its results are NumPy arrays."""
    how, program = spec.how, one(spec, call)
    none_or_first = [None if name in PER_CALL else 0 for name in call.others]
    if how == "map":
        program = jax.jit(lambda x, dy, v, *others: jax.lax.map(
            lambda each: one(spec, call)(*each, *others), (x, dy, v)
        ))  # fmt: skip
    elif how == "vmap":
        program = jax.jit(jax.vmap(program, (0, 0, 0, *[None] * len(call.others))))
    elif how == "vmap of the last axis":
        program = jax.jit(jax.vmap(program, (-1, -1, -1, *none_or_first)))
    elif how != "eager":
        program = jax.jit(program)

    def run(given: Arrays) -> dict[str, Any]:
        trio, others = given[:3], given.others
        if how not in ("map", "vmap"):
            others = [
                other if name in PER_CALL else np.broadcast_to(other, (len(given.x), *other.shape))
                for name, other in zip(call.others, others)
            ]
        if how == "vmap of the last axis":
            trio = [np.moveaxis(array, 0, -1) for array in trio]
        if how in ("Auto", "Explicit"):
            found = program(*sharded(spec, [*trio, *others]))
        else:
            with interpreted(spec.backend):
                found = program(*map(jnp.asarray, (*trio, *others)))
        return jax.tree.map(np.asarray, found)

    return run


def sharded(spec: Spec, given: list[np.ndarray]) -> list[Any]:
    """Arrays split over eight devices along an axis, where it divides."""
    mode = AxisType.Auto if spec.how == "Auto" else AxisType.Explicit
    mesh = jax.make_mesh((2, 4), ("one", "two"), axis_types=(mode,) * 2)
    rank, channels_last = given[0].ndim, spec.data_format == "channels_last"
    choices = list(range(rank))
    if not FUNCTIONS[spec.function].splits:
        first = rank - spec.ndim - channels_last
        choices = [axis for axis in choices if not first <= axis < first + spec.ndim]
    rng = spec.rng(20)
    axis, name = choices[rng.integers(len(choices))], ("one", "two")[rng.integers(2)]

    def placed(array: np.ndarray) -> Any:
        names: list[Any] = [None] * array.ndim
        if array.ndim == rank and array.shape[axis] % mesh.shape[name] == 0:
            names[axis] = name
        return jax.device_put(array, NamedSharding(mesh, P(*names)))

    return [placed(array) for array in given]


@contextlib.contextmanager
def interpreted(backend: str | None) -> Iterator[None]:
    """Kernels for other devices run on the CPU, one by one."""
    if backend not in INTERPRETED:
        yield
        return

    def traced(primitive: Any, call: Any, lead: int) -> Any:
        return jax.jit(functools.partial(lowering.on_device, "cpu", call, lead=lead))

    replaced = mock.patch.object(eager, "_compiled", traced)
    with replaced, TESTED[backend].runs[-1](), jax.disable_jit():
        yield


class Mismatch(NamedTuple):
    """A result that is wrong.

    Attributes:
        what: which result.
        number: of the input.
        kind: of the input.
        text: one element of it, and what was expected.
    """

    what: str
    number: int
    kind: str
    text: str


def wanted(spec: Spec, call: Call, given: Arrays) -> dict[str, Any]:
    """What the definition says of all that a program may return, by planes."""
    planes = functools.partial(to_planes, n=spec.ndim, data_format=spec.data_format)
    x = planes(given.x)
    operator, value, integers = call.define(x)
    expected = {"result": operator.apply(x) if value is None else value}
    if is_differentiable(spec):
        expected["gradient"] = operator.transpose(planes(given.dy))
        expected["gradient of the gradient"] = operator.apply(planes(given.v))
        expected["forward mode"] = expected["gradient of the gradient"]
        expected["gradient of the gradient by x"] = Expected(np.zeros_like(x), zeros=False)
        if call.weights is not None:
            expected["gradient by weights"] = call.weights(x, planes(given.dy))
    if spec.how == "Auto" and not FUNCTIONS[spec.function].signed_zeros:
        each = expected.items()
        expected = {name: dataclasses.replace(known, zeros=False) for name, known in each}
    return expected | {"integers": [Expected(array) for array in integers]}


def mismatches(spec: Spec, call: Call, given: Arrays, found: dict[str, Any]) -> list[Mismatch]:
    """All results that are not what the definition says, one of each kind."""
    expected, each, wrong = wanted(spec, call, given), names(spec), []
    for i, integers in enumerate(zip(found.pop("integers"), expected.pop("integers"), strict=True)):
        found[f"integers {i}"], expected[f"integers {i}"] = integers
    for what, result in found.items():
        shape, dtype = type_of(what, spec, call, result)
        if (result.shape, result.dtype) != ((len(each), *shape), dtype):
            text = f"{result.dtype}{list(result.shape)}, not {dtype}{[len(each), *shape]}"
            wrong.append(Mismatch(what, 0, each[0], text))
            continue
        if what == "gradient by weights":
            elements = result.reshape(len(each), -1)
        else:
            elements = to_planes(result, spec.ndim, spec.data_format)
        known = expected[what]
        differs = known.differs(elements)
        for number in np.flatnonzero(differs.reshape(len(each), -1).any(1)):
            at = (int(number), *np.argwhere(differs[number])[0].tolist())
            slack = "" if known.slack is None else f" within {float(known.slack[at]):.3g}"
            text = f"{elements[at]}, not {known.value[at]}{slack}, at {at[1:]}"
            text += f" of {elements.shape[1:]}; {int(differs[number].sum())} differ"
            wrong.append(Mismatch(what, int(number), each[number], text))
    return wrong


def type_of(what: str, spec: Spec, call: Call, result: np.ndarray) -> tuple[Any, np.dtype]:
    """The shape and type that a result has to have, for one input."""
    if what.startswith("integers"):
        return result.shape[1:], result.dtype
    if what == "gradient by weights":
        weights = next(iter(call.others.values()))
        return weights.shape, weights.dtype
    is_pooled = what in ("result", "gradient of the gradient", "forward mode")
    return call.shapes[is_pooled], result_dtype(spec, call) if is_pooled else np.dtype(spec.dtype)


def answers(spec: Spec, call: Call) -> Callable[[Arrays], dict[str, Any]]:
    """A program of the library, or PyTorch."""
    return pytorch.answers(spec, call) if spec.backend == "pytorch" else compiled(spec, call)
