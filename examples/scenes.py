"""Makes the scenes that the tour asks about, from held-out emoji, chosen by a seed and not by hand.

    python examples/scenes.py examples/samples

Only emoji are pasted (Noto, Apache-2.0; Fluent, MIT) on plain backgrounds, so that the pictures may be
shipped. Prints what is asked of each and the right answer; the tour's text follows it.
"""

import random
import sys
from pathlib import Path

from m27.codec.media import write_png
from m27.data.makers import scenes
from m27.data.makers.canvas import PHOTOGRAPH, countable, cut
from m27.data.sources import emoji
from m27.data.sources.base import Item, of_split

SEED = 27
SCENES = {
    "count.png": ("scene_count", scenes.counted),
    "box.png": ("scene_box", scenes.single),
    "side.png": ("scene_relation", scenes.related),
}
GROUPS = ("animals-nature", "food-drink", "objects")


def pool() -> list[Item]:
    """Held-out emoji whose name is one or two words and can be counted."""
    return [
        item
        for item in of_split(emoji.items(), "test")
        if item.meta["group"] in GROUPS and not item.meta["tone"]
        and len(item.text.split()) <= 2 and countable(item.text) and cut(item)
    ]  # fmt: skip


def make(name: str, items: list[Item]) -> tuple[scenes.Scene, str, str]:
    """The first scene of the seed's order that will do: it, the question and the answer.

    One on a photograph may not be shipped, one that allows no question or shows one thing to count is no use.
    """
    task, maker = SCENES[name]
    rng = random.Random(f"{name}:{SEED}")
    while True:
        scene = maker(rng, items, "test")
        found = scenes.questions(task, scene, rng, None)
        if scene.background == PHOTOGRAPH or not found or found[0][2] == "one":
            continue
        _, asked, answer = found[0]
        return scene, asked, answer


def main(folder: Path) -> None:
    """Write the scenes into a folder, no thing in two of them."""
    items = pool()
    for name in SCENES:
        scene, asked, answer = make(name, items)
        shown = {thing.name for thing in scene.things}
        items = [item for item in items if item.text not in shown]
        write_png(folder / name, scene.image)
        print(f"{name}: {asked} -> {answer}   ({scene.caption})")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "examples/samples"))
