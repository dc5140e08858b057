"""Training steps on the CPU with torch's fused attention and with attention taken apart, in turns.

`python benchmarks/attention_kernels.py` writes docs/results/attention_kernels.md: ViT-Tiny, whole
and with a quarter of its query, key and value dims, at two sizes and in both precisions. bf16 is
left out where the processor only emulates it.
"""

import statistics
import time
from contextlib import nullcontext

import timm
import torch
from _common import Row, Store, parser, table, versions, write_page
from torch import nn

from secateur.models.caches import stated_names, unfused
from secateur.training.machine import has_bf16

BATCHES = {96: 64, 224: 16}
"""Images of a step by their size."""
DIMS = (64, 16)
"""Dims of a head."""


def attention_of(dims: int, size: int) -> nn.Module:
    """ViT-Tiny whose three heads have that many dims each, with random weights."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=size)
    for block in model.blocks:
        attention = block.attn
        attention.head_dim, attention.scale = dims, dims**-0.5
        attention.attn_dim = 3 * dims
        attention.qkv = nn.Linear(192, 9 * dims)
        attention.proj = nn.Linear(3 * dims, 192)
    return model.train()


def measure(dims: int, size: int, precision: str, steps: int) -> Row:
    """Median milliseconds of processor time of a step either way, and the median ratio."""
    model, batch = attention_of(dims, size), BATCHES[size]
    optimizer = torch.optim.AdamW(model.parameters(), 1e-4)
    images_BCHW, labels_B = torch.randn(batch, 3, size, size), torch.randint(10, (batch,))

    def step(*, fused: bool) -> float:
        kernel = nullcontext() if fused else unfused(model, stated_names("fused"))
        start = time.process_time()
        with kernel:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits_BC = model(images_BCHW)
            nn.functional.cross_entropy(logits_BC.float(), labels_B).backward()
        optimizer.step()
        optimizer.zero_grad()
        return 1000 * (time.process_time() - start)

    pairs = [(step(fused=True), step(fused=False)) for _ in range(steps + 2)][2:]
    ratios = [apart / fused for fused, apart in pairs]
    quartiles = statistics.quantiles(ratios, n=4)
    return {
        "fused": statistics.median(fused for fused, _ in pairs),
        "apart": statistics.median(apart for _, apart in pairs),
        "ratio": statistics.median(ratios),
        "low": quartiles[0],
        "high": quartiles[2],
    }


def main() -> None:
    """Measure what is missing, then write the page."""
    given = parser("Fused attention against attention taken apart.")
    given.add_argument("--steps", type=int, default=20)
    args = given.parse_args()
    torch.set_num_threads(args.threads)
    store = Store("attention_kernels", args)
    store.suffix = f"steps{args.steps}/threads{args.threads}"
    rows = []
    for precision in ("no", "bf16") if has_bf16() else ("no",):
        for size in BATCHES:
            for dims in DIMS:
                cell = (str(dims), str(size), precision)
                row = store.run(
                    cell,
                    lambda dims=dims, size=size, precision=precision: measure(
                        dims, size, precision, args.steps
                    ),
                )
                rows.append(
                    (
                        "fp32" if precision == "no" else precision,
                        str(size),
                        str(dims),
                        f"{row['fused']:.0f}",
                        f"{row['apart']:.0f}",
                        f"{row['ratio']:.2f}",
                        f"{row['low']:.2f} … {row['high']:.2f}",
                    )
                )
    head = ("precision", "px", "dims of a head", "fused, ms", "apart, ms", "ratio", "quartiles")
    sizes = " and ".join(f"{batch} images of {size} px" for size, batch in BATCHES.items())
    write_page(
        "attention_kernels",
        "\n\n".join(
            [
                "# Attention kernels in training on a CPU",
                f"ViT-Tiny/16 with random weights, steps of {sizes}, {args.threads} thread(s), "
                f"{args.steps} steps with each kernel in turns after two warm-up steps; medians "
                "of processor time, and the median ratio of neighbouring steps.",
                table(head, rows),
                *(
                    []
                    if has_bf16()
                    else ["bf16 is not measured, since this processor emulates it."]
                ),
                "## Reproduce\n\n```\npython benchmarks/attention_kernels.py "
                f"--steps {args.steps} --threads {args.threads}\n```",
                f"{versions()}.",
            ]
        ),
    )


if __name__ == "__main__":
    main()
