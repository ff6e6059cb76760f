"""What jax2onnx makes of the library's primitives, as plugins of it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax2onnx
import numpy as np
import onnx_ir
from jax2onnx.plugins.jax.lax._control_flow_utils import lower_jaxpr_eqns
from jax2onnx.plugins.plugin_system import (
    PLUGIN_REGISTRY,
    PrimitiveLeafPlugin,
    import_all_plugins,
    register_primitive,
)

from jaxunpool.core.backends import check_runs_on
from jaxunpool.core.frozen import jnp, lax
from jaxunpool.core.geometry import WindowGeometry
from jaxunpool.core.primitives import PRIMITIVES
from jaxunpool.deploy import flat_positions, max_pools
from jaxunpool.deploy.formulations import formulations

convert = jax2onnx.to_onnx
PLATFORM = "onnx"


def inline(
    ctx: Any, run: Callable[..., Any], arrays: Sequence[Any], values: Sequence[Any]
) -> list[Any]:
    """The values of a function of plain JAX, converted where it is called.

    Args:
        ctx: of jax2onnx.
        run: the function.
        arrays: its arguments' shapes and types.
        values: its arguments in the ONNX graph.
    """
    shapes = [jax.ShapeDtypeStruct(array.shape, array.dtype) for array in arrays]
    closed = jax.make_jaxpr(run)(*shapes)
    for var, const in zip(closed.jaxpr.constvars, closed.consts):
        ctx.bind_const_for_var(var, np.asarray(const))
    for var, value in zip(closed.jaxpr.invars, values):
        ctx.bind_value_for_var(var, value)
    lower_jaxpr_eqns(ctx, closed.jaxpr, source="jaxunpool")
    return [ctx.get_value_for_var(var) for var in closed.jaxpr.outvars]


def _plugin(name: str) -> Callable[[Callable[[Any, Any], Any]], None]:
    """Makes `lower(ctx, eqn)`, which gives the values of the results, a plugin for a primitive."""

    def register(lower: Callable[[Any, Any], Any]) -> None:
        class Plugin(PrimitiveLeafPlugin):
            def lower(self, ctx: Any, eqn: Any) -> None:
                for var, value in zip(eqn.outvars, lower(ctx, eqn)):
                    ctx.bind_value_for_var(var, value)

        register_primitive(jaxpr_primitive=name, context="jaxunpool", component=name)(Plugin)

    return register


def _inputs(ctx: Any, eqn: Any) -> tuple[list[Any], list[Any]]:
    """Shapes and types of the arguments, and their values."""
    return [var.aval for var in eqn.invars], [ctx.get_value_for_var(var) for var in eqn.invars]


FORMULATIONS = formulations(PLATFORM)


def _plainly(ctx: Any, eqn: Any) -> list[Any]:
    """A primitive of the library as a function of plain JAX."""
    run = functools.partial(FORMULATIONS[eqn.primitive.name], **eqn.params)
    return inline(ctx, run, *_inputs(ctx, eqn))


for _name in FORMULATIONS:
    _plugin(_name)(_plainly)


# MaxPool and MaxUnpool


class Pooled(NamedTuple):
    """What is known of offsets that come from a `MaxPool`: its geometry and its results."""

    geometry: WindowGeometry
    y: Any
    y_in_planes: Any
    indices: Any


def _pooled(ctx: Any) -> dict[Any, Pooled]:
    """By the values of offsets."""
    return ctx.__dict__.setdefault("_jaxunpool_pooled", {})


@_plugin(PRIMITIVES["select"].name)
def _select(ctx: Any, eqn: Any) -> list[Any]:
    arrays, values = _inputs(ctx, eqn)
    call = eqn.params["call"]
    if not max_pools.serves(call.geometry, arrays[0]):
        return _plainly(ctx, eqn)
    check_runs_on(call, PLATFORM, export=True)
    pool = functools.partial(max_pools.pool, geometry=call.geometry)
    y, offsets, *results = inline(ctx, pool, arrays, values)
    _pooled(ctx)[offsets] = Pooled(call.geometry, y, *results)
    return [y, offsets]


@_plugin(PRIMITIVES["scatter"].name)
def _scatter(ctx: Any, eqn: Any) -> list[Any]:
    (array, offsets), (y, where) = _inputs(ctx, eqn)
    call, g = eqn.params["call"], eqn.params["call"].geometry
    if not isinstance(g, WindowGeometry):
        run = functools.partial(flat_positions.scatter, plane=g, how=call.duplicates)
        return inline(ctx, run, [array, offsets], [y, where])
    pooled, is_sum = _pooled(ctx).get(where), call.duplicates == "sum" and g.overlaps
    if pooled is None or pooled.geometry != g or is_sum or array.dtype != np.float32:
        return _plainly(ctx, eqn)
    check_runs_on(call, PLATFORM, export=True)
    planes = functools.partial(max_pools.planes, geometry=g)
    shape = jax.eval_shape(planes, jax.ShapeDtypeStruct(array.shape, array.dtype)).shape
    # Not transposed to and fro: jax2onnx loses a graph's result between two transposes.
    values = [pooled.y_in_planes] if y is pooled.y else inline(ctx, planes, [array], [y])
    unpool = functools.partial(max_pools.unpool, geometry=g, shape=array.shape)
    types = [jax.ShapeDtypeStruct(shape, dtype) for dtype in (array.dtype, np.int32)]
    return inline(ctx, unpool, types, [*values, pooled.indices])


def _window(geometry: Any) -> dict[str, list[int]]:
    low, high = zip(*max_pools.padding(geometry))
    return {
        "kernel_shape": list(geometry.window_shape),
        "strides": list(geometry.strides),
        "pads": [*low, *high],
    }


def _typed(value: Any, shape: Sequence[Any], dtype: onnx_ir.DataType) -> Any:
    value.type = onnx_ir.TensorType(dtype)
    value.shape = onnx_ir.Shape([size if isinstance(size, int) else str(size) for size in shape])
    return value


@_plugin(max_pools.MAX_POOL.name)
def _max_pool(ctx: Any, eqn: Any) -> list[Any]:
    geometry, (x,) = eqn.params["geometry"], _inputs(ctx, eqn)[1]
    names = [ctx.fresh_name("pooled"), ctx.fresh_name("indices")]
    window = {**_window(geometry), "dilations": list(geometry.dilation)}
    y, indices = ctx.builder.MaxPool(x, _outputs=names, **window)
    shape = eqn.outvars[0].aval.shape
    return [_typed(y, shape, x.dtype), _typed(indices, shape, onnx_ir.DataType.INT64)]


@_plugin(max_pools.POSITIONS.name)
def _positions(ctx: Any, eqn: Any) -> list[Any]:
    (indices,), shape = _inputs(ctx, eqn)[1], eqn.outvars[0].aval.shape
    size = ctx.builder.const_i64(ctx.fresh_name("plane"), [eqn.params["size"]])
    rest = ctx.builder.Mod(indices, size, _outputs=[ctx.fresh_name("position")])
    _typed(rest, shape, onnx_ir.DataType.INT64)
    name = ctx.fresh_name("position")
    narrow = ctx.builder.Cast(rest, to=int(onnx_ir.DataType.INT32), _outputs=[name])
    return [_typed(narrow, shape, onnx_ir.DataType.INT32)]


@_plugin(max_pools.MAX_UNPOOL.name)
def _max_unpool(ctx: Any, eqn: Any) -> list[Any]:
    y, indices = _inputs(ctx, eqn)[1]
    shape, build = eqn.outvars[0].aval.shape, ctx.builder
    known = [size for size in shape if isinstance(size, int)]
    output_shape = build.const_i64(ctx.fresh_name("output_shape"), known)
    if len(known) < len(shape):  # that of the batch is not
        batch = build.Shape(y, start=0, end=1, _outputs=[ctx.fresh_name("batch")])
        _typed(batch, [1], onnx_ir.DataType.INT64)
        name = ctx.fresh_name("output_shape")
        output_shape = build.Concat(batch, output_shape, axis=0, _outputs=[name])
        _typed(output_shape, [len(shape)], onnx_ir.DataType.INT64)
    name = ctx.fresh_name("unpooled")
    window = _window(eqn.params["geometry"])
    return [
        _typed(build.MaxUnpool(y, indices, output_shape, _outputs=[name], **window), shape, y.dtype)
    ]


@_plugin(flat_positions.SCATTER_ELEMENTS.name)
def _scatter_elements(ctx: Any, eqn: Any) -> list[Any]:
    data, indices, updates = _inputs(ctx, eqn)[1]
    name = ctx.fresh_name("scattered")
    u = ctx.builder.ScatterElements(data, indices, updates, _outputs=[name], **eqn.params)
    return [_typed(u, eqn.outvars[0].aval.shape, data.dtype)]


# Primitives of JAX that jax2onnx knows in part


def _extended(name: str) -> Callable[[Callable[[Any, Any], Any]], None]:
    """Makes `lower` a plugin for a primitive; where it gives None, that of jax2onnx is used."""
    import_all_plugins()
    known = PLUGIN_REGISTRY[name]

    def register(lower: Callable[[Any, Any], Any]) -> None:
        class Plugin(type(known)):  # type: ignore[misc]
            def lower(self, ctx: Any, eqn: Any) -> None:
                values = lower(ctx, eqn)
                if values is None:
                    super().lower(ctx, eqn)
                else:
                    ctx.bind_value_for_var(eqn.outvars[0], values[0])

        register_primitive(**known.metadata)(Plugin)

    return register


@_extended("pad")
def _pad(ctx: Any, eqn: Any) -> list[Any] | None:
    """With padding between elements, or with sizes that are not known."""
    pads, shape = eqn.params["padding_config"], eqn.outvars[0].aval.shape
    arrays, values = _inputs(ctx, eqn)
    low, high, between = zip(*pads) if pads else ((), (), ())
    if any(between):
        return inline(ctx, lambda x, value: spread(x, value, pads), arrays, values)
    if all(isinstance(size, int) for size in shape):
        return None
    x, value = values
    ends = ctx.builder.const_i64(ctx.fresh_name("pads"), [*low, *high])
    padded = ctx.builder.Pad(x, ends, value, _outputs=[ctx.fresh_name("padded")])
    return [_typed(padded, shape, x.dtype)]


@_extended("broadcast_in_dim")
def _broadcast_in_dim(ctx: Any, eqn: Any) -> list[Any] | None:
    """The derivative of integers, which nothing reads."""
    if eqn.outvars[0].aval.dtype != jax.dtypes.float0:
        return None
    return [ctx.bind_const_for_var(eqn.outvars[0], np.zeros((), bool))]


def spread(x: jax.Array, value: jax.Array, pads: Sequence[tuple[int, int, int]]) -> jax.Array:
    """`lax.pad` without padding between elements: each gets its own, in an axis that is merged."""
    ends = []
    for axis, (low, high, between) in enumerate(pads):
        ends.append((low, high - between if x.shape[axis] else high, 0))
        if between:
            apart = lax.pad(
                jnp.expand_dims(x, axis + 1),
                value,
                [(0, between if i == axis + 1 else 0, 0) for i in range(x.ndim + 1)],
            )
            shape = (*x.shape[:axis], x.shape[axis] * (between + 1), *x.shape[axis + 1 :])
            x = apart.reshape(shape)
    return lax.pad(x, value, ends)
