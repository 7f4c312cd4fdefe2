"""DeepSpeed as the engine: its ZeRO stages share weights, gradients and moments, as its own JSON file says.

The network, the loss, AdamW and the order of the data are ours, and so are the checkpoints, so a run can change its
engine; DeepSpeed gathers, reduces, clips and steps. Values that the recipe has are put over those of the JSON. What
DeepSpeed cannot do is look at a step before it is taken: a loss that is not finite ends the run.
Sources: Rajbhandari et al. 2020 (ZeRO); DeepSpeed's documentation of its configuration.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kiloq.core.errors import KiloqError, MissingError
from kiloq.core.safe_json import load_object
from kiloq.model.network import Network
from kiloq.train.batches import Array, Sequences
from kiloq.train.checkpoint import MOMENTS, Parts, Progress
from kiloq.train.learner import Learner
from kiloq.train.optimizer import make_optimizer, set_rate
from kiloq.train.parallel.passes import put
from kiloq.train.parallel.world import World
from kiloq.train.settings import Recipe

MAX_JSON_BYTES = 1 << 20
STAGE = 2  # of ZeRO, where the recipe names no JSON: gradients and moments are shared, weights are whole


class Zero:
    """An Engine (kiloq.train.parallel.engine) inside DeepSpeed."""

    def __init__(self, network: Network, recipe: Recipe, world: World) -> None:
        self.networks, self._recipe, self._world = [network], recipe, world
        self._share = recipe.batch // world.readers
        self._width = recipe.micro_batch or self._share
        learner = Learner(network, recipe, world)
        optimizer = make_optimizer(list(network.parameters()), recipe.optimizer)
        self._engine: Any = _deepspeed().initialize(
            model=learner, optimizer=optimizer, config=self._config(), dist_init_required=False
        )[0]
        self._begin_moments()

    def _config(self) -> dict[str, Any]:
        """The JSON, with what the recipe says over it."""
        path = self._recipe.parallel.deepspeed
        config = load_object(Path(path), MAX_JSON_BYTES) if path else {"zero_optimization": {"stage": STAGE}}
        for ours in ("optimizer", "scheduler", "fp16", "bf16", "train_batch_size"):
            config.pop(ours, None)
        return config | {
            "train_micro_batch_size_per_gpu": self._width,
            "gradient_accumulation_steps": self._share // self._width,
            "gradient_clipping": self._recipe.optimizer.clip,
            "zero_allow_untested_optimizer": True,
        }

    def set_rate(self, rate: float) -> None:
        """As Engine."""
        set_rate(self._engine.optimizer, rate)

    def gradients(self, rows: Sequences, tokens: int) -> float:
        """As Engine; DeepSpeed divides by the number of processes and of passes, which is undone here."""
        total, passes, device = 0.0, self._share // self._width, self._world.device
        for number, begin in enumerate(range(0, self._share, self._width)):
            some = slice(begin, begin + self._width)
            segments_BT = put(rows.segments_BT[some, :-1], device) if self._recipe.block_diagonal else None
            loss = self._engine(put(rows.ids_BT[some], device), segments_BT, self._recipe.optimizer.z_loss) / tokens
            self._engine.set_gradient_accumulation_boundary(number == passes - 1)
            self._engine.backward(loss * (self._world.size * passes))
            total += float(loss.detach())
        return total

    def losses(self, ids_BT: Array) -> float:
        """As Engine."""
        parts = (ids_BT[begin : begin + self._width] for begin in range(0, len(ids_BT), self._width))
        with torch.no_grad():
            return sum(float(self._engine(put(part, self._world.device))) for part in parts)

    def squares(self) -> float:
        """As Engine; DeepSpeed says the norm after a step alone."""
        return 0.0

    def update(self, norm: float) -> float:
        """As Engine."""
        self._engine.step()
        return float(self._engine.get_global_grad_norm() or 0.0)

    def discard(self) -> None:
        """Raises KiloqError."""
        raise KiloqError(
            'the loss is not finite, and engine = "deepspeed" cannot leave a step out: go on from the last checkpoint '
            'with engine = "torch", or with a lower peak_rate'
        )

    def tensors(self) -> dict[str, Tensor]:
        """As Engine: whole tensors in the main process, nothing in the others."""
        from deepspeed.utils import (  # type: ignore[import-untyped]
            safe_get_full_fp32_param,
            safe_get_full_optimizer_state,
        )

        found: dict[str, Tensor] = {}
        for name, parameter in self._named():
            whole = {"weights": safe_get_full_fp32_param(parameter)}
            for moment in MOMENTS:
                state = safe_get_full_optimizer_state(parameter, moment)
                whole[moment] = torch.zeros_like(whole["weights"]) if state is None else state
            if self._world.main:
                found |= {f"{kind}.{name}": tensor.detach().cpu() for kind, tensor in whole.items()}
        return found

    def load(self, folder: Path, progress: Progress) -> None:
        """As Engine."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        for kind in ("weights", *MOMENTS):
            parts = Parts(folder, kind)
            for name, parameter in self._named():
                value = torch.from_numpy(parts.array(name)).to(self._world.device)
                if kind == "weights":
                    safe_set_full_fp32_param(parameter, value)  # what AdamW steps from
                    with _deepspeed().zero.GatheredParameters(parameter, modifier_rank=0), torch.no_grad():
                        parameter.copy_(value)  # what the network reads until then
                else:
                    safe_set_full_optimizer_state(parameter, value, kind)
        for state in self._engine.optimizer.optimizer.state.values():
            state["step"] = torch.tensor(float(progress.updates))

    def _begin_moments(self) -> None:
        """DeepSpeed looks for moments before the first step has made any, and then has nowhere to put ours."""
        shared = self._engine.optimizer
        flat = getattr(shared, "fp32_partitioned_groups_flat", None)  # of stage 3
        parts = flat or [part for group in shared.optimizer.param_groups for part in group["params"]]
        for part in parts:
            state = shared.optimizer.state[part]
            state["step"] = torch.zeros((), dtype=torch.float32, device=part.device)
            state |= {moment: torch.zeros_like(part) for moment in MOMENTS}
        if flat is None:
            shared._lazy_init_hp_params_optimizer_state()

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.networks[0].named_parameters()


def _deepspeed() -> Any:
    try:
        import deepspeed  # type: ignore[import-untyped]
    except ImportError:
        raise MissingError(
            "engine = \"deepspeed\" needs another package: run `pip install 'kiloq[deepspeed]'` to get it"
        ) from None
    return deepspeed
