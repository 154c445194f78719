"""`kdx distill --student` with a share of the teacher: what is cut, what is refused, what a resumed run ends with."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Crash, Here, error_of, sha256s

from kdextract import api
from kdextract.errors import ConfigError
from kdextract.models.classifier import Classifier, encode_classifier, load_classifier, read_spec
from kdextract.models.external.names import HALF
from kdextract.models.pruning.cut import cut_to
from kdextract.storage.artifacts import read_manifest
from kdextract.training import batch_norm
from kdextract.training.batch_norm import NUM_IMAGES

CODE = """
import torch
from torch import nn

class Net(nn.Module):
    "The number of features is in the code of `forward`."
    def __init__(self):
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(1, 8, 3, 2, 1), nn.BatchNorm2d(8)
        self.conv2, self.drop = nn.Conv2d(8, 8, 3, 2, 1), nn.Dropout(0.1)
        self.fc1, self.fc2 = nn.Linear(32, 12), nn.Linear(12, 3)

    def forward(self, x):
        x = self.drop(torch.relu(self.conv2(torch.relu(self.bn(self.conv1(x))))))
        return self.fc2(torch.relu(self.fc1(x.view(-1, 32))))

class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.bn, self.conv2 = nn.Conv2d(6, 8, 3, 1, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3, 1, 1)

    def forward(self, x):
        return x + self.conv2(torch.relu(self.bn(self.conv1(x))))

class Blocks(nn.Module):
    "Channels that a view mixes with pixels, those between the blocks, cannot be cut."
    def __init__(self):
        super().__init__()
        self.stem, self.fc = nn.Conv2d(1, 6, 3, 2, 1), nn.Linear(96, 3)
        self.stage = nn.Sequential(Residual(), Residual())

    def forward(self, x):
        return self.fc(self.stage(self.stem(x)).view(-1, 96))

class Linear(nn.Linear):
    def __init__(self):
        super().__init__(64, 3)

    def forward(self, x):
        return super().forward(x.flatten(1))
"""
SHORT: dict[str, Any] = {"data": "noise:uniform", "steps": 12, "batch_size": 16, "threads": 1}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(CODE)
    return tmp_path / "net.py"


@pytest.fixture
def own(tmp_path: Path, model: Path) -> Path:
    """A run whose teacher is an imported network without a width."""
    torch.manual_seed(0)
    api.import_model(model=f"{model}:Net", input_size="1x8x8", run=tmp_path / "own", threads=1)
    return tmp_path / "own"


def test_half_of_an_imported_network_says_what_was_cut_and_what_was_left_whole(here: Here, own: Path) -> None:
    options = ["--data", "noise:uniform", "--steps", "3", "--batch-size", "16", "--threads", "1"]
    done = here("distill", "--student", "half", *options, "--run", own, "--json")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("channels cut to ")]
    assert " % of the multiply-adds, in 2 of 3 layers; left whole: conv2 (" in line
    result = json.loads(done.stdout)
    assert result["inherited"]
    assert result["num_parameters"] < 0.7 * result["teacher_parameters"]
    student = load_classifier(own / "students" / "Net-half")
    assert dict(student.spec.kept) == {
        "bn": (4,),
        "conv1": (4, 1, 1),
        "conv2": (8, 4, 1),
        "fc1": (6, 32),
        "fc2": (3, 6),
    }
    assert here("evaluate", "students/Net-half", "--data", "digits", "--run", own).returncode != 0, "other classes"
    assert here("verify", "--run", own).returncode == 0


@pytest.mark.parametrize(
    ("student", "name"),
    [
        ("0.25", "Net-width-0.25"),
        ("width:0.75", "Net-width-0.75"),
        ("macs:0.5", "Net-macs-0.5"),
        ("width:0.5", "Net-width-0.5"),
    ],
)
def test_the_name_of_a_student_says_its_share(own: Path, student: str, name: str) -> None:
    made = api.distill(run=own, student=student, **SHORT)
    assert made.directory.name == name
    teacher, smaller = load_classifier(own / "teacher"), load_classifier(made.directory)
    assert smaller.num_parameters == made.manifest.metrics["num_parameters"] < teacher.num_parameters
    if student.startswith("macs"):
        assert smaller.multiply_adds() <= 0.5 * teacher.multiply_adds()


@pytest.mark.parametrize("student", ["width:0", "width:1.5", "macs:x", "macs:", "1", "0", "-0.5", "width:nan"])
def test_shares_that_are_none_are_refused(here: Here, own: Path, student: str) -> None:
    line = error_of(here("distill", "--student", student, "--run", own), 2)
    assert "above 0 and below 1" in line
    assert not (own / "students").exists()


def test_a_network_that_cannot_be_cut_is_refused(here: Here, tmp_path: Path, model: Path) -> None:
    api.import_model(model=f"{model}:Linear", input_size="1x8x8", run=tmp_path / "linear", threads=1)
    options = ["--data", "noise:uniform", "--run", tmp_path / "linear"]
    assert "it has one layer" in error_of(here("distill", "--student", "half", *options), 3)
    assert not list((tmp_path / "linear" / "students").glob("[!.]*"))


def test_a_program_cannot_be_cut_and_is_refused_before_anything_runs(tmp_path: Path, model: Path) -> None:
    torch.manual_seed(0)
    scope: dict[str, Any] = {}
    exec(compile(CODE, str(model), "exec"), scope)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(scope["Net"]().eval(), (torch.zeros(4, 1, 8, 8),), dynamic_shapes=({0: batch},))
    torch.export.save(program, tmp_path / "net.pt2")
    api.import_model(model=str(tmp_path / "net.pt2"), trust_code=True, run=tmp_path / "run", threads=1)
    for student in ("half", "macs:0.5"):
        with pytest.raises(ConfigError, match=r"a \.pt2 program cannot be cut"):
            api.distill(run=tmp_path / "run", student=student, **SHORT)
    assert not (tmp_path / "run" / "students").exists()


def test_a_cut_student_is_a_teacher_itself_and_is_exported(own: Path, tmp_path: Path) -> None:
    made = api.distill(run=own, student="half", **SHORT)
    api.export("students/Net-half", run=own, format="pt2", threads=1)
    api.import_model(model=str(made.directory), run=tmp_path / "again", threads=1)
    smaller = api.distill(run=tmp_path / "again", student="half", **SHORT)
    assert dict(read_spec(smaller.directory / "model.safetensors").kept)["conv1"] == (2, 1, 1)
    with pytest.raises(ConfigError, match="channels were cut; decompose the layers first"):
        api.compress(run=tmp_path / "again", threads=1)


def test_without_inheritance_a_cut_student_has_random_weights(own: Path) -> None:
    before = sha256s(own / "teacher")
    expected = cut_to(load_classifier(own / "teacher"), HALF).classifier
    starts = {}
    for inherit in (True, False):
        made = api.distill(run=own, student="half", inherit=inherit, name=f"{inherit}", **{**SHORT, "lr": 1e-9})
        starts[inherit] = load_classifier(made.directory)
        assert made.manifest.metrics["inherited"] is inherit
        assert starts[inherit].spec == expected.spec
    torch.testing.assert_close(starts[True].network.fc1.weight, expected.network.fc1.weight, atol=1e-5, rtol=0)
    assert float((starts[False].network.fc1.weight - expected.network.fc1.weight).abs().max()) > 0.01
    assert sha256s(own / "teacher") == before


def test_half_of_an_architecture_with_a_width_is_its_narrower_copy(tmp_path: Path) -> None:
    api.train(run=tmp_path / "run", epochs=1, threads=1, model="lenet5_bn")
    options = {**SHORT, "run": tmp_path / "run"}
    made = api.distill(student="half", **options)
    assert made.directory.name == "lenet5_bn-half"
    assert made.manifest.metrics["student"] == "lenet5_bn(width=0.5)"
    cut = api.distill(student="width:0.5", name="cut", **options)
    assert cut.manifest.metrics["student"] == "lenet5_bn"
    narrow, student = load_classifier(made.directory), load_classifier(cut.directory)
    assert student.num_parameters == narrow.num_parameters
    assert cut.manifest.budget["images"] == made.manifest.budget["images"] + NUM_IMAGES, "for batch normalization"


def test_interrupted_it_ends_with_the_same_bytes_and_estimates_statistics_once(
    own: Path, saves_until_crash: Callable[[], list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = api.distill(run=own, student="macs:0.5", name="straight", **SHORT)
    estimated = []
    usual = batch_norm.estimate_batch_norm

    def counted(student: Classifier, *arguments: Any) -> None:
        usual(student, *arguments)
        estimated.append(encode_classifier(student))

    monkeypatch.setattr(batch_norm, "estimate_batch_norm", counted)
    left = saves_until_crash()
    for stop in (3, 4):
        left[0] = stop
        with pytest.raises(Crash):
            api.distill(run=own, student="macs:0.5", name="resumed", **SHORT)
    left[0] = 10_000
    resumed = api.distill(run=own, student="macs:0.5", name="resumed", **SHORT)
    assert len(estimated) == 1
    assert sha256s(resumed.directory) == sha256s(straight.directory)
    assert read_manifest(resumed.directory).budget["attempts"] == 3
    assert resumed.manifest.metrics["num_images"] == straight.manifest.metrics["num_images"]


def test_blocks_of_a_cut_student_are_matched_unless_switched_off(here: Here, model: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    api.import_model(model=f"{model}:Blocks", input_size="1x8x8", run=tmp_path / "run", threads=1)
    options = ["--data", "noise:uniform", "--steps", "12", "--batch-size", "16", "--threads", "1"]
    done = here("distill", "--student", "half", *options, "--run", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert "--match-blocks 30: 2 blocks (stage.0, stage.1)" in done.stderr
    usual = read_manifest(tmp_path / "run" / "students" / "Blocks-half")
    blocks = ["stage.0", "stage.1"]
    assert usual.metrics["matched_blocks"] == {"weight": 30.0, "teacher": blocks, "student": blocks}
    ends = []
    for weight in (30.0, 3.0, 0.0):
        made = api.distill(run=tmp_path / "run", student="half", name=f"s{weight}", match_blocks=weight, **SHORT)
        ends.append(sha256s(made.directory)["model.safetensors"])
        assert ("matched_blocks" in made.manifest.metrics) is (weight > 0)
        blank = 2 * (weight == 0)
        assert made.manifest.budget["teacher_queries"] == usual.budget["teacher_queries"] - blank
    assert ends[0] == sha256s(tmp_path / "run" / "students" / "Blocks-half")["model.safetensors"]
    assert len(set(ends)) == 3


def test_single_layers_and_cut_channels_are_matched_with_a_weight_alone(own: Path) -> None:
    usual, given = (api.distill(run=own, student="half", name=f"w{w}", match_blocks=w, **SHORT) for w in (None, 3.0))
    assert "matched_blocks" not in usual.manifest.metrics
    assert given.manifest.metrics["matched_blocks"]["teacher"] == ["bn", "conv2", "fc1"]


def test_weights_of_blocks_that_cannot_be_matched_are_refused(own: Path, model: Path) -> None:
    student = f"{model}:Linear"
    made = api.distill(run=own, student=student, **SHORT)
    assert "matched_blocks" not in made.manifest.metrics
    with pytest.raises(ConfigError, match="no block of the student has the output shape"):
        api.distill(run=own, student=student, name="refused", match_blocks=1.0, **SHORT)
    assert not (own / "students" / "refused").exists()
