"""What lmms-eval finds by its entry points `lmms_eval.models`: the model `m27`, to be imported when it is asked for."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """The name and the class, as lmms-eval (0.6 and later) wants to be told."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="m27", chat_class_path="m27.eval.plugins.lmms_model.M27")
