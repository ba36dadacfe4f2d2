import sys

import torch

from isthmus import __version__
from isthmus.runs.environment import changes, describe_environment, package_version, resumed


def describe():
    return describe_environment(device="cpu", dtype="float64", seed=7)


def test_it_says_what_the_run_ran_on(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/some/where/bin/isthmus", "train", "--name", "a b"])
    found = describe()
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["isthmus"] == __version__
    assert found["versions"]["python"].startswith("3.")
    assert found["threads"] == torch.get_num_threads()
    assert (found["device"], found["dtype"], found["seed"]) == ("cpu", "float64", 7)
    assert found["command"] == "isthmus train --name 'a b'"


def test_it_names_no_host_and_no_folder():
    import os
    import platform

    text = str(describe())
    assert platform.node() not in text
    assert os.getcwd() not in text


def test_versions_of_packages():
    assert package_version("torch") is not None
    assert package_version("no-such-package-at-all") is None


def test_only_what_decides_bits_counts_as_a_change():
    now = describe()
    assert changes(now, {**now, "command": "other", "started": "later", "seed": 8}) == ()
    assert changes({}, now) == ()
    assert changes(now, {**now, "threads": 99}) == (f"the number of threads was {now['threads']} and is 99",)
    assert changes(now, {**now, "device": "cuda"}) == ("the device was cpu and is cuda",)
    other = {**now, "versions": {**now["versions"], "torch": "9.9"}}
    assert changes(now, other) == (f"the version of torch was {torch.__version__} and is 9.9",)


def test_resumptions_are_recorded_after_the_first_environment():
    now = describe()
    assert resumed({}, now) == now
    once = resumed(now, {**now, "threads": 99})
    assert once == {**now, "resumed": [{"threads": 99}]}
    twice = resumed(once, {**now, "command": "again"})
    assert twice["resumed"] == [{"threads": 99}, {"command": "again"}]
