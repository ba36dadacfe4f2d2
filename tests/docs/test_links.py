"""The documents stand as a site: links lead to files and headings that exist, and lines can be read in a terminal."""

import re
import unicodedata
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [*DOCUMENTS, ROOT / "README.md", ROOT / "CHANGELOG.md"]
LINK = re.compile(r"\]\((?!\w+:)([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The text outside code blocks."""
    return FENCE.sub("", page.read_text())


def targets(page: Path) -> set[str]:
    """What may stand after ``#``: explicit anchors, and headings as GitHub and mkdocs spell them."""
    text = prose(page)
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    slugs = {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)">', text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for link in LINK.findall(prose(page)):
        file, _, anchor = link.partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), f"{link}: no such file"
        assert target.is_relative_to(ROOT), f"{link} leaves the repository"
        assert not anchor or anchor in targets(target), f"{link}: no such heading or anchor"


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_documents_stay_among_them(page):
    """A strict site knows only what lies under docs/; other files are named in code spans."""
    for link in LINK.findall(prose(page)):
        target = (page.parent / link.partition("#")[0]).resolve()
        assert target.is_relative_to(ROOT / "docs") and not target.is_dir(), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_lines_fit_a_terminal(page):
    """At most 120 characters; rows of tables cannot be broken, nor commands."""
    for line in prose(page).splitlines():
        if not line.startswith(("|", "    ", "  |")):
            assert sum(not unicodedata.combining(sign) for sign in line) <= 120, line


HABITS = (
    r"so (?:many|much) (?:of|times|steps|rows|layers)",
    r"(?:is|are|was|were) (?:valued|mended|spoken of)",
    r"\bmended:",
    r"theory file",
    r"asked for \(issue",
    r"the (?:next )?issue\b",
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_remnants_of_the_workshop(page):
    text = re.sub(r"\s+", " ", page.read_text())
    assert not [habit for habit in HABITS if re.search(habit, text, flags=re.IGNORECASE)]
