"""A failure made small: fewer axes, elements and settings, simpler values, still failing."""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from .calls import BACKEND, Spec
from .functions import FUNCTIONS
from .programs import Arrays, Mismatch, answers, arrays, mismatches, usable
from .windows import InvalidCallError

# What a backend may raise for a call that it does not serve; PyTorch, for windows in the padding.
REFUSALS = {None: (), "xla": (), "pytorch": RuntimeError}
REQUIRED = ("window_shape", "output_shape", "sequences", "mode", "norm_type", "scale")


@dataclasses.dataclass(frozen=True)
class Failure:
    """A spec of one kind of input, the arrays, and what is wrong."""

    spec: Spec
    given: Arrays | None
    mismatch: Mismatch


class UnservedError(Exception):
    """A backend has no kernel for a call."""


def failures(spec: Spec, given: Arrays | None = None) -> list[Failure]:
    """Everything that is wrong with a spec; an error of the library too.

    Raises:
        UnservedError: the spec names a backend that has no kernel for it.
    """
    call = FUNCTIONS[spec.function].make(spec)
    made = arrays(spec, call) if given is None else given
    try:
        wrong = mismatches(spec, call, made, answers(spec, call)(made))
    except Exception as error:
        if isinstance(error, REFUSALS.get(spec.backend, NotImplementedError)):
            raise UnservedError(str(error)) from error
        text = str(error).partition("\n")[0]
        return [Failure(spec, None, Mismatch(type(error).__name__, 0, "", text))]
    found = []
    for one in wrong:
        number = one.number
        only = Arrays(*(array[number : number + 1] for array in made[:3]), made.others)
        found.append(Failure(dataclasses.replace(spec, kinds=(one.kind,)), only, one))
    return found


def smaller(failure: Failure, attempts: int = 150) -> Failure:
    """The smallest call found in so many attempts that is wrong in the same way."""
    left, improved = iter(range(attempts)), True
    while improved:
        improved = False
        for spec, _ in zip(simpler(failure.spec), left):
            if (found := _same(spec, failure.mismatch.what)) is not None:
                failure, improved = found, True
                break
    return failure if failure.given is None else _zeroed(failure, attempts)


def _same(spec: Spec, what: str) -> Failure | None:
    """The failure of a spec that is like another."""
    try:
        found = failures(spec)
    except (InvalidCallError, UnservedError, NotImplementedError, ValueError, KeyError, IndexError):
        return None
    return next((one for one in found if one.mismatch.what == what), None)


def simpler(spec: Spec) -> Iterator[Spec]:
    """Specs that are a step simpler, the largest steps first."""
    change: Callable[..., Spec] = lambda **changes: dataclasses.replace(spec, **changes)
    if spec.kinds is None:
        yield change(kinds=usable(spec, np.dtype(spec.dtype))[:1])
    if spec.how != "batch" and spec.backend not in ("mosaic_tpu", "mosaic_gpu"):
        yield change(how="batch")
    for axis in range(spec.ndim):
        if spec.ndim > 1:
            yield _without_axis(spec, axis)
    for batch in ((), (1,)):
        if len(spec.batch) > len(batch):
            yield change(batch=batch)
    if spec.channels > 1:
        yield change(channels=1)
    if spec.data_format != "channels_last":
        yield change(data_format="channels_last")
    for name in spec.settings:
        if name not in REQUIRED:
            yield change(settings={k: v for k, v in spec.settings.items() if k != name})
    for dtype in ("float32", "int32"):
        if spec.dtype not in ("float32", dtype) and dtype in FUNCTIONS[spec.function].dtypes:
            yield change(dtype=dtype, kinds=None)
    simple = ("ones", "ties", "plain")
    if spec.kinds and spec.kinds[0] not in simple:
        for kind in set(simple) & set(usable(spec, np.dtype(spec.dtype))):
            yield change(kinds=(kind,))
    for sizes in _less(spec.sizes, 1):
        yield change(sizes=sizes)
    for name, value in spec.settings.items():
        least = 0 if name in ("padding", "position", "output_padding") else 1
        if isinstance(value, tuple) and value and isinstance(value[0], int):
            for less in _less(value, least):
                yield change(settings={**spec.settings, name: less})


def _less(values: tuple[int, ...], least: int) -> Iterator[tuple[int, ...]]:
    for i, value in enumerate(values):
        for less in dict.fromkeys((least, value // 2, value - 1)):
            if least <= less < value:
                yield (*values[:i], less, *values[i + 1 :])


def _without_axis(spec: Spec, axis: int) -> Spec:
    """The call with a spatial axis less."""
    cut = lambda values: values[:axis] + values[axis + 1 :]
    settings = {
        name: cut(value) if isinstance(value, tuple) and len(value) == spec.ndim else value
        for name, value in spec.settings.items()
    }
    return dataclasses.replace(spec, sizes=cut(spec.sizes), settings=settings)


def _zeroed(failure: Failure, attempts: int) -> Failure:
    """Elements that do not matter become zero."""
    spec, what = failure.spec, failure.mismatch.what
    call = FUNCTIONS[spec.function].make(spec)
    run = answers(spec, call)
    given = failure.given
    assert given is not None
    for which in range(3):
        for element in np.flatnonzero(given[which])[:attempts]:
            changed = given[which].copy()
            changed.flat[element] = 0
            attempt = given._replace(**{given._fields[which]: changed})
            wrong = [m for m in mismatches(spec, call, attempt, run(attempt)) if m.what == what]
            if wrong:
                given = attempt
                failure = Failure(spec, given, wrong[0])
    return failure


def code(failure: Failure) -> str:
    """A few lines that a user can paste, and what is wrong with what they give."""
    spec, given = failure.spec, failure.given
    call = FUNCTIONS[spec.function].make(spec)
    lines = ["import jax", "import jax.numpy as jnp", "import jaxunpool as jup", ""]
    if "64" in spec.dtype or "128" in spec.dtype:
        lines.insert(3, 'jax.config.update("jax_enable_x64", True)')
    named = {} if given is None else {"x": given.x[0]}
    what = failure.mismatch.what
    if given is not None and "gradient" in what:
        named["dy"] = given.dy[0]
    if given is not None and ("of the gradient" in what or "forward" in what):
        named["v"] = given.v[0]
    for name, array in {**named, **call.others}.items():
        lines.append(f"{name} = {_array(array)}")
    if given is None:
        lines.append(f"x = jnp.ones({call.shapes[0]}, {spec.dtype!r})")
    is_named = spec.backend not in (None, "pytorch")
    named_backend = f", implementation={spec.backend!r}" if is_named else ""
    lines.append(f"run = lambda x: {call.code.replace(BACKEND, named_backend)}")
    pull = "lambda dy: jax.vjp(run, x)[1](dy)[0]"
    lines += {
        "gradient": [f"pull = {pull}", "print(pull(dy))"],
        "gradient of the gradient": [f"pull = {pull}", "print(jax.vjp(pull, dy)[1](v)[0])"],
        "forward mode": ["print(jax.jvp(run, (x,), (v,))[1])"],
    }.get(what, ["print(run(x))"])
    how = {"batch": "under `jit`", "eager": "without `jit`"}.get(spec.how, f"under {spec.how}")
    lines.append(f"# {what}, {how}: {failure.mismatch.text}")
    return "\n".join(lines)


def _array(array: np.ndarray) -> str:
    values = array.astype(np.float64 if array.dtype.kind in "fV" else array.dtype).tolist()
    text = repr(values).replace("nan", "jnp.nan").replace("inf", "jnp.inf")
    return f"jnp.array({text}, {array.dtype.name!r})"
