"""What the branches of a model cost in time as they are, for inspecting and analysing it."""

from dataclasses import dataclass

import torch

from secateur.allocation.costs import CostOf
from secateur.errors import UserError
from secateur.measurement.layer_table import LayerTable, Setting, latency_cost, layer_table
from secateur.measurement.runtimes import require
from secateur.models.host import Host
from secateur.progress import Progress

SECONDS = 3.0
"""How long the layers and the whole model take turns at least."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Milliseconds of the whole model and of its branches, each timed alone.

    `cost.part(id, {})` is the time of a branch; embedding and head get what the branches leave of
    the whole.
    """

    setting: Setting
    table: LayerTable
    cost: CostOf

    @property
    def total_ms(self) -> float:
        """One pass of the whole model."""
        return self.table.dense_ms

    def of(self, owner: str) -> float:
        """Milliseconds of a branch or block."""
        return self.cost.part(owner, {})

    @property
    def ends_ms(self) -> float:
        """Milliseconds of all that is no branch."""
        return self.cost.ends


def check_timing(runtime: str, batch_size: int) -> None:
    """UserError for a runtime that is unknown or missing, or a batch of nothing."""
    require(runtime)
    if batch_size < 1:
        raise UserError(f"the batch for latency must be at least 1, not {batch_size}.")


def time_branches(
    host: Host,
    *,
    runtime: str = "eager",
    batch_size: int = 1,
    progress: Progress | None = None,
) -> Times:
    """Time every kind of branch in turns with the whole model, or recall it from disk."""
    check_timing(runtime, batch_size)
    setting = Setting(
        runtime=runtime,
        device=str(next(host.model.parameters()).device),
        batch_size=batch_size,
        threads=torch.get_num_threads(),
    )
    table = layer_table(host, setting, {}, seconds=SECONDS, progress=progress)
    return Times(setting=setting, table=table, cost=latency_cost(host.anatomy, table))
