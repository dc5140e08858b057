"""Does the affine stand-in hold on images that it was not fitted to?

`python benchmarks/affine_fit.py` fits, for every layer of ViT-Tiny, the affine map from the update
of the layer before it to its own, and compares the squared error with that of the mean update, on
the calibration images and on others.

Legend: B batch, N tokens, D residual width.
"""

import argparse
from functools import partial
from itertools import pairwise
from statistics import median

import torch
from _common import Bench, Pairs, Row, Store, command, parser, table, versions, write_page
from torch import Tensor, nn

from secateur.data.batches import as_batches
from secateur.models.family import family_of
from secateur.models.hook_points import Edit, HookPoint, attached
from secateur.statistics.anchors import Run, run_moments
from secateur.surgery.replace import affine_map

PARTS = {"all tokens": slice(None), "class token": slice(0, 1)}


def main() -> None:
    given = parser("Errors of affine stand-ins in and out of sample.")
    given.set_defaults(images=128, limit_eval=64)
    args = given.parse_args()
    store = Store("affine_fit", args)
    row = store.get("errors")
    if row is None:
        bench = Bench(args)
        row = store.run(("errors",), lambda: {"errors": _errors(bench)})
    if row["status"] != "ok":
        raise SystemExit(row["reason"])
    _write(args, row)


def _errors(bench: Bench) -> Row:
    """Squared errors, mean over tokens, by images, part, layer: affine, mean."""
    model, calibration = bench.model, bench.calibration
    names = [branch.id for branch in family_of(model).read(model).branches]
    runs: list[Run] = [(a, (b,)) for a, b in pairwise(names)]
    moments = run_moments(model, as_batches(calibration), runs)
    found: Row = {}
    for kind, images in (("calibration", calibration), ("other", bench.validation)):
        updates = _updates(model, images, names)
        for run, sums in moments.items():
            anchor, (name,) = run
            guess = affine_map(sums, anchor)
            mean_D = sums["y_sum"] / sums["count"]
            x_BND, y_BND = updates[anchor].double(), updates[name].double()
            for part, tokens in PARTS.items():
                left_BND = y_BND[:, tokens] - (x_BND[:, tokens] @ guess.w_DS.T + guess.b_D)
                flat_BND = y_BND[:, tokens] - mean_D
                pair = [float(e.square().sum(-1).mean()) for e in (left_BND, flat_BND)]
                found.setdefault(kind, {}).setdefault(part, {})[name] = pair
    return found


@torch.no_grad()
def _updates(model: nn.Module, images: Pairs, names: list[str]) -> dict[str, Tensor]:
    """What every branch adds to the stream of these images (B, N, D)."""
    family = family_of(model)
    anatomy = family.read(model)
    parts: dict[str, list[Tensor]] = {name: [] for name in names}

    def see(name: str, update_BND: Tensor) -> None:
        parts[name].append(update_BND.detach().clone())

    edits: list[tuple[HookPoint, Edit]] = [
        (family.hook_points(model, anatomy.branch(name))["update"], partial(see, name))
        for name in names
    ]
    with attached(model, edits):
        for images_BCHW, _ in images:
            model(images_BCHW)
    return {name: torch.cat(own) for name, own in parts.items()}


def _write(args: argparse.Namespace, row: Row) -> None:
    errors = row["errors"]
    columns = [(kind, part) for part in PARTS for kind in ("calibration", "other")]
    layers = list(errors["other"]["all tokens"])
    ratios = {
        name: [errors[kind][part][name][0] / errors[kind][part][name][1] for kind, part in columns]
        for name in layers
    }
    lines = [[name, *(f"{ratio:.2f}" for ratio in own)] for name, own in ratios.items()]
    middle = [median(own[i] for own in ratios.values()) for i in range(len(columns))]
    worse = [sum(own[i] > 1 for own in ratios.values()) for i in range(len(columns))]
    lines.append(["median", *(f"{ratio:.2f}" for ratio in middle)])
    lines.append(["layers above 1", *(str(count) for count in worse)])
    parts = [
        "# The affine replacement on other images",
        "ViT-Tiny. For every layer, the affine map from the update of the previous layer to its "
        f"own is fitted to all tokens of {args.images} calibration images, as for the replacement "
        "`affine`. The table gives its squared error relative to that of the mean update, on "
        "those images and on "
        f"{args.limit_eval} others. Above 1 the mean is the better replacement. The class token, "
        "the only input of the head, is one of 197 tokens of the fit.",
        table(["layer", *(f"{part}, {kind} images" for kind, part in columns)], lines),
        f"Measured with `{command('affine_fit', args)}`. {versions()}.",
    ]
    write_page("affine_fit", "\n\n".join(parts))


if __name__ == "__main__":
    main()
