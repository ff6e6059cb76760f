"""Training in several processes: the bits of one, and errors that all of them report."""

import argparse
import contextlib
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

for package in ("optax", "orbax.checkpoint", "sklearn", "matplotlib", "rich", "skimage"):
    pytest.importorskip(package)
from PIL import Image  # noqa: E402
from rich.console import Console  # noqa: E402

from jaxunpool.__main__ import main  # noqa: E402
from jaxunpool.apps.command import read_json  # noqa: E402
from jaxunpool.training import options, shards, train  # noqa: E402

ROOT = pathlib.Path(__file__).parents[1]
WORKER = [sys.executable, str(ROOT / "tests/one_of_many.py")]
COMMAND = [sys.executable, "-m", "jaxunpool", "train"]
OPTIONS = {
    "batch": 4,
    "size": 24,
    "features": 4,
    "kernel-size": 3,
    "stages": 2,
    "steps": 2,
    "checkpoint-every": 1,
}
SCENES = [text for name, value in OPTIONS.items() for text in (f"--{name}", str(value))]
FIGURES = ("predictions.png", "confusion.png", "gradients.png", "learning_curve.png")
SCORED = ("metrics.json", *FIGURES)


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


@pytest.fixture
def two_devices(monkeypatch):
    devices = jax.devices()[:2]
    monkeypatch.setattr(jax, "devices", lambda: devices)


@pytest.fixture
def pictures(tmp_path, rng):
    """The arguments of a run on a folder of images."""
    for package in ("grain", "dm_pix", "safetensors"):
        pytest.importorskip(package)
    for number in range(5):
        mask = rng.integers(0, 3, (5, 4), np.uint8).repeat(8, 0).repeat(8, 1)
        for kind, array in (("images", np.stack([60 * mask + 20] * 3, -1)), ("masks", mask)):
            (tmp_path / kind).mkdir(exist_ok=True)
            Image.fromarray(array).save(tmp_path / kind / f"{number}.png")
    folders = ["--images", str(tmp_path / "images"), "--masks", str(tmp_path / "masks")]
    return [*SCENES, *folders]


def threads():
    """Of XLA in this process. It cuts products of matrices into so many parts; others do the same.

    As many as there are processors, or devices where these are more.
    """
    free = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    return max(int(os.environ.get("PJRT_NPROC", len(free))), jax.local_device_count())


def free_port():
    with contextlib.closing(socket.socket()) as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(devices=1):
    settings = jax.config.values
    return os.environ | {
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": str(int(settings["jax_disable_most_optimizations"])),
        "JAX_COMPILATION_CACHE_DIR": settings["jax_compilation_cache_dir"],
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
        "PJRT_NPROC": str(threads()),
    }


def of_slurm(count, port):
    """What Slurm says to each task."""
    for number in range(count):
        yield {
            "SLURM_JOB_ID": "1234",
            "SLURM_STEP_NODELIST": "localhost",
            "SLURM_NTASKS": str(count),
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
            "JAX_COORDINATOR_PORT": str(port),
        }


def by_hand(count, number, port):
    """The arguments of one process where nothing else says which it is."""
    address = ["--coordinator-address", f"127.0.0.1:{port}"]
    return ["--distributed", *address, "--num-processes", str(count), "--process-id", str(number)]


def started(command, devices=1, **settings):
    return subprocess.Popen(
        command,
        env=environment(devices) | settings,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def ended(each):
    """Status, output and errors of each process."""
    found = [(process, *process.communicate(timeout=600)) for process in each]
    return [(process.returncode, output, error) for process, output, error in found]


def trained(arguments, count, devices=1):
    """The command in several processes, to the end."""
    if count == 1:
        return ended([started([*COMMAND, *arguments], devices)])
    port = free_port()
    lines = [[*COMMAND, *arguments, *by_hand(count, number, port)] for number in range(count)]
    return ended([started(line, devices) for line in lines])


def digests(folder):
    """SHA-256 of the state in every checkpoint."""
    found = {}
    for path in (folder / "checkpoints").iterdir():
        about = read_json(path / "about" / "metadata")
        found[int(path.name)] = about["sha256"]
    return found


def said(error):
    """Our lines on stderr. XLA has lines of its own there, on a busy machine."""
    assert "Traceback" not in error
    return [line for line in error.splitlines() if line.startswith("jaxunpool: ")]


def fit(arguments):
    train.fit(train.parse(arguments), Console(quiet=True))


@pytest.mark.thorough
def test_two_processes_end_with_the_bits_of_one(tmp_path, pictures, two_devices):
    """And before that, what one finds wrong is an error of both. Slurm says which they are."""
    shutil.copytree(tmp_path / "images", tmp_path / "less/images")
    shutil.copytree(tmp_path / "masks", tmp_path / "less/masks")
    (tmp_path / "less/masks/3.png").unlink()
    less = [text.replace(str(tmp_path), str(tmp_path / "less")) for text in pictures]
    (tmp_path / "file").touch()
    lines = [
        [[*pictures, "--batch", "3"]] * 2,
        [pictures, less],
        [pictures, [*pictures, "--learning-rate", "0.5"]],
        [[*pictures, "--output", f"{tmp_path}/file"]] * 2,
        [pictures] * 2,
    ]
    both = ["--distributed", "--output", f"{tmp_path}/both"]
    each = [json.dumps([[*both, *line[number]] for line in lines]) for number in range(2)]
    settings = of_slurm(2, free_port())
    found = ended([started([*WORKER, part], **more) for part, more in zip(each, settings)])
    expected = (
        "jaxunpool: argument --batch: expected a multiple of 2, the number of processes, got 3",
        f"jaxunpool: process 1: {tmp_path}/less/images/3.png: its mask is missing: ",
        "jaxunpool: all processes need the same arguments and files: learning_rate is 0.5 in proc",
        f"jaxunpool: --output {tmp_path}/file: is not a folder",
    )
    for status, output, error in found:
        assert status == 0, error
        assert json.loads(output.splitlines()[-1]) == [2, 2, 2, 2, 0], error
        lines = said(error)
        starts = [line[: len(start)] for line, start in zip(lines, expected)]
        assert (starts, len(lines)) == (list(expected), 4)
    fit([*pictures, "--output", f"{tmp_path}/one"])
    assert sorted(digests(tmp_path / "one")) == [1, 2]
    assert digests(tmp_path / "both") == digests(tmp_path / "one")


def arguments_of(kind, request):
    return request.getfixturevalue("pictures") if kind == "images" else SCENES


def assert_same_files(one, other):
    for name in SCORED:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert digests(one) == digests(other)


def assert_ended(found, status, error=""):
    """All with this status, and process 0 with this line."""
    assert [each[0] for each in found] == [status] * len(found), found
    assert re.fullmatch(error, "".join(said(found[0][2]))), found
    assert not any(said(each[2]) for each in found[1:]), found


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["scenes", "images"])
def test_the_number_of_processes_does_not_matter(tmp_path, request, kind):
    """Devices are four: of one process, two or four; scores and figures are the same files too."""
    arguments = [*arguments_of(kind, request), "--steps", "3"]
    for count in (1, 2, 4):
        found = trained([*arguments, "--output", f"{tmp_path}/{count}"], count, 4 // count)
        assert_ended(found, 0)
        assert "IoU of each class: " in found[0][1]
        assert [re.sub(r"\[Gloo\].*\n", "", each[1]) for each in found[1:]] == [""] * (count - 1)
    assert_same_files(tmp_path / "1", tmp_path / "2")
    assert_same_files(tmp_path / "1", tmp_path / "4")


STOPPED = r"jaxunpool: stopped after step (\d+), saved in .*; the same command continues"


def at_step(folder, step, each):
    """Once there is a checkpoint of this step or a later one."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and all(process.poll() is None for process in each):
        names = [path.name for path in (folder / "checkpoints").glob("*")]
        if any(name.isdigit() and int(name) >= step for name in names):
            return
        time.sleep(0.02)
    raise AssertionError(ended(each))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["scenes", "images"])
def test_stopped_runs_go_on_in_another_number_of_processes(tmp_path, request, kind):
    """Process 1 alone hears of it, or is gone; in the end the files are those of one process."""
    arguments = [*arguments_of(kind, request), "--steps", "60"]
    arguments += ["--checkpoint-every", "1", "--output"]
    whole = [*arguments, f"{tmp_path}/whole"]
    assert_ended(trained(whole, 1, 2), 0)

    folder = tmp_path / "broken"
    port = free_port()
    broken = [*COMMAND, *arguments, str(folder)]
    each = [started([*broken, *by_hand(2, number, port)]) for number in range(2)]
    at_step(folder, 2, each)
    each[1].send_signal(signal.SIGTERM)
    assert_ended(ended(each), 143, STOPPED)

    alone = [started(broken, 2)]
    at_step(folder, 10, alone)
    alone[0].send_signal(signal.SIGINT)
    assert_ended(ended(alone), 130, STOPPED)

    port = free_port()
    each = [started([*broken, *by_hand(2, number, port)]) for number in range(2)]
    at_step(folder, 30, each)
    each[1].kill()
    (status, _, error), _ = ended(each)
    assert status == 2
    assert any(line.startswith("jaxunpool: lost another process (") for line in said(error))

    assert_ended(trained([*arguments, str(folder)], 2), 0)
    assert_same_files(tmp_path / "whole", folder)


WRONG = {
    "nobody answers": (by_hand(2, 1, 1), "not all processes met within 1 seconds at 127.0.0.1:1"),
    "nobody comes": (by_hand(2, 0, free_port()), "not all processes met within 1 seconds at 127."),
    "no cluster": (["--distributed"], "found no cluster: give --coordinator-address, --num-proc"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", WRONG)
def test_processes_that_do_not_meet(name):
    arguments, message = WRONG[name]
    line = [*COMMAND, *SCENES, *arguments, "--initialization-timeout", "1"]
    [(status, output, error)] = ended([started(line)])
    assert (status, output) == (2, "")
    [line] = said(error)
    assert line.startswith(f"jaxunpool: argument --distributed: {message}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--num-processes 2", "--num-processes: is for --distributed"),
        ("--initialization-timeout 5", "--initialization-timeout: is for --distributed"),
        ("--distributed --num-processes 0", "--num-processes: expected at least 1, got 0"),
        ("--distributed --process-id=-1", "--process-id: expected at least 0, got -1"),
        (
            "--distributed --num-processes 2 --process-id 2",
            "--process-id: expected 0 to 1, got 2",
        ),
        (
            "--distributed --coordinator-address host",
            "--coordinator-address: expected HOST:PORT, got host",
        ),
        (
            "--distributed --coordinator-address :80",
            "--coordinator-address: expected HOST:PORT, got :80",
        ),
        (
            "--distributed --coordinator-address host:70000",
            "--coordinator-address: expected HOST:PORT, got host:70000",
        ),
    ],
)
def test_wrong_options(arguments, message, capfd):
    assert main(["train", *arguments.split()]) == 2
    assert capfd.readouterr().err == f"jaxunpool: argument {message}\n"


def test_devices_are_as_many_of_each_process():
    devices = [
        argparse.Namespace(process_index=at, id=at + 10 * n) for n in range(4) for at in (1, 0)
    ]
    used = shards.devices_for(12, devices)
    assert [(each.process_index, each.id) for each in used] == [
        (0, 0),
        (0, 10),
        (0, 20),
        (1, 1),
        (1, 11),
        (1, 21),
    ]
    assert len(shards.devices_for(2, devices)) == 2


# The examples of the documentation


def example(language):
    """The block of this language in the page on training."""
    text = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    [found] = re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return found


def test_slurm_example():
    script = example("bash")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    settings = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", script, re.MULTILINE))
    line = script.replace("\\\n", "").partition("-m jaxunpool train ")[2].partition(" || ")[0]
    asked = train.parse(shlex.split(line))
    assert asked.distributed
    assert asked.num_processes is None  # Slurm says it
    assert asked.batch % (int(settings["nodes"]) * int(settings["ntasks-per-node"])) == 0
    assert asked.network == "segnet"
    assert options.configuration(asked, asked.decoder, options.IMAGES, asked.network)


def test_kubernetes_example():
    yaml = pytest.importorskip("yaml")
    service, job = yaml.safe_load_all(example("yaml"))
    assert (service["kind"], service["spec"]["clusterIP"]) == ("Service", "None")
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    assert (job["kind"], job["spec"]["completionMode"]) == ("Job", "Indexed")
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    [container] = pod["containers"]
    assert container["command"] == ["python", "-m", "jaxunpool", "train"]
    [variable] = container["env"]
    number = f"$({variable['name']})"
    assert [text for text in container["args"] if "$" in text] == [f"--process-id={number}"]
    asked = train.parse([text.replace(number, "3") for text in container["args"]])
    assert (asked.distributed, asked.process_id) == (True, 3)
    assert asked.num_processes == job["spec"]["completions"] == job["spec"]["parallelism"]
    host = f"{job['metadata']['name']}-0.{pod['subdomain']}"
    assert asked.coordinator_address.startswith(f"{host}:")
    assert asked.batch % asked.num_processes == 0
    mounted = {each["name"] for each in container["volumeMounts"]}
    assert mounted == {each["name"] for each in pod["volumes"]}
