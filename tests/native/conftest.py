"""The engine's package, where it is built."""

from __future__ import annotations

from typing import Any

import pytest


@pytest.fixture(scope="session")
def engine() -> Any:
    """vitfrost_native; skips where it is not built."""
    engine = pytest.importorskip("vitfrost_native", reason="the native engine is not built; make install")
    try:
        engine.isas()
    except engine.VitfrostError as error:
        pytest.skip(str(error))
    return engine
