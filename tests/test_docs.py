"""All code blocks of the pages of docs/ run, in order, in an empty directory."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, SPEAKS_OF_THE_MACHINE, environment, kdx

DOCS = ROOT / "docs"
LONG_PAGES = ["bring-your-own-model.md", "bring-your-own-data.md"]
PAGES = ["python.md", *(pytest.param(page, marks=pytest.mark.slow) for page in LONG_PAGES)]
HIDDEN = "<!-- run:"  # commands that a page needs and does not show, up to -->
_BLOCK = re.compile(rf"^(?:```(python|sh)\n(.*?)^```$|{HIDDEN}\n(.*?)^-->$)", re.MULTILINE | re.DOTALL)


def blocks(page: str) -> list[tuple[str, str, int]]:
    """Return (language, code, first line of the code) of everything on a page that is to be run."""
    found = []
    for match in _BLOCK.finditer(page):
        line = page.count("\n", 0, match.start()) + 2
        found.append((match[1] or "sh", match[2] if match[1] else match[3], line))
    return found


def run_page(path: Path, where: Path) -> dict[str, Any]:
    """Run the blocks of a page in the directory `where`, which is the current one; Python's share one namespace."""
    namespace: dict[str, Any] = {"__name__": "__main__"}
    scripts = Path(sys.executable).parent
    env = environment({"PATH": f"{scripts}:{environment().get('PATH', '')}"})
    for language, code, line in blocks(path.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile("\n" * (line - 1) + code, str(path), "exec"), namespace)
            continue
        commands = [shlex.split(words, comments=True) for words in code.splitlines()]
        if all(words[:1] == ["kdx"] for words in commands):  # then no shell is needed
            runs = (kdx(*words[1:], cwd=where) for words in commands)
        else:
            shell = ["bash", "-e", "-c", code]
            runs = iter([subprocess.run(shell, cwd=where, env=env, capture_output=True, text=True, check=False)])
        for done in runs:
            assert done.returncode == 0, f"{path.name}:{line}\n{code}\n{done.stderr}"
    return namespace


@pytest.fixture
def run_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], dict[str, Any]]:
    """`run_page` in an empty directory, without the kdx settings of this machine."""
    where = tmp_path / "page"
    where.mkdir()
    monkeypatch.chdir(where)
    for name in SPEAKS_OF_THE_MACHINE:
        monkeypatch.delenv(name, raising=False)
    return lambda path: run_page(path, where)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_runs(page: str, run_here: Callable[[Path], dict[str, Any]]) -> None:
    assert blocks((DOCS / page).read_text(encoding="utf-8"))
    run_here(DOCS / page)


PAGE = """
```python
x = 1
```
```
nothing
```
<!-- run:
echo hidden > file
-->
  text
```sh
cat file >> copy
```
```python
y = open("copy").read(), x
```
"""


def test_blocks_are_found_and_run_in_order(run_here: Callable[[Path], dict[str, Any]], tmp_path: Path) -> None:
    found = blocks(PAGE)
    assert [(language, line) for language, _, line in found] == [("python", 3), ("sh", 9), ("sh", 13), ("python", 16)]
    page = tmp_path / "page.md"
    page.write_text(PAGE, encoding="utf-8")
    assert run_here(page)["y"] == ("hidden\n", 1)


@pytest.mark.parametrize(
    ("text", "error"),
    [("```python\n1 / 0\n```", ZeroDivisionError), ("```sh\nfalse\ntrue\n```", AssertionError)],
)
def test_a_block_that_fails_fails_the_page(
    run_here: Callable[[Path], dict[str, Any]], tmp_path: Path, text: str, error: type[Exception]
) -> None:
    page = tmp_path / "page.md"
    page.write_text(text, encoding="utf-8")
    with pytest.raises(error):
        run_here(page)
