"""Who has which block of the key/value cache: pure bookkeeping, without a byte of the cache itself.

A block stands for a fixed number of tokens, in all layers. It is free, or live (one or more sequences have it), or idle:
nobody has it, but its content is known by a key and may serve the next sequence that begins alike. Keys are made by the
caller from everything that a block's content depends on, all tokens before it included. When free blocks run out, idle
ones are forgotten, those first that were let go first.

Source: the block manager of vLLM (arXiv 2309.06180) with its prefix cache of hashed blocks; the code is our own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class BlockAllocator:
    """Blocks 0 to total - 1. Invariants, which `check` asserts:

    one-state      every block is free, live or idle, and only one of these
    users          a live block has at least one user
    found          an idle block has a key; no two blocks share one; keys and blocks point at each other
    bounded        live + idle + free = total, and idle <= most_idle
    """

    def __init__(self, total: int, most_idle: int | None = None) -> None:
        self.total = total
        self.most_idle = total if most_idle is None else most_idle
        self._users: dict[int, int] = {}  # of live blocks
        self._idle: dict[int, None] = {}  # in the order in which they were let go
        self._returned: list[int] = []  # free blocks that were in use once
        self._untouched = 0  # blocks from here on have never been used
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        self._forgotten: list[int] = []

    @property
    def live(self) -> int:
        """Blocks that sequences have."""
        return len(self._users)

    @property
    def idle(self) -> int:
        """Blocks that are kept for their content alone."""
        return len(self._idle)

    @property
    def available(self) -> int:
        """Blocks that `take` can give: free and idle ones."""
        return self.total - len(self._users)

    def take(self, count: int) -> list[int] | None:
        """`count` blocks with one user each, or None and nothing changed when there are not so many."""
        if count > self.available:
            return None
        return [self._take_one() for _ in range(count)]

    def find(self, keys: Iterable[bytes]) -> list[int]:
        """The blocks of the first keys, up to the first that is unknown; each gets a user."""
        found = []
        for key in keys:
            block = self._block_of.get(key)
            if block is None:
                break
            self._idle.pop(block, None)
            self._users[block] = self._users.get(block, 0) + 1
            found.append(block)
        return found

    def share(self, block: int) -> None:
        """Counts one more user of a live block."""
        self._users[block] += 1

    def publish(self, block: int, key: bytes) -> bool:
        """Makes a live block known by its content; False where that content or that block is known already."""
        assert block in self._users
        if key in self._block_of or block in self._key_of:
            return False
        self._block_of[key] = block
        self._key_of[block] = key
        return True

    def release(self, blocks: Sequence[int]) -> None:
        """Takes one user from each. Of those that become idle the last will be forgotten first: a sequence's end is of
        use only to those who share its beginning too."""
        for block in reversed(blocks):
            self._users[block] -= 1
            if self._users[block]:
                continue
            del self._users[block]
            if block in self._key_of:
                self._idle[block] = None
            else:
                self._returned.append(block)
        while len(self._idle) > self.most_idle:
            self._returned.append(self._forget_oldest())

    def forget_idle(self) -> None:
        """Forgets everything that nobody has."""
        while self._idle:
            self._returned.append(self._forget_oldest())

    def forgotten(self) -> list[int]:
        """The blocks whose content was forgotten since the last call: what is kept of them elsewhere can go."""
        blocks, self._forgotten = self._forgotten, []
        return blocks

    def check(self) -> None:
        """Asserts the invariants; for tests."""
        live, idle, returned = set(self._users), set(self._idle), set(self._returned)
        assert len(returned) == len(self._returned) and not live & idle, "one-state"
        assert not (live | idle) & returned and all(block < self._untouched for block in live | idle | returned), (
            "one-state"
        )
        free = len(returned) + self.total - self._untouched
        assert all(users > 0 for users in self._users.values()), "users"
        assert idle <= set(self._key_of) <= live | idle, "found"
        assert {key: block for block, key in self._key_of.items()} == self._block_of, "found"
        assert len(live) + len(idle) + free == self.total and len(idle) <= self.most_idle, "bounded"

    def _take_one(self) -> int:
        if self._returned:
            block = self._returned.pop()
        elif self._untouched < self.total:
            block = self._untouched
            self._untouched += 1
        else:
            block = self._forget_oldest()
        self._users[block] = 1
        return block

    def _forget_oldest(self) -> int:
        block = next(iter(self._idle))
        del self._idle[block]
        del self._block_of[self._key_of.pop(block)]
        self._forgotten.append(block)
        return block
