"""The reference: an entry for every public name, made from `__all__`.

A page says with a mark which entries it has: `<!-- entries: pooling -->`; `api/index.md` has tables
of them. Modules are made from the functions when imported, so their entries are written here.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from inspect import Parameter
from typing import Any

from mkdocs.structure.pages import Page

import jaxunpool
from jaxunpool import interop, linen, nnx

MARK = re.compile(r"<!-- (entries|table): (\w+) -->")
WRITTEN_OUT = ("Inverse", "Paired")  # classes like any others
OF_FLAX = ("parent", "name")
INPUTS = {"x": "x = jnp.ones((2, 6, 8, 3))", "y": "y = jnp.ones((2, 3, 4, 3))"}
# For the example of a module: settings, arguments of the call, results, and the shape of the first.
EXAMPLES = {
    "AdaptiveAvgPool": ("(3, 2)", "x", "y", (2, 3, 2, 3)),
    "AdaptiveMaxPool": ("(3, 2)", "x", "y", (2, 3, 2, 3)),
    "AdaptiveMaxPoolWithIndices": ("(3, 2)", "x", "y, indices", (2, 3, 2, 3)),
    "AvgPool": ("(2, 2)", "x", "y", (2, 3, 4, 3)),
    "AvgUnpool": ("(2, 2)", "y", "u", (2, 6, 8, 3)),
    "BedOfNailsUnpool": ("(2, 2), position=(0, 1)", "y", "u", (2, 6, 8, 3)),
    "ConvTranspose": ("3, 5, (2, 2), strides=2, rngs=nnx.Rngs(0)", "y", "u", (2, 6, 8, 5)),
    "FixedUnpool": ("np.array([[1, 0.5], [0.5, 0.25]])", "y", "u", (2, 6, 8, 3)),
    "FractionalAvgPool": ("(4, 5), rngs=nnx.Rngs(0)", "x", "y", (2, 4, 5, 3)),
    "FractionalMaxPool": ("(2, 2), (4, 5), rngs=nnx.Rngs(0)", "x", "y", (2, 4, 5, 3)),
    "FractionalMaxPoolWithIndices": (
        "(2, 2), (4, 5), rngs=nnx.Rngs(0)",
        "x",
        "y, indices",
        (2, 4, 5, 3),
    ),
    "GlobalAvgPool": ("", "x", "y", (2, 1, 1, 3)),
    "GlobalMaxPool": ("", "x", "y", (2, 1, 1, 3)),
    "GlobalMaxPoolWithIndices": ("", "x", "y, indices", (2, 1, 1, 3)),
    "Interpolate": ('scale=2, mode="linear"', "y", "u", (2, 6, 8, 3)),
    "LpPool": ("2, (2, 2)", "x", "y", (2, 3, 4, 3)),
    "MaxPool": ('(3, 3), strides=2, padding="SAME"', "x", "y", (2, 3, 4, 3)),
    "MaxPoolWithArgmaxAndMask": ("(2, 2)", "x", "y, indices, mask", (2, 3, 4, 3)),
    "MaxPoolWithIndices": ("(2, 2)", "x", "y, indices", (2, 3, 4, 3)),
    "MaxPoolWithPackedIndices": ("(2, 2)", "x", "y, indices", (2, 3, 4, 3)),
    "MaxUnpool": ("", "*MaxPoolWithIndices((2, 2))(x)", "u", (2, 6, 8, 3)),
    "MaxUnpoolLike": ("(2, 2)", "x, y", "u", (2, 6, 8, 3)),
    "MinPool": ("(2, 2)", "x", "y", (2, 3, 4, 3)),
    "MinPoolWithIndices": ("(2, 2)", "x", "y, indices", (2, 3, 4, 3)),
    "NearestUnpool": ("(2, 2)", "y", "u", (2, 6, 8, 3)),
    "PoolAt": ("", "x, MaxPoolWithIndices((2, 2))(x)[1]", "y", (2, 3, 4, 3)),
}


def groups() -> dict[str, list[str]]:
    """The public names, by page and in the order of the sources; max pooling first."""
    found: dict[str, list[str]] = {"pooling": [], "unpooling": [], "resampling": [], "indices": []}
    modules = {"".join(part.capitalize() for part in n.split("_")): n for n in jaxunpool.__all__}
    with_module = {modules[name] for name in nnx.__all__ if name in modules}
    for name in sorted(set(jaxunpool.__all__) - {"interop"}, key=_place):
        kinds = [k for k in ("unpool", "pool") if k in name] if name in with_module else ["ind"]
        page = {"unpool": "unpooling", "pool": "pooling", "ind": "indices"}
        found[page[kinds[0]] if kinds else "resampling"].append(f"jaxunpool.{name}")
    found["interop"] = [f"jaxunpool.interop.{name}" for name in sorted(interop.__all__, key=_order)]
    return found


def _place(name: str) -> tuple[bool, str, int]:
    """Where a name is defined."""
    thing = getattr(jaxunpool, name)
    return thing.__module__ != "jaxunpool.max", thing.__module__, inspect.getsourcelines(thing)[1]


def _order(name: str) -> int:
    return inspect.getsourcelines(getattr(interop, name))[1]


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Put the entries and tables where their page has a mark."""
    return MARK.sub(lambda mark: _filled(mark[1], mark[2]), markdown)


def _filled(what: str, page: str) -> str:
    if page == "modules":
        return "\n\n".join(_entry(name) for name in nnx.__all__ if name not in WRITTEN_OUT)
    names = groups()[page]
    if what == "entries":
        return "\n\n".join(f"::: {name}" for name in names)
    rows = [f"| [`{n.removeprefix('jaxunpool.')}`][{n}] | {_summary(n)} |" for n in names]
    return "\n".join(["| | |", "| --- | --- |", *rows])


def _summary(name: str) -> str:
    thing: Any = jaxunpool
    for part in name.split(".")[1:]:
        thing = getattr(thing, part)
    return (inspect.getdoc(thing) or "").split("\n")[0]


def _entry(name: str) -> str:
    """One module: settings, arrays, and what it is a module of."""
    signatures = [_settings(getattr(flax, name)) for flax in (nnx, linen)]
    arrays = _call(getattr(nnx, name))
    calls = [f"{name}{signatures[0]}{arrays}"]
    if signatures[0] != signatures[1]:
        calls = [f"nnx.{calls[0]}", f"linen.{name}{signatures[1]}{arrays}"]
    _, what, *more = inspect.cleandoc(getattr(nnx, name).__doc__).split("\n\n")
    function = what.split("`")[1]
    short = function.removeprefix("jaxunpool.")
    notes = [note for note in more if not note.startswith("Settings are static")]
    code = "\n".join(textwrap.fill(call, 84, subsequent_indent="    ") for call in calls)
    return "\n\n".join(
        [
            f"## {name}",
            f"```python\n{code}\n```",
            f"[`{short}`][{function}] as a module.",
            *notes,
            f"**Example**\n\n```python\n{example(name)}\n```",
        ]
    )


def example(name: str) -> str:
    """A program that constructs a module and calls it."""
    settings, arguments, results, shape = EXAMPLES[name]
    used = sorted({name, *re.findall(r"[A-Z]\w+(?=\()", arguments)})
    needed = {"np.": "import numpy as np", "nnx.": "from flax import nnx"}
    imports = ["import jax.numpy as jnp", *(needed[n] for n in needed if n in settings)]
    inputs = [line for array, line in INPUTS.items() if re.search(rf"\b{array}\b", arguments)]
    call = f"{results} = {name}({settings})({arguments})"
    checked = f"assert {results.split(',')[0]}.shape == {shape}"
    imports.append(f"from jaxunpool.nnx import {', '.join(used)}")
    return "\n".join([*imports, "", *inputs, call, checked])


def _settings(module: Any) -> str:
    parameters = inspect.signature(module).parameters.values()
    return _plain(p for p in parameters if p.name not in OF_FLAX)


def _call(module: Any) -> str:
    return _plain(list(inspect.signature(module.__call__).parameters.values())[1:])


def _plain(parameters: Any) -> str:
    """Names and defaults, as one writes them."""
    shown = [p.replace(annotation=Parameter.empty, default=_default(p)) for p in parameters]
    return str(inspect.Signature(shown))


def _default(parameter: Parameter) -> Any:
    default = parameter.default
    simple = default is Parameter.empty or isinstance(default, bool | int | str | type(None))
    return default if simple else _Named(default)


class _Named:
    """A default that shows its name."""

    def __init__(self, value: Any) -> None:
        self.name = getattr(value, "__name__", type(value).__name__)

    def __repr__(self) -> str:
        return {"init": "lecun_normal()", "zeros": "zeros"}.get(self.name, self.name)
