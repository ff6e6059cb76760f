"""`jax.numpy` and `jax.lax` as they were when jaxunpool was imported.

Converters to other formats put functions of their own into these modules while they trace. A `jit`
of a module keeps what it traced, for all later calls. So what it traces is written with these.
"""

from types import SimpleNamespace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jax import lax
    from jax import numpy as jnp
else:
    import jax

    jnp = SimpleNamespace(**vars(jax.numpy))
    lax = SimpleNamespace(**vars(jax.lax))

__all__ = ["jnp", "lax"]
