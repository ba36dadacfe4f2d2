"""The Python blocks of the how-to pages run as they stand, one after the other."""

import re
from pathlib import Path

import pytest
import torch

HOW_TO = Path(__file__).parents[2] / "docs" / "how-to"


@pytest.mark.parametrize("page", ["compare.md", "dimensions.md", "mesh.md"])
def test_the_blocks_run(page, tmp_path, monkeypatch):
    if page == "mesh.md":
        pytest.importorskip("torchdiffeq")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {"__name__": "page"}
    blocks = re.findall(r"^```python\n(.*?)^```", (HOW_TO / page).read_text(encoding="utf-8"), flags=re.S | re.M)
    assert len(blocks) >= 2
    for block in blocks:
        exec(compile(block, page, "exec"), names)
