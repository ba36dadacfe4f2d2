"""The tutorial runs as it stands, and shows what it says."""

import re
from pathlib import Path

import torch

from isthmus.probe import replace_run

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "probe.md"


def test_the_tutorial_runs(capsys):
    code = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), flags=re.S | re.M)
    assert len(code) == 5
    names: dict = {"__name__": "tutorial"}
    for i, block in enumerate(code):
        exec(compile(block, f"{PAGE.name}, block {i + 1}", "exec"), names)
    printed = capsys.readouterr().out
    smaller, net = names["smaller"], names["net"]
    assert names["before"] > 0.9 and names["after"] > names["before"] - 0.02
    assert 1 <= len(smaller.rounds) == 6 - len(smaller.model.blocks) and len(net.blocks) == 6
    assert abs(smaller.predicted - smaller.measured) < 0.01
    assert f"predicted {smaller.predicted:+.4f}, measured {smaller.measured:+.4f}" in printed
    assert "not read" in printed and "idlest first" in printed
    # a block that was dropped is among the three idlest by its step, too
    assert set(smaller.dropped) & set(names["stream"].idle()[:3])
    found = names["hamiltonian"]
    assert 0.1 < max(found.stationarity) < 0.6 and "not stationary, so not to be read" in printed
    assert len(found.layers) == 3 and abs(found.effective_depth - 3) < 1e-6 and found.median < 0
    with torch.no_grad():
        torch.testing.assert_close(names["profile"].record("stem").count, 300 * 16)
    # a third of its blocks as one linear map: at most half of what dropping them costs
    data = [(names["images"][names["train"]], names["labels"][names["train"]])]
    replaced = replace_run(net, data, torch.nn.functional.cross_entropy, run=2)
    assert replaced.loss_after - replaced.loss_before <= 0.5 * (replaced.loss_dropped - replaced.loss_before)
