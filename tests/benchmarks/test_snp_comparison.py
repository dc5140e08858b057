"""What the comparison of attention maps measures, on a tiny model."""

import copy
from pathlib import Path

import pytest
import torch

from tests.hosts import build, images_for

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scripts be imported as they import each other."""
    monkeypatch.syspath_prepend(PROJECT / "benchmarks")


@torch.no_grad()
def test_scores_are_what_the_softmax_gets() -> None:
    import _snp_comparison_maps as maps

    model, x = build("vit"), images_for(build("vit"), 2)
    found = maps.scores(model, x)
    assert found.shape == (3, 2, 4, 17, 17)
    attn = model.blocks[0].attn
    tokens = model.blocks[0].norm1(model._pos_embed(model.patch_embed(x)))
    q, k, _ = attn.qkv(tokens).unflatten(-1, (3, 4, 8)).permute(2, 0, 3, 1, 4)
    assert torch.allclose(found[0], 8**-0.5 * q @ k.mT, atol=1e-5)


@torch.no_grad()
def test_what_softmax_ignores_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import _snp_comparison_maps as maps

    monkeypatch.setattr(maps, "IMAGES", 4)
    model = build("vit")
    images = [(images_for(model, 4), torch.zeros(4, dtype=torch.long))]
    same = maps.preservation(model, model, images)
    assert torch.tensor(same["relative_error"]).shape == (3, 4)
    assert float(torch.tensor(same["relative_error"]).max()) == 0.0
    shifted, halved = copy.deepcopy(model), copy.deepcopy(model)
    # The bias of keys adds the same to all keys of a row.
    shifted.blocks[2].attn.qkv.bias[32:64] += 1.0
    halved.blocks[2].attn.qkv.weight[:8] *= 0.5
    halved.blocks[2].attn.qkv.bias[:8] *= 0.5
    assert float(torch.tensor(maps.preservation(model, shifted, images)["row_kl"]).max()) < 1e-6
    error = torch.tensor(maps.preservation(model, halved, images)["relative_error"])
    expected = torch.zeros(3, 4)
    expected[2, 0] = 0.5
    assert torch.allclose(error, expected, atol=1e-4)


def test_pictures_are_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    import _snp_comparison_maps as maps

    generator = torch.Generator().manual_seed(0)
    values = torch.rand(3, 4, generator=generator).tolist()
    row = {"row_kl": values, "relative_error": values}
    maps.draw_preservation({"a": row, "b": row}, tmp_path / "kept.png")
    squares = torch.rand(len(maps.SHOWN), 5, 5, generator=generator).tolist()
    maps.draw_maps([("dense", squares), ("SNP, centred", squares)], tmp_path / "maps.png")
    for name in ("kept.png", "maps.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
