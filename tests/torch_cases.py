"""Random calls of PyTorch's max pooling and unpooling, and what it answers.

`python tests/torch_cases.py` records some answers for machines without PyTorch.
"""

import pathlib
from typing import Any

import numpy as np
from strategies import KINDS, Pooling, values

RECORDED = pathlib.Path(__file__).parent / "data" / "torch.npz"
DTYPES = ("float32", "float64", "float32", "float64", "float16", "int32", "int64", "uint8")


def random_pooling(rng: np.random.Generator) -> Pooling:
    """A call PyTorch accepts: padding is symmetric and at most half the window."""
    n = int(rng.integers(1, 4))

    def draw(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.integers(low, high + 1, n).tolist())

    window = draw(1, (9, 4, 3)[n - 1])
    dilation = draw(1, 3) if rng.random() < 0.3 else (1,) * n
    extents = [(k - 1) * d + 1 for k, d in zip(window, dilation)]
    padding = tuple(int(rng.integers(0, k // 2 + 1)) for k in window)
    return Pooling(
        sizes=tuple(
            int(rng.integers(max(1, extent - 2 * p), extent + (20, 9, 4)[n - 1]))
            for extent, p in zip(extents, padding)
        ),
        window=window,
        strides=draw(1, 4),
        padding=tuple((p, p) for p in padding),
        dilation=dilation,
        ceil_mode=bool(rng.integers(2)),
        data_format="channels_first",
        batch=(int(rng.integers(1, 3)),),
        channels=int(rng.integers(1, 4)),
    )


def random_case(seed: int) -> tuple[Pooling, np.ndarray, np.random.Generator]:
    """A call, its input, and the generator for what else is needed."""
    rng = np.random.default_rng(seed)
    pooling = random_pooling(rng)
    dtype = np.dtype(DTYPES[rng.integers(len(DTYPES))])
    return pooling, random_input(pooling, dtype, rng), rng


def random_input(pooling: Pooling, dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    """Values to pool, of any kind."""
    kind = KINDS[rng.choice(len(KINDS), p=[0.35, 0.3, 0.3, 0.05])]
    return values(rng, pooling.shape, dtype, kind)


def torch_answers(pooling: Pooling, x: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    """Pooled values, indices, the unpooled array and both gradients, with random cotangents."""
    import torch
    from torch.nn import functional as F

    torch.set_num_threads(1)  # with more, which of two equal indices is written last is a race
    n = len(pooling.sizes)
    pads = [low for low, _ in pooling.padding]
    pool = getattr(F, f"max_pool{n}d")
    is_float = x.dtype.kind == "f"
    leaf = torch.from_numpy(x).requires_grad_(is_float)
    y, indices = pool(
        leaf, pooling.window, pooling.strides, pads, pooling.dilation, pooling.ceil_mode,
        return_indices=True,
    )  # fmt: skip
    answers: dict[str, Any] = {"x": x, "y": y.detach().numpy(), "flat": indices.numpy()}
    if not is_float:
        return answers
    answers["dy"] = values(rng, tuple(y.shape), x.dtype, "plain")
    (dx,) = torch.autograd.grad(y, leaf, torch.from_numpy(answers["dy"]))
    answers["dx"] = dx.numpy()
    if x.dtype == np.float16:  # has no unpooling on CPU
        return answers
    answers["v"] = values(rng, tuple(y.shape), x.dtype, "plain")
    v = torch.from_numpy(answers["v"]).requires_grad_()
    # The operator itself: the function around it refuses sizes that dilation or ceil_mode give.
    if n == 3:
        u = torch.ops.aten.max_unpool3d(v, indices, pooling.sizes, pooling.strides, pads)
    else:
        sizes = (1, *pooling.sizes)[-2:]
        lift = (*y.shape[:2], *(1, *y.shape[2:])[-2:])
        u = torch.ops.aten.max_unpool2d(v.reshape(lift), indices.reshape(lift), sizes)
        u = u.reshape(x.shape)
    answers["u"] = u.detach().numpy()
    answers["du"] = values(rng, x.shape, x.dtype, "plain")
    (dv,) = torch.autograd.grad(u, v, torch.from_numpy(answers["du"]))
    answers["dv"] = dv.numpy()
    return answers


def record(seeds: range) -> None:
    """Write the answers for these seeds; the calls themselves are drawn again from the seed."""
    arrays = {}
    for seed in seeds:
        pooling, x, rng = random_case(seed)
        arrays |= {f"{seed}/{key}": value for key, value in torch_answers(pooling, x, rng).items()}
    RECORDED.parent.mkdir(exist_ok=True)
    np.savez_compressed(RECORDED, **arrays)


if __name__ == "__main__":
    record(range(150))
