"""How tests read pages: as text, and in a browser."""

from __future__ import annotations

import json
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Fails on unbalanced tags; collects pictures, text, and every reference to something outside the page."""

    def __init__(self, text: str):
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.images: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert tag not in ("script", "iframe", "object")
        if tag == "img":
            assert found.get("alt")
            self.images.append(found["src"] or "")
        self.references += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action", "xlink:href")]
        self.references += re.findall(r"url\(([^)]*)\)", found.get("style") or "")
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All words of the page."""
        return " ".join(" ".join(self.words).split())


class Browser:
    """A headless Chromium without a network."""

    def __init__(self, program: str, folder: Path):
        self.program, self.folder = program, folder

    def _run(self, width: int, *arguments: str) -> str:
        command = [
            self.program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
            "--hide-scrollbars", "--disable-dev-shm-usage", "--proxy-server=http://127.0.0.1:9", "--virtual-time-budget=5000",
            f"--user-data-dir={self.folder / 'profile'}", f"--window-size={width},1600", *arguments,
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    def look_at(self, page: Path, width: int) -> dict[str, Any]:
        """Images, how many were loaded, whether the page is wider than the window, what was fetched and what the page's policy refused."""
        probe = """<script>
          let refused = 0;
          addEventListener("securitypolicyviolation", () => refused++);
          addEventListener("load", () => {
            const images = [...document.images];
            const loaded = images.filter(image => image.complete && image.naturalWidth > 0).length;
            const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
            const fetched = performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length;
            document.title = JSON.stringify({images: images.length, loaded, wide, fetched, refused});
          });
        </script>"""
        watched = self.folder / "watched.html"
        text = page.read_text(encoding="utf-8").replace(
            "style-src 'unsafe-inline'", "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        )
        watched.write_text(text.replace("<title>", probe + "<title>"), encoding="utf-8")
        found = re.search(r"<title>(\{.*?\})</title>", self._run(width, "--dump-dom", watched.as_uri()))
        assert found
        return dict(json.loads(found[1].replace("&quot;", '"')))

    def photograph(self, page: Path, width: int) -> np.ndarray:
        """The first 1600 rows of pixels."""
        self._run(width, f"--screenshot={self.folder / 'page.png'}", page.as_uri())
        return np.asarray(Image.open(self.folder / "page.png").convert("RGB"))
