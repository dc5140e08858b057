"""The residual stream made narrower: principal components (SliceGPT) against selected channels.

`python benchmarks/slicegpt.py` prunes ViT-Tiny to some widths of the stream, without training, by
the preset slicegpt with each repair, by presets that select channels, and in SliceGPT's own form
with a basis for every branch. That form is no model that secateur saves: it is run here as the
dense model with its stream projected before every branch and the head, which is the same function,
and its MACs are counted with the products in the skip connections that it takes.

Legend: B batch, N tokens, D residual width, S channels kept.
"""

import argparse

import torch
from _common import (
    Bench,
    DigitsBench,
    Row,
    Store,
    command,
    difference,
    parser,
    table,
    versions,
    write_page,
)
from torch import Tensor, nn

from secateur.data.batches import as_batches
from secateur.models.caches import copy_of
from secateur.models.family import read
from secateur.models.host import host_of
from secateur.surgery.rotate import principal_basis
from secateur.surgery.streams import advance, embed_all
from secateur.verbs.prune import prune

NAMES = {"vit_tiny": "ViT-Tiny", "digits": "The bundled digits model"}
WIDTHS = {"vit_tiny": (176, 160), "digits": (48, 32, 16)}
PER_CUT = "slicegpt, a basis per branch"
METHODS: dict[str, tuple[str, str]] = {
    "slicegpt": ("slicegpt", "none"),
    "slicegpt, repair mean": ("slicegpt", "mean"),
    "slicegpt, repair least_squares": ("slicegpt", "least_squares"),
    "magnitude": ("magnitude", "none"),
    "magnitude, repair mean": ("magnitude", "mean"),
    "snp, repair mean": ("snp", "mean"),
}
"""Preset and repair by the name of a row."""


def main() -> None:
    given = parser("SliceGPT and selected channels side by side.")
    given.add_argument("--model", choices=tuple(NAMES), default="vit_tiny")
    given.set_defaults(images=128, limit_eval=200)
    args = given.parse_args()
    torch.set_num_threads(args.threads)
    store = Store(f"slicegpt_{args.model}", args)
    bench = Bench(args) if args.model == "vit_tiny" else DigitsBench(args)
    dense = store.run(("dense",), lambda: _scored(bench, bench.model, 1.0, 1.0))
    rows: dict[tuple[str, int], Row] = {}
    for width in WIDTHS[args.model]:
        for name, (preset, repair) in METHODS.items():
            rows[name, width] = store.run(
                (name, str(width)),
                lambda width=width, how=(preset, repair): _pruned(bench, width, *how),
            )
        rows[PER_CUT, width] = store.run(
            (PER_CUT, str(width)), lambda width=width: _per_cut(bench, width)
        )
    _write(args, dense, rows)


def _pruned(bench: Bench, width: int, preset: str, repair: str) -> Row:
    model = bench.model
    # WHY the small part more: a share that is rounded down would be a width less.
    budget = f"{100 * width / read(model).width + 1e-5:.6f}% width"
    images_NCHW = torch.cat([images for images, _ in bench.calibration])
    smaller = prune(model, images_NCHW, budget, preset=preset, repair=repair, exact_tail=False)
    assert smaller.after.width == width
    whole = smaller.cost_dense
    return _scored(
        bench,
        smaller.model,
        smaller.cost.macs / whole.macs,
        smaller.cost.params / whole.params,
    )


class PerCut(nn.Module):
    """The model with its stream projected before every branch and the head."""

    def __init__(self, model: nn.Module, projections: list[Tensor]) -> None:
        super().__init__()
        self.model, self.projections = model, projections

    def forward(self, images_BCHW: Tensor) -> Tensor:
        host = host_of(self.model)
        x_BND = host.embed(images_BCHW)
        for branch, p_DD in zip(host.anatomy.branches, self.projections, strict=False):
            x_BND = host.through(branch)(x_BND @ p_DD)
        return host.family.head(self.model, x_BND @ self.projections[-1])


@torch.no_grad()
def _per_cut(bench: Bench, width: int) -> Row:
    """Bases one after the other, each from the stream that the bases before it leave."""
    host = host_of(copy_of(bench.model))
    model, anatomy = host.model, host.anatomy
    host.family.rotate_(model, torch.eye(anatomy.width, dtype=torch.float64))
    streams = embed_all(host, as_batches(bench.calibration))
    projections = []
    for branch in [*anatomy.branches, None]:
        gram_DD = sum(x.flatten(0, 1).double().T @ x.flatten(0, 1).double() for x in streams)
        assert isinstance(gram_DD, Tensor)
        basis_DS = principal_basis(gram_DD)[:, :width]
        projections.append((basis_DS @ basis_DS.T).float())
        streams = [x_BND @ projections[-1] for x_BND in streams]
        if branch is not None:
            streams = list(advance(host, branch, streams))
    cost, whole = anatomy.cost(widths={"stream": width}), anatomy.cost()
    skips = len(anatomy.branches) * width * width
    return _scored(
        bench,
        PerCut(model, projections),
        (cost.macs + anatomy.tokens * skips) / whole.macs,
        (cost.params + skips) / whole.params,
    )


def _scored(bench: Bench, model: nn.Module, macs: float, params: float) -> Row:
    return {"macs": macs, "params": params, **bench.scored(model)}


def _write(args: argparse.Namespace, dense: Row, rows: dict[tuple[str, int], Row]) -> None:
    parts = [
        "# A narrower stream: principal components and selected channels",
        f"{NAMES[args.model]}, cut without training; {dense['n_calibration']} calibration images, "
        f"{dense['n_eval']} evaluation images, seed {args.seed}. Dense top-1 {dense['top1']:.1f} "
        "± "
        f"{dense['stderr']:.1f}. ± is the binomial standard error in points, KL is that from the "
        "dense model in nats, *lead* the gain in top-1 over plain `slicegpt` at the same width "
        "on the same images, with its paired standard error.",
    ]
    for width in dict.fromkeys(width for _, width in rows):
        lines = []
        for name in [*METHODS, PER_CUT]:
            row, plain = rows[name, width], rows["slicegpt", width]
            if row["status"] != "ok":
                lines.append([name, row["status"], "", "", "", ""])
                continue
            lead, error = difference(row, plain)
            lines.append(
                [
                    name,
                    f"{100 * row['macs']:.1f}%",
                    f"{100 * row['params']:.1f}%",
                    f"{row['top1']:.1f} ± {row['stderr']:.1f}",
                    f"{row['kl']:.3f}",
                    "" if row is plain else f"{lead:+.1f} ± {error:.1f}",
                ]
            )
        parts += [
            f"## Width {width}",
            table(["method", "MACs", "parameters", "top-1", "KL", "lead"], lines),
        ]
    parts += [
        "*A basis per branch* is the paper's form: every skip connection is a product with its "
        "own "
        "matrix, counted here as `tokens × width²` MACs and `width²` parameters per branch.",
        f"Measured with `{command('slicegpt', args)} --model {args.model}`. {versions()}.",
    ]
    write_page(f"slicegpt_{args.model}", "\n\n".join(parts))


if __name__ == "__main__":
    main()
