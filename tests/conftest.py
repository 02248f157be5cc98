"""What all tests share. Warnings are errors (pyproject.toml), and every random number has a seed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from apple import IGNORED


def pytest_configure(config):
    for line in IGNORED:
        config.addinivalue_line("filterwarnings", line)


@pytest.fixture
def rng():
    """A generator that starts the same in every test."""
    return np.random.default_rng(20240607)


@pytest.fixture(scope="session")
def real_data():
    """The folder with the real MNIST and Fashion-MNIST; the test is skipped where it is absent."""
    folder = os.environ.get("MINIDISTILL_DATA", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("MINIDISTILL_DATA does not name a folder with the real MNIST and Fashion-MNIST")
    return Path(folder)
