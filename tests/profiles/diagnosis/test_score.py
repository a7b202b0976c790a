"""The score of diagnoses, on verdicts made up: what is counted as right, and how far severities are off."""

from __future__ import annotations

from typing import Any

import pytest
from scalelab.launch.scenarios import scenarios

from tests.diagnosis_score import score
from tests.diagnosis_score.runs import HEALTHY_SEEDS, SCORED, TUNED_ON, Key, here, wanted


def said(label: str, share: float | None, step: float = 0.1) -> dict[str, Any]:
    rows = [] if share is None else [{"label": label, "severity_share": share}]
    return {"verdict": {"label": label, "severity_share": share, "step_seconds": step}, "findings": rows}


def key(seed: int, *, removed: bool = False, name: str = "slow_loader") -> Key:
    return Key(name, seed, 2, removed)


def test_right_and_wrong_are_counted_with_their_severity() -> None:
    diagnoses = {
        key(100): said("input_bound", 0.55),
        key(100, removed=True): said("healthy", None, step=0.05),
        key(101): said("cpu_contention", 0.3),
        key(100, name="healthy"): said("input_bound", 0.2),
    }
    found = score.cases(scenarios(), diagnoses)
    assert len(found) == 3
    assert score.errors(found) == pytest.approx([0.1])
    words = dict(score.held(found))
    assert [holds for text, holds in words.items() if text.startswith("each label")] == [False]
    assert [holds for text, holds in words.items() if text.startswith("false alarms")] == [False]
    assert [holds for text, holds in words.items() if text.startswith("severity")] == [True]
    assert "1 of 2" in "\n".join(score.by_label(found))


def test_no_scored_run_has_a_seed_that_rules_were_set_on() -> None:
    """Every scenario has four seeds on every number of ranks, each with its removal; healthy ones have forty runs."""
    found, _ = here()
    keys = wanted(found, SCORED)
    assert not {each.seed for each in keys} & set(TUNED_ON)
    assert len(set(keys)) == len(keys)
    for name, each in found.items():
        for world in each.world_sizes:
            mine = [k for k in keys if (k.scenario, k.world_size) == (name, world)]
            assert len(mine) == (HEALTHY_SEEDS if each.remove is None else 2 * len(SCORED))
    assert sum(k.scenario == "healthy" for k in keys) >= 40
