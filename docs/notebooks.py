"""The notebooks, with their outputs, as pages of the site."""

from __future__ import annotations

import pathlib
import re
from collections.abc import Iterator

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from nbconvert import MarkdownExporter

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"


def on_config(config: MkDocsConfig) -> None:
    """List them in the navigation, under the entry that is kept for them."""
    pages = [f"notebooks/{path.stem}.md" for path in _notebooks()]
    for entry in config.nav or []:
        if "Notebooks" in entry:
            entry["Notebooks"] += pages


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add a page for each notebook, and its figures."""
    for path in _notebooks():
        for name, content in _pages(path):
            files.append(File.generated(config, f"notebooks/{name}", content=content))


def _notebooks() -> list[pathlib.Path]:
    return sorted(FOLDER.glob("*.ipynb"))


def _pages(path: pathlib.Path) -> Iterator[tuple[str, str | bytes]]:
    """(name, content) of a notebook's page and figures."""
    names = {"unique_key": path.stem, "output_files_dir": f"{path.stem}_files"}
    text, resources = MarkdownExporter().from_filename(str(path), resources=names)
    text = re.sub(r"\x1b\[[\d;]*m", "", text)  # colours of a terminal
    yield f"{path.stem}.md", f"---\nsearch:\n  boost: 0.5\n---\n\n{text}"
    yield from resources["outputs"].items()
