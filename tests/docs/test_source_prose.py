"""The prose of the source: what house rules forbid, also where a line breaks inside it."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src/isthmus").rglob("*.py"))
HABITS = {
    "a number is called so many": r"\bso (?:many|much)\b(?! (?:that|as)\b)",
    "a document that is not shipped": r"theory file|leaky-resnets\.md",
    "workshop talk": r"\bmended\b|\b(?:is|are|was|were) (?:valued|spoken of)\b|asked for \(issue|\bthe issue asks",
}


@pytest.mark.parametrize("habit", HABITS)
def test_source_is_free_of(habit):
    found = []
    for file in SOURCES:
        text = re.sub(r"\s+(?:# )?", " ", file.read_text())
        found += [
            f"{file.relative_to(ROOT)}: {text[max(0, m.start() - 30) : m.end() + 30]}"
            for m in re.finditer(HABITS[habit], text)
        ]
    assert SOURCES and not found, "\n".join(found)


def test_the_search_sees_through_line_breaks():
    text = re.sub(r"\s+(?:# )?", " ", "# as the theory\n    # file has it, so\n    many times")
    assert re.search(HABITS["a document that is not shipped"], text)
    assert re.search(HABITS["a number is called so many"], text)
    assert not re.search(HABITS["a number is called so many"], "so many that it fails")
