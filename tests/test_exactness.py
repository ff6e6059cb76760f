"""Every public function, computed in every way: the bits or the bounds of docs/exactness.md."""

import dataclasses
import functools
import os
import pathlib
import re
import subprocess
import sys
import tempfile

import exactness
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_cases import TESTED, skip_if_not_compiled
from jax.extend import core as jex
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from namespace import TABLE
from strategies import only

from jaxunpool.core import backends, lowering, primitives

pytestmark = pytest.mark.usefixtures("compiled_as_users_do")
PAGE = pathlib.Path(__file__).parent.parent / "docs/exactness.md"
WAYS = ("jit", "vmap", "devices", "implementations", "threads", "versions")
ROW = re.compile(r"^\| `([\w.]+)` \| (.*) \|$", re.MULTILINE)
STATED = {
    name: dict(zip(WAYS, cells.split(" | "), strict=True))
    for name, cells in ROW.findall(PAGE.read_text())
}
PLATFORM = {backend.name: backend.platform for backend in backends.BACKENDS}
# A maximum, a sum and a division, with their gradients: the fast tier has them as one program,
# the thorough tier every function by itself.
FEW = ("max_unpool", "avg_pool")
names = pytest.mark.parametrize("names", only((FEW,), among=[(FEW,), *(((n,),) for n in TABLE)]))


def batches(name):
    return exactness.argument(name, (3, 7, 8, 2), (3, 4, 4, 2))


def even(name):
    """Axes that two, four and eight devices can share; what they unpool has an odd one."""
    return exactness.argument(name, (8, 16, 16, 8), (8, 8, 8, 8))


def wide(name):
    """What kernels for TPU and GPU serve: eighths, of which no product of two is rounded."""
    return np.round(8 * exactness.argument(name, (2, 7, 8, 128), (2, 4, 4, 128))) / 8


def arguments(names, argument):
    return {name: argument(name) for name in names}


@functools.lru_cache(maxsize=1)  # the tests of one parameter follow each other
def expected(names, argument):
    return jax.jit(exactness.program(names))(arguments(names, argument))


def check(way, found, wanted):
    """Equal bits, or as many units in the last place of the largest number as are stated."""
    assert sorted(found) == sorted(wanted)
    for name in found:
        stated = STATED[name][way]
        bound = 0 if stated == "equal" else int(stated)
        for a, b in zip(found[name], wanted[name], strict=True):
            a, b = np.asarray(a), np.asarray(b)
            assert (a.shape, a.dtype) == (b.shape, b.dtype), name
            if bound and a.dtype == np.float32:
                error = np.abs(a - b).max() / (np.abs(b).max() * 2.0**-23)
                assert error <= bound, (name, error)
            else:
                assert a.tobytes() == b.tobytes(), (name, np.abs(a - b).max())


def test_the_page_is_complete():
    """Bounds are of what multiplies and adds, or adds in an order that XLA chooses."""
    assert sorted(STATED) == sorted(TABLE)
    cells = {
        name: [int(cell) for cell in row.values() if cell.isdigit()] for name, row in STATED.items()
    }
    assert {name: max(bounds) for name, bounds in cells.items() if bounds} == {
        "conv_general_dilated": 16,
        "conv_transpose": 16,
        "global_avg_pool": 8,
        "interpolate": 8,
        "lp_pool": 4,
    }


@names
def test_eager_and_again(names):
    """Without `jit`; and by the same program once more, and compiled once more."""
    run, of = exactness.program(names), arguments(names, batches)
    wanted = expected(names, batches)
    check("jit", run(jax.tree.map(jnp.asarray, of)), wanted)
    for program in (jax.jit(lambda of: run(of)),) * 2:
        assert jax.tree.all(jax.tree.map(np.array_equal, program(of), wanted))


@names
def test_vmap_and_a_batch(names):
    of, wanted = arguments(names, batches), expected(names, batches)
    found = jax.jit(jax.vmap(exactness.program(names)))(of)
    found = jax.tree.map(lambda a, b: a.reshape(b.shape), found, wanted)
    if STATED[names[0]]["vmap"] == "apart":
        assert not jax.tree.all(jax.tree.map(np.array_equal, found, wanted))
    else:
        check("vmap", found, wanted)


KINDS = (AxisType.Auto, AxisType.Explicit)
MESHES = [(AxisType.Auto, 8, 0), (AxisType.Explicit, 2, 1), (AxisType.Auto, 4, 2)]
EVERY_MESH = [
    (kind, count, axis)
    for kind in KINDS
    for count, axis in ((1, 0), (2, 3), (4, 2), (8, 0), (8, 1))
]


@names
def test_devices(names):
    of, wanted = arguments(names, even), expected(names, even)
    for kind, count, axis in MESHES if names == FEW else EVERY_MESH:
        devices = jax.devices()[:count]
        mesh = jax.make_mesh((count,), ("some",), axis_types=(kind,), devices=devices)
        placed = jax.device_put(of, NamedSharding(mesh, PartitionSpec(*[None] * axis, "some")))
        run = jax.jit(exactness.program(names))
        if (names, kind, axis) == (("conv_general_dilated",), AxisType.Explicit, 3):
            with pytest.raises(Exception, match="out_sharding"):
                run(placed)  # JAX's own, which has to be told
            continue
        check("devices", run(placed), wanted)


def with_backend(backend, jaxpr, arrays):
    """A program evaluated step by step, its window primitives by a backend where that serves them.

    Interpreted kernels call back, for which the lowering of a primitive has no room.
    """
    values = dict(zip(jaxpr.jaxpr.invars, arrays, strict=True))
    values |= dict(zip(jaxpr.jaxpr.constvars, jaxpr.consts, strict=True))
    read = lambda one: one.val if isinstance(one, jex.Literal) else values[one]
    served = set()
    for step in jaxpr.jaxpr.eqns:
        inputs = [read(one) for one in step.invars]
        inner = step.params.get("jaxpr") or step.params.get("call_jaxpr")
        if step.primitive in primitives.PRIMITIVES.values():
            call = step.params["call"]
            refused = call.primitive == "correlate" or backends.unsupported(call, inputs, backend)
            served |= set() if refused else {call.primitive}
            call = dataclasses.replace(call, implementation="xla" if refused else backend)
            run = functools.partial(lowering.on_device, PLATFORM[backend], call)
            outputs = jax.jit(run)(*inputs)
        elif inner is None or step.primitive.name == "scan":
            outputs = step.primitive.bind(*inputs, **step.params)
        else:
            closed = inner if isinstance(inner, jex.ClosedJaxpr) else jex.ClosedJaxpr(inner, [])
            outputs, more = with_backend(backend, closed, inputs)
            served |= more
        several = isinstance(outputs, list | tuple)
        values |= zip(step.outvars, outputs if several else [outputs], strict=True)
    return [read(one) for one in jaxpr.jaxpr.outvars], served


@names
def test_plain_jax(names, monkeypatch):
    """And the kernels for CPU, in whole programs."""
    skip_if_not_compiled("native_cpu")
    of, run = arguments(names, wide), exactness.program(names)
    wanted = expected(names, wide)
    monkeypatch.setattr(backends, "choose", lambda *call, **how: backends.Choice("xla", "asked"))
    check("implementations", jax.jit(lambda of: run(of))(of), wanted)


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["mosaic_tpu", "mosaic_gpu"])
@pytest.mark.parametrize("names", [("avg_unpool",), ("avg_pool",), ("max_unpool",)])
def test_interpreted_kernels(names, backend):
    """All five primitives; test_backends.py has more calls of each."""
    if not TESTED[backend].runs:
        pytest.skip("this jax has no interpreter for it")
    of, run = arguments(names, wide), exactness.program(names)
    wanted = expected(names, wide)
    leaves = list(map(jnp.asarray, jax.tree.leaves(of)))
    with TESTED[backend].runs[-1]():
        found, served = with_backend(backend, jax.make_jaxpr(run)(of), leaves)
    check("implementations", jax.tree.unflatten(jax.tree.structure(wanted), found), wanted)
    assert served


@names
def test_versions_of_jax(names):
    """What another version gave, on another machine."""
    recorded = exactness.load(exactness.RECORDED)
    check("versions", exactness.results(names, exactness.small), {n: recorded[n] for n in names})


@functools.cache
def with_threads(count):
    """What a process with so many threads gives for large arrays."""
    script = pathlib.Path(exactness.__file__)
    paths = os.pathsep.join(map(str, (script.parent, script.parent.parent)))
    settings = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": paths}
    settings |= dict.fromkeys(("NPROC", "PJRT_NPROC"), str(count))
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder, "results.npz")
        command = [sys.executable, str(script), str(file)]
        subprocess.run(command, env=os.environ | settings, check=True, timeout=900)
        return exactness.load(file)


@pytest.mark.thorough
@pytest.mark.parametrize("count", [2, 5, 16])
def test_threads(count):
    check("threads", with_threads(count), with_threads(1))
