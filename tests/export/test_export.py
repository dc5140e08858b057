import errno
import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import openvino
import pytest
import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.export import export, exporters
from secateur.export.parity import written
from secateur.measurement.modes import example_images
from secateur.models.family import family_of
from tests.measurement.hosts import INPUT, host, slim


def tail() -> nn.Module:
    model = host("deit_tiny_distilled_patch16_224")
    family_of(model).put_tail_(model)
    return model


MODELS: dict[str, Callable[[], nn.Module]] = {
    "host": lambda: host("deit_tiny_distilled_patch16_224"),
    "slim": slim,
    "tail": tail,
}
SUFFIX = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}


def run(to: str, path: Path, images_BCHW: Tensor) -> Tensor:
    """What somebody without secateur would do with the file."""
    if to == "onnx":
        session = onnxruntime.InferenceSession(str(path))
        return torch.from_numpy(session.run(["logits"], {"images": images_BCHW.numpy()})[0])
    if to == "openvino":
        exact = {"INFERENCE_PRECISION_HINT": "f32"}
        model = openvino.Core().compile_model(str(path), "CPU", exact)
        return torch.from_numpy(model({"images": images_BCHW.numpy()})["logits"])
    return torch.export.load(path).module()(images_BCHW)


@pytest.mark.parametrize("to", SUFFIX)
@pytest.mark.parametrize("which", MODELS)
def test_files_compute_what_the_model_does(
    to: str,
    which: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    model = MODELS[which]().train()
    out = tmp_path / f"model{SUFFIX[to]}"
    parity = export(model, to, out)
    assert capfd.readouterr() == ("", "")
    assert recwarn.list == []
    assert parity.any_batch
    assert parity.max_rel < 1e-4
    assert all(module.training for module in model.modules())
    model.eval()
    for batch in (1, 5):
        images_BCHW = example_images(model, INPUT, batch, seed=7)
        with torch.no_grad():
            expected_BC = model(images_BCHW)
            got_BC = run(to, out, images_BCHW)
        torch.testing.assert_close(got_BC, expected_BC, atol=1e-4, rtol=1e-4)


def test_only_finished_files_remain(tmp_path: Path) -> None:
    export(host(depth=1), "openvino", tmp_path / "model.xml")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bin", "model.xml"]


def test_files_are_replaced_only_when_asked(tmp_path: Path) -> None:
    path, beside = tmp_path / "model.xml", tmp_path / "model.bin"
    beside.write_text("of something else")
    with pytest.raises(UserError, match=r"there is a file .*model\.bin, saved on .*--overwrite"):
        export(host(depth=1), "openvino", path)
    assert [p.name for p in tmp_path.iterdir()] == ["model.bin"]
    beside.rename(tmp_path / "mine.bin")
    export(host(depth=1), "openvino", path)
    with pytest.raises(UserError, match=r"there is a file .*model\.xml, saved on "):
        export(host(depth=1), "openvino", path)
    first = beside.read_bytes()
    export(host(depth=2), "openvino", path, overwrite=True)
    assert beside.read_bytes() != first
    assert {p.name for p in tmp_path.iterdir()} == {"mine.bin", "model.bin", "model.xml"}


def onnx_nodes(model: nn.Module, folder: Path) -> Counter[str]:
    export(model, "onnx", folder / "model.onnx", overwrite=True)
    return Counter(node.op_type for node in onnx.load(folder / "model.onnx").graph.node)


def torch_nodes(model: nn.Module, folder: Path) -> Counter[str]:
    export(model, "torch", folder / "model.pt2", overwrite=True)
    graph = torch.export.load(folder / "model.pt2").graph
    return Counter(str(node.target) for node in graph.nodes if node.op == "call_function")


def test_dropped_branches_leave_no_node_in_onnx(tmp_path: Path) -> None:
    dense, model = onnx_nodes(host(depth=2), tmp_path), host(depth=2)
    family_of(model).drop_(model, {"blocks.0.attn"})
    no_attention = onnx_nodes(model, tmp_path)
    gone = dense - no_attention
    assert no_attention - dense == Counter()
    assert gone["Softmax"] == gone["LayerNormalization"] == 1
    assert gone["MatMul"] == 4
    assert gone["Gelu"] == 0
    # Biases of qkv and proj, and the addition to the stream.
    assert gone["Add"] == 3
    family_of(model).drop_(model, {"blocks.0.mlp"})
    empty = onnx_nodes(model, tmp_path)
    assert no_attention - empty == Counter(
        {"LayerNormalization": 1, "MatMul": 2, "Gelu": 1, "Add": 3}
    )


def test_dropped_branches_leave_no_node_in_torch(tmp_path: Path) -> None:
    dense, model = torch_nodes(host(depth=2), tmp_path), host(depth=2)
    family_of(model).drop_(model, {"blocks.1.attn"})
    gone = dense - torch_nodes(model, tmp_path)
    assert gone["aten.scaled_dot_product_attention.default"] == 1
    assert gone["aten.layer_norm.default"] == 1
    assert gone["aten.linear.default"] == 2
    assert gone["aten.add.Tensor"] == 1
    family_of(model).drop_(model, {"blocks.1.mlp"})
    assert torch_nodes(model, tmp_path) == torch_nodes(host(depth=1), tmp_path)


class OnePerImage(nn.Module):
    """Its graph has a node for each image, so that it takes as many as it was traced with."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.stack([x_CHW.flatten() * self.weight for x_CHW in x_BCHW.unbind()])


@pytest.mark.parametrize("to", ["onnx", "torch"])
def test_models_that_depend_on_the_batch_size_take_one_image(
    to: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / f"model{SUFFIX[to]}"
    parity = export(OnePerImage(), to, out, input_size=(1, 2, 2))
    assert not parity.any_batch
    assert parity.images == 1
    images_BCHW = torch.arange(4.0).reshape(1, 1, 2, 2)
    assert torch.equal(run(to, out, images_BCHW), images_BCHW.flatten()[None])
    assert capfd.readouterr() == ("", "")


def save_nothing(model: nn.Module, images_BCHW: Tensor, path: Path) -> bool:
    path.write_text("new")
    path.with_suffix(".data").write_text("new")
    return True


def test_a_file_that_differs_is_not_given_out(tmp_path: Path) -> None:
    model, out = host(depth=1), tmp_path / "model.file"
    out.write_text("old")

    def wrong(path: Path) -> Callable[[Tensor], Tensor]:
        assert path.read_text() == "new"
        return lambda images_BCHW: model(images_BCHW) + 0.5

    with pytest.raises(RuntimeError, match=r"differ from the model's by 0\.5 .*not written"):
        written(model, out, INPUT, suffix=".file", write=save_nothing, load=wrong)
    assert out.read_text() == "old"
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_agrees_replaces_the_old_one(tmp_path: Path) -> None:
    model, out = host(depth=1), tmp_path / "model.file"
    out.write_text("old")
    parity = written(model, out, INPUT, suffix=".file", write=save_nothing, load=lambda path: model)
    assert out.read_text() == "new"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.data", "model.file"]
    assert parity.to_json() == {
        "path": str(out),
        "max_abs": 0.0,
        "max_rel": 0.0,
        "images": 3,
        "any_batch": True,
    }


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    def full(model: nn.Module, images_BCHW: Tensor, path: Path) -> bool:
        path.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*No space left"):
        written(
            host(depth=1),
            tmp_path / "model.file",
            INPUT,
            suffix=".file",
            write=full,
            load=lambda path: nn.Identity(),
        )
    assert list(tmp_path.iterdir()) == []


def test_bad_input_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = host(depth=1)
    with pytest.raises(UserError, match="unknown export target 'onx'; did you mean 'onnx'"):
        export(model, "onx", tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"must end in '\.xml'"):
        export(model, "openvino", tmp_path / "model.onnx")
    with pytest.raises(UserError, match="there is no folder"):
        export(model, "torch", tmp_path / "absent" / "model.pt2")
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(UserError, match="it is a folder"):
        export(model, "onnx", tmp_path / "folder.onnx")
    with pytest.raises(UserError, match=r"Linear belongs to no family"):
        export(nn.Linear(2, 2), "torch", tmp_path / "model.pt2")
    with pytest.raises(UserError, match=r"bfloat16 cannot be run outside torch"):
        export(host(depth=1).bfloat16(), "onnx", tmp_path / "model.onnx")
    with torch.no_grad():
        model.blocks[0].mlp.fc1.weight[0, 0] = torch.nan
    with pytest.raises(UserError, match="outputs are not finite"):
        export(model, "torch", tmp_path / "model.pt2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(UserError, match=r"onnx.*not installed.*pip install secateur\[export\]"):
        export(model, "onnx", tmp_path / "model.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["folder.onnx"]


def test_known_targets() -> None:
    assert set(SUFFIX) <= set(exporters.names())
