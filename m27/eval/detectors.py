"""Who finds the objects in a drawn picture and says their colours: models of transformers, opened from a folder.

A detector is any function from a picture to `Found` (class → boxes with confidence), a colour reader any from a
picture, boxes and their class to a colour each (`m27.eval.scorers.geneval`); these two are what ships. GenEval's
published figures are by Mask2Former and CLIP ViT-L/14, so the row names who it was. transformers is imported when a
model is opened, and never runs code from a folder.

Pictures are uint8 [H, W, 3]; boxes are in their pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from m27.eval.report import weights_revision
from m27.eval.scorers.geneval import COLOURS, THRESHOLD, Box

Pixels = npt.NDArray[np.uint8]
# COCO's names of classes that GenEval's prompts call otherwise.
RENAMED = {"mouse": "computer mouse", "remote": "tv remote", "keyboard": "computer keyboard"}
TEMPLATES = ("a photo of a {colour} {name}", "a photo of a {colour}-colored {name}", "a photo of a {colour} object")


class DetectorError(ValueError):
    """A model that cannot be opened or used so; the message is one line that says why."""


def _opened(folder: str, kind: str, reads: str) -> tuple[Any, Any]:
    import transformers

    try:
        model: Any = getattr(transformers, kind).from_pretrained(folder)
        return model.eval(), getattr(transformers, reads).from_pretrained(folder)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise DetectorError(f"{folder}: {' '.join(str(error).split())[:300]}") from error


def _named(folder: str, model: Any) -> str:
    path = Path(folder)
    revision = weights_revision(path) if path.is_dir() else str(getattr(model.config, "_commit_hash", "") or "")[:12]
    return f"{type(model).__name__} of {path.name} ({revision or 'unknown'})"


class Detector:
    """Any `AutoModelForObjectDetection` that was trained on COCO's classes, from a folder or by its name."""

    def __init__(self, folder: str) -> None:
        self._model, self._reads = _opened(folder, "AutoModelForObjectDetection", "AutoImageProcessor")
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model.to(self._device)
        labels = self._model.config.id2label
        self._labels = {int(k): RENAMED.get(str(v), str(v)) for k, v in labels.items()}
        self.classes = frozenset(self._labels.values())
        self.name = _named(folder, self._model)

    @torch.inference_mode()
    def __call__(self, picture: Pixels) -> dict[str, list[Box]]:
        """Class → boxes of at least the confidence that counts."""
        from PIL import Image

        inputs = self._reads(images=[Image.fromarray(picture)], return_tensors="pt").to(self._device)
        sizes = torch.tensor([picture.shape[:2]])
        (found,) = self._reads.post_process_object_detection(
            self._model(**inputs), threshold=THRESHOLD, target_sizes=sizes.to(self._device)
        )
        out: dict[str, list[Box]] = {}
        rows = zip(*(found[k].tolist() for k in ("scores", "labels", "boxes")), strict=True)
        for sure, label, (left, top, right, bottom) in rows:
            out.setdefault(self._labels.get(int(label), str(label)), []).append(Box(left, top, right, bottom, sure))
        return out


class ClipColours:
    """A CLIP-like model of transformers: the colour whose sentences are nearest to what a box holds.

    The sentences are the official program's. It also blanks what lies outside the object's mask; a box has none, so the
    whole of it is looked at, as the official program does of detectors without masks.
    """

    def __init__(self, folder: str) -> None:
        self._model, self._reads = _opened(folder, "AutoModel", "AutoProcessor")
        if not hasattr(self._model, "get_image_features") or not hasattr(self._model, "get_text_features"):
            raise DetectorError(f"{folder}: {type(self._model).__name__} does not compare pictures with words")
        self._known: dict[str, Tensor] = {}
        self.name = _named(folder, self._model)

    @torch.inference_mode()
    def __call__(self, picture: Pixels, boxes: Sequence[Box], name: str) -> list[str]:
        """One of the ten colours a box."""
        from PIL import Image

        crops = [Image.fromarray(crop(picture, box)) for box in boxes]
        if not crops:
            return []
        inputs = self._reads(images=crops, return_tensors="pt")
        seen = _unit(self._model.get_image_features(pixel_values=inputs["pixel_values"]))
        return [COLOURS[k] for k in (seen @ self._words(name).T).argmax(1).tolist()]

    def _words(self, name: str) -> Tensor:
        """A unit vector a colour: the mean of its sentences'."""
        if name not in self._known:
            texts = [form.format(colour=colour, name=name) for colour in COLOURS for form in TEMPLATES]
            inputs = self._reads(text=texts, return_tensors="pt", padding=True)
            inputs = {k: inputs[k] for k in ("input_ids", "attention_mask") if k in inputs}
            each = _unit(self._model.get_text_features(**inputs))
            self._known[name] = _unit(each.reshape(len(COLOURS), len(TEMPLATES), -1).mean(1))
        return self._known[name]


def _unit(features: Any) -> Tensor:
    rows: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return torch.nn.functional.normalize(rows.float(), dim=-1)


def crop(picture: Pixels, box: Box) -> Pixels:
    """What a box holds, a pixel at least."""
    height, width = picture.shape[:2]
    left, top = min(max(int(box.left), 0), width - 1), min(max(int(box.top), 0), height - 1)
    right, bottom = max(round(box.right), left + 1), max(round(box.bottom), top + 1)
    return picture[top:bottom, left:right]


_RGB = {
    "red": (200, 30, 40), "orange": (240, 130, 30), "yellow": (240, 210, 50), "green": (50, 150, 60),
    "blue": (40, 90, 200), "purple": (120, 50, 160), "pink": (245, 150, 190), "brown": (110, 70, 40),
    "black": (20, 20, 20), "white": (240, 240, 240),
}  # fmt: skip


class PixelColours:
    """Without a model: the colour to which most pixels of the middle half of a box are nearest, in red, green, blue."""

    name = "the commonest colour of the middle of each box (a rule of m27's, not the official one)"

    def __call__(self, picture: Pixels, boxes: Sequence[Box], name: str) -> list[str]:
        """One of the ten colours a box."""
        table = np.array([_RGB[colour] for colour in COLOURS], np.float32)
        out = []
        for box in boxes:
            part = crop(picture, box)
            height, width = part.shape[:2]
            middle = part[height // 4 : height - height // 4, width // 4 : width - width // 4].reshape(-1, 3)
            apart = ((middle[:, None].astype(np.float32) - table) ** 2).sum(-1)
            out.append(COLOURS[int(np.bincount(apart.argmin(1), minlength=len(COLOURS)).argmax())])
        return out
