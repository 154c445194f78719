"""Costs of all attempts of a stage: seconds, images that the teacher processed, memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Crash

from kdextract import api
from kdextract.models.queries import Queries
from kdextract.stages.running.attempts import Attempts, peak_memory, reset_peak_memory
from kdextract.storage.artifacts import partial_path


def test_costs_are_summed_and_memory_is_the_largest(tmp_path: Path) -> None:
    first = Attempts().with_one_more({"total": 2.0, "source": 1.0}, {"targets": 5}, {"host": 900})
    first.write(tmp_path)
    both = Attempts.read(tmp_path).with_one_more({"total": 3.5}, {"targets": 2, "probe": 4}, {"host": 800, "gpu": 7})
    record = both.record(first)
    assert record["seconds"] == {"total": 5.5, "source": 1.0, "earlier_attempts": 2.0}
    assert (record["attempts"], record["teacher_queries"]) == (2, 11)
    assert record["teacher_queries_by_purpose"] == {"targets": 7, "probe": 4}
    assert (record["peak_memory_mb"], record["peak_gpu_memory_mb"]) == (900, 7)
    (tmp_path / "attempts.json").write_bytes(b"{")
    assert Attempts.read(tmp_path) == Attempts()


def test_a_resumed_student_has_the_costs_of_all_attempts(
    run_copy: Path, saves_until_crash: Callable[[], list[int]]
) -> None:
    options = {"run": run_copy, "data": "all_layers", "steps": 12, "batch_size": 10, "name": "made", "threads": 1}
    left = saves_until_crash()
    left[0] = 5
    with pytest.raises(Crash):
        api.distill(**options)
    kept = Attempts.read(partial_path(run_copy / "students" / "made"))
    assert (kept.number, kept.queries) == (1, {"blank": 1, "probe": 4, "targets": 50})
    assert kept.seconds["total"] >= kept.seconds["distillation"] >= kept.seconds["synthesis"] > 0
    left[0] = 10_000
    budget = api.distill(**options).manifest.budget
    assert budget["attempts"] == 2
    by_purpose = budget["teacher_queries_by_purpose"]
    assert by_purpose == {"blank": 2, "probe": 8, "targets": 120}, "held-out images are shown again"
    assert budget["teacher_queries"] == 130
    assert budget["seconds"]["total"] > budget["seconds"]["earlier_attempts"] == round(kept.seconds["total"], 2)


def test_the_outermost_purpose_counts() -> None:
    queries = Queries()
    queries.add(1)
    with queries.purpose("trial"):
        queries.add(2)
        with queries.purpose("targets"):
            queries.add(3)
        queries.add(4, "blank")
    queries.add(5, "blank")
    assert queries.counts == {"synthesis": 1, "trial": 9, "blank": 5}
    assert queries.total == 15


def test_a_gpu_has_a_peak_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", forgotten.append)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 123_400_000)
    for name in ("cpu", "cuda:1"):
        reset_peak_memory(torch.device(name))
    assert forgotten == [torch.device("cuda:1")]
    assert peak_memory(torch.device("cuda:1"))["gpu"] == 123
    assert peak_memory(torch.device("cpu")).keys() == {"host"}
