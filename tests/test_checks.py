"""What is checked of a network before its curvature is taken: a check that sees nothing does not count as passed."""

import pytest
import torch
import torch.nn.functional as F
from helpers import assert_close, relative_error
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ellarepro import FitSettings, LayerwiseLaplace
from ellarepro.curvature.checks import check_gradients
from ellarepro.curvature.exact import exact_ggn
from ellarepro.curvature.interop.kron import BlockKron

DATA = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)).double(), torch.arange(12) % 2


class Branch(nn.Module):
    """A residual branch whose last layer starts at zero, as adapters do; by hand, its first weight is used twice."""

    def __init__(self, by_hand: bool):
        super().__init__()
        self.a, self.b, self.out, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
        self.by_hand = by_hand
        if by_hand:
            del self.b
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).tanh()
        hidden = F.linear(hidden, self.a.weight) if self.by_hand else self.b(hidden)
        return self.head(x + self.out(hidden.tanh()))


class AmongOthers(nn.Module):
    """Hidden features less what `seen` makes of the batch; the head starts at zero on demand."""

    def __init__(self, seen, zero: bool = False):
        super().__init__()
        self.a, self.head, self.seen = nn.Linear(4, 4), nn.Linear(4, 2), seen
        if zero:
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).tanh()
        return self.head(hidden - self.seen(hidden))


def fit(model: nn.Module, data=DATA, structure: str = "diag", **settings) -> LayerwiseLaplace:
    return LayerwiseLaplace(model.double(), settings=FitSettings(structure, tolerance=0.0, **settings)).fit(data)


def diagonal(laplace: LayerwiseLaplace) -> Tensor:
    return BlockKron.from_blocks(laplace._fit_done.curvature.blocks).diag()


def seeded(seed: int, make, *arguments) -> nn.Module:
    torch.manual_seed(seed)
    return make(*arguments)


@pytest.mark.parametrize("seed", range(3))
def test_a_branch_that_starts_at_zero_hides_nothing(seed):
    with pytest.raises(ValueError, match=r"the gradient of a\.weight by its layer's curvature rule differs"):
        fit(seeded(seed, Branch, True))
    model = seeded(seed, Branch, False)
    laplace = fit(model)
    assert laplace.effective_numbers()["a.weight"] == 0, "the control: at the start the branch has no gradient"
    nn.init.normal_(model.out.weight)
    assert_close(diagonal(laplace.fit(DATA)), exact_ggn(model, DATA[0]).diagonal())


@pytest.mark.parametrize("structure", ["kron", "full"])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(
    "seen", [lambda h: h.mean(0), lambda h: h.max(0).values, lambda h: h.flip(0)], ids=["mean", "maximum", "others"]
)
def test_samples_that_see_their_batch_are_refused_whatever_the_seed(seen, seed, structure):
    for zero in (False, True):
        with pytest.raises(ValueError, match="depend on the other samples of its batch"):
            fit(seeded(seed, AmongOthers, seen, zero), structure=structure)
    fit(seeded(seed, AmongOthers, lambda h: h.mean(1, keepdim=True)), structure=structure)


@pytest.mark.parametrize("structure", ["kron", "full"])
def test_inputs_changed_in_place_and_random_outputs_have_reasons_of_their_own(structure):
    inputs, before = DATA[0].clone(), DATA[0]
    with pytest.raises(ValueError, match="changes its input in place"):
        fit(nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 2)), (inputs, DATA[1]), structure)
    assert torch.equal(inputs, before)
    with pytest.raises(ValueError, match=r"outputs of a sample are random.*training=self\.training"):
        fit(AmongOthers(lambda h: F.dropout(h, 0.5)), structure=structure)
    fit(AmongOthers(lambda h: F.dropout(h, 0.5, training=False)), structure=structure)


class Positioned(nn.Module):
    """Words plus positions, whose indices are `(T,)` or, as they should be, `(B, T)`."""

    def __init__(self, length: int, by_sample: bool):
        super().__init__()
        self.words, self.positions, self.head = nn.Embedding(11, 6), nn.Embedding(length, 6), nn.Linear(6, 3)
        self.by_sample = by_sample

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1])
        places = places.expand(len(x), -1) if self.by_sample else places
        return self.head((self.words(x) + self.positions(places)).tanh().mean(1))


@pytest.mark.parametrize(("length", "samples", "batch"), [(t, n, b) for t in (1, 2, 4, 5) for n, b in ((8, t), (1, 1))])
def test_positions_are_not_taken_for_samples_however_many_there_are(length, samples, batch):
    generator = torch.Generator().manual_seed(length)
    data = torch.randint(11, (samples, length), generator=generator), torch.arange(samples) % 3
    with pytest.raises(ValueError, match="layer positions has an input.*first axis must be that of the samples"):
        fit(Positioned(length, by_sample=False), data, batch_size=batch)
    model = Positioned(length, by_sample=True)
    assert_close(diagonal(fit(model, data, batch_size=batch)), exact_ggn(model, data[0]).diagonal())


def test_a_gradient_that_is_zero_at_all_weights_is_accounted_for():
    model = nn.Sequential(nn.Linear(4, 6), nn.GroupNorm(2, 6), nn.Tanh(), nn.Linear(6, 2))
    model[0].weight.requires_grad_(False)
    exact_zero = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 2))
    for net in (model, exact_zero):
        check_gradients(net.double(), DATA[0])


def test_the_check_leaves_weights_as_they_are_also_where_it_refuses():
    for model in (Branch(True), Branch(False), AmongOthers(lambda h: h.mean(0))):
        before = {name: value.clone() for name, value in model.double().state_dict().items()}
        storages = [p.data_ptr() for p in model.parameters()]
        try:
            check_gradients(model, DATA[0])
        except ValueError:
            assert not isinstance(model, Branch) or model.by_hand
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert storages == [p.data_ptr() for p in model.parameters()]


RAW = {
    "float64 data, a float32 network": (nn.Linear(4, 2), DATA[0], "weights are torch.float32.*inputs of torch.float64"),
    "uint8 images": (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(8, 2)),
        torch.ones(12, 1, 4, 4, dtype=torch.uint8),
        "does not take inputs of torch.uint8 and shape",
    ),
    "words out of range": (
        nn.Sequential(nn.Embedding(3, 2), nn.Flatten()),
        torch.full((12, 1), 3),
        "does not take inputs of torch.int64.*index out of range",
    ),
}


@pytest.mark.parametrize("structure", ["kron", "full"])
@pytest.mark.parametrize("case", RAW)
def test_inputs_that_the_network_does_not_take_are_one_message(case, structure):
    model, inputs, told = RAW[case]
    with pytest.raises(ValueError, match=told):
        LayerwiseLaplace(model, settings=FitSettings(structure)).fit((inputs, DATA[1]))


class Returning(nn.Module):
    """A linear layer whose outputs are handed on in another form."""

    def __init__(self, form, width: int = 2):
        super().__init__()
        self.layer, self.form = nn.Linear(4, width), form

    def forward(self, x: Tensor):
        return self.form(self.layer(x))


@pytest.mark.parametrize("structure", ["kron", "full"])
def test_outputs_of_another_form_are_one_message(structure):
    for form, told in (
        (lambda y: (y, y), "must return one tensor of outputs, got tuple"),
        (lambda y: {"logits": y}, "must return one tensor of outputs, got dict"),
        (lambda y: y[:, 0], r"must map 4 samples to outputs \(4, K\).*got \(4,\)"),
    ):
        with pytest.raises(ValueError, match=told):
            fit(Returning(form), structure=structure)


@pytest.mark.parametrize(
    ("options", "told"),
    [({"sparse": True}, "sparse=False"), ({"scale_grad_by_freq": True}, "scale_grad_by_freq=False")],
)
def test_embeddings_with_gradients_of_another_kind_are_refused(options, told):
    with pytest.raises(ValueError, match=told):
        fit(nn.Sequential(nn.Embedding(3, 2, **options), nn.Flatten()), (torch.zeros(12, 1).long(), DATA[1]))


class Text(nn.Module):
    """The mean of a text's words, padding included, and a linear layer."""

    def __init__(self, vocabulary: int):
        super().__init__()
        self.words, self.head = nn.Embedding(vocabulary, 3, padding_idx=0), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.words(x).mean(1))


class Largest(TorchDispatchMode):
    """Notes the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        made = function(*arguments, **(options or {}))
        self.entries = max([self.entries, *(part.numel() for part in tree_leaves(made) if isinstance(part, Tensor))])
        return made


@pytest.mark.parametrize("structure", ["diag", "kron"])
def test_a_large_vocabulary_is_never_written_out(structure):
    words, labels = torch.randint(5_000, (6, 40), generator=torch.Generator().manual_seed(0)), torch.arange(6) % 2
    with Largest() as largest:
        fit(seeded(0, Text, 5_000), (words, labels), structure)
    assert largest.entries < 40 * 5_000 * 3 < 6 * 40 * 5_000, "one-hot rows have an entry for each place and word"


def test_the_diagonal_of_an_embedding_is_exact_where_words_come_again():
    model, words = seeded(0, Text, 9), torch.randint(9, (12, 20), generator=torch.Generator().manual_seed(0))
    exact = exact_ggn(model.double(), words).diagonal()
    assert_close(diagonal(fit(model, (words, DATA[1]))), exact)
    once = torch.arange(20).expand(12, -1) % 9
    assert relative_error(diagonal(fit(model, (once, DATA[1])))[:27], exact[:27]) > 0.1, "the control: other words"
