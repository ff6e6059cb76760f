"""The fuzzer: it draws every public function, finds faults, and what it found stays right."""

import pathlib
import subprocess
import sys

import jax
import numpy as np
import oracle
import pytest
from fuzz import sampling, shrinking, stored
from fuzz.functions import FUNCTIONS
from fuzz.kinds import EXACT, draw, kinds_of
from fuzz.operators import Matrix, Moves, flushed
from fuzz.windows import last_only, windows, winners, written
from namespace import public_functions
from strategies import only

import jaxunpool as jup

ROOT = pathlib.Path(__file__).parent.parent
STORED = sorted(stored.FOLDER.glob("*.json"))
OVERLAPPING = {"window_shape": (3, 2), "strides": (2, 1), "padding": ((1, 1), (0, 1))}
SIZES, WINDOWS = (4, 5), ((3, 2), (2, 1), ((1, 1), (0, 1)), (1, 1), False)


def test_every_public_function_is_drawn():
    assert sorted(FUNCTIONS) == public_functions()
    for name in FUNCTIONS:
        assert sampling.draw(name, 3, 7) == sampling.draw(name, 3, 7)


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_what_was_wrong_once_is_right(path):
    try:
        assert stored.still_wrong(path) == []
    except shrinking.UnservedError as error:
        pytest.skip(str(error))


def test_there_are_stored_cases():
    assert STORED


@pytest.mark.parametrize(
    "dtype", only("float32", "int8", among=["float32", "float16", "int8", "uint64"])
)
def test_the_definitions_are_those_of_the_oracle(dtype, rng):
    """Of many inputs at once, against one after the other."""
    table, dtype = windows(SIZES, OVERLAPPING), np.dtype(dtype)
    for kind in kinds_of(dtype):
        x = draw(kind, rng, (2, *SIZES, 2), dtype)
        ordered = flushed(x) if dtype.kind == "f" else x
        _, _, flat = oracle.over_layout(
            lambda x: oracle.max_pool(x, *WINDOWS), 2, "channels_last", ordered
        )
        planes = np.moveaxis(x, -1, 1).reshape(2, 2, -1)
        at = winners(planes, table)
        np.testing.assert_array_equal(at, np.moveaxis(flat, -1, 1).reshape(at.shape))
        if kind not in EXACT:
            continue
        moves, y = Moves(at, table.size), np.take_along_axis(planes, at, 2)
        for duplicates in ("sum", "last"):
            unpooled = oracle.over_layout(
                lambda y, flat: oracle.max_unpool(y, flat, SIZES, duplicates),
                2, "channels_last", np.moveaxis(y.reshape(2, 2, *table.outputs), 1, -1), flat,
            )  # fmt: skip
            if duplicates == "sum":
                known = moves.transpose(y)
            else:
                writes = np.stack([written(last_only(one), table.size) for one in at])
                known = Moves(writes, table.count).apply(y)
            found = np.moveaxis(unpooled, -1, 1).reshape(planes.shape)
            assert not known.differs(found).any()


def test_sums_may_differ_by_roundings_alone(rng):
    """The slack of a sum holds for float32, and for no error that is much larger."""
    weights = rng.standard_normal((30, 20))
    x = draw("magnitudes", rng, (4, 3, 20), np.dtype("float32"))
    known = Matrix(weights).apply(x)
    terms = weights.astype(np.float32) * x[..., None, :]
    found = np.zeros(known.value.shape, np.float32)
    for k in range(20):
        found += terms[..., k]
    assert not known.differs(found).any()
    largest = abs(terms).sum(-1).astype(np.float64)
    assert known.differs((found + 4e-6 * largest).astype(np.float32)).all()
    assert known.differs(np.full_like(found, np.nan)).all()


def halved(run):
    """A function whose gradient lacks a factor of 2."""

    def wrong(x, *arrays, **options):
        y = run(x, *arrays, **options)
        return y / 2 + jax.lax.stop_gradient(y / 2)

    return wrong


def last_of_equals(run):
    """A maximum whose index is that of the last of equals, along the only axis."""

    def wrong(x, *arrays, **options):
        y, indices = run(x, *arrays, **options)
        offsets = jax.numpy.where(y == 0, 1, indices.offsets).astype(indices.offsets.dtype)
        return y, jup.PoolIndices(offsets, indices.geometry)

    return wrong


@pytest.mark.parametrize(
    ("name", "fault", "what"),
    [
        ("max_pool", halved, "gradient"),
        pytest.param(
            "max_pool_with_indices", last_of_equals, "integers 0", marks=pytest.mark.thorough
        ),
    ],
)
def test_a_fault_is_found_shrunk_and_stored(name, fault, what, monkeypatch, tmp_path):
    """As few elements as show it."""
    spec = sampling.Spec(
        name, (5,), (2,), 2, "float32", "channels_first",
        {"window_shape": (2,), "ceil_mode": True}, sampling.backends_of(FUNCTIONS[name])[-1],
        "batch", 1, ("plain", "signed zeros"),
    )  # fmt: skip
    assert shrinking.failures(spec) == []
    with monkeypatch.context() as patch:
        patch.setattr(jup, name, fault(getattr(jup, name)))
        found = [one for one in shrinking.failures(spec) if one.mismatch.what == what]
        small = shrinking.smaller(found[0], attempts=30)
        assert small.spec.sizes <= (2,)
        assert small.spec.batch == ()
        assert small.spec.channels == 1
        path = stored.save(small, tmp_path)
        assert stored.still_wrong(path)
    assert stored.still_wrong(path) == []
    code = shrinking.code(small)
    assert f"jup.{name}(x, window_shape=" in code
    exec(compile(code, "shrunk", "exec"), {})


@pytest.mark.thorough
def test_the_command():
    command = [sys.executable, "-m", "tests.fuzz", "--minutes", "0.1", "--only", "max_unpool"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "max_unpool" in done.stdout
    assert "seed 0, numbers 0 to" in done.stdout
