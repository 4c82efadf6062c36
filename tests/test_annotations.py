"""What checks annotations under pytest: it finds wrong types and wrong shapes, and can be switched off."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from vitfrost.files import sha256_of_file
from vitfrost.methods.quantize.quantizers import log_codes, uniform_codes, uniform_parameters, uniform_values

from .annotations import CHECKED_CALLS, RunningTest, has_shapes
from .conftest import unchecked_shapes


def test_a_wrong_type_is_found_where_there_are_no_shapes() -> None:
    with pytest.raises(Exception, match="violates type hint"):
        uniform_values(cast(Any, 3), torch.ones(()), torch.zeros(()))
    with unchecked_shapes():
        assert uniform_values(cast(Any, 3), torch.ones(()), torch.zeros(())) == 3


def test_a_wrong_shape_is_found() -> None:
    with pytest.raises(Exception, match=r"[Tt]ype-check error"):
        uniform_parameters(torch.zeros(2), torch.ones(3), 4)
    with unchecked_shapes(), pytest.raises(RuntimeError, match="size"):
        uniform_parameters(torch.zeros(2), torch.ones(3), 4)


def test_the_first_calls_of_a_function_in_a_test_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    one = torch.ones(())
    for _ in range(CHECKED_CALLS):
        uniform_values(one, one, one)
    assert uniform_values(cast(Any, 3), one, one - 1) == 3
    monkeypatch.setattr(RunningTest, "number", RunningTest.number + 1)  # as the next test has it
    with pytest.raises(Exception, match="violates type hint"):
        uniform_values(cast(Any, 3), one, one - 1)


def test_functions_are_told_apart_by_their_annotations() -> None:
    assert all(has_shapes(cast(Any, function).__wrapped__) for function in (uniform_codes, uniform_parameters, log_codes))
    assert not has_shapes(cast(Any, sha256_of_file).__wrapped__)
