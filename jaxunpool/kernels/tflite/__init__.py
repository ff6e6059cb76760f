"""The primitives in plain JAX that TFLite's interpreter runs.

It divides and selects arrays of at most five axes (with more it aborts the process), and its
scatter instruction sets elements one after the other, but does not add. So all axes before the
spatial ones are one, elements are not split into cells over more than two axes, and what has no
window is read and written along a line.
"""

from jaxunpool.kernels.tflite.flat import gather_flat, scatter_flat
from jaxunpool.kernels.tflite.windows import gather, reduce, replicate, scatter, select

__all__ = ["gather", "gather_flat", "reduce", "replicate", "scatter", "scatter_flat", "select"]
