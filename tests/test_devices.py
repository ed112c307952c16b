"""On a device with values a run never mixes devices, and what the host reads there is a number.

What it computes there is compared with the CPU in `test_cuda.py`; each kind of mistake has its control here.
"""

import pytest
import torch
from helpers import small_data, small_network, weight_settings
from smoke_runs import config, found, quiet, stopped
from valued import MISSING, NAME, MixedDevices, Valued

from ellarepro.curvature.factory import accumulator_of
from ellarepro.data import Samples, Task
from ellarepro.errors import UserError
from ellarepro.evidence.marglik import fit
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import LAYERS
from ellarepro.results import flatten
from ellarepro.runs.preparing import prepare, trainer_of
from ellarepro.settings.parts import AnchorSettings, FitSettings, LaplaceSettings
from ellarepro.training.loop import Trainer

pytestmark = pytest.mark.skipif(bool(MISSING), reason=MISSING or "never")
HERE, THERE = torch.device("cpu"), torch.device(NAME, 0)
SPARSE = ("s_fc", "s_conv", "s_fc_s_conv")
AT_AN_EPOCHS_END = 4
"""What the host reads then beside a number a tensor: loss, accuracy, squared norms, the first step that went wrong."""
A_BATCH, A_FIT, A_DECOMPOSITION, A_FACTOR, A_HYPER_STEP = 2, 2, 4, 3, 2
"""What it reads of these: whether inputs are finite and labels in range; the loss and the squared norms; whether what
goes in and comes out is finite, whether it has converged, how many were clipped; which rows and columns are used, at
most; the value and its gradient.
"""


@pytest.fixture
def valued():
    with Valued() as device:
        yield device


def images(size: int = 12) -> Samples:
    return Samples(*small_data(size)).to(THERE)


def trainer(layer: str, basis: str = "rbf", learned: bool = True, generator=None, **changes) -> Trainer:
    data, model = images(), small_network(layer, anchors=AnchorSettings(basis, learn_omega=learned)).to(THERE)
    task = Task("tiny", data, data, 3, 1, 8, "none", (0.0,), (1.0,), True, ("a", "b", "c"))
    weights = {"epochs": 1, "batch_size": 6, "lr": 0.1, "momentum": 0.9} | changes
    laplace = LaplaceSettings(burn_in=1, frequency=1, steps=2, lr=0.1, fit=FitSettings(batch_size=5))
    generator = generator or torch.Generator(THERE)
    return trainer_of(LayerwisePrior(model), task, weight_settings(**weights), ("laplace", laplace), generator)


def test_the_device_refuses_what_cuda_refuses(valued):
    there, here = torch.ones(3, 3, device=THERE), torch.ones(3, 3)
    draws = (torch.Generator(), THERE), (torch.Generator(THERE), HERE)
    calls = [lambda: there @ here, lambda: there.add_(here), lambda: here.add_(there), lambda: torch.cat([here, there])]
    calls += [lambda g=g, d=d: torch.randn(3, device=d, generator=g) for g, d in draws]
    calls += [lambda: there.normal_(generator=torch.Generator())]
    for call in calls:
        with pytest.raises(MixedDevices):
            call()
    assert (there / torch.tensor(2.0))[torch.tensor([0, 1])].device == THERE, "single numbers and indices may"
    one, other = torch.Generator(THERE).manual_seed(5), torch.Generator().manual_seed(5)
    drawn = torch.randn(3, device=THERE, generator=one)
    assert drawn.device == THERE and torch.equal(drawn.cpu(), torch.randn(3, generator=other))
    with pytest.raises(MixedDevices):
        torch.nn.Linear(3, 3)(there)


def test_what_the_host_reads_and_sends_is_counted(valued):
    there = torch.ones(3, 3, device=THERE)
    there @ there, there[0].add_(1), torch.where(there > 1, there, 0), there[torch.tensor([1])]
    assert valued.reads.total() == valued.sends == 0, "the control"
    assert (there.sum().item(), bool((there > 0).all()), there[:1].long().tolist()) == (12.0, True, [[2, 2, 2]])
    assert there.cpu().device == HERE and there[there > 1].tolist() == [2.0] * 3
    assert there.numpy(force=True).sum() == 12
    with pytest.raises(TypeError):
        there.numpy()
    assert valued.reads.total() == 7
    torch.linalg.eigh(there), torch.zeros(8).to(THERE), torch.tensor([1.0], device=THERE)
    assert valued.reads.total() == 8 and valued.sends == 2


def test_outside_of_tests_there_is_no_such_device(tmp_path):
    with pytest.raises(UserError, match=f"device={NAME} is not usable here: possible are auto, cpu"):
        prepare(config(tmp_path).changed(device=NAME))


def test_a_tensor_left_on_the_cpu_is_found(valued):
    run = trainer("s_fc", learned=False)
    path = run.model.blocks[0].paths["s_fc"]
    basis = next(m for m in path.modules() if "psi" in dict(m.named_buffers(recurse=False)))
    basis.psi = basis.psi.cpu()
    with pytest.raises(MixedDevices):
        run._train_epoch()


def test_a_generator_on_the_wrong_device_is_found(valued):
    with pytest.raises(MixedDevices):
        trainer("conv", generator=torch.Generator())._train_epoch()


def reads_by_step(run: Trainer, valued: Valued) -> list[int]:
    """How often the host has read before the first step, after each of them, and at the epoch's end."""
    valued.reads.clear()
    counted = [0]
    run.pause = lambda state: counted.append(valued.reads.total())
    run._train_epoch()
    return [*counted, valued.reads.total()]


CASES = [*((layer, "rbf", "SGD") for layer in LAYERS), *((layer, "posterior_mean", "SGD") for layer in SPARSE)]


@pytest.mark.parametrize(("layer", "basis", "kind"), [*CASES, ("f_fc_conv", "rbf", "Adam")])
def test_the_host_reads_nothing_within_an_epoch(layer, basis, kind, valued):
    run = trainer(layer, basis, kind=kind, momentum=0.0)
    tensors = list(run.model.parameters())
    assert reads_by_step(run, valued) == [0, 0, 0, AT_AN_EPOCHS_END + len(tensors)]
    assert all(p.device == p.grad.device == THERE for p in tensors)


def test_a_host_read_in_the_step_is_found(valued):
    run = trainer("conv")
    run.model.register_forward_hook(lambda model, inputs, logits: logits.sum().item() and None)
    assert reads_by_step(run, valued)[:3] == [0, 1, 2]


@pytest.mark.parametrize("layer", ["conv", "s_fc_s_conv", "f_fc_conv_gconv"])
def test_what_the_host_reads_of_a_fit_grows_with_its_batches_and_matrices_alone(layer, valued):
    model = small_network(layer).to(THERE)
    prior, counted = LayerwisePrior(model), []
    for batch_size in (12, 4):
        valued.reads.clear()
        evidence = fit(model, prior, images(), FitSettings(tolerance=0.0, batch_size=batch_size))
        counted.append(valued.reads.copy())
    one, three = (reads.total() for reads in counted)
    assert three - one == 2 * A_BATCH
    decompositions = counted[0]["aten._linalg_eigh.default"]
    factors = sum(len(block.factors) for block in evidence.curvature.blocks.values())
    others = one - A_BATCH - A_FIT - A_DECOMPOSITION * decompositions
    assert 0 < decompositions <= factors <= others <= A_FACTOR * factors
    valued.reads.clear()
    evidence.ascend(prior.log_precision, torch.optim.Adam([prior.log_precision]), 5)
    assert valued.reads.total() == 5 * A_HYPER_STEP


@pytest.mark.parametrize("engine", ["native", "asdl"])
def test_exact_passes_wait_for_the_device_only_where_labels_are_checked(engine, valued):
    model, data = small_network("f_fc_conv").to(THERE), images()
    valued.sends = 0
    accumulator_of(model, FitSettings(tolerance=0.0, engine=engine)).update(data.inputs)
    assert valued.reads.total() == 0 and valued.sends == (0 if engine == "native" else 3)
    accumulator_of(model, FitSettings(tolerance=0.1)).update(data.inputs)
    assert valued.reads.total() > 0, "the control: which samples have left is read"


def test_a_run_stopped_and_continued_there_is_the_whole_one_of_the_cpu(wanted, tmp_path, valued):
    """By way of a checkpoint; one of the other kind of device is refused by name. Sums are in another order."""
    stopped(tmp_path, 5, f"device={NAME}")
    with pytest.raises(UserError, match=rf"another device \({NAME}, this run has cpu\)"):
        quiet(tmp_path)
    quiet(tmp_path, f"device={NAME}")
    got = dict(flatten(found(tmp_path)))
    assert got == {key: pytest.approx(value, rel=1e-4) for key, value in flatten(wanted)}
    assert got["test_nll"] != pytest.approx(wanted["test_nll"] + 0.01, rel=1e-4), "the control"
