"""Point groups: the axioms, and their action on maps against matrices applied pixel by pixel."""

from itertools import product

import pytest
import torch
from test_layers import images

from ellarepro.layers.groups import GROUPS, IDENTITY, REFLECTION, ROTATION, PointGroup

ORDERS = {"c1": 1, "c2": 2, "c4": 4, "d4": 8}


def matrix(group: PointGroup, element: int) -> torch.Tensor:
    return torch.tensor(group.elements[element])


def test_the_groups_that_are_there():
    assert {name: group.order for name, group in GROUPS.items()} == ORDERS
    assert all(name == group.name for name, group in GROUPS.items())


@pytest.mark.parametrize("name", ORDERS)
def test_axioms(name):
    group = GROUPS[name]
    everyone = range(group.order)
    for a, b in product(everyone, repeat=2):
        assert torch.equal(matrix(group, group.products[a][b]), matrix(group, a) @ matrix(group, b))
    for a, b, c in product(everyone, repeat=3):
        assert group.products[group.products[a][b]][c] == group.products[a][group.products[b][c]]
    for a in everyone:
        assert group.products[0][a] == group.products[a][0] == a
        assert group.products[a][group.inverses[a]] == group.products[group.inverses[a]][a] == 0
        assert sorted(group.products[a]) == list(everyone)
    commute = all(group.products[a][b] == group.products[b][a] for a, b in product(everyone, repeat=2))
    assert commute == (name != "d4"), "d4 is the control: its order of products can be seen"


@pytest.mark.parametrize("size", [1, 3, 5])
def test_kernel_pixels_go_where_their_offsets_go(size):
    group, half = GROUPS["d4"], size // 2
    offsets = list(product(range(-half, half + 1), repeat=2))
    for element in range(group.order):
        moved = [offsets[pixel] for pixel in group.act_on_kernel(element, size)]
        assert moved == [tuple((matrix(group, element) @ torch.tensor(offset)).tolist()) for offset in offsets]
        assert moved == [group.act_on_offset(element, offset) for offset in offsets]
        assert (moved == offsets) == (element == 0 or size == 1)
    with pytest.raises(ValueError, match="odd size, got 4"):
        group.act_on_kernel(1, 4)


def moved_pixel_by_pixel(group: PointGroup, features: torch.Tensor, element: int, folded: bool) -> torch.Tensor:
    """(g x)(c, s)(p) = x(c, g^-1 s)(g^-1 p), written as (g x)(c, g s)(g p) = x(c, s)(p)."""
    channels, height, width = features.shape[1:]
    out, (g, centre) = torch.zeros_like(features), (matrix(group, element), torch.tensor([height - 1, width - 1]) / 2)
    for channel, i, j in product(range(channels), range(height), range(width)):
        row, column = (g.float() @ (torch.tensor([i, j]) - centre) + centre).long().tolist()
        c, s = divmod(channel, group.order)
        to = c * group.order + group.elements.index(tuple(map(tuple, (g @ matrix(group, s)).tolist())))
        out[:, to if folded else channel, row, column] = features[:, channel, i, j]
    return out


@pytest.mark.parametrize("size", [4, 5])
@pytest.mark.parametrize("name", ORDERS)
def test_action_on_maps(name, size):
    group = GROUPS[name]
    x, plain = images(2, 2 * group.order, size, size), images(2, 3, size, size)
    for a in range(group.order):
        assert torch.equal(group.transform(x, a), moved_pixel_by_pixel(group, x, a, folded=True))
        assert torch.equal(group.transform_image(plain, a), moved_pixel_by_pixel(group, plain, a, folded=False))
        assert torch.equal(group.transform(x, a), group.transform_image(x, a)) == (a == 0), "channels permute"
        for b in range(group.order):
            assert torch.equal(group.transform(group.transform(x, b), a), group.transform(x, group.products[a][b]))


def test_rotation_and_reflection_are_those_of_torch():
    group, x = GROUPS["d4"], images()
    rotation, reflection = group.elements.index(ROTATION), group.elements.index(REFLECTION)
    assert torch.equal(group.transform_image(x, rotation), x.rot90(1, (2, 3)))
    assert torch.equal(group.transform_image(x, reflection), x.flip(3))
    assert not torch.equal(group.transform_image(x, rotation), x.rot90(-1, (2, 3)))


def test_maps_that_are_not_square():
    x = images(channels=8, width=6)
    assert torch.equal(GROUPS["c2"].transform_image(x, 1), x.flip(2, 3))
    for element in range(8):
        if matrix(GROUPS["d4"], element)[0, 0] == 0:
            with pytest.raises(ValueError, match="needs square maps, got 4 x 6"):
                GROUPS["d4"].transform(x, element)
        else:
            assert GROUPS["d4"].transform(x, element).shape == x.shape
    with pytest.raises(ValueError, match="channels must be a multiple of 4, got 6"):
        GROUPS["c4"].transform(images(channels=6), 1)


@pytest.mark.parametrize(
    ("elements", "said"),
    [
        ((), "first element must be the identity"),
        ((ROTATION, IDENTITY), "first element must be the identity"),
        ((IDENTITY, IDENTITY), "distinct"),
        ((IDENTITY, ROTATION), "not closed"),
        ((IDENTITY, REFLECTION, ((-1, 0), (0, -1))), "not closed"),
        ((IDENTITY, ((0, -1), (1, -1)), ((-1, 1), (-1, 0))), "does not map the square grid to itself"),
    ],
)
def test_what_is_no_group_is_refused(elements, said):
    with pytest.raises(ValueError, match=f"group new.*{said}"):
        PointGroup("new", elements)


def test_a_new_group_is_one_line():
    mirrored = PointGroup.generated("mirrored", REFLECTION)
    assert mirrored.elements == (IDENTITY, REFLECTION)
    assert mirrored == PointGroup("mirrored", (IDENTITY, REFLECTION))
    with pytest.raises(ValueError, match="does not map the square grid to itself"):
        PointGroup.generated("sheared", ((1, 1), (0, 1)))
