"""measure.py: losses by document and medium equal those of the full logits, whatever the packing."""

import numpy as np
import pytest
import torch

from m27.data.loader import MEDIA
from m27.language.vocabulary import Vocabulary
from m27.train import measure
from tests.train import fixtures

SOUND_END = Vocabulary(text_size=fixtures.TEXT).audio_end


def spans_of(id: int) -> list[int]:
    """The ids that a target is scored among, by its medium, written out."""
    image, audio = range(*fixtures.IMAGE), [SOUND_END, *range(*fixtures.AUDIO)]
    if id in image:
        return list(image)
    return audio if id in audio else list(range(fixtures.IMAGE[0]))


def test_losses_are_those_of_the_full_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "ROW", 300)  # several rows
    corpus = fixtures.corpus(tmp_path)
    decoder = fixtures.decoder(fixtures.AUDIO[1])
    numbers = [5, 3, 250, 17, 18, 19, 20]
    found = measure.document_losses(decoder, corpus, numbers=numbers)
    for place, number in enumerate(numbers):
        ids, loss = corpus.document(number)
        with torch.inference_mode():
            logits = decoder(torch.from_numpy(ids)[None])[0]
        sums = np.zeros(len(MEDIA))
        counts = np.zeros(len(MEDIA))
        for at in np.flatnonzero(loss[1:]):
            target = int(ids[at + 1])
            among = spans_of(target)
            medium = (
                2 if target in range(*fixtures.IMAGE)
                else 3 if target in range(*fixtures.AUDIO)
                else 1 if target >= fixtures.TEXT or target == 2 else 0
            )  # fmt: skip
            nats = -torch.log_softmax(logits[at][among], 0)[among.index(target)]
            sums[medium] += float(nats)
            counts[medium] += 1
        assert found.counts[place].tolist() == counts.tolist()
        assert found.sums[place] == pytest.approx(sums, abs=1e-3)
    means = found.means()
    assert means["all"][1] == found.counts.sum()
    assert means["image"][0] == pytest.approx(found.sums[:, 2].sum() / found.counts[:, 2].sum())
    assert found.pick([1]).sums.tolist() == found.sums[[1]].tolist()
