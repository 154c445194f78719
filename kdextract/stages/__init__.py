"""One command per file. A stage's options and plan are light; torch is imported when it executes.

`STAGES` lists the commands that make artifacts, in the order of the pipeline.
"""

from __future__ import annotations

from typing import Any

from ..stage_runner import Stage
from . import (
    compress,
    compute_stats,
    distill,
    evaluate,
    export,
    generate,
    import_model,
    neighbours,
    optimize_dataset,
    train,
    train_generator,
)

STAGES: dict[str, Stage[Any]] = {
    module.STAGE.name: module.STAGE
    for module in (
        train,
        import_model,
        compute_stats,
        optimize_dataset,
        train_generator,
        generate,
        compress,
        distill,
        evaluate,
        neighbours,
        export,
    )
}
