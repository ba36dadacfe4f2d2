"""The profile: equal to `mechanics` on our own networks, merged from parts and processes, saved, printed."""

import itertools
import os
import socket

import polars
import pytest
import torch
from torch import nn

from isthmus import LeakyResNet, Problem
from isthmus.activations import Identity, ReLU, SmoothReLU
from isthmus.mechanics import mechanics
from isthmus.probe import Profile, probe

F64 = torch.float64


class Plain(nn.Module):
    """A residual block of which the theory's step is the shape: ``a·x + Wσ(x) + b``."""

    def __init__(self, width, skip=1.0):
        super().__init__()
        self.fc, self.skip = nn.Linear(width, width), skip

    def forward(self, x):
        return self.skip * x + self.fc(x.relu())


def mlp():
    return nn.Sequential(
        nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)
    )


def close(a, b, tolerance=1e-8):
    assert abs(a - b) <= tolerance * max(1.0, abs(a), abs(b)), (a, b)


# --- our own networks -----------------------------------------------------------------------------------------------

PAIRED = {  # column of the profile: column of mechanics
    "coi": "coi",
    "coi_stable": "coi_stable",
    "coi_off_image": "coi_off_image",
    "stable_rank": "stable_rank_a",
    "nuclear_rank": "nuclear_rank_a",
    "rank_1e-2": "rank_a",
    "norm": "norm_a",
}
STEPS = {"kinetic": "kinetic", "kinetic_stable": "kinetic_stable", "step_change": "step_change", "p": "p", "rho": "rho"}


@pytest.mark.parametrize("activation", [ReLU(), ReLU(append_one=False), SmoothReLU(sharpness=4.0), Identity()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_leaky_resnet_has_the_numbers_of_mechanics(activation, dtype):
    net = LeakyResNet(6, 3, width=10, depth=5, effective_depth=3.0, activation=activation, dtype=dtype)
    x, y = torch.randn(90, 6, dtype=dtype), torch.randn(90, 3, dtype=dtype)
    table = mechanics(Problem(net, x, y).geodesic())
    profile = probe(net, x, batch_size=17)
    assert profile.layers == [f"A_{i}" for i in range(6)]
    for mine, theirs in PAIRED.items():
        for a, b in zip(profile[mine], table[theirs], strict=True):
            close(a, b)
    for mine, theirs in STEPS.items():
        for a, b in zip(profile[mine][1:], table[theirs], strict=True):
            close(a, b)
    for i in range(6):
        torch.testing.assert_close(profile.spectrum(f"A_{i}"), table.spectra_a[i], rtol=1e-8, atol=1e-10)
    assert profile["activation"] == [str(activation)] * 6


def test_states_of_a_leaky_resnet_by_name():
    net = LeakyResNet(4, 2, width=6, depth=3, effective_depth=1.0)
    profile = probe(torch.nn.DataParallel(net), torch.randn(20, 4), ["A_0", "A_3"])
    assert profile.layers == ["A_0", "A_3"]
    assert [s.name for s in profile.skipped] == ["A_1", "A_2"]
    with pytest.raises(ValueError, match=r"no state fits \['B_\*'\]; the states are 'A_0' to 'A_3'"):
        probe(net, torch.randn(20, 4), "B_*")
    with pytest.raises(TypeError, match=r"of a LeakyResNet expected names or patterns of its states"):
        probe(net, torch.randn(20, 4), nn.Linear)
    with pytest.raises(ValueError, match=r"expected inputs \(samples, 4\) for this LeakyResNet, got shape \(20, 5\)"):
        probe(net, torch.randn(20, 5))


# --- the implied effective depth ------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth, effective_depth", [(5, 5.0), (6, 2.5), (4, 0.0)])
def test_the_effective_depth_of_a_leaky_resnet_is_its_own(depth, effective_depth):
    net = LeakyResNet(6, 3, width=10, depth=depth, effective_depth=effective_depth, dtype=F64)
    found = probe(net, torch.randn(200, 6, dtype=F64)).effective_depth["trajectory"]
    assert found.layers == depth
    close(found.value, effective_depth, 1e-7)
    if depth == effective_depth:  # rho * effective_depth = 1: no skip is left, whatever the scale
        close(found.normalised, depth, 1e-7)


def test_the_effective_depth_of_a_fully_connected_network_is_its_number_of_layers():
    found = probe(mlp().double(), torch.randn(200, 5, dtype=F64)).effective_depth
    assert list(found) == ["chain from 0"]
    assert found["chain from 0"].layers == 2
    close(found["chain from 0"].value, 2.0, 1e-7)


def test_a_fully_connected_network_made_of_blocks_is_the_same_chain():
    parts = [nn.Sequential(nn.Linear(5, 8), nn.ReLU()), *(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(3))]
    found = probe(nn.Sequential(*parts).double(), torch.randn(200, 5, dtype=F64)).effective_depth
    assert list(found) == ["chain from 0.0"] and found["chain from 0.0"].layers == 3
    close(found["chain from 0.0"].value, 3.0, 1e-7)


def test_linear_layers_within_a_residual_block_are_no_chain():
    class Deep(nn.Module):
        def __init__(self):
            super().__init__()
            self.f = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))

        def forward(self, x):
            return x + self.f(x)

    net = nn.Sequential(nn.Linear(5, 8), Deep(), Deep())
    assert list(probe(net, torch.randn(200, 5), activation="relu").effective_depth) == ["(model)[1:3]"]
    # nothing takes the states as they are but linear maps: σ is the identity, which loses nothing, and no skip is told
    assert probe(net, torch.randn(200, 5)).effective_depth == {}
    profile = probe(nn.Sequential(nn.Linear(5, 8), Plain(8), Plain(8)), torch.randn(200, 5), kinds=("linear",))
    assert profile.effective_depth == {}


def test_linear_layers_with_something_between_are_no_chain():
    net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 8))
    profile = probe(net, torch.randn(50, 5), activation="relu")
    assert profile["compared_with"] == [None, None, None] and profile.effective_depth == {}
    # read off the network, the first σ is tanh, and the second layer is a step; a norm still is none
    profile = probe(net, torch.randn(50, 5))
    assert profile["compared_with"] == [None, "0", None]
    assert profile["activation"] == ["tanh(append_one=True)"] + 2 * ["Identity(append_one=False)"]


def test_the_effective_depth_of_a_residual_stack_is_the_sum_of_its_leaks():
    plain = nn.Sequential(nn.Linear(5, 8), *(Plain(8) for _ in range(3))).double()
    x = torch.randn(200, 5, dtype=F64)
    profile = probe(plain, x)
    (found,) = profile.effective_depth.values()
    assert found.layers == 3
    close(found.value, 0.0, 1e-7)
    growth = [g for g in profile["growth"] if g is not None]
    close(found.normalised, sum(1 - 1 / g for g in growth), 1e-7)
    leaky = nn.Sequential(nn.Linear(5, 8), *(Plain(8, skip) for skip in (0.5, 0.9, 1.2))).double()
    (found,) = probe(leaky, x).effective_depth.values()
    close(found.value, 0.5 + 0.1 - 0.2, 1e-7)


def test_a_skip_that_cannot_be_told_is_none():
    net = nn.Sequential(Plain(8), Plain(8)).double()
    profile = probe(net, torch.randn(200, 8, dtype=F64), activation=Identity())
    assert profile["skip"][profile.layers.index("0")] is None
    assert profile.effective_depth == {}


# --- the table ------------------------------------------------------------------------------------------------------


def test_rows_are_in_order_of_execution():
    class Backwards(nn.Module):
        def __init__(self):
            super().__init__()
            self.last, self.first = nn.Linear(4, 3), nn.Linear(5, 4)

        def forward(self, x):
            return self.last(self.first(x))

    assert probe(Backwards(), torch.randn(9, 5)).layers == ["first", "last"]


def test_batches_and_order_change_nothing():
    net, x = mlp(), torch.randn(120, 5)
    with torch.no_grad():
        whole = probe(net.double(), x.double(), batch_size=120, shards=1)
        parts = probe(net, [x[i : i + n].double() for i, n in ((0, 1), (1, 50), (51, 0), (51, 69))], shards=1)
        turned = probe(net, x.double().flip(0), shards=5)
    for name in ("coi", "coi_stable", "stable_rank", "participation_ratio", "step_change", "cosine_mean"):
        for a, b, c in zip(whole[name], parts[name], turned[name], strict=True):
            if a is not None:
                close(a, b, 1e-9)
                close(a, c, 1e-9)


def test_shards_give_errors_that_are_those_of_new_data():
    torch.manual_seed(1)
    net = mlp().double()
    profiles = [probe(net, torch.randn(400, 5, dtype=F64), "2", shards=10) for _ in range(12)]
    for name in ("coi_stable", "stable_rank", "participation_ratio"):
        values = torch.tensor([p[name][0] for p in profiles])
        errors = torch.tensor([p[f"{name}_se"][0] for p in profiles])
        assert 0.5 < float(errors.mean() / values.std()) < 2.0
    assert "coi_se" not in probe(net, torch.randn(40, 5, dtype=F64), shards=1)


def test_wide_layers_have_fewer_shards():
    widths = (4, 8, 257, 513, 1025)
    net = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    profile = probe(net, torch.randn(12, 4), method="gram")
    assert [len(r.moments) for r in profile.records] == [8, 4, 2, 1]
    assert [value is None for value in profile["coi_stable_se"]] == [False, False, False, True]


def test_positions_of_a_sample_stay_in_one_shard():
    x = torch.randn(9, 7, 4, dtype=F64)
    net = nn.Sequential(nn.Linear(4, 4)).double()
    profile = probe(net, list(x.split(2)), shards=4)
    assert [m.count for m in profile.record("0").moments] == [21, 14, 14, 14]
    merged = profile.record("0").moments[0].spectrum()
    torch.testing.assert_close(merged, torch.linalg.svdvals(net(x[0::4]).detach().reshape(-1, 4)))


def test_dataframe_and_files(tmp_path):
    profile = probe(mlp(), torch.randn(60, 5))
    frame = profile.to_dataframe()
    assert frame.shape == (4, len(profile.columns)) and frame["layer"].to_list() == ["0", "2", "4", "6"]
    assert frame["step_change"].null_count() == 2
    assert polars.read_parquet(profile.save(tmp_path / "p.parquet")).equals(frame)
    assert polars.read_csv(profile.save(tmp_path / "p.csv"))["width"].to_list() == [8, 8, 8, 3]
    assert profile.skipped_dataframe()["layer"].to_list() == ["1", "3", "5"]
    with pytest.raises(ValueError, match=r"ending in .parquet, .csv or .pt \(to be merged later\), got 'p.txt'"):
        profile.save(tmp_path / "p.txt")
    again = Profile.load(profile.save(tmp_path / "p.pt"))
    assert again.columns == profile.columns and again.skipped == profile.skipped


def test_the_printed_profile_lists_what_was_not_read():
    text = str(probe(mlp(), torch.randn(60, 5)))
    assert "stable COI" in text and text.split()[3] == "dimension"
    assert "ReLU(append_one=True), Identity(append_one=False), gamma0 = 0.001" in text
    assert "not read (3):\n  1, 3, 5: not of a kind looked for" in text
    assert "effective depth of chain from 0: 2 over 2 steps" in text


def test_a_layer_that_was_not_read_says_why():
    profile = probe(mlp(), torch.randn(60, 5))
    with pytest.raises(KeyError, match=r"no layer '1'; it was not read: not of a kind looked for"):
        profile.spectrum("1")
    with pytest.raises(KeyError, match=r"no layer 'x'; there are 0, 2, 4, 6"):
        profile.record("x")
    with pytest.raises(KeyError, match=r"no column 'y'; there are layer, "):
        profile["y"]
    with pytest.raises(ValueError, match="gamma0 must be positive"):
        probe(mlp(), torch.randn(6, 5), gamma0=0.0)


def test_idle_layers_first():
    net = nn.Sequential(*(Plain(6) for _ in range(3)))
    with torch.no_grad():
        net[1].fc.weight.mul_(1e-3), net[1].fc.bias.zero_()
    profile = probe(net, torch.randn(50, 6), kinds=("block",))
    assert profile.idle()[0] == "1" and set(profile.idle()) == {"0", "1", "2"}


def test_a_null_control_of_a_layer():
    null = probe(mlp(), torch.randn(300, 5)).null("2", kind="shuffled")
    assert null["participation_ratio"][0] > 0


# --- merging --------------------------------------------------------------------------------------------------------


def test_profiles_of_parts_merge_into_that_of_the_whole(tmp_path):
    net, x = mlp().double(), torch.randn(100, 5, dtype=F64)
    whole = probe(net, x)
    first, second = probe(net, x[:40]), probe(net, x[40:])
    merged = Profile.load(first.save(tmp_path / "first.pt")).merge(second)
    assert merged.samples == 100 and merged.layers == whole.layers and merged.skipped == whole.skipped
    for name, values in whole.columns.items():
        if isinstance(values[0], float):
            for a, b in zip(values, merged[name], strict=True):
                close(a, b, 1e-6 if name.endswith("_se") else 1e-9)


def test_a_layer_that_fails_in_one_part_is_not_read_in_the_whole():
    class Sometimes(nn.Module):
        def forward(self, x):
            return x / 0 if float(x[0, 0]) > 5 else x

    net, x = nn.Sequential(nn.Linear(3, 4), Sometimes()), torch.randn(20, 3)
    with torch.no_grad():
        net[0].weight.zero_(), net[0].bias.zero_()
        good = probe(net, x, ["0", "1"])
        net[0].bias.fill_(9.0)
        bad = probe(net, x, ["0", "1"])
    for merged in (good.merge(bad), bad.merge(good)):
        assert merged.layers == ["0"]
        assert "NaN or infinite" in next(s.reason for s in merged.skipped if s.name == "1")


def test_profiles_that_do_not_fit_are_refused():
    x = torch.randn(20, 5)
    one = probe(mlp(), x)
    with pytest.raises(ValueError, match=r"only profiles of one gamma0 merge: 0.001 here, 0.1 there"):
        one.merge(probe(mlp(), x, gamma0=0.1))
    with pytest.raises(
        ValueError, match=r"only profiles of the same layers merge; 0: number of shards 8 here, 4 there"
    ):
        one.merge(probe(mlp(), x, shards=4))
    with pytest.raises(ValueError, match=r"0: activation ReLU.* here, Identity.* there"):
        one.merge(probe(mlp(), x, activation=Identity()))


def _process(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    try:
        torch.manual_seed(0)
        net, x = mlp().double(), torch.randn(100, 5, dtype=F64)
        mine = x[:30] if rank == 0 else x[30:]
        probe(net, mine, distributed=True).save(f"{folder}/{rank}.pt")
        try:
            probe(net, mine[:, :4] if rank else mine, distributed=True)
        except RuntimeError as error:
            with open(f"{folder}/{rank}.txt", "w") as file:
                file.write(str(error))
    finally:
        torch.distributed.destroy_process_group()


def test_two_processes_give_the_profile_of_the_whole_or_the_error_of_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_process, (port, str(tmp_path)), nprocs=2)
    torch.manual_seed(0)
    whole = probe(mlp().double(), torch.randn(100, 5, dtype=F64))
    parts = [Profile.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    assert parts[0].columns == parts[1].columns and parts[0].samples == 100
    for name in ("coi", "coi_stable", "stable_rank", "step_change"):
        for a, b in zip(whole[name], parts[0][name], strict=True):
            if a is not None:
                close(a, b, 1e-9)
    assert "process 1 failed with RuntimeError: mat1 and mat2" in (tmp_path / "0.txt").read_text()
    assert "mat1 and mat2" in (tmp_path / "1.txt").read_text()
