"""Failures that were found once: small calls in `tests/data/fuzz`, which tests run for ever."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any

import numpy as np

from .calls import Spec
from .functions import FUNCTIONS
from .programs import Arrays
from .shrinking import Failure, failures

FOLDER = pathlib.Path(__file__).parent.parent / "data" / "fuzz"


def save(failure: Failure, folder: pathlib.Path = FOLDER) -> pathlib.Path:
    """Write a failure, and the numbers that it fails with."""
    spec, given = failure.spec, failure.given
    content = {
        "what": failure.mismatch.what,
        "found": failure.mismatch.text,
        "spec": dataclasses.asdict(spec),
        "arrays": None if given is None else [_values(array) for array in given[:3]],
    }
    text = json.dumps(content, indent=1) + "\n"
    digest = hashlib.sha256(json.dumps(content["spec"]).encode()).hexdigest()[:8]
    what = failure.mismatch.what.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{spec.function}-{what}-{digest}.json"
    path.write_text(text)
    return path


def still_wrong(path: pathlib.Path) -> list[str]:
    """What is wrong with a stored call."""
    content = json.loads(path.read_text())
    fields = content["spec"]
    kinds, settings = fields["kinds"], fields["settings"]
    fields |= {name: tuple(fields[name]) for name in ("sizes", "batch")}
    fields |= {"kinds": None if kinds is None else tuple(kinds)}
    fields |= {"settings": {name: _tuples(value) for name, value in settings.items()}}
    given = content["arrays"]
    if given is not None:
        given = Arrays(*map(_array, given), _others(Spec(**fields)))
    found = failures(Spec(**fields), given)
    return [f"{one.mismatch.what}: {one.mismatch.text}" for one in found]


def _others(spec: Spec) -> tuple[np.ndarray, ...]:
    return tuple(FUNCTIONS[spec.function].make(spec).others.values())


def _values(array: np.ndarray) -> dict[str, Any]:
    """An array in JSON, which writes NaN and infinities as Python does."""
    if array.dtype.kind == "c":
        values = np.stack([array.real, array.imag], -1).tolist()
    else:
        is_named = array.dtype.kind in "biu"
        values = array.astype(array.dtype if is_named else np.float64).tolist()
    return {"dtype": array.dtype.name, "shape": list(array.shape), "values": values}


def _array(stored: dict[str, Any]) -> np.ndarray:
    dtype, shape = np.dtype(stored["dtype"]), tuple(stored["shape"])
    values = np.asarray(stored["values"])
    if dtype.kind == "c":
        values = values.reshape(*shape, 2)
        return (values[..., 0] + 1j * values[..., 1]).astype(dtype)
    return values.reshape(shape).astype(dtype)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
