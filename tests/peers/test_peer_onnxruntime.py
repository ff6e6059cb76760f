"""ONNX Runtime: random nodes, and those that the ONNX project publishes.

`OURS` has an operator's attributes as a call of jaxunpool.
"""

import math

import jax
import numpy as np
import oracle
import pytest

onnx = pytest.importorskip("onnx", reason="in the extra 'peers'")
onnxruntime = pytest.importorskip("onnxruntime", reason="in the extra 'peers'")

from comparison import FIRST, Answer, Case, check  # noqa: E402
from onnx import helper  # noqa: E402
from strategies import values  # noqa: E402

import jaxunpool as jup  # noqa: E402
from jaxunpool import interop  # noqa: E402

PEER = "ONNX Runtime"
OPSET = 21  # the newest that has kernels for all of them


def run(operator, *inputs, outputs=1, **attributes):
    """What ONNX Runtime answers to a model of one node; None is an input left out."""
    names = ["" if array is None else f"x{number}" for number, array in enumerate(inputs)]
    given = {name: array for name, array in zip(names, inputs) if array is not None}
    node = helper.make_node(operator, names, [f"y{i}" for i in range(outputs)], **attributes)
    types = {
        name: helper.np_dtype_to_tensor_dtype(np.dtype(array.dtype))
        for name, array in given.items()
    }
    graph = helper.make_graph(
        [node],
        operator,
        [helper.make_tensor_value_info(n, types[n], array.shape) for n, array in given.items()],
        [
            helper.make_tensor_value_info("y0", types["x0"], None),
            helper.make_tensor_value_info("y1", onnx.TensorProto.INT64, None),
        ][:outputs],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return run_model(model, given)


def run_model(model, given):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(model.SerializeToString(), options).run(None, given)


# Attributes of ONNX as calls of jaxunpool.


def window(kernel_shape, strides=None, pads=None, dilations=None, ceil_mode=0, auto_pad="NOTSET"):
    n = len(kernel_shape)
    named = {"SAME_UPPER": "SAME", "SAME_LOWER": "SAME_LOWER", "VALID": "VALID"}
    return {
        "window_shape": tuple(kernel_shape),
        "strides": tuple(strides or (1,) * n),
        "padding": named.get(auto_pad) or pairs(pads or (0,) * 2 * n),
        "dilation": tuple(dilations or (1,) * n),
        "ceil_mode": bool(ceil_mode),
        **FIRST,
    }


def pairs(pads):
    """All beginnings, then all ends, as a pair for each axis."""
    n = len(pads) // 2
    return tuple(zip(pads[:n], pads[n:]))


def max_pool(x, storage_order=0, **attributes):
    y, indices = jup.max_pool_with_indices(x, **window(**attributes))
    return y, interop.to_onnx(indices, storage_order=storage_order)


def max_unpool(y, indices, output_shape=None, **attributes):
    """As ONNX Runtime counts: in the tensor of `output_shape`, or in the one that is implied."""
    options = window(**attributes)
    if output_shape is None:
        return jup.max_unpool(
            y, interop.from_onnx(indices, jup.WindowGeometry.for_output(y.shape, **options))
        )
    plane = jup.Plane(input_shape=tuple(np.asarray(output_shape)[2:].tolist()), **FIRST)
    return jup.max_unpool(y, interop.from_onnx(indices, plane))


def average_pool(x, count_include_pad=0, **attributes):
    return jup.avg_pool(x, count_include_pad=bool(count_include_pad), **window(**attributes))


def lp_pool(x, p=2, **attributes):
    return jup.lp_pool(x, p, **window(**attributes))


def global_lp_pool(x, p=2):
    return jup.lp_pool(x, p, x.shape[2:], **FIRST)


def conv_transpose(
    x, w, b=None, strides=None, pads=None, dilations=None, group=1, auto_pad="NOTSET",
    output_padding=None, output_shape=None, kernel_shape=None,
):  # fmt: skip
    n = x.ndim - 2
    if auto_pad == "VALID":  # the name means more elements to TensorFlow and to jaxunpool
        auto_pad = "NOTSET"
    return jup.conv_transpose(
        x,
        w,
        b,
        tuple(strides or (1,) * n),
        window(w.shape[2:], pads=pads, auto_pad=auto_pad)["padding"],
        output_padding=tuple(output_padding or (0,) * n),
        output_shape=output_shape and tuple(output_shape),
        groups=group,
        dilation=tuple(dilations or (1,) * n),
        **FIRST,
    )


COORDINATES = ("half_pixel", "align_corners", "asymmetric")


def resize(
    x, roi=None, scales=None, sizes=None, mode="nearest", antialias=0, exclude_outside=0,
    coordinate_transformation_mode="half_pixel", cubic_coeff_a=-0.75,
    nearest_mode="round_prefer_floor",
):  # fmt: skip
    """None where jaxunpool has no such resizing."""
    n = x.ndim - 2
    target = (
        {"output_shape": tuple(np.asarray(sizes)[-n:].tolist())}
        if sizes is not None
        else {"scale": tuple(np.asarray(scales)[-n:].tolist())}
    )
    rule = coordinate_transformation_mode, nearest_mode
    if mode == "nearest":
        names = {
            ("asymmetric", "floor"): "nearest",
            ("half_pixel", "round_prefer_ceil"): "nearest-exact",
        }
        return rule in names and jup.interpolate(x, mode=names[rule], **target, **FIRST)
    if mode == "cubic" and cubic_coeff_a != (-0.5 if antialias else -0.75):
        return None
    if rule[0] not in COORDINATES or exclude_outside != antialias:
        return None
    return jup.interpolate(
        x, mode=mode, antialias=bool(antialias), coordinates=rule[0], **target, **FIRST
    )


OURS = {
    "MaxPool": max_pool,
    "MaxUnpool": max_unpool,
    "AveragePool": average_pool,
    "LpPool": lp_pool,
    "GlobalMaxPool": lambda x: jup.global_max_pool(x, **FIRST),
    "GlobalAveragePool": lambda x: jup.global_avg_pool(x, **FIRST),
    "GlobalLpPool": global_lp_pool,
    "Resize": resize,
    "ConvTranspose": conv_transpose,
}


# Random configurations.


def draw(rng, n, low, high):
    """A number for each axis; fewer of them in more dimensions."""
    return rng.integers(low, high[n - 1], n, endpoint=True).tolist()


def random_window(rng, dilated=True, named=True, ceil=True):
    """Attributes of a pooling that jaxunpool has too, and the shape of an array to pool."""
    while True:
        n = int(rng.integers(1, 4))
        kernel, strides = draw(rng, n, 1, (7, 4, 3)), draw(rng, n, 1, (4, 3, 3))
        attributes = {"kernel_shape": kernel, "strides": strides}
        if dilated and rng.random() < 0.3:
            attributes["dilations"] = draw(rng, n, 1, (3, 3, 2))
        if named and rng.random() < 0.3:
            attributes["auto_pad"] = ("SAME_UPPER", "SAME_LOWER", "VALID")[rng.integers(3)]
        else:
            attributes["pads"] = [int(rng.integers(k)) for k in kernel * 2]
            attributes["ceil_mode"] = int(ceil and rng.integers(2))
        shape = (int(rng.integers(1, 3)), int(rng.integers(1, 4)), *draw(rng, n, 1, (18, 9, 5)))
        if is_common(shape, **attributes):
            return attributes, shape


def is_common(shape, kernel_shape, strides, dilations=None, pads=None, auto_pad="", ceil_mode=0):
    """Whether the call is one whose meaning both libraries share: see `draw_other_same`."""
    n = len(kernel_shape)
    if auto_pad.startswith("SAME"):
        return not dilations and all(s <= k for s, k in zip(strides, kernel_shape))
    spans = [d * (k - 1) + 1 for d, k in zip(dilations or [1] * n, kernel_shape)]
    pads = pairs(pads or [0] * 2 * n)
    if any(size + sum(pad) < span for size, pad, span in zip(shape[2:], pads, spans)):
        return False
    try:
        jup.WindowGeometry.for_input(
            shape, **window(kernel_shape, strides, sum(zip(*pads), ()), dilations, ceil_mode)
        )
    except ValueError:  # a window of padding alone, whose maximum is the least number there
        return False
    return True


def pooling(operator, attributes, x, rounding=0, outputs=1, rule=None):
    """A case of one node with one input."""
    theirs = lambda inputs, _: Answer(*run(operator, *inputs, outputs=outputs, **attributes))
    ours = lambda x: OURS[operator](x, **attributes)
    if operator == "MaxPool" and outputs == 1:
        ours = lambda x: max_pool(x, **attributes)[0]
    return Case(ours, theirs, (x,), rounding, rule=rule)


def draw_max_pool(rng):
    attributes, shape = random_window(rng)
    dtype = np.dtype(("float32", "float64", "int8", "uint8")[rng.integers(4)])
    return pooling("MaxPool", attributes, values(rng, shape, dtype, "ties"))


def draw_max_pool_with_indices(rng):
    attributes, shape = random_window(rng)
    attributes["storage_order"] = int(rng.integers(2))
    dtype = np.dtype(("float32", "float64", "int8", "uint8")[rng.integers(4)])
    kind = ("plain", "ties")[rng.integers(2)]
    return pooling("MaxPool", attributes, values(rng, shape, dtype, kind), outputs=2)


def implied_sizes(y, kernel_shape, strides, pads, ceil_mode):
    return [
        (size - 1) * s + k - sum(pad)
        for size, s, k, pad in zip(y.shape[2:], strides, kernel_shape, pairs(pads))
    ]


def draw_max_unpool(rng):
    """Unpooling at the indices of a pooling; windows may overlap."""
    attributes, shape = random_window(rng, dilated=False, named=False, ceil=False)
    x = values(rng, shape, np.dtype("float32"), "plain")
    y, indices = run("MaxPool", x, outputs=2, **attributes)
    if min(implied_sizes(y, **attributes)) < 1:  # which ONNX Runtime refuses
        return draw_max_unpool(rng)
    y = values(rng, y.shape, y.dtype, "plain")
    options = {name: attributes[name] for name in ("kernel_shape", "strides", "pads")}
    shape = np.array(x.shape)
    return Case(
        lambda y: max_unpool(y, indices, x.shape, **options),
        lambda inputs, _: Answer(*run("MaxUnpool", *inputs, indices, shape, **options)),
        (y,),
    )


def draw_average_pool(rng):
    attributes, shape = random_window(rng)
    attributes["count_include_pad"] = int(rng.integers(2))
    x = values(rng, shape, np.dtype("float32"), "plain")
    return pooling("AveragePool", attributes, x, rounding=4)


def draw_lp_pool(rng):
    attributes, shape = random_window(rng)
    attributes["p"] = int(rng.integers(1, 5))
    x = values(rng, shape, np.dtype("float32"), "plain")
    return pooling("LpPool", attributes, x, rounding=8)


def draw_global(rng):
    n = int(rng.integers(1, 4))
    shape = (2, 3, *draw(rng, n, 1, (40, 15, 8)))
    operator = ("GlobalMaxPool", "GlobalAveragePool", "GlobalLpPool")[rng.integers(3)]
    attributes = {"p": int(rng.integers(1, 4))} if operator == "GlobalLpPool" else {}
    x = values(rng, shape, np.dtype("float32"), "plain")
    rounding = 0 if operator == "GlobalMaxPool" else 16
    return pooling(operator, attributes, x, rounding)


def resizing(rng, attributes, n):
    x = values(rng, (2, 2, *draw(rng, n, 1, (20, 12, 6))), np.dtype("float32"), "plain")
    sizes = np.array([*x.shape[:2], *draw(rng, n, 1, (20, 12, 6))])
    # Positions are float32, in ONNX Runtime: off by eps of the size, times the slope.
    rounding = 0 if attributes["mode"] == "nearest" else 8 + 2 * max(x.shape)
    return Case(
        lambda x: resize(x, sizes=sizes, **attributes),
        lambda inputs, _: Answer(*run("Resize", *inputs, None, None, sizes, **attributes)),
        (x,),
        rounding,
    )


def draw_nearest(rng):
    rules = {
        "coordinate_transformation_mode": ("asymmetric", "half_pixel"),
        "nearest_mode": ("floor", "round_prefer_ceil"),
    }
    choice = int(rng.integers(2))
    attributes = {name: options[choice] for name, options in rules.items()}
    return resizing(rng, {"mode": "nearest", **attributes}, int(rng.integers(1, 4)))


def draw_linear(rng):
    rule = COORDINATES[rng.integers(3)]
    attributes = {"mode": "linear", "coordinate_transformation_mode": rule}
    return resizing(rng, attributes, int(rng.integers(1, 4)))


def draw_cubic(rng):
    rule = COORDINATES[rng.integers(3)]
    return resizing(rng, {"mode": "cubic", "coordinate_transformation_mode": rule}, 2)


def draw_antialias(rng):
    mode = ("linear", "cubic")[rng.integers(2)]
    attributes = {"mode": mode, "antialias": 1, "exclude_outside": 1}
    if mode == "cubic":
        attributes["cubic_coeff_a"] = -0.5
    return resizing(rng, attributes, 2)


def random_transpose(rng, rule, gaps):
    """Attributes and arrays; `gaps`: whether windows are smaller than the strides somewhere."""
    while True:
        n = int(rng.integers(1, 4))
        kernel, strides = draw(rng, n, 1, (5, 4, 3)), draw(rng, n, 1, (4, 3, 3))
        dilations = draw(rng, n, 1, (3, 2, 2))
        spans = [(k - 1) * d + 1 for k, d in zip(kernel, dilations)]
        if gaps is None or any(s > k for s, k in zip(strides, spans)) == gaps:
            break
    attributes = {"strides": strides, "dilations": dilations, "group": int(rng.integers(1, 3))}
    room = [1] * n
    if rule == "NOTSET":
        attributes["pads"] = pads = [int(rng.integers(k)) for k in spans * 2]
        attributes["output_padding"] = [int(rng.integers(s)) for s in strides]
        room = [
            max(1, math.ceil((p + q - k + 1) / s) + 1)
            for p, q, k, s in zip(pads, pads[n:], spans, strides)
        ]
    else:
        attributes["auto_pad"] = rule
    sizes = [int(rng.integers(r, r + 4)) for r in room]
    groups, outputs = attributes["group"], int(rng.integers(1, 4))
    inputs = groups * int(rng.integers(1, 3))
    shapes = (2, inputs, *sizes), (inputs, outputs, *kernel), (outputs * groups,)
    arrays = tuple(values(rng, shape, np.dtype("float32"), "plain") for shape in shapes)
    return attributes, arrays, spans


def transposing(attributes, arrays, **options):
    return Case(
        lambda *arrays: conv_transpose(*arrays, **attributes),
        lambda inputs, _: Answer(*run("ConvTranspose", *inputs, **attributes)),
        arrays,
        **options,
    )


def draw_conv_transpose(rng):
    rule = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")[rng.choice(4, p=[0.4, 0.2, 0.2, 0.2])]
    attributes, arrays, _ = random_transpose(rng, rule, False if "SAME" in rule else None)
    return transposing(attributes, arrays, rounding=8)


# Where the two differ.


def by_definition(n, pads, kernel, strides, dilations, outputs, choose):
    """Pooling by loops: `choose` gives a window's value and which of its elements it is."""

    def pool(x):
        y = np.zeros((*x.shape[:2], *outputs), x.dtype)
        indices = np.zeros(y.shape, np.int64)
        for at in np.ndindex(*y.shape):
            members = oracle.elements(at[2:], x.shape[2:], kernel, strides, pads, dilations)
            places = [(*at[:2], *position) for _, position in members]
            y[at], number = choose([x[place] for place in places])
            indices[at] = np.ravel_multi_index(places[number], x.shape)
        return y, indices

    return pool


def largest(elements):
    """The first of the largest elements."""
    return max(elements), elements.index(max(elements))


def first_or_larger(elements):
    """ONNX Runtime's search: begin with the first element, and take what is larger."""
    best = 0
    for number, element in enumerate(elements):
        if element > elements[best]:
            best = number
    return elements[best], best


def draw_other_same(rng):
    """SAME of dilated windows, and of windows smaller than the strides.

    ONNX Runtime pads as for a window that is not dilated, so there are fewer windows than the size
    divided by the strides; and it lets padding be negative, which is to cut off elements.
    """
    n = int(rng.integers(1, 4))
    kernel, strides = draw(rng, n, 1, (5, 3, 3)), draw(rng, n, 1, (4, 3, 3))
    dilations = draw(rng, n, 1, (3, 2, 2))
    spans = [d * (k - 1) + 1 for d, k in zip(dilations, kernel)]
    sizes = [span + int(rng.integers(0, 6)) + 3 for span in spans]
    total = [(math.ceil(size / s) - 1) * s + k - size for size, s, k in zip(sizes, strides, kernel)]
    if dilations == [1] * n and min(total) >= 0:
        return draw_other_same(rng)
    is_upper = bool(rng.integers(2))
    half = [int(t / 2) for t in (total if is_upper else [t + 1 for t in total])]
    pads = [(low, t - low) for low, t in zip(half, total)]
    outputs = [
        (size + sum(pad) - span) // s + 1 for size, pad, span, s in zip(sizes, pads, spans, strides)
    ]
    attributes = {
        "kernel_shape": kernel,
        "strides": strides,
        "dilations": dilations,
        "auto_pad": "SAME_UPPER" if is_upper else "SAME_LOWER",
    }
    x = values(rng, (1, 2, *sizes), np.dtype("int8"), "plain")
    pool = by_definition(n, pads, kernel, strides, dilations, outputs, largest)
    rule = lambda inputs, _: Answer(*pool(*inputs))
    return pooling("MaxPool", attributes, x, outputs=2, rule=rule)


def draw_short_transpose(rng):
    """SAME of a transposed convolution whose windows leave gaps.

    ONNX says that the result has the size times the strides. ONNX Runtime ends with the last
    window: the elements are the same, but those of the last gap are missing.
    """
    rule = ("SAME_UPPER", "SAME_LOWER")[rng.integers(2)]
    attributes, arrays, spans = random_transpose(rng, rule, gaps=True)
    attributes["group"], arrays = 1, eighths(rng, arrays, attributes["group"])
    ends = [
        min(size * s, (size - 1) * s + k)
        for size, s, k in zip(arrays[0].shape[2:], attributes["strides"], spans)
    ]
    whole = jax.jit(lambda *arrays: conv_transpose(*arrays, **attributes))
    kept = (..., *(slice(end) for end in ends))
    rule = lambda inputs, _: Answer(np.asarray(whole(*inputs))[kept])
    return transposing(attributes, arrays, rule=rule)


def eighths(rng, arrays, groups):
    """Arrays of one group, whose sums of products are exact."""
    x, w, b = (a.shape for a in arrays)
    shapes = x, w, (b[0] // groups,)
    return tuple(values(rng, shape, np.dtype("float32"), "eighths") for shape in shapes)


def draw_nan(rng):
    """NaN and infinities, with indices: what comes first counts, and what is larger after it."""
    attributes, shape = random_window(rng, named=False, ceil=False)
    options = window(**attributes)
    geometry = jup.WindowGeometry.for_input(shape, **options)
    pool = by_definition(
        len(shape) - 2,
        geometry.padding,
        geometry.window_shape,
        geometry.strides,
        geometry.dilation,
        geometry.output_shape,
        first_or_larger,
    )
    x = values(rng, shape, np.dtype("float32"), "special")
    rule = lambda inputs, _: Answer(*pool(*inputs))
    return pooling("MaxPool", attributes, x, outputs=2, rule=rule)


ROWS = {
    "max pooling": draw_max_pool,
    "max pooling with indices": draw_max_pool_with_indices,
    "max unpooling": draw_max_unpool,
    "average pooling": draw_average_pool,
    "p-norm pooling": draw_lp_pool,
    "global pooling": draw_global,
    "resizing, nearest": draw_nearest,
    "resizing, linear": draw_linear,
    "resizing, cubic": draw_cubic,
    "resizing, antialiased": draw_antialias,
    "transposed convolution": draw_conv_transpose,
    "max pooling, SAME with dilation or gaps": draw_other_same,
    "max pooling with indices, NaN and infinities": draw_nan,
    "transposed convolution, SAME with gaps": draw_short_transpose,
}


@pytest.mark.parametrize("operator", ROWS)
def test_random_configurations(operator, record_property):
    check(PEER, operator, ROWS[operator], record_property)


# What the ONNX project publishes: nodes with inputs and results, which onnx makes.

NOT_OURS = {  # attributes and modes of Resize that jaxunpool does not have
    "axes": "other axes than the spatial ones",
    "crop_and_resize": "regions of interest",
    "ceil": "nearest modes other than those of PyTorch",
    "cubic_A_n0p5": "other cubic kernels",
    "antialias": "antialiasing with elements beyond the edge",
    "half_pixel_symmetric": "coordinates of sizes that are no integers",
    "linear_pytorch_half_pixel": "the first element alone, for a size of 1",
    "scales_nearest": "nearest modes other than those of PyTorch",
    "sizes_nearest": "nearest modes other than those of PyTorch",
}
# ONNX Runtime answers otherwise than ONNX; jaxunpool can say both.
OTHERWISE = {
    "test_maxunpool_export_with_output_shape": "positions in the tensor of `output_shape`",
    "test_resize_downsample_scales_linear_align_corners": "sizes that are rounded, or scales",
    "test_resize_downsample_scales_cubic_align_corners": "sizes that are rounded, or scales",
}


@pytest.fixture(scope="module")
def published():
    from onnx.backend.test.case.node import collect_testcases

    cases = {case.name: case for case in collect_testcases()}
    return {
        name: case
        for name, case in cases.items()
        if len(case.model.graph.node) == 1 and case.model.graph.node[0].op_type in OURS
    }


def attributes_of(node):
    values = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    return {name: v.decode() if isinstance(v, bytes) else v for name, v in values.items()}


@pytest.mark.filterwarnings("ignore")
def test_published_nodes(published):
    """All of them equal what ONNX Runtime answers, and what ONNX expects."""
    compared, otherwise = [], []
    for name, case in published.items():
        (node,) = case.model.graph.node
        names = [value.name for value in case.model.graph.input]
        inputs, expected = case.data_sets[0]
        given = dict(zip(names, inputs))
        if node.op_type == "Resize" and any(word in name for word in NOT_OURS):
            continue
        result = OURS[node.op_type](*map(given.get, node.input), **attributes_of(node))
        results = result if isinstance(result, tuple) else (result,)
        ours = list(map(np.asarray, results))[
            : len(expected)
        ]  # without indices that are not asked for
        for found, theirs in zip(ours, run_model(case.model, given), strict=True):
            near(found, theirs, name, 1e-5, 1e-6)
        if name in OTHERWISE:
            otherwise.append(name)
            assert ours[0].shape != expected[0].shape or abs(ours[0] - expected[0]).max() > 0.1
            continue
        for found, theirs in zip(ours, expected, strict=True):
            near(found, theirs, name, case.rtol, case.atol)  # some results are printed in 4 digits
        compared.append(name)
    assert sorted(otherwise) == sorted(OTHERWISE)
    assert len(compared) >= 60


def near(ours, theirs, name, rtol, atol):
    np.testing.assert_allclose(ours, theirs, rtol=rtol, atol=atol, err_msg=name, strict=True)
