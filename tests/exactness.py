"""Results and gradients of every public function, for tests/test_exactness.py.

`python tests/exactness.py FILE` writes them to a file. `python tests/exactness.py` remakes
tests/data/exactness.npz, with which every version of JAX is compared.
"""

import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from namespace import TABLE, with_gradient

RECORDED = pathlib.Path(__file__).parent / "data/exactness.npz"
Results = dict[str, list[np.ndarray]]


def argument(name: str, x: Sequence[int], y: Sequence[int]) -> np.ndarray:
    """The array that a function takes, of shape `x` or `y`.

    Multiples of 2**-31 between -1 and 1, of which few are equal: the same on every platform.
    """
    shape = tuple(x if TABLE[name].of == "x" else y)
    numbers = np.arange(1, 1 + np.prod(shape), dtype=np.uint64) * np.uint64(2654435761)
    return (numbers % 2**32 / 2.0**31 - 1).astype(np.float32).reshape(shape)


def small(name: str) -> np.ndarray:
    return argument(name, (7, 8, 2), (4, 4, 2))


def large(name: str) -> np.ndarray:
    """Enough for several threads."""
    return argument(name, (2, 127, 128, 20), (2, 64, 64, 20))


def program(names: Sequence[str]) -> Callable[[dict[str, Any]], dict[str, list[Any]]]:
    """Results and gradients of some functions, of an argument for each."""

    def run(arguments):
        return {
            name: jax.tree.leaves(with_gradient(TABLE[name])(arguments[name])) for name in names
        }

    return run


def results(names: Sequence[str], argument: Callable[[str], np.ndarray]) -> Results:
    """What programs of one function each give."""
    found = {}
    for name in names:
        found |= jax.jit(program([name]))({name: argument(name)})
    return jax.tree.map(np.asarray, found)


def save(path: str | pathlib.Path, found: Results) -> None:
    arrays = {f"{name} {i}": leaf for name in found for i, leaf in enumerate(found[name])}
    np.savez_compressed(path, **arrays)


def load(path: str | pathlib.Path) -> Results:
    found: Results = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:  # in the order in which they were saved
            found.setdefault(key.split()[0], []).append(file[key])
    return found


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    if sys.argv[1:]:
        save(sys.argv[1], results(list(TABLE), large))
    else:
        save(RECORDED, results(list(TABLE), small))
