"""The benchmark harness: contenders compute the same, and the report holds what it should."""

import itertools
import json
import subprocess
import sys

import jax
import numpy as np
import pytest

from benchmarks import cases, check, kernels, modes, timing
from jaxunpool.core import backends, primitives

SHAPE = (2, 8, 8, 4)


def as_numpy(results):
    """Float arrays of a result, JAX's or PyTorch's, as NumPy."""
    leaves = jax.tree.leaves(results)
    arrays = [np.asarray(leaf.detach() if hasattr(leaf, "detach") else leaf) for leaf in leaves]
    return [a for a in arrays if a.dtype == np.float32]


def channels_last(array, layout):
    return np.moveaxis(array, 1, -1) if layout == "channels_first" else array


@pytest.mark.thorough
def test_contenders_compute_the_same():
    compared = 0
    wanted = (SHAPE, "float32", "cpu")
    for case in itertools.chain(cases.cases(*wanted), modes.cases(*wanted)):
        expected = as_numpy(case.contenders["jaxunpool"]())
        for name, run in case.contenders.items():
            layout = "channels_first" if name.startswith("torch") else case.layout
            if name == "copy":
                continue
            for ours, theirs in zip(expected, as_numpy(run()), strict=True):
                if case.operation == "unpool gradient" and case.window != "2x2/2":
                    continue  # PyTorch's goes to overwritten elements too
                np.testing.assert_allclose(
                    channels_last(ours, case.layout),
                    channels_last(theirs, layout),
                    rtol=1e-6,
                    atol=1e-6,
                )
                compared += 1
    assert compared >= len(cases.LAYOUTS) * (len(cases.OPERATIONS) * len(cases.WINDOWS) + 10)


def test_bytes_are_those_of_the_arrays():
    (case,) = cases.cases(SHAPE, "float32", "cpu", only="unpool 2x2/2 channels_last")
    x = 2 * 8 * 8 * 4
    assert case.moved_bytes == 4 * x + 4 * x // 4 + x // 4


def test_every_round_runs_every_contender():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    rounds = list(timing.interleaved(runs, repeats=4, warmup=1, calls=2))
    assert len(rounds) == 4
    assert sorted(calls) == sorted("abc" * 2 * 5)
    assert set(timing.medians(rounds)) == set("abc")


@pytest.mark.thorough
def test_every_primitive_has_its_peers():
    found = list(kernels.cases([SHAPE], ["float32"], "cpu", only="2x2/2"))
    assert [case.operation.split()[0] for case in found] == list(kernels.PRIMITIVES)
    for case in found:
        results = {name: run() for name, run in case.contenders.items()}
        assert {len(sets) for sets in results.values()} == {kernels.SETS}
        if "flax" in results:
            ours = [np.asarray(jax.tree.leaves(one)[0]) for one in results["xla"]]
            np.testing.assert_allclose(ours, results["flax"], rtol=1e-6, atol=1e-6)
        if "torch" in results:
            ours, theirs = as_numpy(results["xla"]), as_numpy(results["torch"])
            assert [a.size for a in ours] == [a.size for a in theirs]


def some_calls():
    """One of each primitive."""
    by_name = {call.primitive: (call, *rest) for call, *rest in check.calls()}
    assert set(by_name) == set(kernels.PRIMITIVES)
    return list(by_name.values())


@pytest.mark.parametrize("backend", backends.NAMES)
def test_check_has_calls_that_kernels_serve(backend):
    """Of each primitive and both layouts, with windows that overlap and that do not."""
    served = set()
    for call, shape, dtype in check.calls():
        pooled = call.primitive in ("scatter", "replicate")
        array = jax.ShapeDtypeStruct(call.geometry.pooled_shape(shape) if pooled else shape, dtype)
        if backends.unsupported(call, [array], backend) is None:
            served.add((call.primitive, call.geometry.overlaps, call.geometry.data_format))
    for primitive in kernels.PRIMITIVES:
        assert (primitive, True, "channels_last") in served
        assert (primitive, False, "channels_last") in served
        assert (primitive, False, "channels_first") in served


def test_check_compares_every_primitive():
    assert check.run(seed=0, chosen=some_calls()) == {"xla": 5}


@pytest.mark.parametrize("primitive", kernels.PRIMITIVES)
def test_check_finds_one_wrong_element(monkeypatch, primitive):
    right = primitives.bind

    def wrong(call, *arrays):
        results = right(call, *arrays)
        if call.implementation == "xla":
            return results
        first = jax.tree.leaves(results)[0]
        return jax.tree.map(lambda r: r.at[(0,) * r.ndim].add(1) if r is first else r, results)

    monkeypatch.setattr(primitives, "bind", wrong)
    chosen = [one for one in some_calls() if one[0].primitive == primitive]
    with pytest.raises(check.MismatchError, match=rf"^{primitive} .*float.*seed 0: not"):
        check.run(lambda call, arrays: [None, "xla"], seed=0, chosen=chosen)


def test_command(tmp_path):
    pytest.importorskip("rich")
    report = tmp_path / "new" / "report.json"
    command = [sys.executable, "-m", "benchmarks", "--shape", "1,8,8,2", "--repeats", "1"]
    done = subprocess.run(
        [*command, "--only", "unpool 2x2/2", "--json", report],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "channels_first" in done.stdout
    results = json.loads(report.read_text())
    assert results["shape"] == [1, 8, 8, 2]
    assert {r["layout"] for r in results["results"]} == set(cases.LAYOUTS)
    for result in results["results"]:
        assert result["median_seconds"]["jaxunpool"] > 0
        assert set(result["ratio"]) >= {"copy"}
    wrong = subprocess.run([*command, "--shape", "3"], capture_output=True, text=True)
    assert wrong.returncode != 0
    assert "expected batch,height,width,channels" in wrong.stderr
