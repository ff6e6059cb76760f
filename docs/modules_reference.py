"""The reference of the Flax modules, which are made from the functions when imported."""

from __future__ import annotations

import inspect
import textwrap
from inspect import Parameter
from typing import Any

from mkdocs.structure.pages import Page

from jaxunpool import linen, nnx

PAGE, MARK = "api/modules.md", "<!-- one entry per module -->"
WRITTEN_OUT = ("Inverse", "Paired")  # classes like any others
OF_FLAX = ("parent", "name")


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str | None:
    """Put the entries where their page has the mark."""
    if page.file.src_uri != PAGE:
        return None
    made = [name for name in nnx.__all__ if name not in WRITTEN_OUT]
    return markdown.replace(MARK, "\n\n".join(map(_entry, made)))


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
        [f"## {name}", f"```python\n{code}\n```", f"[`{short}`][{function}] as a module.", *notes]
    )


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
