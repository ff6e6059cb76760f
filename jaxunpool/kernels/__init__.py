"""The window primitives, once per backend.

    select(x, geometry)                       -> (y, offsets)    one element per window: its maximum
    gather(u, offsets, geometry)              -> y               reads one element per window
    scatter(y, offsets, geometry, duplicates) -> u               writes one element per window
    reduce(u, pattern, geometry, weights)     -> y               sums over each window
    replicate(y, pattern, geometry, weights)  -> u               copies into each window

Backends other than `xla` also say which calls they leave to it:

    unsupported(primitive, geometry, shape, dtype, **options) -> why not, in words; None if served

`gather` is the transpose of `scatter(duplicates="sum")` and the derivative of `select`; `reduce`
and `replicate` are each other's transpose. Kernels know arrays and `WindowGeometry`; gradients,
sharding and public functions are the callers' affair.
"""
