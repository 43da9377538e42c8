"""Dense parameters under DeepSpeed's ZeRO, whose state goes in and out whole and means the same under any strategy."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from m3dist.distributed.engine import Dense, Engine


class Zero(Dense):
    """A module under DeepSpeed ZeRO 0 to 3, whose state goes in and out whole."""

    def __init__(self, engine: Engine, module: nn.Module, groups: list[dict[str, Any]]):
        if engine.device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")
        import deepspeed

        # Not compiled: it takes a compiler, and a worker killed meanwhile leaves a lock that all others wait for.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=False, verbose=False)
        config = {
            "steps_per_print": 1 << 62,
            "gradient_clipping": 0.0,  # its own default clips to norm 1
            **engine.strategy.deepspeed,
            "train_micro_batch_size_per_gpu": 1,
            "zero_optimization": {
                **engine.strategy.deepspeed.get("zero_optimization", {}),
                "stage": engine.strategy.zero_stage,
            },
        }
        Dense.__init__(self, engine, module, module, [])
        adam = torch.optim.Adam(groups)
        self.wrapped, self.zero, *_ = deepspeed.initialize(model=module, optimizer=adam, config=config)
        self.inner = self.zero if engine.strategy.zero_stage == 0 else self.zero.optimizer
        if engine.strategy.zero_stage == 3:  # it makes the moments by a step of its own on zeros, which must not count
            self._count(0)

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        import deepspeed

        parameters = [*self.module.parameters()] if self.engine.strategy.zero_stage == 3 else []
        with deepspeed.zero.GatheredParameters(parameters), Dense.reading(self) as module:
            yield module

    def backward(self, loss: Tensor) -> None:
        self.wrapped.backward(loss * self.engine.world)

    def step(self) -> None:
        self.wrapped.step()

    def _groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    def _count(self, steps: float) -> None:
        for kept in self.inner.state.values():
            kept["step"].fill_(steps)

    def state(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param

        if self.engine.strategy.zero_stage == 0:
            return super().state()
        return self.fixed | {name: safe_get_full_fp32_param(p).detach().clone() for name, p in self.named().items()}

    def load(self, state: dict[str, Tensor]) -> None:
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param

        stage = self.engine.strategy.zero_stage
        if stage < 3:
            super().load(state)  # the copy that forward reads
        for name, p in self.named().items() if stage else ():  # the copy that Adam moves
            value = state[name].to(self.engine.device)
            if stage < 3:
                safe_set_full_fp32_param(p, value)
            else:
                safe_set_local_fp32_param(p, self._slice(p, value))
        if stage == 3:
            parameters = self.named()
            with deepspeed.zero.GatheredParameters(list(parameters.values()), modifier_rank=0), torch.no_grad():
                for name, p in parameters.items():
                    p.copy_(state[name])

    def _slice(self, p: Any, value: Tensor) -> Tensor:
        """This worker's part of a whole parameter under ZeRO-3, padded with zeros: its own setter cannot pad."""
        n = p.ds_tensor.numel()
        padded = value.new_zeros(n * self.engine.world)
        padded[: value.numel()] = value.flatten()
        return padded[n * self.engine.rank :][:n]

    def moments(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_optimizer_state

        if not self.inner.state:
            return {}
        if self.engine.strategy.zero_stage == 0:
            states = [(name, key, x) for name, p in self.named().items() for key, x in self.inner.state[p].items()]
            return {f"{name}/{key}": x.detach().clone() for name, key, x in states}
        self._link()
        steps = max(float(kept["step"]) for kept in self.inner.state.values())
        out = {}
        for name, p in self.named().items():
            for key in ("exp_avg", "exp_avg_sq"):
                out[f"{name}/{key}"] = safe_get_full_optimizer_state(p, key).detach().clone()
            out[f"{name}/step"] = torch.tensor(steps)
        return out

    def _link(self) -> None:
        """Point parameters at their moments: ZeRO 1 and 2 do so in the first group's step, too early for others."""
        if self.engine.strategy.zero_stage in (1, 2):
            self.zero._hp_optimizer_states_linked = False
            self.zero._lazy_init_hp_params_optimizer_state()

    def load_moments(self, moments: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

        if not moments:
            return
        flats = [flat for group in self.inner.param_groups for flat in group["params"]]
        for flat in self.zero.fp32_partitioned_groups_flat if self.engine.strategy.zero_stage == 3 else flats:
            if not self.inner.state[flat]:
                zeros = {key: torch.zeros_like(flat) for key in ("exp_avg", "exp_avg_sq")}
                self.inner.state[flat] = {"step": torch.zeros(()), **zeros}
        self._link()
        for name, p in self.named().items():
            for key in ("exp_avg", "exp_avg_sq"):
                value = moments[f"{name}/{key}"].to(self.engine.device)
                if self.engine.strategy.zero_stage == 0:
                    self.inner.state[p][key].copy_(value)
                elif self.engine.strategy.zero_stage == 3:
                    safe_set_local_optimizer_state(p, self._slice(p, value), key)
                else:
                    safe_set_full_optimizer_state(p, value, key)
        self._count(max(float(x) for name, x in moments.items() if name.endswith("/step")))
