"""Set-up shared by all tests."""

import os

# Tests compile hundreds of small programs and check numbers, not speed.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# libtpu only compiles here: it need not look for a TPU, nor keep it from other test processes.
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")

import hypothesis
import jax
import numpy as np
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_num_cpu_devices", 8)  # tests of sharding use them; all others the first

# Compiling dominates; what matters is that an example fails or not, not how long it takes.
hypothesis.settings.register_profile("jaxunpool", deadline=None, print_blob=True)
hypothesis.settings.load_profile("jaxunpool")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
