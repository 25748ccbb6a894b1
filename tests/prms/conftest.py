"""Models of every family, saved once."""

from __future__ import annotations

import pytest

from tests.prm_models import save_all


@pytest.fixture(scope="session")
def prm_paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By family, what `load_process_reward` takes. Shared by the session: treat it as read-only."""
    return save_all(tmp_path_factory.mktemp("prms"))
