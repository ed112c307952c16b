"""The curvature as laplace-torch takes it: a backend, and a Kronecker-factored Laplace approximation on it."""

from dataclasses import replace
from typing import Any, cast

import torch
from laplace import KronLaplace
from laplace.curvature import GGNInterface
from torch import Tensor, nn

from ellarepro.curvature.accumulators import BlockAccumulator
from ellarepro.curvature.checks import check_gradients
from ellarepro.curvature.factory import accumulator_of
from ellarepro.curvature.interop.kron import BlockKron
from ellarepro.curvature.likelihoods import likelihood_of
from ellarepro.settings.parts import BLOCK_STRUCTURES, FitSettings

_LIKELIHOODS = ("classification", "regression")
"""Of laplace-torch's, those that are covered; its reward modelling folds pairs into the batch."""


class EllaGGN(GGNInterface):
    """laplace-torch backend with this project's rules: `EllaGGN(model, "classification").kron(x, y, N)`.

    `Laplace(model, likelihood, subset_of_weights="all", hessian_structure="kron", backend=EllaGGN)` takes it too, and
    `diag` and `full` in place of `kron`; `last_layer` in place of `all`, and `subnetwork` with `diag` and `full`.

    Args:
        model: a network of `build_network`, or any network whose leaf layers have a curvature rule.
        likelihood: `classification`, softmax cross-entropy; or `regression`, noise of variance one.
        structure: `kron` (the paper's), `kron_blockwise` or `diag`.
        tolerance: see `GGN`; 0, the default here, takes every class pass.
        engine: `native`, or `asdl` to have asdl take the passes, all of them: slower, the same factors.

    Raises:
        ValueError: another likelihood, or an option of laplace-torch that has no meaning here.
    """

    def __init__(  # noqa: PLR0913 (the first six are laplace-torch's)
        self,
        model: nn.Module,
        likelihood: str = "classification",
        last_layer: bool = False,
        subnetwork_indices: Tensor | None = None,
        dict_key_x: str = "input_ids",
        dict_key_y: str = "labels",
        structure: str = "kron",
        tolerance: float = 0.0,
        engine: str = "native",
    ):
        if likelihood not in _LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {', '.join(_LIKELIHOODS)}; got {str(likelihood)!r}")
        super().__init__(model, likelihood, last_layer, subnetwork_indices, dict_key_x, dict_key_y)
        self.settings = FitSettings(structure, tolerance, engine=engine)
        self._checked = False
        if not self.settings.has_blocks:
            raise ValueError(f"structure must be one of {', '.join(BLOCK_STRUCTURES)}; got {structure!r}")

    def kron(self, x: Tensor, y: Tensor, N: int, **kwargs: Any) -> tuple[Tensor, BlockKron]:
        """Loss and curvature of one batch.

        Args:
            x: inputs `(B, ...)`.
            y: classes `(B,)`, or targets `(B, K)`.
            N: size of the whole training set, by which each weight block is divided once.

        Returns:
            The loss, summed (nats, or half the squared error), and the factors in the order of `model.parameters()`.

        Raises:
            UnclaimedParameterError: a trainable parameter that no rule claims.
            ValueError: inputs that are no tensor, or targets that are not of the network's outputs.
        """
        if kwargs:
            raise ValueError(f"unknown options of EllaGGN.kron: {sorted(kwargs)}")
        return self._fit(self.settings, x, y, N)

    @torch.inference_mode(False)
    def _fit(self, settings: FitSettings, x: Any, y: Tensor, N: int) -> tuple[Tensor, BlockKron]:
        if self.last_layer:
            with torch.no_grad():
                _, x = self.model.forward_with_features(x)
        if not isinstance(x, Tensor):
            raise ValueError(f"the network's input must be one tensor, got {type(x).__name__}")
        x, y = (t.clone() if t.is_inference() else t for t in (x, y))
        likelihood = likelihood_of(self.likelihood)
        if not self._checked:
            check_gradients(self._model, x, likelihood)
            self._checked = True
        accumulator = accumulator_of(self._model, settings, likelihood=likelihood)
        outputs = accumulator.update(x)
        likelihood.check_targets(y, outputs)
        return likelihood.losses(outputs, y).sum(), BlockKron.from_blocks(cast(BlockAccumulator, accumulator).blocks(N))

    def diag(self, x: Tensor, y: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Loss, summed, and the exact diagonal `(P,)` of the GGN of one batch."""
        if unknown := sorted(set(kwargs) - {"N"}):
            raise ValueError(f"unknown options of EllaGGN.diag: {unknown}")
        loss, kron = self._fit(replace(self.settings, structure="diag"), x, y, len(x))
        return loss, kron.diag() if self.subnetwork_indices is None else kron.diag()[self.subnetwork_indices]

    @torch.inference_mode(False)
    def jacobians(self, x: Any, enable_backprop: bool = False) -> tuple[Tensor, Tensor]:
        """As laplace-torch's; under `torch.inference_mode()` they would be zeros."""
        return super().jacobians(x.clone() if isinstance(x, Tensor) and x.is_inference() else x, enable_backprop)


class BlockKronLaplace(KronLaplace):
    """`laplace.KronLaplace` on `EllaGGN`: block-diagonal factors stay blocks.

    Args:
        model: see `EllaGGN`.
        likelihood: `classification`, or `regression` with `sigma_noise`.
        backend_kwargs: options of `EllaGGN`.
        kwargs: as for `laplace.KronLaplace`; `prior_precision` is a scalar or one value a tensor.
    """

    _key = ("all", "block_kron")

    def __init__(self, model: nn.Module, likelihood: str = "classification", **kwargs: Any):
        backend = kwargs.pop("backend", EllaGGN)
        if not issubclass(backend, EllaGGN):
            raise ValueError(f"backend must be EllaGGN or a subclass, got {backend.__name__}")
        super().__init__(model, likelihood, backend=backend, **kwargs)

    H: Any

    def _init_H(self) -> None:
        # laplace-torch would allocate dense zeros here; the running total starts from nothing instead.
        self.H = None

    @property
    def log_det_posterior_precision(self) -> Tensor:
        if self.H is None:
            return self.prior_precision_diag.log().sum()
        return self.posterior_precision.logdet()

    def square_norm(self, value: Tensor) -> Tensor:
        """(value - mean)^T P (value - mean) under the posterior precision P, or the prior's before a fit."""
        delta = value - self.mean
        if self.H is None:
            return (delta * self.prior_precision_diag) @ delta
        return delta @ self.posterior_precision.bmm(delta, exponent=1)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state["group_axes"] = self.H_facs.group_axes
        state["names"] = self.H_facs.names
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super(KronLaplace, self).load_state_dict(state_dict)
        self.H_facs = BlockKron(state_dict["H"], state_dict["group_axes"], state_dict["names"])
        self.H = self.H_facs.decompose()

    @torch.no_grad()
    def neg_log_marglik_per_datum(self) -> float:
        """Negative log marginal likelihood in nats, divided by the number of data."""
        return -self.log_marginal_likelihood().item() / self.n_data
