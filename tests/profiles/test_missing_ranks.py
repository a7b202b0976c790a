"""A run of which a rank's records are gone: what is said over all ranks is not known, and is not made up."""

from __future__ import annotations

from pathlib import Path

import pytest
from scalelab.profiles.analysis.compared import UnfitError, compared_run
from scalelab.profiles.analysis.load import load_run
from scalelab.profiles.analysis.summary import summarise
from scalelab.profiles.records import Record

from tests.profiles.test_summary import folder_with, run_json, step


def test_figures_over_ranks_are_null_and_name_the_missing_rank(tmp_path: Path) -> None:
    """Half the samples are not half the throughput."""
    ranks: list[list[Record]] = [[step(index, 1.0) for index in range(4)] for _ in range(2)]
    folder = folder_with(tmp_path, run_json(), *ranks)
    whole = summarise(load_run(folder))
    assert whole["throughput"]["samples_per_second"]
    folder.rank_file(1).unlink()
    found = summarise(load_run(folder))
    for path in ("throughput.samples_per_second", "step_seconds.mean", "cost.device_hours_per_million_samples", "loss"):
        part, _, name = path.partition(".")
        assert (found[part][name] if name else found[part]) is None, path
        assert "rank 1 " in found["reasons"][path], path
    with pytest.raises(UnfitError, match="records of rank 1"):
        compared_run(folder)
