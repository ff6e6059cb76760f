"""Every operator from its definition: NumPy and loops, nothing of the library.

One channels-last image without batch axes at a time, `(*spatial, channels)`; `over_layout` lifts
a function of such images to any leading axes and to channels first.
"""

import itertools
import math
from fractions import Fraction

import numpy as np


def pads_and_outputs(sizes, window, strides, padding, dilation, ceil_mode):
    """Padding pairs and pooled sizes: TensorFlow's SAME, PyTorch's formulas for the rest."""
    pads, outputs = [], []
    for i, size in enumerate(sizes):
        extent = dilation[i] * (window[i] - 1) + 1
        if padding in ("SAME", "SAME_LOWER"):
            out = math.ceil(size / strides[i])
            total = max((out - 1) * strides[i] + extent - size, 0)
            pad = (total // 2, total - total // 2)
            pad = pad if padding == "SAME" else pad[::-1]
        else:
            pad = (0, 0) if padding == "VALID" else padding[i]
            exact = (size + sum(pad) - extent) / strides[i] + 1
            out = math.ceil(exact) if ceil_mode else math.floor(exact)
            if ceil_mode and (out - 1) * strides[i] >= size + pad[0]:
                out -= 1
        pads.append(pad)
        outputs.append(out)
    return pads, outputs


def elements(window_index, sizes, window, strides, pads, dilation):
    """(offset, position) of the elements of a window that lie in the input, in raster order."""
    for offset, tap in enumerate(itertools.product(*(range(k) for k in window))):
        position = tuple(
            o * s - lo + t * d
            for o, s, (lo, _), t, d in zip(window_index, strides, pads, tap, dilation)
        )
        if all(0 <= p < n for p, n in zip(position, sizes)):
            yield offset, position


def max_pool(x, window, strides, padding, dilation, ceil_mode):
    """Values, offsets and flat positions: first of equals, last of NaN."""
    *sizes, channels = x.shape
    pads, outputs = pads_and_outputs(sizes, window, strides, padding, dilation, ceil_mode)
    y = np.zeros((*outputs, channels), x.dtype)
    offsets = np.zeros((*outputs, channels), np.int64)
    flat = np.zeros((*outputs, channels), np.int64)
    for o in np.ndindex(*outputs):
        for c in range(channels):
            best = None
            for offset, position in elements(o, sizes, window, strides, pads, dilation):
                value = x[(*position, c)]
                if best is None or value > best or value != value:
                    best = value
                    y[(*o, c)], offsets[(*o, c)] = value, offset
                    flat[(*o, c)] = np.ravel_multi_index(position, sizes)
    return y, offsets, flat


def max_unpool(y, flat, sizes, duplicates):
    """Write or add one window after the other; positions outside the plane are dropped."""
    *outputs, channels = y.shape
    total = math.prod(sizes)
    # 16-bit floats are added in float32 and rounded once.
    wide = (
        np.float32 if y.dtype.itemsize == 2 and not np.issubdtype(y.dtype, np.integer) else y.dtype
    )
    u = np.zeros((total, channels), wide)
    for o in np.ndindex(*outputs):
        for c in range(channels):
            to, value = int(flat[(*o, c)]), y[(*o, c)]
            if 0 <= to < total:
                with np.errstate(over="ignore"):  # integers wrap around
                    u[to, c] = u[to, c] + value if duplicates == "sum" else value
    return u.astype(y.dtype).reshape(*sizes, channels)


def max_unpool_gradient(du, flat, duplicates):
    """Each writer reads its element; under "last" only the last writer of an element does."""
    *outputs, channels = flat.shape
    total = math.prod(du.shape[:-1])
    du = du.reshape(total, channels)
    last = {}
    for o in np.ndindex(*outputs):
        for c in range(channels):
            last[int(flat[(*o, c)]), c] = o
    dy = np.zeros(flat.shape, du.dtype)
    for o in np.ndindex(*outputs):
        for c in range(channels):
            to = int(flat[(*o, c)])
            if 0 <= to < total and (duplicates == "sum" or last[to, c] == o):
                dy[(*o, c)] = du[to, c]
    return dy


def windows(sizes, window, strides, padding, dilation, ceil_mode):
    """Pooled sizes; per window in raster order `{flat position: offset}`, its size with padding.

    What hangs over the end (`ceil_mode`) is no element.
    """
    pads, outputs = pads_and_outputs(sizes, window, strides, padding, dilation, ceil_mode)
    table, counts = [], []
    for o in np.ndindex(*outputs):
        inside = elements(o, sizes, window, strides, pads, dilation)
        table.append({int(np.ravel_multi_index(p, sizes)): offset for offset, p in inside})
        count = 1
        for i, number in enumerate(o):
            taps = number * strides[i] - pads[i][0] + np.arange(window[i]) * dilation[i]
            count *= int((taps < sizes[i] + pads[i][1]).sum())
        counts.append(count)
    return outputs, table, counts


def window_sums(x, table, outputs, weight):
    """y[o] = sum of weight(o, position, offset) * x[position], in float64."""
    flat = x.astype(np.float64).reshape(-1, x.shape[-1])
    y = np.zeros((len(table), x.shape[-1]))
    for o, members in enumerate(table):
        for position, offset in members.items():
            y[o] += weight(o, position, offset) * flat[position]
    return y.reshape(*outputs, -1)


def window_copies(y, table, sizes, weight):
    """u[position] = sum of weight(o, position, offset) * y[o], in float64."""
    flat = y.astype(np.float64).reshape(-1, y.shape[-1])
    u = np.zeros((math.prod(sizes), y.shape[-1]))
    for o, members in enumerate(table):
        for position, offset in members.items():
            u[position] += weight(o, position, offset) * flat[o]
    return u.reshape(*sizes, -1)


def irregular_max(x, bounds):
    """Maximum and flat position over windows given as (start, stop) pairs, per spatial axis."""
    *sizes, channels = x.shape
    outputs = [len(pairs) for pairs in bounds]
    y, flat = np.zeros((*outputs, channels), x.dtype), np.zeros((*outputs, channels), np.int64)
    for o in np.ndindex(*outputs):
        for c in range(channels):
            best = None
            for position in itertools.product(*(range(*b[i]) for b, i in zip(bounds, o))):
                value = x[(*position, c)]
                if best is None or value > best or value != value:
                    best = value
                    y[(*o, c)] = value
                    flat[(*o, c)] = np.ravel_multi_index(position, sizes)
    return y, flat


def adaptive_bounds(size, output):
    """PyTorch's rule."""
    return [
        (math.floor(i * size / output), math.ceil((i + 1) * size / output)) for i in range(output)
    ]


def keys(a, d):
    """Keys' cubic kernel, from its paper's table."""
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a if d < 2 else Fraction(0)


def interpolation(size, output, mode, coordinates="half_pixel", step=None, antialias=False):
    """What each element of the output reads, by the definition, rounded to float64 at the end."""
    rows = np.zeros((output, size))
    if mode == "area":
        for row, (start, stop) in zip(rows, adaptive_bounds(size, output)):
            row[start:stop] = 1 / (stop - start)
        return rows
    step = Fraction(size, output) if step is None else step
    if mode.startswith("nearest"):
        shift = Fraction(mode == "nearest-exact", 2)
        for i, row in enumerate(rows):
            row[min(int((i + shift) * step), size - 1)] = 1
        return rows
    if coordinates == "align_corners":
        step = Fraction(size - 1, output - 1) if output > 1 else Fraction(0)
    width = max(step, 1) if antialias else 1
    for i, row in enumerate(rows):
        where = i * step
        if antialias or coordinates == "half_pixel":
            where = (i + Fraction(1, 2)) * step - Fraction(1, 2)
        weights = dict.fromkeys(range(size), Fraction(0))
        reach = 2 * int(width + 1)
        for element in range(int(where) - reach - 1, int(where) + reach + 2):
            d = abs(element - where) / width
            if mode == "linear":
                weight = max(1 - d, Fraction(0))
            else:
                weight = keys(Fraction(-1, 2) if antialias else Fraction(-3, 4), d)
            if not antialias:
                weights[min(max(element, 0), size - 1)] += weight
            elif 0 <= element < size:
                weights[element] += weight
        total = sum(weights.values()) if antialias else 1
        for element, weight in weights.items():
            row[element] = float(weight / total)
    return rows


def conv_transpose(x, kernel, strides, padding, extra, dilation):
    """Channels first, one group: every value adds its kernel to the result, which is then cut."""
    n = len(strides)
    sizes, window = x.shape[-n:], kernel.shape[-n:]
    full = [
        (size - 1) * s + d * (k - 1) + 1 + e + 2 * p  # room for what is cut off
        for size, s, d, k, e, p in zip(sizes, strides, dilation, window, extra, padding)
    ]
    wide = np.result_type(x, kernel, np.float64)
    u = np.zeros((x.shape[0], kernel.shape[1], *full), wide)
    for position in np.ndindex(*sizes):
        for tap in np.ndindex(*window):
            to = tuple(p * s + t * d for p, s, t, d in zip(position, strides, tap, dilation))
            u[(..., *to)] += x[(..., *position)] @ kernel[(..., *tap)]
    ends = [
        (size - 1) * s + d * (k - 1) + 1 + e - p
        for size, s, d, k, e, p in zip(sizes, strides, dilation, window, extra, padding)
    ]
    return u[(..., *(slice(p, end) for p, end in zip(padding, ends)))]


def over_layout(function, n, data_format, *arrays):
    """Apply a function of channels-last images to arrays of any layout and leading axes."""
    if data_format == "channels_first":
        arrays = [np.moveaxis(a, -n - 1, -1) for a in arrays]
    batch = arrays[0].shape[: -n - 1]
    images = [a.reshape(-1, *a.shape[len(batch) :]) for a in arrays]
    results = [function(*image) for image in zip(*images)]
    if not isinstance(results[0], tuple):
        results = [(r,) for r in results]
    outs = [np.stack(r).reshape(*batch, *r[0].shape) for r in zip(*results)]
    if data_format == "channels_first":
        outs = [np.moveaxis(o, -1, -n - 1) for o in outs]
    return outs[0] if len(outs) == 1 else tuple(outs)
