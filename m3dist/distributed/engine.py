"""One interface to training alone, under DDP and under DeepSpeed: collectives, wrapping, backward, portable state.

Every loss is a sum over a worker's share divided by the count of the global batch, so shares add up. DDP and
DeepSpeed average gradients; `backward` multiplies by the number of workers to make that a sum again.

Shapes: c rows of this worker, C rows of all workers, d width.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from m3dist.config import Config
from m3dist.data.parts import share
from m3dist.distributed import devices
from m3dist.distributed.adam import Adam


@dataclass(frozen=True)
class Strategy:
    """How dense parameters are trained: under `ddp` or `deepspeed` with a ZeRO stage and further values of its own
    config, and in which precision."""

    name: str = "ddp"
    zero_stage: int = 1
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "auto"


class Engine:
    """One worker among `world`; without arguments, the only one.

    With world > 1 a default torch.distributed process group must exist. `sent` counts the bytes this worker gave to
    collectives of embedding rows.
    """

    def __init__(
        self,
        rank: int = 0,
        world: int = 1,
        device: str | torch.device = "cpu",
        strategy: Strategy | None = None,
    ):
        self.rank, self.world, self.device = rank, world, torch.device(device)
        self.strategy = strategy or Strategy()
        self.sent = 0

    @staticmethod
    def of(config: Config, rank: int = 0, world: int = 1, device: str | torch.device | None = None) -> Engine:
        """A worker as a config describes it; alone, on the GPU when the config uses one."""
        if device is None:
            device = devices.wanted(config.use_gpu)
        strategy = Strategy(config.strategy, config.zero_stage, config.deepspeed, config.precision)
        return Engine(rank, world, device, strategy)

    @property
    def rank_zero(self) -> bool:
        """Whether this worker writes what all agree on."""
        return self.rank == 0

    def autocast(self) -> contextlib.AbstractContextManager:
        """bf16 where it is configured, float32 elsewhere."""
        if self.strategy.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    @contextlib.contextmanager
    def fast_products(self) -> Iterator[None]:
        """Matrix products of steps by TF32 on GPUs that have it, unless the precision is float32; what is ranked or
        written is computed outside."""
        before = torch.backends.cuda.matmul.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = self.strategy.precision != "float32"
        try:
            yield
        finally:
            torch.backends.cuda.matmul.allow_tf32 = before

    def share(self, n: int) -> tuple[int, int]:
        """This worker's contiguous part of 0..n-1."""
        return share(n, self.rank, self.world)

    def barrier(self) -> None:
        if self.world > 1:
            self.largest(0)

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors of one dtype over the workers, in place, in one collective."""
        tensors = list(tensors)
        if self.world == 1 or not tensors:
            return
        flat = tensors[0].view(-1) if len(tensors) == 1 else torch.cat([x.reshape(-1) for x in tensors])
        dist.all_reduce(flat)
        if len(tensors) > 1:
            for x, part in zip(tensors, flat.split([x.numel() for x in tensors]), strict=True):
                x.copy_(part.view_as(x))

    def adding_up(self, flat: Tensor) -> Callable[[], object]:
        """Begin to sum a tensor over the workers, in place; what it returns waits for the sum."""
        return dist.all_reduce(flat, async_op=True).wait

    def totals(self, values: dict[str, float]) -> dict[str, float]:
        """Sums over the workers, in double precision; every worker gives the same keys in the same order."""
        if self.world == 1:
            return values
        total = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        self.add_up([total])
        return dict(zip(values, total.tolist(), strict=True))

    def collect(self, value: Any) -> list[Any]:
        """Every worker's plain value, in rank order."""
        if self.world == 1:
            return [value]
        out: list[Any] = [None] * self.world
        dist.all_gather_object(out, value)
        return out

    def largest(self, value: int) -> int:
        if self.world == 1:
            return value
        shared = torch.tensor([value], device=self.device)
        dist.all_reduce(shared, op=dist.ReduceOp.MAX)
        return int(shared)

    def gather(self, x_cd: Tensor, counts: list[int]) -> Tensor:
        """Rows of all workers in rank order [C, d], with gradient; counts: how many each worker gives."""
        return x_cd if self.world == 1 else _Gather.apply(x_cd, counts, self)

    def exchange(self, x: Tensor, send: list[int], receive: list[int]) -> Tensor:
        """All-to-all of a flat tensor: `send` of its elements to every worker, `receive` from each, in rank order."""
        out = x.new_empty(sum(receive))
        dist.all_to_all_single(out, x, receive, send)
        return out

    def later(self, numbers: Tensor) -> Callable[[], Any]:
        """Begin to copy numbers to the host; what it returns gives them as lists, and waits until they are there."""
        if self.device.type == "cpu":
            return numbers.tolist
        here = numbers.to("cpu", non_blocking=True)  # whose memory torch pins
        there = torch.get_device_module(self.device).Event()
        there.record()

        def read() -> Any:
            there.synchronize()
            return here.tolist()

        return read

    def wrap(self, module: nn.Module, groups: list[dict[str, Any]]) -> Dense:
        """Make a module trainable by Adam with these parameter groups; its forward is what synchronises."""
        module.to(self.device)
        groups = [g | {"params": kept} for g in groups if (kept := [p for p in g["params"] if p.requires_grad])]
        if not groups or not dist.is_initialized():
            return Dense(self, module, module, groups)
        if self.strategy.name == "deepspeed":
            from m3dist.distributed.deepspeed import Zero

            return Zero(self, module, groups)
        if self.world == 1:
            return Dense(self, module, module, groups)
        wrapped = nn.parallel.DistributedDataParallel(module, broadcast_buffers=False, gradient_as_bucket_view=True)
        return Dense(self, module, wrapped, groups)


class _Gather(torch.autograd.Function):
    """All-gather of unequal numbers of rows; backward adds up every worker's gradient of this worker's rows."""

    @staticmethod
    def forward(ctx, x_cd: Tensor, counts: list[int], engine: Engine) -> Tensor:  # type: ignore[override]
        ctx.counts, ctx.engine = counts, engine
        padded = x_cd.new_zeros(max(counts), x_cd.shape[1])
        padded[: len(x_cd)] = x_cd
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:n] for part, n in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx, grad_Cd: Tensor):  # type: ignore[override]
        grad_Cd = grad_Cd.contiguous()
        dist.all_reduce(grad_Cd)
        return grad_Cd.split(ctx.counts)[ctx.engine.rank], None, None


class Dense:
    """A module with its Adam, alone or under DDP. Its state is the same under every strategy and world size."""

    def __init__(self, engine: Engine, module: nn.Module, wrapped: nn.Module, groups: list[dict[str, Any]]):
        self.engine, self.module = engine, module
        self.wrapped: Any = wrapped
        self.given = [float(group["lr"]) for group in groups]
        self.optimizer = Adam(groups) if groups else None
        self.why_not = ""  # why a step cannot be captured in a CUDA graph
        self.fixed = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}

    def __call__(self, *args: Any) -> Any:
        with self.engine.autocast():
            return self.wrapped(*args)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """The module with all its parameters in place, to compute something without gradients."""
        with torch.no_grad(), self.engine.autocast():
            yield self.module

    def backward(self, loss: Tensor) -> None:
        """Gradients of the sum of all workers' losses; those of leaves outside the module are `world` times theirs.

        A module without parameters has none.
        """
        world = self.engine.world
        if loss.requires_grad:
            (loss if world == 1 else loss * world).backward()

    def step(self) -> None:
        if self.optimizer is not None:
            self.optimizer.step()

    def scale(self, left: Tensor, left_here: float) -> None:
        """Set every group's learning rate to what it was given times what is left of it, on the device and here."""
        for group, lr in zip(self.optimizer.param_groups if self.optimizer else [], self.given, strict=True):
            torch.mul(left, lr, out=group["lr"])

    @property
    def lr(self) -> float:
        """The learning rate of the first group now."""
        return float(self.optimizer.param_groups[0]["lr"]) if self.optimizer else 0.0

    def named(self) -> dict[str, nn.Parameter]:
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def state(self) -> dict[str, Tensor]:
        """Copies of all parameters by name, whole. Every worker must call it."""
        return self.fixed | {name: p.detach().clone() for name, p in self.named().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, p in self.named().items():
                p.copy_(state[name])

    def moments(self) -> dict[str, Tensor]:
        """Adam's state by parameter name: NAME/exp_avg, NAME/exp_avg_sq and NAME/step. Every worker must call it."""
        if self.optimizer is None:
            return {}
        states = {name: self.optimizer.state[p] for name, p in self.named().items() if p in self.optimizer.state}
        return {f"{name}/{key}": x.detach().clone() for name, kept in states.items() for key, x in kept.items()}

    def load_moments(self, moments: dict[str, Tensor]) -> None:
        for name, p in self.named().items():
            if self.optimizer is not None and f"{name}/step" in moments:
                kept = {key: moments[f"{name}/{key}"].to(p.device).clone() for key in ("exp_avg", "exp_avg_sq", "step")}
                self.optimizer.state[p] = kept
