"""What jax2onnx makes of the library's primitives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax2onnx.plugins.jax.lax._control_flow_utils import lower_jaxpr_eqns
from jax2onnx.plugins.plugin_system import PrimitiveLeafPlugin, register_primitive

from jaxunpool.deploy.formulations import formulations


def _plugin(name: str, run: Callable[..., Any]) -> None:
    class Plugin(PrimitiveLeafPlugin):
        def lower(self, ctx: Any, eqn: Any) -> None:
            inline(ctx, eqn, run)

    register_primitive(jaxpr_primitive=name, context="jaxunpool", component=name)(Plugin)


def inline(ctx: Any, eqn: Any, run: Callable[..., Any]) -> None:
    shapes = [jax.ShapeDtypeStruct(v.aval.shape, v.aval.dtype) for v in eqn.invars]
    closed = jax.make_jaxpr(lambda *arrays: run(*arrays, **eqn.params))(*shapes)
    jaxpr = closed.jaxpr
    for var, value in zip(jaxpr.constvars, closed.consts):
        ctx.bind_const_for_var(var, np.asarray(value))
    for inner, outer in zip(jaxpr.invars, eqn.invars):
        ctx.bind_value_for_var(inner, ctx.get_value_for_var(outer))
    lower_jaxpr_eqns(ctx, jaxpr, source="jaxunpool")
    for outer, inner in zip(eqn.outvars, jaxpr.outvars):
        ctx.bind_value_for_var(outer, ctx.get_value_for_var(inner))


for _name, _run in formulations("onnx").items():
    _plugin(_name, _run)
