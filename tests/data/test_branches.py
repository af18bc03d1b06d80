"""Documents of several branches: joined without loss, at the right positions, and read back from shards."""

import numpy as np
import pytest
from tokenizers import pre_tokenizers

from m27.data import branches
from m27.data import build as shards
from m27.data import messages as say
from m27.data.loader import Loader
from m27.data.makers.asked import about
from m27.data.mixture import Corpus, Mixture
from m27.data.pack import Packer
from m27.language.processor import Processor
from m27.language.vocabulary import BASE_CONTROL, build_tokenizer

PAIRS = [("What color is it?", "red"), ("What shape is it?", "circle"), ("Is it red?", "yes")]


@pytest.fixture(scope="module")
def processor():
    names = [*BASE_CONTROL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    return Processor(*build_tokenizer(names, [], image_size=64, audio_size=32))


def flat(ids, loss):
    return np.asarray(ids, np.uint32), np.asarray(loss, np.uint8)


def unfolded(ids, loss, branch):
    """The conversations that a joined document stands for."""
    for number in range(1, int(branch.max()) + 1):
        chosen = (branch == 0) | (branch == number)
        yield ids[chosen].tolist(), loss[chosen].tolist()


def test_joined_conversations_come_apart_again():
    given = [
        ([1, 2, 3, 4], [0, 0, 0, 1]),
        ([1, 2, 5, 6, 7], [0, 0, 0, 1, 1]),
        ([1, 2, 3, 8], [0] * 3 + [1]),
    ]
    ids, loss, branch = branches.join([flat(*one) for one in given])
    assert ids.tolist() == [1, 2, 3, 4, 5, 6, 7, 3, 8]
    assert branch.tolist() == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert list(unfolded(ids, loss, branch)) == given
    assert branches.positions(branch).tolist() == [0, 1, 2, 3, 2, 3, 4, 2, 3]
    alone = branches.join([flat(*given[0])])
    assert not alone[2].any()
    assert branches.positions(alone[2]).tolist() == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="0 conversations"):
        branches.join([])


def test_no_branch_begins_with_a_target():
    ids, loss, branch = branches.join([flat([1, 2, 3], [0, 0, 1]), flat([1, 2, 4], [0, 0, 1])])
    assert branch.tolist() == [0, 1, 1, 2, 2]
    assert not loss[np.flatnonzero(np.diff(branch)) + 1].any()
    assert list(unfolded(ids, loss, branch))[1] == ([1, 2, 4], [0, 0, 1])


def test_a_shard_keeps_branches_and_the_loader_gives_them(processor, tmp_path):
    picture = {"type": "image", "codes": np.arange(4).reshape(2, 2)}
    one, other = about("a", "vqa", picture, PAIRS), about("b", "vqa", picture, PAIRS[:1])
    assert len(one["branches"]) == 2
    assert "branches" not in other
    shards.build([one, other], processor, tmp_path / "toy")
    shards.build([other], processor, tmp_path / "plain")
    assert not (tmp_path / "plain" / "branches.bin").exists()
    corpus = Corpus([tmp_path / "toy", tmp_path / "plain"])
    assert corpus.branches(1) is None
    assert corpus.branches(2) is None
    ids, loss = corpus.document(0)
    branch = corpus.branches(0)
    assert branch is not None
    want = [processor.encode(say.turn([picture, say.words(q)], [say.words(a)])) for q, a in PAIRS]
    assert list(unfolded(ids, loss, branch)) == [(e.ids, e.loss) for e in want]


def test_batches_carry_branches_only_where_there_are_some(processor, tmp_path):
    picture = {"type": "image", "codes": np.arange(4).reshape(2, 2)}
    for name, count in (("many", 3), ("one", 1)):
        shards.build([about("a", "vqa", picture, PAIRS[:count])], processor, tmp_path / name)
        corpus = Corpus([tmp_path / name])
        mixture = Mixture(corpus)
        batch = Loader(Packer(mixture, 256, 1)).collate([[mixture.draw()]])
        length = int(corpus.lengths[0])
        if count == 1:
            assert batch.branches_BT is None
            assert batch.positions_BT[0, :length].tolist() == list(range(length))
        else:
            branch = corpus.branches(0)
            assert branch is not None
            assert batch.branches_BT is not None
            assert batch.branches_BT[0, :length].tolist() == branch.tolist()
            assert batch.branches_BT[0, length:].sum() == 0
            want = branches.positions(branch).tolist()
            assert batch.positions_BT[0, :length].tolist() == want


def preferred(name, chosen, rejected, task="preference"):
    """A pair as importers give it: the branch that is preferred first."""
    asked = [{"role": "user", "content": [say.words("Draw a cat.")]}]
    one, other = ([*asked, {"role": "assistant", "content": parts}] for parts in (chosen, rejected))
    return {**say.document(name, task, "made", one), "branches": [other]}


def test_a_pair_is_a_document_of_two_branches_with_the_chosen_answer_first(processor, tmp_path):
    picture = {"type": "image", "codes": np.arange(4).reshape(2, 2)}
    chosen, rejected = [say.words("Here: "), picture, say.words("A cat.")], [say.words("No.")]
    shards.build([preferred("a", chosen, rejected)], processor, tmp_path / "pairs")
    corpus = Corpus([tmp_path / "pairs"])
    ids, loss = corpus.document(0)
    branch = corpus.branches(0)
    asked = {"role": "user", "content": [say.words("Draw a cat.")]}
    want = [processor.encode([asked, {"role": "assistant", "content": a}]) for a in (chosen, rejected)]
    assert list(unfolded(ids, loss, branch)) == [(e.ids, e.loss) for e in want]
    assert not loss[branch == 0].any()


def test_what_is_no_pair_is_left_out_and_named(processor, tmp_path):
    yes, no = [say.words("Yes.")], [say.words("No.")]
    alone = preferred("alone", yes, no)
    del alone["branches"]
    three = preferred("three", yes, no)
    three["branches"] *= 2
    mute = preferred("mute", yes, [{**no[0], "loss": False}])
    documents = [preferred("good", yes, no), preferred("same", yes, yes), alone, three, mute]
    meta = shards.build(documents, processor, tmp_path / "pairs")
    assert (meta["documents"], meta["broken"]) == (1, 4)
    for name, reason in (
        ("same", "are the same"), ("alone", "two answers, the chosen and the rejected; here are 1"),
        ("three", "here are 3"), ("mute", "nothing of the rejected answer"),
    ):  # fmt: skip
        (line,) = [line for line in meta["reasons"] if line.startswith(f"preference:{name}")]
        assert reason in line
    shards.build([{**three, "task": "vqa"}], processor, tmp_path / "other")
    # One that is marked and has a task of its own is told from what is learnt as it stands.
    marked = {**documents[0], "task": "style", "preference": True}
    meta = shards.build([marked, {**three, "task": "style"}], processor, tmp_path / "marked")
    assert meta["tasks"] == ["preference_style", "style"]
