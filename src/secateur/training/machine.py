"""accelerate, set up once per run: devices, processes, precision and trackers."""

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from secateur.devices import usable_device
from secateur.errors import Advice, UserError
from secateur.training.settings import TrainSettings

LOGS = "secateur_logs"
"""What trackers call the project, and the folder that TensorBoard writes to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Where a run takes place; `accelerator` is accelerate's."""

    accelerator: Any
    processes: int
    process: int
    trackers: list[Any] = field(default_factory=list)

    @property
    def main(self) -> bool:
        """Whether this process writes files and tells people."""
        return bool(self.accelerator.is_main_process)

    def require_same_step(self, step: int) -> None:
        """UserError where processes found different checkpoints."""
        if self.processes == 1:
            return
        from accelerate.utils import gather

        found = gather(torch.tensor([step], device=self.accelerator.device)).tolist()
        if len(set(found)) > 1:
            raise UserError(
                f"the processes found checkpoints of different steps ({sorted(set(found))}); the "
                "output directory must be on a file system that all machines share."
            )

    def any(self, flag: bool, *, exact: bool) -> bool:
        """Whether the flag is set in any process; of several, they only ask each other if `exact`.

        WHY not always: asking makes an accelerator wait.
        """
        if self.processes == 1:
            return flag
        if not exact:
            return False
        found = self.accelerator.reduce(
            torch.tensor([float(flag)], device=self.accelerator.device), "sum"
        )
        return bool(found.item())

    def track(self, settings: TrainSettings) -> None:
        """Open the trackers; `close` finishes them."""
        if self.accelerator.log_with:
            self.accelerator.init_trackers(LOGS, config=_flat(settings.model_dump()))
            self.trackers.extend(self.accelerator.trackers)

    def close(self) -> None:
        """Finish the trackers. Process groups stay for the next run of this program."""
        for tracker in self.trackers:
            tracker.finish()
        self.trackers.clear()


def processes() -> Any:
    """What accelerate knows of this process and its fellows: `device`, `is_main_process`, ....

    WHY not PartialState() alone: unlike Accelerator, it does not look whether the CPU was asked
    for, and processes that it meets first on a CPU would never know of each other.
    """
    from accelerate import PartialState
    from accelerate.utils import parse_flag_from_env

    return PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"))


def training_device(home: torch.device, asked: torch.device | str | None = None) -> torch.device:
    """Where this process trains a model that is on `home`.

    That is the device `asked` for; without one, `home`, or, for a model on the CPU, the accelerator
    that accelerate finds. Of several processes each has the device that its launcher gave it, and
    UserError says so where another is asked for.
    """
    state = processes()
    own: torch.device = state.device
    if asked is not None:
        device = usable_device(asked)
        if state.num_processes == 1:
            return device
        if device.type != own.type or device.index not in (None, own.index):
            raise UserError(
                f"of several processes each trains on the device that its launcher gave it, here "
                f"'{own}', not on '{device}'; leave out the device, or start one process."
            )
    return own if home.type == "cpu" or state.num_processes > 1 else home


def machine_for(settings: TrainSettings, folder: Path | None, device: torch.device) -> Machine:
    """Set up accelerate for these settings; trackers write to `folder`/logs, none without one.

    This process trains on `device`.

    UserError when a tracker is wanted whose library is missing (TensorBoard, the default, is left
    out silently then). Warns where bf16 would be slow.
    """
    if settings.precision == "bf16" and emulates_bf16(device):
        warnings.warn(
            "this processor has no instructions for bf16, which can make training many times "
            "slower instead of faster; leave out precision: bf16",
            Advice,
            stacklevel=2,
        )
    from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    # WHY: accelerate keeps the precision of the first run of a process for all later ones.
    AcceleratorState._reset_state(reset_partial_state=False)
    wanted = _trackers(settings) if folder is not None else []
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        gradient_accumulation_steps=settings.accumulate,
        dataloader_config=DataLoaderConfiguration(split_batches=True, even_batches=False),
        # WHY: layer-wise learning leaves the head without a gradient.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        log_with=wanted or None,
        project_dir=None if folder is None else str(folder),
    )
    # WHY: left to itself, accelerate takes the first accelerator there is.
    accelerator.state.device = device
    return Machine(
        accelerator=accelerator,
        processes=accelerator.num_processes,
        process=accelerator.process_index,
    )


def emulates_bf16(device: torch.device) -> bool:
    """Whether bf16 is slower than fp32 there, on a processor without instructions for it."""
    return device.type == "cpu" and not has_bf16()


def has_bf16() -> bool:
    """Whether torch's matrix products in bf16 are more than an emulation on this processor."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


def _trackers(settings: TrainSettings) -> list[str]:
    from accelerate.tracking import get_available_trackers

    available = {str(name) for name in get_available_trackers()}
    for name in settings.trackers:
        if name not in available and name != "tensorboard":
            raise UserError(f"the tracker {name} needs its library: pip install {name}.")
    return [name for name in settings.trackers if name in available]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Scalars by dotted name, which is all that trackers take."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, bool | int | float | str)
            found[prefix + key] = value if plain else str(value)
    return found
