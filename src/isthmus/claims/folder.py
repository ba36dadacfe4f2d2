"""A study's folder read back: its pictures and rows as they were written, without any network."""

import json
import math
from pathlib import Path
from typing import Any

from isthmus.claims.pictures import Curve, Network, Picture, Plot, Way
from isthmus.claims.verdicts import Row, Verdict

STUDY, CLAIMS, TABLE = "study.json", "claims.json", "claims.csv"
_NUMBERS = ("estimate", "low", "high")


def is_study(folder: str | Path) -> bool:
    """Whether a folder holds a study that `isthmus.claims.reproduce.reproduce` has finished once."""
    return (Path(folder) / STUDY).is_file()


def load_study(folder: str | Path) -> tuple[tuple[Picture, ...], tuple[Row, ...], dict[str, Any]]:
    """What is behind the figures, the table of claims (empty where there is none), and the facts.

    Raises:
        ValueError: a file that cannot be read, named.
    """
    folder = Path(folder)
    pictures = tuple(_read(file, _picture) for file in sorted((folder / "figures").glob("*.json")))
    claims = folder / CLAIMS
    rows = _read(claims, lambda content: tuple(map(_row, content))) if claims.exists() else ()
    return pictures, rows, _read(folder / STUDY, dict)


def _read(file: Path, make: Any) -> Any:
    try:
        return make(json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} cannot be read ({error}): give the command of the study again") from error


def _picture(content: dict[str, Any]) -> Picture:
    return Picture(
        **content
        | {
            "plots": tuple(map(_plot, content["plots"])),
            "networks": tuple(map(_network, content["networks"])),
            "ways": tuple(Way(**_tuples(way)) for way in content["ways"]),
            "notes": tuple(content["notes"]),
        }
    )


def _plot(content: dict[str, Any]) -> Plot:
    curves = tuple(Curve(**_tuples(curve)) for curve in content["curves"])
    horizontals = tuple((value, label) for value, label in content["horizontals"])
    view = None if content["view"] is None else (content["view"][0], content["view"][1])
    return Plot(**content | {"curves": curves, "horizontals": horizontals, "view": view})


def _network(content: dict[str, Any]) -> Network:
    layers = {name: tuple(values) for name, values in content["layers"].items()}
    spectra = {name: tuple(map(tuple, content[name])) for name in ("spectra_a", "spectra_w")}
    return Network(**content | spectra | {"positions": tuple(content["positions"]), "layers": layers})


def _row(content: dict[str, Any]) -> Row:
    numbers = {name: math.nan if content[name] is None else float(content[name]) for name in _NUMBERS}
    return Row(**content | numbers | {"verdict": Verdict(content["verdict"])})


def _tuples(content: dict[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
