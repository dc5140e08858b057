"""How much memory observing and analysing a large ViT takes, and that images do not add to it.

    python benchmarks/large_model_memory.py                       # ViT-L/16, 24 blocks
    python benchmarks/large_model_memory.py --depth 4 --images 16,32 --stages analyze

Every cell runs in a process of its own, whose highest resident memory is what counts: torch,
weights and all. Images are random and made batch by batch. Rows are kept in
benchmarks/out/large_model_memory.jsonl; the page is docs/results/large_model_memory.md.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

HERE = Path(__file__).resolve().parent
STORE = HERE / "out" / "large_model_memory.jsonl"
GIB = 2**30
MODEL = "vit_large_patch16_224"
STAGES = ("observe", "analyze")
Row = dict[str, Any]


def main() -> None:
    args = _arguments()
    if args.cell:
        stage, depth, images = args.cell.split(",")
        print(json.dumps(_measure(stage, int(depth), int(images), args.batch_size, args.effort)))
        return
    rows = _known()
    for stage in args.stages.split(","):
        for images in map(int, args.images.split(",")):
            key = f"{stage}/{args.depth}/{images}/{args.batch_size}/{args.effort}"
            if key not in rows and not args.report:
                rows[key] = {"cell": key, **_in_own_process(args, stage, images)}
                _keep(rows[key])
    _write_page(list(rows.values()))


def _arguments() -> argparse.Namespace:
    given = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    given.add_argument("--images", default="32,64", help="numbers of images, with commas")
    given.add_argument("--depth", type=int, default=24, help="blocks (ViT-L has 24)")
    given.add_argument("--stages", default="observe,analyze", help="observe, analyze")
    given.add_argument("--batch-size", type=int, default=32)
    given.add_argument(
        "--effort", default="quick", help="quick, full, or least (2 probe images, one size)"
    )
    given.add_argument("--report", action="store_true", help="only write the page from the store")
    given.add_argument("--cell", help=argparse.SUPPRESS)
    return given.parse_args()


def _in_own_process(args: argparse.Namespace, stage: str, images: int) -> Row:
    print(f"{stage}, {args.depth} blocks, {images} images ...", end=" ", flush=True)
    command = [sys.executable, __file__, "--cell", f"{stage},{args.depth},{images}"]
    command += ["--batch-size", str(args.batch_size), "--effort", args.effort]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(done.stderr)
    row: Row = json.loads(done.stdout.splitlines()[-1])
    print(f"{row['peak_bytes'] / GIB:.2f} GiB, {row['seconds']:.0f} s", flush=True)
    return row


def _measure(stage: str, depth: int, images: int, batch: int, effort: str) -> Row:
    import resource

    import timm
    import torch

    from secateur.analysis.removals import Effort
    from secateur.analysis.scores import NEEDS
    from secateur.statistics import observe
    from secateur.verbs import analyze as verb

    torch.manual_seed(0)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    model = timm.create_model(MODEL, depth=depth, num_classes=1000).eval()
    verb.EFFORTS["least"] = Effort(images=2, shares=(0.5,), all_shares=(0.5,), pairs_of=2)
    data = torch.utils.data.DataLoader(_RandomImages(images), batch_size=batch)
    begin = time.perf_counter()
    if stage == "observe":
        from secateur.data.batches import as_batches

        observe(model, as_batches(data), NEEDS)
    else:
        verb.analyze(model, data, effort=effort, latency=False)
    return {
        "stage": stage,
        "depth": depth,
        "images": images,
        "batch": batch,
        "effort": effort if stage == "analyze" else "",
        "params": sum(p.numel() for p in model.parameters()),
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

        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, 224, 224, generator=generator)


def _known() -> dict[str, Row]:
    if not STORE.is_file():
        return {}
    rows = [json.loads(line) for line in STORE.read_text(encoding="utf-8").splitlines()]
    return {row["cell"]: row for row in rows}


def _keep(row: Row) -> None:
    STORE.parent.mkdir(exist_ok=True)
    with STORE.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def _commands(rows: list[Row]) -> str:
    """What measures these rows."""
    found: dict[str, list[int]] = {}
    for row in rows:
        words = f"--depth {row['depth']} --stages {row['stage']} --batch-size {row['batch']}"
        words += f" --effort {row['effort']}" if row["effort"] else ""
        found.setdefault(words, []).append(row["images"])
    lines = []
    for words, own in found.items():
        images = ",".join(map(str, sorted(own)))
        lines.append(f"python benchmarks/large_model_memory.py --images {images} {words}")
    return "\n".join(lines)


def _write_page(rows: list[Row]) -> None:
    from _common import table, versions, write_page

    if not rows:
        raise SystemExit("nothing was measured yet")
    rows.sort(key=lambda row: (row["stage"], row["effort"], row["depth"], row["images"]))
    lines = [
        (
            row["stage"] + (f" ({row['effort']})" if row["effort"] else ""),
            str(row["depth"]),
            f"{row['params'] / 1e6:.0f} M",
            str(row["images"]),
            str(row["batch"]),
            f"{row['peak_bytes'] / GIB:.2f}",
            f"{row['seconds']:.0f}",
        )
        for row in rows
    ]
    head = ("stage", "blocks", "parameters", "images", "at a time", "peak RSS, GiB", "seconds")
    parts = [
        "# Memory of large models",
        "Peak resident memory of a process (torch and weights included) that collects statistics "
        "of or analyses a "
        "ViT-L/16 with random weights and images, on the CPU in fp32. Rows that differ only in "
        "the number of images show its effect. `observe` collects the statistics of an analysis: "
        "moments of neurons, contexts and logits, and similarities between depths. Effort `least` "
        "uses 2 probe images and one size, with the same buffers as `quick`.",
        table(head, lines),
        "The terms of the memory, none of which grows with the number of images: "
        "[analysis](../methods/analysis.md#memory).",
        "## Reproduce",
        f"```\n{_commands(rows)}\n```",
        f"{versions()}. Seed 0; {rows[0]['threads']} thread. Times are of a shared machine.",
    ]
    write_page("large_model_memory", "\n\n".join(parts))


if __name__ == "__main__":
    main()
