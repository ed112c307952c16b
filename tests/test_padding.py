"""Positions that no output depends on do not count: a text padded to a greater length is the same text."""

import pytest
import torch
from helpers import assert_close, relative_error
from torch import Tensor, nn

from ellarepro import FitSettings, LayerwiseLaplace
from ellarepro.curvature.exact import exact_ggn
from ellarepro.curvature.factory import accumulator_of
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.curvature.rules.convolution import Conv1dRule
from ellarepro.curvature.rules.embedding import EmbeddingRule
from ellarepro.curvature.rules.linear import LinearRule

WORDS = 20
WEIGHTS = [WORDS * 5, 4 * 5 * 3, 4, 4 * 4, 4, 4 * 3, 3]
"""Entries of the tensors of `Texts`."""


class Texts(nn.Module):
    """Words, a convolution over them, a layer at each; the mean of what is no padding, and a head."""

    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(WORDS, 5, padding_idx=0)
        self.near, self.each, self.head = nn.Conv1d(5, 4, 3, padding=1), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        kept = (x != 0).to(self.head.weight)[..., None]
        near = self.near((self.words(x) * kept).mT).mT
        return self.head((self.each(near.tanh()).tanh() * kept).sum(1) / kept.sum(1).clamp_min(1))


def texts(length: int, samples: int = 20) -> tuple[Tensor, Tensor]:
    """Texts of 3 to 8 words, padded by zeros to `length`, and labels."""
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(1, WORDS, (samples, 8), generator=generator)
    lengths = torch.randint(3, 9, (samples, 1), generator=generator)
    padded = torch.zeros(samples, length, dtype=torch.long)
    padded[:, :8] = torch.where(torch.arange(8) < lengths, words, 0)
    return padded, torch.randint(3, (samples,), generator=generator)


def model_of() -> Texts:
    torch.manual_seed(0)
    return Texts().double()


def blocks(
    model: nn.Module, inputs: Tensor, structure: str = "kron", engine: str = "native", batch: int = 50
) -> Tensor:
    """All factors' product, on the diagonal."""
    accumulator = accumulator_of(model, FitSettings(structure, tolerance=0.0, engine=engine))
    for part in inputs.split(batch):
        accumulator.update(part)
    return BlockKron.from_blocks(accumulator.blocks(len(inputs))).diag()


@pytest.mark.parametrize("structure", ["kron", "kron_blockwise", "diag", "full"])
def test_padding_changes_neither_evidence_nor_numbers_nor_predictions(structure):
    found = []
    for length in (8, 9, 40):
        model, (inputs, labels) = model_of(), texts(length)
        laplace = LayerwiseLaplace(model, settings=FitSettings(structure, tolerance=0.0)).fit((inputs, labels))
        numbers = [laplace.log_marginal_likelihood(), *laplace.effective_numbers().values()]
        found.append(torch.cat([torch.tensor(numbers), laplace.predict(inputs[:3], samples=5).std.flatten()]))
    assert_close(found[1], found[0], 1e-9)
    assert_close(found[2], found[0], 1e-9)


@pytest.mark.parametrize("engine", ["native", "asdl"])
@pytest.mark.parametrize("structure", ["kron", "kron_blockwise"])
def test_each_block_is_that_of_the_text_alone(structure, engine):
    model, (inputs, _) = model_of(), texts(30)
    assert_close(blocks(model, inputs, structure, engine, batch=7), blocks(model, inputs[:, :8], structure), 1e-9)
    alone = inputs[:1][inputs[:1] != 0][None]
    assert_close(blocks(model, inputs[:1], structure, engine), blocks(model, alone, structure), 1e-9)


def test_a_mean_over_padding_is_what_would_fail(monkeypatch):
    model, inputs = model_of(), texts(30)[0]
    for rule in (EmbeddingRule, Conv1dRule, LinearRule):
        monkeypatch.setattr(rule, "counts_live_positions", lambda self, inputs: False)
    padded, short = blocks(model, inputs).split(WEIGHTS), blocks(model, inputs[:, :8]).split(WEIGHTS)
    for more, less in ((padded[i], short[i]) for i in (0, 1, 3)):
        assert more.sum() < 0.4 * less.sum()


def test_one_position_among_padding_has_the_exact_block():
    model, inputs = model_of(), torch.zeros(1, 25, dtype=torch.long)
    inputs[0, 0] = 7
    exact = exact_ggn(model, inputs).diagonal()
    assert_close(blocks(model, inputs), exact)
    two = inputs.clone()
    two[0, 1] = 3
    found, exact = blocks(model, two).split(WEIGHTS), exact_ggn(model, two).diagonal().split(WEIGHTS)
    assert relative_error(found[3], exact[3]) > 0.01, "the control: of two positions a product of means is another"


def test_a_sample_whose_probability_is_one_counts_the_same_positions():
    model = model_of()
    with torch.no_grad():
        model.head.bias[0] = 1e3
    factors = []
    for length in (8, 60):
        accumulator = accumulator_of(model, FitSettings(tolerance=1e-3))
        accumulator.update(texts(length)[0])
        factors.append(accumulator.blocks(20)["each.weight"].factors[1])
    assert factors[0].norm() > 0
    assert_close(factors[1], factors[0])


def test_a_text_of_padding_alone_adds_nothing():
    model, inputs = model_of(), texts(8)[0]
    for layer in ("words", "near", "each"):
        accumulators = [accumulator_of(model, FitSettings(tolerance=0.0)) for _ in range(2)]
        accumulators[0].update(inputs[:3])
        accumulators[1].update(torch.cat([inputs[:3], torch.zeros_like(inputs[:1])]))
        one, other = (accumulator.blocks(3)[f"{layer}.weight"].factors for accumulator in accumulators)
        for mine, with_it in zip(one, other, strict=True):
            assert_close(with_it, mine)
