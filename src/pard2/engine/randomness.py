"""Random numbers without a generator: each is a hash of what it is for.

A generator hands out numbers in the order of asking, so that a text would depend on what shares its batch,
on how many tokens were proposed, and on who drew before; and a draft and a target that share one are no
longer independent, which makes rejection lossy (METHOD: section 6). Here a number depends on (seed,
completion, position, purpose) alone.
"""

from enum import IntEnum
from hashlib import blake2b
from struct import Struct

import torch
from torch import Tensor

_KEY = Struct("<QQQQQ")
_BITS = 53  # of a float64's mantissa: every number is exact, and below 1 whatever it is multiplied by and rounded to
_NO_BLOCK = 2**64 - 1


class Purpose(IntEnum):
    """What a number decides. The values are part of every seeded text: never renumber them."""

    DRAFT = 0  # the token that a sampling draft proposes
    ACCEPT = 1  # whether a proposed token stands
    TARGET = 2  # the target's own choice: plain, coupled, residual or bonus


def uniforms(seed: int, index: int, start: int, count: int, purpose: Purpose, device: torch.device | str = "cpu") -> Tensor:
    """The numbers of positions start to start + count - 1: float64 [count] in [0, 1), multiples of 2**-53.

    seed: 0 to 2**63 - 1.
    index: of the completion among the n of its request. A position's number is the same in whatever
        block it lies, so a position must consume it once: right for `choose_coupled` and
        `choose_by_rejection`, which look at no number past the token that they emit last; wrong for
        `choose_by_block` (see `block_uniforms`).
    """
    return torch.tensor([_uniform(seed, index, start + i, purpose, _NO_BLOCK) for i in range(count)], dtype=torch.float64, device=device)


def block_uniforms(seed: int, index: int, start: int, count: int, purpose: Purpose, device: torch.device | str = "cpu") -> Tensor:
    """As `uniforms`, of numbers that no block with another start shares.

    Block verification looks at every proposal and every number of the block before it drops some of them:
    what it dropped, it dropped for their values, so these positions must not meet the same numbers in the
    next block. Blocks of one text never begin at the same position, because each emits a token.
    """
    return torch.tensor([_uniform(seed, index, start + i, purpose, start) for i in range(count)], dtype=torch.float64, device=device)


def _uniform(seed: int, index: int, position: int, purpose: Purpose, block: int) -> float:
    digest = blake2b(_KEY.pack(seed, index, position, purpose, block), digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> (64 - _BITS)) * 2.0**-_BITS
