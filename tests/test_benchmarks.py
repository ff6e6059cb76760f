"""The benchmark harness: contenders compute the same, and the report holds what it should."""

import functools
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from backend_cases import TESTED, skip_if_not_compiled
from strategies import only

import jaxunpool
from benchmarks import __main__ as command
from benchmarks import (
    check,
    convolutions,
    grid,
    kernels,
    latency,
    memory,
    report,
    scaling,
    steps,
    timing,
)
from jaxunpool.core import backends, primitives
from jaxunpool.kernels.native_cpu import library

ROOT = pathlib.Path(__file__).parent.parent
SHAPES = ("2x14x4", "2x14x15x4", "1x14x7x8x2")


def as_numpy(results):
    """Float arrays of a result, JAX's or PyTorch's, as NumPy."""
    leaves = jax.tree.leaves(results)
    arrays = [np.asarray(leaf.detach() if hasattr(leaf, "detach") else leaf) for leaf in leaves]
    return [a for a in arrays if a.dtype == np.float32]


def compare_contenders(case):
    """How many contenders gave the numbers that ours did."""
    runs = case.make()
    expected = as_numpy(runs.pop("jaxunpool")())
    assert expected
    if case.operation == "max unpool gradient" and case.window not in grid.TILES:
        return len(runs)  # PyTorch's goes to overwritten elements too
    for name, run in runs.items():
        for ours, theirs in zip(expected, as_numpy(run()), strict=True):
            if name.startswith("torch") and case.layout == "channels_last":
                theirs = np.moveaxis(theirs, 1, -1)
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6, err_msg=case.name)
    return len(runs)


@pytest.mark.thorough
def test_contenders_compute_the_same():
    cases = [c for c in grid.cases(SHAPES[1:2], ["float32"]) if c.window == "3/2 pad 1"]
    compared = {case.operation: compare_contenders(case) for case in cases}
    torch = 2 * grid.HAS_TORCH
    assert compared == {
        "max pool": torch + 1,
        "max pool and gradient": torch + 1,
        "max pool with indices": torch,
        "max unpool": torch,
        "max unpool gradient": torch,
        "avg pool": torch + 1,
        "avg pool gradient": torch + 1,
    }


@pytest.mark.thorough
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", grid.LAYOUTS)
def test_all_contenders_compute_the_same(shape, layout):
    cases = [c for c in grid.cases([shape], ["float32"], full=True) if c.layout == layout]
    assert {case.window for case in cases} > set(grid.WINDOWS)
    assert sum(map(compare_contenders, cases)) >= 10


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", grid.DTYPES[1:])
def test_contenders_without_a_type_are_left_out(dtype):
    """PyTorch has no averages in three dimensions for them."""
    for case in grid.cases(SHAPES[2:], [dtype]):
        if case.window == "2/2":
            assert next(iter(case.make())) == "jaxunpool"


def test_the_grid_has_every_cell():
    default, full = (list(grid.cases(full=full)) for full in (False, True))
    for operation in {case.operation for case in default}:
        names = [case.name for case in default if case.operation == operation]
        assert len(set(names)) == len(names) == 50
    assert {case.name for case in default} < {case.name for case in full}
    assert len({case.name for case in full}) == len(full)
    assert {case.layout for case in full} == set(grid.LAYOUTS)
    own = list(grid.cases(["4x97x131x24"], ["float16"]))
    assert {(case.shape, case.dtype) for case in own} == {("4x97x131x24", "float16")}


def test_an_implementation_without_a_kernel_is_left_out():
    cases = grid.cases(["1x8x8x2"], ["float32"], "mosaic_tpu")
    assert "jaxunpool" not in next(cases).make()


@pytest.mark.thorough
def test_latency(monkeypatch):
    monkeypatch.setattr(latency, "COMPILED", "1x14x15x2")
    *compiled, call = latency.cases()
    assert [case.window for case in compiled] == list(grid.WINDOWS)
    for case in (compiled[1], call):
        times = timing.measure(case.make(), repeats=2, calls=case.calls)
        assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in times.values())
        assert next(iter(times)) == "jaxunpool"


@pytest.mark.thorough
def test_every_round_runs_every_contender():
    calls = []
    runs = {name: lambda name=name: calls.append(name) for name in "abc"}
    times = timing.measure(runs, repeats=4, warmup=1, calls=2)
    assert {name: len(seconds) for name, seconds in times.items()} == dict.fromkeys("abc", 4)
    assert sorted(calls) == sorted("abc" * (1 + 2 * 5))  # one to see what waits for its result
    assert len(timing.measure(runs, repeats=9, seconds=0)["a"]) == timing.LEAST_ROUNDS
    assert len(timing.measure(runs, repeats=9, seconds=0, calls=1)["a"]) == 9


@pytest.mark.thorough
def test_every_primitive_has_its_peers():
    cases = kernels.cases(["2x8x8x4"], ["float32"], "cpu")
    found = [case for case in cases if case.window == "2x2/2" and case.layout == "channels_last"]
    others = [f"{name}, compiled peers" for name in ("select", "scatter", "reduce")]
    assert [case.operation for case in found] == [*kernels.PRIMITIVES, *others]
    for case in found:
        results = {name: run() for name, run in case.make().items()}
        assert {len(sets) for sets in results.values()} == {kernels.SETS}
        if "flax" in results:
            ours = [np.asarray(jax.tree.leaves(one)[0]) for one in results["xla"]]
            np.testing.assert_allclose(ours, results["flax"], rtol=1e-6, atol=1e-6)
        if "torch" in results:
            ours, theirs = as_numpy(results["xla"]), as_numpy(results["torch"])
            assert [a.size for a in ours] == [a.size for a in theirs]


def test_what_targets_are_about_comes_first():
    cases = list(kernels.cases(["2x8x8x4", "1x8x8x8"], device="cpu"))
    assert len({case.name for case in cases}) == len(cases)
    core = 2 * 2 * (2 * len(kernels.PRIMITIVES) + 1)  # 3x3 has one more
    assert {case.layout for case in cases[:core]} == {"channels_last"}
    assert {case.operation for case in cases[:core]} == set(kernels.OPERATIONS)
    for case in cases[core:]:
        assert case.layout == "channels_first" or case.operation.endswith(", compiled peers")


@pytest.mark.thorough
def test_pytorch_on_a_gpu(monkeypatch):
    """What is asked of it there, with the CPU in the place of a GPU."""
    torch = pytest.importorskip("torch")
    randn, empty, compiled = torch.randn, torch.empty, []
    monkeypatch.setattr(torch, "randn", lambda *sizes, device, **rest: randn(*sizes, **rest))
    monkeypatch.setattr(torch, "empty", lambda *sizes, device, **rest: empty(*sizes, **rest))

    def compile(function, dynamic):
        compiled.append(dynamic)
        return function

    monkeypatch.setattr(torch, "compile", compile)
    cases = {case.operation: case for case in kernels.cases(["2x8x8x4"], ["bfloat16"], "cuda")}
    eager = cases[kernels.LAST].make()
    assert {"torch", "copy torch", "copy"} < set(eager)
    assert not compiled
    others = cases["select, compiled peers"].make()
    assert {"torch.compile", "copy torch", "flax"} < set(others)
    assert compiled == [False]
    wrong = functools.partial(
        kernels._torch_run,
        "select",
        (2, 2, 0),
        "channels_last",
        (2, 8, 8, 4),
        "no type",
        "cuda",
        False,
    )
    runs, ours, errors = kernels.running(eager | kernels._torch(wrong, "torch"))
    assert list(errors) == ["torch"]
    assert errors["torch"].startswith("AttributeError")
    assert "copy torch" in runs
    assert check.same_bits(ours) == []


def test_bytes_are_those_of_the_arrays():
    select, *_ = kernels.cases(["2x8x8x4"], ["float32"], "cpu")
    x = 2 * 8 * 8 * 4
    assert select.moved_bytes == 4 * x + 4 * x // 4 + x // 4


def some_calls():
    """One of each primitive."""
    by_name = {call.primitive: (call, *rest) for call, *rest in check.calls()}
    assert set(by_name) == set(kernels.PRIMITIVES)
    return list(by_name.values())


@pytest.mark.parametrize("backend", backends.NAMES)
def test_check_has_calls_that_kernels_serve(backend):
    """Of each primitive and both layouts, with windows that overlap and that do not."""
    skip_if_not_compiled(backend)
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
    names = ["xla"] if library.missing() else ["xla", "native_cpu"]
    found = check.run(seed=0, chosen=some_calls())
    assert found == check.Findings(dict.fromkeys(names, 5))
    assert found + check.run(seconds=-1) == check.Findings(found.right, [], list(check.calls()))


@pytest.mark.skipif(not TESTED["mosaic_gpu"].runs, reason="this JAX has no interpreter")
def test_check_interprets_kernels():
    chosen = [one for one in check.calls() if one[1] == check.SHAPES[0][0]][:6]
    with kernels.interpreter():
        found = check.run(seed=0, chosen=chosen, interpret=True)
    assert found == check.Findings({"xla": 6, "mosaic_gpu": 6})


def test_large_results_have_the_same_bits():
    one, other = jnp.zeros(3), -jnp.zeros(3)
    assert check.same_bits({"a": [one], "xla": [one]}) == []
    assert check.same_bits({"a": [other], "xla": [one]}) == ["a: not the bits of xla"]


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
    found = check.run(lambda call, arrays: [None, "xla"], seed=0, chosen=chosen)
    assert found.right == {"xla": 1}
    (wrong,) = found.wrong
    assert re.match(rf"{primitive} .*float.*seed 0: not", wrong)
    assert f"WRONG: {wrong}" in str(found)


def run_command(*arguments, start=("-m", "benchmarks")):
    command = [sys.executable, *start, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)


# What a machine with a GPU has, where nothing can be installed.
THERE = ("jax", "jaxlib", "flax", "numpy", "rich", "torch", "scipy", "hypothesis", "pytest")
WITHOUT_THE_REST = f"""
import importlib.metadata, re, runpy, sys

def needs(name, found):
    try:
        requires = importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return found
    found.add(name)
    for one in requires:
        other = re.match(r"[\\w.-]+", one)[0].lower().replace("_", "-")
        if "extra ==" not in one and other not in found:
            needs(other, found)
    return found

there = set()
for name in {THERE}:
    needs(name, there)
owners = importlib.metadata.packages_distributions()

class Finder:
    def find_spec(self, name, path=None, target=None):
        of = [o.lower().replace("_", "-") for o in owners.get(name.split(".")[0], ())]
        if of and "jaxunpool" not in of and not there.intersection(of):
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Finder())
try:
    import matplotlib
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("nothing is kept out")
runpy.run_module("benchmarks", run_name="__main__", alter_sys=True)
"""


@pytest.mark.thorough
def test_rehearsal_of_a_run_on_a_gpu(tmp_path):
    """With the packages that are there; the file of results holds all that came before its end."""
    path = tmp_path / "gpu.json"
    mode = ["--interpret"] if TESTED["mosaic_gpu"].runs else ["--suite", "kernels"]
    options = ["--shapes", "8x8x8x64", "--repeats", "1", "--minutes", "3", "--json", path]
    only = ["--only", "select", "2x2/2", "float32", "channels_last"]
    done = run_command(*mode, *options, *only, start=("-c", WITHOUT_THE_REST))
    assert done.returncode == 0, done.stderr
    assert "Targets met" in done.stdout
    measured = report.load(path)
    assert measured["failed"] == measured["skipped"] == []
    assert len(measured["results"]) == 2
    for result in measured["results"]:
        assert {"xla", "copy"} < set(result["seconds"])
        assert ("mosaic_gpu" in result["seconds"]) == bool(TESTED["mosaic_gpu"].runs)


def test_what_fails_or_is_too_late_is_named(tmp_path, monkeypatch):
    """And what was measured is in the file at once."""
    path, seen = tmp_path / "some.json", []

    def case(name, make):
        return timing.Case(name, "1x8x2", "2x2/2", "float32", "channels_last", make, calls=1)

    def fails():
        raise ValueError("no memory")

    def runs():
        return {"xla": lambda: jnp.ones(2), "copy": lambda: None, "torch": fails}

    def ends():
        seen.append(report.load(path)["results"])
        monkeypatch.setattr(command, "START", -1e9)
        return runs()

    made = [case("a", fails), case("b", runs), case("c", ends), case("d", runs)]
    monkeypatch.setattr(kernels, "cases", lambda *_: made)
    options = command.parse(["--suite", "kernels", "--repeats", "1", "--json", str(path)])
    measured = command._measure(options, "cpu", 1e6, rich_console())
    assert [one["operation"] for one in seen[0]] == ["b"]
    assert [one["operation"] for one in measured["results"]] == ["b", "c"]
    place = "1x8x2 2x2/2 float32 channels_last"
    assert measured["failed"] == [
        f"a {place}: ValueError: no memory",
        *(f"{name} {place}: torch: ValueError: no memory" for name in "bc"),
    ]
    assert measured["skipped"] == [f"d {place}"]
    assert report.load(path) == measured
    assert report.problems(measured).count("FAILED: ") == 3
    assert f"- d {place}" in report.unfinished(measured)


def rich_console():
    return pytest.importorskip("rich.console").Console(quiet=True)


@pytest.mark.parametrize("options", [["--platform", "gpu"], ["--suite", "grid"]])
def test_only_kernels_are_interpreted(options, capsys):
    with pytest.raises(SystemExit):
        command.parse(["--interpret", *options])
    assert "--interpret" in capsys.readouterr().err


@pytest.mark.thorough
def test_command(tmp_path):
    pytest.importorskip("rich")
    path = tmp_path / "new" / "report.json"
    options = ["--shapes", "1x8x8x2", "--repeats", "1", "--implementation", "xla", "--json", path]
    done = run_command(*options, "--only", "max pool", "2/2 float32")
    assert done.returncode == 0, done.stderr
    assert "max pool and gradient" in done.stdout
    measured = report.load(path)
    assert measured["implementation"] == "xla"
    assert report.dump(measured) == path.read_text()
    assert json.loads(path.read_text()) == measured
    found = report.distinct(measured["results"], "operation")
    pools = ["max pool", "max pool and gradient", "max pool with indices"]
    assert found == [*latency.OPERATIONS, *pools[: None if grid.HAS_TORCH else 2]]
    for result in report.grid(measured):
        assert result["shape"] == "1x8x8x2"
        assert all(seconds[0] > 0 for seconds in result["seconds"].values())
    wrong = run_command("--shapes", "3")
    assert wrong.returncode != 0
    assert "expected a shape" in wrong.stderr


# Tables.


def result(operation, shape, **milliseconds):
    """A result of one round."""
    seconds = {name.replace("_", " ", 1): [ms / 1e3] for name, ms in milliseconds.items()}
    rest = {"window": "2/2", "dtype": "float32", "layout": "channels_last"}
    return {"operation": operation, "shape": shape, **rest, "seconds": seconds}


SOME = [
    result("a", "1x8x2", jaxunpool=2, torch_contiguous_format=4, torch_channels_last=1, flax=20),
    result("a", "1x9x2", jaxunpool=1, torch_contiguous_format=4, torch_channels_last=8, flax=5),
    result("b", "1x8x2", jaxunpool=1, torch_contiguous_format=0.85),
]


def test_the_faster_memory_format_counts():
    assert report.ratios(SOME[0]) == {"torch": 0.5, "flax": 10}


def test_targets():
    def kernel(operation, **milliseconds):
        seconds = {name.replace("y_", "y "): [ms / 1e3] for name, ms in milliseconds.items()}
        return {**result(operation, "8x8x8x64"), "seconds": seconds, "moved_bytes": 2e9}

    results = [
        kernel("select", mosaic_gpu=1, xla=2, torch=1.4, copy=0.9, copy_torch=0.95),
        kernel("scatter", mosaic_gpu=2, xla=1, torch=2, copy=0.8),
        kernel("reduce", xla=1, torch=0.1, copy=1.2),
        kernel("reduce, compiled peers", xla=1, flax=1, copy=1),
    ]
    text = report.targets({"results": results})
    assert "2 of 3 beside a copy, 1 of 2 beside PyTorch" in text.replace("\n", " ")
    assert "2.22 TB/s" in text
    assert "| select | 8x8x8x64 | 2/2 | float32 | 45 | 90 | 1.40 | missed: PyTorch |" in text
    assert "| scatter | 8x8x8x64 | 2/2 | float32 | 80 | 40 | 2.00 | missed: a copy |" in text
    assert "| reduce | 8x8x8x64 | 2/2 | float32 | 120 | - | 0.10 | met |" in text


def test_summary():
    lines = [line.split(" | ") for line in report.summary(SOME).splitlines()[2:]]
    assert lines[0][1:5] == ["1.41", "0.50", "1 of 2", "1"]  # sqrt(0.5 * 4)
    assert lines[1][1:5] == ["0.85", "0.85", "1 of 1", "0"]
    assert lines[0][5:] == ["7.07", "5.00", "0 of 2", "0 |"]
    assert lines[2][0] == "| all"
    assert lines[2][3:5] == ["2 of 3", "1"]


def test_worst_cells_come_first():
    lines = report.worst(SOME, 2).splitlines()[2:]
    assert [line.split(" | ")[-1] for line in lines] == ["0.50 |", "0.85 |"]
    assert "| a | 1x8x2 | 2/2 | float32 | PyTorch | 1 ms | 2 ms |" in lines[0]


def test_every_cell_is_shown():
    text = report.whole(SOME)
    assert "| 1x8x2 | 2/2 | 2 ms · 0.50 · 10.00 |" in text
    assert "| 1x8x2 | 2/2 | 1 ms · 0.85 |" in text


@pytest.mark.parametrize("page", report.PAGES, ids=lambda page: page.name)
def test_tables_are_what_was_measured(page):
    """Else run `python -m benchmarks.report`."""
    text = page.read_text()
    assert report.MARKED.search(text)
    assert report.text(text) == text


def test_pictures_are_of_what_was_measured():
    """Else run `python -m benchmarks.report`."""
    plot = pytest.importorskip("benchmarks.plot")
    files = [path for path in report.RESULTS.glob("*.json") if report.grid(report.load(path))]
    assert {path.stem for path in files} == {path.stem for path in report.IMAGES.iterdir()}
    for path in files:
        assert plot.digest(path) in (report.IMAGES / f"{path.stem}.svg").read_text()


def test_a_picture_has_a_panel_for_every_peer_of_an_operation():
    plot = pytest.importorskip("benchmarks.plot")
    figure = plot.draw(SOME)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_visible()]
    plot.plt.close(figure)
    assert titles == ["a: PyTorch", "a: Flax", "b: PyTorch"]


# Scaling.


def test_slopes():
    sizes = [10.0, 100.0, 1000.0]
    assert scaling.slope(sizes, [3 * size**1.5 for size in sizes]) == pytest.approx(1.5)
    rows = [
        {"operation": "a", "window": "2/2", "elements": n, "seconds": [9, n * 1e-9, 0]}
        for n in (10**5, 10**6)
    ]
    assert "| a | 2/2 | 1 | 1 | 1.00 | 1.00 |" in scaling.elements_table(rows)


def test_times_against_elements_and_windows(monkeypatch):
    monkeypatch.setattr(scaling, "LIMITS", {"repeats": 1, "calls": 1})
    monkeypatch.setattr(scaling, "TIMED", (("max pool", ""), ("max unpool", "gradient")))
    monkeypatch.setattr(scaling, "ELEMENT_WINDOWS", {"2/2": (2, 2, 0)})
    rows = list(scaling.against_elements((1e2, 1e3)))
    assert [(r["operation"], r["elements"]) for r in rows[::3]] == [
        ("max pool", 256),
        ("max unpool gradient", 1024),
    ]
    assert len(scaling.elements_table(rows).splitlines()) == 4
    rows = list(scaling.against_windows({"1x8x8x2": (2, 3)}))
    found = [(r["stride"], r["window"], r["volume"]) for r in rows]
    assert found[:2] == [("the window", "2x2", 4), ("the window", "3x3", 9)]
    assert "| max pool | 2 |" in scaling.windows_table(rows)
    assert all(seconds > 0 for r in rows for seconds in r["seconds"])


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "parts", only(((2, 1, 2, 2),), among=[((8, 1, 1, 1),), ((1, 2, 2, 1),), ((2, 1, 2, 2),)])
)
@pytest.mark.parametrize("operation", scaling.OPERATIONS)
def test_programs_cost_what_is_on_paper(operation, parts):
    layout = scaling.Layout((8, 16, 24, 4), parts)
    row = scaling.compiled(operation, "3x3/2 pad 1", layout)
    assert scaling.is_as_on_paper(row)
    assert (row["collectives"] > 0) == (parts[1] * parts[2] > 1)


def test_paper_refuses_splits_that_are_gathered():
    with pytest.raises(ValueError, match="the windows divide"):
        scaling.on_paper("avg pool", "2x2/2", scaling.Layout((1, 6, 8, 1), (1, 2, 1, 1)))


def test_recorded_programs_cost_what_is_on_paper():
    """Else run `python -m benchmarks.scaling --only devices pod --json benchmarks/scaling.json`."""
    found = scaling.load()
    for part, layouts in (("devices", scaling.layouts()), ("pod", scaling.POD)):
        expected = [(o, w, *layout) for o, w, layout in scaling.every_program(layouts)]
        assert [
            (r["operation"], r["window"], *scaling.layout_of(r)) for r in found[part]
        ] == expected
        assert all(map(scaling.is_as_on_paper, found[part]))
    assert scaling.dump(found) == scaling.FILE.read_text()


def test_collectives_are_counted():
    program = """
      %a = f32[1,2,16,8]{3,2,1,0} collective-permute(%x), channel_id=1
      %b = (u8[4]{0}, bf16[2,3]{1,0}) all-gather(%y, %z), channel_id=2
      %c = f32[9]{0} add(%a, %b)
    """
    assert scaling.collectives(program) == (3, 4 * 256 + 4 + 12)


SMALL = {"widths": ((8, 8), (16,)), "back": ((16, 8), (8,))}
IMAGES = (2, 21, 30)
POOLED = 2 * (10 * 15 * 8 + 5 * 7 * 16)


@pytest.mark.thorough
def test_memory_of_a_step():
    """Indices are an eighth of PyTorch's, packed ones a 32nd; all networks are the same size."""
    rows = {name: memory.of_jax(m, IMAGES) for name, m in memory.networks(**SMALL).items()}
    plain, packed, *_ = rows.values()
    assert [row["of them indices"] for row in rows.values()] == [
        POOLED, POOLED // 4, POOLED, 0, 0,
    ]  # fmt: skip
    assert plain["kept"] - packed["kept"] == POOLED - POOLED // 4
    assert len({row["parameters"] for row in rows.values()}) == 1
    assert all(row["peak"] > row["parameters"] for row in rows.values())
    lines = memory.table(rows).splitlines()
    assert lines[0] == "| MiB | kept | of them indices | parameters | peak |"
    assert [line.split(" | ")[0] for line in lines[2:]] == [f"| {name}" for name in rows]
    pytest.importorskip("torch")
    torch = memory.of_torch(IMAGES, **SMALL)
    assert torch["of them indices"] == 8 * POOLED
    assert torch["parameters"] == plain["parameters"]
    assert torch["kept"] > torch["of them indices"]
    assert memory.table({"PyTorch": torch}).splitlines()[-1].endswith("|  |")


def test_ways_back_of_flax():
    x = np.random.default_rng(0).standard_normal((2, 5, 6, 3)).astype(np.float32)
    y, indices = jaxunpool.max_pool_with_indices(x, (2, 2))
    np.testing.assert_array_equal(memory.masked(2 * y, x, y), jaxunpool.max_unpool(2 * y, indices))
    assert memory.resized(y, x, y).shape == x.shape


@pytest.mark.thorough
def test_memory_as_a_command(monkeypatch, tmp_path, capsys):
    images, json_ = "1x32x33", tmp_path / "memory.json"
    made = memory.networks(**SMALL)
    monkeypatch.setattr(memory, "networks", lambda: dict(list(made.items())[:2]))
    columns = ("kept", "of them indices", "parameters", "peak")
    monkeypatch.setattr(memory, "of_torch", lambda images: dict.fromkeys(columns))
    monkeypatch.setattr(memory, "planes", lambda images: [(1, 4, 6, 8)])
    memory.main(["--images", images, "--times", "--repeats", "2", "--json", str(json_)])
    found = json.loads(json_.read_text())
    assert list(found["bytes"])[:2] == list(made)[:2]
    assert set(found["seconds"]["1x4x6x8"]) == set(memory.operations((1, 4, 6, 8)))
    assert all(len(rounds) == 2 for rounds in found["seconds"]["1x4x6x8"].values())
    assert "1x4x6x8" in capsys.readouterr().out


@pytest.mark.parametrize("images", ["2x180", "x", "0x64x64", "2x31x64"])
def test_memory_of_wrong_images(images, capsys):
    with pytest.raises(SystemExit):
        memory.parse(["--images", images])
    assert f"--images {images}: expected a batch and two sizes of at least 32" in (
        capsys.readouterr().err
    )


def test_planes_of_segnet():
    shapes = memory.planes((2, 180, 240))
    assert shapes[0] == (2, 180, 240, 64)
    assert shapes[-1] == (2, 11, 15, 512)


# Convolutions, and steps of whole networks.


@pytest.mark.thorough
def test_transposed_convolutions_agree(monkeypatch, tmp_path, capsys):
    """All contenders compute the same, and the command makes a table of each part."""
    small = {
        "2-D": ((1, 4, 5, 4), 3, 2, 1, 1, 6, 2),
        "1-D": ((1, 6, 2), 4, 2, 1, 0, 3, 1),
    }
    monkeypatch.setattr(convolutions, "TRANSPOSED", small)
    monkeypatch.setattr(convolutions, "CONVOLUTIONS", {"2-D": ((1, 5, 6, 4), 3, 6, 2)})
    rng = np.random.default_rng(0)
    for name in small:
        runs = convolutions.of_transposed(name, rng, gradients=True)
        ours = jax.tree.leaves(runs["jaxunpool"]())
        for who in ("Flax", "Equinox"):
            for a, b in zip(ours, jax.tree.leaves(runs[who]()), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
        if torch := runs.get("PyTorch channels_first"):
            dx, dk = (np.asarray(gradient) for gradient in torch())
            np.testing.assert_allclose(np.moveaxis(dx, 1, -1), ours[1], rtol=1e-4, atol=1e-4)
            dk = np.moveaxis(dk, (0, 1), (-2, -1))
            np.testing.assert_allclose(dk, ours[2], rtol=1e-4, atol=1e-4)
    for by in (None, 0, 1):
        runs = convolutions.of_convolution("2-D", rng, by)
        ours = runs["jaxunpool"]()
        np.testing.assert_allclose(ours, runs["JAX"](), rtol=1e-4, atol=1e-4)
        if by is None and (torch := runs.get("PyTorch channels_last")):
            np.testing.assert_allclose(
                np.moveaxis(np.asarray(torch()), 1, -1), ours, rtol=1e-4, atol=1e-4
            )
    file = tmp_path / "convolutions.json"
    convolutions.main(["--repeats", "3", "--only", "2-D", "--json", str(file)])
    assert list(json.loads(file.read_text())["Transposed"]) == ["2-D"]
    assert capsys.readouterr().out.count("2-D") == 5


@pytest.mark.thorough
def test_steps_of_networks(monkeypatch, tmp_path, capsys):
    widths = ((4,), (4,))
    make = functools.partial(jaxunpool.models.SegNetBasic, 3, 11, features=4, stages=2)
    make_torch = functools.partial(
        memory.torch_segnet, widths, widths, kernel=7, last=1, relu=False
    )
    monkeypatch.setattr(steps, "NETWORKS", {"small": ((1, 8, 12), make, make_torch)})
    file = tmp_path / "steps.json"
    steps.main(["--repeats", "3", "--profile", "--json", str(file)])
    found = json.loads(file.read_text())
    assert {*steps.DECODERS, "Flax's convolutions"} <= {*found["seconds"]["small"]}
    assert found["profile"]["small"]["convolutions"] > 0
    assert "pooling and unpooling" in capsys.readouterr().out
    runs = steps.contenders("small")  # the same weights and images, so the same loss
    np.testing.assert_allclose(runs["indices"](), runs["Flax's convolutions"](), rtol=1e-5)
    with pytest.raises(SystemExit):
        steps.parse(["other"])


def test_kinds_of_operations():
    assert steps.kind("jit(step)/jvp(jit(_select))/ffi_call") == "pooling and unpooling"
    assert steps.kind("jit(step)/convolution_k/while/body/dot_general") == "convolutions"
    assert steps.kind("jit(step)/mul").startswith("normalisation")
