"""Layers of Flax NNX, and the tensors of PyTorch's layers that their variables come from."""

from __future__ import annotations

import dataclasses
import difflib
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxunpool.nnx
from jaxunpool.core import state_dicts
from jaxunpool.core.messages import shown
from jaxunpool.core.state_dicts import Arrays, Layers

Array = np.ndarray


@dataclasses.dataclass(frozen=True)
class Entry:
    """A variable, and the tensor that it comes from.

    Args:
        variable: of the Flax layer.
        shape: of the tensor, as PyTorch has it.
        convert: from the tensor to the value of the variable.
        absent: the value if PyTorch's layer was made without it; None if it always has it.
    """

    variable: nnx.Variable
    shape: tuple[int, ...]
    convert: Callable[[Array], Array]
    absent: float | None = None


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer of a module.

    Args:
        path: of attributes, positions and keys.
        module: the layer, or a parameter of no layer that is known.
        entries: its variables by PyTorch's names; none of a parameter of no known layer.
        names: dotted names, several if the module has the layer in several places.
    """

    path: tuple[str, ...]
    module: Any
    entries: dict[str, Entry]
    names: list[str]

    def __str__(self) -> str:
        shapes = ", ".join(f"{name} {list(entry.shape)}" for name, entry in self.entries.items())
        kind = type(self.module).__name__
        return f"{self.names[0] or 'the module itself'} ({kind}{': ' * bool(shapes)}{shapes})"


Values = list[tuple[Layer, dict[str, Array]]]


# What each kind of layer has.


@functools.singledispatch
def entries_of(layer: Any) -> dict[str, Entry]:
    """The variables of a layer by PyTorch's names; none of what is no layer that is known."""
    return {}


@entries_of.register
def _(layer: nnx.Conv) -> dict[str, Entry]:
    return _kernel_and_bias(layer, swapped=True)


@entries_of.register
def _(layer: nnx.ConvTranspose) -> dict[str, Entry]:
    # Without `transpose_kernel` Flax correlates, where PyTorch transposes a correlation.
    turned = not layer.transpose_kernel
    return _kernel_and_bias(layer, swapped=not turned, turned=turned)


@entries_of.register(jaxunpool.nnx.ConvTranspose)
def _(layer: Any) -> dict[str, Entry]:
    return _kernel_and_bias(layer)


@entries_of.register
def _(layer: nnx.Linear) -> dict[str, Entry]:
    return _kernel_and_bias(layer, swapped=True)


@entries_of.register
def _(layer: nnx.LinearGeneral) -> dict[str, Entry]:
    if layer.batch_axis:
        return {}
    kernel = layer.kernel
    outputs, inputs = math.prod(layer.out_features), math.prod(layer.in_features)
    return _present(
        weight=Entry(kernel, (outputs, inputs), lambda weight: weight.T.reshape(kernel.shape)),
        bias=_reshaped(layer.bias, (outputs,), 0),
    )


@entries_of.register
def _(layer: nnx.Embed) -> dict[str, Entry]:
    return _present(weight=_as_it_is(layer.embedding))


@entries_of.register
def _(layer: nnx.PReLU) -> dict[str, Entry]:
    return _present(weight=_reshaped(layer.negative_slope, layer.negative_slope.shape or (1,)))


@entries_of.register(nnx.LayerNorm)
@entries_of.register(nnx.GroupNorm)
@entries_of.register(nnx.InstanceNorm)
@entries_of.register(nnx.RMSNorm)
def _(layer: Any) -> dict[str, Entry]:
    bias = getattr(layer, "bias", None)
    return _present(weight=_as_it_is(layer.scale, 1), bias=_as_it_is(bias, 0))


@entries_of.register
def _(layer: nnx.BatchNorm) -> dict[str, Entry]:
    return _present(
        weight=_as_it_is(layer.scale, 1),
        bias=_as_it_is(layer.bias, 0),
        running_mean=_as_it_is(layer.mean),
        running_var=_as_it_is(layer.var),
    )


def _present(**entries: Entry | None) -> dict[str, Entry]:
    return {name: entry for name, entry in entries.items() if entry is not None}


def _as_it_is(variable: Any, absent: float | None = None) -> Entry | None:
    return None if variable is None else _reshaped(variable, variable.shape, absent)


def _reshaped(variable: Any, shape: tuple[int, ...], absent: float | None = None) -> Entry | None:
    if variable is None:
        return None
    return Entry(variable, shape, lambda array: array.reshape(variable.shape), absent)


def _kernel_and_bias(
    layer: Any, *, swapped: bool = False, turned: bool = False
) -> dict[str, Entry]:
    """A kernel whose channels are last here and first in PyTorch, and its bias.

    Args:
        layer: of a kernel and perhaps a bias.
        swapped: whether the channels are in another order.
        turned: whether the spatial axes are reversed.
    """
    kernel = kernel_entry(layer.kernel, swapped=swapped, turned=turned)
    return _present(weight=kernel, bias=_as_it_is(layer.bias, 0))


def kernel_entry(variable: nnx.Variable, *, swapped: bool, turned: bool = False) -> Entry:
    """A kernel `[*window, a, b]`, in PyTorch `[a, b, *window]`, or swapped `[b, a, *window]`."""
    *window, a, b = variable.shape
    n = len(window)
    axes = (*range(2, n + 2), *((1, 0) if swapped else (0, 1)))

    def convert(kernel: Array) -> Array:
        kernel = kernel.transpose(axes)
        return np.flip(kernel, tuple(range(n))) if turned else kernel

    return Entry(variable, (*((b, a) if swapped else (a, b)), *window), convert)


# The layers of a module.


def layers_of(module: nnx.Module) -> list[Layer]:
    """Every layer with variables, in the order in which attributes were set."""
    found: dict[int, Layer] = {}
    owned: set[int] = set()  # variables of the layers that were found
    above: set[int] = set()

    def visit(node: Any, path: tuple[str, ...], name: tuple[str, ...]) -> None:
        if not isinstance(node, nnx.Pytree | nnx.Variable | list | tuple | dict):
            return
        if id(node) in owned or id(node) in above:
            return
        entries = entries_of(node)
        if id(node) in found:
            found[id(node)].names.append(".".join(name))
        elif entries or isinstance(node, nnx.Param | nnx.BatchStat):
            found[id(node)] = Layer(path, node, entries, [".".join(name)])
        owned.update(id(entry.variable) for entry in entries.values())
        above.add(id(node))
        for key, child in _children(node):
            is_list = isinstance(node, nnx.Sequential) and key == "layers"
            visit(child, (*path, key), name if is_list else (*name, key))
        above.remove(id(node))

    visit(module, (), ())
    return list(found.values())


def _children(node: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(node, nnx.Variable):
        return
    if isinstance(node, nnx.List | list | tuple):
        yield from ((str(i), child) for i, child in enumerate(node))
        return
    children = node if isinstance(node, dict) else vars(node)
    yield from (
        (str(k), child) for k, child in children.items() if not str(k).startswith("_pytree")
    )


def _check_order(layers: Sequence[Layer]) -> None:
    """An error if the order of attributes is lost: `nnx.merge` sorts them."""
    if not any(_is_sorted(layer.module) for layer in layers):
        return
    parted = state_dicts.first_parting(layer.names[0] for layer in layers)
    if parted is not None:
        raise ValueError(
            "names='order': the module comes from nnx.eval_shape, nnx.clone or nnx.merge, which"
            f" sort attributes, so the order of {' and '.join(map(repr, parted))} is not known;"
            " load into the module as its class makes it, or pass names"
        )


def _is_sorted(module: Any) -> bool:
    names = [name for name in vars(module) if not name.startswith("_")]
    return names == sorted(names) and len(names) > 1


# Pairs of layers.


def pairs(layers: list[Layer], theirs: Layers, names: Any) -> Values:
    """Each layer and the values of its variables, or an error at the first that does not fit."""
    if not isinstance(names, str):
        return _by_name(layers, theirs, names)
    if names != "order":
        raise ValueError(f"names={names!r}: expected 'order', a mapping, a function or None")
    _check_order(layers)
    return by_order(layers, state_dicts.in_order(theirs))


def by_order(layers: Sequence[Layer], theirs: Layers, name: str = "state_dict") -> Values:
    """The first layer with the first, and so on."""
    found: Values = []
    pairs = itertools.zip_longest(layers, theirs.items(), fillvalue=None)
    for i, (layer, group) in enumerate(pairs):
        if layer is not None and group is not None and fits(layer, group[1]):
            found.append((layer, _converted(layer, group[1])))
            continue
        guess = "" if layer else "; skip leaves layers out"
        raise ValueError(
            f"{name}: layer {i + 1} does not fit: the module has"
            f" {layer or f'{len(layers)} layers'}, {name} has"
            f" {state_dicts.described(*group) if group else f'{len(theirs)} layers'}"
            f"{_guess(layer, group[1]) if layer and group else guess}"
        )
    return found


def _by_name(layers: list[Layer], theirs: Layers, names: Any) -> Values:
    their_name = _naming(names, [name for layer in layers for name in layer.names])
    found: Values = []
    used: dict[str, str] = {}
    for layer in layers:
        targets = [target for name in layer.names if (target := their_name(name)) is not None]
        if not targets:
            continue
        groups = {target: theirs[target] for target in targets if target in theirs}
        if not groups or not layer.entries:
            raise ValueError(_missing(layer, targets[0], theirs))
        for target in groups:
            if target in used:
                raise ValueError(
                    f"names: {used[target]!r} and {layer.names[0]!r} both come from {target!r}"
                )
            used[target] = layer.names[0]
        found.append((layer, _converted(layer, _one_of(groups, layer))))
    left = [name for name in theirs if name not in used]
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise ValueError(
            f"state_dict: {state_dicts.described(left[0], theirs[left[0]])}{more} is for no layer"
            f" of the module; skip={left[0] or next(iter(theirs['']))!r} leaves it out"
        )
    return found


def _one_of(groups: Layers, layer: Layer) -> Arrays:
    """What a layer gets: one group, or several that are equal, of a layer in several places."""
    (first, group), *others = groups.items()
    if not fits(layer, group):
        raise ValueError(
            f"state_dict: {first or 'the module itself'} does not fit: the module has {layer},"
            f" state_dict has {state_dicts.described(first, group)}{_guess(layer, group)}"
        )
    for name, other in others:
        same = group.keys() == other.keys()
        if not same or not all(np.array_equal(group[key], other[key]) for key in group):
            raise ValueError(
                f"state_dict: {first!r} and {name!r} differ, where the module has one layer"
            )
    return group


def _naming(names: Any, ours: list[str]) -> Callable[[str], str | None]:
    """From the name of a layer to its name in the state dict."""
    if names is None:
        return lambda name: name
    if not isinstance(names, Mapping):
        if not callable(names):
            raise TypeError(
                f"names: expected 'order', a mapping, a function or None, got {shown(names)}"
            )

        def called(name: str) -> str | None:
            found = names(name)
            if not isinstance(found, str | None):
                raise TypeError(f"names: expected a name or None for {name!r}, got {shown(found)}")
            return found

        return called

    def beginning(name: str) -> str | None:
        """The longest key that a name begins with."""
        parts = name.split(".") if name else []
        tried = (".".join(parts[:n]) for n in range(len(parts), -1, -1))
        return next((each for each in tried if each in names), None)

    for key, value in names.items():
        if not isinstance(key, str) or not isinstance(value, str | None):
            raise TypeError(f"names: expected names or None, got {key!r}: {shown(value)}")
    used = {beginning(name) for name in ours}
    for key in names:
        if key not in used:
            raise ValueError(f"names: the module has no layer {key!r}{_closest(key, ours)}")

    def their_name(name: str) -> str | None:
        key = beginning(name)
        if key is None or names[key] is None:
            return None if key is not None else name
        return ".".join(filter(None, (names[key], name[len(key) :].removeprefix("."))))

    return their_name


def _missing(layer: Layer, name: str | None, theirs: Layers) -> str:
    if not layer.entries:
        return (
            f"module: {layer} belongs to no layer that load_torch knows; set it yourself, and pass"
            f" names={{{layer.names[0]!r}: None}}"
        )
    return (
        f"state_dict: no layer {name!r} for {layer} of the module{_closest(name or '', theirs)};"
        " pass names: a mapping to the names there (None keeps a layer as it is), or 'order'"
    )


def _closest(name: str, choices: Any) -> str:
    close = difflib.get_close_matches(name, list(choices), 1)
    return f"; is it {close[0]!r}?" if close else ""


def _converted(layer: Layer, group: Arrays) -> dict[str, Array]:
    found = {}
    for name, entry in layer.entries.items():
        if name in group:
            found[name] = entry.convert(group[name])
        else:
            found[name] = np.full(entry.variable.shape, entry.absent, np.float32)
    return found


def fits(layer: Layer, group: Arrays) -> bool:
    """Whether a layer takes all of a group, and finds there what it needs."""
    entries = layer.entries
    if not entries or not set(group) <= set(entries):
        return False
    there = all(name in group or entries[name].absent is not None for name in entries)
    return there and all(group[name].shape == entries[name].shape for name in group)


def _guess(layer: Layer, group: Arrays) -> str:
    """What a message adds of why a pair may not fit, if that can be told."""
    guess = _likely(layer, group)
    return f"; {guess}" if guess else ""


def _likely(layer: Layer, group: Arrays) -> str:
    entries, weight = layer.entries, group.get("weight")
    if not entries:
        return "the parameter belongs to no layer that load_torch knows; set it yourself"
    ours = entries["weight"].shape if "weight" in entries else ()
    theirs = () if weight is None else weight.shape
    n = len(theirs) - 2
    if ours == theirs:
        missing = [name for name in entries if name not in group and entries[name].absent is None]
        unknown = [name for name in group if name not in entries]
        lacking = [f"it has no {', '.join(missing)}"] if missing else []
        return "; ".join(lacking + [f"the module has no {', '.join(unknown)}"] * bool(unknown))
    if "running_mean" in entries and n >= 0:
        return "a network without this normalisation?"
    if len(ours) > 1 and len(theirs) == 1:
        return "a layer more, or layers declared in another order?"
    if len(ours) != len(theirs):
        return ""
    if n < 0:
        per_channel = isinstance(layer.module, nnx.PReLU) and ours == (1,)
        return f"nnx.PReLU(jnp.full({theirs[0]}, 0.25)) has one per channel" if per_channel else ""
    if theirs == (*ours[1::-1], *ours[2:]):
        other = "Conv" if "Transpose" in type(layer.module).__name__ else "ConvTranspose"
        return f"channels swapped: a {other}{n}d?" if n else "rows and columns swapped?"
    if ours[2:] != theirs[2:]:
        return "kernels of another size"
    return "another number of channels or groups"


# Writing, and a check by an example.


def write(values: Values) -> None:
    """Set each variable, in its type and where it is."""
    for layer, arrays in values:
        for name, array in arrays.items():
            variable = layer.entries[name].variable
            before = variable.get_value()
            value = jnp.asarray(array, before.dtype)
            if isinstance(before, jax.Array) and before.committed:
                value = jax.device_put(value, before.sharding)
            variable.set_value(value)


def check_example(
    module: nnx.Module,
    values: Values,
    example: Any,
    tolerance: float,
    run: Callable[..., Any] = lambda module, *x: module(*x),
    hint: str = "",
) -> None:
    """An error unless the module, with these values and in eval mode, maps `x` to `y`.

    Args:
        module: stays as it is.
        values: what it is to get.
        example: `(x, y)`.
        tolerance: the largest difference, as a part of the largest magnitude of `y`.
        run: what is called with the module and with `x`.
        hint: what the message adds.
    """
    if not isinstance(example, tuple | list) or len(example) != 2:
        raise TypeError(f"example: expected a pair (x, y), got {shown(example)}")
    if isinstance(tolerance, bool) or not isinstance(tolerance, int | float):
        raise TypeError(f"tolerance: expected a number, got {shown(tolerance)}")
    inputs, expected = example
    inputs = inputs if isinstance(inputs, tuple) else (inputs,)
    candidate = nnx.clone(module)
    # By any of its names: a clone may list a layer of several attributes under another path.
    places = {name: layer for layer in layers_of(candidate) for name in layer.names}
    write([(places[layer.names[0]], arrays) for layer, arrays in values])
    for layer in layers_of(candidate):
        if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(layer.module)):
            raise ValueError(f"example: layer {layer} has no values to run it with")
    candidate.eval()
    given = [jnp.asarray(state_dicts.as_numpy("example[0]", x)) for x in inputs]
    try:
        results = jax.tree.leaves(run(candidate, *given))
    except (TypeError, ValueError) as error:
        shapes = ", ".join(str(list(x.shape)) for x in given)
        raise ValueError(
            f"example: the module does not run with x of shape {shapes}; x has the module's layout,"
            f" channels last ({str(error).splitlines()[0]})"
        ) from error
    is_several = isinstance(expected, tuple | list | dict)
    wanted = jax.tree.leaves(expected) if is_several else [expected]
    if len(results) != len(wanted):
        raise ValueError(f"example: expected {len(results)} results, got {len(wanted)}")
    for result, y in zip(results, wanted):
        _compare(np.asarray(result), state_dicts.as_numpy("example[1]", y), tolerance, hint)


def _compare(result: Array, y: Array, tolerance: float, hint: str) -> None:
    if result.shape != y.shape:
        raise ValueError(
            f"example: the module returns {list(result.shape)}, y is {list(y.shape)}; both x and y"
            " have the module's layout, channels last"
        )
    largest = float(np.abs(y).max(initial=0))
    difference = float(np.abs(result.astype(np.float64) - y.astype(np.float64)).max(initial=0))
    if not difference <= tolerance * largest:  # NaN, too
        raise ValueError(
            f"example: with these weights the module's result differs from y by {difference:.3g},"
            f" where the largest magnitude of y is {largest:.3g} (tolerance={tolerance:g} of it);"
            f" nothing was changed{hint}"
        )
