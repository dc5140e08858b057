"""What two faults of public ports of LLM-Drop to vision transformers change.

`python benchmarks/llm_drop_fault.py` scores attention layers and MLPs by the cosine of the stream
before and after them, once as they are added to the stream and once as those ports do:

- without LayerScale, for MLPs: the hook sees an output that holds the residual already and adds
  it again, so cos(x, 2x + m) is scored in place of cos(x, x + m);
- with LayerScale: the hook sits before it, so cos(x, x + m / gamma) is scored.

The models are then pruned by both scores, nothing in the place of what goes.
"""

import argparse
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from _common import (
    HERE,
    Bench,
    DigitsBench,
    Row,
    Store,
    Told,
    command,
    parser,
    table,
    versions,
    write_page,
)
from _digits_with_layer_scale import (
    digits_rewritten_with_layer_scale,
    digits_with_layer_scale,
)
from torch import Tensor, nn

from secateur.data.batches import as_batches
from secateur.measurement.accuracy import predict, summarize
from secateur.methods.layer_search.iterative import without
from secateur.models.family import family_of
from secateur.models.host import host_of
from secateur.statistics import observe
from secateur.study.statistics import spearman

TITLES = {
    "vit_tiny": "ViT-Tiny, no LayerScale: the residual counted twice for MLPs",
    "digits": "The bundled digits model, no LayerScale: the residual counted twice for MLPs",
    "digits_rewritten": "The same digits model, the same function, written with LayerScale: hooks "
    "before it",
    "digits_layer_scale": "A digits model trained with LayerScale: hooks before it",
}
COUNTS = (2, 4, 6)
DROPS = ("layer", "attention", "mlp")
Pairs = list[tuple[Tensor, Tensor]]


def main() -> None:
    given = parser("Correct and faulty LLM-Drop scores side by side.")
    given.add_argument("--models", default=",".join(TITLES), help="with commas between them")
    given.set_defaults(images=64)
    args = given.parse_args()
    torch.set_num_threads(args.threads)
    store = Store("llm_drop_fault", args)
    rows: dict[str, list[Row]] = {}
    for name in args.models.split(","):
        case = _case(name, args)
        scores = store.run((name, "scores"), lambda case=case: _scores(*case()))
        for kind in DROPS:
            for count in COUNTS:
                for how in ("correct", "faulty"):
                    gone = _lowest(scores[how], kind, count)
                    row = store.run(
                        (name, kind, str(count), how),
                        lambda case=case, gone=gone: _damage(*case(), gone),
                        gone=gone,
                        how=how,
                        kind=kind,
                        count=count,
                    )
                    rows.setdefault(name, []).append(row)
    _write(args, store, rows)


def _case(name: str, args: argparse.Namespace) -> Callable[[], tuple[nn.Module, Pairs, Pairs]]:
    """From a name to a function that opens the model with its images when first called."""
    bench = Bench(args) if name == "vit_tiny" else DigitsBench(args)
    makers: dict[str, Callable[[], nn.Module]] = {
        "digits_rewritten": lambda: digits_rewritten_with_layer_scale(args.seed),
        "digits_layer_scale": lambda: digits_with_layer_scale(HERE / "out", args.seed),
    }

    @cache
    def case() -> tuple[nn.Module, Pairs, Pairs]:
        model = makers[name]() if name in makers else bench.model
        return model, bench.calibration, bench.validation

    return case


@torch.no_grad()
def _scores(model: nn.Module, calibration: Pairs, _validation: Pairs) -> Row:
    """Correct and faulty score of every layer, and the divergence without it."""
    family = family_of(model)
    anatomy = family.read(model)
    sums: dict[str, dict[str, float]] = {"correct": {}, "faulty": {}}
    tokens = 0
    for images_BCHW, _ in calibration:
        x_BND = family.embed(model, images_BCHW)
        tokens += x_BND.shape[0] * x_BND.shape[1]
        for branch in anatomy.branches:
            after_BND = family.through(model, branch)(x_BND)
            m_BND = after_BND - x_BND
            gamma_D = family.writer_scale(model, branch)
            if gamma_D is not None:
                wrong_BND = x_BND + m_BND / gamma_D
            else:
                wrong_BND = x_BND + after_BND if branch.kind == "mlp" else after_BND
            for how, other_BND in (("correct", after_BND), ("faulty", wrong_BND)):
                cosine = F.cosine_similarity(x_BND, other_BND, dim=-1).double().sum()
                sums[how][branch.id] = sums[how].get(branch.id, 0.0) + float(cosine)
            x_BND = after_BND
    removal = observe(model, as_batches(calibration), ["branch_removal"])
    oracle = {
        b.id: float(
            removal.of("branch_removal", b.id)["delta_kl"]
            / removal.of("branch_removal", b.id)["images"]
        )
        for b in anatomy.branches
    }
    scores = {how: {k: 1 - v / tokens for k, v in own.items()} for how, own in sums.items()}
    return {**scores, "oracle": oracle}


def _lowest(scores: dict[str, float], kind: str, count: int) -> list[str]:
    """The layers of a kind with the least scores, in the order of their scores."""
    part = {"attention": "attn", "mlp": "mlp"}.get(kind, "")
    own = [name for name in scores if name.endswith(part)]
    return sorted(own, key=scores.__getitem__)[:count]


def _damage(model: nn.Module, _calibration: Pairs, validation: Pairs, gone: list[str]) -> Row:
    return dict(_damage_of(model, tuple(validation), frozenset(gone)))


@cache
def _damage_of(
    model: nn.Module, validation: tuple[tuple[Tensor, Tensor], ...], gone: frozenset[str]
) -> Row:
    smaller = without(host_of(model), gone, {}).model
    told = Told(_logits(model, validation))
    found = summarize(predict(smaller, list(validation), reference=told))
    row = {"top1": found.top1, "stderr": found.stderr, "kl": found.kl, "n": found.n}
    return row


@cache
def _logits(model: nn.Module, validation: tuple[tuple[Tensor, Tensor], ...]) -> list[Tensor]:
    with torch.inference_mode():
        return [model(images_BCHW) for images_BCHW, _ in validation]


def _write(args: argparse.Namespace, store: Store, rows: dict[str, list[Row]]) -> None:
    parts = [
        "# The effect of two faults in public LLM-Drop ports",
        "Layers are dropped by the cosine of the stream before and after them, computed correctly "
        "(*correct*) and as in public ports to vision transformers (*faulty*; see "
        "[the method's page](../methods/llm_drop.md)), without replacement. KL is that from the "
        "dense model, in nats; ± is the binomial standard error of top-1 in points.",
    ]
    for name in rows:
        scores = store.get(name, "scores")
        assert scores is not None
        parts += [f"## {TITLES[name]}", f"{rows[name][0]['n']} evaluation images."]
        parts += [_ranks(scores), _drops(rows[name]), _verdict(rows[name])]
    parts += [
        "`layer` ranks attention layers and MLPs together (joint drop). Counting the residual "
        "twice lowers the score of every MLP and of no attention layer, so that a joint ranking "
        "takes MLPs first: a model that can spare those better is then pruned better by mistake, "
        "without the score having told.",
        f"Measured with `{command('llm_drop_fault', args)} --models {','.join(rows)}`. "
        f"{versions()}.",
    ]
    write_page("llm_drop_fault", "\n\n".join(parts))


def _ranks(scores: Row) -> str:
    """Rank correlation with the degradation of each layer alone, by kind and together."""
    found = []
    for kind in DROPS:
        names = _lowest(scores["oracle"], kind, 999)
        oracle = [scores["oracle"][n] for n in names]
        rhos = [spearman([scores[h][n] for n in names], oracle) for h in ("correct", "faulty")]
        found.append([kind, str(len(names)), *(f"{rho or 0:+.2f}" for rho in rhos)])
    return table(["Spearman with the divergence without it", "layers", "correct", "faulty"], found)


def _drops(rows: list[Row]) -> str:
    lines = []
    for correct, faulty in zip(rows[::2], rows[1::2], strict=True):
        same = len(set(correct["gone"]) & set(faulty["gone"]))
        lines.append(
            [
                f"{correct['count']} {correct['kind']}",
                f"{same} of {correct['count']}",
                *(f"{row['top1']:.1f} ± {row['stderr']:.1f}" for row in (correct, faulty)),
                *(f"{row['kl']:.3f}" for row in (correct, faulty)),
            ]
        )
    head = ["dropped", "the same layers", "top-1 correct", "top-1 faulty", "KL correct"]
    return table([*head, "KL faulty"], lines)


def _verdict(rows: list[Row]) -> str:
    """How often the fault changes the choice, and for the worse."""
    pairs = list(zip(rows[::2], rows[1::2], strict=True))
    other = [(a, b) for a, b in pairs if set(a["gone"]) != set(b["gone"])]
    if not other:
        return f"The fault changes none of these {len(pairs)} choices."
    worse = sum(faulty["kl"] > correct["kl"] for correct, faulty in other)
    return (
        f"The fault changes {len(other)} of these {len(pairs)} choices; of those, {worse} to a "
        f"larger KL and {len(other) - worse} to a smaller one."
    )


if __name__ == "__main__":
    main()
