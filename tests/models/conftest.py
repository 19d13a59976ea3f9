"""What several files read."""

from __future__ import annotations

import pytest

from tests.helpers import release_cases
from tests.helpers.official_files import read_golden


@pytest.fixture(scope="session")
def golden():
    return read_golden


@pytest.fixture(scope="session")
def official_keys():
    """Keys, shapes and parameter counts of the release's eight models and four base learners, by variant."""
    return read_golden("keys.json.gz")


@pytest.fixture(scope="module")
def release(request):
    """Arrays and facts recorded of the release of the method whose folder a test file is in."""
    return release_cases.read_golden(request.path.parent / "golden")


@pytest.fixture(scope="module")
def arrays(release):
    return release[0]


@pytest.fixture(scope="module")
def facts(release):
    return release[1]
