"""A device with values where there is no accelerator: its tensors wrap tensors of the CPU, which compute for them.

Within `Valued` there is a device `valued`. It refuses what CUDA refuses: operations on tensors of both devices, and a
generator of the other one. What the host reads there is counted, for each read is a place where it would wait.
Kernels, streams, graphs and memory are those of the CPU: a device of this kind says nothing about them.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode

NAME = "valued"
aten = torch.ops.aten
_MOVE, _COPY, _SCALAR = aten._to_copy.default, aten.copy_.default, aten._local_scalar_dense.default
_WAITS = {_SCALAR, aten.nonzero.default, aten.masked_select.default, aten.equal.default, aten.bincount.default}
_WAITS |= {aten._linalg_check_errors.default, aten._linalg_eigh.default, aten._linalg_svd.default}
"""Operations at whose end the host knows values: numbers, sizes, whether a decomposition has converged."""
_INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_NO_VALUES = aten._efficientzerotensor.default  # Zeros without memory, which a wrapper would hide from PyTorch.
_CpuGenerator = torch.Generator


def register() -> str:
    """Make the device known to this process, before its first backward pass; why it cannot be, where it cannot."""
    if torch.cuda.is_available():
        return "a CUDA device is here, and PyTorch has one kind of accelerator at a time"
    if not hasattr(backend_registration, "_setup_privateuseone_for_python_backend"):
        return f"torch {torch.__version__} cannot set up a device in Python"
    backend_registration._setup_privateuseone_for_python_backend(NAME)
    getattr(torch, NAME).get_amp_supported_dtype = list  # Checkpoints ask for it, whatever their tensors lie on.
    return ""


MISSING = register()
"""Why there is no such device here; nothing where there is."""


class MixedDevices(RuntimeError):
    """An operation on tensors, or with a generator, of both devices."""


class ValuedTensor(Tensor):
    """A tensor on the device; `raw` has its values."""

    raw: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, raw: Tensor) -> "ValuedTensor":
        layout = {"strides": raw.stride(), "storage_offset": raw.storage_offset(), "dtype": raw.dtype}
        made = Tensor._make_wrapper_subclass(cls, raw.size(), **layout, device=torch.device(NAME, 0))
        made.raw = raw
        return made

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        raise AssertionError(f"{function} outside of Valued")

    def __repr__(self, **options):
        return f"ValuedTensor({self.raw})"

    def __reduce_ex__(self, protocol):
        return self.raw.__reduce_ex__(protocol)  # As a checkpoint is read: on the CPU.

    def __deepcopy__(self, memo):
        return memo.setdefault(id(self), self.detach().clone().requires_grad_(self.requires_grad))

    def tolist(self):
        return self.cpu().tolist()

    def numpy(self, *, force: bool = False):
        if not force:
            raise TypeError(f"{NAME} tensors are no NumPy arrays: .cpu() first")
        return self.detach().cpu().numpy()


class Generator(_CpuGenerator):
    """A generator on either device; on this one it draws what one of the CPU with the same seed draws."""

    there: set[int] = set()
    """Addresses of those on this device: what an operation is given is not this object, but the same generator."""

    def __new__(cls, device: Any = "cpu") -> "Generator":
        made = super().__new__(cls, "cpu" if _is_there(device) else device)
        made.place = torch.device(device)
        (cls.there.add if _is_there(device) else cls.there.discard)(made._cdata)
        return made

    device = property(lambda self: self.place)


class Valued(TorchDispatchMode):
    """See the module's docstring.

    Attributes:
        reads: how often the host has read values, by operation.
        sends: how often it has sent some, for which it waits as well.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.sends = 0

    def __enter__(self):
        torch.Generator = Generator
        torch._C._set_only_lift_cpu_tensors(True)  # So that torch.tensor sends what it makes in the open.
        return super().__enter__()

    def __exit__(self, *raised):
        torch.Generator = _CpuGenerator
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*raised)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if ValuedTensor not in types and kwargs.get("device") is None and kwargs.get("generator") is None:
            return function(*args, **kwargs)  # The CPU's own affair, most of what goes on beside the device.
        leaves = list(_leaves([*args, *kwargs.values()]))
        there = [leaf for leaf in leaves if isinstance(leaf, ValuedTensor)]
        to_device = _target(function, args, kwargs, bool(there))
        self._count(function, args, there, to_device)
        if function not in (_MOVE, _COPY):
            _refuse_mixed(function, args, leaves, to_device)
        if kwargs.get("device") is not None and to_device:
            kwargs["device"] = torch.device("cpu")
        known = {id(tensor.raw): tensor for tensor in there}  # What is changed in place is given back.
        raw_kwargs = {name: _mapped(_raw, value) for name, value in kwargs.items()}
        found = (aten.zeros.default if function is _NO_VALUES else function)(*_mapped(_raw, args), **raw_kwargs)
        return _mapped(lambda value: _wrapped(value, known), found) if to_device else found

    def _count(self, function, args, there: list[ValuedTensor], to_device: bool) -> None:
        masks = function in _INDEXED and any(i is not None and i.dtype == torch.bool for i in args[1])
        moved = function in (_MOVE, _COPY)
        if there and (function in _WAITS or masks or (moved and not to_device)):
            self.reads[str(function)] += 1
        source = args[1] if function is _COPY else args[0] if args else None
        self.sends += moved and to_device and not isinstance(source, ValuedTensor) and source.ndim > 0


def _leaves(values: Any) -> Iterator[Any]:
    for value in values:
        yield from _leaves(value) if isinstance(value, (list, tuple)) else [value]


def _mapped(function: Callable[[Any], Any], value: Any) -> Any:
    """`function` of `value`, or of all in it where it is a list or a tuple."""
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(function, each) for each in value)
    return function(value)


def _raw(value: Any) -> Any:
    return value.raw if isinstance(value, ValuedTensor) else value


def _wrapped(value: Any, known: Mapping[int, Tensor]) -> Any:
    if not isinstance(value, Tensor):
        return value
    return known[id(value)] if id(value) in known else ValuedTensor(value)


def _is_there(device: Any) -> bool:
    return torch.device(device).type == NAME


def _target(function, args, kwargs, any_there: bool) -> bool:
    """Whether the outcome lies on the device."""
    if function is _COPY:
        return isinstance(args[0], ValuedTensor)
    wanted = kwargs.get("device")
    return any_there if wanted is None else _is_there(wanted)


def _refuse_mixed(function, args, leaves, to_device: bool) -> None:
    """As CUDA does, which takes single numbers from the CPU, and indices."""
    if function in _INDEXED:
        leaves = [args[0], *args[2:]]
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    several = {isinstance(t, ValuedTensor) for t in tensors if t.ndim or isinstance(t, ValuedTensor)}
    drawn = {leaf._cdata in Generator.there for leaf in leaves if isinstance(leaf, _CpuGenerator)}
    if len(several) > 1 or drawn - {to_device}:
        raise MixedDevices(f"{function}: {[(tuple(t.shape), str(t.device)) for t in tensors]}, generator: {drawn}")
