"""OpenVINO's own format: the graph in an .xml file, the weights in a .bin file beside it."""

from pathlib import Path
from tempfile import TemporaryDirectory

from torch import Tensor, nn

from secateur.export import exporters
from secateur.export.parity import Parity, written
from secateur.measurement.runtimes import installed
from secateur.measurement.runtimes._onnx import PACKAGES, to_onnx
from secateur.measurement.runtimes.openvino import compiled, openvino_core


@exporters.register("openvino")
def export_openvino(model: nn.Module, out: Path, input_size: tuple[int, int, int]) -> Parity:
    """Write `model` to an .xml file and the .bin file of the same name, weights as they are."""
    installed("export to openvino", (*PACKAGES, "openvino"))
    return written(model, out, input_size, suffix=".xml", write=_write, load=compiled)


def _write(model: nn.Module, images_BCHW: Tensor, path: Path) -> bool:
    import openvino as ov

    with TemporaryDirectory(prefix="secateur-") as folder:
        through = Path(folder) / "model.onnx"
        any_batch = to_onnx(model, images_BCHW, through)
        ov.save_model(openvino_core().read_model(str(through)), str(path), compress_to_fp16=False)
    return any_batch
