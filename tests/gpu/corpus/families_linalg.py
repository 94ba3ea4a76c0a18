"""Linear algebra: error checks and CPU-side decisions wait; ``*_ex`` forms and plain products do not."""

from __future__ import annotations

from .case import Case, table

FAMILY = "linalg"

DECOMPOSITIONS: tuple[Case, ...] = table(
    FAMILY,
    """
    B T.linalg.cholesky(S)
    B T.linalg.cholesky(S, upper=True)
    B T.linalg.cholesky(S.expand(4, 32, 32))
    B o = T.empty_like(S) || T.linalg.cholesky(S, out=o)
    - T.linalg.cholesky_ex(S)
    B T.linalg.cholesky_ex(S, check_errors=True)
    B T.linalg.inv(S)
    B T.linalg.inv(S.expand(4, 32, 32))
    B T.inverse(S)
    B S.inverse()
    - T.linalg.inv_ex(S)
    B T.linalg.inv_ex(S, check_errors=True)
    B T.linalg.solve(S, S)
    B T.linalg.solve(S, S[:, 0])
    B T.linalg.solve(S, S, left=False)
    - T.linalg.solve_ex(S, S)
    B T.linalg.solve_ex(S, S, check_errors=True)
    B T.linalg.eigh(S)
    B T.linalg.eigh(S.expand(4, 32, 32))
    B T.linalg.eigvalsh(S)
    B T.linalg.eig(A)
    B T.linalg.eigvals(A)
    B T.linalg.svd(A)
    B T.linalg.svd(A, full_matrices=False)
    B T.linalg.svd(A, full_matrices=False, driver="gesvd") if dev == "cuda" else None
    B T.linalg.svd(A, full_matrices=False, driver="gesvda") if dev == "cuda" else None
    B T.linalg.svd(S.expand(4, 32, 32))
    B T.linalg.svdvals(A)
    B T.svd(A)
    B A.svd()
    B T.pca_lowrank(A, 4)
    B T.svd_lowrank(A, 4)
    B T.lobpcg(S, 2)
    B T.linalg.lu_factor(A)
    B T.linalg.lu_factor(S.expand(4, 32, 32))
    - T.linalg.lu_factor_ex(A)
    B T.linalg.lu_factor_ex(A, check_errors=True)
    - T.linalg.lu(A)
    - T.lu(A)
    B T.linalg.ldl_factor(S)
    - T.linalg.ldl_factor_ex(S)
    B T.linalg.ldl_factor_ex(S, check_errors=True)
    - T.linalg.qr(A)
    - T.linalg.qr(A, mode="r")
    - T.geqrf(A)
    B T.linalg.lstsq(A, A)
    - T.linalg.lstsq(A[:, :8], A[:, :2])
    B T.linalg.pinv(A)
    B T.linalg.pinv(S, hermitian=True)
    B T.pinverse(A)
    B T.linalg.matrix_rank(A)
    B T.linalg.matrix_rank(S, hermitian=True)
    B T.linalg.matrix_rank(A, tol=z)
    B T.linalg.tensorinv(A.view(8, 8, 64), ind=2)
    B T.linalg.tensorsolve(A.view(8, 8, 64), A[:8, :8])
    """,
)

REMOVED: tuple[Case, ...] = table(
    FAMILY,
    """
    B T.cholesky(S)
    B S.cholesky()
    - T.qr(A)
    """,
    needs='hasattr(T, "cholesky") and int(T.__version__.split(".")[1]) < 14',  # names that torch 2.14 took away
)

VALUES: tuple[Case, ...] = table(
    FAMILY,
    """
    - T.linalg.det(A)
    - T.det(A)
    - T.linalg.det(S.expand(4, 32, 32))
    - T.linalg.slogdet(A)
    - T.slogdet(S)
    - T.logdet(S)
    B T.linalg.matrix_exp(A)
    B T.matrix_exp(S.expand(4, 32, 32))
    - T.linalg.matrix_power(A, 3)
    - T.linalg.matrix_power(A, 0)
    B T.linalg.matrix_power(S, -2)
    B T.linalg.cond(A)
    B T.linalg.cond(A, 2)
    B T.linalg.cond(A, -2)
    - T.linalg.cond(A, 1)
    - T.linalg.cond(A, "fro")
    B T.linalg.cond(A, "nuc")
    - T.linalg.norm(A)
    B T.linalg.norm(A, 2)
    B T.linalg.norm(A, "nuc")
    - T.linalg.norm(A, "fro")
    - T.linalg.norm(A, 1)
    - T.linalg.norm(g, 3)
    - T.linalg.vector_norm(A, 2, dim=1)
    - T.linalg.vector_norm(g, float("inf"))
    B T.linalg.matrix_norm(A, 2)
    - T.linalg.matrix_norm(A)
    B T.norm(A, "nuc")
    - T.norm(A)
    - T.renorm(A, 2, 0, 1.0)
    - T.dist(g, h)
    """,
)

SOLVES: tuple[Case, ...] = table(
    FAMILY,
    """
    - T.linalg.solve_triangular(A, A, upper=True)
    - T.triangular_solve(A, A)
    - L = T.linalg.cholesky(S) || T.cholesky_solve(S, L)
    - L = T.linalg.cholesky(S) || T.cholesky_inverse(L)
    - LU, P = T.linalg.lu_factor(A) || T.linalg.lu_solve(LU, P, A)
    - LU, P = T.linalg.lu_factor(A) || T.lu_solve(A, LU, P)
    - LU, P = T.linalg.lu_factor(A) || T.lu_unpack(LU, P)
    - LD, P = T.linalg.ldl_factor(S) || T.linalg.ldl_solve(LD, P, S)
    - H, t = T.geqrf(A) || T.linalg.householder_product(H, t)
    - H, t = T.geqrf(A) || T.ormqr(H, t, A)
    B o = T.empty_like(S) || T.linalg.inv(S, out=o)
    B o = T.empty_like(S) || T.linalg.solve(S, S, out=o)
    B o = T.empty(32, device=D) || T.linalg.eigvalsh(S, out=o)
    B o = T.empty(64, device=D) || T.linalg.svdvals(A, out=o)
    - o, i = T.empty_like(S), T.empty((), dtype=T.int32, device=D) || T.linalg.inv_ex(S, out=(o, i))
    - o = T.empty_like(A) || T.matmul(A, A, out=o)
    """,
)

PRODUCTS: tuple[Case, ...] = table(
    FAMILY,
    """
    - T.linalg.multi_dot([A, A, A[:, 0]])
    - T.linalg.cross(A[:, :3], A[:, 3:6])
    - T.cross(A[:, :3], A[:, 3:6], dim=1)
    - T.linalg.vander(g[:5])
    - T.vander(g[:5], 3)
    - T.linalg.vecdot(A, A)
    - T.linalg.diagonal(A)
    B T.cov(A)
    B T.corrcoef(A)
    - T.cdist(A, A)
    - T.cdist(A, A, p=1.0)
    - F.pdist(A)
    - F.pdist(A, p=1.0)
    - T.einsum("ij,jk->ik", A, A)
    - T.einsum("ij,ij,ij->i", A, A, A)
    - T.einsum("ii", A)
    - T.bmm(S.expand(4, 32, 32), S.expand(4, 32, 32))
    - T.addmm(A, A, A, beta=2)
    - T.baddbmm(S, S.expand(4, 32, 32), S.expand(4, 32, 32))
    - T.addmv(A[0], A, A[0])
    - T.addr(A, A[0], A[0])
    - A @ A
    - A @ A[0]
    - T.mv(A, A[0])
    - T.dot(g, h)
    - T.outer(g[:9], h[:9])
    - T.chain_matmul(A, A)
    - T.tensordot(A, A, 1)
    - T.kron(S, A)
    - T.block_diag(A, S)
    - T.trace(A)
    - T.diag_embed(A)
    - T.trapezoid(g)
    - T.trapezoid(g, h)
    - T.cumulative_trapezoid(g, dx=0.5)
    - A.half() @ A.half()
    - T._int_mm((A * 9).to(T.int8), (A * 9).to(T.int8))
    """,
)

TRANSFORMS: tuple[Case, ...] = table(
    FAMILY,
    """
    - T.stft(g, 64, return_complex=True, window=T.hann_window(64, device=D))
    - T.stft(g, 64, return_complex=True)
    B w_ = T.hann_window(64, device=D); s_ = T.stft(g, 64, window=w_, return_complex=True) || T.istft(s_, 64, window=w_)
    - T.fft.fft(g)
    - T.fft.fft(g, n=1024, norm="ortho")
    - T.fft.ifft(g)
    - T.fft.rfft(g)
    - T.fft.irfft(T.fft.rfft(g), n=999)
    - T.fft.fftn(x4)
    - T.fft.fftshift(g)
    - T.fft.fftfreq(64, device=D)
    """,
)

CASES: tuple[Case, ...] = DECOMPOSITIONS + REMOVED + VALUES + SOLVES + PRODUCTS + TRANSFORMS
