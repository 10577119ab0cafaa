"""How weights lie for the kernels: as the fragments that a warp's matrix instructions take.

An instruction multiplies 16 pixels' k channels by 8 results (PTX ISA, "Matrix Fragments for mma.m16n8k16"). Lane i of
32 gives of the latter column i // 4, and of its k rows 2 (i % 4) and the next one, and those 8 further down. Which
channel a row or a column stands for is ours to choose, as long as both factors agree; that way each lane reads and
writes channels that lie together.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["groups_of", "in_memory", "in_registers", "packed", "results", "shuffled"]

#: Channels that rows or columns of one instruction stand for; -1: none.
Channels = Sequence[int]


def groups_of(channels: int) -> int:
    """Groups of 8 channels that hold so many."""
    return -(-channels // 8)


def in_memory(groups: int) -> list[Channels]:
    """Rows of each step, 16 or at last 8 of them, where a warp reads pixels' channels as they lie in memory."""
    return [range(8 * first, 8 * min(first + 2, groups)) for first in range(0, groups, 2)]


def in_registers(groups: int) -> list[Channels]:
    """The same where each lane reads the channels of its own pixel: 8 of 32, then 4 of 16, then 2 of 8."""
    steps: list[Channels] = []
    first = 0
    while groups - first >= 4:
        steps += [
            [
                8 * first + 8 * part + 4 * step + 2 * upper + one
                for upper in (0, 1)
                for part in range(4)
                for one in (0, 1)
            ]
            for step in (0, 1)
        ]
        first += 4
    if groups - first >= 2:
        steps.append(
            [
                8 * first + 4 * part + 2 * upper + one
                for upper in (0, 1)
                for part in range(4)
                for one in (0, 1)
            ]
        )
        first += 2
    if groups - first:
        steps.append(range(8 * first, 8 * first + 8))
    return steps


def results(groups: int) -> list[Channels]:
    """Columns of each tile of 8 results: each lane has 8 of 32, then 4 of 16, then 2 of 8 channels that lie together."""
    tiles: list[Channels] = []
    while groups - len(tiles) >= 4:
        first = 8 * len(tiles)
        tiles += [[first + 8 * (n // 2) + 2 * tile + n % 2 for n in range(8)] for tile in range(4)]
    if groups - len(tiles) >= 2:
        first = 8 * len(tiles)
        tiles += [[first + 4 * (n // 2) + 2 * tile + n % 2 for n in range(8)] for tile in range(2)]
    if groups - len(tiles):
        tiles.append(range(8 * len(tiles), 8 * len(tiles) + 8))
    return tiles


def shuffled(scale: int) -> list[Channels]:
    """Columns of the last layer: two tiles a colour, of whose squares of 4x4 each lane has a row."""
    tiles: list[Channels] = []
    for colour in range(3):
        for tile in range(2):
            places = [(n // 2, 2 * tile + n % 2) for n in range(8)]
            tiles.append([colour * scale**2 + y * scale + x if max(x, y) < scale else -1 for y, x in places])
    return tiles


def packed(weight: torch.Tensor, rows: Sequence[Channels], columns: Sequence[Channels]) -> torch.Tensor:
    """Fragments of `weight` (..., K, N): float16 (..., steps, pairs of tiles, 32, 8), zeros where there is no channel.

    A lane's 8 values: rows 2 p, 2 p + 1, 2 p + 8, 2 p + 9 of the pair's first tile, then of its second.
    """
    k, n = weight.shape[-2:]
    wide = weight.new_zeros((*weight.shape[:-2], k + 1, n + 1))
    wide[..., :k, :n] = weight
    pairs = -(-len(columns) // 2)
    down = torch.full((len(rows), pairs, 32, 8), k)
    across = torch.full((len(rows), pairs, 32, 8), n)
    for step, channels in enumerate(rows):
        for lane in range(32):
            for value in range(8):
                row = 2 * (lane % 4) + value % 2 + 8 * (value % 4 // 2)
                if row < len(channels) and 0 <= channels[row] < k:
                    down[step, :, lane, value] = channels[row]
    for tile, channels in enumerate(columns):
        for lane in range(32):
            if 0 <= channels[lane // 4] < n:
                across[:, tile // 2, lane, 4 * (tile % 2) : 4 * (tile % 2) + 4] = channels[lane // 4]
    return wide[..., down.to(weight.device), across.to(weight.device)].to(torch.float16).contiguous()
