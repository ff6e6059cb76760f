"""PoolIndices in `flax.serialization`: registered when Flax is imported, not before.

Importing Flax takes longer than importing this package, and the functions do not need it.
"""

from __future__ import annotations

import dataclasses
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType
from typing import Any

MODULE = "flax.serialization"


def register(indices_type: type) -> None:
    """Let `flax.serialization` save and restore a type as what it holds in `offsets`.

    As with other static fields, the geometry is that of the target that is restored into.
    """
    if MODULE in sys.modules:
        _register(sys.modules[MODULE], indices_type)
    else:
        sys.meta_path.insert(0, _WhenImported(indices_type))


def _register(serialization: ModuleType, indices_type: type) -> None:
    def restore(target: Any, state: dict[str, Any]) -> Any:
        if set(state) != {"offsets"}:
            raise ValueError(f"PoolIndices: expected a state of 'offsets', got {sorted(state)}")
        offsets = serialization.from_state_dict(target.offsets, state["offsets"], name="offsets")
        return dataclasses.replace(target, offsets=offsets)

    def save(indices: Any) -> dict[str, Any]:
        return {"offsets": serialization.to_state_dict(indices.offsets)}

    serialization.register_serialization_state(indices_type, save, restore, override=True)


class _WhenImported(importlib.abc.MetaPathFinder):
    """Finds the module where it is, with a loader that registers the type after loading it."""

    def __init__(self, indices_type: type) -> None:
        self.indices_type = indices_type

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
            _register(module, self.indices_type)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec
