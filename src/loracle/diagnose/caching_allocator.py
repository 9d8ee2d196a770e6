"""PyTorch's caching allocator for CUDA as arithmetic: which block each request gets, without any memory.

What ``torch.cuda.max_memory_allocated`` counts are blocks, not requests. A request is rounded up to 512 bytes; a free block that is
larger is split, except that a large one (over 1 MiB) keeps a remainder of up to 1 MiB. The rules are those of
``c10/cuda/CUDACachingAllocator.cpp`` with its default settings on one stream.

Not covered: expandable segments, a split limit, several streams, what the allocator does when the memory is full.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

ROUND = 512
SMALL = 1 << 20  # requests up to this come from the small pool
SMALL_SEGMENT = 2 << 20
LARGE_SEGMENT = 20 << 20  # of requests up to LARGE_REQUEST
LARGE_REQUEST = 10 << 20
LARGE_ROUND = 2 << 20  # larger ones get a segment of their own, a multiple of this


def rounded(size: int) -> int:
    """Bytes that a request of ``size`` is at least given."""
    return max(ROUND, -(-size // ROUND) * ROUND)


@dataclass
class Block:
    """Part of a segment. ``before`` and ``after`` are its neighbours in the segment."""

    address: int
    size: int
    small: bool
    free: bool = False
    before: Block | None = None
    after: Block | None = None


class CachingAllocator:
    """``allocated``: bytes of the blocks in use; ``reserved``: bytes of all segments, which are never given back."""

    def __init__(self) -> None:
        self.allocated = 0
        self.reserved = 0
        self._end = 0
        self._free: dict[bool, list[tuple[int, int]]] = {True: [], False: []}  # small? → (size, address), sorted
        self._at: dict[int, Block] = {}  # free blocks by address

    def take(self, size: int) -> Block:
        """The block that a request of ``size`` bytes gets: the smallest free one that holds it, else of a new segment."""
        wanted = rounded(size)
        small = wanted <= SMALL
        block = self._best(wanted, small) or self._segment(wanted, small)
        if block.size - wanted >= ROUND if small else block.size - wanted > SMALL:
            rest = Block(block.address + wanted, block.size - wanted, small, True, block, block.after)
            if block.after is not None:
                block.after.before = rest
            block.after, block.size = rest, wanted
            self._keep(rest)
        block.free = False
        self.allocated += block.size
        return block

    def give(self, block: Block) -> None:
        """Put a block back, together with free neighbours."""
        self.allocated -= block.size
        before, after = block.before, block.after
        if after is not None and after.free:
            self._forget(after)
            block.size += after.size
            block.after = after.after
            if block.after is not None:
                block.after.before = block
        if before is not None and before.free:
            self._forget(before)
            before.size += block.size
            before.after = block.after
            if before.after is not None:
                before.after.before = before
            block = before
        block.free = True
        self._keep(block)

    def _best(self, wanted: int, small: bool) -> Block | None:
        pool = self._free[small]
        at = bisect_left(pool, (wanted, -1))
        return self._at.pop(pool.pop(at)[1]) if at < len(pool) else None

    def _segment(self, wanted: int, small: bool) -> Block:
        size = SMALL_SEGMENT if small else LARGE_SEGMENT
        if wanted >= LARGE_REQUEST:
            size = -(-wanted // LARGE_ROUND) * LARGE_ROUND
        block = Block(self._end, size, small)
        self._end += size + LARGE_ROUND  # no two segments are neighbours
        self.reserved += size
        return block

    def _keep(self, block: Block) -> None:
        insort(self._free[block.small], (block.size, block.address))
        self._at[block.address] = block

    def _forget(self, block: Block) -> None:
        pool = self._free[block.small]
        del pool[bisect_left(pool, (block.size, block.address))]
        del self._at[block.address]
