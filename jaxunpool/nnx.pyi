"""What editors and type checkers see of `jaxunpool.nnx`, made by tests/stubs.py."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import nnx
from jax import lax

from jaxunpool.adaptive import Parts
from jaxunpool.average import AvgUnpoolMode
from jaxunpool.core.arguments import Sizes
from jaxunpool.core.backends import Implementation
from jaxunpool.core.geometry import DataFormat, Padding
from jaxunpool.indices import PackedIndices, PoolIndices
from jaxunpool.interpolate import Coordinates, Mode
from jaxunpool.max import Duplicates
from jaxunpool.nearest import NearestDuplicates

__all__ = [
    "AdaptiveAvgPool",
    "AdaptiveMaxPool",
    "AdaptiveMaxPoolWithIndices",
    "AvgPool",
    "AvgUnpool",
    "BedOfNailsUnpool",
    "ConvTranspose",
    "FixedUnpool",
    "FractionalAvgPool",
    "FractionalMaxPool",
    "FractionalMaxPoolWithIndices",
    "GlobalAvgPool",
    "GlobalMaxPool",
    "GlobalMaxPoolWithIndices",
    "Interpolate",
    "Inverse",
    "LpPool",
    "MaxPool",
    "MaxPoolWithArgmaxAndMask",
    "MaxPoolWithIndices",
    "MaxPoolWithPackedIndices",
    "MaxUnpool",
    "MaxUnpoolLike",
    "MinPool",
    "MinPoolWithIndices",
    "NearestUnpool",
    "Paired",
    "PoolAt",
]

class AdaptiveAvgPool(nnx.Module):
    """Mean over windows that divide the input into `output_shape` parts."""

    def __init__(
        self,
        output_shape: Parts,
        *,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        x: jax.typing.ArrayLike,
        *,
        output_shape: Parts | None = None,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class AdaptiveMaxPool(nnx.Module):
    """Maximum over windows that divide the input into `output_shape` parts."""

    def __init__(
        self,
        output_shape: Parts,
        *,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        x: jax.typing.ArrayLike,
        *,
        output_shape: Parts | None = None,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class AdaptiveMaxPoolWithIndices(nnx.Module):
    """Maximum of each of `output_shape` parts of the input, and its position."""

    def __init__(
        self,
        output_shape: Parts,
        *,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        x: jax.typing.ArrayLike,
        *,
        output_shape: Parts | None = None,
    ) -> tuple[jax.Array, PoolIndices]: ...
    def __getattr__(self, name: str) -> Any: ...

class AvgPool(nnx.Module):
    """Mean of each window."""

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class AvgUnpool(nnx.Module):
    """Undo average pooling."""

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        mode: AvgUnpoolMode = "mean",
        output_shape: Sizes | None = None,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        y: jax.typing.ArrayLike,
        *,
        output_shape: Sizes | None = None,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class BedOfNailsUnpool(nnx.Module):
    """Each value at the same position of its window, zeros elsewhere."""

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        position: Sizes = 0,
        output_shape: Sizes | None = None,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        y: jax.typing.ArrayLike,
        *,
        output_shape: Sizes | None = None,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class ConvTranspose(nnx.Module):
    """Transposed convolution: the gradient of a convolution with respect to its input."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: Sequence[int],
        strides: Sizes = 1,
        padding: Padding = 0,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = ...,
        kernel_init: Any = ...,
        bias_init: Any = ...,
        rngs: nnx.Rngs,
        output_padding: Sizes = 0,
        output_shape: Sizes | None = None,
        groups: int = 1,
        dilation: Sizes = 1,
        data_format: DataFormat = "channels_last",
        precision: lax.PrecisionLike | None = None,
    ) -> None: ...
    def __call__(
        self,
        x: jax.typing.ArrayLike,
        *,
        output_shape: Sizes | None = None,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class FixedUnpool(nnx.Module):
    """A copy of `pattern` for each value, multiplied by the value."""

    def __init__(
        self,
        pattern: jax.typing.ArrayLike,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        output_shape: Sizes | None = None,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        y: jax.typing.ArrayLike,
        *,
        output_shape: Sizes | None = None,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class FractionalAvgPool(nnx.Module):
    """Mean over windows at randomly spaced positions."""

    def __init__(
        self,
        output_shape: Sizes | None = None,
        *,
        deterministic: bool = False,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        output_ratio: float | Sequence[float] | None = None,
        sequences: Sequence[Any] | None = None,
        pseudo_random: bool = True,
        overlapping: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        x: jax.typing.ArrayLike,
        *,
        key: jax.Array | None = None,
        output_shape: Sizes | None = None,
        deterministic: Any = None,
        rngs: Any = None,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class FractionalMaxPool(nnx.Module):
    """Maximum over windows at randomly spaced positions."""

    def __init__(
        self,
        window_shape: Sizes | None,
        output_shape: Sizes | None = None,
        *,
        deterministic: bool = False,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        output_ratio: float | Sequence[float] | None = None,
        sequences: Sequence[Any] | None = None,
        pseudo_random: bool = True,
        overlapping: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        x: jax.typing.ArrayLike,
        *,
        key: jax.Array | None = None,
        random_samples: jax.typing.ArrayLike | None = None,
        output_shape: Sizes | None = None,
        deterministic: Any = None,
        rngs: Any = None,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class FractionalMaxPoolWithIndices(nnx.Module):
    """Maximum of each randomly placed window, and its position."""

    def __init__(
        self,
        window_shape: Sizes | None,
        output_shape: Sizes | None = None,
        *,
        deterministic: bool = False,
        rngs: nnx.Rngs | nnx.RngStream | None = None,
        output_ratio: float | Sequence[float] | None = None,
        sequences: Sequence[Any] | None = None,
        pseudo_random: bool = True,
        overlapping: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        x: jax.typing.ArrayLike,
        *,
        key: jax.Array | None = None,
        random_samples: jax.typing.ArrayLike | None = None,
        output_shape: Sizes | None = None,
        deterministic: Any = None,
        rngs: Any = None,
    ) -> tuple[jax.Array, PoolIndices]: ...
    def __getattr__(self, name: str) -> Any: ...

class GlobalAvgPool(nnx.Module):
    """Mean over all spatial axes."""

    def __init__(
        self,
        *,
        spatial_ndim: int | None = None,
        data_format: DataFormat = "channels_last",
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class GlobalMaxPool(nnx.Module):
    """Maximum over all spatial axes: `max_pool` with the whole plane as its window."""

    def __init__(
        self,
        *,
        spatial_ndim: int | None = None,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class GlobalMaxPoolWithIndices(nnx.Module):
    """Maximum over all spatial axes and its position."""

    def __init__(
        self,
        *,
        spatial_ndim: int | None = None,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> tuple[jax.Array, PoolIndices]: ...
    def __getattr__(self, name: str) -> Any: ...

class Interpolate(nnx.Module):
    """Resize the spatial axes."""

    def __init__(
        self,
        output_shape: Sizes | None = None,
        scale: float | Sequence[float] | None = None,
        mode: Mode = "nearest",
        align_corners: bool = False,
        antialias: bool = False,
        coordinates: Coordinates | None = None,
        *,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        x: jax.typing.ArrayLike,
        *,
        output_shape: Sizes | None = None,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class Inverse(nnx.Module):
    """The transposed Jacobian of a function or module: `jaxunpool.inverse` as a module."""

    def __init__(self, fn: Callable[[Any], Any]) -> None: ...
    def __call__(self, y: Any, x: Any) -> Any: ...
    def __getattr__(self, name: str) -> Any: ...

class LpPool(nnx.Module):
    """The p-norm of each window, `sum(|x| ** p) ** (1 / p)`."""

    def __init__(
        self,
        norm_type: float | jax.Array,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class MaxPool(nnx.Module):
    """Maximum of each window."""

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class MaxPoolWithArgmaxAndMask(nnx.Module):
    """Maximum of each window, its position, and a mask of all selected elements."""

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> tuple[jax.Array, PoolIndices, jax.Array]: ...
    def __getattr__(self, name: str) -> Any: ...

class MaxPoolWithIndices(nnx.Module):
    """Maximum of each window and its position."""

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> tuple[jax.Array, PoolIndices]: ...
    def __getattr__(self, name: str) -> Any: ...

class MaxPoolWithPackedIndices(nnx.Module):
    """Maximum of each window and its position, in 2 or 4 bits."""

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> tuple[jax.Array, PackedIndices]: ...
    def __getattr__(self, name: str) -> Any: ...

class MaxUnpool(nnx.Module):
    """Each element of `y` at the position that its index names, zeros elsewhere."""

    def __init__(
        self,
        *,
        output_shape: Sizes | None = None,
        duplicates: Duplicates = "last",
        data_format: DataFormat | None = None,
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        y: jax.typing.ArrayLike,
        indices: PoolIndices | PackedIndices | jax.typing.ArrayLike,
        *,
        output_shape: Sizes | None = None,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class MaxUnpoolLike(nnx.Module):
    """Unpool without saved indices: each value goes where `pool_input` has its window's maximum."""

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        duplicates: Duplicates = "sum",
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        pool_input: jax.typing.ArrayLike,
        unpool_input: jax.typing.ArrayLike,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class MinPool(nnx.Module):
    """Minimum of each window."""

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class MinPoolWithIndices(nnx.Module):
    """Minimum of each window and its position."""

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> tuple[jax.Array, PoolIndices]: ...
    def __getattr__(self, name: str) -> Any: ...

class NearestUnpool(nnx.Module):
    """A copy of each value in all elements of its window, zeros elsewhere."""

    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        *,
        output_shape: Sizes | None = None,
        duplicates: NearestDuplicates = "last",
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        y: jax.typing.ArrayLike,
        *,
        output_shape: Sizes | None = None,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class Paired(nnx.Module):
    """A pooling and its unpooling, with layers in between: `unpool(inner(y), indices)`."""

    def __init__(
        self,
        pool: Callable[..., Any],
        inner: Callable[..., Any],
        unpool: Callable[..., Any] = ...,
    ) -> None: ...
    def __call__(self, x: Any) -> Any: ...
    def __getattr__(self, name: str) -> Any: ...

class PoolAt(nnx.Module):
    """The element of `x` that each index names."""

    def __init__(
        self,
        *,
        spatial_ndim: int | None = None,
        data_format: DataFormat | None = None,
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(
        self,
        x: jax.typing.ArrayLike,
        indices: PoolIndices | PackedIndices | jax.typing.ArrayLike,
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...
