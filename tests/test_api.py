"""`kdextract.api`: the commands as functions, their results, and that they do not change the process."""

from __future__ import annotations

import inspect
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from conftest import ROOT, environment, kdx, sha256s
from PIL import Image
from typer.main import get_command

import kdextract
from kdextract import api
from kdextract.cli import app as cli
from kdextract.errors import ArtifactError, ConfigError, DivergedError, GateError, UsageError
from kdextract.models.classifier import Classifier, compile_network
from kdextract.options.entries import OutputOptions, option_fields
from kdextract.stages.running.html import Record
from kdextract.stages.running.outcome import Outcome
from kdextract.stages.running.process_state import CUBLAS, process_as_it_was

CLICK = get_command(cli.app).commands  # type: ignore[attr-defined]
SPEECH = {declared.name for declared in option_fields(OutputOptions)} | {"help"}
FUNCTIONS = [name for name in api.__all__ if name != "load_classifier"]
CALLBACKS = {registered.name: registered.callback for registered in cli.app.registered_commands}


# ---- help ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLICK)
def test_no_help_gives_none_as_a_default(name: str) -> None:
    for parameter in CLICK[name].params:
        told = f"{getattr(parameter, 'help', '') or ''} [{parameter.default if parameter.show_default else ''}]"
        assert not re.search(r"\bNone\b", told), f"{name} {parameter.name}: {told}"


@pytest.mark.parametrize(
    ("command", "option", "defaults"),
    [
        ("distill", "bn", "Default: by --preset: cifar 10, imagenet 0.01, small 10; dfq: 1; fast, nayer: 10."),
        ("distill", "student_steps", "Default: 10; dafl: 1; dfad: 5."),
        ("distill", "compete", "Default: by --preset: cifar 10, imagenet 0.2, small 100; "
         "fast: 1.1; nayer: 1.33."),
        ("optimize-dataset", "lr",
         "Default: 0.3; adaptive_deep_inversion, deep_dream, deep_inversion: by --preset: cifar 0.05, imagenet 0.25, "
         "small 0.3; top_layer: 0.02."),
    ],
)  # fmt: skip
def test_help_gives_the_default_of_every_method(command: str, option: str, defaults: str) -> None:
    (parameter,) = [parameter for parameter in CLICK[command].params if parameter.name == option]
    assert defaults in parameter.help


# ---- the same commands with the same options -----------------------------------------------------------------------


def test_every_command_is_a_function_and_every_function_a_command() -> None:
    assert [name.replace("-", "_") for name in CLICK] == FUNCTIONS
    assert set(dir(api)) == set(api.__all__)
    for name in FUNCTIONS:
        assert getattr(api, name) is getattr(api, name)
        assert (getattr(api, name).__name__, getattr(api, name).__module__) == (name, "kdextract.api")


@pytest.mark.parametrize("command", CLICK)
def test_a_function_has_the_options_of_its_command(command: str) -> None:
    function, callback = getattr(api, command.replace("-", "_")), CALLBACKS[command]
    parameters = inspect.signature(function).parameters
    typed = {parameter.name: parameter for parameter in CLICK[command].params if parameter.name not in SPEECH}
    assert parameters.keys() == typed.keys()
    for name, parameter in parameters.items():
        in_click = typed[name]
        assert (parameter.default is parameter.empty) == in_click.required, name
        if not in_click.required:
            assert parameter.default == in_click.default, name
        assert parameter.annotation == get_args(callback.__annotations__[name])[0], name
        positional = in_click.param_type_name == "argument"
        assert parameter.kind == (parameter.POSITIONAL_OR_KEYWORD if positional else parameter.KEYWORD_ONLY), name
        assert f"    {name} (" in function.__doc__
        assert in_click.help in function.__doc__
    assert "Returns:" in function.__doc__


def test_the_package_itself_has_the_version_and_the_loader() -> None:
    assert kdextract.__all__ == ["__version__", "load_classifier"]
    assert kdextract.load_classifier is api.load_classifier
    assert set(kdextract.__all__) <= set(dir(kdextract))
    for name in ("train", "_anything"):
        with pytest.raises(AttributeError, match=rf"'{name}'; commands are functions of kdextract\.api"):
            getattr(kdextract, name)
    with pytest.raises(AttributeError, match="Did you mean 'train'"):
        _ = api.trian


def test_importing_loads_no_torch_and_packages_stay_packages() -> None:
    script = (
        "import sys, kdextract\n"
        "assert not {'typer', 'torch', 'numpy'} & set(sys.modules)\n"
        "import kdextract.api as kdx\n"
        "kdx.train\n"
        "kdx.methods(run='none'), kdx.runs('none')\n"
        "assert 'torch' not in sys.modules\n"
        "import kdextract.models.architectures, kdextract.methods, kdextract.benchmark\n"
        "assert callable(kdx.models) and not callable(kdextract.models) and not callable(kdextract.benchmark)\n"
    )
    subprocess.run([sys.executable, "-c", script], env=environment(), check=True)


# ---- arguments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: api.train(epoch=3), "unknown option 'epoch'. Did you mean 'epochs'"),
        (lambda: api.show(artefact="teacher"), "unknown option 'artefact'. Did you mean 'artifact'"),
        (lambda: api.train(json=True), "unknown option 'json'"),
        (lambda: api.optimize_dataset(methode_options={}), "unknown option"),
        (lambda: api.train("digits"), "train takes at most 0 argument"),
        (lambda: api.show("teacher", "students/a"), "show takes at most 1 argument"),
        (lambda: api.show("teacher", artifact="teacher"), "artifact is given twice"),
        (lambda: api.train_generator(), "method is missing"),
        (lambda: api.train(epochs="3"), "epochs must be a whole number, got '3'"),
        (lambda: api.train(epochs=True), "epochs must be a whole number, got True"),
        (lambda: api.train(seed=None), "seed must be a whole number, got None"),
        (lambda: api.train(lr="fast"), "lr must be a number, got 'fast'"),
        (lambda: api.train(data=3), "data must be a string, got 3"),
        (lambda: api.train(run=3), "run must be a path, got 3"),
        (lambda: api.benchmark("a.toml", only=[3]), "only must be a list of strings"),
        (lambda: api.train(epochs=0), "--epochs must be at least 1"),
        (lambda: api.optimize_dataset(objective="all_layers", bn=1.0, dry_run=True), "--bn has no effect"),
    ],
)
def test_errors_of_a_call_are_usage_errors(call: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert sentence in str(caught.value)


def test_values_come_in_the_types_of_the_command_line(teacher_run: Path) -> None:
    image_file = teacher_run / "teacher" / "model.safetensors"
    made = api.train(run=str(teacher_run), epochs=np.int64(1), lr=1, threads=1, force=True, weight_decay=None)
    assert made.manifest is not None
    assert (made.manifest.config["epochs"], made.manifest.config["lr"]) == (1, 1.0)
    assert [type(made.manifest.config[name]) for name in ("epochs", "lr")] == [int, float]
    planned = api.distill(run=teacher_run, student=image_file, dry_run=True, pool=None)
    assert planned.directory == teacher_run / "students" / "teacher"


def test_the_argument_without_a_name(finished_run: Path) -> None:
    assert api.show("teacher", run=finished_run) == api.show(artifact="teacher", run=str(finished_run))
    assert api.runs(str(finished_run.parent)) == api.runs(folder=finished_run.parent)
    planned = api.train_generator("kegnet", run=finished_run, dry_run=True)
    assert planned.directory == finished_run / "generators" / "kegnet"


# ---- results -------------------------------------------------------------------------------------------------------


def outcome_of(stage: str, run: Path) -> Outcome:
    """Return the outcome of a stage of the finished run, which is not run again."""
    options: dict[str, dict[str, Any]] = {
        "train": {"epochs": 3},
        "optimize_dataset": {"objective": "all_layers", "images_per_class": 4, "batch_size": 20, "steps": 3},
        "distill": {"steps": 20, "student": "lenet_half"},
        "evaluate": {},
    }
    outcome = getattr(api, stage)(run=run, threads=1, **options[stage])
    assert isinstance(outcome, Outcome)
    assert outcome.status == "cached"
    return outcome


def test_an_outcome_has_files_pictures_images_and_a_classifier(finished_run: Path) -> None:
    images = outcome_of("optimize_dataset", finished_run)
    assert images.files["grid.png"] == images.directory / "grid.png"
    assert {path.name for path in images.directory.iterdir()} == {*images.files, "manifest.json"}
    assert isinstance(images.picture(), Image.Image)
    with Image.open(images.files["grid.png"]) as grid:
        assert images.picture() == images.picture("grid.png") == grid
    assert images.images().shape == (40, 1, 32, 32)
    assert images.images().dtype == np.uint8
    student = outcome_of("distill", finished_run)
    classifier = student.classifier()
    assert isinstance(classifier, Classifier)
    assert classifier.num_parameters == student.metrics["num_parameters"]
    assert classifier(torch.from_numpy(images.images()) / 255).shape == (40, 10)
    assert student.metrics["steps"] == 20
    assert outcome_of("evaluate", finished_run).picture().size > (100, 100), "another picture where there is no grid"
    assert repr(student) == f"<student cached: {student.directory}>"


def test_an_outcome_names_what_it_does_not_have(finished_run: Path) -> None:
    teacher, images = outcome_of("train", finished_run), outcome_of("optimize_dataset", finished_run)
    for call, sentence in (
        (teacher.picture, "teacher has no pictures"),
        (teacher.images, "teacher has no images.npy"),
        (images.classifier, "has no model.safetensors"),
        (lambda: images.picture("gird.png"), "Did you mean 'grid.png'"),
    ):
        with pytest.raises(ConfigError, match=sentence):
            call()
    planned = api.train(run=finished_run, dry_run=True)
    assert (planned.files, planned.metrics, planned.status) == ({}, {}, "planned")
    with pytest.raises(ConfigError, match="only planned"):
        planned.classifier()


def test_files_of_an_outcome_are_checked(run_copy: Path) -> None:
    images, student = outcome_of("optimize_dataset", run_copy), outcome_of("distill", run_copy)
    for name, outcome in (("grid.png", images), ("images.npy", images), ("model.safetensors", student)):
        content = bytearray(outcome.files[name].read_bytes())
        content[-1] ^= 1
        outcome.files[name].write_bytes(content)
    for call in (images.picture, images.images, student.classifier):
        with pytest.raises(ArtifactError, match="was changed: its sha256 differs"):
            call()
    assert "<img" not in images._repr_html_()


def test_a_notebook_draws_an_outcome_and_everything_is_escaped(finished_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished_run, tmp_path / "<i>&'run\"")
    html = outcome_of("optimize_dataset", run)._repr_html_()
    assert "<i>" not in html
    assert "&lt;i&gt;&amp;" in html
    assert html.count("<img") == 1
    assert 'src="data:image/png;base64,' in html
    assert "<td>num images</td><td>40</td>" in html
    assert "<img" not in outcome_of("train", run)._repr_html_()
    shown = api.show(run=run)._repr_html_()
    assert "<i>" not in shown
    assert "&lt;i&gt;&amp;" in shown
    assert "<td>teacher</td>" in shown
    assert Record(a="<b>", rows=[{"<c>": "<d>"}])._repr_html_().count("&lt;") == 3


def test_commands_that_only_read_return_what_json_prints(finished_run: Path, tmp_path: Path) -> None:
    import json

    where: dict[str, tuple[str, ...]] = {
        "show": ("--run", str(finished_run)),
        "verify": ("--run", str(finished_run)),
        "methods": ("--run", str(finished_run)),
    }
    for name, options in where.items():
        printed = json.loads(kdx(name, *options, "--json", cwd=tmp_path).stdout)
        returned = getattr(api, name)(run=finished_run)
        assert isinstance(returned, Record)
        assert json.loads(json.dumps(returned)) == printed
        assert "<table>" in returned._repr_html_()


def test_failed_checks_are_exceptions(run_copy: Path) -> None:
    with pytest.raises(GateError):
        api.evaluate(run=run_copy, min_accuracy=1.0, threads=1)
    (run_copy / "teacher" / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"model\.safetensors"):
        api.verify(run=run_copy)


@pytest.mark.slow
def test_demo_and_benchmark_return_their_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kdextract.cli import demo
    from kdextract.stages import train

    monkeypatch.setattr(demo, "DISTILL_STEPS", 2)
    small = {"optimize-dataset": {"images_per_class": 2}, "train": {"epochs": 1}}
    run_stage = demo.run_stage

    def run_small(stage: Any, config: Any, reporter: Any) -> Outcome:
        values = {declared.name: getattr(config, declared.name) for declared in option_fields(config)}
        return run_stage(stage, stage.config(**values | small.get(stage.name, {})), reporter)

    monkeypatch.setattr(demo, "run_stage", run_small)
    result = api.demo(run=tmp_path / "demo", threads=1)
    assert isinstance(result.outcomes["train"], Outcome)
    assert result.outcomes["train"].manifest.stage == train.STAGE.name
    assert result._repr_html_().count("<tr>") == 5
    assert "<img" in result._repr_html_()
    suite = ROOT / "benchmarks" / "digits.toml"
    cells = api.benchmark(suite, dry_run=True, only="lenet_half/*", work=str(tmp_path / "work"))
    assert cells["status"] == "planned"
    assert {cell["student"] for cell in cells["cells"]} == {"lenet_half"}
    assert "<table>" in cells._repr_html_()


# ---- the process is not changed ------------------------------------------------------------------------------------


def process_state() -> dict[str, Any]:
    """Return every setting of the process that a stage might change."""
    return {
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn_only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": repr(np.random.get_state()),
        "python": random.getstate(),
        "dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "gradients": torch.is_grad_enabled(),
        "cublas": os.environ.get(CUBLAS),
        "environment": {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"},
        "directory": os.getcwd(),
        "signals": (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)),
        "compiler": torch._dynamo.config.skip_nnmodule_hook_guards,
    }


@pytest.fixture
def odd_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The state of a process whose settings are not those of kdx, and that has drawn random numbers."""
    import torch._dynamo

    monkeypatch.delenv(CUBLAS, raising=False)
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn_only, hooks = torch.is_deterministic_algorithms_warn_only_enabled(), torch._dynamo.config
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(False)
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(17)
    torch.rand(3)
    np.random.seed(4)
    random.seed(5)
    hooks.skip_nnmodule_hook_guards = True
    try:
        with torch.no_grad():
            yield process_state()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        torch.set_num_threads(threads)


def test_calls_do_not_change_the_process(
    finished_run: Path, run_copy: Path, odd_settings: dict[str, Any], tmp_path: Path
) -> None:
    with torch.device("meta"):
        distilled = api.distill(run=run_copy, steps=20, student="lenet_half", threads=1, force=True)
    assert sha256s(distilled.directory) == sha256s(finished_run / "students" / "lenet_half"), "odd as they are"
    assert process_state() == odd_settings
    calls: list[Callable[[], Any]] = [
        lambda: api.distill(run=run_copy, dry_run=True, student=distilled.files["model.safetensors"]),
        lambda: api.distill(run=run_copy, dry_run=True, method="auto"),  # which looks at the teacher
        lambda: outcome_of("distill", run_copy).classifier(),
        lambda: api.load_classifier(distilled.files["model.safetensors"]),
        lambda: kdextract.load_classifier(str(distilled.files["model.safetensors"])),
        lambda: outcome_of("optimize_dataset", run_copy)._repr_html_(),
        lambda: api.show(run=run_copy),
        lambda: api.models(),
        lambda: api.methods(run=run_copy),
        lambda: api.verify(run=run_copy),
    ]
    for call in calls:
        call()
        assert process_state() == odd_settings


def test_a_failing_call_does_not_change_the_process(run_copy: Path, odd_settings: dict[str, Any]) -> None:
    for error, options in (
        (DivergedError, {"steps": 9, "lr": 1e30, "name": "a", "threads": 1}),
        (UsageError, {"device": "tpu", "name": "b", "threads": 1}),
        (UsageError, {"student": "lenet_haf"}),
        (ConfigError, {"steps": 3, "student": "lenet_half"}),
    ):
        with pytest.raises(error):
            api.distill(run=run_copy, **options)
        assert process_state() == odd_settings


def test_settings_are_kept_whatever_a_block_does(odd_settings: dict[str, Any]) -> None:
    def change_everything() -> None:
        assert torch.is_grad_enabled()
        assert torch.zeros(1).dtype == torch.float32
        assert torch.zeros(1).device.type == "cpu"
        compile_network(torch.nn.Linear(2, 2))
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.set_num_threads(1)
        os.environ[CUBLAS] = ":4096:8"
        np.random.rand(), random.random(), torch.rand(1)
        now = process_state()
        same = {name for name in now if now[name] == odd_settings[name]}
        assert same == {"default device", "directory", "signals"}
        with process_as_it_was():
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), torch.device("meta"), process_as_it_was():
        change_everything()
    assert process_state() == odd_settings


def test_two_threads_make_the_bytes_of_the_command(tmp_path: Path, odd_settings: dict[str, Any]) -> None:
    """In two threads at the same time, neither of which is the main thread."""
    made: dict[str, Outcome] = {}

    def work(name: str) -> None:
        made[name] = api.train(run=tmp_path / name, epochs=1, threads=1, seed=int(name))

    threads = [threading.Thread(target=work, args=(name,)) for name in ("0", "1")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert process_state() == odd_settings
    for seed in made:
        done = kdx("train", "--epochs", "1", "--threads", "1", "--seed", seed, "--run", "cli" + seed, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert sha256s(tmp_path / ("cli" + seed) / "teacher") == sha256s(made[seed].directory)
    assert len(made) == 2
    assert len({str(sha256s(outcome.directory)) for outcome in made.values()}) == 2
