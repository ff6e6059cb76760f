"""GPUs to compile for, which need not be there."""

import shutil

import pytest
from jax.experimental import topologies

# What a compiler for an H200 has to know; the compute capability is filled in.
TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024  threads_per_warp: 32  threads_per_core_limit: 2048
  shared_memory_per_block: 49152  shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472  core_count: 132  fpus_per_core: 128  clock_rate_ghz: 1.98
  block_dim_limit_x: 2147483647  block_dim_limit_y: 65535  block_dim_limit_z: 65535
  memory_bandwidth: 4800000000000  l2_cache_size: 62914560  device_memory_size: 150000000000
  cuda_compute_capability { major: %d minor: 0 }
  registers_per_core_limit: 65536  registers_per_block_limit: 65536
}
platform_name: "CUDA"  device_description_str: "NVIDIA H200"
dnn_version_info { major: 9 minor: 10 patch: 0 }  runtime_version { major: 13 }
"""


def gpus(major, count=1):
    """So many of them, of a compute capability; skips where there is no compiler for them."""
    if not (shutil.which("ptxas") or shutil.which("/usr/local/cuda/bin/ptxas")):
        pytest.skip("no ptxas")
    try:
        return topologies.get_topology_desc(
            "", "cuda", target_config=TARGET % major, topology=f"1x1x{count}"
        ).devices
    except Exception as error:  # whatever says that the plugin is not installed
        pytest.skip(f"no CUDA plugin: {error}")
