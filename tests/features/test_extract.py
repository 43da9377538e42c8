"""`m3dist features`: parts, bad things, what it refuses, and tiny models of each kind where the packages are there."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from cli_helpers import call

from m3dist import Dataset
from m3dist.features import models
from m3dist.features.models import BadThing, Model
from m3dist.features.sources import Thing


def needs(*packages: str) -> None:
    for package in packages:
        try:
            importlib.import_module(package)
        except (ImportError, RuntimeError, OSError) as error:
            pytest.skip(f"{package} cannot be imported ({error}); pip install '.[features]'")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A model in place of one of sentence-transformers, and the texts that it was given."""
    given: list[str] = []

    def load(thing: Thing) -> str:
        if not thing.what.strip():
            raise BadThing("an empty text")
        if thing.what == "stop":
            raise KeyboardInterrupt
        given.append(thing.what)
        return thing.what

    def encode(texts: list[str]) -> torch.Tensor:
        return torch.tensor([[len(x), x.count("a"), 1.0] for x in texts])

    monkeypatch.setattr(models, "check", lambda kind, name: None)
    monkeypatch.setattr(models, "open_model", lambda kind, name, device: Model(load, encode))
    return given


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder for --model, apart from what a call writes: its files are part of what parts belong to."""
    folder = tmp_path / "model"
    folder.mkdir()
    return folder


def texts(folder: Path, values: list[str]) -> Path:
    path = folder / "texts.csv"
    path.write_text("item_id,text\n" + "".join(f"{n},{x}\n" for n, x in enumerate(values)))
    return path


def test_features_become_a_modality(
    tmp_path: Path, model: Path, counted: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    source = texts(tmp_path, ["banana", "", "pear", "a"])
    (tmp_path / "pairs.csv").write_text("user,item\n" + "".join(f"{u},{i}\n" for u in range(40) for i in range(4)))
    arguments = ("features", "text", source, tmp_path / "text.parquet", "--model", model, "--part", 2)
    assert call(*arguments) == 2
    assert "error: item 1: an empty text; --on-bad skip leaves such items without features" in capsys.readouterr().err
    assert call(*arguments, "--on-bad", "skip") == 0
    assert capsys.readouterr().out.splitlines() == [
        "skipped: item 1: an empty text",
        f"3 of 4 items have features of 3 columns: {tmp_path / 'text.parquet'}",
    ]
    feature = f"text={tmp_path / 'text.parquet'}"
    prepared = tmp_path / "data"
    split = ("--split", "random", "--at-least-one")
    assert call("prepare", "tables", tmp_path / "pairs.csv", prepared, *split, "--feature", feature) == 0
    dataset = Dataset.open(prepared)
    assert dataset.features("text")[[0, 2, 3]].tolist() == [[6, 3, 1], [4, 1, 1], [1, 1, 1]]
    assert dataset.present("text").tolist() == [True, False, True, True]


def test_a_killed_call_goes_on(
    tmp_path: Path, model: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = texts(tmp_path, ["one", "two", "three", "stop", "five"])
    out = tmp_path / "text.parquet"
    arguments = ("features", "text", source, out, "--model", model, "--part", 2, "--batch", 1)
    assert call(*arguments) == 130
    assert counted == ["one", "two", "three"]
    assert not out.exists()

    def load(thing: Thing) -> str:
        counted.append(thing.what)
        return thing.what

    monkeypatch.setattr(models, "open_model", lambda *_: Model(load, lambda texts: torch.ones(len(texts), 3)))
    assert call(*arguments) == 0
    assert counted[3:] == ["three", "stop", "five"]
    assert pq.read_table(out)["item_id"].to_pylist() == ["0", "1", "2", "3", "4"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "text.parquet", "texts.csv"]


def test_parts_that_skipped_a_thing_are_refused_with_it(
    tmp_path: Path, model: Path, counted: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = texts(tmp_path, ["", "stop"])
    arguments = ("features", "text", source, tmp_path / "text.parquet", "--model", model, "--part", 1)
    assert call(*arguments, "--on-bad", "skip") == 130
    monkeypatch.setattr(
        models, "open_model", lambda *_: Model(lambda thing: thing.what, lambda x: torch.ones(len(x), 3))
    )
    capsys.readouterr()
    assert call(*arguments) == 2
    assert "error: item 0: an empty text; --on-bad skip" in capsys.readouterr().err
    assert call(*arguments, "--on-bad", "skip") == 0
    assert pq.read_table(tmp_path / "text.parquet")["item_id"].to_pylist() == ["1"]


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"")
    out = tmp_path / "x.parquet"
    twice = tmp_path / "twice.csv"
    twice.write_text("item_id,text\n1,a\n1,b\n")
    (tmp_path / "once.csv").write_text("item_id,text\n1,a\n")
    for arguments, said in (
        (("images", tmp_path / "none", out), "no such folder"),
        (("images", tmp_path / "pictures", out), "no images"),
        (("text", twice, out), "stands twice"),
        (("text", tmp_path / "none.csv", out), "no such file"),
        (("text", tmp_path / "once.csv", tmp_path / "x.csv"), "x.csv: would be a Parquet file"),
    ):
        assert call("features", *arguments, "--model", tmp_path / "model") == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1
    for name in ("a.png", "more/a.jpg"):
        (tmp_path / "pictures" / name).write_bytes(b"")
    assert call("features", "images", tmp_path / "pictures", out, "--model", tmp_path / "model") == 2
    assert "are both of item a" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["images", "text"])
def test_no_pickle_is_read_and_nothing_fetched(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_PACKAGES", {"images": (), "text": ()})
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"pickles can run code and are not read"):
        models.check(kind, str(tmp_path / "model"))
    with pytest.raises(ValueError, match="read from local folders alone"):
        models.check(kind, "resnet50")


def test_code_of_a_folder_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_PACKAGES", {"text": ()})
    (tmp_path / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "own.Model"}]))
    with pytest.raises(ValueError, match=r"names code of its own, 'own.Model'; not run"):
        models.open_model("text", str(tmp_path), torch.device("cpu"))


def test_pictures_by_a_tiny_model_of_timm(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("timm", "PIL")
    import timm
    from PIL import Image
    from safetensors.torch import save_file

    options = {"img_size": 32, "patch_size": 16, "embed_dim": 24, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, **options)
    (tmp_path / "model").mkdir()
    save_file(model.state_dict(), tmp_path / "model" / "model.safetensors")
    config = {
        "architecture": "vit_tiny_patch16_224", "model_args": options,
        "pretrained_cfg": {"input_size": [3, 32, 32], "mean": [0.5] * 3, "std": [0.5] * 3},
    }  # fmt: skip
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "pictures").mkdir()
    for n in range(5):
        Image.new("RGB", (40, 50), (50 * n, 100, 0)).save(tmp_path / "pictures" / f"B{n}.png")
    (tmp_path / "pictures" / "B9.jpg").write_bytes(b"no picture")
    arguments = ("features", "images", tmp_path / "pictures", tmp_path / "v.parquet", "--model", tmp_path / "model")
    assert call(*arguments) == 2
    assert "B9.jpg: no picture could be read" in capsys.readouterr().err
    arguments = (*arguments[:3], tmp_path / "w.parquet", *arguments[4:], "--on-bad", "skip", "--batch", 2)
    assert call(*arguments) == 0
    table = pq.read_table(tmp_path / "w.parquet")
    assert table["item_id"].to_pylist() == [f"B{n}" for n in range(5)]
    change = timm.data.create_transform(**timm.data.resolve_data_config(config["pretrained_cfg"], model=model))
    with torch.inference_mode():
        model.reset_classifier(0)
        expected = model.eval()(change(Image.new("RGB", (40, 50), (150, 100, 0)))[None])[0]
    np.testing.assert_allclose(np.array(table["vector"][3].as_py()), expected.numpy(), rtol=1e-4, atol=1e-5)


def test_texts_by_a_tiny_bert(tmp_path: Path) -> None:
    needs("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "blue", "shoe"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    bert = tmp_path / "bert"
    BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(bert)
    shape = BertConfig(
        vocab_size=len(words), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    BertModel(shape).save_pretrained(bert)
    inner = Transformer(str(bert))
    model = SentenceTransformer(modules=[inner, Pooling(16)], device="cpu")
    model.save(str(tmp_path / "model"))
    source = texts(tmp_path, ["red shoe", "blue shoe", "red"])
    assert call("features", "text", source, tmp_path / "t.parquet", "--model", tmp_path / "model") == 0
    vectors = np.array(pq.read_table(tmp_path / "t.parquet")["vector"].to_pylist())
    np.testing.assert_allclose(vectors, model.encode(["red shoe", "blue shoe", "red"]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "width"), [("mel", 128), ("mfcc", 80)])
def test_sounds(name: str, width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    needs("torchaudio", "soundfile")
    import soundfile

    (tmp_path / "sounds").mkdir()
    at = np.arange(22050) / 22050
    for item, pitch in (("low", 200), ("high", 4000)):
        soundfile.write(tmp_path / "sounds" / f"{item}.wav", 0.5 * np.sin(2 * np.pi * pitch * at), 22050)
    (tmp_path / "sounds" / "none.wav").write_bytes(b"RIFF")
    out = tmp_path / "a.parquet"
    assert call("features", "audio", tmp_path / "sounds", out, "--model", name, "--on-bad", "skip") == 0
    assert "none.wav: no sound could be read" in capsys.readouterr().out
    found = dict(zip(*(column.to_pylist() for column in pq.read_table(out).columns), strict=True))
    assert {len(x) for x in found.values()} == {width}
    if name == "mel":  # where the energy is
        assert np.argmax(found["low"][:64]) < 15 < 35 < np.argmax(found["high"][:64])


@pytest.mark.slow
def test_workers_find_the_same(tmp_path: Path, ray_here: None) -> None:
    needs("torchaudio", "soundfile")
    import soundfile

    (tmp_path / "sounds").mkdir()
    for n in range(6):
        noise = np.random.default_rng(n).normal(size=8000) * 0.1
        soundfile.write(tmp_path / "sounds" / f"{n}.wav", noise, 16000)
    for out, workers in (("one", 0), ("two", 2)):
        arguments = ("--model", "mel", "--part", 2, "--workers", workers)
        assert call("features", "audio", tmp_path / "sounds", tmp_path / out, *arguments) == 0
    assert pq.read_table(tmp_path / "one").equals(pq.read_table(tmp_path / "two"))
