"""Cuts every external model to half of its channels: `python benchmarks/external_models/halves.py [NAME ...]`.

The models are not trained. Each is imported, cut, written, and loaded again; a row says what became of it.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import torch  # noqa: E402
import training  # noqa: E402
from catalogue import EXTERNAL_MODELS, ExternalModel  # noqa: E402

import kdextract.api as kdx  # noqa: E402
from kdextract.errors import KdxError  # noqa: E402
from kdextract.models.classifier import Classifier, encode_classifier, load_classifier  # noqa: E402
from kdextract.models.external.names import HALF  # noqa: E402
from kdextract.models.pruning.cut import cut_to  # noqa: E402


def imported(entry: ExternalModel, folder: Path) -> Classifier:
    """Build, save and import a model."""
    torch.manual_seed(0)
    network = entry.build().eval()
    with torch.no_grad():
        network(torch.zeros(2, *entry.size, dtype=entry.dtype))  # lazy layers get their sizes
    files = training.save(entry, network, folder)
    typed, options = [*files, *entry.options], {}
    while typed:
        name = typed.pop(0).removeprefix("--").replace("-", "_")
        options[name] = True if name == "trust_code" else typed.pop(0)
    if "num_classes" in options:
        options["num_classes"] = int(options["num_classes"])
    model = str(folder / entry.file) if entry.form == "program" else entry.model
    return load_classifier(kdx.import_model(model, run=folder / "run", **options).directory)


def row(entry: ExternalModel, folder: Path) -> str:
    """Return a row of the table: parameters and multiply-adds before and after, and what was left whole."""
    teacher = imported(entry, folder)
    before = [f"{teacher.num_parameters:,}", f"{teacher.multiply_adds():,}"]
    try:
        made = cut_to(teacher, HALF)
    except KdxError as error:
        return " | ".join(["", entry.name, before[0], "-", before[1], "-", f"refused: {error}", ""]).strip()
    file = folder / "half.safetensors"
    file.write_bytes(encode_classifier(made.classifier))
    half = load_classifier(file)
    images = torch.rand(3, *half.input_shape)
    assert torch.equal(half(images), made.classifier(images)), f"{entry.name} differs after it was written"
    figures = [before[0], f"{half.num_parameters:,}", before[1], f"{half.multiply_adds():,}"]
    return " | ".join(["", entry.name, *figures, made.summary, ""]).strip()


def main() -> None:
    """Print the table of all models, or of those that are named."""
    os.chdir(HERE)
    torch.set_num_threads(1)
    print("| model | parameters | half | multiply-adds | half | layers cut |\n|---|--:|--:|--:|--:|---|")
    for entry in EXTERNAL_MODELS:
        if len(sys.argv) == 1 or entry.name in sys.argv[1:]:
            with tempfile.TemporaryDirectory() as folder:
                os.environ["XDG_STATE_HOME"] = folder
                print(row(entry, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
