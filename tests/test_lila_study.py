"""The network of learned layers beside learned invariance, and what it loses without each."""

from dataclasses import replace
from math import isclose

import torch

from ellarepro.data import Samples, Task
from ellarepro.symmetry.affine import Affine, Averaging
from scripts.lila.layers import PATCH, patch_network, points_lost
from scripts.lila.runs import ARMS, BESIDE, CONTROLS, LOSSES


def of_noise(size: int = 60) -> Task:
    images = torch.randn(size, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    samples = Samples(images, torch.zeros(size, dtype=torch.int64))
    return Task("noise", samples, samples, 10, 1, 16, "none", (0.0,), (1.0,), False, tuple("0123456789"))


@torch.no_grad()
def test_conv_does_not_see_a_shift_by_a_patch_and_fc_does():
    images = of_noise().test.inputs
    for paths, equal in ((("conv",), True), (("fc",), False), (("fc", "conv"), False)):
        network = patch_network(paths, 0, 10)
        moved = network(images.roll((PATCH, 2 * PATCH), (2, 3)))
        assert torch.allclose(moved, network(images), atol=1e-5) == equal
        assert not torch.allclose(network(images.roll(1, 2)), network(images), atol=1e-3), "within a patch both do"


@torch.no_grad()
def test_what_is_lost_without_a_path_and_without_copies():
    """Labels are those that the network gives, so that all is right; one path is dead, and copies count."""
    task, network = of_noise(), patch_network(("fc", "conv"), 0, 10)
    for p in network[1].paths["conv"].parameters():
        p.zero_()
    Averaging(network, Affine(1.0, ("rotation",), copies=4))
    network.eval()
    network[5].bias -= network(task.test.inputs).mean(0)  # so that it gives all classes
    labels = network(task.test.inputs).argmax(1)
    task = replace(task, train=Samples(task.train.inputs, labels), test=Samples(task.test.inputs, labels))
    lost = points_lost(network, task)
    assert set(lost) == {"fc", "conv", "copies"}
    assert lost["conv"] == 0 and lost["copies"] > 10
    shares = labels.bincount() / len(labels)
    assert shares.max() < 0.5 and any(isclose(lost["fc"], 100 - 100 * share, abs_tol=1e-4) for share in shares.tolist())
    assert network.invariance.eta[2] == 1.0, "as it was"


def test_every_case_has_an_arm():
    assert len(BESIDE) == len({case.name for case in BESIDE}) == 72
    assert {case.arm for case in (*BESIDE, *CONTROLS)} <= {*ARMS, *LOSSES} and not {*ARMS} & {*LOSSES}
