"""What several files read."""

from __future__ import annotations

import pytest

from tests.helpers.official_files import read_golden


@pytest.fixture(scope="session")
def golden():
    return read_golden


@pytest.fixture(scope="session")
def official_keys():
    """Keys, shapes and parameter counts of the release's eight models and four base learners, by variant."""
    return read_golden("keys.json.gz")
