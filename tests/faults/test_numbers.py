"""A loss or gradient that is not finite stops all ranks, and names the rank and the tensor that it came from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.supervised import MODEL, Timed

BAD_LOSS = MODEL.replace(
    "return self.layer",
    """
            if self.calls == 4 and torch.distributed.get_rank() == 1:
                return self.layer(batch["x"]).square().mean() * {bad}
            return self.layer""",
)


@pytest.mark.fault(41)
@pytest.mark.parametrize("bad", ["float('nan')", "float('inf')"])
def test_a_loss_that_is_not_finite_names_its_rank(tmp_path: Path, timed: Timed, bad: str) -> None:
    """NaN and Inf on one rank: exit 8, that rank, that step; the records are valid JSON."""
    found = timed(tmp_path, model=BAD_LOSS.replace("{bad}", bad))
    assert (found.status["exit_code"], found.status["culprit"]["rank"], found.status["culprit"]["step"]) == (8, 1, 3)
    records, unreadable = found.folder.records(1)
    assert (records[-1].step, records[-1].losses, unreadable) == (3, [None], 0)
    assert found.left == []
