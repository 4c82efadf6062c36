"""The Python of docs/python.md runs, block after block, and that of docs/features.md."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "python.md"


@pytest.mark.usefixtures("unchecked")
def test_the_page_runs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for number, block in enumerate(blocks):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    assert (tmp_path / "small" / "config.json").is_file()


@pytest.mark.usefixtures("unchecked")
def test_the_page_on_features_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (PAGE.parent / "features.md").read_text(encoding="utf-8"), flags=re.S)
    exec(compile(block, "features.md", "exec"), {})
    assert len(capsys.readouterr().out.split()) == 3
