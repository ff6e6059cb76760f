"""The static parameters of one bound primitive, and what its arrays are."""

from __future__ import annotations

import dataclasses
from typing import Any

from jaxunpool.core.geometry import Plane, WindowGeometry

# What a primitive takes and gives: (u)npooled and (p)ooled arrays, and perhaps a pattern of the
# (w)indow. With one, `reduce`, `replicate` and `correlate` are the derivatives of sum(u * w * p).
TAKES = {
    "select": "u",
    "gather": "up",
    "scatter": "pp",
    "reduce": "uw",
    "replicate": "pw",
    "correlate": "up",
}
GIVES = {
    "select": "pp",
    "gather": "p",
    "scatter": "u",
    "reduce": "p",
    "replicate": "u",
    "correlate": "w",
}
UNPOOL = ("scatter", "replicate")


@dataclasses.dataclass(frozen=True)
class Call:
    """The static parameters of one bound primitive.

    Attributes:
        primitive: `"select"`, `"gather"`, `"scatter"`, `"reduce"`, `"replicate"` or `"correlate"`;
            `"uneven"` for a `select` over windows that `core/irregular.py` has.
        geometry: the windows, or the bare plane that flat indices point into.
        implementation: the one asked for; None to choose.
        duplicates: what `scatter` does where windows meet, and `gather` as its transpose.
        weighting: how `reduce` and `replicate` weigh elements.
        divisor: what sums of `reduce`, and what `replicate` copies, are divided by.
    """

    primitive: str
    geometry: Plane
    implementation: str | None = None
    duplicates: str | None = None
    weighting: str | None = None
    divisor: int | None = None

    def to(self, primitive: str, **options: Any) -> Call:
        """Another primitive on the same windows."""
        return Call(primitive, self.geometry, self.implementation, **options)

    @property
    def options(self) -> dict[str, Any]:
        """What a kernel takes besides arrays and geometry."""
        options = {"weighting": self.weighting}
        if self.primitive == "scatter":
            options["duplicates"] = self.duplicates
        return {name: value for name, value in options.items() if value is not None}

    @property
    def windows(self) -> str:
        """The windows in words; empty for indices that have none."""
        g = self.geometry
        if not isinstance(g, WindowGeometry):
            return ""
        said = f"{_times(g.window_shape)} every {_times(g.strides)}"
        if any(map(any, g.padding)):
            said += f", padding {_times(f'{low}+{high}' for low, high in g.padding)}"
        if max(g.dilation) > 1:
            said += f", dilation {_times(g.dilation)}"
        return f"{said}, {g.data_format}"

    def __repr__(self) -> str:  # in a jaxpr
        divided = None if self.divisor is None else f"divided by {self.divisor}"
        options = (self.implementation, self.duplicates, self.weighting, divided)
        return ", ".join([self.windows or "flat", *(o for o in options if o is not None)])


def _times(sizes: Any) -> str:
    return "x".join(map(str, sizes))
