"""The training stages of m27-nano: each one function that returns one typed configuration.

`whole` is all of it in one stage for a GPU. On CPUs: `projections` moves only the code maps and control rows
to where the codes of new codecs mean something, `joint` trains adapters and rows on every task, `sft` goes on
at a lower rate on questions as users ask them, `asked` asks many questions about each picture or sound. Each
begins with what the stage before it left, or with the shipped weights where no such run is there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from m27.train.lora import LoraConfig
from m27.train.optim import OptimConfig
from m27.train.settings import DataConfig, TrainConfig
from recipes import base

NAME = "m27-nano"


@dataclass(frozen=True)
class NanoRecipe:
    """Where things are, how many documents of each source are taken, and the run itself.

    The run begins with the newest snapshot of the first run of `begin` that has one; else, where `shipped`,
    with the trained part in `out`; else the code maps begin near their captions' words (`warm_start`).
    """

    train: TrainConfig
    sources: Mapping[str, int] = field(default_factory=dict)
    out: Path = base.WEIGHTS
    codecs: Path = Path(".cache/codecs")
    shards: Path = Path(".cache/shards/nano")
    runs: Path = Path("runs")
    seed: int = 27
    warm_start: bool = True
    begin: Sequence[str] = ()
    shipped: bool = True
    tokens: float = 0.0  # of the whole run, as expected; 0: not known
    epochs: float = 5.0  # a task is gone through at most so often, where `tokens` is known
    templates: bool = (
        False  # shards are built with numbers where codes go, see `m27.data.templates`
    )


SOURCES: Mapping[str, int] = {
    "easy_vqa": 6_000, "cifar10": 9_000, "emoji": 7_000, "fluent": 4_000, "openclipart": 5_000,
    "scenes": 9_000, "books": 3_000, "made_books": 2_500, "tiny_imagenet": 5_000, "stamps": 1_500,
    "languages": 1_500, "grocery": 1_200, "nlvr": 500, "fashion": 1_000, "quickdraw": 1_000,
    "triples": 800, "heard_pictures": 800, "instruments": 3_000, "spoken_words": 1_500,
    "spoken_digits": 800, "speech": 3_500, "kokoro": 4_000, "environment": 1_200, "soundscapes": 800,
    "replay": 400, "texts": 2_500, "asked": 4_800,
}  # fmt: skip

# Shares of the tokens. A picture is 64 codes, so what asks for a word costs as much as what draws.
JOINT: Mapping[str, float] = {
    # picture to words
    "name_picture": 0.06, "caption_picture": 0.08, "caption_language": 0.01, "vqa": 0.11,
    "scene_caption": 0.01, "scene_count": 0.05, "scene_color": 0.03, "scene_relation": 0.06,
    "scene_where": 0.01, "scene_box": 0.06, "photo_box": 0.01,
    # words to picture
    "draw": 0.14, "story": 0.01, "story_page": 0.01, "story_next": 0.005, "story_text": 0.005,
    "story_count": 0.03, "place_pictures": 0.03,
    # sound to words
    "name_sound": 0.015, "soundscape": 0.005, "name_instrument": 0.015, "name_family": 0.025,
    "name_word": 0.01, "transcribe": 0.11,
    # words to sound
    "speak": 0.05, "sound_for_text": 0.03, "sound_for_picture": 0.02, "picture_for_sound": 0.005,
    "text": 0.05,
}  # fmt: skip

# One picture with all its questions is one document here, see `m27.data.makers.asked`.
ASKED: Mapping[str, float] = {
    "scene_questions": 0.33, "vqa": 0.21, "instrument_questions": 0.08,
    "name_picture": 0.10, "caption_picture": 0.05, "name_sound": 0.045, "name_word": 0.015,
    "place_pictures": 0.035, "story_count": 0.03, "draw": 0.03, "sound_for_text": 0.015, "text": 0.06,
}  # fmt: skip

# For a GPU: sources as far as they go, and shares that go through each some two to seven times in a hundred
# million tokens.
WHOLE_SOURCES: Mapping[str, int] = {
    "easy_vqa": 9_000, "cifar10": 62_500, "emoji": 8_000, "fluent": 7_000, "openclipart": 14_000,
    "scenes": 36_000, "books": 5_000, "made_books": 9_000, "tiny_imagenet": 28_000, "stamps": 3_000,
    "languages": 1_500, "grocery": 3_300, "nlvr": 1_000, "fashion": 3_000, "quickdraw": 4_000,
    "triples": 4_000, "heard_pictures": 3_000, "instruments": 9_000, "spoken_words": 1_500,
    "spoken_digits": 3_000, "speech": 16_000, "kokoro": 8_000, "environment": 4_000, "soundscapes": 4_000,
    "replay": 1_200, "texts": 10_000, "asked": 36_000,
    # After the weights of 2026-11-26, which had neither these nor fashion and quickdraw.
    "more_emoji": 9_000, "more_speech": 60_000,
}  # fmt: skip
WHOLE: Mapping[str, float] = {
    # picture to words
    "name_picture": 0.09, "caption_picture": 0.065, "caption_language": 0.005, "vqa": 0.05,
    "scene_questions": 0.165, "scene_caption": 0.005, "scene_count": 0.02, "scene_color": 0.02,
    "scene_relation": 0.025, "scene_where": 0.005, "scene_box": 0.02, "photo_box": 0.01,
    # words to picture
    "draw": 0.14, "story": 0.01, "story_page": 0.015, "story_next": 0.005, "story_text": 0.005,
    "story_count": 0.025, "place_pictures": 0.035,
    # sound to words
    "name_sound": 0.015, "soundscape": 0.005, "name_instrument": 0.015, "name_family": 0.025,
    "instrument_questions": 0.015, "name_word": 0.01, "transcribe": 0.09,
    # words to sound
    "speak": 0.09, "sound_for_text": 0.035, "sound_for_picture": 0.02, "picture_for_sound": 0.005,
    "text": 0.08,
}  # fmt: skip

DROP = (
    "draw", "story_page", "speak", "sound_for_text", "sound_for_picture", "picture_for_sound",
)  # fmt: skip


def joint() -> NanoRecipe:
    """Adapters, control rows and code maps on every task: 48 minutes on two CPU cores.

    An answer is a few ids and a picture 66, so words weigh more: else drawing is most of every gradient.
    The rate hardly falls here; it does in `sft`.
    """
    data = DataConfig(
        tasks=JOINT, drop_prompt=DROP, drop_rate=0.1, row=1024, rows=1, accumulate=1,
        media_weights={"text": 2.0, "control": 1.0, "image": 0.5, "audio": 0.5},
        task_weights={"text": 0.5},
        full_share=0.05, full_tasks=("text",), kl_tasks={"text": 0.8},
    )  # fmt: skip
    train = TrainConfig(
        NAME, minutes=48, seed=27, lora=LoraConfig(rank=32, alpha=32), data=data,
        # A new AdamW moves every entry by its rate at first; what is learned already needs time.
        optim=OptimConfig(lr=3e-4, map_lr=3e-4, control_lr=3e-4, warmup=0.1, decay=0.1),
    )  # fmt: skip
    return NanoRecipe(train, SOURCES, begin=(f"{NAME}-projections",))


def projections() -> NanoRecipe:
    """Code maps and control rows alone, the body frozen: codes that moved find their words again."""
    recipe = joint()
    train = replace(
        recipe.train, name=f"{NAME}-projections", minutes=4, body="frozen", sample_minutes=0.0,
        optim=replace(recipe.train.optim, map_lr=8e-4, control_lr=4e-4, warmup=0.1, decay=0.3),
    )  # fmt: skip
    return replace(recipe, train=train, begin=())


def sft() -> NanoRecipe:
    """What users ask, in the forms they ask it, at a rate that falls to nearly nothing."""
    recipe = joint()
    shares = {
        "name_picture": 0.06, "caption_picture": 0.08, "vqa": 0.12, "scene_count": 0.06,
        "scene_color": 0.03, "scene_relation": 0.07, "scene_box": 0.07, "photo_box": 0.01,
        "draw": 0.14, "story_count": 0.03, "place_pictures": 0.03, "name_sound": 0.02,
        "name_instrument": 0.01, "name_family": 0.025, "transcribe": 0.12, "speak": 0.05,
        "sound_for_text": 0.03, "sound_for_picture": 0.02, "text": 0.06,
    }  # fmt: skip
    data = replace(recipe.train.data, tasks=shares, drop_prompt=DROP)
    train = replace(
        recipe.train, name=f"{NAME}-sft", minutes=16, data=data, sample_minutes=4.0,
        optim=replace(
            recipe.train.optim, lr=2e-4, map_lr=2e-4, control_lr=2e-4, warmup=0.1, decay=0.9,
        ),
    )  # fmt: skip
    return replace(recipe, train=train, begin=(NAME,))


def asked() -> NanoRecipe:
    """Many questions a picture: on slow cores the way to most answers an hour, about 95 minutes of one.

    Nearly all loss is on answers in words. What names one thing a document has few of them, so those weigh
    more; what draws and sounds keeps a small share so that it does not fade. Text is held to the base.
    """
    data = DataConfig(
        tasks=ASKED, drop_prompt=("draw",), drop_rate=0.1, row=1024, rows=2, accumulate=1,
        media_weights={"text": 1.0, "control": 0.3, "image": 0.2, "audio": 0.2},
        task_weights={"text": 0.3, "name_picture": 3.0, "caption_picture": 1.5, "name_sound": 3.0,
                      "instrument_questions": 2.0, "name_word": 2.0},
        full_share=0.02, full_tasks=("text",), kl_tasks={"text": 0.9},
    )  # fmt: skip
    train = TrainConfig(
        # Branches are known to the hand-written pass alone.
        f"{NAME}-asked", steps=300, seed=29, path="fused", lora=LoraConfig(rank=32, alpha=32), data=data,
        optim=OptimConfig(
            lr=3e-4, map_lr=2e-4, control_lr=2e-4, beta2=0.99, schedule="cosine", warmup=0.08,
        ),
    )  # fmt: skip
    return NanoRecipe(train, SOURCES, begin=(f"{NAME}-sft",))


def whole() -> NanoRecipe:
    """Everything at once on one GPU, about eight minutes of it: a hundred million tokens, rank 64.

    A rank above that of the weights that it begins with: their adapters are widened.
    """
    data = DataConfig(
        tasks=WHOLE, drop_prompt=DROP, drop_rate=0.1, row=2048, rows=16, accumulate=1, pool=1024,
        media_weights={"text": 2.0, "control": 1.0, "image": 0.5, "audio": 0.5},
        task_weights={"text": 0.5},
        full_share=0.05, full_tasks=("text",), kl_tasks={"text": 0.9},
    )  # fmt: skip
    train = TrainConfig(
        f"{NAME}-whole", minutes=8, seed=31, device="cuda", path="merged", sample_minutes=0.0,
        lora=LoraConfig(rank=64, alpha=64), data=data,
        optim=OptimConfig(
            lr=1e-3, map_lr=5e-4, control_lr=5e-4, schedule="cosine", warmup=0.04, floor=0.02,
        ),
    )  # fmt: skip
    return NanoRecipe(train, WHOLE_SOURCES, shards=Path(".cache/shards/whole"), tokens=80e6)


STAGES: Mapping[str, Callable[[], NanoRecipe]] = {
    "whole": whole, "projections": projections, "joint": joint, "sft": sft, "asked": asked,
}  # fmt: skip


def bounded(
    config: TrainConfig, held: Mapping[str, int], tokens: float, epochs: float
) -> TrainConfig:
    """The run with no share larger than `epochs` times what there is of a task, in a run of `tokens`; the others
    grow. What is gone through more often is learned by heart (docs/LOG.md, the fourth training).

    `held`: tokens of each task in the shards. Nothing changes where `tokens` is 0, or where all would be too large.
    """
    shares = {n: s for n, s in (config.data.tasks or {}).items() if s > 0 and n in held}
    if tokens <= 0 or not shares:
        return config
    whole = sum(shares.values())
    most = {n: epochs * held[n] / tokens for n in shares}
    if sum(most.values()) <= 1:
        return config
    kept: dict[str, float] = {}
    free = {n: s / whole for n, s in shares.items()}
    while True:
        room = 1 - sum(kept.values())
        total = sum(free.values())
        over = [n for n, s in free.items() if s / total * room > most[n]]
        if not over:
            break
        for name in over:
            kept[name] = most[name]
            del free[name]
    tasks = kept | {n: s / total * room for n, s in free.items()}
    return replace(config, data=replace(config.data, tasks={n: tasks[n] for n in shares}))


# The stages that follow one another where nothing else is asked for; `whole` stands for all of them on a GPU.
CHAIN = ("projections", "joint", "sft", "asked")


def on_gpu(recipe: NanoRecipe) -> NanoRecipe:
    """The same stage for a GPU: 65,536 tokens a step, and rates for steps of that size.

    One that is made for a GPU stays as it is.
    """
    run = recipe.train
    if run.device == "cuda":
        return recipe
    optim = replace(
        run.optim,
        lr=2 * run.optim.lr,
        map_lr=2 * run.optim.map_lr,
        control_lr=2 * run.optim.control_lr,
    )
    data = replace(run.data, row=2048, rows=32, pool=1024)
    return replace(recipe, train=replace(run, device="cuda", data=data, optim=optim))
