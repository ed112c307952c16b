"""The settings of a fit: what is refused, in the words of their own arguments; the two engines on every layer type."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from helpers import assert_close, relative_error, small_data, small_network

from ellarepro.data import Samples
from ellarepro.evidence.marglik import fit
from ellarepro.evidence.prior import LayerwisePrior
from ellarepro.network import LAYERS
from ellarepro.settings.parts import AnchorSettings, FitSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structure": "dense"}, "^structure must be one of kron, .*, full, kernel, .*; got 'dense'"),
        ({"tolerance": 2}, "^tolerance must be at least 0 and below 1; got 2"),
        ({"tolerance": -0.1}, "^tolerance must be at least 0 and below 1; got -0.1"),
        ({"batch_size": 0}, "^batch_size must be at least 1 .*; got 0"),
        ({"fit_size": 0}, "^fit_size must be at least 1; got 0"),
        ({"engine": "torch"}, "^engine must be one of native, asdl; got 'torch'"),
        ({"engine": "asdl", "structure": "full"}, "^engine must be native for structure=full; got 'asdl'"),
        ({"engine": "asdl", "passes": 2}, "^passes must be exact for engine=asdl; got 2"),
        ({"structure": "full", "passes": 2}, "^passes must be exact for structure=full; got 2"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        FitSettings(**settings)


def learned(model, settings: FitSettings) -> torch.Tensor:
    """Log precisions after ten hyper-steps on a fit."""
    prior, data = LayerwisePrior(model), Samples(*small_data(5))
    optimiser = torch.optim.Adam([prior.log_precision], lr=0.1)
    fit(model, prior, data, settings).ascend(prior.log_precision, optimiser, 10)
    return prior.log_precision.detach()


@pytest.mark.parametrize("structure", ["kron", "kron_blockwise", "diag"])
@pytest.mark.parametrize("layer", LAYERS)
def test_both_engines_learn_the_same_precisions(layer, structure):
    # At alpha 1 a block of DGCONV is dead: the elements of the group tie, and rounding would choose between them.
    width = 2 if layer == "dgconv" else 1
    model = small_network(layer, anchors=AnchorSettings(learn_omega=True), group="c2", alpha=width)
    native = FitSettings(structure, tolerance=0, batch_size=2)
    found = learned(model, native)
    assert_close(learned(model, replace(native, engine="asdl")), found, 1e-8)
    assert relative_error(learned(model, replace(native, tolerance=0.99)), found) > 1e-4, "the control: passes left out"


def test_asdl_is_imported_only_when_asked_for():
    code = "import sys, ellarepro.run as run; print('asdl' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stderr
