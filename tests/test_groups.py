"""Tests of a group run in one worker, which makes once what they share."""

from __future__ import annotations

import pytest


@pytest.mark.xdist_group("kept together")
def test_groups_are_kept_together(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("loadgroup", False):
        pytest.skip("not with --dist loadgroup, as `make test` calls it")
    assert request.node.nodeid.endswith("@kept together")  # pytest 9.2 and pytest-xdist 3.8.0 lose the group without a word
