"""Pages of the documentation site that come from files outside docs/: the README, recipes, the notebook as Markdown."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = {"index.md": "README.md", "contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the pages, and the files that they link to."""
    from mkdocs.structure.files import File

    for name, source in PAGES.items():
        files.append(File.generated(config, name, content=_from_root((ROOT / source).read_text(encoding="utf-8"))))
    files.append(File.generated(config, "notebook.md", content=notebook_text(ROOT / "docs" / "notebook.ipynb")))
    for path in sorted((ROOT / "recipes").rglob("*.yaml")):
        files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links out of docs/ lead to the copies."""
    return re.sub(r"\]\(\.\./(recipes/[^)]*|CONTRIBUTING\.md|CHANGELOG\.md|README\.md)\)", _moved, markdown)


def _moved(link: re.Match[str]) -> str:
    back = {source: name for name, source in PAGES.items()}
    return f"]({back.get(link[1], link[1])})"


def _from_root(text: str) -> str:
    """A page of the repository's root, with its links as seen from docs/."""
    text = text.replace("](docs/notebook.ipynb)", "](notebook.md)").replace("](docs/", "](")
    text = re.sub(r"\[([^]]*)\]\(recipes/eam\)", r"\1", text)
    for name, source in PAGES.items():
        text = text.replace(f"]({source})", f"]({name})")
    return text


def notebook_text(path: Path) -> str:
    """A notebook as Markdown: its texts, and its code in fences."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    parts = []
    for cell in cells:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
    return "\n\n".join(parts) + "\n"
