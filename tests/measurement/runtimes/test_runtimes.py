import copy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import UserError
from secateur.measurement.modes import example_images
from secateur.measurement.runtimes import _onnx, compiled, require, runtimes
from tests.measurement.hosts import INPUT, host, slim

ROOT = Path(__file__).parents[3]
COMPILE = """
import sys
from pathlib import Path

import torch

from secateur.measurement.modes import example_images
from secateur.measurement.runtimes import require
from tests.measurement.hosts import INPUT, host

model = host(depth=1).eval()
images_BCHW = example_images(model, INPUT, 2)
run = require("compile").prepare(model, images_BCHW, Path(sys.argv[1]))
with torch.inference_mode():
    torch.testing.assert_close(run(images_BCHW), model(images_BCHW), atol=1e-4, rtol=1e-4)
"""
SIGNALS = """
import gc
import signal
import subprocess
import sys
from pathlib import Path

from secateur.measurement.runtimes.openvino import compiled

signal.signal(signal.SIGCHLD, lambda *_: None)
first = compiled(Path(sys.argv[1]))
second = compiled(Path(sys.argv[1]))
for _ in range(2):
    first, second = second, None
    gc.collect()
subprocess.run(["sleep", "0.1"], check=True, timeout=60)
print("alive")
"""
MODELS: dict[str, Callable[[], nn.Module]] = {"host": host, "slim": slim}


def expected(model: nn.Module, images_BCHW: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).eval()(images_BCHW)


@pytest.mark.parametrize("which", MODELS)
def test_same_outputs_in_every_runtime_from_one_conversion(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, converted = MODELS[which](), []
    convert = _onnx.to_onnx

    def counting(model: nn.Module, images_BCHW: Tensor, path: Path) -> bool:
        converted.append(len(images_BCHW))
        return convert(model, images_BCHW, path)

    monkeypatch.setattr(_onnx, "to_onnx", counting)
    for name in ("eager", "onnxruntime", "openvino"):
        for batch in (1, 4):
            run = require(name).prepare(model, example_images(model, INPUT, batch), tmp_path)
            for seed in (1, 2):
                images_BCHW = example_images(model, INPUT, batch, seed)
                with torch.inference_mode():
                    got_BC = run(images_BCHW)
                expected_BC = expected(model, images_BCHW)
                torch.testing.assert_close(got_BC, expected_BC, atol=1e-4, rtol=1e-4)
    assert converted == [1]


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++"))), reason="needs a C++ compiler")
def test_compiled_in_one_graph(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_signals_are_survived_after_openvino(tmp_path: Path) -> None:
    model = host(depth=1)
    path = _onnx.shared_onnx(model, example_images(model, INPUT, 1), tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "alive\n")


@pytest.mark.parametrize("which", MODELS)
def test_full_graph_compiles(which: str) -> None:
    model = MODELS[which]()
    images_BCHW = example_images(model, INPUT, 2)
    run = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=False)
    with torch.inference_mode():
        got_BC = run(images_BCHW)
    torch.testing.assert_close(got_BC, expected(model, images_BCHW), atol=1e-4, rtol=1e-4)


def test_more_models_than_torch_compiles_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Small(nn.Module):
        def __init__(self, size: int) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(size))

        def forward(self, x_BF: Tensor) -> Tensor:
            return x_BF * self.weight.sum()

    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda model, **options: real(model, backend="eager", **options)
    )
    x_BF = torch.ones(1, 2)
    runs = [compiled.prepare(Small(size), x_BF, tmp_path) for size in range(1, 20)]
    with torch.inference_mode():
        assert [run(x_BF)[0, 0].item() for run in runs] == list(range(1, 20))


def test_compile_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    model = host(depth=1)
    with pytest.raises(UserError, match=r"C\+\+ compiler"):
        require("compile").prepare(model, example_images(model, INPUT, 1), tmp_path)


def test_types_that_cannot_leave_torch(tmp_path: Path) -> None:
    model = host(depth=1).to(torch.bfloat16)
    with pytest.raises(UserError, match=r"torch\.bfloat16 cannot be run outside torch"):
        require("openvino").prepare(model, example_images(model, INPUT, 1), tmp_path)


def test_known_runtimes() -> None:
    assert {"eager", "compile", "onnxruntime", "openvino"} <= set(runtimes.names())
    with pytest.raises(UserError, match="'onnxruntime' is measured on cpu only, not on 'cuda'"):
        require("onnxruntime", "cuda")
