"""How the routes that do one thing ask the model for it: in the words of its training.

Each is the first phrasing of a task in `m27.data.prompts`; a test holds them equal.
"""

from __future__ import annotations

ASKS = {
    "draw": "Draw {text}.",
    "speak": "Say: {text}",
    "transcribe": "Transcribe the speech.",
    "sound_for_text": "Make the sound of {text}.",
    "sound_for_picture": "What sound does this make?",
}
_VERBS = frozenset("draw paint make show create generate illustrate sketch render picture".split())


def draw(prompt: str) -> str:
    """What is asked for a picture: a prompt that is itself a request stays as it is."""
    first = prompt.split(maxsplit=1)[:1]
    if first and first[0].lower().strip(",.:") in _VERBS:
        return prompt
    return ASKS["draw"].format(text=prompt.rstrip(". "))
