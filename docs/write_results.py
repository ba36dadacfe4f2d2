"""Write docs/results.md and results/ from the folder of a study: every number comes from its files.

    python docs/write_results.py runs/paper

`make results` computes the study first, as far as it is not there.
"""

import argparse
import gzip
import json
import shutil
import subprocess
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
VERDICTS = {"holds": "**holds**", "fails": "**fails**", "undecided": "undecided"}
READINGS = {"paper": "as the paper trains", "critical": "at critical points", "search": "minima that were searched for"}


def number(value: float | None) -> str:
    """Three significant digits; a dash where there is no number."""
    return "–" if value is None else f"{value:.3g}".replace("-", "−")


def table(rows: list[dict]) -> list[str]:
    """The table of claims."""
    lines = [
        "| claim | source | networks | rule | estimate | 95 % interval | seeds | certified | verdict |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        interval = "–" if row["low"] is None else f"{number(row['low'])} to {number(row['high'])}"
        cells = [
            f"{row['statement']} *{row['measure']}*",
            row["source"],
            READINGS[row["reading"]],
            row["rule"],
            number(row["estimate"]),
            interval,
            str(row["seeds"]),
            f"{row['certified']} of {row['networks']}",
            VERDICTS[row["verdict"]],
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return lines


def page(study: dict, pictures: list[dict], rows: list[dict]) -> str:
    """The text of docs/results.md."""
    size, counts = study["size"], {v: sum(row["verdict"] == v for row in rows) for v in VERDICTS}
    made = (
        f"Teachers {'→'.join(map(str, size['dims']))}, width {size['width']}, {size['rows']} rows, {size['depth']} "
        f"layers, μ = {size['mu']:g}, {study['seeds']} seeds of teacher and network. {study['seconds'] / 60:.0f} "
        f"minutes of one core, torch {study['environment']['versions']['torch']}, commit {study['commit'][:10]}. "
        f"{len(study['failures'])} of {study['jobs']} computations failed."
    )
    paragraphs = [
        "# Results: the paper, claim by claim",
        "*Written by `docs/write_results.py` from `results/`; no number here was typed. `make results` makes study and "
        "page again. How verdicts are made: [how-to](how-to/claims.md).*",
        made,
        f"**Of {len(rows)} judgements {counts['holds']} hold, {counts['fails']} fail and {counts['undecided']} are "
        "undecided.** They are in the table at the end.",
        "Marks are filled where every network is a certified critical point, and hollow where not.",
    ]
    for picture in pictures:
        paragraphs += [
            f"## {picture['title']}",
            f"![{picture['title']}](images/{picture['key']}.svg)",
            f"The paper: {picture['statement']}",
            f"Here: {picture['finding']}",
            *picture["notes"],
        ]
    filled = [p if p.startswith(("#", "![")) else textwrap.fill(p, 116, break_on_hyphens=False) for p in paragraphs]
    notes = {row["statement"]: row["note"] for row in rows if row["note"]}
    remarks = "\n".join(
        textwrap.fill(f"- {statement} {note}", 116, subsequent_indent="  ", break_on_hyphens=False)
        for statement, note in notes.items()
    )
    return "\n\n".join([*filled, "## Claims", "\n".join(table(rows)), remarks]) + "\n"


def write(folder: Path, root: Path, commit: str) -> Path:
    """Write page, figures and data; returns the page."""
    images, kept = root / "docs" / "images", root / "results"
    images.mkdir(parents=True, exist_ok=True)
    (kept / "figures").mkdir(parents=True, exist_ok=True)
    for file in sorted((folder / "figures").glob("*.json")):
        shutil.copy(file.with_suffix(".svg"), images)
        shutil.copy(file, kept / "figures")
    for name in ("claims.csv", "claims.json"):
        shutil.copy(folder / name, kept)
    study = json.loads((folder / "study.json").read_text()) | {"commit": commit}
    (kept / "study.json").write_text(json.dumps(study, ensure_ascii=False, indent=1) + "\n")
    networks = [json.loads(file.read_text()) for file in sorted((folder / "data").glob("*.json"))]
    content = json.dumps([one | {"environment": None} for one in networks], ensure_ascii=False, separators=(",", ":"))
    (kept / "networks.json.gz").write_bytes(gzip.compress(content.encode(), mtime=0))
    file = root / "docs" / "results.md"
    file.write_text(page(*read(kept)))
    return file


def read(kept: Path) -> tuple[dict, list[dict], list[dict]]:
    """Study, pictures and rows, as ``results/`` holds them."""
    pictures = [json.loads(file.read_text()) for file in sorted((kept / "figures").glob("*.json"))]
    return json.loads((kept / "study.json").read_text()), pictures, json.loads((kept / "claims.json").read_text())


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of `isthmus claims`")
    folder = parser.parse_args().folder
    if not (folder / "claims.json").exists():
        raise SystemExit(
            f"{folder} holds no claims: isthmus reproduce all --out {folder}; isthmus claims --out {folder}"
        )
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    print(write(folder, ROOT, commit.strip()))


if __name__ == "__main__":
    main()
