"""The door for networks of one's own: what it takes, what it learns, what it predicts, and what it refuses."""

import math
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import assert_close, relative_error
from networks import Transformer, curve, resnet, separable_network
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from ellarepro import Classification, FitSettings, LaplaceSettings, LayerwiseLaplace, Regression
from ellarepro.curvature.eigen import CurvatureError
from ellarepro.curvature.exact import exact_ggn, jacobians
from ellarepro.curvature.rule import UnclaimedParameterError
from ellarepro.data.training_batches import training_batches
from ellarepro.errors import RunFailure
from ellarepro.evidence import fitted

SOON = LaplaceSettings(burn_in=1, frequency=1, steps=20)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(64, 3),
    )


def stripes(size: int = 30, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a bright row in one of three places, which is the label."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (size,), generator=generator)
    images = torch.randn(size, 1, 4, 4, generator=generator)
    images[torch.arange(size), 0, labels] += 2
    return images, labels


def loader(data, batch_size: int = 7, **options) -> DataLoader:
    return DataLoader(TensorDataset(*data), batch_size=batch_size, **options)


def test_a_loader_and_a_pair_of_tensors_are_the_same_data():
    model, data = network(), stripes()
    whole = LayerwiseLaplace(model).fit(data)
    batches = LayerwiseLaplace(model).fit(loader(data))
    shuffled = LayerwiseLaplace(model).fit(loader(data, shuffle=True))
    for other in (batches, shuffled):
        assert other.log_marginal_likelihood() == pytest.approx(whole.log_marginal_likelihood(), rel=1e-5)
    part = LayerwiseLaplace(model).fit(loader((data[0][:15], data[1][:15])))
    assert part.log_marginal_likelihood() != pytest.approx(whole.log_marginal_likelihood(), rel=0.1)


def test_fit_size_takes_a_random_subset_and_the_loss_of_all():
    model, (images, labels) = network().double().eval(), stripes(24)
    data = images.double(), labels
    chosen = torch.randperm(24, generator=torch.Generator().manual_seed(0))[:9]
    settings = FitSettings("full", tolerance=0.0, fit_size=9)
    by_loader, by_tensors = (LayerwiseLaplace(model, settings=settings).fit(given) for given in (loader(data), data))
    wanted = exact_ggn(model, data[0][chosen]) * (24 / 9)
    loss = nn.functional.cross_entropy(model(data[0]), labels, reduction="sum").item()
    for laplace in (by_loader, by_tensors):
        assert_close(laplace._fit_done.curvature.matrix, wanted)
        assert laplace.evidence().data_fit.item() == pytest.approx(-loss, rel=1e-9)
    first = exact_ggn(model, data[0][:9]) * (24 / 9)
    assert relative_error(wanted, first) > 0.01, "the control: the first nine are others"


def test_data_sorted_by_class_lose_no_class_to_a_fit_size():
    torch.manual_seed(0)
    labels = torch.arange(5).repeat_interleave(100)
    inputs = torch.randn(500, 8) + 2 * torch.randn(5, 8)[labels]
    model = nn.Linear(8, 5)
    everything = LayerwiseLaplace(model).fit((inputs, labels)).effective_numbers()["weight"]
    subset = LayerwiseLaplace(model, settings=FitSettings(fit_size=100)).fit((inputs, labels))
    assert subset.effective_numbers()["weight"] == pytest.approx(everything, rel=0.05)
    first = LayerwiseLaplace(model).fit((inputs[:100], labels[:100])).effective_numbers()["weight"]
    assert first != pytest.approx(everything, rel=0.05), "the control: the first class alone"


def test_learning_raises_the_evidence_and_says_what_the_data_determine():
    laplace = LayerwiseLaplace(network()).fit(stripes())
    before = laplace.log_marginal_likelihood()
    after = laplace.learn().log_marginal_likelihood()
    assert after > before + 1
    sizes = {name: p.numel() for name, p in laplace.model.named_parameters()}
    assert list(laplace.precisions()) == list(laplace.effective_numbers()) == list(sizes)
    assert len(set(laplace.precisions().values())) == len(sizes)
    assert all(0 < number < sizes[name] for name, number in laplace.effective_numbers().items())
    parts = laplace.evidence()
    assert parts.value.item() == after and not parts.value.requires_grad


@pytest.mark.parametrize("as_loader", [False, True])
def test_training_learns_weights_and_precisions(as_loader):
    data, test = stripes(90), stripes(60, seed=1)
    model = network()
    given = loader(data, 30, shuffle=True) if as_loader else data
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    laplace = LayerwiseLaplace(model).train(given, epochs=15, optimiser=optimiser, batch_size=30)
    assert model.training, "as before"
    prediction = laplace.predict(test[0])
    assert (prediction.mean.argmax(1) == test[1]).float().mean() > 0.8
    assert set(laplace.precisions().values()) != {1.0}
    untrained = LayerwiseLaplace(network()).fit(data).learn()
    assert laplace.log_marginal_likelihood() > untrained.log_marginal_likelihood() + 5


def test_training_is_that_of_a_loop_of_ones_own():
    data = stripes()
    ours = LayerwiseLaplace(network().eval(), prior_precision=3.0)
    ours.model.train = lambda mode=True: ours.model
    optimiser = torch.optim.SGD(ours.model.parameters(), lr=0.1)
    ours.train(data, epochs=2, optimiser=optimiser, schedule=LaplaceSettings(1, 5, 1), batch_size=30)
    model = network().eval()
    own = LayerwiseLaplace(model, prior_precision=3.0)
    optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
    hyper = torch.optim.Adam([own.prior.log_precision], lr=0.1)
    for epoch in range(2):
        optimiser.zero_grad()
        delta = own.prior.log_precision.detach().exp()
        penalty = sum(d / 2 * p.square().sum() for d, p in zip(delta, model.parameters(), strict=True)) / 30
        (nn.functional.cross_entropy(model(data[0]), data[1]) + penalty).backward()
        optimiser.step()
        if epoch == 0:
            own.fit(data)._fit_done.ascend(own.prior.log_precision, hyper, 1)
    for a, b in zip(ours.model.parameters(), model.parameters(), strict=True):
        assert_close(a.detach(), b.detach(), 1e-5)


def test_fit_and_predict_leave_running_statistics_and_the_mode_alone():
    model, data = network().train(), stripes()
    model[3].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    laplace = LayerwiseLaplace(model).fit(data).learn(5)
    prediction = laplace.predict(data[0])
    assert model.training and not model[3].training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), f"{name} has changed"
    again = LayerwiseLaplace(model.eval()).fit(data).learn(5)
    assert again.log_marginal_likelihood() == laplace.log_marginal_likelihood()
    assert torch.equal(again.predict(data[0]).mean, prediction.mean), "dropout would draw anew"
    model.train()(data[0])
    assert not torch.equal(model.state_dict()["1.running_mean"], before["1.running_mean"]), "the control: in training"


def test_predictions_of_classes_are_probabilities_with_a_spread():
    data = stripes(60)
    laplace = LayerwiseLaplace(network().double()).fit((data[0].double(), data[1])).learn()
    inputs = data[0][:5].double()
    prediction = laplace.predict(inputs, samples=300)
    assert_close(prediction.mean.sum(1), torch.ones(5, dtype=torch.float64))
    assert torch.equal(prediction.mean, laplace.predict(inputs, samples=300).mean)
    model = laplace.model.eval()
    jacobian, outputs = (found.detach() for found in jacobians(model, inputs))
    with torch.no_grad():
        spread = laplace.posterior().bmm(jacobian, exponent=-1) @ jacobian.mT
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(20_000, 5, 3, generator=generator, dtype=torch.float64)
    logits = outputs + (torch.linalg.cholesky(spread) @ noise[..., None])[..., 0]
    assert relative_error(prediction.mean, logits.softmax(2).mean(0)) < 0.05
    assert relative_error(prediction.std, logits.softmax(2).std(0)) < 0.15
    sharp = LayerwiseLaplace(model, prior_precision=1e10).fit((data[0].double(), data[1])).predict(inputs)
    assert_close(sharp.mean, outputs.softmax(1), 1e-3)
    assert relative_error(prediction.mean, outputs.softmax(1)) > 0.01, "the control: the posterior is broad"


def test_full_and_blocks_predict_alike_where_they_are_alike():
    torch.manual_seed(0)
    model, inputs = nn.Linear(4, 1, bias=False).double(), torch.randn(9, 4, dtype=torch.float64)
    data = inputs, inputs.sum(1, keepdim=True)
    kron, full, diag = (
        LayerwiseLaplace(model, "regression", settings=FitSettings(s)).fit(data) for s in ("kron", "full", "diag")
    )
    assert_close(kron.predict(inputs).std, full.predict(inputs).std)
    assert relative_error(diag.predict(inputs).std, full.predict(inputs).std) > 1e-3


def test_full_needs_no_rule():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 5), nn.PReLU(), nn.Linear(5, 3)).double()
    images, labels = stripes()
    data = images.flatten(1).double(), labels
    laplace = LayerwiseLaplace(model, settings=FitSettings("full")).fit(data).learn(20)
    assert laplace.predict(data[0][:2]).mean.shape == (2, 3)
    with pytest.raises(UnclaimedParameterError, match="1.weight of PReLU"):
        LayerwiseLaplace(model).fit(data)


@pytest.mark.parametrize("structure", ["kron", "kron_blockwise", "diag"])
@pytest.mark.parametrize(
    ("make", "side"),
    [
        (lambda: resnet(4), 8),
        (lambda: Transformer(8, heads=2, patch=4, image_size=8), 8),
        (lambda: separable_network(4), 12),
    ],
)
def test_networks_of_stock_layers_go_through_the_door(make, side, structure):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    data = torch.randn(20, 1, side, side, generator=generator), torch.randint(10, (20,), generator=generator)
    laplace = LayerwiseLaplace(make(), settings=FitSettings(structure)).train(data, epochs=2, schedule=SOON)
    assert laplace.log_marginal_likelihood() < 0
    assert torch.isfinite(laplace.predict(data[0][:3], samples=5).std).all()


def test_a_regression_learns_its_noise_and_is_less_sure_where_there_are_no_data():
    torch.manual_seed(0)
    inputs = torch.cat([torch.linspace(-2, -0.5, 60), torch.linspace(0.5, 2, 60)])[:, None]
    targets = torch.sin(3 * inputs) + 0.1 * torch.randn(120, 1)
    model = curve(20)
    laplace = LayerwiseLaplace(model, "regression")
    laplace.train((inputs, targets), epochs=300, optimiser=torch.optim.Adam(model.parameters(), lr=0.02))
    assert 0.07 < laplace.likelihood.noise_std < 0.15
    inside, outside = laplace.predict(torch.tensor([[1.0], [4.0]])).std
    assert inside < 0.2 < outside


REFUSED_DATA = {
    "no samples": ((torch.zeros(0, 1, 4, 4), torch.zeros(0, dtype=torch.long)), "at least one sample, got none"),
    "an empty loader": ([], "at least one sample, got none"),
    "labels out of range": ((torch.zeros(2, 1, 4, 4), torch.tensor([0, 3])), "from 0 to 2, one a logit; got .* 0 to 3"),
    "negative labels": ((torch.zeros(2, 1, 4, 4), torch.tensor([-100, 1])), "labels from -100 to 1"),
    "float labels": ((torch.zeros(2, 1, 4, 4), torch.zeros(2)), r"int64 labels of shape \(2,\), got torch.float32"),
    "one-hot labels": ((torch.zeros(2, 1, 4, 4), torch.eye(3).long()[:2]), r"got torch.int64 \(2, 3\)"),
    "a NaN": (
        (torch.full((2, 1, 4, 4), torch.nan), torch.tensor([0, 1])),
        "inputs must be finite, got 32 entries",
    ),
    "other lengths": ((torch.zeros(2, 1, 4, 4), torch.tensor([0])), "as many samples, got shapes"),
    "inputs alone": (torch.zeros(2, 1, 4, 4), "a pair of tensors, inputs and targets, or a loader; got Tensor"),
    "an iterator": (iter([(torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]))]), "gone through again"),
    "a loader of single tensors": ([torch.zeros(3, 1, 4, 4)], "a batch must be a pair"),
    "a dictionary of inputs": ([({"pixels": torch.zeros(1)}, torch.tensor([0]))], "inputs .* one tensor, got dict"),
}


@pytest.mark.parametrize("case", REFUSED_DATA)
def test_data_that_cannot_be_meant_are_refused(case):
    data, said = REFUSED_DATA[case]
    with pytest.raises(ValueError, match=said):
        LayerwiseLaplace(network()).fit(data)


def test_mistakes_of_use_are_one_message_each():
    data = stripes()
    with pytest.raises(
        ValueError, match="likelihood must be one of classification, bernoulli, regression.*got 'softmax'"
    ):
        LayerwiseLaplace(network(), "softmax")
    with pytest.raises(ValueError, match="must have trainable parameters"):
        LayerwiseLaplace(network().requires_grad_(False))
    with pytest.raises(ValueError, match="precision must be positive"):
        LayerwiseLaplace(network(), prior_precision=0.0)
    laplace = LayerwiseLaplace(network())
    for use in (laplace.learn, laplace.log_marginal_likelihood, laplace.effective_numbers, laplace.posterior):
        with pytest.raises(ValueError, match=r"no curvature yet: call fit\(data\)"):
            use()
    with pytest.raises(ValueError, match="epochs must be above burn_in=5"):
        laplace.train(data, epochs=5)
    with pytest.raises(ValueError, match="at least 2 logits a sample, got 1; bernoulli takes 1"):
        LayerwiseLaplace(nn.Sequential(nn.Flatten(), nn.Linear(16, 1))).fit(data)
    with pytest.raises(RunFailure, match="diverged in epoch"):
        optimiser = torch.optim.SGD(laplace.model.parameters(), lr=1e30)
        laplace.train(data, epochs=9, optimiser=optimiser)


def test_a_likelihood_may_be_given_as_an_object():
    model, data = network(), stripes()
    by_name, by_object = LayerwiseLaplace(model).fit(data), LayerwiseLaplace(model, Classification()).fit(data)
    assert by_name.log_marginal_likelihood() == by_object.log_marginal_likelihood()
    assert LayerwiseLaplace(curve(), Regression(4.0)).likelihood.noise_std == 0.5


def test_evidence_of_the_full_matrix_by_the_letter():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).double()
    images, labels = stripes()
    laplace = LayerwiseLaplace(model, prior_precision=2.0, settings=FitSettings("full")).fit((images.double(), labels))
    theta = nn.utils.parameters_to_vector(model.parameters()).detach()
    loss = nn.functional.cross_entropy(model(images.double()), labels, reduction="sum").item()
    hessian = exact_ggn(model, images.double()) + 2 * torch.eye(len(theta), dtype=torch.float64)
    volume = len(theta) * torch.tensor(2.0).double().log() / 2 - torch.linalg.slogdet(hessian)[1] / 2
    wanted = -loss - (theta @ theta).item() + volume.item()
    assert laplace.log_marginal_likelihood() == pytest.approx(wanted, rel=1e-9)


def test_the_package_itself_imports_no_torch():
    code = "import sys, ellarepro; assert 'torch' not in sys.modules; ellarepro.LayerwiseLaplace; ellarepro.Regression"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="'ellarepro' has no attribute 'Laplace'"):
        _ = sys.modules["ellarepro"].Laplace


def test_training_leaves_modules_alone_that_are_kept_in_evaluation_mode():
    data, model = stripes(), network()
    model[1].eval()
    LayerwiseLaplace(model).train(data, epochs=2, schedule=SOON)
    assert model.training and not model[1].training and model[1].running_mean.abs().sum() == 0
    LayerwiseLaplace(model.eval()).train(data, epochs=2, schedule=SOON)
    assert not any(module.training for module in model.modules())
    assert model[1].running_mean.abs().sum() > 0, "the control: a network in evaluation mode is trained as a whole"


@pytest.mark.parametrize(
    "said",
    [{"tied": True}, {"predictive_samples": 5}, {"bracket": 5}, {"hyper_fit_size": 5}, {"fit": FitSettings("diag")}],
)
def test_what_a_schedule_has_no_say_in_is_refused(said):
    with pytest.raises(ValueError, match="schedule says when the precisions move.*settings"):
        LayerwiseLaplace(network()).train(stripes(), epochs=2, schedule=replace(SOON, **said))


@pytest.mark.parametrize("method", ["fit", "train"])
def test_data_of_another_form_are_refused_alike(method):
    images, labels = stripes()
    call = getattr(LayerwiseLaplace(network()), method)
    options = {} if method == "fit" else {"epochs": 2, "schedule": SOON}
    for data, told in (
        (None, "must be a pair of tensors"),
        (TensorDataset(images, labels), "must have as many samples|a batch must be a pair|must be a pair of tensors"),
        ([(images, labels, labels)], "a batch must be a pair"),
        ((images, labels[:-1]), "must have as many samples"),
    ):
        with pytest.raises(ValueError, match=told):
            call(data, **options)


@pytest.mark.parametrize("structure", ["kron", "kron_blockwise", "diag", "full"])
def test_a_network_whose_outputs_are_not_finite_is_refused(structure):
    model = network()
    with torch.no_grad():
        model[5].bias[0] = torch.nan
    with pytest.raises(CurvatureError, match="not finite"):
        LayerwiseLaplace(model, settings=FitSettings(structure)).fit(stripes())


def test_everything_works_without_gradients_and_with_another_default_device():
    data = stripes()

    def found() -> list:
        laplace = LayerwiseLaplace(network()).train(data, epochs=2, schedule=SOON).learn(3)
        return [laplace.log_marginal_likelihood(), laplace.effective_numbers(), laplace.likelihood.precision()]

    wanted = found()
    with torch.no_grad():
        assert found() == wanted
    model, curve_data = network(), (torch.randn(8, 1), torch.randn(8, 1))
    line = nn.Linear(1, 1)
    try:
        torch.set_default_device("meta")
        LayerwiseLaplace(model).train(data, epochs=2, schedule=SOON).learn(3).effective_numbers()
        LayerwiseLaplace(line, "regression").train(curve_data, epochs=2, schedule=SOON).learn(3).evidence()
    finally:
        torch.set_default_device(None)


def test_predictions_take_the_curvature_apart_once(monkeypatch):
    laplace, taken = LayerwiseLaplace(network()).fit(stripes()), []
    whole = fitted.posterior_precision
    monkeypatch.setattr(fitted, "posterior_precision", lambda *given: taken.append(given) or whole(*given))
    first = laplace.predict(stripes()[0], samples=5)
    assert torch.equal(laplace.predict(stripes()[0], samples=5).std, first.std) and len(taken) == 1
    after = laplace.learn(3).predict(stripes()[0], samples=5)
    assert not torch.equal(after.std, first.std) and len(taken) == 2
    laplace.fit(stripes(seed=1)).predict(stripes()[0], samples=5)
    assert len(taken) == 3
    with pytest.raises(ValueError, match="samples must be at least 2.*got 1"):
        laplace.predict(stripes()[0], samples=1)


def test_predictions_pass_many_inputs_through_the_network_in_parts():
    laplace, seen = LayerwiseLaplace(network().double()).fit((stripes()[0].double(), stripes()[1])), []
    inputs = stripes(600)[0].double()
    laplace.model.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    all_at_once = laplace.predict(inputs, samples=3)
    assert max(seen) <= 250
    for one in (0, 249, 250, 599):
        alone = laplace.predict(inputs[one : one + 1], samples=3)
        assert_close(all_at_once.mean[one], alone.mean[0])
        assert_close(all_at_once.std[one], alone.std[0])


class Attention(nn.Module):
    """One head of PyTorch's attention over four tokens of four features."""

    def __init__(self):
        super().__init__()
        self.qkv, self.head = nn.Linear(4, 12), nn.Linear(16, 3)

    def forward(self, images: Tensor) -> Tensor:
        query, key, value = self.qkv(images.flatten(1).unflatten(1, (4, 4))).chunk(3, dim=-1)
        return self.head(nn.functional.scaled_dot_product_attention(query, key, value).flatten(1))


def test_classes_are_predicted_through_fused_attention():
    laplace = LayerwiseLaplace(Attention()).fit(stripes())
    predicted = laplace.predict(stripes()[0], samples=5)
    assert predicted.std.isfinite().all() and predicted.std.max() > 0
    assert_close(predicted.mean.sum(1), torch.ones(len(predicted.mean)), 1e-6)


@pytest.mark.parametrize(("samples", "sizes"), [(17, [8, 9]), (16, [8, 8]), (18, [8, 8, 2]), (1, [1])])
def test_a_single_sample_left_over_joins_the_batch_before(samples, sizes):
    inputs, targets = torch.arange(float(samples))[:, None], torch.arange(samples)
    generator = torch.Generator().manual_seed(0)
    made = training_batches((inputs, targets), 8, torch.device("cpu"))
    batches = list(made.batches(made.order(generator), 0, generator))
    assert [len(batch) for batch, _ in batches] == sizes
    assert torch.cat([batch[:, 0] for batch, _ in batches]).equal(torch.cat([own for _, own in batches]).float())
    assert torch.cat([own for _, own in batches]).sort().values.equal(targets)


def test_batch_normalisation_trains_whatever_is_left_over():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 3))
    inputs, labels = stripes(9)
    laplace = LayerwiseLaplace(net).train((inputs, labels), epochs=2, batch_size=8, schedule=SOON)
    assert math.isfinite(laplace.log_marginal_likelihood())
    loader = DataLoader(TensorDataset(inputs, labels), batch_size=8)
    with pytest.raises(ValueError, match=r"does not train on the loader's batch of one sample .*drop_last=True"):
        LayerwiseLaplace(net).train(loader, epochs=2, schedule=SOON)
    dropping = DataLoader(TensorDataset(inputs, labels), batch_size=8, drop_last=True)
    LayerwiseLaplace(net).train(dropping, epochs=2, fit_data=loader, schedule=SOON)


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_no_inputs_are_refused_before_they_are_predicted(likelihood):
    inputs, labels = stripes()
    targets = labels if likelihood == "classification" else nn.functional.one_hot(labels, 3).float()
    laplace = LayerwiseLaplace(network(), likelihood).fit((inputs, targets))
    with pytest.raises(ValueError, match="inputs must hold at least one sample, got none"):
        laplace.predict(inputs[:0])
