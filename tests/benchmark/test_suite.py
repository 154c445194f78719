"""Suite files: their cells and commands, and one clear sentence for every error in a file."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import ROOT

from kdextract.benchmark.cells import plan_runs
from kdextract.benchmark.suite import read_suite
from kdextract.errors import ArtifactError, UsageError

BENCHMARKS = ROOT / "benchmarks"
SUITE = """
name = "small"
data = "mnist"
seeds = [3, 5]
threads = 2
[teachers.lenet]
model = "lenet"
input-size = "1x32x32"
[students.lenet_half]
teacher = "lenet"
lr = 1e-3
temperature = 2
[students.twin]
teacher = ["lenet"]
student = "lenet"
[budgets.short]
steps = 10
[budgets.long]
steps = 20
lr = 0.5
[methods.floor]
anchor = true
distill = { data = "noise:normal" }
[methods.all_layers]
compute_stats = { spectral = false }
optimize-dataset = { objective = "all_layers", images-per-class = 5, blur-every = 2 }
distill = { lr = 0.01, flip = true }
[methods.rare]
students = ["twin"]
budgets = ["short"]
seeds = [5]
distill = { data = "mnist", flip = false }
[[published]]
student = "twin"
accuracy = 92
text = "best of theirs"
source = "Table 1"
"""


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "suite.toml"
    path.write_text(text, encoding="utf-8")
    return path


def without(key: str) -> str:
    return "\n".join(line for line in SUITE.splitlines() if not line.startswith(key))


def test_the_cells_of_a_suite(tmp_path: Path) -> None:
    suite = read_suite(written(tmp_path, SUITE))
    assert (suite.title, suite.data, suite.seeds, suite.threads, suite.device) == ("small", "mnist", (3, 5), 2, None)
    assert suite.published[0].accuracy == 92
    runs = plan_runs(suite)
    assert [run.name for run in runs] == ["lenet-3", "lenet-5"]
    titles = [cell.title for run in runs for cell in run.cells]
    assert titles[:4] == [
        "lenet seed 3: lenet_half all_layers short",
        "lenet seed 3: lenet_half floor short",
        "lenet seed 3: lenet_half all_layers long",
        "lenet seed 3: lenet_half floor long",
    ], "anchors last"
    assert [title for title in titles if "rare" in title] == ["lenet seed 5: twin rare short"]
    assert len(titles) == 2 * 2 * 2 * 2 + 1


def test_the_commands_of_a_cell(tmp_path: Path) -> None:
    run = plan_runs(read_suite(written(tmp_path, SUITE)))[1]
    assert " ".join(run.train.line(2, "cuda")) == (
        "train --data mnist --model lenet --input-size 1x32x32 --seed 5 --run RUN --data-dir DIR "
        "--threads 2 --device cuda"
    )
    assert " ".join(run.evaluate.line(None, None)) == "evaluate teacher --seed 5 --run RUN --data-dir DIR"
    cell = next(cell for cell in run.cells if cell.title == "lenet seed 5: lenet_half all_layers long")
    lines = [" ".join(command.line(1, None)) for command in cell.commands]
    assert lines[0] == "compute-stats --no-spectral --seed 5 --run RUN --data-dir DIR --threads 1"
    assert lines[1] == (
        "optimize-dataset --objective all_layers --images-per-class 5 --blur-every 2 --name all_layers "
        "--seed 5 --run RUN --threads 1"
    )
    words = lines[2].split()
    assert words[words.index("--data") + 1] == "all_layers", "the set made just before"
    assert words[words.index("--snapshots") + 1] == "10"
    assert words[words.index("--lr") + 1] == "0.5", "the budget is laid over the method, and that over the student"
    assert words[words.index("--temperature") + 1] == "2"
    assert words[words.index("--steps") + 1] == "20"
    assert words[words.index("--name") + 1] == "lenet_half.all_layers.long"
    assert "--flip" in words
    assert lines[3].startswith("evaluate students/lenet_half.all_layers.long ")
    rare = next(cell for cell in run.cells if cell.method.name == "rare")
    assert "--no-flip" in rare.distill.words, "without it, the method decides"


def test_a_live_method_is_named_by_distill(tmp_path: Path) -> None:
    text = SUITE + '[methods.live]\ndistill = { method = "structured_noise", pool = 256 }\n'
    cell = next(
        c for run in plan_runs(read_suite(written(tmp_path, text))) for c in run.cells if c.method.name == "live"
    )
    assert "--method structured_noise --pool 256" in " ".join(cell.distill.words)
    assert "--data" not in cell.distill.words


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.toml")), ids=lambda path: path.name)
def test_shipped_suites_are_valid(path: Path) -> None:
    suite = read_suite(path)
    assert plan_runs(suite)
    anchors = {method.name for method in suite.methods.values() if method.anchor}
    assert anchors == {"ceiling", "floor"}


MISTAKES = {
    "no TOML": ("name = ", "not valid TOML"),
    "no name": (without("name"), "name is missing"),
    "empty name": (SUITE.replace('"small"', '" "'), "name is empty"),
    "unsafe name": (SUITE.replace('"small"', '"../x"'), "'../x' is not a name"),
    "unsafe method": (SUITE.replace("[methods.rare]", '[methods."a/b"]'), "'a/b' is not a name"),
    "long names": (SUITE.replace("[methods.rare]", f"[methods.{'a' * 60}]"), "too long together"),
    "unknown key": (SUITE.replace("threads", "treads"), "unknown key 'treads'. Did you mean 'threads'?"),
    "unknown table": (SUITE + "[extra]\nx = 1", "unknown key 'extra'"),
    "seeds of texts": (SUITE.replace("[3, 5]", '["a"]'), "seeds must be a list of whole numbers"),
    "seeds twice": (SUITE.replace("[3, 5]", "[3, 3]"), "twice"),
    "no seeds": (SUITE.replace("[3, 5]", "[]"), "seeds must be a list of whole numbers"),
    "threads as text": (SUITE.replace("threads = 2", 'threads = "2"'), "threads must be a whole number"),
    "no threads": (SUITE.replace("threads = 2", "threads = 0"), "threads must be at least 1, got 0"),
    "threads as flag": (SUITE.replace("threads = 2", "threads = true"), "threads must be a whole number"),
    "data as number": (SUITE.replace('data = "mnist"\nseeds', "data = 1\nseeds"), "data must be a string"),
    "no teachers": (SUITE.replace("[teachers.lenet]", "[x.y]"), "no [teachers.NAME] table"),
    "teacher is no table": ('name = "a"\n[teachers]\nlenet = 1', "teachers.lenet must be a table"),
    "unknown train option": (SUITE.replace("input-size", "input-siz"), "Did you mean 'input_size'?"),
    "unknown teacher": (SUITE.replace('teacher = "lenet"', 'teacher = "lenett"'), "Did you mean 'lenet'?"),
    "no teacher": (without("teacher = "), "[students.lenet_half]: the teacher is missing"),
    "teachers of numbers": (SUITE.replace('["lenet"]', "[1]"), "must be a list of names"),
    "unknown distill option": (SUITE.replace("lr = 1e-3", "lrr = 1e-3"), "'lrr' of kdx distill. Did you mean 'lr'?"),
    "rate is a text": (SUITE.replace("lr = 1e-3", 'lr = "high"'), "[students.lenet_half]: lr must be a number"),
    "steps are no whole number": (SUITE.replace("steps = 10", "steps = 1.5"), "steps must be a whole number"),
    "flag is a number": (SUITE.replace("flip = true", "flip = 1"), "[methods.all_layers], distill: flip must be true"),
    "steps out of range": (SUITE.replace("steps = 10", "steps = 0"), "[budgets.short]: --steps must be at least 1"),
    "rate out of range": (SUITE.replace("lr = 0.5", "lr = 0"), "[budgets.long]: --lr must be above 0"),
    "no budgets": (SUITE.replace("[budgets.", "[students.x."), "[budgets.NAME]"),
    "seed is the benchmark's": (SUITE.replace("steps = 10", "seed = 10"), "seed is set by the benchmark itself"),
    "name is the benchmark's": (SUITE.replace("steps = 10", 'name = "a"'), "name is set by the benchmark itself"),
    "unknown objective": (SUITE.replace('objective = "all_layers"', 'objective = "all_layer"'), "'all_layers'"),
    "option of another objective": (SUITE.replace("blur-every = 2", "keep_input = 0.5"), "unknown option 'keep_input'"),
    "method option of wrong type": (
        SUITE.replace("blur-every = 2", 'blur-every = "no"'),
        "blur_every must be a whole number",
    ),
    "removed option": (SUITE.replace("blur-every = 2", "clip = false"), "--clip was removed: pixels are always"),
    "unknown live method": (
        SUITE + '[methods.b]\ndistill = { method = "noise" }\n',
        "unknown value 'noise' of --method",
    ),
    "option without its method": (
        SUITE.replace("[methods.rare]", "[methods.rare]\n[methods.rare.distill]\npool = 2\n[x]"),
        "'pool'",
    ),
    "unknown stage": (SUITE.replace("compute_stats =", "compute_stat ="), "Did you mean 'compute_stats'?"),
    "stage is no table": (SUITE.replace("compute_stats = { spectral = false }", "compute_stats = 1"), "a table"),
    "nothing to do": (
        SUITE + "[methods.idle]\n",
        "[methods.idle] and [budgets.short]: the source of images is missing",
    ),
    "unknown student": (SUITE.replace('students = ["twin"]', 'students = ["twim"]'), "Did you mean 'twin'?"),
    "unknown budget": (SUITE.replace('budgets = ["short"]', 'budgets = ["shor"]'), "Did you mean 'short'?"),
    "unknown seed": (SUITE.replace("seeds = [5]", "seeds = [4]"), "seed 4 is none of the suite's: 3, 5"),
    "two kinds of statistics": (
        SUITE + "[methods.b]\ncompute_stats = {}\noptimize_dataset = {}\n",
        "different options of compute_stats",
    ),
    "options that clash": (
        SUITE.replace("lr = 0.01", 'loss = "mse"'),
        "[students.lenet_half] with [methods.all_layers] and [budgets.short]: --temperature",
    ),
    "published without source": (without("source"), "[[published]] 1: source is missing"),
    "published for nobody": (SUITE.replace('student = "twin"', 'student = "twn"'), "Did you mean 'twin'?"),
    "published above 100": (SUITE.replace("accuracy = 92", "accuracy = 920"), "accuracy must be in [0, 100]"),
    "published is no list": (without("[[published]]") + "\n[published]\na = 1", "unknown key"),
}


@pytest.mark.parametrize(("text", "says"), MISTAKES.values(), ids=MISTAKES.keys())
def test_every_mistake_is_one_sentence(tmp_path: Path, text: str, says: str) -> None:
    assert text != SUITE, "the mistake is there"
    with pytest.raises(UsageError) as caught:
        plan_runs(read_suite(written(tmp_path, text)))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value).strip()


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        read_suite(tmp_path / "no.toml")
    with pytest.raises(ArtifactError, match="is not a file"):
        read_suite(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageError, match="not valid TOML"):
        read_suite(tmp_path / "binary.toml")


def test_generators_and_compressed_students(tmp_path: Path) -> None:
    text = """
name = "made"
seeds = [1]
[teachers.lenet5]
model = "lenet5"
[students.small]
teacher = "lenet5"
compress = { preset = "kegnet-1" }
[students.half]
teacher = "lenet5"
student = "lenet5_half"
[budgets.short]
steps = 10
[methods.fresh]
train_generator = { method = "kegnet", generators = 2 }
[methods.stored]
train_generator = { method = "keflow", samples = 10 }
generate = { images-per-class = 5 }
"""
    (run,) = plan_runs(read_suite(written(tmp_path, text)))
    lines = {cell.title: [" ".join(c.line(None, None)) for c in cell.commands] for cell in run.cells}
    small, half = (lines[f"lenet5 seed 1: {student} fresh short"] for student in ("small", "half"))
    assert small[:3] == [
        "train-generator kegnet --generators 2 --name fresh --seed 1 --run RUN --data-dir DIR",
        "compress --preset kegnet-1 --name small --seed 1 --run RUN",
        "distill --data fresh --snapshots 10 --student compressed/small --steps 10 --name small.fresh.short --seed 1 "
        "--run RUN --data-dir DIR",
    ]
    assert half[0] == small[0]
    assert "--student lenet5_half" in half[1]
    stored = lines["lenet5 seed 1: half stored short"]
    assert stored[0].startswith("train-generator keflow --samples 10 --name stored")
    assert stored[1] == "generate stored --images-per-class 5 --name stored --seed 1 --run RUN"
    assert "--data transfer-sets/stored" in stored[2]


def test_a_generator_without_its_method_is_refused(tmp_path: Path) -> None:
    text = SUITE.replace("compute_stats = { spectral = false }", "train_generator = { steps = 3 }")
    with pytest.raises(UsageError, match=r"train_generator.*method is missing"):
        read_suite(written(tmp_path, text))
