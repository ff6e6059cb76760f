"""PyTorch's functions and their gradients, on random calls: 300 and more of each."""

import zlib

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="PyTorch is not installed; the oracles stand alone")

from torch_peers import MAKERS, Call  # noqa: E402

CHUNKS, CASES_PER_CHUNK = 4, 76


def compare(call: Call, rng: np.random.Generator) -> None:
    """Values, indices, and the gradients with respect to every input, for a random cotangent."""
    torch.set_num_threads(1)
    leaves = [torch.from_numpy(a).requires_grad_() for a in call.inputs]
    result = call.theirs(*leaves)
    expected, indices = result if isinstance(result, tuple) else (result, None)
    cotangent = np.asarray(rng.standard_normal(expected.shape), expected.detach().numpy().dtype)
    gradients = torch.autograd.grad(expected, leaves, torch.from_numpy(cotangent))

    @jax.jit
    def run(inputs, cotangent):
        def split(*inputs):
            result = call.ours(*inputs)
            return result if isinstance(result, tuple) else (result, None)

        y, pullback, flat = jax.vjp(split, *inputs, has_aux=True)
        return y, flat, pullback(cotangent)

    y, flat, found = run(call.inputs, cotangent)
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


@pytest.mark.parametrize("chunk", range(CHUNKS))
@pytest.mark.parametrize("name", MAKERS)
def test_random_calls_equal_pytorch(name, chunk):
    for number in range(chunk * CASES_PER_CHUNK, (chunk + 1) * CASES_PER_CHUNK):
        rng = np.random.default_rng([zlib.crc32(name.encode()), number])
        call = MAKERS[name](rng)
        try:
            compare(call, rng)
        except Exception as error:
            error.add_note(f"{name}, case {number}")
            raise
    jax.clear_caches()
