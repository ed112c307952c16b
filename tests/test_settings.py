"""The settings of a fit: what is refused, in the words of their own arguments."""

import pytest

from ellarepro.settings import FitSettings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"structure": "dense"}, "^structure must be one of kron, .*, full; got 'dense'"),
        ({"tolerance": 2}, "^tolerance must be at least 0 and below 1; got 2"),
        ({"tolerance": -0.1}, "^tolerance must be at least 0 and below 1; got -0.1"),
        ({"batch_size": 0}, "^batch_size must be at least 1 .*; got 0"),
        ({"fit_size": 0}, "^fit_size must be at least 1; got 0"),
    ],
)
def test_impossible_settings_are_refused_by_name(settings, message):
    with pytest.raises(ValueError, match=message):
        FitSettings(**settings)
