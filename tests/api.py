"""The public names and their signatures, one a line: `python tests/api.py` remakes data/api.txt.

The Flax modules are in the stubs beside their sources, `nnx.pyi` and `linen.pyi`.
"""

import dataclasses
import importlib
import inspect
import pathlib
import re

FILE = pathlib.Path(__file__).parent / "data/api.txt"
MODULES = ("jaxunpool", "jaxunpool.deploy", "jaxunpool.interop", "jaxunpool.models")


def lines():
    """Every name of every `__all__`, and what is public in the classes among them."""
    for module in map(importlib.import_module, MODULES):
        for name in module.__all__:
            public = getattr(module, name)
            yield from _described(f"{module.__name__}.{name}", public)


def _described(name, public):
    if inspect.ismodule(public):
        return
    if not callable(public):
        yield f"{name} = {public!r}"
        return
    if not isinstance(public, type):
        yield name + _signature(public)
        return
    init = public if dataclasses.is_dataclass(public) else public.__init__
    yield name + _signature(init)
    for base in reversed(public.__mro__):
        if not base.__module__.startswith("jaxunpool"):
            continue
        for each, value in vars(base).items():
            if each.startswith("_") and each != "__call__":
                continue
            if isinstance(value, property):
                yield f"{name}.{each}: property"
            elif callable(getattr(public, each)) and not isinstance(value, type):
                yield f"{name}.{each}" + _signature(getattr(public, each))


def _signature(function):
    """Without `self`, and annotations as the sources have them."""
    signature = inspect.signature(function)
    kept = [each for each in signature.parameters.values() if each.name != "self"]
    return re.sub(r"(: |-> )'([^']*)'", r"\1\2", str(signature.replace(parameters=kept)))


def text():
    return "\n".join(sorted(set(lines()))) + "\n"


if __name__ == "__main__":
    FILE.write_text(text())
    print(FILE)
