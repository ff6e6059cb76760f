"""Docstrings as the site shows them."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pathlib
import re
import sys
import textwrap
from types import ModuleType
from typing import Any

import griffe

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER))

import reference  # noqa: E402

WRITTEN = [re.findall(r"(?m)^::: ([\w.]+)$", page.read_text()) for page in FOLDER.glob("api/*.md")]
SHOWN = [name for names in (*WRITTEN, *reference.groups().values()) for name in names]
NAMES = {name.rpartition(".")[2]: name for name in SHOWN}
EXAMPLE = re.compile(r"^Example:\n((?:(?: +.*)?\n)*(?: +.*))", re.MULTILINE)
# What examples know without an import, as a reader imports it.
IMPORTS = {
    "jax": "import jax",
    "jnp": "import jax.numpy as jnp",
    "jup": "import jaxunpool as jup",
    "models": "from jaxunpool import models",
    "np": "import numpy as np",
}


class ReadableDocstrings(griffe.Extension):
    """Types of results from annotations; names that the reference shows as links."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the docstring of one function, class or attribute."""
        if obj.docstring is None:
            return
        # Names of parameters that share a description, on one line.
        text = re.sub(
            r"(?m)^( *\w+(?:, \w+)*,)\n +(?=\w+(?:, \w+)*:)",
            r"\1 ",
            obj.docstring.value,
        )
        text = re.sub(r"(?<![\[`])`(\w+)`(?![\]`])", _link, text)
        text = with_plain_example(text, obj.module.path)
        if isinstance(obj, griffe.Function) and obj.returns is not None:
            # A colon in the description would end the type.
            text = re.sub(r"(?m)^( *Returns:\n +)", rf"\g<1>{obj.returns}: ", text)
        obj.docstring.value = text


def with_plain_example(text: str, module: str) -> str:
    """A docstring with its example as code to copy, at the end."""
    found = EXAMPLE.search(text)
    if found is None or ">>>" not in found[1]:
        return text
    code = plain(textwrap.dedent(found[1]), module)
    return f"{text[: found.start()]}{text[found.end() :]}\n\n**Example**\n\n```python\n{code}```\n"


def plain(example: str, module: str) -> str:
    """Doctests of a module as a program: no prompts, results as comments, names with `jup.`."""
    parts: list[str] = []
    for part in doctest.DocTestParser().parse(example):
        if isinstance(part, str):
            parts += [f"# {line.strip()}\n" for line in part.splitlines() if line.strip()]
            continue
        parts.append(_as_users_write(part.source, module))
        error = [part.exc_msg] if part.exc_msg else []
        shown = [line.replace("<BLANKLINE>", "") for line in part.want.splitlines()]
        parts += [f"# {line}".rstrip() + "\n" for line in error or shown]
    code = "".join(parts)
    run = re.sub(r"(?m)^#.*", "", code)
    used = [line for name, line in IMPORTS.items() if re.search(rf"\b{name}\.", run)]
    if flax := sorted(
        set(re.findall(r"(?<![.\w])[A-Z]\w+(?=\()", run)) if _is_flax(module) else ()
    ):
        used.append(f"from {module} import {', '.join(flax)}")
    return "\n".join([*used, "", code]) if used else code


def _is_flax(module: str) -> bool:
    return module in ("jaxunpool.nnx", "jaxunpool.linen")


def _as_users_write(code: str, module: str) -> str:
    """`jup.` before names of the library."""
    code = code.replace("jaxunpool.models.", "models.").replace("jaxunpool.", "jup.")
    if _is_flax(module):
        return code
    place = "jup.interop." if module.endswith("interop") else "jup."
    place = "models." if module.startswith("jaxunpool.models") else place
    imported = importlib.import_module(module)
    own = [name for name in dir(imported) if _is_own(name, imported)]
    return re.sub(rf"(?<![.\w])({'|'.join(own)})(?=[(,.])", rf"{place}\1", code) if own else code


def _is_own(name: str, module: ModuleType) -> bool:
    """Whether a module defines a public name."""
    return not name.startswith("_") and inspect.getmodule(getattr(module, name)) is module


def _link(name: re.Match[str]) -> str:
    target = NAMES.get(name[1])
    return f"[{name[0]}][{target}]" if target else name[0]
