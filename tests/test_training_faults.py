"""Training that dies, and folders that something has damaged: slow, so in the thorough tier."""

import contextlib
import os
import pathlib
import random
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

for package in ("optax", "orbax.checkpoint", "sklearn", "matplotlib", "rich", "skimage"):
    pytest.importorskip(package)
import killed  # noqa: E402
from test_training import (  # noqa: E402, F401
    QUICKLY,
    contents,
    resumed,
    run,
    saved,
    saved_once,
)

from jaxunpool.apps.command import UsageError  # noqa: E402
from jaxunpool.training import checkpoints, session  # noqa: E402

pytestmark = pytest.mark.thorough
KILLS = int(os.environ.get("KILLS", "4"))
ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


def environment(folder):
    """Programs are compiled once for all lives."""
    cache = {"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
    cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    return os.environ | QUICKLY | cache | {"PYTHONPATH": str(ROOT)}


def lives(folder, kills, seed=0):
    folder.mkdir()
    script = ROOT / "tests/killed.py"
    done = subprocess.run(
        [sys.executable, str(script), str(folder), str(kills), str(seed)],
        env=environment(folder.parent),
        capture_output=True,
        text=True,
        timeout=120 + 120 * kills,
    )
    print(done.stdout, done.stderr[-2000:])
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    return folder / "run"


def test_killed_at_random_moments(tmp_path):
    """The weights and the files of a run that nobody killed, and nothing else. KILLS=50: more."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    whole = contents(lives(tmp_path / "whole", 0))
    found = contents(lives(tmp_path / "broken", KILLS, seed))
    apart = [name for name in {*found, *whole} if not name.startswith("checkpoints/")]
    for name in apart:
        assert found.get(name) == whole.get(name), name
    folders = (tmp_path / each / "run" for each in ("whole", "broken"))
    np.testing.assert_array_equal(*(checkpoints.pack(session.restore(f).state) for f in folders))


def test_random_damage_is_never_unnoticed(run, saved, capfd):  # noqa: F811
    """A flipped bit, an end that is missing or a file that is, in any of the files."""
    folder, packed = saved
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    paths = [path for path in sorted((whole / "checkpoints").rglob("*")) if path.is_file()]
    for _ in range(60):
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        for path in chance.sample(paths, chance.choice([1, 1, 1, 4])):
            damaged = folder / path.relative_to(whole)
            data = bytearray(damaged.read_bytes())
            kind = chance.choice(["flip", "cut", "remove"])
            if kind == "remove":
                damaged.unlink()
            elif data:
                at = chance.randrange(len(data))
                data[at] ^= 1 << chance.randrange(8)
                damaged.write_bytes(data if kind == "flip" else data[:at])
        state = None
        with contextlib.suppress(UsageError):
            state = resumed(folder, run)
        if state is None:  # all three were damaged
            with pytest.raises(UsageError, match="damaged and no other is there"):
                resumed(folder, run)
            continue
        step = int(state.step)
        np.testing.assert_array_equal(checkpoints.pack(state), packed[step])
        assert capfd.readouterr().err.count("\n") == (step < 3)


def on_a_disk(options, script, folder):
    """A shell script in `disk/`, a file system of its own."""
    if shutil.which("unshare") is None:
        pytest.skip("there is no unshare")
    (folder / "disk").mkdir()
    mounted = f"mount -t tmpfs -o {options} tmpfs disk && {script}"
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted],
        cwd=folder,
        env=environment(folder) | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=600,
    )
    if "unshare:" in done.stderr or "mount:" in done.stderr:
        pytest.skip("no file system can be mounted here")
    return done


TRAIN = f"cd disk && $PYTHON -m jaxunpool {killed.COMMAND}"


@pytest.mark.parametrize(
    ("size", "said"), [("200k", " is safe\n"), ("400k", ".png: cannot be written (")]
)
def test_a_full_disk(size, said, tmp_path):
    """The kernel's own ENOSPC: one line, and what was saved still loads once there is room."""
    again = f"mount -o remount,size=64m . && $PYTHON -m jaxunpool {killed.COMMAND}"
    done = on_a_disk(f"size={size}", f"{TRAIN}; echo status $?; {again}", tmp_path)
    first = done.stdout.partition("status ")
    assert first[2].startswith("2\n"), (done.stdout, done.stderr)
    assert done.stderr.count("\n") == 1, done.stderr
    assert "No space left on device" in done.stderr
    assert said in done.stderr
    assert done.returncode == 0
    assert "run: wrote metrics.json" in done.stdout


def test_a_read_only_file_system(tmp_path):
    """Also for root, whom no permission binds."""
    script = f"mount -o remount,ro disk && ({TRAIN})"
    done = on_a_disk("size=1m", script, tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "jaxunpool: --output run: Read-only file system\n"
