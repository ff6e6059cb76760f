"""Set-up shared by all tests, and their two tiers.

`pytest` runs the fast tier: nearly every line and branch, a few inputs each. `pytest --thorough`
adds the tests marked `thorough`, all cases of those marked `few`, and many more random examples.
`--share K/N` runs one N-th of what `--thorough` adds, and nothing else.
"""

import os

# Tests compile hundreds of small programs and check numbers, not speed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# libtpu only compiles here: it need not look for a TPU, nor keep it from other test processes.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import collections
import contextlib
import ctypes
import gc
import zlib

import hypothesis
import jax
import numpy as np
import pytest
import strategies
from jax.experimental.compilation_cache import compilation_cache
from memory import resident_bytes

collect_ignore = ["peers"]  # which run by `pytest tests/peers` alone

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)  # tests of sharding use them; all others the first

# Compiling dominates; what matters is that an example fails or not, not how long it takes.
hypothesis.settings.register_profile(
    "fast", deadline=None, print_blob=True, derandomize=True, database=None
)
hypothesis.settings.register_profile("thorough", deadline=None, print_blob=True)

# Compiled programs are forgotten when a worker has grown to this. PyTorch, Keras and the rest of
# what the tests import take 0.8 GB of it: a limit near that would forget after every test.
LARGEST_WORKER = 1_100_000_000


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tiers")
    group.addoption("--thorough", action="store_true", help="the thorough tests too")
    group.addoption("--share", metavar="K/N", help="one N-th of what --thorough adds, no others")


def pytest_configure(config: pytest.Config) -> None:
    strategies.THOROUGH = config.getoption("thorough") or config.getoption("share") is not None
    hypothesis.settings.load_profile("thorough" if strategies.THOROUGH else "fast")
    _compile_quickly()
    gc.set_threshold(200_000, 20, 20)  # tracing makes many objects, and most of them stay


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share = config.getoption("share")
    if share is None and strategies.THOROUGH:
        return
    fast = _fast(items)
    if share is None:
        kept = [item for item in items if item in fast]
    else:
        number, count = map(int, share.split("/"))
        kept = [
            item
            for item in items
            if (item not in fast or _is_drawn(item))
            and zlib.crc32(item.nodeid.encode()) % count == number % count
        ]
    config.hook.pytest_deselected(items=[item for item in items if item not in set(kept)])
    items[:] = kept


def _fast(items: list[pytest.Item]) -> set[pytest.Item]:
    """The fast tier: all tests but those marked `thorough`, and a few cases of some."""
    of_test = collections.defaultdict(list)
    for item in items:
        if item.get_closest_marker("thorough") is None:
            of_test[item.nodeid.partition("[")[0]].append(item)
    fast = set()
    for cases in of_test.values():
        few = cases[0].get_closest_marker("few")
        count = len(cases) if few is None else min(few.args[0], len(cases))
        fast.update(cases[(2 * i + 1) * len(cases) // (2 * count)] for i in range(count))
    return fast


def _is_drawn(item: pytest.Item) -> bool:
    """Whether hypothesis draws its examples, of which `--thorough` draws more."""
    return getattr(getattr(item, "obj", None), "is_hypothesis_test", False)


@pytest.fixture(scope="module", autouse=True)
def _forget_after_each_file():
    yield
    _forget_compiled_programs()


@pytest.fixture(autouse=True)
def _stay_small():
    yield
    if resident_bytes() > LARGEST_WORKER:
        _forget_compiled_programs()


def _forget_compiled_programs() -> None:
    jax.clear_caches()
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL(None).malloc_trim(0)  # hands back to the system what is free


def _compile_quickly() -> None:
    """Most of the fast tier's time is LLVM's; the thorough tier compiles as users do."""
    asked = os.environ.get("JAX_DISABLE_MOST_OPTIMIZATIONS", "0") == "1"
    jax.config.update("jax_disable_most_optimizations", asked or not strategies.THOROUGH)


@pytest.fixture(scope="module")
def compiled_as_users_do():
    """For files whose point is what optimizations may change: bits."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    _compile_quickly()


@pytest.fixture(scope="session", autouse=True)
def _compiled_once(tmp_path_factory):
    """A program that was compiled and forgotten, or is built again, is read from a file."""
    settings = {
        "jax_compilation_cache_dir": str(tmp_path_factory.mktemp("compiled")),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()  # it may have noted already that there is none


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
