"""``autocast("cuda")``: which ops it casts and to what.

torch has kernels for this on the AutocastCUDA key, but they ask C++ whether a tensor is on CUDA, and it says no.  So
kernels for the same lists (``aten/src/ATen/autocast_mode.h``) replace them.
"""

from __future__ import annotations

import functools
import re
import threading
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch

from syncagent.simulate import patches
from syncagent.simulate.failures import leave_simulation
from syncagent.simulate.memory import flatten, on_each
from syncagent.simulate.requirements import LOSSES, aten, find
from syncagent.simulate.tensor import AUTOCAST_KEYS, SimulatedTensor

LISTS: dict[str, str] = {
    # to float16 or bfloat16
    "lower": """
        _convolution _convolution.deprecated _scaled_dot_product_flash_attention _thnn_fused_gru_cell
        _thnn_fused_lstm_cell addbmm addmm addmv addr baddbmm bmm chain_matmul conv1d conv2d conv3d conv_tbc
        conv_transpose1d conv_transpose2d.input conv_transpose3d.input convolution cudnn_convolution
        cudnn_convolution_transpose einsum gru_cell linalg_multi_dot linalg_vecdot linear lstm_cell matmul mm mv prelu
        rnn_relu_cell rnn_tanh_cell scaled_dot_product_attention
    """,
    # to float32
    "fp32": """
        _upsample_bicubic2d_aa _upsample_bilinear2d_aa _upsample_nearest_exact1d _upsample_nearest_exact2d
        _upsample_nearest_exact3d acos asin binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss
        cosine_similarity dist erfinv exp expm1 frobenius_norm.dim group_norm hinge_embedding_loss huber_loss
        kl_div l1_loss layer_norm linalg_matrix_norm linalg_matrix_norm.str_ord linalg_matrix_sqrth
        linalg_vector_norm log log10 log1p log2 logsumexp margin_ranking_loss mse_loss multi_margin_loss
        multilabel_margin_loss native_layer_norm nll_loss nll_loss2d nuclear_norm nuclear_norm.dim pdist
        poisson_nll_loss pow.Scalar pow.Tensor_Scalar pow.Tensor_Tensor reciprocal renorm rms_norm rsqrt sinh
        smooth_l1_loss soft_margin_loss softplus tan triplet_margin_loss upsample_bicubic2d upsample_bilinear2d
        upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_nearest3d upsample_trilinear3d
    """,
    # with dtype=float32 where no type is given
    "fp32_by_dtype": "cumprod cumsum log_softmax.int prod prod.dim_int softmax.int sum sum.dim_IntList",
    # by an overload that takes the type of the result
    "fp32_append": "norm.Scalar norm.ScalarOpt_dim",
    # to the widest type among the arguments
    "widest": """
        addcdiv addcmul atan2 bilinear cross dot grid_sampler index_put scatter_add tensordot vdot
    """,
    "banned": "binary_cross_entropy",
}

_cast_parameters: dict[int, tuple[weakref.ref[torch.Tensor], torch.Tensor]] = {}


def _is_eligible(value: Any) -> bool:
    is_there = isinstance(value, SimulatedTensor) or (isinstance(value, torch.Tensor) and value.is_cuda)
    return is_there and value.dtype.is_floating_point and value.dtype != torch.float64


def _cast(dtype: torch.dtype, value: Any) -> Any:
    """Cast; a parameter is cast once and remembered until the autocast region ends, as in torch."""
    if not _is_eligible(value) or value.dtype == dtype:
        return value
    remembered = (
        dtype == torch.get_autocast_dtype("cuda")
        and value.dtype == torch.float32
        and value.requires_grad
        and value.is_leaf
        and torch.is_autocast_cache_enabled()
    )
    if not remembered:
        return value.to(dtype)
    known = _cast_parameters.get(id(value))
    if known is not None and known[0]() is value and (known[1].requires_grad or not torch.is_grad_enabled()):
        return known[1]
    cast = value.to(dtype)
    _cast_parameters[id(value)] = (weakref.ref(value), cast)
    return cast


def _call(op: Any, args: Any, kwargs: Any, dtype: torch.dtype) -> Any:
    cast = functools.partial(_cast, dtype)
    return op(*on_each(cast, args), **{name: on_each(cast, value) for name, value in kwargs.items()})


def lowered(args: Any) -> Any:
    """The arguments as autocast gives them to an op on its list ``lower``; unchanged where it is not switched on.

    For ops that are parts of another one on CUDA, and have no kernel of their own on autocast's key.
    """
    if is_casting() or not torch.is_autocast_enabled("cuda"):
        return args
    return on_each(functools.partial(_cast, torch.get_autocast_dtype("cuda")), args)


def _fp32_by_dtype(op: Any, args: Any, kwargs: Any) -> Any:
    if not _is_eligible(args[0]):
        return op(*args, **kwargs)
    named = dict(zip((argument.name for argument in op._schema.arguments), args, strict=False)) | kwargs
    return op(**{**named, "dtype": named.get("dtype") or torch.float32})


def _fp32_append(op: Any, args: Any, kwargs: Any) -> Any:
    if not _is_eligible(args[0]):
        return op(*args, **kwargs)
    if op.name().endswith(".Scalar"):
        return aten.norm.ScalarOpt_dtype(*args, **kwargs, dtype=torch.float32)
    return aten.norm.ScalarOpt_dim_dtype(*args, **kwargs, dtype=torch.float32)


def _widest(op: Any, args: Any, kwargs: Any) -> Any:
    types = {x.dtype for x in flatten([*args, *kwargs.values()]) if _is_eligible(x)}
    if not types:
        return op(*args, **kwargs)
    return _call(op, args, kwargs, torch.float32 if torch.float32 in types or len(types) > 1 else types.pop())


def _banned(_op: Any, _args: Any, _kwargs: Any) -> Any:
    raise RuntimeError(
        "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast.\n"
        "Many models use a sigmoid layer right before the binary cross entropy layer.\n"
        "In this case, combine the two layers using torch.nn.functional.binary_cross_entropy_with_logits\n"
        "or torch.nn.BCEWithLogitsLoss.  binary_cross_entropy_with_logits and BCEWithLogits are\n"
        "safe to autocast."
    )


_POLICIES: dict[str, Callable[[Any, Any, Any], Any]] = {
    "lower": lambda op, args, kwargs: _call(op, args, kwargs, torch.get_autocast_dtype("cuda")),
    "fp32": lambda op, args, kwargs: _call(op, args, kwargs, torch.float32),
    "fp32_by_dtype": _fp32_by_dtype,
    "fp32_append": _fp32_append,
    "widest": _widest,
    "banned": _banned,
}


_outside = find("_C._ExcludeDispatchKeyGuard") or (lambda _keys: torch.autocast("cuda", enabled=False))


class _Casting(threading.local):
    depth = 0


_casting = _Casting()


def is_casting() -> bool:
    """Whether this thread is inside an op whose arguments autocast has already cast."""
    return _casting.depth > 0


def _kernel(name: str, policy: Callable[[Any, Any, Any], Any]) -> Callable[..., Any]:
    packet, _, overload = name.partition(".")

    @functools.cache
    def op() -> Any:  # looked up at the first call: a program calls few of the many
        return getattr(getattr(aten, packet), overload or "default")

    def kernel(*args: Any, **kwargs: Any) -> Any:
        _casting.depth += 1
        try:
            with _outside(AUTOCAST_KEYS):
                return policy(op(), args, kwargs)
        except BaseException as error:
            leave_simulation(error)
            raise
        finally:
            _casting.depth -= 1

    return kernel


def unlisted(registered: Iterable[str]) -> list[str]:
    """Return the ops on torch's lists that are not on these, except those that no simulated tensor reaches.

    torch up to 2.12 has overloads for named tensors, and builds with CUDA have cuDNN's own op.
    """
    ours = {f"aten::{name}" for names in LISTS.values() for name in names.split()} | {"aten::_cudnn_rnn"}
    return [op for op in sorted(set(registered) - ours) if not re.search("dimname|names_", op, re.IGNORECASE)]


_library: Any = None
_destroy = find("library.Library._destroy")


def _install_kernels() -> None:
    """Register the lists on the AutocastCUDA key, for the ops that this torch has there."""
    global _library
    if _library is not None:
        return
    library = torch.library.Library("aten", "IMPL")
    registered = set(torch._C._dispatch_get_registrations_for_dispatch_key("AutocastCUDA"))
    for listed, names in LISTS.items():
        for name in names.split():
            if f"aten::{name}" not in registered:
                continue  # older and newer torches have other lists
            try:
                library.impl(name, _kernel(name, _POLICIES[listed]), "AutocastCUDA", allow_override=True)
            except Exception as error:
                LOSSES[name] = f"autocast leaves aten::{name} alone: {str(error).partition(chr(10))[0]}"
    for name in unlisted(registered):
        LOSSES[name] = f"autocast leaves {name} alone: how this torch casts for it is not known"
    _library = library


def _remove_kernels() -> None:
    global _library
    _cast_parameters.clear()
    if _destroy is not None and _library is not None:  # an installation may have failed before
        _destroy(_library)
        _library = None


def install() -> None:
    """Cast by these lists, and clear the cache of cast parameters whenever torch clears its own."""
    forget = torch.clear_autocast_cache

    def clear_autocast_cache() -> None:
        _cast_parameters.clear()
        forget()

    patches.put(torch, "clear_autocast_cache", clear_autocast_cache)
    patches.also(_install_kernels, _remove_kernels)
