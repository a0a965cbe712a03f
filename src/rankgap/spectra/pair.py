"""The record of a pair of branches: both spectra, and how the online output relates to the target's.

P is the online output and T the target's; row i of both comes from the same image. v_i are the target's right
singular vectors and s_i its singular values. Nothing here carries a gradient, and everything is float64.

Shapes: N rows, D columns, R = min(N, D), R' directions of the target outside its null space (where vectors are
arbitrary).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self, get_args

import torch
from torch import Tensor

from rankgap.choices import Side
from rankgap.errors import NonFiniteError, UserError, unknown
from rankgap.notebook import curves, summary
from rankgap.spectra.effective_rank import effective_rank_of
from rankgap.spectra.float64 import double
from rankgap.spectra.gram import (
    cast_columns,
    check_batch,
    eigenbasis,
    gram_singular_values,
    lower_gram,
    rank_tolerance,
)
from rankgap.spectra.record import check_columns, column, count, plain_value, sketch_size
from rankgap.spectra.sketch import SketchSize, sketched_effective_rank

SIDES: tuple[Side, Side] = get_args(Side)

_SKETCHES = ("sketch_online", "sketch_target")

_PAIR = "a pair of branches"
_DRAWN = 1e-4  # of the largest singular value: smaller ones are left out of a picture
_TIE = 1e-6  # gains with a smaller relative difference count as equal


@dataclass(frozen=True, kw_only=True, slots=True, eq=False, repr=False)
class PairSpectrum:
    """How the online output relates to the target's, over one batch or many. It prints as a table.

    Where rows do not pair, or the branches' widths differ, there are only the two spectra: eigenspace alignment,
    filter and transfer are empty.

    Args:
        spectrum_online: singular values of P (R,), descending.
        spectrum_target: singular values of T (R,), descending.
        eigenspace_alignment: a_i = |cos(C_p v_i, v_i)| (R',), see `eigenspace_alignment`.
        measured_filter: g_i = |P v_i| / |T v_i| (R',), one for each of the first R' of `spectrum_target`.
        transfer: h_i = (P v_i . T v_i) / |T v_i|^2 (R',), see `transfer`.
        rows: number of rows N.
        step: the training step at which the rows were taken; None outside training.
        sketch_online: the size of the sketch (`spectra.sketch`) whose singular values `spectrum_online` holds, so
            that P's rank is an estimate; None if they are P's own. Alignment, filter and transfer are measured on
            sketched rows as they are: directions of almost equal energy mix in them.
        sketch_target: the same for the target.
    """

    spectrum_online: Tensor
    spectrum_target: Tensor
    eigenspace_alignment: Tensor
    measured_filter: Tensor
    transfer: Tensor
    rows: int
    step: int | None = None
    sketch_online: SketchSize | None = None
    sketch_target: SketchSize | None = None

    @property
    def erank_online(self) -> Tensor:
        """Effective rank of P's uncentred correlation, 0-d; NaN if P is all zero."""
        return _effective_rank(self.spectrum_online, self.sketch_online)

    @property
    def erank_target(self) -> Tensor:
        """Effective rank of T's uncentred correlation, 0-d; NaN if T is all zero."""
        return _effective_rank(self.spectrum_target, self.sketch_target)

    @property
    def rank_difference(self) -> Tensor:
        """erank_target - erank_online: above 0 dimensions grow, at or below 0 they collapse (RDM)."""
        return self.erank_target - self.erank_online

    @property
    def low_pass_score(self) -> Tensor:
        """The `low_pass_score` of the measured filter: 1 for a low-pass, -1 for a high-pass, 0 for neither."""
        return low_pass_score(self.spectrum_target[: len(self.measured_filter)], self.measured_filter)

    @property
    def transfer_score(self) -> Tensor:
        """The `low_pass_score` of the transfer, which leaves out energy that leaks in from other directions."""
        return low_pass_score(self.spectrum_target[: len(self.transfer)], self.transfer)

    def _facts(self) -> dict[str, str]:
        same = "the same directions" + ("; a sketch shows less" if self.sketch_target else "")
        rows = {
            "rows": f"{self.rows:,}" + ("" if self.step is None else f", step {self.step:,}"),
            "effective rank, online": _written(self.erank_online, self.spectrum_online, self.sketch_online),
            "effective rank, target": _written(self.erank_target, self.spectrum_target, self.sketch_target),
            "rank difference": f"{self.rank_difference:+.2f}   (above 0: dimensions grow)",
            "eigenspace alignment": f"{self.eigenspace_alignment.mean():.2f}   (1: {same})",
            "low-pass score": f"{self.low_pass_score:+.2f}   (+1: low-pass, -1: high-pass)",
        }
        if not len(self.eigenspace_alignment):
            why = "it needs paired rows of one width" if self.spectrum_target.any() else "the target is zero"
            rows |= dict.fromkeys(("eigenspace alignment", "low-pass score"), f"left out: {why}")
        return rows

    def __repr__(self) -> str:
        return "\n".join(f"{name:<24}{value}" for name, value in self._facts().items())

    def _repr_html_(self) -> str:
        """The table, and both spectra as shares of their largest singular values, as a notebook shows them."""
        spectra = {"online": self.spectrum_online, "target": self.spectrum_target}
        shares = {name: torch.where(s > _DRAWN * s[0], s / s[0], 0.0).tolist() for name, s in spectra.items()}
        count = max(map(len, shares.values()))
        drawn = curves(range(1, count + 1), shares, over="singular value", of="share of the largest")
        return summary("Both branches", self._facts(), drawn)

    def plain(self) -> dict[str, Any]:
        """The fields by name, ready for JSON: columns become lists of numbers with five significant digits."""
        return {field.name: plain_value(getattr(self, field.name)) for field in fields(self)}

    @classmethod
    def from_plain(cls, values: Mapping[str, Any]) -> Self:
        """Restore the record that `plain` wrote.

        Raises:
            UserError: a name is missing or unknown, or its value is impossible for a pair of branches; the message
                names it.
        """
        if not isinstance(values, Mapping):
            raise UserError(f"the spectra of a pair must be fields by name, got {type(values).__name__}")
        names = [field.name for field in fields(cls)]
        values = {**dict.fromkeys(_SKETCHES), **values}  # earlier versions wrote records without them
        for name in values:
            if name not in names:
                raise unknown("field of a pair's spectra", str(name), names)
        for name in names:
            if name not in values:
                raise UserError(f"the spectra of a pair have no {name!r}: expected {', '.join(names)}")
        rows, step = count("rows", values["rows"], 1), values["step"]
        columns = {name: column(name, values[name]) for name in names if name not in ("rows", "step", *_SKETCHES)}
        check_columns(columns, rows)
        online, target = (len(columns[name]) for name in ("spectrum_online", "spectrum_target"))
        return cls(
            **columns,
            rows=rows,
            step=None if step is None else count("step", step, 0),
            sketch_online=sketch_size("sketch_online", values["sketch_online"], online),
            sketch_target=sketch_size("sketch_target", values["sketch_target"], target),
        )


class PairGrams(NamedTuple):
    """Products of P and T, float64: between columns, or between rows if there are fewer rows than columns.

    Attributes:
        online: P^T P (D, D), or P P^T (N, N).
        target: T^T T (D, D), or T T^T (N, N); only the lower triangle is read.
        cross: P^T T (D, D), or P T^T (N, N).
        rows: number of rows N.
        between_rows: whether the matrices are (N, N).
    """

    online: Tensor
    target: Tensor
    cross: Tensor
    rows: int
    between_rows: bool


def pair_spectrum(online: Tensor, target: Tensor) -> PairSpectrum:
    """The record of one batch, from the smaller Gram matrices of both branches.

    Args:
        online: P (N, D).
        target: T (N, D).

    Raises:
        UserError: the batches are not both (N, D) of the same shape.
        NonFiniteError: either batch has a NaN or an infinity.
    """
    for z in (online, target):
        check_batch(z, _PAIR)
    if online.shape != target.shape or online.ndim != 2:
        raise UserError(
            f"{_PAIR} needs two batches of one shape (N, D), got {tuple(online.shape)} and {tuple(target.shape)}"
        )
    online, target = online.detach(), target.detach()
    n, d = target.shape
    lower = lower_gram(online).tril()
    if not lower.diagonal().sum().isfinite():
        raise NonFiniteError(f"{_PAIR}: the online batch is not finite")
    parts = zip(cast_columns(online), cast_columns(target), strict=True)
    grams = PairGrams(
        online=lower + lower.tril(-1).mT,
        target=lower_gram(target),
        cross=functools.reduce(torch.add, (p @ t.mT if n <= d else p.mT @ t for p, t in parts)),
        rows=n,
        between_rows=n <= d,
    )
    return spectrum_of_grams(grams, rank_tolerance(n, d, target.dtype))


def spectrum_of_grams(grams: PairGrams, tolerance: float) -> PairSpectrum:
    """The record, computed from Gram matrices.

    All of it follows from three energies of each direction v of the target: |P v|^2, P v . T v and |P^T P v|^2.
    Between columns v is an eigenvector w of T^T T. Between rows an eigenvector w of T T^T gives v = T^T w / s, so
    that P v = P T^T w / s and T v = s w.

    Args:
        grams: Gram matrices of P and T.
        tolerance: the relative singular value at and below which a direction of the target is null.

    Raises:
        NonFiniteError: a Gram matrix is not finite.
    """
    s, vectors, keep = (x[..., : grams.rows] for x in eigenbasis(grams.target, tolerance, _PAIR))
    w, kept = vectors[:, keep], s[keep]
    if grams.between_rows:
        passed = grams.cross @ w / kept  # P v (N, R')
        energy, shared = _dots(passed, passed), _dots(passed, w) * kept
        image_energy = _dots(passed, grams.online @ passed)
    else:
        image = grams.online @ w  # P^T P v (D, R')
        energy, shared = _dots(image, w).clamp_min(0), _dots(grams.cross @ w, w)
        image_energy = _dots(image, image)
    # |P v|^2 <= |P^T P v| (Cauchy-Schwarz) except for rounding: eigenspace alignments stay in [0, 1].
    image_norm = torch.maximum(image_energy.clamp_min(0).sqrt(), energy)
    return PairSpectrum(
        spectrum_online=gram_singular_values(grams.online, _PAIR)[: grams.rows],
        spectrum_target=torch.where(keep, s, 0.0),
        eigenspace_alignment=energy / image_norm.clamp_min(torch.finfo(torch.float64).tiny),
        measured_filter=energy.sqrt() / kept,
        transfer=shared / kept.square(),
        rows=grams.rows,
    )


def eigenspace_alignment(online: Tensor, target: Tensor, top: int = 512) -> Tensor:
    """How far the target's eigenvectors are also the online branch's: a_i = |cos(C_p v_i, v_i)|, in [0, 1].

    v_i are the eigenvectors of C_t = T^T T / N by decreasing eigenvalue, and C_p = P^T P / N (RDM, which averages
    over the top 512). 1 means that v_i is an eigenvector of C_p. The value is 0 where the online branch has no
    energy.

    Args:
        online: P (N, D).
        target: T (N, D).
        top: maximum number of eigenvectors.

    Returns:
        (min(top, R'),).

    Raises:
        UserError: the batches are not both (N, D) of the same shape.
        NonFiniteError: either batch has a NaN or an infinity.
    """
    return pair_spectrum(online, target).eigenspace_alignment[:top]


def measured_filter(online: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The gain that the online branch shows on the target's directions: g_i = |P v_i| / |T v_i| against s_i.

    It shows which spectral filter a predictor, Sinkhorn's codes or centring amount to; `low_pass_score` tells its
    kind.

    Args:
        online: P (N, D).
        target: T (N, D).

    Returns:
        s (R',) descending and g (R',).

    Raises:
        UserError: the batches are not both (N, D) of the same shape.
        NonFiniteError: either batch has a NaN or an infinity.

    Example:
        >>> target = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
        >>> s, g = measured_filter(target @ target / 4, target)
        >>> g
        tensor([1.0000, 0.5000, 0.2500], dtype=torch.float64)
        >>> low_pass_score(s, g)
        tensor(1., dtype=torch.float64)
    """
    pair = pair_spectrum(online, target)
    return pair.spectrum_target[: len(pair.measured_filter)], pair.measured_filter


def transfer(online: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """How much of each of the target's directions the online branch passes on along that direction itself.

    h_i = (P v_i . T v_i) / |T v_i|^2, the least-squares gain (the H1 estimate of a transfer function, Bendat &
    Piersol). T's columns T v_i are orthogonal, so h_i = v_i^T W v_i wherever P = T W, whatever W is. Energy that W
    brings from other directions does not change it, nor does energy that P alone has (a mean where T has none);
    `measured_filter` counts both, so |h_i| <= g_i. Where P is a spectral filter of T, both are its gain.

    Args:
        online: P (N, D).
        target: T (N, D).

    Returns:
        s (R',) descending and h (R',), which may be negative.

    Raises:
        UserError: the batches are not both (N, D) of the same shape.
        NonFiniteError: either batch has a NaN or an infinity.

    Example:
        >>> target = torch.diag(torch.tensor([4.0, 2.0, 1.0]))
        >>> s, h = transfer(target @ torch.tensor([[1.0, 0, 3], [0, 0.5, 0], [0, 0, 0.2]]), target)
        >>> h
        tensor([1.0000, 0.5000, 0.2000], dtype=torch.float64)
    """
    pair = pair_spectrum(online, target)
    return pair.spectrum_target[: len(pair.transfer)], pair.transfer


def low_pass_score(s: Tensor, g: Tensor) -> Tensor:
    """Weighted Kendall correlation of gains with singular values: 1 is a low-pass, -1 a high-pass, 0 neither.

    It is taken over the pairs that are not tied (Goodman & Kruskal's gamma), each weighted by its target energies
    s_i^2 s_j^2: for two directions drawn by energy, how much more often the stronger one has the larger gain than
    the smaller one. Only the order of the gains counts, so g and log g score the same. Gains within 1e-6 of one
    another are tied; if all are (the identity), the score is 0.

    Args:
        s: singular values of the target (R,).
        g: measured gains, or transfers (R,).

    Returns:
        0-d, in [-1, 1], float64. Memory use grows as R^2.
    """
    s, g = double(s), double(g)
    rises = torch.sign(s[:, None] - s)
    larger = torch.where(
        (g[:, None] - g).abs() > _TIE * torch.maximum(g[:, None].abs(), g.abs()), torch.sign(g[:, None] - g), 0.0
    )
    energy = (s / s.norm()).square()
    weight = energy[:, None] * energy
    agreement = weight * rises * larger
    score: Tensor = agreement.sum() / agreement.abs().sum().clamp_min(torch.finfo(torch.float64).tiny)
    return score


def _effective_rank(s: Tensor, sketch: SketchSize | None) -> Tensor:
    return effective_rank_of(s) if sketch is None else sketched_effective_rank(s, sketch)


def _written(rank: Tensor, s: Tensor, sketch: SketchSize | None) -> str:
    if sketch is None:
        return f"{rank:.2f} of {len(s)}"
    return f"{rank:.2f}   (estimated from a sketch of {sketch.width:,} columns in {sketch.columns:,})"


def _dots(a: Tensor, b: Tensor) -> Tensor:
    """The inner products of columns: (M, R'), (M, R') -> (R',)."""
    return (a * b).sum(0)
