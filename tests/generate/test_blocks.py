"""The allocator of cache blocks: its invariants under any sequence of operations, and what it may forget."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from kiloq.generate.blocks import BlockAllocator

TOTAL, MOST_IDLE = 6, 4


def key(number: int) -> bytes:
    return number.to_bytes(2, "little")


class Allocator(RuleBasedStateMachine):
    """Beside the allocator: a list of who has what, and what each published block was said to hold."""

    held = Bundle("held")

    def __init__(self) -> None:
        super().__init__()
        self.blocks = BlockAllocator(TOTAL, MOST_IDLE)
        self.users: list[int] = []  # a block for every user that it has
        self.content: dict[int, bytes] = {}

    @rule(target=held, count=st.integers(0, TOTAL + 1))
    def take(self, count: int):
        room = TOTAL - len(set(self.users))
        assert self.blocks.available == room
        got = self.blocks.take(count)
        assert (got is None) == (count > room)
        for block in self.blocks.forgotten():
            assert block not in self.users
            del self.content[block]
        for block in got or []:
            assert block not in self.users and block not in self.content
        self.users += got or []
        return multiple(*(got or []))

    @rule(block=held, number=st.integers(0, 5))
    def publish(self, block: int, number: int) -> None:
        known = block in self.content or key(number) in self.content.values()
        assert self.blocks.publish(block, key(number)) == (not known)
        if not known:
            self.content[block] = key(number)

    @rule(target=held, numbers=st.lists(st.integers(0, 5), max_size=3, unique=True))
    def find(self, numbers: list[int]):
        found = self.blocks.find([key(number) for number in numbers])
        where = {content: block for block, content in self.content.items()}
        want = []
        for number in numbers:
            if key(number) not in where:
                break
            want.append(where[key(number)])
        assert found == want
        self.users += found
        return multiple(*found)

    @rule(target=held, block=held)
    def share(self, block: int) -> int:
        self.blocks.share(block)
        self.users.append(block)
        return block

    @rule(block=consumes(held))
    def release(self, block: int) -> None:
        self.blocks.release([block])
        self.users.remove(block)
        for forgotten in self.blocks.forgotten():
            del self.content[forgotten]

    @rule()
    def forget_idle(self) -> None:
        self.blocks.forget_idle()
        for block in self.blocks.forgotten():
            assert block not in self.users
            del self.content[block]
        assert self.blocks.idle == 0

    @invariant()
    def holds(self) -> None:
        self.blocks.check()
        assert self.blocks.live == len(set(self.users))


Allocator.TestCase.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
TestAllocator = Allocator.TestCase


def test_what_was_let_go_first_is_forgotten_first_and_ends_before_beginnings() -> None:
    blocks = BlockAllocator(4)
    first, second = blocks.take(2), blocks.take(2)
    assert first is not None and second is not None
    for number, block in enumerate([*first, *second]):
        blocks.publish(block, key(number))
    blocks.release(first)
    blocks.release(second)
    assert blocks.take(1) == [first[1]]
    assert blocks.find([key(0)]) == [first[0]]  # the beginning is still known, and in use again
    assert blocks.take(2) == [second[1], second[0]]
    assert blocks.take(1) is None
    assert blocks.forgotten() == [first[1], second[1], second[0]]


def test_of_idle_blocks_no_more_are_kept_than_allowed() -> None:
    blocks = BlockAllocator(10, most_idle=1)
    got = blocks.take(3)
    assert got is not None
    for number, block in enumerate(got):
        blocks.publish(block, key(number))
    blocks.release(got)
    assert (blocks.idle, blocks.live, blocks.available) == (1, 0, 10)
    assert blocks.find([key(0), key(1)]) == got[:1]


def test_a_block_that_nobody_can_find_is_free_at_once() -> None:
    blocks = BlockAllocator(1)
    assert blocks.take(1) == [0]
    blocks.release([0])
    assert (blocks.idle, blocks.take(1), blocks.forgotten()) == (0, [0], [])
