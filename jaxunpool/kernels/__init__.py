"""The window primitives, once per backend, and the words that all of them use.

    select(x, geometry)                         -> (y, offsets)    each window's maximum
    gather(u, offsets, geometry)                -> y               reads one element per window
    scatter(y, offsets, geometry, duplicates)   -> u               writes one element per window
    reduce(u, pattern, geometry, weighting)     -> y               sums over each window
    replicate(y, pattern, geometry, weighting)  -> u               copies into each window

Backends other than `xla` also say which calls they leave to it, and whether they run here at all:

    unsupported(primitive, geometry, shape, dtype, **options) -> why not, in words; None if served
    missing() -> why not on this machine, and what brings it; None if they run

`gather` is the transpose of `scatter(duplicates="sum")` and the derivative of `select`; `reduce`
and `replicate` are each other's transpose. All backends give the same bits: sums run in raster
order, and those that are zero are +0. Kernels know arrays and `WindowGeometry`; gradients,
sharding and public functions are the callers' affair. What several backends need is in `common.py`;
none imports another's files. `tflite` is no backend: it stands in for `xla`, parts of which it
uses, in programs for TFLite.

Glossary, of all kernels:

| word          | meaning                                                                      |
| ------------- | ---------------------------------------------------------------------------- |
| unpooled, `u` | an array before pooling, or after unpooling; `x` where it is pooled          |
| pooled, `y`   | an array with one element per window                                         |
| position      | where an element of an unpooled array is, along a spatial axis               |
| window        | the elements that are pooled to one; windows are numbered along each axis    |
| tap           | the number of an element in its window, along one axis                       |
| offset        | the number of an element in its window, in raster order of the taps          |
| padding       | positions outside the array; beyond the high padding, overhang               |
| mask          | where a value counts: `inside` (no padding), `exists` (a window is there)    |
| cover         | a window covers its elements; `covering` lists the windows of an element     |
| cell          | `stride` elements of an unpooled array along each axis                       |
| shift         | the number of a window minus that of a cell which it reaches                 |
| pattern       | factors of the elements of a window, the same for all windows                |
| weighting     | fixed weights, by name: `"mean"` and others in `common.py`                   |
| accumulator   | the type that sums run in                                                    |

In `native_cpu`:

| word          | meaning                                                                      |
| ------------- | ---------------------------------------------------------------------------- |
| run           | contiguous results that look at the same taps, at the same distances         |
| phase         | every `stride`th element of a row, brought next to each other                |
| winner        | a window that has the last word on the element its offset names              |
| code          | an offset with room in its digits for differences to other windows           |

In kernels of Pallas, where a program computes a block of the result:

| word          | meaning                                                                      |
| ------------- | ---------------------------------------------------------------------------- |
| line, lanes   | TPU: the axes of an array in the sublanes and in the lanes of registers      |
| slab          | TPU: the rows of an operand that a block needs, halo included                |
| staged        | TPU: copied to a scratch in VMEM, in 32 bits                                 |
| box           | GPU: the elements of the parallel axes that the threads of a program share   |
| tiles         | GPU: how a call is cut up into programs                                      |
| operand       | GPU: an array in global memory, read and written box by box                  |
"""
