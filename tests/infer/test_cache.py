"""cache.py: every block in exactly one state, found by what it holds, the longest unused one evicted."""

import random

import pytest

from m27.infer.cache import Blocks, name_of, salt_of

SALT = salt_of("a", "")


def filled(blocks: Blocks, ids: list[int], salt: bytes = SALT) -> list[int]:
    """Blocks that hold `ids`, the full ones published."""
    table, _ = blocks.find(ids, salt)
    name = salt
    for start in range(0, len(ids), blocks.size):
        number = start // blocks.size
        if number >= len(table):
            table.append(blocks.take())
        if start + blocks.size <= len(ids):
            name = name_of(name, ids[start : start + blocks.size])
            blocks.publish(table[number], name)
    return table


def test_what_was_computed_is_found_but_for_the_last_id() -> None:
    blocks = Blocks(8, 4)
    first = filled(blocks, list(range(12)))
    assert blocks.find(list(range(12)), SALT)[0] == first[:2]  # the last id's logits are wanted
    assert blocks.find(list(range(13)), SALT)[0] == first
    assert blocks.find([0, 1, 2, 3, 9, 9, 9, 9, 9], SALT)[0] == first[:1]
    assert blocks.find([9, *range(12)], SALT)[0] == []
    assert blocks.find(list(range(13)), salt_of("b", ""))[0] == []
    assert blocks.found == (2 + 3 + 1) * 4
    blocks.check()


def test_salts_do_not_run_into_each_other() -> None:
    assert salt_of("ab", "c") != salt_of("a", "bc")
    assert salt_of("a") != salt_of("a", "")


def test_released_blocks_are_found_until_they_are_needed() -> None:
    blocks = Blocks(4, 2)
    old, new = filled(blocks, [1, 2, 3, 4]), filled(blocks, [5, 6, 7, 8])
    blocks.release(old)
    blocks.release(new)
    assert (blocks.free, blocks.kept, blocks.used) == (4, 4, 0)
    assert blocks.take() == old[1]  # the end of what was released first
    assert blocks.take() == old[0]
    assert blocks.evicted == 2
    assert blocks.find([5, 6, 7, 8, 9], SALT)[0] == new
    with pytest.raises(IndexError):
        blocks.take()
    blocks.check()


def test_a_block_held_twice_is_free_when_both_let_go() -> None:
    blocks = Blocks(2, 2)
    table = filled(blocks, [1, 2])
    again, _ = blocks.find([1, 2, 3], SALT)
    blocks.release(table)
    assert blocks.used == 1
    blocks.release(again)
    assert blocks.used == 0
    with pytest.raises(ValueError, match="not held"):
        blocks.release(again)


def test_without_reuse_nothing_is_found() -> None:
    blocks = Blocks(4, 2, reuse=False)
    blocks.release(filled(blocks, [1, 2, 3, 4]))
    assert blocks.find([1, 2, 3, 4, 5], SALT) == ([], [])
    assert (blocks.kept, blocks.free) == (0, 4)
    blocks.check()


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_the_books_balance_whatever_happens(seed: int, reuse: bool) -> None:
    rng = random.Random(seed)
    blocks = Blocks(12, 2, reuse)
    held: list[list[int]] = []
    for _ in range(600):
        if held and (rng.random() < 0.4 or blocks.free < 4):
            blocks.release(held.pop(rng.randrange(len(held))))
        elif blocks.free >= 4:
            ids = [rng.randrange(2) for _ in range(rng.randint(1, 8))]
            held.append(filled(blocks, ids, salt_of(rng.choice("ab"))))
        blocks.check()
        assert blocks.used == len({block for table in held for block in table})
    for table in held:
        blocks.release(table)
    assert blocks.used == 0
    blocks.check()
