"""CIDEr-D: how much a caption says of what people say of the same picture, rare words counting more.

Vedantam, Zitnick and Parikh, "CIDEr: Consensus-based Image Description Evaluation" (2015), the
variant D: n-grams of one to four words, weighted by how rare they are among the pictures, clipped
to what the reference holds, a Gaussian penalty on the difference in length, times ten. Words are
lower case without punctuation and are not stemmed. A caption of one word reaches 2.5 at most, as
it has one kind of n-gram of four.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

N = 4  # words of the longest n-gram
SIGMA = 6.0  # words of difference in length that cost a factor exp(-1/2)

Gram = tuple[str, ...]
Vector = dict[Gram, float]


def tokens(text: str) -> list[str]:
    """The words of a caption: "The fox's den." → ["the", "fox's", "den"]."""
    return re.findall(r"[^\W_]+(?:['’][^\W_]+)*", text.lower())


def grams(words: Sequence[str]) -> Counter[Gram]:
    """How often each n-gram of one to `N` words stands in `words`."""
    return Counter(
        tuple(words[start : start + n])
        for n in range(1, N + 1)
        for start in range(len(words) - n + 1)
    )


class CiderD:
    """The measure over a corpus: `references[i]` are the captions of picture i, at least one.

    The corpus says how rare an n-gram is: in how many pictures' references it stands. `words`
    splits a caption. Raises ValueError where a picture has no reference.
    """

    def __init__(
        self,
        references: Sequence[Sequence[str]],
        words: Callable[[str], Sequence[str]] = tokens,
    ) -> None:
        if not all(references):
            missing = next(i for i, captions in enumerate(references) if not captions)
            raise ValueError(f"picture {missing} has no reference caption")
        self._words = words
        self._frequency: Counter[Gram] = Counter()
        for captions in references:
            self._frequency.update({gram for caption in captions for gram in grams(words(caption))})
        self._log_pictures = math.log(max(1, len(references)))

    def score(self, candidate: str, references: Iterable[str]) -> float:
        """0 to 10, the mean over the references. 0 for an empty candidate."""
        said = self._words(candidate)
        scores = [self._pair(said, self._words(reference)) for reference in references]
        return 10 * sum(scores) / len(scores)

    def _vector(self, words: Sequence[str]) -> Vector:
        """Count times log(pictures / pictures that have it) of each n-gram."""
        return {
            gram: count * (self._log_pictures - math.log(max(1, self._frequency[gram])))
            for gram, count in grams(words).items()
        }

    def _pair(self, candidate: Sequence[str], reference: Sequence[str]) -> float:
        """Mean over n of the clipped cosine, times the penalty on length; 0 to 1."""
        a, b = self._vector(candidate), self._vector(reference)
        total = 0.0
        for n in range(1, N + 1):
            left = {gram: weight for gram, weight in a.items() if len(gram) == n}
            right = {gram: weight for gram, weight in b.items() if len(gram) == n}
            norms = _norm(left) * _norm(right)
            if norms > 0:
                shared = left.keys() & right.keys()
                total += sum(min(left[g], right[g]) * right[g] for g in shared) / norms
        apart = len(candidate) - len(reference)
        return total / N * math.exp(-(apart**2) / (2 * SIGMA**2))


def _norm(vector: Vector) -> float:
    return math.sqrt(sum(weight**2 for weight in vector.values()))
