"""sharded_checkpoint.py: parts of any ranks read by any others, and nothing that was cut off ever read."""

import json
import shutil

import pytest
import torch

from m27.train import checkpoint
from m27.train.sharded_checkpoint import INDEX, PartsError, Place, Reader, Writer

WHOLE = {
    "matrix": torch.arange(35.0).view(7, 5),
    "experts": torch.arange(48.0).view(4, 3, 4).bfloat16(),
    "step": torch.tensor(3.0),
}


def cut(rank, world, dim=0):
    """Where a rank's part of each tensor lies: cut along `dim`, scalars whole."""

    def place(name, _):
        shape = tuple(WHOLE[name].shape)
        if not shape:
            return Place.all_of(shape, world, rank == 0)
        length = -(-shape[dim] // world)
        begin = min(rank * length, shape[dim])
        offset, size = [0] * len(shape), list(shape)
        offset[dim], size[dim] = begin, min(length, shape[dim] - begin)
        return Place(shape, tuple(offset), tuple(size))

    return place


class Two:
    """The second of two ranks, and what the first one says of a step."""

    rank, world, leads = 1, 2, True

    def __init__(self, others_fail_at=None):
        self.others_fail_at, self.asked = others_fail_at, 5

    def place(self, name, shape):
        return cut(1, 2)(name, shape) if name in WHOLE else Place.all_of(shape)

    def any(self, flag):
        self.asked -= 1
        return flag or self.asked == self.others_fail_at


def part(name, place):
    at = tuple(slice(o, o + n) for o, n in zip(place.offset, place.size, strict=True))
    return WHOLE[name][at]


def save(run, world, dim=0, step=3, only=None, **options):
    """A snapshot by so many ranks, all in this process; `only` some of them write."""
    writers = [Writer(run, rank, world, **options) for rank in range(world)]
    for rank in only or reversed(range(world)):
        place = cut(rank, world, dim)
        parts = {name: part(name, place(name, ())) for name in WHOLE}
        groups = {"trained": parts, "optimiser": {}}
        writers[rank].save(step, 17, groups, place, {"tokens": 5})
    for writer in writers:
        writer.wait()
    return run / f"step-{step:06d}"


@pytest.mark.parametrize(("world", "dim"), [(1, 0), (2, 0), (4, 1), (5, 0)])
def test_any_ranks_read_what_any_ranks_wrote(tmp_path, world, dim):
    reader = Reader(save(tmp_path, world, dim))
    assert sorted(reader.names("trained")) == sorted(WHOLE)
    for name, whole in WHOLE.items():
        assert torch.equal(reader.read("trained", name), whole)
        for others in (1, 2, 3, 4):
            for along in (0, 1):
                for rank in range(others):
                    place = cut(rank, others, along)
                    found = reader.read("trained", name, place)
                    assert torch.equal(found, part(name, place(name, ())))
    state = json.loads((tmp_path / "step-000003" / "state.json").read_text())
    assert (state["step"], state["tokens"], len(state["files"])) == (3, 5, world + 1)


def test_the_training_goes_on_while_a_copy_is_written(tmp_path):
    weight = torch.ones(4, 4)
    writer = Writer(tmp_path, 0, 1)
    for step in range(1, 5):
        writer.save(step, step, {"trained": {"w": weight}}, lambda n, s: Place.all_of(s), {})
        weight.add_(1)
    writer.wait()
    assert [step for step, _ in checkpoint.steps(tmp_path)] == [3, 4]
    assert Reader(tmp_path / "step-000004").read("trained", "w").eq(4).all()


def test_what_a_process_wrote_alone_is_read_in_slices(tmp_path):
    checkpoint.save(tmp_path, 3, WHOLE, {}, {})
    found = checkpoint.latest(tmp_path, Two())
    assert torch.equal(found.trained["matrix"], WHOLE["matrix"][4:])
    assert found.optimiser["rng"].shape == torch.get_rng_state().shape


def test_all_ranks_pass_over_what_one_of_them_finds_damaged(tmp_path, capsys):
    for step in (3, 4):
        for writer in (writers := [Writer(tmp_path, rank, 2) for rank in range(2)]):
            rng = {"rng": torch.get_rng_state()}
            groups = {"trained": {"w": torch.ones(2)}, "optimiser": rng}
            writer.save(step, 1, groups, lambda n, s, lead=writer.rank == 0: Place.all_of(s, 2, lead), {})
        for writer in writers:
            writer.wait()
    assert checkpoint.latest(tmp_path).step == 4
    assert checkpoint.latest(tmp_path, Two(others_fail_at=4)).step == 3
    path = tmp_path / "step-000004" / "part-00000-of-00002.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert checkpoint.latest(tmp_path).step == 3
    assert "part-00000-of-00002.safetensors is not what was written; passed over" in capsys.readouterr().err


def test_a_snapshot_of_which_a_part_is_missing_never_appears(tmp_path):
    good = save(tmp_path, 2)
    with pytest.raises(PartsError, match="no part of rank 1"):
        save(tmp_path, 2, step=4, only=[0], patience=0.1)
    assert checkpoint.steps(tmp_path) == [(3, good)]
    assert list(tmp_path.glob(".step-*"))
    Writer(tmp_path, 0, 2).clean()
    assert list(tmp_path.iterdir()) == [good]


def test_a_folder_that_cannot_be_written_is_said_at_the_next_save(tmp_path):
    run = tmp_path / "run"
    run.write_text("a file")
    writer = Writer(run, 0, 1)
    writer.save(1, 1, {"trained": WHOLE}, cut(0, 1), {})
    with pytest.raises(PartsError, match="could not be written"):
        writer.wait()
    writer.wait()


def test_broken_snapshots_are_one_line(tmp_path):
    folder = save(tmp_path, 2)
    index = json.loads((folder / INDEX).read_text())
    wrong = json.loads(json.dumps(index))
    del wrong["tensors"]["trained/matrix"]["parts"][0]
    cases = {
        "not an index": "{",
        "is of format": json.dumps({**index, "format": "other"}),
        "not the name of a file": json.dumps(index).replace("part-00000", "../part-00000"),
        "matrix do not make up": json.dumps(wrong),
    }
    for message, text in cases.items():
        (folder / INDEX).write_text(text)
        with pytest.raises(PartsError, match=message):
            Reader(folder).read("trained", "matrix")
        with pytest.raises(checkpoint.ResumeError):
            checkpoint.latest(tmp_path)
    (folder / INDEX).write_text(json.dumps(index))
    reader = Reader(folder)
    with pytest.raises(PartsError, match=r"matrix is \[7, 5\], the run has \[7, 6\]"):
        reader.read("trained", "matrix", lambda *_: Place.all_of((7, 6)))
    for path in folder.glob("part-00001*"):
        path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(PartsError, match="part-00001"):
        Reader(folder).read("trained", "matrix")
    shutil.rmtree(folder)
    assert checkpoint.latest(tmp_path) is None
