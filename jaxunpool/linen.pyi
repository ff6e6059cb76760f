"""What editors and type checkers see of `jaxunpool.linen`, made by tests/stubs.py."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
from flax import linen as nn
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

class AdaptiveAvgPool(nn.Module):
    """Mean over windows that divide the input into `output_shape` parts."""

    output_shape: Parts
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        output_shape: Parts,
        parent: Any = ...,
        name: Any = None,
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

class AdaptiveMaxPool(nn.Module):
    """Maximum over windows that divide the input into `output_shape` parts."""

    output_shape: Parts
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        output_shape: Parts,
        parent: Any = ...,
        name: Any = None,
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

class AdaptiveMaxPoolWithIndices(nn.Module):
    """Maximum of each of `output_shape` parts of the input, and its position."""

    output_shape: Parts
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        output_shape: Parts,
        parent: Any = ...,
        name: Any = None,
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

class AvgPool(nn.Module):
    """Mean of each window."""

    window_shape: Sizes
    strides: Sizes | None
    padding: Padding
    dilation: Sizes
    ceil_mode: bool
    count_include_pad: bool
    divisor_override: int | None
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
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

class AvgUnpool(nn.Module):
    """Undo average pooling."""

    window_shape: Sizes
    strides: Sizes | None
    padding: Padding
    mode: AvgUnpoolMode
    output_shape: Sizes | None
    dilation: Sizes
    ceil_mode: bool
    count_include_pad: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
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

class BedOfNailsUnpool(nn.Module):
    """Each value at the same position of its window, zeros elsewhere."""

    window_shape: Sizes
    strides: Sizes | None
    padding: Padding
    position: Sizes
    output_shape: Sizes | None
    dilation: Sizes
    ceil_mode: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
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

class ConvTranspose(nn.Module):
    """Transposed convolution: the gradient of a convolution with respect to its input."""

    features: int
    kernel_size: Sequence[int]
    strides: Sizes
    padding: Padding
    use_bias: bool
    dtype: Any
    param_dtype: Any
    kernel_init: nn.initializers.Initializer
    bias_init: nn.initializers.Initializer
    output_padding: Sizes
    output_shape: Sizes | None
    groups: int
    dilation: Sizes
    data_format: DataFormat
    precision: lax.PrecisionLike | None
    def __init__(
        self,
        features: int,
        kernel_size: Sequence[int],
        strides: Sizes = 1,
        padding: Padding = 0,
        parent: Any = ...,
        name: Any = None,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = ...,
        kernel_init: nn.initializers.Initializer = ...,
        bias_init: nn.initializers.Initializer = ...,
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

class FixedUnpool(nn.Module):
    """A copy of `pattern` for each value, multiplied by the value."""

    pattern: jax.typing.ArrayLike
    strides: Sizes | None
    padding: Padding
    learnable: bool
    param_dtype: Any
    output_shape: Sizes | None
    dilation: Sizes
    ceil_mode: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        pattern: jax.typing.ArrayLike,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
        *,
        learnable: bool = False,
        param_dtype: Any = ...,
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

class FractionalAvgPool(nn.Module):
    """Mean over windows at randomly spaced positions."""

    output_shape: Sizes | None
    deterministic: bool
    output_ratio: float | Sequence[float] | None
    sequences: Sequence[Any] | None
    pseudo_random: bool
    overlapping: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        output_shape: Sizes | None = None,
        parent: Any = ...,
        name: Any = None,
        *,
        deterministic: bool = False,
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
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class FractionalMaxPool(nn.Module):
    """Maximum over windows at randomly spaced positions."""

    window_shape: Sizes | None
    output_shape: Sizes | None
    deterministic: bool
    output_ratio: float | Sequence[float] | None
    sequences: Sequence[Any] | None
    pseudo_random: bool
    overlapping: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes | None,
        output_shape: Sizes | None = None,
        parent: Any = ...,
        name: Any = None,
        *,
        deterministic: bool = False,
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
    ) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class FractionalMaxPoolWithIndices(nn.Module):
    """Maximum of each randomly placed window, and its position."""

    window_shape: Sizes | None
    output_shape: Sizes | None
    deterministic: bool
    output_ratio: float | Sequence[float] | None
    sequences: Sequence[Any] | None
    pseudo_random: bool
    overlapping: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes | None,
        output_shape: Sizes | None = None,
        parent: Any = ...,
        name: Any = None,
        *,
        deterministic: bool = False,
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
    ) -> tuple[jax.Array, PoolIndices]: ...
    def __getattr__(self, name: str) -> Any: ...

class GlobalAvgPool(nn.Module):
    """Mean over all spatial axes."""

    spatial_ndim: int | None
    data_format: DataFormat
    def __init__(
        self,
        parent: Any = ...,
        name: Any = None,
        *,
        spatial_ndim: int | None = None,
        data_format: DataFormat = "channels_last",
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class GlobalMaxPool(nn.Module):
    """Maximum over all spatial axes: `max_pool` with the whole plane as its window."""

    spatial_ndim: int | None
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        parent: Any = ...,
        name: Any = None,
        *,
        spatial_ndim: int | None = None,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class GlobalMaxPoolWithIndices(nn.Module):
    """Maximum over all spatial axes and its position."""

    spatial_ndim: int | None
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        parent: Any = ...,
        name: Any = None,
        *,
        spatial_ndim: int | None = None,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> tuple[jax.Array, PoolIndices]: ...
    def __getattr__(self, name: str) -> Any: ...

class Interpolate(nn.Module):
    """Resize the spatial axes."""

    output_shape: Sizes | None
    scale: float | Sequence[float] | None
    mode: Mode
    align_corners: bool
    antialias: bool
    coordinates: Coordinates | None
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        output_shape: Sizes | None = None,
        scale: float | Sequence[float] | None = None,
        mode: Mode = "nearest",
        align_corners: bool = False,
        antialias: bool = False,
        coordinates: Coordinates | None = None,
        parent: Any = ...,
        name: Any = None,
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

class Inverse(nn.Module):
    """The transposed Jacobian of a function or module: `jaxunpool.inverse` as a module."""

    fn: Callable[[Any], Any]
    def __init__(self, fn: Callable[[Any], Any], parent: Any = ..., name: Any = None) -> None: ...
    def __call__(self, y: Any, x: Any) -> Any: ...
    def __getattr__(self, name: str) -> Any: ...

class LpPool(nn.Module):
    """The p-norm of each window, `sum(|x| ** p) ** (1 / p)`."""

    norm_type: float | jax.Array
    window_shape: Sizes
    strides: Sizes | None
    padding: Padding
    learnable: bool
    param_dtype: Any
    dilation: Sizes
    ceil_mode: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        norm_type: float | jax.Array,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
        *,
        learnable: bool = False,
        param_dtype: Any = ...,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class MaxPool(nn.Module):
    """Maximum of each window."""

    window_shape: Sizes
    strides: Sizes | None
    padding: Padding
    dilation: Sizes
    ceil_mode: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class MaxPoolWithArgmaxAndMask(nn.Module):
    """Maximum of each window, its position, and a mask of all selected elements."""

    window_shape: Sizes
    strides: Sizes | None
    padding: Padding
    dilation: Sizes
    ceil_mode: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> tuple[jax.Array, PoolIndices, jax.Array]: ...
    def __getattr__(self, name: str) -> Any: ...

class MaxPoolWithIndices(nn.Module):
    """Maximum of each window and its position."""

    window_shape: Sizes
    strides: Sizes | None
    padding: Padding
    dilation: Sizes
    ceil_mode: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> tuple[jax.Array, PoolIndices]: ...
    def __getattr__(self, name: str) -> Any: ...

class MaxPoolWithPackedIndices(nn.Module):
    """Maximum of each window and its position, in 2 or 4 bits."""

    window_shape: Sizes
    strides: Sizes | None
    padding: Padding
    dilation: Sizes
    ceil_mode: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> tuple[jax.Array, PackedIndices]: ...
    def __getattr__(self, name: str) -> Any: ...

class MaxUnpool(nn.Module):
    """Each element of `y` at the position that its index names, zeros elsewhere."""

    output_shape: Sizes | None
    duplicates: Duplicates
    data_format: DataFormat | None
    implementation: Implementation | None
    def __init__(
        self,
        parent: Any = ...,
        name: Any = None,
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

class MaxUnpoolLike(nn.Module):
    """Unpool without saved indices: each value goes where `pool_input` has its window's maximum."""

    window_shape: Sizes
    strides: Sizes | None
    padding: Padding
    duplicates: Duplicates
    dilation: Sizes
    ceil_mode: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
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

class MinPool(nn.Module):
    """Minimum of each window."""

    window_shape: Sizes
    strides: Sizes | None
    padding: Padding
    dilation: Sizes
    ceil_mode: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> jax.Array: ...
    def __getattr__(self, name: str) -> Any: ...

class MinPoolWithIndices(nn.Module):
    """Minimum of each window and its position."""

    window_shape: Sizes
    strides: Sizes | None
    padding: Padding
    dilation: Sizes
    ceil_mode: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
        *,
        dilation: Sizes = 1,
        ceil_mode: bool = False,
        data_format: DataFormat = "channels_last",
        implementation: Implementation | None = None,
    ) -> None: ...
    def __call__(self, x: jax.typing.ArrayLike) -> tuple[jax.Array, PoolIndices]: ...
    def __getattr__(self, name: str) -> Any: ...

class NearestUnpool(nn.Module):
    """A copy of each value in all elements of its window, zeros elsewhere."""

    window_shape: Sizes
    strides: Sizes | None
    padding: Padding
    output_shape: Sizes | None
    duplicates: NearestDuplicates
    dilation: Sizes
    ceil_mode: bool
    data_format: DataFormat
    implementation: Implementation | None
    def __init__(
        self,
        window_shape: Sizes,
        strides: Sizes | None = None,
        padding: Padding = "VALID",
        parent: Any = ...,
        name: Any = None,
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

class Paired(nn.Module):
    """A pooling and its unpooling, with layers in between: `unpool(inner(y), indices)`."""

    pool: Callable[..., Any]
    inner: Callable[..., Any]
    unpool: Callable[..., Any]
    def __init__(
        self,
        pool: Callable[..., Any],
        inner: Callable[..., Any],
        unpool: Callable[..., Any] = ...,
        parent: Any = ...,
        name: Any = None,
    ) -> None: ...
    def __call__(self, x: Any) -> Any: ...
    def __getattr__(self, name: str) -> Any: ...

class PoolAt(nn.Module):
    """The element of `x` that each index names."""

    spatial_ndim: int | None
    data_format: DataFormat | None
    implementation: Implementation | None
    def __init__(
        self,
        parent: Any = ...,
        name: Any = None,
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
