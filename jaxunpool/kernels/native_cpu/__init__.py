"""The primitives in C++, as custom calls of XLA: the kernels for CPU.

`handlers.cc` has the calls and shares their work among XLA's threads; `rows.h` cuts rows into runs
of results that look at the same taps, `runs.inc` has the kernels of runs and `winners.h` finds out
which windows have the last word on an element. Values, offsets and sums have the bits of `xla`.

`runs.inc` is compiled three times, for any x86-64 (or arm64) processor, for AVX2 and for AVX-512,
and the library takes the widest there is.
"""

from jaxunpool.kernels.native_cpu.calls import (
    gather,
    gather_last,
    reduce,
    replicate,
    scatter,
    select,
    unsupported,
)

__all__ = ["gather", "gather_last", "reduce", "replicate", "scatter", "select", "unsupported"]
