"""All gates of a model: their learned scores, and the hooks through which they act.

Letters: R rows, U units per row.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from secateur.masks.estimator import GateEstimator
from secateur.masks.gates import Gate, Site, kept_now
from secateur.masks.masks import acts_by_site, masks_of, product
from secateur.masks.streams import stream_hooks
from secateur.models.family import family_of
from secateur.models.hook_points import attach


class GateBank(nn.Module):
    """The gates of one model, with one form.

    While the model is in training mode, units are multiplied by what the form gives; in evaluation
    mode, and once masks are frozen, by the hard masks. The model's own modules stay as they are.
    """

    def __init__(
        self, gates: Sequence[Gate], form: GateEstimator, worths: Mapping[str, Tensor]
    ) -> None:
        super().__init__()
        self.gates = tuple(gates)
        self.form = form
        self.tables = nn.ModuleList(
            nn.ParameterDict(
                {
                    name: nn.Parameter(value.float().clone())
                    for name, value in form.start(worths[gate.name].float()).items()
                }
            )
            for gate in self.gates
        )
        self._sites = acts_by_site(self.gates)
        self._frozen: dict[str, Tensor] | None = None
        self._held: dict[str, Tensor] | None = None
        self._faded: dict[str, Tensor] | None = None
        self._known: tuple[int, dict[str, Tensor]] | None = None
        self._values: dict[tuple[str, Site], Tensor] = {}

    def scores(self, number: int) -> dict[str, Tensor]:
        """The learned tensors of the gate with that number."""
        table = self.tables[number]
        assert isinstance(table, nn.ParameterDict)
        return dict(table.items())

    def margins(self) -> dict[str, Tensor]:
        """How far each unit is from the decision (R, U), by gate; no gradient; on the CPU."""
        with torch.no_grad():
            return {
                gate.name: self.form.margin(self.scores(number)).detach().cpu()
                for number, gate in enumerate(self.gates)
            }

    def kept(self) -> dict[str, Tensor]:
        """The hard masks (R, U) of the moment, by gate, on the CPU."""
        fixed = self._held if self._frozen is None else self._frozen
        return self.chosen() if fixed is None else fixed

    @property
    def held(self) -> dict[str, Tensor] | None:
        """The masks that are held, by gate."""
        return self._held

    def chosen(self) -> dict[str, Tensor]:
        """What the scores of the moment would keep (R, U), whatever is held."""
        # WHY: asked for several times per step, while scores change once.
        version = sum(score._version for score in self.parameters())
        if self._known is None or self._known[0] != version:
            margins = self.margins()
            now = {gate.name: kept_now(gate, margins[gate.name]) for gate in self.gates}
            self._known = (version, now)
        return self._known[1]

    def masks(self) -> dict[str, dict[Site, Tensor]]:
        """The hard masks by branch and site."""
        return masks_of(self.gates, self.kept())

    def freeze(self, kept: Mapping[str, Tensor]) -> None:
        """Fix the masks: from now on units are kept as `kept` says, whatever the scores."""
        self._frozen = {name: mask.clone() for name, mask in kept.items()}

    def hold(self, kept: Mapping[str, Tensor]) -> None:
        """Keep units as `kept` says until held again; gradients still reach the scores."""
        self._held = {name: mask.clone() for name, mask in kept.items()}

    def fade(self, values: Mapping[str, Tensor]) -> None:
        """Multiply units by these values (R, U) from now on, in place of what the form gives."""
        self._faded = dict(values)

    def clamp_(self) -> None:
        """Keep the scores in the range of their form; call it after each step."""
        for number in range(len(self.gates)):
            self.form.clamp_(self.scores(number))
        self._known = None

    def prices(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the cost sees of each unit (R, U), by gate, with gradients to the scores."""
        found = {}
        for number, gate in enumerate(self.gates):
            scores = self.scores(number)
            live_RU = kept[gate.name].to(next(iter(scores.values())))
            found[gate.name] = self.form.price(scores, live_RU)
        return found

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[None]:
        """Act on a model, whole or taken apart, for the length of a `with` block."""
        family = family_of(model)
        handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(lambda _module, _args: self.renew())
        ]
        try:
            anatomy = family.read(model)
            for stream in anatomy.streams:
                if (stream.id, "width") in self._sites:
                    value = self._value(model, stream.id, "width")
                    handles.extend(stream_hooks(model, stream, value))
            for branch in anatomy.branches:
                hook_points = family.hook_points(model, branch)
                for site in self._acted(branch.id):
                    handles.append(
                        attach(model, hook_points[site], self._multiply(model, branch.id, site))
                    )
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.renew()

    def renew(self) -> None:
        """Work out anew what sites are multiplied by; call it between passes of a model in parts.

        A whole model does so by itself at each pass.
        """
        self._values = {}

    def _open(self, hard: bool) -> None:
        kept = self.kept()
        values: dict[str, Tensor] = {}
        for number, gate in enumerate(self.gates):
            scores = self.scores(number)
            live_RU = kept[gate.name].to(next(iter(scores.values())))
            if not hard and self._faded is not None:
                values[gate.name] = self._faded[gate.name].to(live_RU)
            else:
                values[gate.name] = live_RU if hard else self.form.gate(scores, live_RU)
        self._values = {key: product(values, acts) for key, acts in self._sites.items()}

    def _acted(self, branch: str) -> list[Site]:
        """The sites of a branch to multiply: a mask that query and key share acts on one."""
        sites = [site for owner, site in self._sites if owner == branch]
        if {"query", "key"} <= set(sites) and self._same(branch):
            sites.remove("key")
        return sites

    def _same(self, branch: str) -> bool:
        first, second = (self._sites[branch, site] for site in ("query", "key"))
        return [name for name, _ in first] == [name for name, _ in second]

    def _multiply(self, model: nn.Module, branch: str, site: Site) -> Callable[[Tensor], Tensor]:
        value = self._value(model, branch, site)
        return lambda x: x * value().to(x)

    def _value(self, model: nn.Module, owner: str, site: Site) -> Callable[[], Tensor]:
        """What units of a site are multiplied by in the present pass, worked out when needed."""

        def value() -> Tensor:
            if not self._values:
                self._open(hard=self._frozen is not None or not model.training)
            return self._values[owner, site]

        return value
