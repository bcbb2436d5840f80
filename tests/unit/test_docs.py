"""What the documents point at is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reconciler.config import load

_ROOT = Path(__file__).parents[2]
_PAGES = sorted([_ROOT / "README.md", *(_ROOT / "docs").glob("*.md")])


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_each_link_of_a_page_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("page", _PAGES, ids=lambda page: page.name)
def test_each_test_that_a_page_names_exists(page: Path) -> None:
    missing, file = [], ""
    for path, name in re.findall(
        r"`((?:tests|catalog)/[\w/.]+)?(?:::(test_\w+))?`", page.read_text()
    ):
        file = path or file
        if path and not (_ROOT / path).exists():
            missing.append(path)
        if name and f"def {name}(" not in (_ROOT / file).read_text():
            missing.append(f"{file}::{name}")
    assert missing == []


def test_the_config_that_the_readme_shows_is_one(tmp_path: Path) -> None:
    (shown,) = re.findall(r"```toml\n(.*?)```", (_ROOT / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "config.toml"
    path.write_text(shown)
    assert list(load(path, {}, secrets=False).pipelines) == ["shop"]
