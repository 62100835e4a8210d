"""Everything that is installed, built once for the tests of this directory."""

from __future__ import annotations

import pytest

from tests.harness.built_packages import Built, build_two_versions


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return build_two_versions(tmp_path_factory.mktemp("built"))
