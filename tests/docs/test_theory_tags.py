"""What source, tests and documents cite exists: equation tags in docs/theory.md, files where they are said to be."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
THEORY = ROOT / "docs/theory.md"
ANCHOR = re.compile(r'<a id="E(\d+)"></a>\n\*\*\(E(\d+)\)')
CITED = re.compile(r"(?<![\w./-])(?:docs|benchmarks|examples|tests|src)/[\w./-]*\w\.(?:py|md|yaml|png|j2|json)\b")
SOURCES = ("src", "tests", "docs", "benchmarks", "README.md", "CHANGELOG.md")


def texts() -> dict[str, str]:
    """Everything that cites, by its path; the tests of documents aside."""
    files = [
        file for name in SOURCES for file in ([ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*"))
    ]
    kept = [file for file in files if file.suffix in {".py", ".md", ".j2"} and file.parent != Path(__file__).parent]
    return {str(file.relative_to(ROOT)): file.read_text() for file in sorted(kept)}


def anchors() -> list[int]:
    """The equations of docs/theory.md, in order; each is an anchor followed by its own tag."""
    pairs = ANCHOR.findall(THEORY.read_text()) if THEORY.is_file() else []
    assert all(anchor == tag for anchor, tag in pairs), pairs
    return [int(anchor) for anchor, _ in pairs]


def test_the_equations_are_there_once_each_and_in_order():
    assert anchors() == list(range(1, 17))


def test_every_tag_that_is_cited_is_an_equation_of_the_theory():
    known, cited = set(anchors()), set()
    for name, text in texts().items():
        tags = {int(tag) for tag in re.findall(r"\(E(\d+)\)", text)}
        assert tags <= known, f"{name} cites {sorted(tags - known)}"
        cited |= tags
    assert len(cited) == 16  # the search finds what is there


def test_every_file_that_is_cited_exists():
    missing = {
        f"{target}, cited in {name}"
        for name, text in texts().items()
        for target in CITED.findall(text)
        if not (ROOT / target).is_file()
    }
    assert not missing, "\n".join(sorted(missing))


def test_nothing_outside_the_repository_is_cited():
    for name, text in texts().items():
        assert "theory file" not in text.lower() and "leaky-resnets.md" not in text, name


@pytest.mark.parametrize(
    "text", ["see docs/notes/none.md.", "(benchmarks/none.py)", "`tests/core/test_none.py::test_x`"]
)
def test_the_search_for_files_finds_them_in_prose(text):
    (found,) = CITED.findall(text)
    assert not (ROOT / found).exists()


def test_every_test_that_the_documents_name_exists():
    defined = {
        name
        for path, text in texts().items()
        if path.startswith("tests/")
        for name in re.findall(r"def (test_\w+)", text)
    }
    files = {Path(path).stem for path in texts()} | {Path(__file__).stem}
    named = {
        (path, name)
        for path, text in texts().items()
        if path.startswith(("docs/", "README"))
        for name in re.findall(r"\btest_\w+", text)
    }
    missing = {
        (path, name)
        for path, name in named
        if name not in defined | files and not (name.endswith("_") and any(test.startswith(name) for test in defined))
    }
    assert named and not missing, missing
