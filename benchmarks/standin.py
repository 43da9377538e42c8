"""A stand-in for a GPU on machines without one: device "standin", which counts what a GPU would have to do.

    with Standin() as counted:
        x = torch.zeros(3, device="standin")
        counted.launches, counted.waits, counted.copies

Its tensors keep their values on the CPU, so results are those of the CPU. What differs is what a GPU makes costly or
refuses: every operation that is not a view is a launch; an operation whose result the host needs, be it a value or the
size of an output, is a wait; a transfer between the host and the device is a copy, and needs an explicit one: an
operation that meets tensors of both devices fails as it does under CUDA. A transfer to the host that does not block is
a launch instead, and waiting for an event is a wait if it was recorded since the last `clear`. There is neither
autocast nor torch.compile, and of CUDA graphs only what they ask of a step: the same launches each time, no waits and
no copies.

It registers PyTorch's spare backend (PrivateUse1) when imported, of which a process can have one.
"""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
_HOST = torch.device("cpu")
_READS = frozenset({  # the host waits for the device: for a value, or for the size of the output
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "bincount",
})  # fmt: skip
_INDEXING = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
_MIXES = _INDEXING | {"copy_", "_to_copy", "_copy_from"}  # may meet tensors of both devices under CUDA too


@dataclass
class Counted:
    """What ran on the device since `clear`; `by_name` has the launches of every operation."""

    launches: int = 0
    waits: int = 0
    copies: int = 0
    by_name: collections.Counter[str] = field(default_factory=collections.Counter)
    cleared: int = 0  # how often

    def clear(self) -> None:
        self.cleared += 1
        self.launches = self.waits = self.copies = 0
        self.by_name.clear()


class Event:
    """A moment of the device, which the host can wait for; one of before the last `clear` is long over."""

    def record(self) -> None:
        self.counted = _counting()
        self.cleared = self.counted.cleared

    def synchronize(self) -> None:
        self.counted.waits += self.counted.cleared == self.cleared


class _Backend:
    """What PyTorch asks of the module of a device."""

    Event = Event

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def is_initialized() -> bool:
        return True

    @staticmethod
    def _is_in_bad_fork() -> bool:
        return False

    @staticmethod
    def current_device() -> int:
        return 0

    @staticmethod
    def device_count() -> int:
        return 1

    @staticmethod
    def synchronize(device: Any = None) -> None:
        """Nothing runs behind the host's back."""

    @staticmethod
    def manual_seed_all(seed: int) -> None:
        """The CPU's generator draws for it, which `torch.manual_seed` seeds."""

    @staticmethod
    def get_rng_state(device: Any = None) -> torch.Tensor:
        return torch.default_generator.get_state()

    @staticmethod
    def set_rng_state(state: torch.Tensor, device: Any = None) -> None:
        torch.default_generator.set_state(state)

    @staticmethod
    def get_amp_supported_dtype() -> list[torch.dtype]:
        return [torch.bfloat16]


_setup_privateuseone_for_python_backend(NAME, backend_module=_Backend)
_library = torch.library.Library("_", "IMPL")  # kept: what it registers goes with it
_library.fallback(torch.library.fallthrough_kernel, dispatch_key="AutocastPrivateUse1")


class DeviceTensor(torch.Tensor):
    """A tensor of the device; `inner` holds its numbers on the CPU and shares memory as the tensor itself would."""

    inner: torch.Tensor

    @staticmethod
    def __new__(cls, inner: torch.Tensor) -> DeviceTensor:
        where = {}
        if inner.layout == torch.strided:
            where = {"strides": inner.stride(), "storage_offset": inner.storage_offset()}
        out = torch.Tensor._make_wrapper_subclass(cls, inner.size(), dtype=inner.dtype, device=f"{NAME}:0", **where)
        out.inner = inner
        return out

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {}, _ignored)

    def __repr__(self, **_: Any) -> str:
        return f"{NAME}({self.inner!r})"

    def tolist(self) -> Any:
        mode = _Dispatch.active
        if mode is not None:
            mode.counted.waits += 1
        return self.inner.tolist()


_ignored = Counted()  # takes the counts of operations outside a `with Standin()`


def _is_ours(device: Any) -> bool:
    return device is not None and torch.device(device).type == NAME


def _is_view(op: Any) -> bool:
    """Whether every output of an operation is an alias that it does not write to."""
    outputs = [x.alias_info for x in op._schema.returns]
    return bool(outputs) and all(alias is not None and not alias.is_write for alias in outputs)


def _sizes_itself(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the host waits for numbers that say how large the output is, or whether they add up."""
    if name == "repeat_interleave":
        return isinstance(args[0], DeviceTensor) and kwargs.get("output_size") is None
    return name == "segment_reduce" and not kwargs.get("unsafe", False)


def _does_not_block(name: str, args: Any, kwargs: dict[str, Any]) -> bool:
    """Whether the host goes on while a transfer is under way."""
    return bool(kwargs.get("non_blocking") or (name == "copy_" and args[2:3] == (True,)))


def _counting() -> Counted:
    return _Dispatch.active.counted if _Dispatch.active is not None else _ignored


def _run(op: Any, args: Any, kwargs: dict[str, Any], counted: Counted) -> Any:
    """An operation on the values behind its tensors, counted; raises RuntimeError where devices are mixed."""
    name = op._schema.name.partition("::")[2]
    given = tree_leaves((args, kwargs))
    ours = [x for x in given if isinstance(x, DeviceTensor)]
    target = kwargs.get("device")
    if not ours and not _is_ours(target):
        return op(*args, **kwargs)
    leaves = name == "_to_copy" and target is not None and not _is_ours(target)  # for the host
    enters = name == "_to_copy" and not ours
    if name == "copy_":
        leaves = not isinstance(args[0], DeviceTensor)
        enters = not isinstance(args[1], DeviceTensor)
    counted.copies += enters or (leaves and not _does_not_block(name, args, kwargs))
    counted.waits += name in _READS or _sizes_itself(name, args, kwargs)
    if not _is_view(op):
        counted.launches += 1
        counted.by_name[name] += 1
    if ours and name in _INDEXING:
        _check_indexing(op, args, counted)
    elif ours and name not in _MIXES:
        for x in given:  # scalars of the host are passed by value, as under CUDA
            if isinstance(x, torch.Tensor) and not isinstance(x, DeviceTensor) and x.dim():
                raise RuntimeError(
                    f"{op}: expected all tensors to be on the same device, but found one of shape {tuple(x.shape)} on "
                    f"cpu beside one on {NAME}:0"
                )
    known = {id(x.inner): x for x in ours}

    def behind(x: Any) -> Any:
        if isinstance(x, DeviceTensor):
            return x.inner
        return _HOST if isinstance(x, torch.device) and _is_ours(x) else x

    def wrapped(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or leaves:
            return x
        return known[id(x)] if id(x) in known else DeviceTensor(x)

    return tree_map(wrapped, op(*tree_map(behind, args), **tree_map(behind, kwargs)))


def _check_indexing(op: Any, args: Any, counted: Counted) -> None:
    """Masks make the host wait for their count; positions on the host are copied; a host's tensor takes no others."""
    for index in tree_leaves(args[1]):
        if isinstance(index, torch.Tensor):
            counted.waits += index.dtype in (torch.bool, torch.uint8)
            counted.copies += isinstance(args[0], DeviceTensor) and not isinstance(index, DeviceTensor)
    if not isinstance(args[0], DeviceTensor):
        raise RuntimeError(f"{op}: indices should be either on cpu or on the same device as the indexed tensor (cpu)")


class _Dispatch(TorchDispatchMode):
    active: _Dispatch | None = None

    def __init__(self, counted: Counted):
        super().__init__()
        self.counted = counted

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(op, args, kwargs or {}, self.counted)


class _Constants(TorchFunctionMode):
    """What copies host values to the device without an operation that dispatch sees: torch.tensor, lists of indices."""

    def __init__(self, counted: Counted):
        super().__init__()
        self.counted = counted

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.tensor, torch.as_tensor, torch.asarray) and _is_ours(kwargs.get("device")):
            self.counted.copies += 1
            made = func(*args, **{**kwargs, "device": _HOST})
            return made if isinstance(made, DeviceTensor) else DeviceTensor(made)
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and isinstance(args[0], DeviceTensor):
            at = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(x, list) for x in at):
                self.counted.copies += 1
                at = tuple(DeviceTensor(torch.tensor(x)) if isinstance(x, list) else x for x in at)
                args = (args[0], at, *args[2:])
        return func(*args, **kwargs)


class Standin:
    """Inside `with Standin() as counted`, device "standin" works and `counted` says what ran on it."""

    def __enter__(self) -> Counted:
        counted = Counted()
        self._swaps = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)  # module.to(device) changes the class of parameters
        self._modes = (_Dispatch(counted), _Constants(counted))
        self._outer, _Dispatch.active = _Dispatch.active, self._modes[0]
        for mode in self._modes:
            mode.__enter__()
        return counted

    def __exit__(self, *error: Any) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)
        _Dispatch.active = self._outer
        torch.__future__.set_swap_module_params_on_conversion(self._swaps)
