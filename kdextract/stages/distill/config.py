"""The options of `kdx distill`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ...errors import UsageError
from ...methods import live_method
from ...options.declare import (
    DataAccess,
    MethodStageConfig,
    NetworkConfig,
    OptionSet,
    TeacherConfig,
    VerifierConfig,
    option,
)
from ...training.budget import parse_duration
from ..inputs.distill_settings import CONVOLUTION_RATE, LINEAR_RATE, OPTIMIZER, USUAL_SETTINGS
from ..inputs.image_source import AUTO, chosen_live_method, live_method_option, live_method_options
from .blocks import USUAL_WEIGHT

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class DistillConfig(MethodStageConfig, TeacherConfig, NetworkConfig, VerifierConfig, DataAccess):
    """Train a student to reproduce the teacher's outputs.

    It learns from a transfer set, images made during training, real data or noise. Without --data and --method, the
    run's only transfer set or generators are used; in a run without any, --method auto selects a method that needs only
    the teacher. The weights after the last step are kept: nothing is selected on real data. The number of steps does
    not depend on the source of images, so that a student from noise (floor) or from real data (ceiling) is comparable.
    At the end, the student's accuracy on real images is estimated without real images.

    --student takes a share of the teacher's channels or multiply-adds: half, width:N or macs:N. It keeps the weights of
    the largest channels. Or a name of `kdx models`, half:SPEC, torchvision/NAME, timm/NAME or FILE.py:NAME, with random
    weights; or weights to start from: compressed/NAME, pruned/NAME or FILE.safetensors.

    Examples:

      kdx distill --student lenet_half
      kdx distill --student half
      kdx distill --student macs:0.3
      kdx distill --student lenet5_half --budget 120s
      kdx distill --method structured_noise --patience 8
      kdx distill --data noise:normal --name floor
      kdx distill --data mnist --name ceiling
      kdx distill --student compressed/tucker
    """

    student: str = option(
        "lenet_half",
        "Network or weights, as above.",
        metavar="SPEC",
        panel="Student",
    )
    data: str | None = option(
        None,
        "Images: transfer set or generators (name or path), noise:normal, noise:uniform or real data.",
        metavar="SPEC",
        panel="Source",
    )
    method: str | None = live_method_option()
    budget: str | None = option(
        None,
        "Wall-clock time of the stage, such as 120s or 2m.",
        metavar="TIME",
        panel="Schedule",
    )
    patience: int | None = option(
        None,
        "Stop early after N evaluations without improvement.",
        minimum=1,
        panel="Schedule",
    )
    snapshots: int = option(0, "Also store N intermediate students.", minimum=0, panel="Output")
    steps: int | None = option(
        None, "Optimizer steps.", minimum=1, panel="Schedule", otherwise=str(USUAL_SETTINGS["steps"])
    )
    batch_size: int | None = option(
        None, "Images per step.", minimum=2, panel="Schedule", otherwise=str(USUAL_SETTINGS["batch_size"])
    )
    lr: float | None = option(
        None,
        "Peak learning rate.",
        above=0,
        panel="Schedule",
        otherwise=f"{CONVOLUTION_RATE:g}; MLPs: {LINEAR_RATE:g}",
    )
    optimizer: str = option(
        OPTIMIZER, "Optimizer; soap needs fewer images.", choices=["soap", "adam"], panel="Schedule"
    )
    loss: str | None = option(
        None,
        "Loss between the outputs.",
        choices=["kl", "ce", "l1", "mse"],
        panel="Loss",
        otherwise=f"{USUAL_SETTINGS['loss']}, or by method",
    )
    temperature: float | None = option(
        None,
        "Temperature of kl and ce.",
        above=0,
        panel="Loss",
        otherwise=f"{USUAL_SETTINGS['temperature']:g}, or by method",
    )
    match_blocks: float | None = option(
        None,
        "Weight of the blocks' outputs.",
        metavar="W",
        minimum=0,
        panel="Loss",
        otherwise=f"{USUAL_WEIGHT:g}, or 0",
    )
    shift: int | None = option(
        None,
        "Shift up to N pixels.",
        minimum=0,
        panel="Augmentation",
        otherwise=f"{USUAL_SETTINGS['shift']}, or by method",
    )
    warp: float | None = option(
        None,
        "Rotate, scale and shear.",
        minimum=0,
        panel="Augmentation",
        otherwise=f"{USUAL_SETTINGS['warp']:g}, or by method",
    )
    flip: bool | None = option(None, "Mirror half of the images.", panel="Augmentation", otherwise="by method")
    splice: bool | None = option(None, "Join parts of images.", panel="Augmentation", otherwise="by method")
    redraw: bool | None = option(
        None,
        "Augment drawings.",
        panel="Augmentation",
        otherwise="on for generated drawings",
    )
    inherit: bool = option(
        True,
        "Copy the teacher's strongest units.",
        panel="Student",
    )
    batch_norm: str | None = option(
        None,
        "BN: train, frozen or frozen-affine.",
        choices=["train", "frozen", "frozen-affine"],
        panel="Student",
        otherwise="train",
    )
    teacher_accuracy: float | None = option(
        None,
        "Accuracy of the teacher, to estimate the student's.",
        above=0,
        maximum=1,
        panel="Output",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss in ("l1", "mse") and self.temperature is not None:
            raise UsageError(f"--temperature has no effect on --loss {self.loss}")
        if self.budget is not None:
            parse_duration(self.budget)
            if self.steps is not None:
                raise UsageError("--budget and --steps both set the number of steps; give one of them")

    def chosen_method(self) -> tuple[str, type[OptionSet]]:
        """The live method, if one is named, and the class of its options."""
        return chosen_live_method("distill", self.method)

    @classmethod
    def methods(cls) -> dict[str, type[OptionSet]]:
        """The options of every live method, by name."""
        return live_method_options()

    @classmethod
    def method_defaults(cls, name: str) -> dict[str, Any]:
        """The defaults of `distill` that the live method changes; none for `auto`."""
        return {} if name == AUTO else live_method(name).settings
