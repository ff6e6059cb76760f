"""Docstrings as the site shows them."""

from __future__ import annotations

import pathlib
import re
import sys
from typing import Any

import griffe

FOLDER = pathlib.Path(__file__).parent
sys.path.insert(0, str(FOLDER))

import reference  # noqa: E402

WRITTEN = [re.findall(r"(?m)^::: ([\w.]+)$", page.read_text()) for page in FOLDER.glob("api/*.md")]
SHOWN = [name for names in (*WRITTEN, *reference.groups().values()) for name in names]
NAMES = {name.rpartition(".")[2]: name for name in SHOWN}


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
        text = re.sub(r"(?m)^( *)Example:$", r"\1Examples:", text)  # what holds doctests
        if isinstance(obj, griffe.Function) and obj.returns is not None:
            # A colon in the description would end the type.
            text = re.sub(r"(?m)^( *Returns:\n +)", rf"\g<1>{obj.returns}: ", text)
        obj.docstring.value = text


def _link(name: re.Match[str]) -> str:
    target = NAMES.get(name[1])
    return f"[{name[0]}][{target}]" if target else name[0]
