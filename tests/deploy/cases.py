"""What is converted: every public function, further windows and types of indices, networks."""

import dataclasses

import jax
import numpy as np
from namespace import TABLE, batch_for
from namespace import WINDOW as POOL

import jaxunpool as jup

FIRST = {"data_format": "channels_first"}
RNG = np.random.default_rng(0)


def as_arrays(run):
    """A function whose results are a list of arrays: other runtimes know no `PoolIndices`."""
    return lambda x: jax.tree.leaves(run(x))


# No other runtime has JAX's random numbers.
SAMPLES = RNG.random((1, 2, 2), np.float32)
FRACTIONAL = {
    "fractional_avg_pool": lambda x: jup.fractional_avg_pool(
        x, sequences=([0, 2, 3, 5, 7], [0, 2, 4, 6, 8])
    ),
    "fractional_max_pool": lambda x: jup.fractional_max_pool(
        x, None, sequences=([0, 2, 3, 5, 7], [0, 2, 4, 6, 8])
    ),
    "fractional_max_pool_with_indices": lambda x: jup.fractional_max_pool_with_indices(
        x, (2, 2), (4, 4), random_samples=SAMPLES
    ),
}
ENTRIES = TABLE | {
    name: dataclasses.replace(TABLE[name], run=run) for name, run in FRACTIONAL.items()
}
FUNCTIONS = {
    name: (as_arrays(entry.run), np.asarray(batch_for(entry)[:1]))
    for name, entry in ENTRIES.items()
}


def back(*sizes, shape, duplicates="last", **options):
    """Pooling, indices as a result too, and unpooling."""

    def run(x):
        y, indices = jup.max_pool_with_indices(x, *sizes, **options)
        return [y, indices.offsets, jup.max_unpool(y, indices, duplicates=duplicates)]

    return run, RNG.standard_normal(shape, np.float32)


# By windows that ONNX's operators can have: any number of axes and of dimensions before them.
WINDOWS = {
    "1d": back((3,), 2, 1, shape=(2, 9, 3)),
    "3d": back((2, 2, 2), 2, shape=(1, 4, 5, 6, 2)),
    "no batch": back((2, 2), shape=(5, 6, 3)),
    "two batches": back((2, 2), shape=(2, 2, 5, 6, 3)),
    "channels first": back((3, 3), 2, 1, shape=(2, 3, 7, 8), **FIRST),
    "same": back((3, 3), 2, "SAME", shape=(2, 7, 8, 3)),
    "unequal padding": back((3, 2), (2, 3), ((0, 2), (1, 0)), shape=(2, 7, 8, 3)),
    "dilation": back((2, 3), 2, 1, shape=(2, 9, 9, 3), dilation=(3, 2)),
    "ceil mode": back((2, 2), shape=(2, 5, 7, 3), ceil_mode=True),
    "rows left over": back((2, 2), 3, shape=(2, 9, 10, 3)),
    "sum": back((3, 3), 2, 1, shape=(2, 7, 8, 3), duplicates="sum"),
}

# By packed, flat and other frameworks' indices; other patterns and modes; gradients.
FLAT = RNG.integers(-2, 70, (1, 3, 3, 2), np.int32)
FURTHER = {
    "avg_pool same": lambda x: jup.avg_pool(x, 3, 2, "SAME", count_include_pad=False),
    "max_pool large": lambda x: jup.max_pool(x, (7, 7), 1, 3),
    "avg_unpool adjoint": lambda y: jup.avg_unpool(y, 3, 2, mode="adjoint"),
    "fixed_unpool overlapping": lambda y: jup.fixed_unpool(y, np.ones((3, 3), np.float32), 2),
    "interpolate linear": lambda x: jup.interpolate(x, (9, 5), mode="linear", antialias=True),
    "interpolate nearest": lambda x: jup.interpolate(x, scale=2),
    "lp_pool 3": lambda x: jup.lp_pool(x, 3, **POOL),
    "max_unpool flat": lambda x: jup.max_unpool(x[:, :3, :3], FLAT, output_shape=(8, 8)),
    "max_unpool flat, sum": lambda x: jup.max_unpool(
        x[:, :3, :3], FLAT // 9, output_shape=(8, 8), duplicates="sum"
    ),
    "max_unpool packed": lambda x: jup.max_unpool(*jup.max_pool_with_packed_indices(x, (2, 2))),
}
FURTHER = {
    name: (as_arrays(run), RNG.standard_normal((1, 7, 8, 2), np.float32))
    for name, run in FURTHER.items()
}


GRADIENTS = {
    f"gradient of {name}": (as_arrays(jax.grad(ENTRIES[name].loss)), FUNCTIONS[name][1])
    for name in ("max_pool", "max_unpool", "avg_pool", "avg_unpool", "adaptive_max_pool")
}


# What TFLite's interpreter would not take as other programs have it: six axes, dilation, windows
# that meet, rows that none covers, infinities in padded windows, small integers.
def awkward(run, *shape):
    return as_arrays(run), RNG.standard_normal(shape, np.float32)


def cubed(run):
    """The gradient of the sum of cubes."""
    return jax.grad(lambda x: (run(x) ** 3).sum())


def there_and_back(x, *window):
    y, indices = jup.max_pool_with_indices(x, *window)
    return [y, indices.offsets, indices.flat, jup.max_unpool(y, indices)]


OVER = ((3, 3, 3), 2, 1)
SIX = (1, 2, 5, 6, 7, 2)
POOLED = jup.max_pool_with_indices(RNG.standard_normal(SIX, np.float32), *OVER)[1]
FEW = POOLED.offsets.shape
POSITIONS = np.asarray(POOLED.flat)
PATTERNS = RNG.standard_normal((2, 2, 2, 2), np.float32)
AWKWARD = {
    "gradient, two batches": awkward(cubed(lambda x: jup.max_pool(x, *OVER)), *SIX),
    "gradient of unpooling": awkward(cubed(lambda y: jup.max_unpool(y, POOLED)), *FEW),
    "gradient of unpooling, sum": awkward(
        cubed(lambda y: jup.max_unpool(y, POOLED, duplicates="sum")), *FEW
    ),
    "flat, sum, two batches": awkward(
        lambda y: jup.max_unpool(y, POSITIONS, output_shape=(5, 6, 7), duplicates="sum"), *FEW
    ),
    "gradient of flat": awkward(
        cubed(lambda y: jup.max_unpool(y, POSITIONS, output_shape=(5, 6, 7))), *FEW
    ),
    "pool_at": awkward(lambda x: jup.pool_at(x, POOLED), *SIX),
    "mean": awkward(lambda y: jup.avg_unpool(y, *OVER), 2, 3, 4, 2, 3),
    "gradient of means": awkward(
        cubed(lambda x: jup.avg_pool(x, 3, 2, "SAME", count_include_pad=False)), 2, 7, 8, 3
    ),
    "dilated copies": awkward(
        lambda y: jup.avg_unpool(y, 2, 3, mode="adjoint", dilation=2), 2, 3, 4, 3
    ),
    "apart": awkward(lambda y: jup.fixed_unpool(y, np.ones((3, 2), np.float32), 4), 2, 3, 4, 3),
    "a pattern for each": awkward(
        jax.vmap(lambda y: jax.vmap(lambda p: jup.fixed_unpool(y, p, 1))(PATTERNS)),
        *(2, 1, 3, 4, 4, 3),
    ),
    "infinities": (
        lambda x: [*there_and_back(x, 3, 2, 1), cubed(lambda x: jup.max_pool(x, 3, 2, 1))(x)],
        RNG.choice(np.float32([-np.inf, np.inf, np.nan, 0, 1]), (2, 7, 8, 3), p=[0.8] + [0.05] * 4),
    ),
    "bool": (lambda x: jup.max_pool(x > 0, 2), RNG.standard_normal((1, 4, 4, 2), np.float32)),
    **{
        dtype: (
            lambda x: there_and_back(x, 3, 2, 1),
            RNG.integers(0, 100, (2, 7, 8, 3)).astype(dtype),
        )
        for dtype in ("int8", "uint8", "int16", "int32")
    },
    **{
        f"{dtype} flat, {how}": (
            lambda y, how=how: jup.max_unpool(y, FLAT, output_shape=(8, 8), duplicates=how),
            RNG.integers(0, 100, FLAT.shape).astype(dtype),
        )
        for dtype in ("int8", "int16")
        for how in ("last", "sum")
    },
}

# SavedModel and jax.export: one function for each way to a derivative.
SAVED = [
    "adaptive_avg_pool", "adaptive_max_pool", "avg_pool", "avg_unpool", "conv_transpose",
    "fixed_unpool", "interpolate", "lp_pool", "max_pool", "max_unpool", "nearest_unpool",
]  # fmt: skip
