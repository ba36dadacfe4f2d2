"""What every document shares: a third kind is one class, and no document knows another."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

import isthmus.report
from isthmus.report.document import Document
from isthmus.report.profile.page import ProfilePage
from isthmus.report.run.page import RunReport
from isthmus.report.spec import Figure, Panel, Series
from isthmus.report.tables import Cell, Column, Table

ROOM = Path(isthmus.report.__file__).parent


@dataclass(frozen=True)
class Claims(Document):
    """A third document, with the words, figures and tables that any has."""

    file = "claims.html"
    template = "profile.html.j2"
    keys = ("claim", "gone")

    @property
    def title(self):
        return "<claims>"

    def sections(self):
        said = {"headline": "All hold", "sentences": ["One."], "doubts": []}
        nothing = {"notes": [], "cards": [], "skipped": [], "skipped_count": 0}
        return {"facts": [("of", "the paper")], "said": said, **nothing}

    def figures(self):
        return (Figure("claim", "A claim", (Panel("", "x", "y", (Series([0, 1], [1, 2], "it"),)),), "Look."),)

    def tables(self):
        head = (Column("name", "name", "what is claimed"), Column("value", "value", "found", extra=True))
        return (Table("claims", "Claims", "A row each.", head, [(True, [Cell("a", "", False), Cell("2", "2", True)])]),)


def test_a_third_document_is_one_class(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures/gone.svg").write_text("of an earlier page")
    path = Claims().write(tmp_path)
    assert path == tmp_path / "claims.html"
    assert sorted(file.name for file in (tmp_path / "figures").iterdir()) == ["claim.pdf", "claim.svg"]
    page = path.read_text(encoding="utf-8")
    for part in (
        "<h1>&lt;claims&gt;</h1>",
        'id="plot-claim-0"',
        '<table class="rows" id="claims">',
        "show all 2 columns",
    ):
        assert part in page, part
    assert '<tr class="slow">' in page and '<td class="extra" data-sort="2">2</td>' in page


def test_what_a_document_lacks_is_named():
    class Half(Document):
        pass

    with pytest.raises(TypeError, match=r"abstract methods '?figures'?, '?sections'?, '?tables'?, '?title'?"):
        Half()
    assert issubclass(RunReport, Document) and issubclass(ProfilePage, Document)


def test_documents_do_not_know_each_other_and_nothing_shared_knows_one():
    rooms = {folder.name for folder in ROOM.iterdir() if (folder / "__init__.py").is_file()}
    assert rooms == {"branch", "claims", "compare", "profile", "run", "simplify"}
    for file in ROOM.rglob("*.py"):
        here = file.relative_to(ROOM).parts[0]
        if here == "__init__.py":
            continue
        named = [
            node.module or "" for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.ImportFrom)
        ]
        known = {name.split(".")[2] for name in named if name.startswith("isthmus.report.")} & rooms
        assert known <= {here}, (file, known)
