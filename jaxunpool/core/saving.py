"""Indices in `flax.serialization`: registered when Flax is imported, not before.

Importing Flax takes longer than importing this package, and the functions do not need it.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

MODULE = "flax.serialization"


def register(kinds: Mapping[type, str]) -> None:
    """Let `flax.serialization` save and restore dataclasses as what they hold in one field each.

    As static fields of pytrees do elsewhere, the others come from the target restored into.
    """
    if MODULE in sys.modules:
        _register(sys.modules[MODULE], kinds)
    else:
        sys.meta_path.insert(0, _WhenImported(kinds))


def _register(serialization: ModuleType, kinds: Mapping[type, str]) -> None:
    def restore(field: str, target: Any, state: dict[str, Any]) -> Any:
        if set(state) != {field}:
            name = type(target).__name__
            raise ValueError(f"{name}: expected a state of {field!r}, got {sorted(state)}")
        value = serialization.from_state_dict(getattr(target, field), state[field], name=field)
        return dataclasses.replace(target, **{field: value})

    def save(field: str, value: Any) -> dict[str, Any]:
        return {field: serialization.to_state_dict(getattr(value, field))}

    for kind, field in kinds.items():
        both = (functools.partial(function, field) for function in (save, restore))
        serialization.register_serialization_state(kind, *both, override=True)


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds the module where it is, with a loader that registers the types after loading it."""

    def __init__(self, kinds: Mapping[type, str]) -> None:
        self.kinds = kinds

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """None for all other modules."""
        if name != MODULE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return None
        load = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            load(module)
            _register(module, self.kinds)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
