"""Templates of m27-nano's sources: shards whose codes come later (see `m27.data.templates`), a folder each."""

from __future__ import annotations

from m27.data import templates
from m27.language.processor import Processor
from recipes import base
from recipes.stages import NanoRecipe


def build(
    recipe: NanoRecipe, name: str, processor: Processor, packed: bool = True, part: int = 0
) -> str:
    """Build the template of one source unless it is current; a line that says what it holds.

    Parts (1 and on) are made with seeds of their own, into folders of their own, where a source never ends.
    """
    from recipes import nano

    folder = recipe.shards / (f"{name}-{part}" if part else name)
    if templates.is_current(folder, processor):
        return f"{folder.name}: current"
    try:
        meta = templates.build(
            nano.maker(name)("train", recipe.seed + part), processor,
            (base.IMAGE_LEVELS, base.AUDIO_LEVELS), folder, packed,
            max_tokens=recipe.train.data.row, limit=recipe.sources[name],
        )  # fmt: skip
    except Exception as error:  # one source must not cost the others their hour
        return f"{folder.name}: FAILED: {type(error).__name__}: {error}"
    return nano.told(folder.name, meta)
