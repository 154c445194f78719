"""The README is right: its file tree, its commands, its options, its pipeline."""

from __future__ import annotations

import re

from conftest import ROOT
from typer.main import get_command

from kdextract.cli.app import app
from kdextract.methods import generator_names, live_names, objective_names

README = (ROOT / "README.md").read_text(encoding="utf-8")
PIPELINE = """kdx train
kdx compute-stats
kdx optimize-dataset --objective spectral_all_layers
kdx distill --student lenet_half
"""


def commands() -> dict[str, set[str]]:
    """Command name -> every spelling of its options."""
    group = get_command(app)
    return {
        name: {spelling for option in command.params for spelling in (*option.opts, *option.secondary_opts)}
        for name, command in group.commands.items()  # type: ignore[attr-defined]
    }


def paths_of(tree: str) -> list[str]:
    """Return the paths of an indented list; folders end in / and contain the lines that are indented below them."""
    paths: list[str] = []
    folders: list[tuple[int, str]] = []
    for indent, name in re.findall(r"^( *)(\S+)(?: .*)?$", tree, flags=re.MULTILINE):
        folders = [(depth, folder) for depth, folder in folders if depth < len(indent)]
        paths.append((folders[-1][1] if folders else "") + name)
        if name.endswith("/"):
            folders.append((len(indent), paths[-1]))
    return paths


def test_the_paths_of_a_tree_are_read() -> None:
    tree = "\na/       text b/\n  b/c.py\n  d/\n    e.py   text\nf/\n"
    assert paths_of(tree) == ["a/", "a/b/c.py", "a/d/", "a/d/e.py", "f/"]


def test_the_file_tree_is_the_package() -> None:
    """Every listed path exists and is listed once, and so is everything at the top of the package."""
    listed = paths_of(README.split("## Files")[1].split("```")[1])
    for path in listed:
        assert (ROOT / path).is_dir() if path.endswith("/") else (ROOT / path).is_file(), path
    assert len(set(listed)) == len(listed)
    package = ROOT / "kdextract"
    files = {path.name for path in package.glob("*.py")} - {"__main__.py"}
    folders = {f"{path.name}/" for path in package.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert {path.removeprefix("kdextract/") for path in listed if re.fullmatch(r"kdextract/[^/]+/?", path)} == (
        files | folders
    )


def test_every_path_of_the_architecture_page_exists() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`([a-z_/]+(?:\.py|/))`", page))
    assert len(paths) > 20
    for path in paths:
        assert (ROOT / path).exists() or (ROOT / "kdextract" / path).exists(), path


def test_the_pipeline_has_exactly_these_four_lines() -> None:
    assert PIPELINE in README
    assert PIPELINE in (ROOT / "examples" / "digits.sh").read_text(encoding="utf-8")


def test_every_command_and_option_of_the_readme_exists() -> None:
    known = commands()
    every_option = set().union(*known.values()) | {"--version", "--help"}
    for name in re.findall(r"`kdx ([a-z-]+)", README):
        assert name in known, name
    for line in re.findall(r"^(?:student=\$\()?kdx ([a-z-]+)(.*)$", README, flags=re.MULTILINE):
        name, rest = line
        assert name in known, name
        options = set(re.findall(r"(?<!\S)(--?[a-z][a-z-]*)", rest.split("#")[0].split("&&")[0].replace(")", "")))
        assert options <= known[name], (name, options - known[name])
    assert set(re.findall(r"`(--[a-z][a-z-]*)", README)) <= every_option


def test_every_method_is_described() -> None:
    methods = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for name in [*objective_names(), *generator_names(), *live_names()]:
        assert f"| `{name}` |" in README
        assert f"`{name}`" in methods


def test_the_exit_codes_are_the_errors() -> None:
    import kdextract.errors as errors

    codes = {str(kind.exit_code) for kind in vars(errors).values() if hasattr(kind, "exit_code")}
    table = README.split("## Exit codes")[1].split("## Files")[0]
    listed = set(re.findall(r"^\| ([\d, ]+) \|", table, flags=re.MULTILINE))
    assert codes | {"0", "130, 143"} == listed
