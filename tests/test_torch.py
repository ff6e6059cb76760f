"""PyTorch, bit for bit: values, indices, and its gradients where they are right.

Its gradient of unpooling reads every index, overwritten ones included. That is the gradient of
`duplicates="sum"`, and of `"last"` where no index repeats.
"""

import functools

import jax
import numpy as np
import pytest
import torch_cases
from strategies import chunks

import jaxunpool as jup

try:
    import torch
except ImportError:
    torch = None

CHUNKS = 64
POOLINGS_PER_CHUNK = 9  # one or two of them cannot be compared
INPUTS_PER_POOLING = 6  # compiling is what takes time; in all more than 3,000 calls are compared


def program(pooling):
    """Everything that is compared, in one compiled program."""
    unpool = functools.partial(jup.max_unpool, data_format="channels_first")

    @jax.jit
    def run(x, dy, v, du):
        y, indices = jup.max_pool_with_indices(x, **pooling.options)
        found = {"y": y, "flat": indices.flat}
        if dy is not None:
            pool = functools.partial(jup.max_pool, **pooling.options)
            found["dx"] = jax.vjp(pool, x)[1](dy)[0]
        if v is not None:
            found["u"] = unpool(v, indices)
            add = functools.partial(unpool, indices=indices, duplicates="sum")
            found["dv"] = jax.vjp(add, v)[1](du)[0]
            if indices.geometry.overlaps:  # otherwise it is the same
                write = functools.partial(unpool, indices=indices, duplicates="last")
                found["dv_last"] = jax.vjp(write, v)[1](du)[0]
        return found

    return run


def check(run, answers):
    """Compare what the program finds with PyTorch's answers."""
    x = answers["x"]
    found = run(x, *(answers.get(key) for key in ("dy", "v", "du")))
    for key, actual in found.items():
        if key == "dv_last":
            continue
        actual, expected = np.asarray(actual), answers[key]
        if key == "flat":
            expected = expected.astype(np.int32)
        if key == "dx" and x.dtype == np.float16:
            # PyTorch rounds after every addition, we once: equal where one window is selected.
            continue
        np.testing.assert_array_equal(actual, expected, key, strict=True)
    if "dv_last" in found:
        once = np.ones(answers["flat"].shape, bool)
        for plane in np.ndindex(once.shape[:2]):
            _, inverse, counts = np.unique(
                answers["flat"][plane], return_inverse=True, return_counts=True
            )
            once[plane] = (counts == 1)[inverse].reshape(once.shape[2:])
        np.testing.assert_array_equal(np.asarray(found["dv_last"])[once], answers["dv"][once])


@pytest.mark.skipif(torch is None, reason="PyTorch is not installed; tests use recorded values")
@pytest.mark.parametrize("chunk", chunks(1, CHUNKS))
def test_random_calls_equal_pytorch(chunk):
    compared = 0
    for seed in range(chunk * POOLINGS_PER_CHUNK, (chunk + 1) * POOLINGS_PER_CHUNK):
        pooling, x, rng = torch_cases.random_case(seed)
        try:
            geometry = jup.WindowGeometry.for_input(x.shape, **pooling.options)
        except ValueError:  # PyTorch answers with an index outside the plane
            continue
        run = program(pooling)
        for _ in range(INPUTS_PER_POOLING):
            answers = torch_cases.torch_answers(pooling, x, rng)
            assert geometry.output_shape == answers["y"].shape[2:]
            check(run, answers)
            compared += 1
            x = torch_cases.random_input(pooling, x.dtype, rng)
    assert compared >= 6 * INPUTS_PER_POOLING


def recorded():
    with np.load(torch_cases.RECORDED) as file:
        arrays = dict(file)
    seeds = sorted({int(name.split("/")[0]) for name in arrays})
    return {
        seed: {name.split("/")[1]: a for name, a in arrays.items() if name.startswith(f"{seed}/")}
        for seed in seeds
    }


@pytest.mark.parametrize("chunk", chunks(1, 12))
def test_recorded_calls_equal_pytorch(chunk):
    answers = recorded()
    assert len(answers) >= 100
    for seed in list(answers)[chunk::12]:
        pooling, x, _ = torch_cases.random_case(seed)
        np.testing.assert_array_equal(x, answers[seed]["x"])
        check(program(pooling), answers[seed])
