"""What it costs to score query/key dims with SNP, in forward passes over the same images.

    python benchmarks/snp_cost.py [--images 64] [--rounds 5]

Plain passes and passes that collect the evidence take turns; the score itself is counted too.
"""

import statistics
import time
from collections.abc import Callable

import torch
from _common import Bench, parser

from secateur.anatomy.family import family_of
from secateur.anatomy.types import GroupName
from secateur.criteria import criteria, score
from secateur.criteria.registry import Question, needs_of, settings_of
from secateur.data.batches import as_batches
from secateur.evidence import observe

CHOICES: dict[str, dict[str, object]] = {
    "per image": {},
    "per image, patches": {"class_token": False},
    "stacked": {"aggregate": "stacked"},
}


def main() -> None:
    """Print the median ratio for every choice."""
    arguments = parser(__doc__ or "")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--only", choices=CHOICES, help="one choice instead of all")
    arguments.set_defaults(images=64)
    args = arguments.parse_args()
    bench = Bench(args)
    model = bench.model
    images = torch.cat([images_BCHW for images_BCHW, _ in bench.calibration])
    for name, settings in CHOICES.items():
        if args.only not in (None, name):
            continue
        ratios, seconds = [], []
        for _ in range(args.rounds):
            before = timed(lambda: forward(model, images))
            scored = timed(lambda settings=settings: score_all(model, images, settings))
            after = timed(lambda: forward(model, images))
            ratios.append(scored / ((before + after) / 2))
            seconds.append(scored)
        print(
            f"{name}: {statistics.median(ratios):.2f} forward passes "
            f"(from {min(ratios):.2f} to {max(ratios):.2f} in {args.rounds} rounds; "
            f"{statistics.median(seconds):.2f} s, {len(images)} images, {args.threads} threads)"
        )


def timed(run: Callable[[], None]) -> float:
    """Seconds of processor time of a call, which other work on the machine hardly changes."""
    start = time.process_time()
    run()
    return time.process_time() - start


@torch.no_grad()
def forward(model: torch.nn.Module, images: torch.Tensor) -> None:
    """One plain pass."""
    for images_BCHW in images.split(32):
        model(images_BCHW)


def score_all(model: torch.nn.Module, images: torch.Tensor, settings: dict[str, object]) -> None:
    """A pass with evidence, and the scores of all query/key, value and hidden units."""
    which = criteria.get("snp")
    chosen = settings_of(which, settings)
    evidence = observe(model, as_batches(images, 32), needs_of(which, "qk", chosen))
    family = family_of(model)
    groups: tuple[GroupName, ...] = ("qk", "vo", "hidden")
    for branch in family.read(model).branches:
        weights = family.weights(model, branch)
        for group in [group for group in groups if group in branch.groups]:
            question = Question(
                group=group,
                owner=branch.id,
                weights=weights,
                sums=evidence.about(branch.id),
                images=evidence.images,
                seed=0,
                settings=chosen,
            )
            score(which, question)


if __name__ == "__main__":
    main()
