"""Run by tests in several processes: observe a host's images together, the first one saves."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState

from secateur.data.batches import as_batches
from secateur.statistics import observe, statistics_kinds
from tests.hosts import build, images_for


def main(out: Path, images: int, batch: int) -> None:
    model = build("vit")
    data = (images_for(model, images), torch.arange(images) % 10)
    seen: list[int] = []
    found = observe(model, as_batches(data, batch), statistics_kinds.names(), on_batch=seen.append)
    drawn = observe(model, as_batches(data, batch), ["sensitivity"], sample_labels=3)
    state = PartialState()
    torch.save(
        {"images": found.images, "sums": found.sums, "drawn": drawn.sums, "seen": seen},
        out / f"{state.process_index}.pt",
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
