"""State dicts of PyTorch: read from memory or a file, and divided into layers."""

from __future__ import annotations

import os
import pathlib
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxunpool.core.messages import shown

Arrays = dict[str, np.ndarray]
Layers = dict[str, Arrays]  # entries of each layer, by their last name

PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".tar")


def read(state_dict: Any, name: str = "state_dict") -> Arrays:
    """The arrays of a mapping or of a file by name, in the order that they have there.

    Args:
        state_dict: a mapping of names to arrays or tensors, or a `.npz` or `.safetensors` file.
        name: of the argument, for errors.
    """
    if isinstance(state_dict, str | os.PathLike):
        state_dict = _read_file(pathlib.Path(state_dict), name)
    if not isinstance(state_dict, Mapping):
        hint = "; pass its state_dict()" if hasattr(state_dict, "state_dict") else ""
        raise TypeError(
            f"{name}: expected a mapping or the path of a file, got"
            f" {type(state_dict).__name__}{hint}"
        )
    arrays = {}
    for key, value in state_dict.items():
        if isinstance(value, Mapping):
            raise ValueError(f"{name}[{key!r}]: expected an array, got a mapping; pass that one?")
        if str(key).rpartition(".")[2] != "num_batches_tracked":
            arrays[str(key)] = as_numpy(f"{name}[{key!r}]", value)
    return arrays


def _read_file(path: pathlib.Path, name: str) -> Mapping[str, Any]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return {key: file[key] for key in file.files}
    if path.suffix == ".safetensors":
        from safetensors.flax import load_file  # bfloat16 too, which NumPy alone does not have

        return load_file(path)
    if path.suffix in PICKLES:
        raise ValueError(
            f"{name}: {path} is a pickle, which can run code when it is read, so it is not read"
            " here; convert it: safetensors.torch.save_file(torch.load(path, weights_only=True),"
            f" {path.with_suffix('.safetensors').name!r})"
        )
    raise ValueError(f"{name}: expected a .npz or .safetensors file, got {path}")


def as_numpy(name: str, value: Any) -> np.ndarray:
    """An array of any library, or a tensor, as a NumPy array."""
    try:
        if hasattr(value, "detach"):  # a PyTorch tensor
            value = value.detach().cpu()
            if "bfloat16" in str(value.dtype):  # which PyTorch does not give to NumPy
                value = value.float()
        array = np.asarray(value)
    except (RuntimeError, TypeError, ValueError) as error:
        raise TypeError(f"{name}: expected an array, got {type(value).__name__}") from error
    if array.dtype == object:
        raise TypeError(f"{name}: expected an array, got {shown(value)}")
    return array


def layers(arrays: Arrays, skip: str | Collection[str] = (), name: str = "state_dict") -> Layers:
    """The entries of each layer, without those that `skip` names.

    Args:
        arrays: by their full names.
        skip: full names, or their beginnings up to a dot.
        name: of the argument, for errors.
    """
    skipped = [skip] if isinstance(skip, str) else list(skip)
    for prefix in skipped:
        if not any(_is_below(key, prefix) for key in arrays):
            raise ValueError(f"skip: {name} has nothing that begins with {prefix!r}")
    found: Layers = {}
    for key, array in arrays.items():
        if any(_is_below(key, prefix) for prefix in skipped):
            continue
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name}[{key!r}]: expected floats, got {array.dtype}")
        layer, _, entry = key.rpartition(".")
        found.setdefault(layer, {})[entry] = array
    return found


def _is_below(key: str, prefix: str) -> bool:
    return key == prefix or key.startswith(f"{prefix}.")


def in_order(layers: Layers, name: str = "state_dict") -> Layers:
    """The layers in the order in which PyTorch declares them, or an error if that is not known.

    PyTorch lists a weight before its bias. Names that were sorted, as files of safetensors and
    pytrees of JAX have them, list the bias first. Then numbers alone can tell the order.
    """
    keys = [list(entries) for entries in layers.values() if {"weight", "bias"} <= set(entries)]
    if not any(key.index("bias") < key.index("weight") for key in keys):
        return layers
    if (parted := first_parting(layers)) is not None:
        raise ValueError(
            f"{name}: its names are sorted, so the order of {' and '.join(map(repr, parted))} is"
            " not known; pass the state_dict as PyTorch returns it, or names"
        )
    return {key: layers[key] for key in sorted(layers, key=natural)}


def first_parting(names: Iterable[str]) -> tuple[str, str] | None:
    """Two beginnings of names whose order no number tells; None if there are no such names."""
    children: dict[str, list[str]] = {}
    for name in names:
        parts = name.split(".")
        for depth, part in enumerate(parts):
            below = children.setdefault(".".join(parts[:depth]), [])
            if part not in below:
                below.append(part)
    for parent, below in children.items():
        if len(below) > 1 and not all(part.isdigit() for part in below):
            one, two = (".".join(filter(None, (parent, part))) for part in below[:2])
            return one, two
    return None


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key to sort names by, with their numbers as numbers."""
    return [(1, int(w), "") if w.isdigit() else (0, 0, w) for w in re.split(r"(\d+)", name)]


def described(name: str, entries: Arrays) -> str:
    """A layer as a message shows it: its name, what it looks like, its shapes."""
    shapes = ", ".join(f"{entry} {list(array.shape)}" for entry, array in entries.items())
    return f"{name or 'the module itself'} ({kind(entries)}: {shapes})"


def kind(entries: Arrays) -> str:
    """What a layer looks like, as far as its entries tell."""
    if "running_mean" in entries or "running_var" in entries:
        return "a batch normalisation"
    if "weight" not in entries:
        return "no layer that is known"
    rank = entries["weight"].ndim
    if rank >= 3:
        return f"a {rank - 2}-D convolution"
    if rank == 2:
        return "a Linear" if "bias" in entries else "a Linear or an Embedding"
    return "a normalisation" if "bias" in entries else "a PReLU or a normalisation"
