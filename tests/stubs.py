"""The stubs of the generated modules, for editors and type checkers: python tests/stubs.py."""

import dataclasses
import inspect
import pathlib
import re
import sys

import jaxunpool.linen
import jaxunpool.nnx

HEAD = '''"""What editors and type checkers see of `{name}`, made by tests/stubs.py."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import {flax}
from jax import lax

from jaxunpool.adaptive import Parts
from jaxunpool.average import AvgUnpoolMode
from jaxunpool.core.arguments import Sizes
from jaxunpool.core.backends import Implementation
from jaxunpool.core.geometry import DataFormat, Padding
from jaxunpool.indices import PackedIndices, PoolIndices
from jaxunpool.interpolate import Coordinates, Mode
from jaxunpool.max import Duplicates
from jaxunpool.nearest import NearestDuplicates

__all__ = {all}
'''
FOLDER = pathlib.Path(jaxunpool.__file__).parent
SIMPLE = (bool, int, str, type(None))
FLAX = {"nnx": "nnx", "linen": "linen as nn"}


def stub(framework):
    """The text of a framework's stub."""
    flax = framework.__name__.rpartition(".")[2]
    listed = "[\n" + "".join(f'    "{each}",\n' for each in framework.__all__) + "]"
    head = HEAD.format(name=framework.__name__, flax=FLAX[flax], all=listed)
    base = FLAX[flax].split()[-1] + ".Module"
    return "\n".join(
        [head, *(_class(getattr(framework, name), base) for name in framework.__all__)]
    )


def _class(cls, base):
    function = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", cls.__name__).lower()
    known = getattr(getattr(jaxunpool, function, None), "__annotations__", {})
    init, call = map(inspect.signature, (cls.__init__, cls.__call__))
    summary = inspect.getdoc(cls).split("\n")[0]
    lines = [f"class {cls.__name__}({base}):", f'    """{summary}"""\n']
    if dataclasses.is_dataclass(cls) and base == "nn.Module":
        # Linen's modules are dataclasses, whose fields jedi completes whatever `__init__` says.
        names = [name for name in init.parameters if name not in ("self", "parent", "name")]
        lines += [f"    {name}: {_kind(init.parameters[name], known)}" for name in names]
    lines += _function("__init__", init, known, "None")
    lines += _function("__call__", call, known, _type(call.return_annotation))
    lines.append("    def __getattr__(self, name: str) -> Any: ...")  # settings and parameters
    return "\n".join(lines) + "\n"


def _function(name, signature, known, result):
    shown = ["self"]
    for p in list(signature.parameters.values())[1:]:
        if p.kind is p.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        default = ""
        if p.default is not p.empty:
            default = f" = {p.default!r}" if isinstance(p.default, SIMPLE) else " = ..."
        shown.append(f"{p.name}: {_kind(p, known)}{default}")
    one_line = f"    def {name}({', '.join(shown)}) -> {result}: ..."
    if len(one_line) <= 100:
        return [one_line.replace("'", '"')]
    lines = [f"    def {name}(", *(f"        {each}," for each in shown), f"    ) -> {result}: ..."]
    return [line.replace("'", '"') for line in lines]


def _kind(parameter, known):
    kind = _type(known.get(parameter.name, parameter.annotation))
    optional = parameter.default is None and "None" not in kind and kind != "Any"
    return kind + " | None" * optional


def _type(annotation):
    """An annotation as the sources have it; what is not written out there is Any."""
    if not isinstance(annotation, str):
        return "bool | None" if annotation is bool else "Any"
    return re.sub(r"dataclasses\.InitVar\[(.*)\]", r"\1", annotation)


if __name__ == "__main__":
    for framework in (jaxunpool.nnx, jaxunpool.linen):
        path = FOLDER / f"{framework.__name__.rpartition('.')[2]}.pyi"
        path.write_text(stub(framework))
        print(path, file=sys.stderr)
