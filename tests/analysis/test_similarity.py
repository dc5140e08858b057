"""Streamed similarity against the definitions, on stored activations."""

import pytest
import torch
from torch import Tensor

from secateur.analysis.similarity import similarities
from secateur.data.batches import as_batches
from secateur.models.family import family_of
from secateur.models.hook_points import HookPoint, attached
from secateur.statistics import observe, statistics_kinds
from secateur.statistics.kinds import stream_similarity
from secateur.statistics.registry import STREAM
from secateur.statistics.stream import PATCHES, thinned, watch_stream
from tests.hosts import anatomy_of, build, images_for

IMAGES = 9


def stored(name: str, part: str) -> list[Tensor]:
    """Class token or kept patches (B, T, D) at every boundary, from one pass that keeps them."""
    model, anatomy = build(name), anatomy_of(name)
    found: list[Tensor] = []

    def keep(x: Tensor) -> None:
        found.append(thinned(x.detach(), anatomy.prefix_tokens)[part])

    view = family_of(model).tokens
    hook_points = [
        HookPoint(anatomy.blocks[0].id, "input", view),
        *(HookPoint(b.id, "output", view) for b in anatomy.blocks),
    ]
    with torch.no_grad(), attached(model, [(hook_point, keep) for hook_point in hook_points]):
        model(images_for(model, IMAGES))
    return found


def plain_cka(x_ED: Tensor, y_ED: Tensor) -> float:
    """CKA with HSIC_1 of Song et al. 2012, eq. 5, word for word."""

    def hsic(a_ED: Tensor, b_ED: Tensor) -> Tensor:
        n = len(a_ED)
        k, l = (z @ z.T - torch.diag((z @ z.T).diagonal()) for z in (a_ED, b_ED))  # noqa: E741
        one = torch.ones(n, dtype=torch.float64)
        total = (k @ l).trace() + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * (one @ k @ l @ one)) / (n * (n - 3))

    x, y = x_ED.double(), y_ED.double()
    return float(hsic(x, y) / (hsic(x, x) * hsic(y, y)).sqrt())


@pytest.mark.parametrize("name", ["vit", "dinov2_registers", "vit_post_norm"])
@pytest.mark.parametrize("part", ["class", "patches"])
def test_sums_give_the_definitions(name: str, part: str) -> None:
    model = build(name)
    statistics = observe(model, as_batches(images_for(model, IMAGES), 4), ["stream_similarity"])
    found = similarities(statistics.of("stream_similarity", STREAM))[part]
    streams = stored(name, part)
    assert found.points == tuple(range(len(streams)))
    for i, x in enumerate(streams):
        for j, y in enumerate(streams):
            cosine = torch.nn.functional.cosine_similarity(x, y, dim=-1).mean()
            assert float(found.cosine_PP[i, j]) == pytest.approx(float(cosine), abs=1e-5)
            if part == "class" and 0 in (i, j):  # the same for all images, so like nothing
                assert bool(found.cka_QQ[i, j].isnan())
                continue
            expected = plain_cka(x.flatten(0, 1), y.flatten(0, 1))
            assert float(found.cka_QQ[i, j]) == pytest.approx(expected, abs=1e-8)


def test_cka_is_unbiased_where_the_plain_one_is_not() -> None:
    """Independent features of few examples: unbiased CKA is about 0, the plain one far above."""
    generator = torch.Generator().manual_seed(0)
    unbiased, plain = [], []
    for _ in range(40):
        x, y = torch.randn(2, 12, 30, generator=generator, dtype=torch.float64)
        unbiased.append(plain_cka(x, y))
        x, y = x - x.mean(0), y - y.mean(0)
        plain.append(float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm())))
    assert abs(sum(unbiased) / 40) < 0.05
    assert sum(plain) / 40 > 0.5


def test_without_a_class_token_there_are_patches_only() -> None:
    model = build("vit_average_pool")
    statistics = observe(model, as_batches(images_for(model), 4), ["stream_similarity"])
    assert set(similarities(statistics.of("stream_similarity", STREAM))) == {"patches"}


def test_too_few_examples_have_no_cka() -> None:
    model = build("vit")
    statistics = observe(model, as_batches(images_for(model, 2), 2), ["stream_similarity"])
    found = similarities(statistics.of("stream_similarity", STREAM))
    assert bool(found["class"].cka_QQ.isnan().all())
    assert bool(found["class"].cosine_PP.isfinite().all())
    assert bool(found["patches"].cka_QQ.isfinite().all())


def test_points_are_thinned_to_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert stream_similarity.chosen_points(13, 192) == list(range(13))
    for points, width in ((25, 1024), (33, 1280), (41, 1536)):
        chosen = stream_similarity.chosen_points(points, width)
        pairs = len(chosen) * (len(chosen) + 1) // 2
        assert 2 * pairs * width**2 * 8 <= stream_similarity.BYTES
        assert chosen[0] == 0 and chosen[-1] == points - 1 and len(chosen) >= 8
    monkeypatch.setattr(stream_similarity, "BYTES", 2 * 6 * 8 * 32**2)
    model = build("vit")
    statistics = observe(model, as_batches(images_for(model), 4), ["stream_similarity"])
    found = similarities(statistics.of("stream_similarity", STREAM))["patches"]
    assert found.points == (0, 2, 3) and found.cosine_PP.shape == (4, 4)


def test_thinned_tokens() -> None:
    x = torch.arange(2 * 200 * 3.0).view(2, 200, 3)
    parts = thinned(x, 4)
    assert torch.equal(parts["class"], x[:, :1])
    assert parts["patches"].shape == (2, PATCHES, 3)
    positions = parts["patches"][0, :, 0] / 3
    assert float(positions.min()) >= 4 and float(positions.diff().min()) >= 12
    assert set(thinned(x, 0)) == {"patches"}


def test_nothing_is_seen_while_nobody_listens() -> None:
    model, anatomy = build("vit"), anatomy_of("vit")
    sums: dict[str, Tensor] = {}
    ears = [False]
    kind = statistics_kinds.get("stream_similarity")
    handles = list(watch_stream(model, anatomy, kind, sums, lambda: ears[0]))
    with torch.no_grad():
        model(images_for(model))
        assert not sums
        ears[0] = True
        model(images_for(model))
    assert float(sums["class.count"]) == 4
    for handle in handles:
        handle.remove()
