"""SNP's criterion against a naive N×N decomposition and hand-computed values."""

import math
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.criteria import criteria, score
from secateur.criteria.registry import Question, needs_of, settings_of
from secateur.criteria.scores.snp import SnpSettings, dissimilarity, shared
from secateur.data.batches import as_batches
from secateur.errors import UserError
from secateur.models.family import family_of, read
from secateur.models.hook_points import attached
from secateur.models.stream import StreamWeights
from secateur.models.weights import AttentionWeights, MlpWeights
from secateur.presets import parse_preset
from secateur.statistics import observe, statistics_kinds
from secateur.statistics.kinds.snp import alignment, leading
from secateur.verbs.load import load, open_data
from secateur.verbs.prune import prune
from tests.contract.test_refusals import Untouched
from tests.hosts import build, images_for


def naive(q_NK: Tensor, k_NK: Tensor, gamma: int) -> Tensor:
    """The published formula word by word, with every N×N matrix formed."""
    u_NN, s_N, vt_NN = torch.linalg.svd(q_NK.double() @ k_NK.double().T)
    scores = []
    for q_N, k_N in zip(q_NK.double().T, k_NK.double().T, strict=True):
        own = torch.outer(q_N, k_N)
        total = torch.zeros((), dtype=torch.float64)
        for j in range(gamma):
            component = s_N[j] * torch.outer(u_NN[:, j], vt_NN[j])
            cosine = (component * own).sum() / (component.norm() * own.norm())
            total += cosine.abs()
        scores.append(total)
    return torch.stack(scores)


@pytest.mark.parametrize(
    ("tokens", "dims", "gamma"), [(50, 8, 4), (50, 8, 8), (17, 16, 3), (5, 8, 4)]
)
def test_the_core_equals_the_naive_decomposition(tokens: int, dims: int, gamma: int) -> None:
    generator = torch.Generator().manual_seed(tokens + gamma)
    q_NK = torch.randn(tokens, dims, generator=generator) + 0.5
    k_NK = torch.randn(tokens, dims, generator=generator) * torch.arange(1, dims + 1)
    found = alignment(q_NK, k_NK, gamma)
    torch.testing.assert_close(found, naive(q_NK, k_NK, gamma), rtol=0, atol=1e-5)


def test_orthogonal_dims_score_one_if_they_lead_and_zero_if_not() -> None:
    q_NK = torch.diag(torch.tensor([1.0, 5.0, 3.0]))
    k_NK = torch.eye(3)
    assert alignment(q_NK, k_NK, 1).tolist() == pytest.approx([0, 1, 0])
    assert alignment(q_NK, k_NK, 2).tolist() == pytest.approx([0, 1, 1])
    q_NK[:, 2] = 0
    assert alignment(q_NK, k_NK, 2)[2] == 0


def test_evidence_is_the_mean_over_images_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    q_BNHK, k_BNHK = torch.randn(2, 3, 12, 2, 4, generator=generator)
    update = statistics_kinds.get("snp_scores").update
    sums: dict[str, Tensor] = {}
    update(sums, {"query": q_BNHK[:2], "key": k_BNHK[:2]})
    update(sums, {"query": q_BNHK[2:], "key": k_BNHK[2:]})
    question = Question(
        group="qk", owner="x", weights=None, sums={"snp_scores": sums}, images=3, seed=0
    )
    found = score(criteria.get("snp"), question)
    each = [naive(q_BNHK[b, :, 1], k_BNHK[b, :, 1], leading(4)) for b in range(3)]
    torch.testing.assert_close(found[1], torch.stack(each).mean(0), rtol=0, atol=1e-5)


CRITERIA = ("snp", "snp_centred", "snp_magnitude")


def scored(model: nn.Module, images: Tensor, name: str, branch: str, **settings: object) -> Tensor:
    """Scores of the query/key dims of one branch, by the whole path from images."""
    which = criteria.get(name)
    chosen = settings_of(which, settings)
    statistics = observe(model, as_batches(images, 3), needs_of(which, "qk", chosen), only=[branch])
    question = Question(
        group="qk", owner=branch, weights=None, sums=statistics.about(branch),
        images=statistics.images, seed=0, settings=chosen,
    )  # fmt: skip
    return score(which, question)


@torch.no_grad()
def passed(model: nn.Module, images: Tensor, branch: str) -> tuple[Tensor, Tensor]:
    """Queries and keys (B, H, N, K) of a branch."""
    family = family_of(model)
    hook_points = family.hook_points(model, read(model).branch(branch))
    seen: dict[str, Tensor] = {}
    edits = [(hook_points[site], partial(seen.__setitem__, site)) for site in ("query", "key")]
    with attached(model, edits):
        model(images)
    return seen["query"].transpose(1, 2), seen["key"].transpose(1, 2)


def by_hand(q_BHNK: Tensor, k_BHNK: Tensor, name: str, gamma: int, how: str) -> Tensor:
    """The criteria word by word: every N by N matrix formed and decomposed."""
    q_BHNK, k_BHNK = q_BHNK.double(), k_BHNK.double()
    if name != "snp":
        k_BHNK = k_BHNK - k_BHNK.mean(2, keepdim=True)
    if how == "stacked":
        q_BHNK, k_BHNK = (x.transpose(0, 1).flatten(1, 2)[None] for x in (q_BHNK, k_BHNK))
    u, s, vt = torch.linalg.svd(q_BHNK @ k_BHNK.mT, full_matrices=False)
    along = (u.mT @ q_BHNK)[..., :gamma, :].abs() * (vt @ k_BHNK)[..., :gamma, :].abs()
    if name == "snp_magnitude":
        along = along * s[..., :gamma, None]
    else:
        along = along / (q_BHNK.norm(dim=2) * k_BHNK.norm(dim=2))[..., None, :]
    return along.sum(-2).mean(0)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("how", ["per_image", "stacked"])
@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("gamma", [None, 3])
def test_every_setting_is_what_it_says(
    name: str, how: str, class_token: bool, gamma: int | None
) -> None:
    model, branch = build("dinov2_registers"), "blocks.1.attn"
    x = images_for(model, 5)
    q_BHNK, k_BHNK = passed(model, x, branch)
    first = 0 if class_token else read(model).prefix_tokens
    expected = by_hand(q_BHNK[:, :, first:], k_BHNK[:, :, first:], name, gamma or 4, how)
    settings = {"gamma": gamma, "aggregate": how, "class_token": class_token}
    found = scored(model, x, name, branch, **settings)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CRITERIA)
@pytest.mark.parametrize("how", ["per_image", "stacked"])
def test_real_activations_agree_with_the_naive_decomposition(
    shared_dir: Path, name: str, how: str
) -> None:
    model = load(
        "timm:vit_tiny_patch16_224",
        checkpoint=shared_dir / "models" / "vit_tiny_patch16_224.safetensors",
    )
    batches, _ = open_data(
        model, shared_dir / "data" / "imagenet_calibration", limit=3, batch_size=3
    )
    x = next(iter(batches)).images_BCHW
    for branch in ("blocks.0.attn", "blocks.6.attn", "blocks.11.attn"):
        q_BHNK, k_BHNK = passed(model, x, branch)
        expected = by_hand(q_BHNK, k_BHNK, name, 32, how)
        found = scored(model, x, name, branch, aggregate=how)
        scale = float(expected.abs().max()) if name == "snp_magnitude" else 1.0
        torch.testing.assert_close(found / scale, expected / scale, rtol=0, atol=1e-5)


@pytest.mark.parametrize("how", ["per_image", "stacked"])
def test_each_criterion_finds_its_own_evidence_among_all(how: str) -> None:
    model, branch, x = build("vit"), "blocks.0.attn", images_for(build("vit"), 4)
    asked = [
        (criteria.get(name), settings_of(criteria.get(name), {"aggregate": how, "gamma": gamma}))
        for name in CRITERIA
        for gamma in (None, 2)
    ]
    needs = {kind for which, chosen in asked for kind in needs_of(which, "qk", chosen)}
    statistics = observe(model, as_batches(x, 3), needs, only=[branch])
    for which, chosen in asked:
        assert isinstance(chosen, SnpSettings)
        question = Question(
            group="qk", owner=branch, weights=None, sums=statistics.about(branch),
            images=statistics.images, seed=0, settings=chosen,
        )  # fmt: skip
        alone = scored(model, x, which.name, branch, aggregate=how, gamma=chosen.gamma)
        assert torch.equal(score(which, question), alone)


def test_dead_dims_and_few_tokens_do_not_hinder() -> None:
    q_NK, k_NK = torch.randn(2, 6, 9, generator=torch.Generator().manual_seed(2))
    q_NK[:, 3] = 0
    found = alignment(q_NK, k_NK, 4)
    expected = naive(q_NK[:, [0, 1, 2, 4, 5, 6, 7, 8]], k_NK[:, [0, 1, 2, 4, 5, 6, 7, 8]], 4)
    assert found[3] == 0
    torch.testing.assert_close(found[found > 0], expected, rtol=0, atol=1e-5)


def test_magnitudes_and_mean_keys_change_the_order() -> None:
    model, branch = build("vit"), "blocks.0.attn"
    weights = family_of(model).weights(model, read(model).branch(branch))
    assert isinstance(weights, AttentionWeights) and weights.kb_HK is not None
    small = replace(weights, q_HKD=weights.q_HKD.clone(), kb_HK=weights.kb_HK + 5)
    small.q_HKD[:, 0] *= 1e-3
    small = replace(small, qb_HK=torch.where(torch.arange(8) == 0, 0.0, small.qb_HK))
    family_of(model).assign_(model, read(model).branch(branch), small)
    x = images_for(model, 4)
    assert bool((scored(model, x, "snp_magnitude", branch).argmin(1) == 0).all())
    assert not bool((scored(model, x, "snp", branch).argmin(1) == 0).all())
    unbiased = build("vit")
    family_of(unbiased).assign_(
        unbiased, read(unbiased).branch(branch), replace(small, kb_HK=0 * small.kb_HK)
    )
    for name, same in (("snp_centred", True), ("snp_magnitude", True), ("snp", False)):
        both = (scored(m, x, name, branch) for m in (model, unbiased))
        assert torch.allclose(*both, rtol=1e-4, atol=1e-4) is same


def test_channels_are_judged_by_every_member() -> None:
    rows = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 2.0]])
    same = torch.ones(3, 4)
    alone = dissimilarity(rows) / dissimilarity(rows).sum()
    assert torch.allclose(shared(StreamWeights(writers={"a": rows})), alone)
    assert alone.tolist() == pytest.approx([0.25, 0.25, 0.5])
    other = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
    both = shared(StreamWeights(writers={"a": rows, "b": other}))
    assert both.tolist() == pytest.approx([(0.25 + 0.5) / 2, (0.25 + 0.25) / 2, (0.5 + 0.25) / 2])
    assert bool(torch.isfinite(shared(StreamWeights(writers={"a": same}))).all())
    sized = shared(StreamWeights(writers={"a": rows}), magnitude=True)
    assert sized.tolist() == pytest.approx([1 / 8, 3 / 8, 4 / 8])


def test_presets_set_what_the_paper_leaves_open(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    text = files("secateur.presets").joinpath("snp.yaml").read_text()
    mine.write_text(text + "settings: {snp: {gamma: 2, aggregate: stacked, class_token: false}}")
    model = build("vit")
    fine = {"qk": 1}
    run = partial(prune, model, images_for(model, 6), "50% qk", align=fine, minimum=fine)
    ours, theirs = run(preset=str(mine)), run(preset="snp")
    assert ours.plan.shapes == theirs.plan.shapes and ours.plan.units != theirs.plan.units


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ("{snp: {gama: 2}}", "'snp': unknown setting 'gama'; did you mean 'gamma'"),
        ("{snp: {gamma: 0}}", "setting 'gamma'"),
        ("{snp: {gamma: 2.5}}", "setting 'gamma'"),
        ("{snp: {aggregate: median}}", "setting 'aggregate'"),
        ("{energy: {gamma: 2}}", "'energy' has no settings"),
        ("{spn: {gamma: 2}}", "unknown criterion 'spn'"),
    ],
)
def test_wrong_settings_are_named(settings: str, words: str) -> None:
    text = f"title: a\nsource: b\ngroups: [qk]\ncriterion: snp\nsettings: {settings}"
    with pytest.raises(UserError, match=words):
        parse_preset("mine", text)


@pytest.mark.parametrize(("gamma", "token", "ok"), [(8, "true", True), (9, "true", False)])
def test_gamma_beyond_the_rank_is_refused(tmp_path: Path, gamma: int, token: str, ok: bool) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text(
        "title: a\nsource: b\ngroups: [qk]\ncriterion: snp\n"
        f"settings: {{snp: {{gamma: {gamma}, class_token: {token}}}}}"
    )
    model = build("vit")
    with nullcontext() if ok else pytest.raises(UserError, match=r"rank .* blocks\.0\.attn"):
        prune(
            model, images_for(model, 2) if ok else Untouched(), "50% qk", preset=str(mine),
            align={"qk": 1}, minimum={"qk": 1},
        )  # fmt: skip


def test_half_of_the_dims_lead() -> None:
    assert [leading(64), leading(5), leading(1)] == [32, 2, 1]


def test_rows_unlike_all_others_are_worth_most() -> None:
    rows = torch.tensor([[1.0, 0.0], [-3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]])
    h = 1 - math.sqrt(0.5)
    # Pairs: rows 0 and 1 are parallel; row 2 is at 90 degrees to them; row 3 at 45 to all.
    expected = [1 + h + 1, 1 + h + 1, 2 + h + 1, 3 * h + 1, 0]
    assert dissimilarity(rows).tolist() == pytest.approx(expected, abs=1e-6)


def test_many_rows_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = torch.randn(11, 5, generator=torch.Generator().manual_seed(1))
    whole = dissimilarity(rows)
    for size in (1, 4, 10, 11):
        monkeypatch.setattr("secateur.criteria.scores.snp.ROWS", size)
        torch.testing.assert_close(dissimilarity(rows), whole, rtol=0, atol=1e-12)


def test_values_are_compared_across_heads_and_neurons_with_all_readers() -> None:
    rows_UD = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    some = torch.ones(2, 3, 5)
    attention = AttentionWeights(
        q_HKD=some, k_HKD=some, v_HVD=rows_UD.view(2, 3, 5), o_DHV=torch.ones(5, 2, 3),
        qb_HK=None, kb_HK=None, vb_HV=None, ob_D=None, scale=1.0,
    )  # fmt: skip
    gated = MlpWeights(
        readers_FD=(rows_UD[:, :2], rows_UD[:, 2:]), reader_biases_F=(None, None),
        w2_DF=torch.ones(5, 6), b2_D=None,
    )  # fmt: skip
    expected = torch.tensor(
        [sum(1 - abs(torch.cosine_similarity(a, b, dim=0)) for b in rows_UD) for a in rows_UD]
    ).double()
    for group, weights in (("vo", attention), ("hidden", gated)):
        question = Question(group=group, owner="x", weights=weights, sums={}, images=0, seed=0)
        found = score(criteria.get("snp"), question)
        assert found.shape == ((2, 3) if group == "vo" else (6,))
        torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_the_preset_end_to_end() -> None:
    model = build("vit")
    fine = {"qk": 2, "vo": 2, "hidden": 4}
    calibration = images_for(model, 6, seed=1)
    halved = prune(model, calibration, "50% qk, 50% hidden", preset="snp", align=fine, minimum=fine)
    assert {s.qk for s in halved.plan.shapes.values() if hasattr(s, "qk")} == {4}
    result = prune(model, calibration, "60% macs", preset="snp", align=fine, minimum=fine)
    assert result.cost.macs <= 0.6 * result.before.cost().macs
    assert bool(torch.isfinite(result.model(images_for(model))).all())
    random = prune(model, calibration, "50% qk", preset="random", align=fine, minimum=fine)
    assert random.plan.units != halved.plan.units
