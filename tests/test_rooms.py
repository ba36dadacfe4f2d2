"""Rooms import as the table in docs/architecture.md says: document and code cannot drift apart."""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src/isthmus"
ARCHITECTURE = ROOT / "docs/architecture.md"
PEERS = {"branches", "solve", "two_ended", "ensemble"}


@dataclass(frozen=True)
class Import:
    """An import of ours: from which module, of which module, which names, and whether it runs on import."""

    importer: str
    target: str
    names: tuple[str, ...]
    at_import: bool


def module_of(file: Path) -> str:
    """``isthmus.flow`` for ``flow/__init__.py``, ``isthmus.flow.workspace`` for ``flow/workspace.py``."""
    parts = file.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
    """The room of a module: its first name below isthmus; "" for the package itself."""
    return module.split(".")[1] if "." in module else ""


def later(tree: ast.Module) -> set[int]:
    """Nodes that do not run on import: bodies of functions, and what is for type checking alone."""
    nodes: set[int] = set()
    for node in ast.walk(tree):
        checking = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        if checking or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            nodes.update(map(id, ast.walk(node)))
    return nodes


def read(files: dict[str, str]) -> list[Import]:
    """All imports of ours in these sources, by module. ``from isthmus.a import b`` is of a.b where that is a module."""
    found = []
    for importer, text in files.items():
        tree = ast.parse(text)
        waits = later(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{importer} has a relative import"
                origin, names = node.module or "", [alias.name for alias in node.names]
            elif isinstance(node, ast.Import):
                for alias in node.names:
                    if alias.name.split(".")[0] == "isthmus":
                        found.append(Import(importer, alias.name, (), id(node) not in waits))
                continue
            else:
                continue
            if origin.split(".")[0] != "isthmus":
                continue
            modules = [name for name in names if f"{origin}.{name}" in files]
            values = tuple(name for name in names if name not in modules)
            runs = id(node) not in waits
            found += [Import(importer, f"{origin}.{name}", (), runs) for name in modules]
            if values:
                found.append(Import(importer, origin, values, runs))
    return found


FILES = {module_of(file): file.read_text() for file in sorted(SOURCE.rglob("*.py"))}
IMPORTS = read(FILES)


def table() -> tuple[dict[str, int], dict[str, set[str]]]:
    """From the document: the floor of every room, and the rooms that each may import from."""
    rows = re.findall(r"^\| (\d+) \|([^|]*)\|[^|]*\|([^|]*)\|$", ARCHITECTURE.read_text(), flags=re.MULTILINE)
    floor = {name: int(number) for number, rooms, _ in rows for name in re.findall(r"`(\w+)`", rooms)}
    allowed: dict[str, set[str]] = {}
    for number, rooms, rule in rows:
        span = re.search(r"floors? (\d+)(?:–(\d+))?", rule)
        floors = range(int(span[1]), int(span[2] or span[1]) + 1) if span else range(0)
        assert all(below < int(number) for below in floors), f"floor {number} would import downwards"
        for name in re.findall(r"`(\w+)`", rooms):
            allowed[name] = {other for other in floor if floor[other] in floors}
        for importer, target in re.findall(r"`(\w+)` → `(\w+)`", rule):
            assert floor[importer] == floor[target] == int(number), f"{importer} → {target} is no arrow of one floor"
            allowed[importer].add(target)
    return floor, allowed


FLOOR, ALLOWED = table()


def test_the_table_has_every_room_and_no_other():
    rooms = {room(module) for module in FILES} - {""}
    assert rooms - set(FLOOR) == set(), "rooms that docs/architecture.md does not have"
    assert set(FLOOR) - rooms == set(), "rooms that are not there"


def test_every_file_that_the_document_names_exists():
    named = set(re.findall(r"`((?!tests/)(?:\w+/)?\w+\.py)`", ARCHITECTURE.read_text()))
    assert named and not {file for file in named if not (SOURCE / file).is_file()}


def not_allowed(imports: list[Import]) -> list[str]:
    """Imports that the table does not have. The package itself may be asked for its version alone."""
    wrong = []
    for one in imports:
        here, there = room(one.importer), room(one.target)
        if here in ("", there):
            continue
        if there == "" and one.names == ("__version__",):
            continue
        if there not in ALLOWED.get(here, set()):
            wrong.append(f"{one.importer} imports {one.target}")
    return sorted(set(wrong))


def test_rooms_import_as_the_table_says():
    assert len(IMPORTS) > 100  # they are found
    assert not_allowed(IMPORTS) == []


def test_the_package_itself_imports_nothing_of_ours_on_import():
    assert [one for one in IMPORTS if one.importer == "isthmus" and one.at_import] == []


def circles(imports: list[Import]) -> list[list[str]]:
    """Modules that need each other before either is loaded. A package is loaded before the modules that it holds."""
    edges: dict[str, set[str]] = {}
    for one in imports:
        if one.at_import:
            target = one.target.split(".")
            packages = {".".join(target[:n]) for n in range(2, len(target))}
            own = {".".join(one.importer.split(".")[:n]) for n in range(2, one.importer.count(".") + 1)}
            edges.setdefault(one.importer, set()).update({one.target} | packages - own - {one.importer})
    found, done = [], set()

    def visit(module: str, way: list[str]) -> None:
        if module in way:
            found.append([*way[way.index(module) :], module])
        elif module not in done:
            for target in sorted(edges.get(module, ())):
                visit(target, [*way, module])
            done.add(module)

    for module in sorted(edges):
        visit(module, [])
    return found


def test_no_circles_between_modules_at_import_time():
    assert circles(IMPORTS) == []


def test_peers_leave_each_others_files_alone():
    for one in IMPORTS:
        here, there = room(one.importer), room(one.target)
        if here != there and {here, there} <= PEERS:
            assert here in ("branches", "ensemble") and one.target == "isthmus.solve", (
                f"{one.importer} imports {one.target}"
            )
            public = import_module("isthmus.solve").__all__
            assert set(one.names) <= set(public), f"{one.importer} takes {one.names} from {one.target}"


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("from isthmus.solve import Trainer", ["isthmus.mechanics.new imports isthmus.solve"]),
        ("import isthmus.cli.main", ["isthmus.mechanics.new imports isthmus.cli.main"]),
        ("def f():\n    from isthmus.runs import execute", ["isthmus.mechanics.new imports isthmus.runs"]),
        ("if TYPE_CHECKING:\n    from isthmus.probe import Profile", ["isthmus.mechanics.new imports isthmus.probe"]),
        ("from isthmus import problem", ["isthmus.mechanics.new imports isthmus.problem"]),
        ("from isthmus import Problem", ["isthmus.mechanics.new imports isthmus"]),
        ("from isthmus.flow import path", []),
    ],
)
def test_an_import_the_wrong_way_is_seen(code, wrong):
    added = [one for one in read({**FILES, "isthmus.mechanics.new": code}) if one.importer == "isthmus.mechanics.new"]
    assert not_allowed(added) == wrong


def test_a_circle_is_seen():
    codes = {"isthmus.a": "from isthmus.b import c", "isthmus.b": "import isthmus.a", "isthmus.c": "import isthmus.a"}
    assert circles(read(codes)) == [["isthmus.a", "isthmus.b", "isthmus.a"]]
    lazy = {"isthmus.a": "from isthmus.b import c", "isthmus.b": "def f():\n    import isthmus.a"}
    assert circles(read(lazy)) == []


def test_importing_the_package_loads_no_torch():
    code = "import sys, isthmus; assert 'torch' not in sys.modules; isthmus.ReLU; assert 'torch' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
