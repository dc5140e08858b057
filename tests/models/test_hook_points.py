import pytest
import torch
from torch import Tensor, nn

from secateur.models.family import family_of, read
from secateur.models.hook_points import HookPoint, attach, attached, watch_gradient
from secateur.statistics.known import known_of
from tests.hosts import HOSTS, build, images_for


@pytest.mark.parametrize("name", HOSTS)
@torch.no_grad()
def test_every_site_shows_its_quantity_in_canonical_shape(name: str) -> None:
    model = build(name)
    family, anatomy = family_of(model), read(model)
    images = images_for(model, 2)
    for branch in anatomy.branches:
        shapes: dict[str, torch.Size] = {}

        def see(x: Tensor, site: str, shapes: dict[str, torch.Size] = shapes) -> None:
            shapes[site] = x.shape

        hook_points = family.hook_points(model, branch)
        with attached(
            model,
            [
                (hook_point, lambda x, site=site: see(x, site))
                for site, hook_point in hook_points.items()
            ],
        ):
            model(images)
        stream = (2, branch.tokens, branch.width)
        expected = dict.fromkeys(("stream", "input", "update"), stream)
        if branch.kind == "mlp":
            expected["hidden"] = (2, branch.tokens, branch.shape.size("hidden"))
        else:
            heads, qk, vo = (branch.shape.size(group) for group in ("heads", "qk", "vo"))
            by_head = (2, branch.tokens, heads)
            if (windows := branch.windows) is not None:
                by_head = (2 * windows.count, windows.tokens, heads)
            expected |= dict.fromkeys(("query", "key"), (*by_head, qk))
            expected |= dict.fromkeys(("value", "context"), (*by_head, vo))
        assert {site: tuple(shape) for site, shape in shapes.items()} == expected


@pytest.mark.parametrize("name", ["vit", "deit3", "vit_qk_norm", "vit_post_norm", "swin"])
@torch.no_grad()
def test_attention_sites_fit_together(name: str) -> None:
    """context = softmax(scale q k^T + bias) v, from what the hook points show."""
    model = build(name)
    family, branch = family_of(model), read(model).branches[2]
    seen: dict[str, Tensor] = {}
    hook_points = family.hook_points(model, branch)
    sites = ("query", "key", "value", "context")
    with attached(
        model, [(hook_points[s], lambda x, s=s: seen.update({s: x.clone()})) for s in sites]
    ):
        model(images_for(model))
    known = known_of(family.weights(model, branch), branch, None)
    logits = torch.einsum("bihk,bjhk->bhij", seen["query"], seen["key"]) * known["scale"]
    if (bias := known.get("logit_bias")) is not None:
        logits = (logits.unflatten(0, (-1, len(bias))) + bias).flatten(0, 1)
    context = torch.einsum("bhij,bjhv->bihv", logits.softmax(-1), seen["value"])
    assert torch.allclose(context, seen["context"], atol=1e-5)


def halves() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 2, bias=False))


FIRST_THREE = HookPoint("0", "output", lambda t: t[..., :3])


def test_edits_replace_what_the_view_shows_and_nothing_else() -> None:
    model, x = halves(), torch.randn(5, 4)
    inner = model[0](x)
    with attached(model, [(FIRST_THREE, torch.zeros_like)]):
        edited = model(x)
    expected = model[1](torch.cat([torch.zeros(5, 3), inner[:, 3:]], 1))
    assert torch.allclose(edited, expected)
    assert torch.equal(model(x), model[1](inner))


def test_inputs_can_be_edited_too() -> None:
    model, x = halves(), torch.randn(5, 4)
    with attached(model, [(HookPoint("1", "input"), lambda t: 2 * t)]):
        edited = model(x)
    assert torch.allclose(edited, 2 * model(x))


def test_several_edits_of_one_module_add_up() -> None:
    model, x = halves(), torch.randn(5, 4)
    rest = HookPoint("0", "output", lambda t: t[..., 3:])
    with attached(model, [(FIRST_THREE, torch.zeros_like), (rest, torch.zeros_like)]):
        assert torch.equal(model(x), torch.zeros(5, 2))


def test_looking_changes_nothing() -> None:
    model, x = halves(), torch.randn(5, 4)
    seen: list[Tensor] = []
    handle = attach(model, FIRST_THREE, seen.append)
    assert torch.equal(model(x), model[1](model[0](x)))
    handle.remove()
    assert seen[0].shape == (5, 3)
    assert len(seen) == 2


def test_gradients_flow_through_edits() -> None:
    model, x = halves(), torch.randn(5, 4)
    gate = torch.ones(3, requires_grad=True)
    with attached(model, [(FIRST_THREE, lambda t: t * gate)]):
        model(x).sum().backward()
    slopes = model[1].weight.sum(0)
    assert torch.allclose(gate.grad, (model[0](x) * slopes).sum(0)[:3], atol=1e-6)
    assert torch.allclose(model[0].weight.grad, slopes[:, None] * x.sum(0), atol=1e-5)


def test_gradients_can_be_watched() -> None:
    model, x = halves(), torch.randn(5, 4)
    seen: list[tuple[Tensor, Tensor]] = []
    handle = watch_gradient(model, FIRST_THREE, lambda a, g: seen.append((a, g)))
    model(x).sum().backward()
    handle.remove()
    ((activation, gradient),) = seen
    assert torch.equal(activation, model[0](x)[:, :3]) and not activation.requires_grad
    assert torch.allclose(gradient, model[1].weight.sum(0)[:3].expand(5, 3))


def test_edits_end_with_the_block_also_after_an_error() -> None:
    model = halves()
    with pytest.raises(RuntimeError), attached(model, [(FIRST_THREE, torch.zeros_like)]):
        model(torch.randn(5, 3))
    assert not model[0]._forward_hooks
