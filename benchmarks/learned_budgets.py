"""Are budgets hit? Ten budgets in parameters, each granularity, on ViT-Tiny: what is missing.

`python benchmarks/learned_budgets.py` scores all units by magnitude, projects the scores onto each
budget as `learn` does at the end of its search, removes what is masked, counts the tensors of the
smaller model and writes docs/results/learned_budgets.md. Neither images nor training take part.
"""

import argparse

import timm
import torch
from _common import table, versions, write_page
from torch import nn

from secateur.criteria import criteria
from secateur.errors import OutOfReach
from secateur.masks.granularity import granularities
from secateur.masks.masks import masks_of
from secateur.masks.projection import project
from secateur.masks.removal.remove import remove
from secateur.masks.request import LearnRequest
from secateur.masks.settings import LearnSettings
from secateur.masks.start.by_criterion import starting_worths
from secateur.masks.task import check_learning, pricing_of, resolve_learn
from secateur.models.host import host_of
from secateur.statistics import Statistics

PERCENT = (95, 85, 75, 65, 55, 45, 35, 30, 20, 10)


def main() -> None:
    given = argparse.ArgumentParser(description="Are budgets hit?")
    given.add_argument("--seed", type=int, default=0)
    args = given.parse_args()
    torch.manual_seed(args.seed)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=96).eval()
    rows = [
        (name, *(missing(model, name, percent) for percent in PERCENT))
        for name in granularities.names()
    ]
    head = ("sharing", *(f"{percent} %" for percent in PERCENT))
    write_page(
        "learned_budgets",
        "\n\n".join(
            [
                "# The use of the budget by learned masks",
                "Ten budgets in parameters on ViT-Tiny/16 at 96 px with ten classes "
                f"({sum(p.numel() for p in model.parameters()):,} parameters, random weights): "
                "scores by magnitude are projected onto the budget, and masked units are removed. "
                "The table gives the unused part of the budget, counted in the tensors of the "
                "smaller model, in percent of the dense parameters. The budget is never exceeded.",
                table(head, rows),
                "`per_head` has no units inside heads and does not reach 10 %.",
                "## Reproduce\n\n```\npython benchmarks/learned_budgets.py\n```",
                f"{versions()}. Seed {args.seed}.",
            ]
        ),
    )


def missing(model: nn.Module, sharing: str, percent: int) -> str:
    """The budget minus what is counted, in percent of the dense parameters."""
    host = host_of(model)
    request = LearnRequest(
        f"{percent}% params",
        sharing=sharing,
        criterion="magnitude",
        settings=LearnSettings(search_share=0.0),
    )
    try:
        task = resolve_learn(check_learning(request), host)
    except OutOfReach:
        return "out of reach"
    pricing = pricing_of(task, host.anatomy, None)
    which, nothing = criteria.get("magnitude"), Statistics(images=0, tokens=0)
    margins = starting_worths(host, task.gates, pricing, nothing, which)
    kept = project(task.gates, margins, pricing)
    smaller, _ = remove(model, masks_of(task.gates, kept), task.task.limits)
    counted, dense = (sum(p.numel() for p in m.parameters()) for m in (smaller, model))
    if counted > percent / 100 * dense:
        raise SystemExit(f"{sharing} exceeds {percent} %: {counted} of {dense} parameters")
    return f"{percent - 100 * counted / dense:.3f}"


if __name__ == "__main__":
    main()
