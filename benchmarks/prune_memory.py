"""How much memory pruning with the spectral preset takes at the size of DeiT-B.

    python benchmarks/prune_memory.py                        # DeiT-B, 32 and 96 images
    python benchmarks/prune_memory.py --images 512

Every cell runs in a process of its own, whose highest resident memory is what counts: torch,
weights and all. Images are random and made batch by batch. Candidates are probed with 2 images,
since probes hold one stream of their few images whatever the number of calibration images.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from functools import partial
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

from _common import Row, Store, table, versions, write_page

GIB = 2**30
MODEL = "deit_base_patch16_224"
BUDGET = "60% macs"
STREAMS, TOKENS, WIDTH = 2, 197, 768
"""What grows with the number of images: one stream of each model, in fp32."""
ALLOWED = "3 × the model + 2 GiB"


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given.add_argument("--images", default="32,96", help="numbers of images, with commas")
    given.add_argument("--report", action="store_true", help="only write the page from the store")
    given.add_argument("--cell", type=int, help=argparse.SUPPRESS)
    args = given.parse_args()
    if args.cell is not None:
        print(json.dumps(measure(args.cell)))
        return
    rows = []
    for images in map(int, args.images.split(",")):
        setting = argparse.Namespace(images=images, limit_eval=None, seed=0)
        store = Store("prune_memory", setting)
        if not args.report:
            store.run(("spectral",), partial(_in_own_process, images))
        if (row := store.get("spectral")) is not None and row["status"] == "ok":
            rows.append(row)
    write_report(rows, args.images)


def _in_own_process(images: int) -> Row:
    command = [sys.executable, __file__, "--cell", str(images)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    return row


def measure(images: int) -> Row:
    """Prune a DeiT-B with random weights; the peak of this process in bytes."""
    import resource

    import timm
    import torch

    import secateur
    from secateur.ablation.candidates import Effort
    from secateur.methods import spectral

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    spectral.QUICK = Effort(images=2, shares=(0.5,))
    model = timm.create_model(MODEL).eval()
    data = torch.utils.data.DataLoader(_RandomImages(images), batch_size=32)
    begin = time.perf_counter()
    secateur.prune(model, data, BUDGET, effort="quick", exact_tail=False)
    return {
        "images": images,
        "model_bytes": 4 * sum(p.numel() for p in model.parameters()),
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": time.perf_counter() - begin,
        "threads": torch.get_num_threads(),
    }


class _RandomImages:
    """Images drawn when asked for, the same each time; none is kept."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        import torch

        return torch.randn(3, 224, 224, generator=torch.Generator().manual_seed(index))


def write_report(rows: list[Row], images: str) -> None:
    """Write docs/results/prune_memory.md, and a bound for 512 images."""
    lines = [
        (
            str(row["images"]),
            f"{row['peak_bytes'] / GIB:.2f}",
            f"{(3 * row['model_bytes'] / GIB) + 2:.2f}",
            f"{row['seconds']:.0f}",
        )
        for row in rows
    ]
    if rows and rows[-1]["images"] < 512:
        last = rows[-1]
        more = (512 - last["images"]) * STREAMS * TOKENS * WIDTH * 4
        allowed = 3 * last["model_bytes"] / GIB + 2
        most = f"{(last['peak_bytes'] + more) / GIB:.2f}"
        lines.append(("512, at most", most, f"{allowed:.2f}", "–"))
    parts = [
        "# Memory of pruning",
        f"Peak resident memory of a process that prunes `timm:{MODEL}` (random weights and "
        f"images, fp32 on the CPU) to {BUDGET} with the preset `spectral`, quick probing.",
        "Only the streams grow with the number of images, by "
        f"{STREAMS * TOKENS * WIDTH * 4 / 1e6:.2f} MB each; the bound for 512 images adds them to "
        "the last row, although its peak may lie in another stage.",
        table(("images", "peak RSS, GiB", f"{ALLOWED}, GiB", "seconds"), lines),
        "## Reproduce",
        f"```\npython benchmarks/prune_memory.py --images {images}\n```",
        f"{versions()}. Seed 0, 1 thread. Times are of a shared machine.",
    ]
    write_page("prune_memory", "\n\n".join(parts))


if __name__ == "__main__":
    main()
