"""The page that the tour leaves behind: every exchange, to be looked at and listened to.

One HTML file with its style inside, no scripts and no network; pictures and sounds lie in a folder
beside it. Knows nothing of models.
"""

import html
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Card:
    """One exchange: parts in the JSON form of `Outputs.save`, what the answer took, and the right
    answer where there is one."""

    title: str
    asked: list[dict[str, Any]]
    answered: list[dict[str, Any]]
    seconds: float
    tokens: int
    right: str = ""


STYLE = """
:root { color-scheme: light dark;
  --paper: light-dark(#faf9f7, #16171a); --card: light-dark(#fff, #1f2125);
  --ink: light-dark(#1d1d1f, #e9e9ea); --soft: light-dark(#6a6a70, #9d9da5);
  --line: light-dark(#e5e3df, #303238); --you: light-dark(#eef2ff, #262b3d);
  --accent: light-dark(#4153c9, #9aa8ff); }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 2rem; line-height: 1.2; margin: 0 0 .5rem; letter-spacing: -.01em; }
header p { color: var(--soft); margin: 0 0 1.5rem; max-width: 44rem; }
.made { display: grid; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)); gap: .75rem;
  margin: 0 0 2rem; }
.made a { color: var(--soft); text-decoration: none; font-size: .8rem; }
.made img { display: block; width: 100%; margin: 0 0 .25rem; }
.cards { columns: 2; column-gap: 1.25rem; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px;
  padding: 1rem 1.25rem 1.25rem; margin: 0 0 1.25rem; break-inside: avoid; }
.head { display: flex; align-items: baseline; gap: .6rem; margin: 0 0 .8rem; }
h2 { font-size: 1.05rem; margin: 0; flex: 1; }
.number { color: var(--accent); font-variant-numeric: tabular-nums; font-weight: 600; }
.took { color: var(--soft); font-size: .8rem; font-variant-numeric: tabular-nums;
  white-space: nowrap; }
.turn { display: grid; grid-template-columns: 2.6rem minmax(0, 1fr); gap: .25rem .6rem; }
.turn + .turn { margin-top: .7rem; }
.who { color: var(--soft); font-size: .8rem; padding-top: .5rem; text-align: right; }
.said { min-width: 0; padding: .35rem .8rem; border-radius: 10px; }
.you .said { background: var(--you); justify-self: start; max-width: 100%; }
.said > * { display: block; margin: .35rem 0; }
.said p { white-space: pre-wrap; overflow-wrap: anywhere; }
.answer p { font-weight: 600; }
.story p { font-weight: inherit; }
.right { color: var(--soft); font-size: .85rem; }
img { width: 224px; max-width: 100%; border-radius: 8px; border: 1px solid var(--line); }
.you img { width: 128px; }
audio { width: 20rem; max-width: 100%; height: 2.4rem; }
footer { color: var(--soft); font-size: .85rem; margin-top: 1rem; }
@media (max-width: 52rem) { .cards { columns: 1; } main { padding-top: 1.5rem; } }
@media (max-width: 34rem) { section { padding: .9rem; } .made { gap: .5rem;
    grid-template-columns: repeat(auto-fill, minmax(6rem, 1fr)); }
  .turn { grid-template-columns: 1fr; } .who { text-align: left; padding: 0; } }
"""


def write_page(path: Path, cards: list[Card], total: int, seconds: float, model: str) -> None:
    """Write the page of the exchanges so far, `total` in all, after `seconds`; whole or not."""
    from m27.codec.media import write_atomic

    sections = "\n".join(_section(n, card, path.parent) for n, card in enumerate(cards, 1))
    ended = len(cards) == total
    state = f"all took {seconds:.0f} s" if ended else f"{len(cards)} of {total} so far"
    name = html.escape(model)
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>A tour of {name}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header>
<h1>A tour of {name}</h1>
<p>One decoder whose vocabulary also spells pictures and sounds. Nothing below is chosen: each
answer is the first one given, right or wrong, and {state}, on this machine.</p>
</header>
{_made(cards, path.parent)}
<div class="cards">
{sections}
</div>
<footer>Written by <code>m27 tour</code>. The pictures and sounds given are samples that the
model was not trained on.</footer>
</main>
</body>
</html>
"""
    write_atomic(path, page.encode())


def _made(cards: list[Card], folder: Path) -> str:
    """A row of the pictures that were made, each a link to its exchange."""
    links = [
        f'<a href="#x{number}">{_part(part, folder)}{html.escape(card.title)}</a>'
        for number, card in enumerate(cards, 1)
        for part in card.answered
        if part["type"] == "image"
    ]
    return f'<div class="made">{"".join(links)}</div>' if links else ""


def _section(number: int, card: Card, folder: Path) -> str:
    answered = "".join(_part(part, folder) for part in card.answered) or "<p>(nothing)</p>"
    asked = "".join(_part(part, folder) for part in card.asked)
    took = f"{card.tokens} tokens · {card.seconds:.1f} s"
    right = (
        f'<span class="right">right answer: {html.escape(card.right)}</span>' if card.right else ""
    )
    kind = "said answer story" if len(card.answered) > 2 else "said answer"
    return f"""<section id="x{number}">
<div class="head"><span class="number">{number}</span><h2>{html.escape(card.title)}</h2>
<span class="took">{took}</span></div>
<div class="turn you"><span class="who">you</span><div class="said">{asked}</div></div>
<div class="turn"><span class="who">m27</span><div class="{kind}">{answered}{right}</div></div>
</section>"""


def _part(part: dict[str, Any], folder: Path) -> str:
    if part["type"] == "text":
        text = part["text"].strip()
        return f"<p>{html.escape(text)}</p>" if text else ""
    source = html.escape(Path(os.path.relpath(part["path"], folder)).as_posix(), quote=True)
    if part["type"] == "image":
        size = f'width="{part["width"]}" height="{part["height"]}"'
        alt = html.escape(part.get("alt", "picture"), quote=True)
        return f'<img src="{source}" {size} style="height:auto" alt="{alt}">'
    label = f"sound, {part['seconds']:.1f} s"
    return f'<audio controls preload="metadata" src="{source}" aria-label="{label}"></audio>'
