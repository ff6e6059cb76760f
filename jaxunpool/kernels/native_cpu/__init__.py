"""The primitives in C++, as custom calls of XLA: the kernels for CPU.

`handlers.cc` has the calls and shares their work among XLA's threads; `rows.h` cuts rows into runs
of results that look at the same taps; `runs.inc` has the kernels of runs, `winners.h` finds which
windows have the last word on an element, `sparse.h` follows offsets where few elements are named,
`planes.h` makes channels of planes (channels first), `tiled.inc` copies and sums by planes where
windows do not meet, and `flat.h` is for indices without a window.
`resample.h` cuts arrays for maps along axes, and `resample.inc` has those. `convolve.h` says what
convolutions read, and `convolve.inc` has their products. Values, offsets and sums have the bits of
`xla`; maps and convolutions agree to rounding.

What is in `.inc` is compiled three times: for any x86-64 or arm64 processor (`baseline.cc`), for
AVX2 and for AVX-512. The library takes the widest that the machine has.
"""

from jaxunpool.kernels.native_cpu.calls import (
    convolve,
    gather,
    gather_flat,
    gather_last,
    gather_last_flat,
    reduce,
    replicate,
    resample_flat,
    scatter,
    scatter_flat,
    select,
    uneven_flat,
    unsupported,
)
from jaxunpool.kernels.native_cpu.library import missing

__all__ = [
    "convolve",
    "gather",
    "gather_flat",
    "gather_last",
    "gather_last_flat",
    "missing",
    "reduce",
    "replicate",
    "resample_flat",
    "scatter",
    "scatter_flat",
    "select",
    "uneven_flat",
    "unsupported",
]
