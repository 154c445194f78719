"""The commands that write artifacts, one per file. Options and plans work without torch, which `execute` imports.

`STAGES` holds the commands that write artifacts, in the order of the pipeline.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..options.declare import TeacherConfig
from . import (
    compress,
    compute_stats,
    evaluate,
    export,
    extend,
    generate,
    import_model,
    neighbours,
    optimize_dataset,
    prune,
    quantize,
    train,
    train_generator,
)
from .distill import command as distill
from .running.runner import Stage


def _with_its_teacher(stage: Stage[Any, Any]) -> Stage[Any, Any]:
    """Return the stage; if it has the option `--teacher`, it first imports that model as the run's teacher."""
    return replace(stage, before=import_model.bring_teacher) if issubclass(stage.config, TeacherConfig) else stage


STAGES: dict[str, Stage[Any, Any]] = {
    module.STAGE.name: _with_its_teacher(module.STAGE)
    for module in (
        train,
        import_model,
        compute_stats,
        optimize_dataset,
        train_generator,
        generate,
        compress,
        prune,
        distill,
        extend,
        quantize,
        evaluate,
        neighbours,
        export,
    )
}
