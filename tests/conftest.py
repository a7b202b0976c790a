"""Shared by all tests: one thread per process, a cache folder of their own, and run folders in temporary places."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

# Before torch is imported: ranks and the tests share two cores.
os.environ["OMP_NUM_THREADS"] = "1"
# A shell that starts the tests in the background has them ignore Ctrl-C, which runs they start would take over.
for number in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(number) == signal.SIG_IGN:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data that tests generate lands in a folder that pytest removes, one for all processes that test."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    folder.mkdir(exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "gpu: needs a CUDA device; skipped by name where there is none")
    config.addinivalue_line("markers", "fault(*rows): shows that these rows of the fault matrix (docs/faults.md) hold")
    config.addinivalue_line("markers", "slow: too long for `make test`; `make faults` runs it")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    import torch

    if not config.getoption("-m"):
        slow = pytest.mark.skip(reason="slow: `make faults` runs it")
        for item in items:
            if item.get_closest_marker("slow"):
                item.add_marker(slow)
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device"))
