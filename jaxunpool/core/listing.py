"""What `dir` shows of a module, and editors that run it."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any


def listing(namespace: dict[str, Any]) -> Callable[[], list[str]]:
    """A module's `__dir__`: its `__all__`, modules that have one, and names of Python's own."""

    def is_public(name: str, value: Any) -> bool:
        is_module = isinstance(value, ModuleType) and value.__name__.startswith("jaxunpool.")
        return name.startswith("__") or (is_module and hasattr(value, "__all__"))

    def names() -> list[str]:
        others = (name for name, value in namespace.items() if is_public(name, value))
        return sorted({*namespace["__all__"], *others})

    return names
