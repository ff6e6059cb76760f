"""Record PyTorch's results, so that the notebooks need no PyTorch.

`python notebooks/record_pytorch.py` writes jaxunpool/apps/pytorch.json.
"""

import json
import pathlib
from typing import Any

import torch
from torch.nn import functional as F

RECORDED = pathlib.Path(__file__).parent.parent / "jaxunpool/apps/pytorch.json"


def four_by_four() -> dict[str, Any]:
    """The example of PyTorch's documentation, unpooled to its size and to another."""
    x = torch.arange(1.0, 17).reshape(1, 1, 4, 4)
    y, indices = F.max_pool2d(x, 2, return_indices=True)
    return {
        "x": x,
        "y": y,
        "indices": indices,
        "unpooled": F.max_unpool2d(y, indices, 2),
        "unpooled_to_5x5": F.max_unpool2d(y, indices, 2, output_size=(5, 5)),
    }


def overlapping() -> dict[str, Any]:
    """Windows that share maxima: unpooling, its gradient, and its differences."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randperm(25, generator=generator, dtype=torch.float64).reshape(1, 1, 5, 5)
    weights = torch.randint(1, 10, (1, 1, 5, 5), generator=generator).double()
    y, indices = F.max_pool2d(x, 3, 1, return_indices=True)

    def loss(y: torch.Tensor) -> torch.Tensor:
        return (weights * F.max_unpool2d(y, indices, 3, 1)).sum()

    steps = torch.eye(y.numel(), dtype=y.dtype).reshape(-1, *y.shape)
    differences = [(loss(y + step) - loss(y - step)) / 2 for step in steps]
    return {
        "x": x,
        "weights": weights,
        "y": y,
        "indices": indices,
        "unpooled": F.max_unpool2d(y, indices, 3, 1),
        "gradient": torch.func.grad(loss)(y),
        "differences": torch.stack(differences).reshape(y.shape),
    }


def ties_and_nan() -> dict[str, Any]:
    """Equal elements, and NaN: which one is selected."""
    nan = float("nan")
    x = torch.tensor([[[3.0, 3, 1, nan], [3, 3, nan, 2]]])
    y, indices = F.max_pool2d(x, 2, return_indices=True)
    return {"indices": indices, "is_nan": y.isnan()}


def upsampled() -> dict[str, Any]:
    """A 2x3 array resized, and a transposed convolution with output padding."""
    x = torch.tensor([[[[1.0, 2, 4], [8, 16, 32]]]])
    kernel = torch.arange(1.0, 10).reshape(1, 1, 3, 3)
    sizes = {"size": (5, 7)}
    return {
        "x": x,
        "nearest": F.interpolate(x, **sizes, mode="nearest"),
        "bilinear": F.interpolate(x, **sizes, mode="bilinear"),
        "bicubic": F.interpolate(x, **sizes, mode="bicubic", align_corners=True),
        "area": F.interpolate(x, **sizes, mode="area"),
        "conv_transpose": F.conv_transpose2d(x, kernel, stride=2, padding=1, output_padding=1),
    }


def main() -> None:
    """Write the answers of one thread: with more, which duplicate is kept is a race."""
    torch.set_num_threads(1)
    cases = (four_by_four, overlapping, ties_and_nan, upsampled)
    answers: dict[str, Any] = {"version": torch.__version__.partition("+")[0]}
    for case in cases:
        answers[case.__name__] = {name: array.tolist() for name, array in case().items()}
    RECORDED.write_text(json.dumps(answers) + "\n")


if __name__ == "__main__":
    main()
