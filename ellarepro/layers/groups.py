"""Point groups of the square grid, as data: matrices on (row, column) offsets, and their action on maps.

An element g takes a map x to (g x)(p) = x(g^-1 p), p counted from the centre of the grid, and group features x(c, s)
to (g x)(c, s)(p) = x(c, g^-1 s)(g^-1 p) (Cohen and Welling, 2016). Group features are folded into the channels,
channel `c * |G| + s`, and stay in the image frame.
"""

from dataclasses import dataclass
from functools import cached_property
from itertools import product

from torch import Tensor

Matrix = tuple[tuple[int, int], tuple[int, int]]

IDENTITY: Matrix = ((1, 0), (0, 1))
ROTATION: Matrix = ((0, -1), (1, 0))
"""By 90 degrees, counterclockwise for an image whose rows go down: `torch.rot90(image, 1, (2, 3))`."""
REFLECTION: Matrix = ((1, 0), (0, -1))
"""Left and right exchanged: `image.flip(3)`."""


@dataclass(frozen=True)
class PointGroup:
    """A group of rotations and reflections that map the square grid to itself.

    Elements are spoken of by their index; 0 is the identity.

    Args:
        name: what messages call it.
        elements: integer matrices acting on (row, column) offsets, the identity first.

    Raises:
        ValueError: a matrix that does not map the square grid to itself, the identity not first, an element given
            twice, or a product of two elements that is not an element.
    """

    name: str
    elements: tuple[Matrix, ...]

    def __post_init__(self):
        _check_isometries(self.name, self.elements)
        if self.elements[:1] != (IDENTITY,):
            raise ValueError(f"group {self.name}: the first element must be the identity {IDENTITY}")
        if len(set(self.elements)) < self.order:
            raise ValueError(f"group {self.name}: elements must be distinct, got {self.elements}")
        for first, second in product(self.elements, repeat=2):
            if _product(first, second) not in self.elements:
                raise ValueError(f"group {self.name} is not closed: {first} times {second} is not one of its elements")

    @classmethod
    def generated(cls, name: str, *generators: Matrix) -> "PointGroup":
        """All products of the generators; without any, the group of the identity alone.

        Raises:
            ValueError: a generator that does not map the square grid to itself.
        """
        _check_isometries(name, generators)
        elements = [IDENTITY]
        for element in elements:
            elements += [moved for g in generators if (moved := _product(g, element)) not in elements]
        return cls(name, tuple(elements))

    @property
    def order(self) -> int:
        """|G|, the number of elements."""
        return len(self.elements)

    @cached_property
    def products(self) -> tuple[tuple[int, ...], ...]:
        """Composition: entry `[a][b]` is the index of a b, which applies b first."""
        return tuple(tuple(self.elements.index(_product(a, b)) for b in self.elements) for a in self.elements)

    @cached_property
    def inverses(self) -> tuple[int, ...]:
        """Entry `[a]` is the index of a^-1."""
        return tuple(row.index(0) for row in self.products)

    def act_on_offset(self, element: int, offset: tuple[int, int]) -> tuple[int, int]:
        """The offset `(row, column)` to which `element` takes `offset`."""
        top, bottom = self.elements[element]
        return top[0] * offset[0] + top[1] * offset[1], bottom[0] * offset[0] + bottom[1] * offset[1]

    def act_on_kernel(self, element: int, size: int) -> list[int]:
        """For every pixel of a `size x size` kernel, row by row, the pixel to which `element` takes it.

        Raises:
            ValueError: `size` is even, so no pixel is the centre.
        """
        if size % 2 == 0:
            raise ValueError(f"a kernel that turns about a pixel has an odd size, got {size}")
        half = size // 2
        offsets = range(-half, half + 1)
        moved = (self.act_on_offset(element, offset) for offset in product(offsets, offsets))
        return [(row + half) * size + column + half for row, column in moved]

    def transform_image(self, images: Tensor, element: int) -> Tensor:
        """`images (B, C, H, W)`, each map turned by `element` about the centre of its grid: the same shape.

        Raises:
            ValueError: `element` exchanges the axes of maps that are not square.
        """
        matrix = self.elements[element]
        if matrix[0][0] == 0:
            height, width = images.shape[2:]
            if height != width:
                raise ValueError(f"{matrix} exchanges rows and columns: needs square maps, got {height} x {width}")
            images = images.mT
        return images.flip([axis for axis, row in zip((2, 3), matrix, strict=True) if sum(row) < 0])

    def transform(self, features: Tensor, element: int) -> Tensor:
        """Group features `(B, C*|G|, H, W)` after `element`: maps turned, group channels permuted; the same shape.

        Raises:
            ValueError: channels that are no multiple of |G|, or maps that are not square where the axes exchange.
        """
        if features.shape[1] % self.order:
            raise ValueError(f"group {self.name}: channels must be a multiple of {self.order}, got {features.shape[1]}")
        sources = list(self.products[self.inverses[element]])
        by_element = self.transform_image(features, element).unflatten(1, (-1, self.order))
        return by_element[:, :, sources].flatten(1, 2)


def _product(first: Matrix, second: Matrix) -> Matrix:
    (a, b), (c, d) = first
    (e, f), (g, h) = second
    return (a * e + b * g, a * f + b * h), (c * e + d * g, c * f + d * h)


def _check_isometries(name: str, matrices: tuple[Matrix, ...]) -> None:
    for matrix in matrices:
        unsigned = tuple(tuple(abs(entry) for entry in row) for row in matrix)
        if unsigned not in (IDENTITY, IDENTITY[::-1]):
            raise ValueError(f"group {name}: {matrix} does not map the square grid to itself")


GROUPS = {
    group.name: group
    for group in (
        PointGroup.generated("c1"),
        PointGroup.generated("c2", ((-1, 0), (0, -1))),
        PointGroup.generated("c4", ROTATION),
        PointGroup.generated("d4", ROTATION, REFLECTION),
    )
}
"""Group name to group: `c<n>` of n rotations, `d4` of four rotations and four reflections."""


def group_of(name: str) -> PointGroup:
    """The group of this name.

    Raises:
        ValueError: a name that is not in `GROUPS`.
    """
    if name not in GROUPS:
        raise ValueError(f"group must be one of {', '.join(GROUPS)}; got {name!r}")
    return GROUPS[name]
