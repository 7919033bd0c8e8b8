"""The outline of a mask as polygons along the edges of its pixels."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# Steps (dy, dx) along pixel edges with the mask on the right hand: right, down, left, up.
_STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))


def outlines(mask: npt.NDArray[np.bool_]) -> list[list[int]]:
    """Polygons x1, y1, x2, y2, ... around each part of a mask (H, W); holes are not cut out.

    Corners are whole numbers. Parts that touch at a corner only have polygons of their own.
    """
    padded = np.pad(mask, 1)
    edges = _edges(padded)
    polygons = []
    while edges:
        corner, heading = next(iter(edges))
        loop = _follow(edges, corner, heading)
        if _doubled_area(loop) > 0:  # the outline of a hole turns the other way
            polygons.append([coordinate for y, x in loop for coordinate in (x - 1, y - 1)])
    return polygons


def _edges(padded: npt.NDArray[np.bool_]) -> dict[tuple[tuple[int, int], int], None]:
    """(start corner (y, x), heading) of each pixel edge between mask and surroundings, in order."""
    inside = padded[1:-1, 1:-1]
    above, below = padded[:-2, 1:-1], padded[2:, 1:-1]
    left, right = padded[1:-1, :-2], padded[1:-1, 2:]
    found: dict[tuple[tuple[int, int], int], None] = {}
    sides = ((above, (0, 0)), (right, (0, 1)), (below, (1, 1)), (left, (1, 0)))
    for heading, (neighbour, (dy, dx)) in enumerate(sides):
        for y, x in np.argwhere(inside & ~neighbour).tolist():
            found[((y + 1 + dy, x + 1 + dx), heading)] = None
    return found


def _follow(
    edges: dict[tuple[tuple[int, int], int], None], start: tuple[int, int], heading: int
) -> list[tuple[int, int]]:
    """The corners (y, x) of the loop from an edge on, whose edges are taken out of `edges`."""
    corners = []
    place = start
    while (place, heading) in edges:
        del edges[place, heading]
        place = place[0] + _STEPS[heading][0], place[1] + _STEPS[heading][1]
        # Right first: at a corner where two parts touch, that stays with the same part.
        for turn in (1, 0, 3):
            if (place, (heading + turn) % 4) in edges:
                if turn:
                    corners.append(place)
                heading = (heading + turn) % 4
                break
        else:
            corners.append(place)  # back at the start
    return corners


def _doubled_area(corners: list[tuple[int, int]]) -> int:
    """Twice the enclosed area, positive if the corners go round clockwise with y downwards."""
    following = [*corners[1:], corners[0]]
    return sum(x1 * y2 - x2 * y1 for (y1, x1), (y2, x2) in zip(corners, following, strict=True))
