"""Stop strings over a stream of text: found as it is written, and never shown.

Text that may be the beginning of a stop string is held back until it is known not to be. The strings
are followed all at once (Aho & Corasick 1975), so a character costs the same however many there are.
Knows nothing of ids; a picture or a sound between two texts ends a match that had begun.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from m27.infer.request import RequestError

MOST_STRINGS, LONGEST = 16, 256


class Stops:
    """Follows one answer's text. `hit` is the stop string that was found, None before.

    Raises RequestError for an empty string, one over 256 characters, or more than 16.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        if isinstance(strings, str) or not all(isinstance(s, str) for s in strings):
            raise RequestError("stop must be a list of strings")
        if len(strings) > MOST_STRINGS:
            raise RequestError(f"stop has {len(strings)} strings; {MOST_STRINGS} is the most")
        for string in strings:
            if not 0 < len(string) <= LONGEST:
                raise RequestError(
                    f"a stop string has 1 to {LONGEST} characters, not {len(string)}"
                )
        self.hit: str | None = None
        self._next, self._back, self._depth, self._found = _automaton(strings)
        self._node = 0
        self._held = ""  # text that may yet turn out to begin a stop string

    def push(self, text: str) -> str:
        """What of the text so far may be shown now. After a hit nothing may."""
        if self.hit is not None:
            return ""
        held = self._held + text
        for place, character in enumerate(text, len(self._held) + 1):
            self._node = self._follow(character)
            if found := self._found[self._node]:
                self.hit, self._held = found, ""
                return held[: place - len(found)]
        keep = self._depth[self._node]
        shown, self._held = held[: len(held) - keep], held[len(held) - keep :]
        return shown

    def flush(self) -> str:
        """What was held back, where the text ends; a later text is looked at afresh."""
        shown, self._held, self._node = self._held, "", 0
        return shown

    def _follow(self, character: str) -> int:
        node = self._node
        while node and character not in self._next[node]:
            node = self._back[node]
        return self._next[node].get(character, 0)


def _automaton(
    strings: Sequence[str],
) -> tuple[list[dict[str, int]], list[int], list[int], list[str]]:
    """Of each node: its children, the node of its longest proper suffix, its depth, and the longest
    stop string that ends there ("" for none)."""
    children: list[dict[str, int]] = [{}]
    depth, found = [0], [""]
    for string in strings:
        node = 0
        for character in string:
            if character not in children[node]:
                children[node][character] = len(children)
                children.append({})
                depth.append(depth[node] + 1)
                found.append("")
            node = children[node][character]
        found[node] = string
    back = [0] * len(children)
    queue = deque(children[0].values())
    while queue:
        node = queue.popleft()
        found[node] = found[node] or found[back[node]]
        for character, child in children[node].items():
            at = back[node]
            while at and character not in children[at]:
                at = back[at]
            back[child] = children[at].get(character, 0)
            queue.append(child)
    return children, back, depth, found
