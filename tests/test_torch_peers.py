"""PyTorch's functions and their gradients, on random calls: 300 and more of each."""

import zlib

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; the oracles stand alone")

from strategies import chunks  # noqa: E402
from torch_peers import MAKERS, Call  # noqa: E402

CHUNKS, CASES_PER_CHUNK = 18, 3
INPUTS_PER_CASE = 6  # compiling is what takes time


def program(call: Call):
    """Values, indices, and the gradients with respect to every input, in one compiled program."""

    @jax.jit
    def run(inputs, cotangent):
        def split(*inputs):
            result = call.ours(*inputs)
            return result if isinstance(result, tuple) else (result, None)

        y, pullback, flat = jax.vjp(split, *inputs, has_aux=True)
        return y, flat, pullback(cotangent)

    return run


def compare(call: Call, run, inputs: tuple[np.ndarray, ...], rng: np.random.Generator) -> None:
    """What the program finds and what PyTorch does, for a random cotangent."""
    torch.set_num_threads(1)
    leaves = [torch.from_numpy(a).requires_grad_() for a in inputs]
    result = call.theirs(*leaves)
    expected, indices = result if isinstance(result, tuple) else (result, None)
    cotangent = np.asarray(rng.standard_normal(expected.shape), expected.detach().numpy().dtype)
    gradients = torch.autograd.grad(expected, leaves, torch.from_numpy(cotangent))
    y, flat, found = run(inputs, cotangent)
    close(y, expected.detach().numpy(), call.rounding, "value")
    if indices is not None:
        np.testing.assert_array_equal(np.asarray(flat), indices.numpy())
    for number, (ours, theirs) in enumerate(zip(found, gradients, strict=True)):
        close(ours, theirs.numpy(), call.gradient_rounding, f"gradient {number}")


def close(actual: jax.Array, expected: np.ndarray, units: float, what: str) -> None:
    scale = max(1.0, np.abs(expected[np.isfinite(expected)]).max(initial=0))
    tolerance = units * np.finfo(expected.dtype).eps * scale
    actual = np.asarray(actual)
    assert actual.dtype == expected.dtype
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=what, strict=True)


@pytest.mark.few(10)
@pytest.mark.parametrize("chunk", chunks(1, CHUNKS))
@pytest.mark.parametrize("name", MAKERS)
def test_random_calls_equal_pytorch(name, chunk):
    for number in range(chunk * CASES_PER_CHUNK, (chunk + 1) * CASES_PER_CHUNK):
        rng = np.random.default_rng([zlib.crc32(name.encode()), number])
        call = MAKERS[name](rng)
        try:
            run, inputs = program(call), call.inputs
            for _ in range(INPUTS_PER_CASE):
                compare(call, run, inputs, rng)
                inputs = tuple(rng.permuted(a.ravel()).reshape(a.shape) for a in inputs)
        except Exception as error:
            error.add_note(f"{name}, case {number}")
            raise
