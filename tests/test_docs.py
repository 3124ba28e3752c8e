"""Every Python block that a user reads is run; every command that is shown exists."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run_one_after_the_other(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert blocks(page)
    names = {"__name__": "documentation"}
    for block in blocks(page):
        exec(compile(block, page.name, "exec"), names)


def test_files_that_the_readme_names_exist():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for name in re.findall(r"`((?:marauder_dp|accountants)/\w+\.py)`", text):
        assert (ROOT / name).is_file(), name
    for name in re.findall(r"`(\w+\.py)`", text):
        assert (ROOT / "accountants" / name).is_file(), name


def test_make_targets_that_the_readme_names_exist():
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for name in re.findall(r"\bmake ([\w-]+)", (ROOT / "README.md").read_text(encoding="utf-8").split("Licence")[0]):
        assert name in targets or name in ("sure",), name


@pytest.mark.parametrize("page", [*PAGES, ROOT / "BUILD_NOTES.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_no_placeholder_is_left(page):
    assert "@@" not in page.read_text(encoding="utf-8")
