"""Which aten calls make the host wait on CUDA, and as what kind: one table, as data.

The evidence for it is ``tests/gpu/results/``: every row was tried behind a sleeping H100.
"""

from __future__ import annotations

from typing import Any

from syncagent.events import SyncKind
from syncagent.rules.predicates import (
    always,
    compared,
    converted,
    copied,
    index_assigned,
    index_from_host,
    indexed,
    lengths_on_device,
    long_rows,
    nested,
    never,
    nonempty,
    range_unknown,
    reads,
    repeats_summed,
    scalar_from_host,
    searched,
    some_copied,
    sparse_product,
    staged_late,
    value_from_host,
)  # fmt: skip
from syncagent.rules.rule import Rule, Waits

_D, _S, _CHECK = SyncKind.DYNAMIC_SHAPE, SyncKind.SCALAR_READ, SyncKind.CHECK
_PUT = "aten::index_put_"
_SPARSE, _CSR = ("SparseCUDA",), ("SparseCsrCUDA",)
_OUTSIDE: dict[str, Any] = {"outside_runtime": True}


def _rule(op: str, waits: Waits, evidence: str, *, proves: Waits | None = None, **rest: Any) -> Rule:
    return Rule(f"aten::{op}", waits, waits if proves is None else proves, evidence, **rest)


def _whole(op: str, waits: Waits, evidence: str, **rest: Any) -> Rule:
    """For the simulated device and the modes only: on a GPU another op of this table, inside, is the proof."""
    return _rule(op, waits, evidence, proves=never, keys=(), **rest)


RULES: tuple[Rule, ...] = (
    # values for Python
    _rule(
        "_local_scalar_dense", always(_S), "item, float, int, bool, `if t`: memcpy and stream synchronize", host_us=45
    ),
    _rule("equal", compared, "eq().all().item() inside", proves=never),
    _whole("allclose", always(_S), "isclose().all().item() inside"),
    # sizes that depend on values
    _rule(
        "nonzero",
        always(_D),
        "number of nonzeros copied back to size the result; waits for an empty tensor too",
        host_us=130,
    ),
    _rule("nonzero.out", always(_D), "as nonzero", host_us=130),
    # isin(3, t) calls _unique on a number on the device, which torch cannot hand to a Python kernel (2.11).
    _whole("_unique", nonempty(_D), "number of distinct values read back"),
    _rule("_unique2", nonempty(_D), "number of distinct values read back; of booleans in its own kernel", host_us=35),
    _rule("unique_consecutive", nonempty(_D), "as _unique2; with dim in its own kernel", host_us=80),
    _rule("unique_dim", nonempty(_D), "Thrust waits without a synchronize that c10 sees", host_us=475),
    _rule("unique_dim_consecutive", nonempty(_D), "as unique_dim", host_us=475),
    _rule("masked_select", always(_D), "nonzero inside", proves=never),
    _rule("masked_select.out", always(_D), "nonzero inside", proves=never),
    _rule("index.Tensor", indexed, "mask: nonzero inside; index on the host: copied", proves=index_from_host),
    _rule("index.Tensor_out", indexed, "as index.Tensor", proves=index_from_host),
    _rule("index_put", index_assigned, "as index_put_", proves=value_from_host, shown=_PUT),
    _rule("index_put_", index_assigned, "mask: nonzero inside; from the host: copied", proves=value_from_host),
    _rule("_index_put_impl_", index_assigned, "as index_put_", proves=value_from_host, shown=_PUT),
    _rule("repeat_interleave.Tensor", repeats_summed, "sum of the repeats read back", proves=never),
    _rule("bincount", nonempty(_D), "extremes copied back", host_us=60),
    _rule("histc", range_unknown, "extremes copied back", host_us=60),
    _rule("histc.out", range_unknown, "extremes copied back", host_us=60),
    _whole("isin.Tensor_Tensor", searched, "extremes read, or unique inside"),
    _whole("isin.Scalar_Tensor", searched, "as isin.Tensor_Tensor"),
    _whole("masked_scatter_backward", always(_D), "masked_select inside"),
    _rule("mode", long_rows, "Thrust sorts and counts row after row, and waits without a synchronize that c10 sees"),
    _rule("mode.values", long_rows, "as mode"),
    _whole("_to_sparse", nonempty(_D), "nonzero inside"),
    _whole("_to_sparse.sparse_dim", nonempty(_D), "nonzero inside"),
    _whole("_to_sparse_csr", nonempty(_D), "nonzero inside"),
    _whole("_to_sparse_csc", nonempty(_D), "nonzero inside"),
    _whole("_to_sparse_bsr", nonempty(_D), "nonzero inside"),
    _whole("_to_sparse_bsc", nonempty(_D), "nonzero inside"),
    _rule("_coalesce", always(_D), "Thrust counts the distinct indices", keys=_SPARSE, host_us=425),
    _rule(
        "_sparse_sparse_matmul", always(_D), "number of elements of the product", keys=_SPARSE, host_us=600, **_OUTSIDE
    ),
    _rule("addmm.out", sparse_product, "number of elements of the product", keys=_CSR, host_us=620, **_OUTSIDE),
    _rule("_sparse_softmax", always(_D), "pools of equal indices are counted by Thrust", keys=_SPARSE, host_us=630),
    _rule("_sparse_log_softmax", always(_D), "as _sparse_softmax", keys=_SPARSE, host_us=640),
    # values read for a scalar argument
    _rule("masked_fill.Tensor", reads(_S, 2), "value read back", proves=never),
    _rule("masked_fill_.Tensor", reads(_S, 2), "value read back", proves=never),
    _rule("index_fill_.int_Tensor", reads(_S, 3), "value read back", proves=never),
    _whole("index_fill.int_Tensor", reads(_S, 3), "value read back"),
    _whole("linspace.Tensor_Tensor", reads(_S, 0, 1), "end points read back"),
    _whole("linspace.Tensor_Scalar", reads(_S, 0), "end point read back"),
    _whole("linspace.Scalar_Tensor", reads(_S, 1), "end point read back"),
    _whole("logspace.Tensor_Tensor", reads(_S, 0, 1), "end points read back"),
    _whole("logspace.Tensor_Scalar", reads(_S, 0), "end point read back"),
    _whole("logspace.Scalar_Tensor", reads(_S, 1), "end point read back"),
    # checks
    _rule("_linalg_check_errors", always(_CHECK), "info flags read back", host_us=40),
    _rule("_linalg_eigh", always(_CHECK), "cuSOLVER's convergence is waited for", host_us=1180, **_OUTSIDE),
    _rule("_linalg_eigh.eigenvalues", always(_CHECK), "as _linalg_eigh", host_us=1180, **_OUTSIDE),
    _rule("_linalg_svd", always(_CHECK), "cuSOLVER's convergence is waited for", host_us=2430, **_OUTSIDE),
    _rule("_linalg_svd.U", always(_CHECK), "as _linalg_svd", host_us=2430, **_OUTSIDE),
    _rule("_linalg_eigvals", always(_CHECK), "computed on the host", host_us=5000, **_OUTSIDE),
    _rule("linalg_eig", always(_CHECK), "computed on the host", host_us=4600, **_OUTSIDE),
    _rule("linalg_ldl_factor_ex", always(_CHECK), "cuSOLVER's pivots are waited for", host_us=1120, **_OUTSIDE),
    _rule("linalg_ldl_factor_ex.out", always(_CHECK), "as linalg_ldl_factor_ex", host_us=1120, **_OUTSIDE),
    _rule("linalg_ldl_solve", always(_CHECK), "pivots copied back", host_us=980, **_OUTSIDE),
    _rule("linalg_ldl_solve.out", always(_CHECK), "as linalg_ldl_solve", host_us=980, **_OUTSIDE),
    _whole("linalg_lstsq", always(_CHECK), "info flags read back"),
    _whole("linalg_pinv.atol_rtol_tensor", always(_CHECK), "SVD inside"),
    _whole("linalg_matrix_exp", nonempty(SyncKind.COPY_D2H), "norms copied back to choose the degree"),
    _rule("normal.Tensor_Tensor", reads(_CHECK, 1), "std >= 0 checked", proves=never),
    _rule("normal.float_Tensor", reads(_CHECK, 1), "std >= 0 checked", proves=never),
    # copies
    _rule("copy_", copied, "waits for the copy, or in the driver for staging", late=staged_late, hot=True, host_us=45),
    _whole("_to_copy", converted, "copy_ inside"),
    _whole("_foreach_copy_", some_copied, "copy_ inside"),
    _whole("_nested_tensor_from_mask_left_aligned", always(_S), "equal inside", shown="aten::equal"),
    _whole("_nested_tensor_from_mask", always(SyncKind.COPY_D2H), "copy_ inside", shown="aten::copy_"),
    _whole("to_padded_tensor", nested, "copy_ inside", shown="aten::copy_"),
    _whole("where.self", scalar_from_host, "copy_ inside"),
    _whole("_ctc_loss", lengths_on_device(SyncKind.COPY_D2H), "copy_ inside"),
    _whole("_ctc_loss.Tensor", lengths_on_device(SyncKind.COPY_D2H), "copy_ inside"),
    _whole("_ctc_loss_backward", lengths_on_device(SyncKind.COPY_H2D), "copy_ inside"),
    _whole("_ctc_loss_backward.Tensor", lengths_on_device(SyncKind.COPY_H2D), "copy_ inside"),
)

_BY_OP = {rule.op: rule for rule in RULES}


def find(op: str) -> Rule | None:
    """Return the rule for an op (name with overload, as in :attr:`Rule.op`), or ``None`` if it never waits."""
    return _BY_OP.get(op)
