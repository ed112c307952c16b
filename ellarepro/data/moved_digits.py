"""Digits on a torus whose labels have a known symmetry: four tasks with the same images and the same classes.

Every image is a digit of 12x12 pixels on a torus of 16x16, turned by k quarter turns (`turn`) and put at the centre or,
half the map further on both axes, at the corner (`place`), then shifted by up to three pixels (jitter). Layers have
exactly these symmetries: circular shifts (CONV and GCONV) and quarter turns about the centre (GCONV); a quarter turn
leaves both places where they are. Only what the label tells differs between tasks:

    symmetry      label, of the digit's index d in `MOVED_DIGITS`     strictest path that can tell it
    both          d                                                   GCONV
    translation   d + turn, modulo 4                                  CONV
    rotation      half of d, rounded down, + 2 at the corner          F-FC (none keeps rotation, gives up translation)
    none          d at the centre, 3 - d at the corner,               F-FC
                  + turn, modulo 4

A label that tells less does not have fewer classes: there are four, as many images of each to within chance (of
rotation, where every image is moved).
A turn or another place changes the label of every image wherever it should; of turn and place together, none that
leaves all labels as they are.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ellarepro.layers.groups import GROUPS

MOVED_SIZE, TURNS, PLACES, JITTER = 16, 4, 2, 3
MOVED_DIGITS = (3, 4, 6, 7)
"""Turned by a quarter or a half, none looks like itself or another: not so 0, 1, 2, 5, 8, and 9 with 6."""
SYMMETRIES = {"none": (False, False), "translation": (True, False), "rotation": (False, True), "both": (True, True)}
"""Symmetry to whether the label is unchanged by (translation to the other place, quarter turns)."""


@dataclass(frozen=True, eq=False)
class Moves:
    """How each image is moved: quarter turns `(N,)`, place `(N,)`, and jitter in pixels, (down, right), `(N, 2)`."""

    turn: Tensor
    place: Tensor
    jitter: Tensor


def draw_moves(size: int, strength: float, generator: torch.Generator) -> Moves:
    """Moves for `size` images: a share `strength` gets a uniform turn and, drawn apart, a uniform place and jitter.

    At 1, images are invariant in distribution to quarter turns and to the shift from place to place, exactly.
    """
    turned, moved = (torch.rand(size, generator=generator) < strength for _ in range(2))
    turn, place = (torch.randint(count, (size,), generator=generator) for count in (TURNS, PLACES))
    jitter = torch.randint(-JITTER, JITTER + 1, (size, 2), generator=generator) * moved[:, None]
    return Moves(turn * turned, place * moved, jitter)


def shrink(digits: Tensor) -> Tensor:
    """Digits (N, 1, 28, 28) on the torus, (N, 1, 16, 16).

    They fill the inner 20 pixels of 28: cut to 24, halved, and with a margin to 16, they keep their centre.
    """
    return F.pad(F.avg_pool2d(digits[..., 2:-2, 2:-2], 2), (2, 2, 2, 2))


def move(images: Tensor, moves: Moves) -> Tensor:
    """Images (N, 1, S, S), turned counterclockwise about the centre, then shifted around the torus; pixels permuted."""
    turned = images.clone()
    for k in range(TURNS):
        turned[moves.turn == k] = GROUPS["c4"].transform_image(images[moves.turn == k], k)
    shift = moves.place[:, None] * (MOVED_SIZE // 2) + moves.jitter
    sources = (torch.arange(MOVED_SIZE) - shift[:, :, None]) % MOVED_SIZE
    rows, columns = sources[:, 0, :, None], sources[:, 1, None, :]
    return turned[torch.arange(len(images))[:, None, None], 0, rows, columns][:, None]


def moved(digits: Tensor, labels: Tensor, generator: torch.Generator, strength: float) -> tuple[Tensor, Tensor]:
    """Digits (N, 1, 28, 28) with labels (N,) of `MOVED_DIGITS`, moved: images (N, 1, 16, 16), and states (N,).

    A state is what all tasks tell of in one number: (digit * TURNS + turn) * PLACES + place.
    """
    moves = draw_moves(len(labels), strength, generator)
    digit = torch.searchsorted(torch.tensor(MOVED_DIGITS), labels)
    return move(shrink(digits), moves), (digit * TURNS + moves.turn) * PLACES + moves.place


def moved_class(symmetry: str, state: Tensor) -> Tensor:
    """Labels (N,) with this `symmetry`, one of `SYMMETRIES`, of states (N,), see `moved`."""
    digit, turn, place = state // (TURNS * PLACES), state // PLACES % TURNS, state % PLACES
    if symmetry == "rotation":
        return digit // 2 + 2 * place
    if symmetry == "none":
        digit = torch.where(place == 1, len(MOVED_DIGITS) - 1 - digit, digit)
    return digit if symmetry == "both" else (digit + turn) % len(MOVED_DIGITS)
