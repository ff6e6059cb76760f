"""What shows in long runs: memory, compilations, threads, and processes that fork."""

import concurrent.futures
import gc
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from memory import resident_bytes
from namespace import TABLE, batch_for, with_gradient
from strategies import only

import jaxunpool as jup

THREADS = 16


@pytest.mark.parametrize("name", only("max_pool_with_indices", "max_unpool", among=TABLE))
def test_many_threads_at_once(name):
    """They trace, compile and run the same call together, and find the bits of one thread."""
    run, x = with_gradient(TABLE[name]), batch_for(TABLE[name])[0]
    expected = jax.jit(run)(x)
    program, start = jax.jit(lambda x: run(x)), threading.Barrier(THREADS)

    def one(_):
        start.wait(60)
        return [program(x) for _ in range(4)]

    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        found = [each for several in pool.map(one, range(THREADS)) for each in several]
    for each in found:
        jax.tree.map(np.testing.assert_array_equal, each, expected)


@pytest.mark.thorough
def test_fork_after_import():
    """Nothing runs at import, so that a child may be the first to use a device."""
    code = """
        import os, warnings
        import jaxunpool as jup, numpy as np

        warnings.simplefilter("ignore")  # JAX has threads of its own once it has run
        x = np.arange(16.0, dtype=np.float32).reshape(4, 4, 1)
        child = os.fork()  # 0 in the child
        y, indices = jup.max_pool_with_indices(x, (2, 2))
        assert np.ravel(y).tolist() == [5, 7, 13, 15]
        assert np.count_nonzero(jup.max_unpool(y, indices)) == 4
        if child:
            assert os.waitpid(child, 0)[1] == 0
    """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(command, check=True, timeout=300)


def steps(count, traced):
    """So many steps of training on changing data; `traced` grows with every compilation."""

    @jax.jit
    def step(weights, x):
        traced.append(x.shape)

        def loss(weights):
            y, indices = jup.max_pool_with_indices(x * weights, (3, 3), 2, 1)
            u = jup.max_unpool(jnp.tanh(y), indices)
            return ((u - x) ** 2).mean() + jup.avg_pool(u, (2, 2)).mean()

        return weights - 0.1 * jax.grad(loss)(weights)

    rng, weights = np.random.default_rng(0), jnp.ones(3, jnp.float32)
    sizes = []
    for number in range(count):
        weights = step(weights, rng.standard_normal((2, 9, 10, 3), np.float32))
        if number % (count // 10) == 0:
            gc.collect()
            sizes.append(resident_bytes())
    assert np.isfinite(weights).all()
    return sizes


@pytest.mark.thorough
def test_ten_thousand_steps():
    """One compilation, and no more memory at the end than after a tenth of them."""
    traced: list = []
    sizes = steps(10_000, traced)
    assert len(traced) == 1
    assert sizes[-1] - sizes[1] < 4 * 2**20, sizes


@pytest.mark.thorough
def test_many_shapes():
    """What a shape leaves behind goes with JAX's own caches."""

    def some(first):
        for size in range(first, first + 12):
            x = jnp.ones((1, size, 8, 2), jnp.float32)
            y, indices = jup.max_pool_with_indices(x, (2, 2))
            jup.max_unpool(y, indices)
            jax.grad(lambda x: jup.max_pool(x, (2, 2)).sum())(x)
        jax.clear_caches()
        gc.collect()
        return resident_bytes()

    some(8)
    arrays = len(jax.live_arrays())
    sizes = [some(8 + 12 * number) for number in range(1, 5)]
    assert len(jax.live_arrays()) == arrays
    assert sizes[-1] - sizes[1] < 30 * 2**20, sizes
