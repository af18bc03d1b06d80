"""The bytes that a text id stands for, in GPT-2's byte-level spelling.

Byte-level BPE writes each of the 256 bytes as one printable character. Going back by table is
exact, which a tokenizer's own `decode` is not where a character is spread over several ids.
Source: Radford et al., "Language Models are Unsupervised Multitask Learners" (2019), its encoder.
"""

from __future__ import annotations

from collections.abc import Iterable


def byte_characters() -> dict[str, int]:
    """Character → byte: printable Latin-1 bytes stand for themselves, the rest for U+0100 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(byte): byte for byte in kept}
    others = (byte for byte in range(256) if chr(byte) not in table)
    return table | {chr(0x100 + n): byte for n, byte in enumerate(list(others))}


def token_bytes(tokens: Iterable[str | None]) -> list[bytes]:
    """The bytes of each token, in the order given.

    A token that is not in the byte-level spelling (a control token with characters outside it, or
    None) gives its UTF-8 form: such ids never come out of a text, so the value only serves display.
    """
    table = byte_characters()
    out: list[bytes] = []
    for token in tokens:
        values = [table.get(character) for character in token or ""]
        known = [value for value in values if value is not None]
        out.append(bytes(known) if len(known) == len(values) else (token or "").encode("utf-8"))
    return out


class Speller:
    """Replaces the characters that a byte-level vocabulary cannot spell.

    A vocabulary trained on text lacks the bytes that the text lacked (SmolLM2's: six control
    characters, and the lead bytes of the unassigned planes 4 to 11); BPE would drop them without a
    word, so they become U+FFFD, as lone surrogates do.
    """

    def __init__(self, single_bytes: Iterable[int]) -> None:
        """`single_bytes` are the byte values that are tokens by themselves."""
        self._missing = bytes(sorted(set(range(256)) - set(single_bytes)))

    def spellable(self, text: str) -> str:
        """`text` with every character that cannot be spelt replaced by U+FFFD."""
        data = text.encode("utf-8", errors="surrogatepass")
        if len(data.translate(None, self._missing)) == len(data) and not _has_surrogate(text):
            return text
        return "".join("\ufffd" if self._unspellable(c) else c for c in text)

    def _unspellable(self, character: str) -> bool:
        data = character.encode("utf-8", errors="surrogatepass")
        return _has_surrogate(character) or any(byte in self._missing for byte in data)


def _has_surrogate(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False
