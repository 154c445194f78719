"""The suite file of `kdx benchmark`: TOML, checked completely before the first command runs."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from ..errors import ArtifactError, UsageError, from_os_error
from ..stages import STAGES
from .suite_options import Options, stage_options
from .toml_reader import Table

SEEDS = tuple(range(5))
SNAPSHOTS = 10
MAX_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
BETWEEN = tuple(name for name in STAGES if name not in ("train", "compress", "prune", "distill", "evaluate"))


@dataclass(frozen=True)
class Teacher:
    """A teacher; `options` are those of `kdx train`."""

    name: str
    options: Options


@dataclass(frozen=True)
class Student:
    """A student and the names of its teachers; `options` of `kdx distill` apply to every method.

    With `compress`, options of `kdx compress`, the student is initialized with the compressed teacher.
    """

    name: str
    teachers: tuple[str, ...]
    options: Options
    compress: Options | None = None


@dataclass(frozen=True)
class Budget:
    """The budget of a student: `options` of `kdx distill`, which override those of student and method."""

    name: str
    options: Options


@dataclass(frozen=True)
class SuiteMethod:
    """One way to get a student.

    `before` lists the stages to run first, in the order of the pipeline, with their options; `distill` holds options
    of `kdx distill`. An `anchor` (ceiling, floor) is listed last in every table. `students`, `budgets` and `seeds`
    restrict the method to some of the suite; None means all.
    """

    name: str
    anchor: bool
    before: tuple[tuple[str, Options], ...]
    distill: Options
    students: tuple[str, ...] | None
    budgets: tuple[str, ...] | None
    seeds: tuple[int, ...] | None


@dataclass(frozen=True)
class Published:
    """A published figure for a student: `accuracy` in percent, its description and its source."""

    student: str
    accuracy: float
    text: str
    source: str


@dataclass(frozen=True)
class Suite:
    """A suite: `data` is the data set of training and evaluation; each seed has one run per teacher.

    `threads` and `device` are passed to every command that has the option; None for the defaults of kdx. `snapshots` is
    the number of snapshots of each student that are scored for the curves; 0 for none.
    """

    name: str
    title: str
    data: str
    seeds: tuple[int, ...]
    threads: int | None
    device: str | None
    snapshots: int
    teachers: dict[str, Teacher]
    students: dict[str, Student]
    budgets: dict[str, Budget]
    methods: dict[str, SuiteMethod]
    published: tuple[Published, ...]


def read_suite(path: Path) -> Suite:
    """Return the suite of a TOML file.

    Raises:
        ArtifactError: the file does not exist, or is a directory.
        UsageError: it is not TOML, or something in it is unknown, missing, of the wrong type or out of range; the
            message names the table and key and, for a name, the most similar one.
    """
    try:
        record = tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        raise ArtifactError(f"the suite {path} does not exist") from error
    except (IsADirectoryError, NotADirectoryError) as error:
        raise ArtifactError(f"the suite {path} is not a file") from error
    except OSError as error:
        raise from_os_error(error) from error
    except ValueError as error:  # TOMLDecodeError and UnicodeDecodeError are kinds of it
        raise UsageError(f"the suite {path} is not valid TOML: {error}") from error
    try:
        return _read_tables(Table(record, ""))
    except UsageError as error:
        raise UsageError(f"{path.name}: {error}") from error


def _read_tables(table: Table) -> Suite:
    name = table.text("name")
    _check_name(name, "name")
    threads = table.integer("threads", None, 1)
    device = table.text("device", "")
    seeds = table.integers("seeds") or SEEDS
    teachers = {key: Teacher(key, _read_options("train", entry)) for key, entry in _named_tables(table, "teachers")}
    budgets = {key: Budget(key, _read_options("distill", entry)) for key, entry in _named_tables(table, "budgets")}
    students = {key: _read_student(key, entry, list(teachers)) for key, entry in _named_tables(table, "students")}
    methods = {
        key: _read_method(key, entry, list(students), list(budgets), seeds)
        for key, entry in _named_tables(table, "methods")
    }
    suite = Suite(
        name=name,
        title=table.text("title", name),
        data=table.text("data", "digits"),
        seeds=seeds,
        threads=threads,
        device=device or None,
        snapshots=table.integer("snapshots", SNAPSHOTS, 0) or 0,
        teachers=teachers,
        students=students,
        budgets=budgets,
        methods=methods,
        published=tuple(_read_published(entry, list(students)) for entry in table.list_of_tables("published")),
    )
    table.close()
    _check_together(suite)
    return suite


def _named_tables(table: Table, kind: str) -> list[tuple[str, Table]]:
    """Return the tables `[kind.NAME]`. Raises `UsageError` if there is none."""
    entries = table.tables(kind)
    if not entries:
        raise UsageError(f"no [{kind}.NAME] table; a suite needs at least one")
    for name, _ in entries:
        _check_name(name, f"[{kind}.{name}]")
    return entries


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME:
        raise UsageError(
            f"{where}: {name!r} is not a name: letters, digits, '.', '_' and '-' (at most {MAX_NAME}), "
            "starting with a letter or digit"
        )


def _read_options(stage: str, table: Table) -> Options:
    return stage_options(stage, table.rest(), table.where)


def _read_student(name: str, table: Table, teachers: list[str]) -> Student:
    of = table.names("teacher", teachers, or_one=True)
    if of is None:
        raise UsageError(f"{table.where}: the teacher is missing; name one of: {', '.join(teachers)}")
    compress = table.table("compress")
    if compress is None:
        return Student(name, of, {"student": name} | _read_options("distill", table))
    start = {"student": f"compressed/{name}"}
    return Student(name, of, start | _read_options("distill", table), _read_options("compress", compress))


def _read_method(
    name: str, table: Table, students: list[str], budgets: list[str], seeds: tuple[int, ...]
) -> SuiteMethod:
    distill = table.table("distill")
    before = [(stage, table.table(stage.replace("-", "_"))) for stage in BETWEEN]
    only_seeds = table.integers("seeds")
    unknown = [seed for seed in only_seeds or () if seed not in seeds]
    if unknown:
        raise UsageError(f"{table.where}: seed {unknown[0]} is none of the suite's: {', '.join(map(str, seeds))}")
    method = SuiteMethod(
        name=name,
        anchor=table.flag("anchor"),
        before=tuple((stage, _read_options(stage, entry)) for stage, entry in before if entry is not None),
        distill={} if distill is None else _read_options("distill", distill),
        students=table.names("students", students),
        budgets=table.names("budgets", budgets),
        seeds=only_seeds,
    )
    table.close()
    return method


def _read_published(table: Table, students: list[str]) -> Published:
    (student,) = table.names("student", students, or_one=True) or ("",)
    if not student:
        raise UsageError(f"{table.where}: the student is missing; name one of: {', '.join(students)}")
    published = Published(student, table.number("accuracy", 0, 100), table.text("text"), table.text("source"))
    table.close()
    return published


def _check_together(suite: Suite) -> None:
    """Raise `UsageError` for tables that contradict each other."""
    longest = [max(names, key=len) for names in (suite.students, suite.methods, suite.budgets)]
    if len(".".join(longest)) > MAX_NAME:
        raise UsageError(f"the names {', '.join(longest)} are too long together: at most {MAX_NAME - 2} characters")
    statistics = [(m.name, options) for m in suite.methods.values() for s, options in m.before if s == "compute-stats"]
    for name, options in statistics:
        if options != statistics[0][1]:
            raise UsageError(
                f"[methods.{name}] and [methods.{statistics[0][0]}] have different options of compute_stats; "
                "a teacher has one set of statistics"
            )
