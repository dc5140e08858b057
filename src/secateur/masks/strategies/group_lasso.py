"""All weights of a unit shrink together; those of units that the task does not hold up vanish.

The proximal step of the penalty s sum over units of |W_u|, with |W_u| the norm of all weights of a
unit: W_u <- W_u max(0, 1 - s / |W_u|). No scores are learned; units are ranked by the norms that
are left, relative to the mean norm of their gate at the start.
Letters: R rows, U units per row, D residual width, H heads, K query/key dims, V value dims,
F hidden neurons.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.masks.bank import GateBank
from secateur.masks.gates import Act, Gate
from secateur.masks.pricing import Pricing
from secateur.masks.strategy import NamedStrategy, SearchStrategy, WaySettings, strategies
from secateur.models.family import family_of
from secateur.models.weights import AttentionWeights, BranchWeights, MlpWeights
from secateur.training.lesson import Lesson, Moment, Terms

Weights = dict[str, BranchWeights]


class GroupLasso(SearchStrategy):
    """`lasso` 1 takes a mean norm off every unit in a whole search, if the task does not object."""

    def __init__(self, bank: GateBank, pricing: Pricing, settings: WaySettings) -> None:
        self.bank, self.strength = bank, settings.lasso
        self._means: dict[str, float] = {}
        self._norms = bank.margins()
        self._weights: Weights = {}
        self._share = 0.0

    def terms(self, model: nn.Module, lesson: Lesson, moment: Moment) -> Terms:
        """None; looks up the weights once."""
        self.bank.renew()
        if not self._weights:
            self._weights = _views(model)
        return {}

    @torch.no_grad()
    def after_step(self, moment: Moment) -> None:
        """Shrink every unit, and remember what is left."""
        pace, self._share = moment.share - self._share, moment.share
        for gate in self.bank.gates:
            norm_RU = _norms(gate, self._weights)
            mean = self._means.setdefault(gate.name, float(norm_RU.mean()))
            step = self.strength * pace * mean
            factor_RU = (1 - step / norm_RU.clamp(min=1e-12)).clamp(min=0)
            _shrink_(gate, self._weights, factor_RU)
            self._norms[gate.name] = (norm_RU * factor_RU / max(mean, 1e-12)).cpu()

    def margins(self) -> dict[str, Tensor]:
        """Norms relative to the mean at the start."""
        return self._norms

    def state_dict(self) -> dict[str, Any]:
        """Norms and how far the search is."""
        return {"share": self._share, "means": self._means, "norms": self._norms}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._share, self._means = state["share"], dict(state["means"])
        self._norms = dict(state["norms"])


def _views(model: nn.Module) -> Weights:
    """The weights of all branches, sharing memory with the model's; else UserError."""
    family = family_of(model)
    weights = {b.id: family.weights(model, b) for b in family.read(model).branches}
    storages = {p.untyped_storage().data_ptr() for p in model.parameters()}
    for owner, found in weights.items():
        for tensor in _tensors(found):
            if tensor.untyped_storage().data_ptr() not in storages:
                raise UserError(
                    f"group_lasso cannot shrink {owner}: this family does not keep its weights as "
                    "they are computed with; take another --search."
                )
    return weights


def _tensors(weights: BranchWeights) -> Iterator[Tensor]:
    for field in weights.__slots__:
        value = getattr(weights, field)
        parts = value if isinstance(value, tuple) else (value,)
        yield from (part for part in parts if isinstance(part, Tensor))


def _parts(weights: BranchWeights, act: Act) -> list[Tensor]:
    """The tensors of a branch on which an act bears, its units in front."""
    found: list[Tensor | None]
    if isinstance(weights, MlpWeights):
        if act.takes == "rows":
            found = [weights.w2_DF, weights.b2_D]
        else:
            found = [*weights.readers_FD, *weights.reader_biases_F, weights.w2_DF.T]
    else:
        found = _attention_parts(weights, act)
    return [tensor for tensor in found if tensor is not None]


def _attention_parts(weights: AttentionWeights, act: Act) -> list[Tensor | None]:
    values = [weights.v_HVD, weights.vb_HV, weights.o_DHV.permute(1, 2, 0)]
    queries, keys = [weights.q_HKD, weights.qb_HK], [weights.k_HKD, weights.kb_HK]
    if act.takes == "rows":
        return [weights.o_DHV, weights.ob_D]
    if act.takes == "qk":
        return [*queries] if act.site == "query" else [*keys]
    return [*values] if act.takes == "vo" else [*queries, *keys, *values]


def _norms(gate: Gate, weights: Weights) -> Tensor:
    """The norm of all weights of each unit (R, U)."""
    total: Tensor | None = None
    for act in gate.acts:
        for tensor in _parts(weights[act.branch], act):
            square = tensor.square()
            front = act.index.ndim
            out = [d for d in range(square.ndim) if d >= front or act.index.shape[d] == 1]
            summed = square.sum(out) if out else square
            if total is None:
                total = summed.new_zeros(gate.rows * gate.units)
            total.index_add_(0, act.index.reshape(-1).to(total.device), summed.reshape(-1))
    assert total is not None
    return total.sqrt().reshape(gate.rows, gate.units)


def _shrink_(gate: Gate, weights: Weights, factor_RU: Tensor) -> None:
    flat = factor_RU.reshape(-1)
    for act in gate.acts:
        factor = flat[act.index.to(flat.device)]
        for tensor in _parts(weights[act.branch], act):
            tensor.mul_(factor.reshape(*factor.shape, *[1] * (tensor.ndim - factor.ndim)))


strategies.register("group_lasso")(
    NamedStrategy(
        title="The weights of a unit shrink together",
        source="Yuan & Lin, JRSS-B 2006; Wen et al., NeurIPS 2016, arXiv 1608.03665",
        make=GroupLasso,
    )
)
