"""Draw the picture in README.md from a real run: python benchmarks/readme_picture.py.

Prunes ViT-Tiny, calibrated on ImageNet images, where ../shared holds both, and else the bundled
digits model.
"""

import sys
from pathlib import Path

import secateur
from secateur.report import anatomy_svg

PROJECT = Path(__file__).resolve().parents[1]
PICTURE = PROJECT / "docs" / "images" / "anatomy.svg"
SHARED = PROJECT.parent / "shared"
WEIGHTS = SHARED / "models" / "vit_tiny_patch16_224.safetensors"
IMAGES = SHARED / "data" / "imagenet_calibration"
BUDGET = "60% macs"


def record() -> dict[str, object]:
    """The record of the run that is drawn."""
    if WEIGHTS.is_file() and IMAGES.is_dir():
        model = secateur.load("timm:vit_tiny_patch16_224", checkpoint=WEIGHTS, mean=0.5, std=0.5)
        # Ranked over all layers, so that the picture shows where the model has room.
        return secateur.prune(
            model, IMAGES, BUDGET, allocation="ranking", exact_tail=False
        ).record()
    model = secateur.load("digits_vit")
    return secateur.prune(
        model, "digits/train", BUDGET, allocation="ranking", exact_tail=False
    ).record()


def main() -> None:
    """Write the picture."""
    drawn = record()
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(anatomy_svg(drawn) + "\n", encoding="utf-8")
    sys.stdout.write(f"{PICTURE.relative_to(PROJECT)}: {drawn['model']}, {BUDGET}\n")


if __name__ == "__main__":
    main()
