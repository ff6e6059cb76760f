"""`python -m jaxunpool train` and `compare`: data, scores, and runs that nothing can spoil."""

import contextlib
import dataclasses
import errno
import functools
import io
import json
import os
import pathlib
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

for package in ("optax", "orbax.checkpoint", "sklearn", "matplotlib", "rich", "skimage"):
    pytest.importorskip(package)
import sklearn.metrics  # noqa: E402
from PIL import Image  # noqa: E402
from rich.console import Console  # noqa: E402

from jaxunpool.__main__ import main  # noqa: E402
from jaxunpool.apps.command import UsageError  # noqa: E402
from jaxunpool.training import (  # noqa: E402
    checkpoints,
    compare,
    figures,
    loop,
    metrics,
    processes,
    scenes,
    session,
    shards,
    train,
)
from jaxunpool.training.options import Configuration  # noqa: E402

TINY = Configuration(
    steps=6, batch=2, size=24, features=4, kernel_size=3, stages=2, learning_rate=0.01
)
OPTIONS = [
    "--steps",
    "6",
    "--batch",
    "2",
    "--size",
    "24",
    "--features",
    "4",
    "--kernel-size",
    "3",
    "--stages",
    "2",
]
DECODERS = ("nearest", "indices")
FIGURES = ("predictions.png", "confusion.png", "gradients.png", "learning_curve.png")


QUICKLY = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


@pytest.fixture(autouse=True)
def _usual_handlers():
    """Python's own, also where the tests run in the background of a shell that ignores SIGINT."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="module")
def run():
    with jax.enable_x64(False):
        return loop.Run(TINY, jax.devices()[:1])


def advance(run, state, steps):
    watched = run.test_scenes(loop.WATCHED)
    for _ in range(steps):
        state = run.step(state)
        if run.is_recorded(int(state.step)):
            state = run.record(state, watched)
    return state


@pytest.fixture(scope="module")
def finished(run):
    """The bytes of a run that was not interrupted."""
    with jax.enable_x64(False):
        return checkpoints.pack(advance(run, run.start(), TINY.steps))


# Data


def test_scenes_are_a_function_of_the_key():
    source, key = scenes.load("train"), jax.random.key(3)
    first = scenes.compose(key, source, count=4, size=48)
    again = scenes.compose(key, source, count=4, size=48)
    other = scenes.compose(jax.random.key(4), source, count=4, size=48)
    for one, two, three in zip(first, again, other):
        np.testing.assert_array_equal(one, two)
        assert (np.asarray(one) != np.asarray(three)).any()


@pytest.mark.thorough
def test_scenes_hold_what_their_labels_say():
    images, labels = scenes.compose(jax.random.key(0), scenes.load("test"), count=64, size=48)
    assert (images.shape, images.dtype) == ((64, 48, 48, 3), np.float32)
    assert (labels.shape, labels.dtype) == ((64, 48, 48), np.int32)
    assert images.min() >= 0
    assert images.max() <= 1
    assert set(np.unique(labels)) == set(range(scenes.CLASSES))
    assert 0.6 < np.mean(labels == scenes.BACKGROUND) < 0.9
    # A digit has one colour; that of a class in a scene varies no more than where its rim blends.
    steady = [
        np.median(np.abs(image[label == c] - np.median(image[label == c], axis=0)))
        for image, label in zip(np.asarray(images), np.asarray(labels))
        for c in np.unique(label)
        if c != scenes.BACKGROUND and np.sum(label == c) < 200  # one digit
    ]
    assert np.median(steady) < 0.01


@pytest.mark.thorough
def test_training_sees_nothing_of_the_tests():
    from sklearn import datasets

    train, test = scenes.load("train"), scenes.load("test")
    whole = np.stack(datasets.load_sample_images().images) / np.float32(255)
    parts = np.concatenate([train.photographs, test.photographs], axis=2)
    np.testing.assert_allclose(parts, whole, atol=1e-7)
    digits = datasets.load_digits()
    ink = np.concatenate([train.digits, test.digits])[:, 1:-1, 1:-1]
    together = {(a.tobytes(), int(b)) for a, b in zip(ink, [*train.labels, *test.labels])}
    everything = {
        (a.tobytes(), int(b)) for a, b in zip(np.float32(digits.images / 16), digits.target)
    }
    assert together == everything
    assert len(train.labels) + len(test.labels) == len(digits.target)


# Scores


def segmentations(rng, classes=5):
    truth = rng.integers(0, classes, (6, 12, 13))
    guess = np.where(rng.random(truth.shape) < 0.6, truth, rng.integers(0, classes, truth.shape))
    return truth, guess


def test_scores_are_those_of_scikit_learn(rng):
    truth, guess = segmentations(rng)
    found = metrics.evaluate(truth, guess, 5)
    flat = truth.ravel(), guess.ravel()
    np.testing.assert_allclose(found.global_accuracy, sklearn.metrics.accuracy_score(*flat))
    np.testing.assert_allclose(found.class_accuracy, sklearn.metrics.balanced_accuracy_score(*flat))
    np.testing.assert_allclose(found.iou, sklearn.metrics.jaccard_score(*flat, average=None))
    expected = sklearn.metrics.jaccard_score(*flat, average="macro")
    np.testing.assert_allclose(found.mean_iou, expected)
    np.testing.assert_array_equal(
        metrics.confusion_matrix(truth, guess, 5), sklearn.metrics.confusion_matrix(*flat)
    )


def test_classes_that_do_not_occur_do_not_count():
    truth, guess = np.array([[[0, 0, 1, 1]]]), np.array([[[0, 1, 1, 1]]])
    found = metrics.evaluate(truth, guess, 4)
    np.testing.assert_allclose(found.iou, [1 / 2, 2 / 3, np.nan, np.nan])
    np.testing.assert_allclose(found.mean_iou, 7 / 12)
    np.testing.assert_allclose(found.class_accuracy, 3 / 4)


def boundary_f1_by_definition(truth, guess, tolerance):
    def outline(mask):
        padded = np.pad(mask, 1, constant_values=True)
        return [
            (y, x)
            for y, x in np.argwhere(mask)
            if not (padded[y : y + 3, x + 1].all() and padded[y + 1, x : x + 3].all())
        ]

    def near(these, those):
        found = [any(np.hypot(y - v, x - u) <= tolerance for v, u in those) for y, x in these]
        return np.mean(found)

    images = []
    for true, guessed in zip(truth, guess):
        scores = []
        for c in np.unique(true):
            lines = outline(true == c), outline(guessed == c)
            if not lines[0] or not lines[1]:
                scores.append(float(lines[0] == lines[1]))
                continue
            precision, recall = near(lines[1], lines[0]), near(lines[0], lines[1])
            both = precision + recall
            scores.append(2 * precision * recall / both if both else 0)
        images.append(np.mean(scores))
    return np.mean(images)


@pytest.mark.parametrize("tolerance", [0, 1, 2.5])
def test_boundary_f1_is_its_definition(rng, tolerance):
    blocks = rng.integers(0, 3, (4, 3, 3)).repeat(5, 1).repeat(5, 2)
    guess = np.roll(blocks, (1, 2), (1, 2))
    guess[0, :, :] = 2
    expected = boundary_f1_by_definition(blocks, guess, tolerance)
    np.testing.assert_allclose(metrics.boundary_f1(blocks, guess, tolerance), expected)
    assert 0 < expected < 1


def test_boundary_f1_forgives_one_pixel():
    truth = np.zeros((1, 20, 20), int)
    truth[:, 5:15, 5:15] = 1
    assert metrics.boundary_f1(truth, truth) == 1
    assert metrics.boundary_f1(truth, np.roll(truth, 1, 1)) == 1
    assert metrics.boundary_f1(truth, np.roll(truth, 3, 1)) < 0.9
    assert metrics.boundary_f1(truth, np.zeros_like(truth)) == 0


# A run


def test_median_frequency_balancing():
    labels = np.array([[[0, 0], [0, 1]], [[0, 0], [0, 0]], [[2, 2], [0, 1]]])
    frequency = np.array([8 / 12, 2 / 8, 2 / 4])
    expected = [*(np.median(frequency) / frequency), 0]
    np.testing.assert_allclose(
        loop.median_frequency_weights(loop.pixel_counts(labels, 4)), expected, rtol=1e-6
    )


def test_loss_is_weighted_cross_entropy(rng):
    logits = rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    labels, weights = rng.integers(0, 5, (2, 3, 4)), rng.random(5).astype(np.float32)
    likely = np.exp(logits.astype(float))
    likely /= likely.sum(-1, keepdims=True)
    expected = sklearn.metrics.log_loss(
        labels.ravel(), likely.reshape(-1, 5), sample_weight=weights[labels].ravel()
    )
    np.testing.assert_allclose(loop.cross_entropy(logits, labels, weights), expected, rtol=1e-5)


@pytest.mark.thorough
def test_gradients_are_counted_by_power_of_ten(rng):
    values = (10 ** rng.uniform(-8.95, 0.95, 500) * rng.choice([-1, 1], 500)).astype(np.float32)
    edges = np.linspace(loop.SMALLEST, loop.LARGEST, loop.BINS + 1)
    expected, _ = np.histogram(np.log10(np.abs(values)), edges)
    # A value may round to the other side of an edge.
    assert np.abs(np.asarray(loop.histogram(values)) - expected).sum() <= 2
    beyond = loop.histogram(np.array([0, 1e-30, 1e30], np.float32))
    assert (beyond[0], beyond[-1], beyond.sum()) == (2, 1, 3)


@pytest.mark.parametrize("decoder", loop.models.DECODERS)
def test_index_bytes_and_parameters(decoder):
    configuration = dataclasses.replace(TINY, decoder=decoder)
    positions = 4 * (12 * 12 + 6 * 6)  # of two poolings of four features
    expected = {"indices": positions, "inverse": 4 * 4 * positions}.get(decoder, 0)
    assert loop.index_bytes(configuration) == expected
    kernels = 9 * (3 * 4 + 3 * 4 * 4) + 4 * 11
    biases_and_norms = 4 * 3 * 4 + 11
    learned = 2 * (2 * 2 * 4 * 4 + 4) if decoder == "conv_transpose" else 0
    assert loop.parameter_count(configuration) == kernels + biases_and_norms + learned


@pytest.mark.thorough
def test_layers_are_in_the_order_of_use(run):
    assert run.layers == ("encoder 1", "encoder 2", "decoder 1", "decoder 2", "classifier")
    model = loop.network(dataclasses.replace(TINY, decoder="conv_transpose"))
    names = list(loop.kernels(loop.nnx.state(model, loop.nnx.Param)))
    assert names[2:6] == ["unpooling 1", "decoder 1", "unpooling 2", "decoder 2"]


@pytest.mark.thorough
def test_history(run):
    state = advance(run, run.start(), TINY.steps)
    assert np.isfinite(state.losses).all()
    assert np.isfinite(state.miou).all()
    sizes = [9 * 3 * 4, 9 * 4 * 4, 9 * 4 * 4, 9 * 4 * 4, 4 * 11]
    np.testing.assert_array_equal(state.gradients.sum(-1), [sizes] * run.records)


def test_figures_say_what_they_are_of(run):
    state = dataclasses.replace(run.start(), miou=np.full(run.records, 0.5))
    left, right = figures.learning_curve(state, run.every, run.trained_on, run.watched_on).axes
    scenes = TINY.steps * TINY.batch
    assert left.get_title() == f"training loss, {scenes} scenes"
    assert right.get_title() == f"mIoU on {loop.WATCHED} test scenes"
    assert "Healthy" in figures.gradients(state, run.layers, run.every).get_suptitle()
    scores = {"indices": {"mean_iou": 0.5, "boundary_f1": 0.25}}
    shown = figures.comparison({"indices": state}, scores, run.every, watched=7, tested=9)
    assert [axes.get_title() for axes in shown.axes] == [
        "mIoU on 7 test scenes",
        "after the last step, 9 test scenes",
    ]


@pytest.mark.parametrize("width", [60, 72, 80, 100])
def test_tables_fit_the_console_and_no_cell_is_cut(width):
    scores = dict.fromkeys(("global_accuracy", "class_accuracy", "mean_iou", "boundary_f1"), 0.5)
    rows = [
        {
            "configuration": {"decoder": decoder, "steps": 12345},
            "scores": scores | {"iou": [0.25] * 11},
            "parameters": 1234567,
            "index_bytes": 123456,
            "step_ms": 1234.5,
            "scenes": 256,
        }
        for decoder in loop.models.DECODERS
    ]
    console = Console(width=width, file=io.StringIO(), highlight=False, soft_wrap=True)
    compare.print_table(console, rows)
    train.print_scores(console, rows[0])
    lines = console.file.getvalue().splitlines()
    assert max(map(len, lines)) <= width
    text = " ".join(lines)
    assert "\u2026" not in text
    for row in rows:
        decoder = row["configuration"]["decoder"]
        cells = next(line.split() for line in lines if line.startswith(decoder))
        assert cells[-5:] == ["1234", "0.500", "0.500", "0.500", "0.500"]
        assert ("1,234,567" in cells) == (width > 60)
    assert ("not shown in 60 columns: parameters" in text) == (width == 60)
    assert "background 0.25" in text


def test_learns(run):
    state, losses = run.start(), []
    for _ in range(TINY.steps):
        state = dataclasses.replace(run.step(state), step=state.step)  # the same scenes again
        losses.append(float(state.losses[0]))
    assert (np.diff(losses) < 0).all()
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.thorough
def test_batch_is_sharded_over_the_devices():
    # Not "indices": where two values are equal but for rounding, so may be who is the larger.
    asked = dataclasses.replace(TINY, batch=8, decoder="nearest")
    alone, shared = loop.Run(asked, jax.devices()[:1]), loop.Run(asked)
    assert shared.shards.count == jax.device_count() == 8
    program = shared.step.lower(shared.start()).compile()
    assert "all-gather" in program.as_text()
    assert "all-reduce" not in program.as_text()  # its order is not ours
    assert "f32[1,24,24,4]" in program.as_text()  # one scene on each device
    one, eight = alone.step(alone.start()), program(shared.start())
    assert eight.losses.sharding.is_fully_replicated
    np.testing.assert_allclose(one.losses[0], eight.losses[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one.statistics), jax.tree.leaves(eight.statistics)):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    gradients = [jax.tree.leaves(each.optimizer[0].mu) for each in (one, eight)]
    largest = max(np.abs(leaf).max() for leaf in gradients[0])
    for a, b in zip(*gradients):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.parametrize("gathered", [2, 2**14])
def test_sums_over_shards(rng, monkeypatch, gathered):
    """In the order of shards, of few values or many; so are their derivatives."""
    monkeypatch.setattr(shards, "GATHERED", gathered)
    of = shards.Shards(8, jax.devices())
    terms = (rng.standard_normal((8, 7)) * 10.0 ** rng.integers(-3, 4, (8, 7))).astype(np.float32)
    expected = functools.reduce(np.add, terms)

    def summed(factor, rows):
        total = lambda factor: of.total({"a": factor * rows[0, :3], "b": factor * rows[0, 3:]})
        _, pull = jax.vjp(total, factor)
        # Each shard has a cotangent of its own: all of them reach each term.
        slope = pull({"a": rows[0, :3], "b": rows[0, 3:]})[0]
        return total(factor), of.total(slope)

    found, slope = jax.jit(of.run(summed))(np.float32(1), of.feed(terms))
    np.testing.assert_array_equal(np.concatenate([found["a"], found["b"]]), expected)
    np.testing.assert_allclose(slope, np.sum(expected.astype(float) ** 2), rtol=1e-5)


@pytest.mark.parametrize(("batch", "used"), [(1, 1), (6, 6), (7, 7), (12, 6), (16, 8), (10, 5)])
def test_as_many_devices_as_divide_the_batch(batch, used):
    assert shards.devices_for(batch, jax.devices()) == jax.devices()[:used]


# Checkpoints


def opened(folder, configuration=TINY):
    return contextlib.closing(checkpoints.Folder(folder, configuration))


def test_resumed_run_is_the_same_bit_for_bit(run, finished, tmp_path):
    with opened(tmp_path / "run") as folder:
        assert folder.resume(run.start()) is None
        folder.save(advance(run, run.start(), 4))
    with opened(tmp_path / "run") as folder:
        state = folder.resume(run.start())
    assert int(state.step) == 4
    np.testing.assert_array_equal(checkpoints.pack(advance(run, state, 2)), finished)


@pytest.fixture(scope="module")
def saved_once(run, tmp_path_factory):
    path, packed = tmp_path_factory.mktemp("saved") / "run", {}
    with jax.enable_x64(False), opened(path) as folder:
        state = run.start()
        for step in (1, 2, 3):
            state = advance(run, state, 1)
            packed[step] = checkpoints.pack(state)
            folder.save(state)
    return path, packed


@pytest.fixture
def saved(saved_once, tmp_path):
    """A folder with checkpoints of steps 1, 2 and 3, and the bytes of each."""
    path, packed = saved_once
    shutil.copytree(path, tmp_path / "run")
    return tmp_path / "run", packed


def resumed(folder, run):
    with opened(folder) as folder:
        return folder.resume(run.start())


def contents(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [cut, flip, pathlib.Path.unlink])
def test_damaged_checkpoints_are_set_aside(run, saved, damage, capfd):
    folder, packed = saved
    for data in (folder / "checkpoints/3").rglob("*/d/*"):
        damage(data)
    state = resumed(folder, run)
    np.testing.assert_array_equal(checkpoints.pack(state), packed[2])
    output, error = capfd.readouterr()
    assert output == ""
    assert error == (
        f"jaxunpool: {folder}: the checkpoint of step 3 is damaged (now in damaged/),"
        " going on from step 2\n"
    )
    assert [path.name for path in (folder / "damaged").iterdir()] == ["3.0"]
    with opened(folder) as again:
        again.save(advance(run, again.resume(run.start()), 1))  # the same step, whole this time
    np.testing.assert_array_equal(checkpoints.pack(resumed(folder, run)), packed[3])


def test_no_file_of_a_checkpoint_can_change_unnoticed(run, saved, capfd):
    """Whatever file is damaged: the same weights as before, or a line and the checkpoint before."""
    folder, packed = saved
    whole = folder.with_name("whole")
    shutil.copytree(folder, whole)
    for path in sorted((whole / "checkpoints/3").rglob("*")):
        if not path.is_file() or not path.stat().st_size:
            continue
        shutil.rmtree(folder)
        shutil.copytree(whole, folder)
        flip(folder / path.relative_to(whole))
        state = resumed(folder, run)
        reported = capfd.readouterr().err.count("\n")
        step = int(state.step)
        assert (step, reported) in ((3, 0), (2, 1)), path
        np.testing.assert_array_equal(checkpoints.pack(state), packed[step])


@pytest.mark.parametrize(("before", "after"), [(b'"steps', b'"stepz'), (b"conf", b"zonf")])
def test_what_a_checkpoint_says_of_itself_is_checked(run, saved, capfd, before, after):
    folder, packed = saved
    about = folder / "checkpoints/3/about/metadata"
    assert before in about.read_bytes()
    about.write_bytes(about.read_bytes().replace(before, after))
    np.testing.assert_array_equal(checkpoints.pack(resumed(folder, run)), packed[2])
    assert "step 3 is damaged (now in damaged/)" in capfd.readouterr().err


def test_checkpoint_that_cannot_be_read_stays(run, saved, monkeypatch):
    folder, _ = saved
    before = contents(folder)

    def restore(self, step, **options):
        raise OSError(5, os.strerror(5))

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", restore)
    with pytest.raises(UsageError, match=r"step 3 cannot be read \(Input/output error\)"):
        resumed(folder, run)
    assert contents(folder) == before


def test_checkpoint_of_other_layers(run, saved, monkeypatch):
    folder, _ = saved
    monkeypatch.setattr(checkpoints, "layout", lambda state: ["other"])
    with pytest.raises(UsageError, match="step 3 was saved by another version of its layers"):
        resumed(folder, run)


def test_nothing_whole_left(run, saved):
    folder, _ = saved
    for data in (folder / "checkpoints").rglob("*/d/*"):
        cut(data)
    before = contents(folder)
    with pytest.raises(UsageError, match="checkpoints of steps 1, 2, 3 are damaged and no other"):
        resumed(folder, run)
    assert contents(folder) == before


def test_checkpoint_of_another_run_among_ours(run, saved):
    folder, _ = saved
    other = dataclasses.replace(TINY, seed=5)
    with opened(folder.with_name("other"), other) as theirs:
        theirs.save(advance(run, run.start(), 4))
    shutil.copytree(folder.with_name("other") / "checkpoints/4", folder / "checkpoints/4")
    before = contents(folder)
    with pytest.raises(UsageError, match="holds a run with seed=5, but you asked for seed=0"):
        resumed(folder, run)
    assert contents(folder) == before


@contextlib.contextmanager
def largest_file(size):
    """The kernel refuses to write files that are larger, as it does when the disk is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk(run, saved, capfd):
    folder, packed = saved
    state = advance(run, resumed(folder, run), 1)
    before = contents(folder)
    with opened(folder) as full, largest_file(100), pytest.raises(UsageError) as raised:
        full.save(state)
    assert str(raised.value) == (
        f"{folder}: step 4 cannot be saved (File too large); step 3 is safe"
    )
    assert capfd.readouterr() == ("", "")
    after = contents(folder)
    assert {path: after[path] for path in before} == before
    again = resumed(folder, run)
    np.testing.assert_array_equal(checkpoints.pack(again), packed[3])


@pytest.mark.parametrize("name", ["checkpoints", "damaged"])
def test_a_file_where_a_folder_should_be(name, run, saved, capfd):
    """Also what a user sees for whom the folder is read-only: nothing is lost."""
    folder, packed = saved
    if name == "damaged":
        flip(next((folder / "checkpoints/3").rglob("*/d/*")))
    else:
        (folder / name).rename(folder / "away")
    (folder / name).write_text("a file")
    before = contents(folder)
    with pytest.raises(UsageError, match=r"(cannot be opened|cannot be moved) \(.*\)$"):
        resumed(folder, run)
    assert contents(folder) == before
    (folder / name).unlink()
    if name == "checkpoints":
        (folder / "away").rename(folder / name)
    state = resumed(folder, run)
    np.testing.assert_array_equal(checkpoints.pack(state), packed[int(state.step)])


@pytest.mark.parametrize("number", [errno.EROFS, errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_takes_no_more(number, run, saved, monkeypatch, tmp_path):
    """On the way to a checkpoint, and where a run begins."""
    folder, packed = saved
    state, before = resumed(folder, run), contents(folder)

    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    with opened(folder) as full, monkeypatch.context() as patch:
        patch.setattr("orbax.checkpoint.CheckpointManager.save", refuse)
        expected = rf"step 3 cannot be saved \({os.strerror(number)}\); step 3 is safe"
        with pytest.raises(UsageError, match=expected):
            full.save(state)
    assert contents(folder) == before
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "write_text", refuse)
        with pytest.raises(UsageError, match=rf"cannot be written \({os.strerror(number)}\)"):
            checkpoints.Folder(tmp_path / "new", TINY)
    np.testing.assert_array_equal(checkpoints.pack(resumed(folder, run)), packed[3])


def test_what_a_killed_process_was_writing_goes(run, saved):
    folder, packed = saved
    (folder / ".metrics.json.123.part").write_text("{")
    np.testing.assert_array_equal(checkpoints.pack(resumed(folder, run)), packed[3])
    assert sorted(os.listdir(folder)) == ["checkpoints", "configuration.json"]


def test_nothing_is_unpickled(run, saved, monkeypatch):
    """A pickle can run code where it is read."""
    folder, packed = saved

    def refuse(*arguments, **options):
        raise AssertionError("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    state = resumed(folder, run)
    np.testing.assert_array_equal(checkpoints.pack(state), packed[3])
    with opened(folder) as again:
        again.save(dataclasses.replace(state, step=state.step + 1))
    assert int(resumed(folder, run).step) == 4
    sources = pathlib.Path(checkpoints.__file__).parents[1].rglob("*.py")
    unpickles = re.compile(r"^\s*(import|from) (pickle|dill|joblib|shelve)|allow_pickle=True", re.M)
    assert [path.name for path in sources if unpickles.search(path.read_text())] == []


def test_what_processes_tell_each_other(rng):
    """Numbers, texts, arrays, lists, tuples and dicts."""
    image = rng.integers(0, 9, (2, 3), np.int32)
    told = {"a": [1, 0.5, None, True, "\u00b5"], "b": ((), (image, image[:0])), "array": {}}
    found = processes.unpacked(processes.packed([told, np.float64(0.1), np.nan]))
    assert found[1] == 0.1
    assert np.isnan(found[2])
    assert found[0]["a"] == told["a"]
    assert isinstance(found[0]["b"], tuple)
    assert found[0]["array"] == {}
    for a, b in zip(found[0]["b"][1], told["b"][1]):
        np.testing.assert_array_equal(a, b, strict=True)
    for other in ({1: 2}, np.array([None]), np.zeros(2, jax.numpy.bfloat16)):
        with pytest.raises(TypeError, match="not sent"):
            processes.packed(other)


def test_trained_network_can_be_loaded(run, saved):
    folder, _ = saved
    images = run.test_scenes(8).images - 0.5
    expected = run.model(resumed(folder, run))(images)
    np.testing.assert_array_equal(session.load(str(folder))(images), expected)


@pytest.mark.parametrize("text", [None, "[]", "{}", '{"decoder": ["nearest"]}'])
def test_no_network_to_load(text, tmp_path):
    if text:
        (tmp_path / "configuration.json").write_text(text)
    with pytest.raises(UsageError, match="holds no run"):
        session.load(tmp_path)


def test_as_many_checkpoints_as_are_kept(run, saved):
    folder, _ = saved
    with opened(folder) as again:
        again.save(advance(run, again.resume(run.start()), 1))
    assert sorted(os.listdir(folder / "checkpoints")) == ["2", "3", "4"]


# Commands


@pytest.fixture
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)


def assert_is_figure(path):
    with Image.open(path) as figure:
        figure.load()
        assert min(figure.size) > 300
        assert len(np.unique(np.asarray(figure))) > 50


@pytest.mark.thorough
def test_train(tmp_path, monkeypatch, capfd, one_device, finished):
    monkeypatch.chdir(tmp_path)
    assert main(["train", *OPTIONS]) == 0
    output, error = capfd.readouterr()
    assert error == ""
    lines = re.findall(r"^indices: (\d)/6  loss \d\.\d{3}  mIoU 0\.\d{3}$", output, re.MULTILINE)
    assert lines == list("123456")
    assert "jaxunpool-train: wrote metrics.json, predictions.png" in output
    folder = tmp_path / "jaxunpool-train"
    found = json.loads((folder / "metrics.json").read_text())
    assert f"{found['scores']['mean_iou']:.3f}" in output
    assert found["configuration"] == dataclasses.asdict(TINY)
    assert sorted(os.listdir(folder)) == sorted(
        ["checkpoints", "configuration.json", "metrics.json", *FIGURES]
    )
    for figure in FIGURES:
        assert_is_figure(folder / figure)

    before = contents(folder)
    assert main(["train", *OPTIONS]) == 0
    assert capfd.readouterr().out.startswith("jaxunpool-train: complete, 6 steps\n")
    assert contents(folder) == before

    (folder / "confusion.png").unlink()
    for text in ('{"configuration', "{}", "[]"):
        (folder / "metrics.json").write_text(text)
        assert main(["train", *OPTIONS]) == 0
        assert contents(folder) == before

    for changed in (["--seed", "1"], ["--decoder", "nearest"], ["--steps", "7"]):
        before = contents(folder)
        assert main(["train", *OPTIONS, *changed]) == 2
        name, value = changed[0][2:], changed[1]
        error = capfd.readouterr().err
        assert error.startswith("jaxunpool: --output jaxunpool-train: holds a run with ")
        assert f"but you asked for {name}={value}: choose another folder\n" in error
        assert error.count("\n") == 1
        assert contents(folder) == before


@pytest.mark.thorough
def test_compare(tmp_path, monkeypatch, capfd, one_device):
    monkeypatch.chdir(tmp_path)
    arguments = ["compare", *OPTIONS, "--decoders", *DECODERS]
    assert main(arguments) == 0
    output, error = capfd.readouterr()
    assert error == ""
    table = output[output.index("6 steps each, 256 test scenes") :]
    rows = [line.split() for line in table.splitlines() if line.strip().startswith(DECODERS)]
    count = f"{loop.parameter_count(TINY):,}"
    assert [row[:3] for row in rows] == [["nearest", count, "0"], ["indices", count, "720"]]
    assert all(float(cell) > 0 for row in rows for cell in row[3:])
    folder = tmp_path / "jaxunpool-compare"
    found = json.loads((folder / "comparison.json").read_text())
    assert [f"{row['scores']['boundary_f1']:.3f}" for row in found] == [row[-1] for row in rows]
    for figure in ("comparison.png", "decoders.png"):
        assert_is_figure(folder / figure)

    assert main(arguments) == 0
    again = capfd.readouterr().out
    assert "jaxunpool-compare: complete, 6 steps of each decoder" in again
    assert again.endswith(table)

    before = contents(folder)
    assert main(["compare", *OPTIONS]) == 2
    assert "holds a run with decoder=['nearest', 'indices']" in capfd.readouterr().err
    assert contents(folder) == before


WRONG_REQUESTS = {
    "no steps": ("train --steps 0", "--steps: expected at least 1, got 0"),
    "steps text": ("train --steps many", "--steps: expected an int, got 'many'"),
    "batch": ("train --batch=-1", "--batch: expected at least 1, got -1"),
    "decoder": ("train --decoder magic", "--decoder: invalid choice: 'magic' (choose from "),
    "seed": ("train --seed=-1", "--seed: expected 0 to 2**32 - 1, got -1"),
    "rate": ("train --learning-rate 0", "--learning-rate: expected a positive number, got 0.0"),
    "rate nan": ("train --learning-rate nan", "--learning-rate: expected a positive number"),
    "size small": ("train --size 23", "--size: expected 24 to 160, got 23"),
    "size large": ("train --size 161", "--size: expected 24 to 160, got 161"),
    "too many stages": ("train --stages 6", "--size: expected 64 to 160, got 48"),
    "far too many stages": ("train --stages 20000", "--stages: expected at most 7, got 20000"),
    "too many steps": ("train --steps 99999999", "--steps: expected at most 10000000, got 9999"),
    "every": ("train --checkpoint-every 0", "--checkpoint-every: expected at least 1, got 0"),
    "unknown option": ("train --levels 3", "unrecognized arguments: --levels 3"),
    "output is a file": ("train --output file", "--output file: is not a folder"),
    "output in a file": ("train --output file/sub", "--output file/sub: Not a directory"),
    "output holds more": ("train --output sub", "--output sub: holds something other than a run"),
    "damaged": ("train --output torn", "--output torn: its configuration.json is damaged"),
    "compare decoder": ("compare --decoders nearest magic", "--decoders: invalid choice: 'magic'"),
    "compare twice": ("compare --decoders nearest nearest", "--decoders: one is named twice"),
    "compare output": ("compare --output sub", "--output sub: holds something other than a run"),
    "compare steps": ("compare --steps 0", "--steps: expected at least 1, got 0"),
    "no command": ("trian", "unrecognized arguments: trian"),
}


@pytest.mark.parametrize("name", WRONG_REQUESTS)
def test_wrong_requests(name, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "Run", None)  # refused before any slow work
    pathlib.Path("file").write_text("a file")
    for folder, file, text in (("sub", "notes.txt", "mine"), ("torn", "configuration.json", "{")):
        pathlib.Path(folder).mkdir()
        pathlib.Path(folder, file).write_text(text)
    before = contents(tmp_path)
    arguments, message = WRONG_REQUESTS[name]
    assert main(arguments.split()) == 2
    output, error = capfd.readouterr()
    assert output == ""
    assert message in error
    assert error.startswith("jaxunpool: ")
    assert error.count("\n") == 1
    assert contents(tmp_path) == before


def test_folder_that_is_not_writable(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # also where the tester may all
    assert main(["train", *OPTIONS]) == 2
    expected = "jaxunpool: --output jaxunpool-train: the folder is not writable\n"
    assert capfd.readouterr().err == expected


@pytest.mark.parametrize("package", ["optax", "orbax.checkpoint", "sklearn", "rich"])
def test_missing_extra(package, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert main(["train"]) == 2
    expected = f"jaxunpool: {package} is missing: pip install 'jaxunpool[train]'\n"
    assert capfd.readouterr().err == expected


def test_two_first_starts_in_one_folder(tmp_path, monkeypatch):
    """The second comes when the first is about to say what the folder is for."""
    write, refused = checkpoints.write_json, []

    def write_late(path, value):
        with pytest.raises(UsageError, match="another process is training in it"):
            checkpoints.Folder(path.parent, dataclasses.replace(TINY, steps=7))
        refused.append(path)
        write(path, value)

    monkeypatch.setattr(checkpoints, "write_json", write_late)
    with opened(tmp_path / "run"):
        assert len(refused) == 1


def test_two_runs_in_one_folder(tmp_path):
    other = pytest.raises(UsageError, match="another process is training in it")
    with opened(tmp_path / "run"), other:
        checkpoints.Folder(tmp_path / "run", TINY)
    with opened(tmp_path / "run"):
        pass


# Signals, in processes of their own

STEPS = 30
STOPPED = r"jaxunpool: stopped after step (\d+), saved in run; the same command continues\n"
LONG = [*OPTIONS, "--steps", str(STEPS), "--checkpoint-every", "1", "--output", "run"]


def start(folder):
    environment = os.environ | QUICKLY | {"PYTHONWARNINGS": "error"}
    return subprocess.Popen(
        [sys.executable, "-m", "jaxunpool", "train", *LONG],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for_step(folder, step, process):
    """Until there is a checkpoint of this step or a later one."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        found = (folder / "run/checkpoints").glob("*")
        if any(path.name.isdigit() and int(path.name) >= step for path in found):
            return
        time.sleep(0.002)
    raise AssertionError(process.communicate())


def last_checkpoint(folder):
    asked = dataclasses.replace(TINY, steps=STEPS)
    run = loop.Run(asked, jax.devices()[:1])
    with opened(folder / "run", asked) as saved:
        return checkpoints.pack(saved.resume(run.start()))


@pytest.mark.thorough
def test_interrupted_and_killed_runs_end_as_an_uninterrupted_one(tmp_path, rng):
    (tmp_path / "whole").mkdir()
    (tmp_path / "broken").mkdir()
    whole = start(tmp_path / "whole")
    output, error = whole.communicate(timeout=300)
    assert (whole.returncode, error) == (0, "")

    process = start(tmp_path / "broken")
    wait_for_step(tmp_path / "broken", 2, process)
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=300)
    assert process.returncode == 130
    stopped = re.fullmatch(STOPPED, error)
    assert stopped, error

    reached = int(stopped[1])
    for _ in range(2):
        process = start(tmp_path / "broken")
        wait_for_step(tmp_path / "broken", reached + 5, process)
        time.sleep(rng.uniform(0, 0.1))  # in a step or while it saves
        process.kill()
        output, error = process.communicate(timeout=300)
        assert process.returncode == -signal.SIGKILL
        assert output.startswith(f"run: going on from step {reached}\n"), (output, error)
        names = os.listdir(tmp_path / "broken/run/checkpoints")
        reached = max(int(name) for name in names if name.isdigit())

    process = start(tmp_path / "broken")
    output, error = process.communicate(timeout=300)
    assert (process.returncode, error) == (0, "")
    np.testing.assert_array_equal(
        last_checkpoint(tmp_path / "broken"), last_checkpoint(tmp_path / "whole")
    )
    for name in ("metrics.json", *FIGURES):
        paths = [tmp_path / folder / "run" / name for folder in ("broken", "whole")]
        assert paths[0].read_bytes() == paths[1].read_bytes(), name


@pytest.mark.thorough
def test_interrupted_process(tmp_path):
    process = start(tmp_path)
    wait_for_step(tmp_path, 2, process)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=300)
    assert process.returncode == 130
    assert re.fullmatch(STOPPED, error), error
    names = (path.name for path in (tmp_path / "run/checkpoints").iterdir())
    assert str(max(map(int, filter(str.isdigit, names)))) == re.fullmatch(STOPPED, error)[1]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_what_it_does_without_us(number):
    before = signal.getsignal(number)
    with session.Signals() as signals:
        assert signals.received is None
        signal.raise_signal(number)
        assert signals.received == number
        assert signal.getsignal(number) == before


@pytest.mark.thorough
def test_a_signal_in_the_last_save_is_heard(tmp_path, monkeypatch, capfd, one_device):
    """Of a comparison no further decoder is trained, and the same command goes on."""
    monkeypatch.chdir(tmp_path)
    save = checkpoints.Folder.save

    def interrupted(self, state):
        save(self, state)
        if int(state.step) == TINY.steps:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(checkpoints.Folder, "save", interrupted)
    assert main(["compare", *OPTIONS, "--decoders", *DECODERS]) == 130
    assert "stopped after step 6, saved in jaxunpool-compare/nearest" in capfd.readouterr().err
    assert not (tmp_path / "jaxunpool-compare/indices").exists()


def test_second_interrupt():
    with session.Signals():
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_stopped_at_once(capfd):
    def run():
        raise KeyboardInterrupt

    assert session.interruptible(run) == 130
    assert capfd.readouterr().err == "jaxunpool: stopped at once; what was saved is safe\n"
