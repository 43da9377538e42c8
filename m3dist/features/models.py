"""Models that make features. They are read from local folders as safetensors and JSON alone: nothing is unpickled, no
code of a folder runs, and nothing is fetched.

    images   a folder of timm: config.json with `architecture`, and model.safetensors
    text     a folder of sentence-transformers, with *.safetensors
    audio    `mel` or `mfcc` of torchaudio, which need no weights: mean and standard deviation over time

Shapes: B things of a batch, d width of the features.
"""

from __future__ import annotations

import importlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from m3dist.features.sources import Thing

Encode = Callable[[list[Any]], Tensor]  # what was loaded, B of them -> float32 [B, d]
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".ckpt")
_RATE, _SECONDS = 16_000, 30  # sounds are brought to this rate, and cut
_PACKAGES = {
    "images": ("timm", "PIL"),
    "text": ("sentence_transformers",),
    "audio": ("torchaudio", "soundfile"),
}
_GET = "hf download NAME --local-dir FOLDER fetches one where there is a network"


class BadThing(Exception):
    """A picture, text or sound of which no features can be made."""


class Model:
    """A model on a device. load: a thing as `encode` takes it, or BadThing."""

    def __init__(self, load: Callable[[Thing], Any], encode: Encode):
        self.load, self._encode = load, encode

    def encode(self, loaded: list[Any]) -> np.ndarray:
        """float32 [B, d]"""
        with torch.inference_mode():
            return self._encode(loaded).float().cpu().numpy()


def check(kind: str, name: str) -> None:
    """Raises ValueError where the packages or the model are not there, before anything is read."""
    for package in _PACKAGES[kind]:
        try:
            importlib.import_module(package)
        except (ImportError, RuntimeError, OSError) as error:  # RuntimeError: torchvision of another torch
            raise ValueError(
                f"{package} cannot be imported ({_line(error)}); features of {kind} need it: "
                'pip install "m3dist[features]"'
            ) from None
    if kind == "audio":
        if name not in ("mel", "mfcc"):
            raise ValueError(f"--model {name}: expected mel or mfcc")
        return
    folder = Path(name)
    if not folder.is_dir():
        raise ValueError(f"--model {name}: no such folder; models are read from local folders alone, and {_GET}")
    for path in sorted(folder.rglob("*")):
        if path.suffix in _PICKLES and not list(path.parent.glob("*.safetensors")):
            raise ValueError(f"--model {path}: pickles can run code and are not read; expected *.safetensors beside it")


def open_model(kind: str, name: str, device: torch.device) -> Model:
    """Raises ValueError where the folder is no model of this kind."""
    check(kind, name)
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}  # for what is imported from here on
    return {"images": _images, "text": _text, "audio": _audio}[kind](name, device)


def _images(name: str, device: torch.device) -> Model:
    import timm
    from PIL import Image
    from safetensors.torch import load_file

    folder = Path(name)
    config = _json(folder / "config.json")
    options = config.get("model_args", {})
    try:
        model = timm.create_model(str(config["architecture"]), pretrained=False, num_classes=0, **options)
        tensors = load_file(folder / "model.safetensors")
        missing, _ = model.load_state_dict(tensors, strict=False)
    except Exception as error:  # timm and safetensors raise RuntimeErrors and others of their own
        raise ValueError(
            f"--model {name}: no model of timm ({_line(error)}); expected config.json with an architecture that timm "
            f"knows, and its model.safetensors; {_GET}"
        ) from None
    if missing:
        raise ValueError(f"--model {name}: model.safetensors lacks {missing[0]} and {len(missing) - 1} others")
    model.eval().to(device)
    given = {key: x for key, x in config.get("pretrained_cfg", {}).items() if key in ("input_size", "mean", "std")}
    change = timm.data.create_transform(**timm.data.resolve_data_config(given, model=model))

    def load(thing: Thing) -> Tensor:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(thing.what) as picture:
                    return change(picture.convert("RGB"))
        except Exception as error:  # a decoder may raise anything on a broken file
            raise BadThing(f"no picture could be read ({_line(error)})") from None

    return Model(load, lambda loaded: model(torch.stack(loaded).to(device)))


def _text(name: str, device: torch.device) -> Model:
    folder = Path(name)
    for module in json.loads((folder / "modules.json").read_text()) if (folder / "modules.json").is_file() else []:
        if not str(module.get("type", "")).startswith("sentence_transformers."):
            raise ValueError(f"--model {name}: modules.json names code of its own, {module.get('type')!r}; not run")
    from sentence_transformers import SentenceTransformer

    try:
        model = SentenceTransformer(
            name, device=str(device), local_files_only=True, trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )  # fmt: skip
    except Exception as error:  # transformers raise errors of many kinds
        raise ValueError(f"--model {name}: no model of sentence-transformers ({_line(error)}); {_GET}") from None

    def load(thing: Thing) -> str:
        if not thing.what.strip():
            raise BadThing("an empty text")
        return thing.what

    return Model(load, lambda loaded: model.encode(loaded, batch_size=len(loaded), convert_to_tensor=True))


def _audio(name: str, device: torch.device) -> Model:
    import soundfile
    from torchaudio import functional, transforms

    if name == "mel":
        mel = transforms.MelSpectrogram(_RATE, n_mels=64, n_fft=1024, hop_length=512).to(device)
        change: Callable[[Tensor], Tensor] = lambda x: torch.log(mel(x) + 1e-6)  # noqa: E731
    else:
        options = {"n_mels": 64, "n_fft": 1024, "hop_length": 512}
        change = transforms.MFCC(_RATE, n_mfcc=40, melkwargs=options).to(device)

    def load(thing: Thing) -> Tensor:
        try:
            with soundfile.SoundFile(thing.what) as file:
                rate = file.samplerate
                wave = file.read(rate * _SECONDS, dtype="float32", always_2d=True).mean(1)
        except Exception as error:  # a decoder may raise anything on a broken file
            raise BadThing(f"no sound could be read ({_line(error)})") from None
        if len(wave) < rate // 20 or not np.isfinite(wave).all():
            raise BadThing("shorter than a twentieth of a second, or not finite")
        return functional.resample(torch.from_numpy(wave), rate, _RATE)

    def encode(loaded: list[Tensor]) -> Tensor:  # each of its own length
        frames = [change(x.to(device)) for x in loaded]
        return torch.stack([torch.cat([x.mean(1), x.std(1, correction=0)]) for x in frames])

    return Model(load, encode)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read ({_line(error)}); expected a model's config; {_GET}") from None


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
