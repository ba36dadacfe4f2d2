"""Callbacks in the frameworks themselves: what they log, and that training goes on to the same bits."""

import importlib
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from isthmus.probe import probe
from isthmus.probe.integrations import SCALARS, Watch, scalars_of
from isthmus.probe.integrations.tensorboard import TensorBoardProbe, make_writer, write_profile


def make_net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))


def make_data():
    generator = torch.Generator().manual_seed(2)
    return torch.randn(40, 5, generator=generator), torch.randint(0, 3, (40,), generator=generator)


class Writer:
    def __init__(self):
        self.scalars = []

    def add_scalar(self, name, value, step):
        self.scalars.append((name, value, step))


# --- watching -------------------------------------------------------------------------------------------------------


def test_a_watch_keeps_tables_and_the_newest_profiles():
    net, (x, _) = make_net(), make_data()
    watch = Watch(x, keep=2, options={"layers": ["0", "5"], "shards": 2})
    for step in (0, 10, 20):
        scalars = watch(net, step)
    assert set(scalars) == {f"isthmus/{column}/{layer}" for column in SCALARS[:4] for layer in ("0", "5")}
    assert scalars["isthmus/stable_rank/0"] == watch.last["stable_rank"][0]
    assert list(watch.profiles) == [10, 20] and watch.steps == [0, 10, 20]
    frame = watch.to_dataframe()
    assert frame.shape[0] == 6 and frame["step"].to_list() == [0, 0, 10, 10, 20, 20]
    again = Watch(x)
    again.load_state_dict(watch.state_dict())
    assert again.to_dataframe().equals(frame) and again.last is None
    assert watch(net, 20) == scalars and watch.to_dataframe().equals(frame)  # a step is not in the table twice


def test_a_first_failure_is_raised_and_a_later_one_is_a_warning():
    net, (x, _) = make_net(), make_data()
    with pytest.raises(ValueError, match="no module fits 'nowhere'"):
        Watch(x, options={"layers": "nowhere"})(net, 0)
    watch = Watch(x)
    watch(net, 0)
    with torch.no_grad():
        net[0].weight.fill_(torch.nan)
    with pytest.warns(UserWarning, match=r"isthmus could not probe at step 7: ValueError: layers: none of the layers"):
        assert watch(net, 7) == {}
    assert list(watch.failures) == [7] and watch.steps == [0]


def test_the_generator_of_a_loader_is_as_it_was():
    x, _ = make_data()
    generator = torch.Generator().manual_seed(5)
    loader = DataLoader(TensorDataset(x), batch_size=8, shuffle=True, generator=generator)
    before, batch = generator.get_state(), next(iter(loader))[0]
    generator.set_state(before)
    Watch(loader)(make_net(), 0)
    assert torch.equal(next(iter(loader))[0], batch)


def test_what_a_watch_refuses():
    x, _ = make_data()
    with pytest.raises(TypeError, match=r"read more than once, got an iterator; list\(data\) will do"):
        Watch(iter([x]))
    with pytest.raises(ValueError, match="keep: expected at least 1 profile, or None for all, got 0"):
        Watch(x, keep=0)
    profile = probe(make_net(), x)
    with pytest.raises(ValueError, match=r"columns: 'kind' holds no numbers \('linear'\)"):
        scalars_of(profile, ["kind"])
    assert scalars_of(profile, ["no such column"]) == {}


# --- TensorBoard ----------------------------------------------------------------------------------------------------


def test_a_training_loop_writes_scalars_that_tensorboard_reads(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    net, (x, _) = make_net(), make_data()
    with TensorBoardProbe(x, tmp_path, every=10, columns=["stable_rank", "step_change"]) as probing:
        for step in range(21):
            written = probing.step(net, step)
            assert bool(written) == (step % 10 == 0)
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    tags = events.Tags()["scalars"]
    assert tags == [*(f"isthmus/stable_rank/{layer}" for layer in ("0", "3", "5")), "isthmus/step_change/3"]
    found = events.Scalars("isthmus/stable_rank/0")
    assert [e.step for e in found] == [0, 10, 20]
    assert found[-1].value == pytest.approx(probing.watch.last["stable_rank"][0], rel=1e-6)


def test_a_profile_is_written_by_any_writer():
    x, _ = make_data()
    profile, writer = probe(make_net(), x), Writer()
    written = write_profile(profile, writer, 3, columns=["coi_stable"], prefix="net/")
    assert writer.scalars == [(name, value, 3) for name, value in written.items()]
    assert list(written) == ["net/coi_stable/0", "net/coi_stable/3", "net/coi_stable/5"]
    with pytest.raises(TypeError, match="expected a SummaryWriter, with add_scalar, got int"):
        write_profile(profile, 3, 3)
    with pytest.raises(TypeError, match="expected a SummaryWriter or a folder, got int"):
        make_writer(3)
    with pytest.raises(ValueError, match="every: expected at least 1, or None for never, got 0"):
        TensorBoardProbe(x, writer, every=0)


@pytest.mark.parametrize(
    "name, package",
    [
        ("lightning", "lightning"),
        ("pytorch_lightning", "pytorch-lightning"),
        ("transformers", "transformers"),
    ],
)
def test_a_package_that_is_missing_is_named(monkeypatch, name, package):
    for module in [m for m in sys.modules if m.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, f"isthmus.probe.integrations.{name}", raising=False)
    with pytest.raises(ImportError, match=rf"needs {package}, which cannot be imported .*: pip install {package}, or"):
        importlib.import_module(f"isthmus.probe.integrations.{name}")


def test_a_missing_tensorboard_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"writing to TensorBoard needs tensorboard, which cannot be imported .*pip"):
        make_writer(tmp_path)


# --- Lightning ------------------------------------------------------------------------------------------------------


def lightning_run(package, tmp_path, callbacks, **options):
    """Two epochs of four batches each; the weights, and what the logger got."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own: few workers, its folders, its imports' deprecations
        pl = importlib.import_module(package)
        loggers = importlib.import_module(f"{package}.loggers")

        class Module(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.net, self.norm = make_net(), nn.BatchNorm1d(5)

            def training_step(self, batch, _):
                return nn.functional.cross_entropy(self.net(self.norm(batch[0])), batch[1])

            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.1)

        logger = loggers.CSVLogger(str(tmp_path))
        module = Module()
        trainer = pl.Trainer(
            max_epochs=2,
            accelerator="cpu",
            logger=logger,
            callbacks=callbacks,
            log_every_n_steps=1,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=str(tmp_path),
            **options,
        )
        pl.seed_everything(3, verbose=False)
        trainer.fit(module, DataLoader(TensorDataset(*make_data()), batch_size=10, shuffle=True))
        assert module.training and module.net[2].training
        return module.state_dict(), loggers, trainer, module


@pytest.mark.parametrize("package", ["lightning.pytorch", "pytorch_lightning"])
def test_lightning_trains_on_to_the_same_bits_and_logs(package, tmp_path):
    polars = pytest.importorskip("polars")
    x, _ = make_data()
    plain, *_ = lightning_run(package, tmp_path / "plain", [])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callback = importlib.import_module(f"isthmus.probe.integrations.{package.split('.')[0]}").ProbeCallback
    assert issubclass(callback, importlib.import_module(package).Callback)
    probing = callback(
        DataLoader(TensorDataset(x), batch_size=7, shuffle=True), every_n_steps=3, model=lambda m: m.net, shards=1
    )
    watched, _, _, module = lightning_run(package, tmp_path / "watched", [probing])
    for name, value in plain.items():
        assert torch.equal(value, watched[name]), name
    assert probing.watch.steps == [0, 3, 4, 6, 8]
    expected = probe(module.net, x, shards=1)
    assert probing.watch.last["stable_rank"] == pytest.approx(expected["stable_rank"], rel=1e-6)
    logged = polars.read_csv(next((tmp_path / "watched").rglob("metrics.csv")))
    assert logged["step"].to_list() == [0, 3, 4, 6, 8]
    assert logged["isthmus/stable_rank/5"].to_list()[-1] == pytest.approx(expected["stable_rank"][-1], rel=1e-6)


def test_lightning_with_gradients_accumulated_probes_each_step_once_and_resumes(tmp_path):
    from isthmus.probe.integrations._lightning import LightningHooks

    lightning = pytest.importorskip("lightning.pytorch")

    class Callback(LightningHooks, lightning.Callback):
        pass

    x, _ = make_data()
    probing = Callback(x, every_n_epochs=None, every_n_steps=1, at_start=False, model=lambda m: m.net)
    _, _, trainer, _ = lightning_run("lightning.pytorch", tmp_path, [probing], accumulate_grad_batches=2)
    assert probing.watch.steps == [1, 2, 3, 4]
    file = tmp_path / "last.ckpt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer.save_checkpoint(file)
    saved = torch.load(file, weights_only=True)["callbacks"]
    again = Callback(x)
    again.load_state_dict(next(state for name, state in saved.items() if name.startswith(Callback.__qualname__)))
    assert again.watch.to_dataframe().equals(probing.watch.to_dataframe())
    with pytest.raises(ValueError, match="every_n_steps: expected at least 1, or None for never, got 0"):
        Callback(x, every_n_steps=0)


# --- Hugging Face ---------------------------------------------------------------------------------------------------


class Classifier(nn.Module):
    """What the Trainer needs: a dict with the loss when labels come, tokens with padding."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(1)
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.embed, self.encoder = nn.Embedding(20, 8), nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids, attention_mask=None, labels=None):
        hidden = self.encoder(self.embed(input_ids), src_key_padding_mask=attention_mask == 0)
        logits = self.head(hidden[:, 0])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if loss is not None else {"logits": logits}


def text_data():
    generator = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 20, (24, 6), generator=generator)
    mask = (torch.arange(6) < torch.randint(2, 7, (24, 1), generator=generator)).long()
    labels = torch.randint(0, 3, (24,), generator=generator)
    return [{"input_ids": i, "attention_mask": m, "labels": t} for i, m, t in zip(ids, mask, labels, strict=True)]


def hugging_face_run(tmp_path, callback=None, attach=True, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own deprecations
        transformers = pytest.importorskip("transformers")
        pytest.importorskip("accelerate")
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            num_train_epochs=2,
            per_device_train_batch_size=6,
            logging_steps=2,
            use_cpu=True,
            disable_tqdm=True,
            save_strategy="no",
            learning_rate=1e-2,
            **options,
        )
        trainer = transformers.Trainer(model=Classifier(), args=arguments, train_dataset=text_data())
        if callback is not None:
            callback.attach(trainer) if attach else trainer.add_callback(callback)
        trainer.train()
    return trainer


def test_hugging_face_trains_on_to_the_same_bits_and_logs(tmp_path, capsys):
    plain = hugging_face_run(tmp_path / "plain")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from isthmus.probe.integrations.transformers import ProbeCallback
    loader = DataLoader(text_data(), batch_size=5)
    probing = ProbeCallback(loader, every_n_steps=3, layers=["encoder.layers.*", "head"], shards=1)
    watched = hugging_face_run(tmp_path / "watched", probing)
    for a, b in zip(plain.model.parameters(), watched.model.parameters(), strict=True):
        assert torch.equal(a, b)
    assert probing.watch.steps == [0, 3, 4, 6, 8]
    ours = [entry for entry in watched.state.log_history if "isthmus/stable_rank/head" in entry]
    assert [entry["step"] for entry in ours] == [0, 3, 4, 6, 8]
    # the Trainer's own entries are all there: the flag that makes it log survives
    losses = [[e["step"] for e in t.state.log_history if "loss" in e] for t in (plain, watched)]
    assert losses[0] == losses[1] == [2, 4, 6, 8]
    expected = probe(watched.model, loader, ["encoder.layers.*", "head"], shards=1)
    assert probing.watch.last["coi_stable"] == pytest.approx(expected["coi_stable"], rel=1e-9)
    assert ours[-1]["isthmus/coi_stable/head"] == pytest.approx(expected["coi_stable"][-1], rel=1e-9)
    real = sum(int(sample["attention_mask"].sum()) for sample in text_data())
    assert expected["rows"][0] == real and "padding left out" in expected["reading"][0]


def test_hugging_face_without_its_trainer_says_where_it_logs(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from isthmus.probe.integrations.transformers import ProbeCallback
    probing = ProbeCallback(DataLoader(text_data(), batch_size=24), layers="head", every_n_epochs=2)
    trainer = hugging_face_run(tmp_path, probing, attach=False)
    assert probing.watch.steps == [0, 8]
    assert [e["step"] for e in trainer.state.log_history if "isthmus/stable_rank/head" in e] == [0, 8]

    class Arguments:
        report_to = ("tensorboard",)

    with pytest.warns(
        UserWarning, match=r"trainer.state.log_history alone and not to tensorboard; .*attach\(trainer\)"
    ):
        ProbeCallback([text_data()[0]], at_start=False).on_train_begin(Arguments(), trainer.state, trainer.control)
    with pytest.raises(TypeError, match=r"trainer: expected a transformers\.Trainer, got int"):
        probing.attach(3)
