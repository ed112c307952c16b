"""Where tensors lie: a run on an accelerator never mixes devices, and the host reads nothing within an epoch.

Checked without an accelerator, on a device without values; `pytest -m cuda` compares the numbers where there is one.
"""

import pytest
import torch
from helpers import small_data, weight_settings
from torch import nn
from valueless import DEVICE, MixedDevices, Valueless

from ellarepro.curvature.fitting import gatherer_of
from ellarepro.curvature.posterior import posterior_precision
from ellarepro.curvature.structures import STRUCTURES, sums_of
from ellarepro.data import Samples, Task
from ellarepro.evidence.evaluation import evaluate
from ellarepro.evidence.marglik import fit
from ellarepro.evidence.predictive import evaluate_linearised, weight_deviations
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import LAYERS, build_network
from ellarepro.runs.preparing import trainer_of
from ellarepro.settings.parts import AnchorSettings, FitSettings, LaplaceSettings
from ellarepro.symmetry.ablation import path_use
from ellarepro.training.loop import Trainer

SPARSE = ("s_fc", "s_conv", "s_fc_s_conv")


def network(layer: str, **anchors):
    options = {"in_channels": 1, "num_classes": 3, "alpha": 1, "image_size": 8}
    return build_network(layer, **options, anchors=AnchorSettings(**{"learn_omega": True} | anchors)).to(DEVICE)


def images(size: int = 12) -> Samples:
    pixels, labels = small_data(size)
    return Samples(pixels.float().to(DEVICE), labels.to(DEVICE))


def trainer(layer: str, anchors: dict | None = None, **changes) -> Trainer:
    data, model = images(), network(layer, **(anchors or {}))
    task = Task("tiny", data, data, 3, 1, 8, "none", (0.0,), (1.0,), True, ("a", "b", "c"))
    weights = weight_settings(**({"epochs": 3, "batch_size": 6, "kind": "SGD", "lr": 0.1, "momentum": 0.9} | changes))
    laplace = LaplaceSettings(burn_in=1, frequency=1, steps=2, lr=0.1, fit=FitSettings(batch_size=5))
    # The meta device has no generators: None stands for the default one.
    run = trainer_of(LayerwisePrior(model), task, weights, ("laplace", laplace), generator=None)
    run.data.order = lambda generator: torch.randperm(run.data.size, device=DEVICE)
    for group in run.optimiser.param_groups:
        group["fused"] = False  # There are no fused kernels without values.
    return run


def test_the_device_without_values_refuses_what_cuda_refuses():
    """Controls: the meta device alone would let these pass."""
    there, here = torch.empty(3, 3, device=DEVICE), torch.ones(3, 3)
    there @ here, there.add_(here)
    with Valueless() as device:
        for call in (lambda: there @ here, lambda: there.add_(here)):
            with pytest.raises(MixedDevices):
                call()
        assert (there / torch.tensor(2.0))[torch.tensor([0, 1])].device == DEVICE, "single numbers and indices may"
        assert not device.reads
        assert (there.sum().item(), bool(there.any()), there[:1].long().tolist()) == (1.0, True, [[2, 2, 2]])
        assert there.cpu().device == torch.device("cpu") and there[there[0] > 0].shape == (3, 3)
        assert device.reads.total() == 5


def test_a_buffer_left_on_the_host_is_found():
    """The control for what follows: one tensor that did not move with the network."""
    run = trainer("s_fc", {"learn_omega": False})
    path = run.model.blocks[0].paths["s_fc"]
    basis = next(m for m in path.modules() if "psi" in dict(m.named_buffers(recurse=False)))
    basis.psi = torch.ones(basis.psi.shape)
    with Valueless(), pytest.raises(MixedDevices):
        run.run()


@pytest.mark.parametrize("kind", ["SGD", "Adam"])
@pytest.mark.parametrize(("layer", "basis"), [*((n, "rbf") for n in LAYERS), *((n, "posterior_mean") for n in SPARSE)])
def test_the_host_reads_nothing_within_an_epoch(layer, basis, kind):
    run = trainer(layer, {"basis": basis}, kind=kind, momentum=0.0)
    with Valueless() as device:
        read_before = []
        run.pause = lambda state: read_before.append(device.reads.total())
        run._train_epoch()
    assert read_before == [0, 0], "after each step"
    assert device.reads.total() > 0, "the control: at the epoch's end it does"
    assert all(p.device == p.grad.device == DEVICE for p in run.model.parameters())


@pytest.mark.parametrize("layer", LAYERS)
def test_a_run_with_its_fits_stays_on_its_device(layer):
    run = trainer(layer)
    with Valueless():
        run.run()
        evidence = run.objective.fit()
        evaluate(run.model, run.objective.data)
        path_use(run.model, run.objective.prior.precisions(), run.objective.data, run.objective.data)
    assert run.epoch == 3 and len(run.history["fit_epoch"]) == 2
    assert all(total.shape for total in sums_of(evidence.curvature.blocks))
    assert all(v.device == DEVICE for values in evidence.curvature.eigenvalues for v in values)
    assert run.objective.prior.log_precision.device == evidence.squared_norms.device == torch.device("cpu")


@pytest.mark.parametrize("layer", ["fc_conv", "s_fc_s_conv", "f_fc_conv_gconv"])
@pytest.mark.parametrize("structure", STRUCTURES)
def test_every_structure_and_its_posterior_stay_on_the_device(structure, layer):
    model, data = network(layer), images()
    prior = LayerwisePrior(model)
    with Valueless():
        found = fit(model, prior, data, FitSettings(structure, tolerance=0.0, batch_size=5))
        assert found.effective_parameters(prior.log_precision).device == torch.device("cpu")
        posterior = posterior_precision(found.curvature, prior.log_precision.detach().exp())
        deviations = weight_deviations(model, posterior, 2, None)
        evaluate_linearised(model, deviations, data)
    factors = [factor for block in found.curvature.blocks.values() for factor in block.factors]
    drawn = [tensor for deviation in deviations for tensor in deviation.values()]
    assert {tensor.device for tensor in [*drawn, *factors]} == {DEVICE}


def test_the_full_matrix_stays_on_the_device():
    model, data = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).to(DEVICE), images()
    prior = LayerwisePrior(model)
    with Valueless():
        found = fit(model, prior, data, FitSettings("full"))
        assert found.curvature.matrix.device == DEVICE
        found.ascend(prior.log_precision, torch.optim.Adam([prior.log_precision]), 1)
        assert found.effective_parameters(prior.log_precision).device == torch.device("cpu")


@pytest.mark.parametrize("engine", ["native", "asdl"])
def test_exact_passes_wait_for_the_device_only_where_labels_are_checked(engine):
    model, data = network("f_fc_conv"), images()
    with Valueless() as device:
        gatherer_of(model, FitSettings(tolerance=0.0, engine=engine)).update(data.inputs)
        assert device.reads.total() == device.sends == 0
        gatherer_of(model, FitSettings(tolerance=0.1)).update(data.inputs)
        assert device.reads.total() > 0, "the control: which samples have left is read"
        torch.zeros(8).to(DEVICE)
        assert device.sends == 1, "the control"
