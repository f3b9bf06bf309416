"""`sharding=full`: parameters, gradients, AdamW's moments and the average lie in parts in the processes.

It is torch's fully_shard (FSDP2): each parameter is a DTensor, of which a process holds 1/N; a block's are gathered for
as long as it runs. What leaves the processes - checkpoints, the export, the weights that are sampled - is whole again
and has the form that it has without sharding.
"""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim.swa_utils import AveragedModel
from torch.utils._pytree import tree_map_only

from lactok.data.folder import DataError
from lactok.train.recipe import Recipe

ONE_PROCESS = (
    "sharding=full: a single process has nothing to divide, so it trains as without; for N processes start "
    "`torchrun --nproc_per_node=N -m lactok.train ...`"
)


def refuse_other_sharding() -> None:
    """Raises DataError where accelerate was told to cut networks up, which on a CPU it would not do, or fail at."""
    kinds = ("FSDP", "DEEPSPEED", "MEGATRON_LM")
    asked = [kind for kind in kinds if os.environ.get(f"ACCELERATE_USE_{kind}", "").lower() == "true"]
    if asked:
        raise DataError(
            f"accelerate was told to cut networks up ({asked[0]}): expected that of sharding=full alone, whose "
            "average, checkpoints and export are whole. Launch `accelerate launch --multi_gpu` or torchrun and add "
            "sharding=full, which recipe=generator knows; for others precision=bf16 and gradient_checkpointing=true "
            "lower the memory"
        )


def whole(tensor: Tensor) -> Tensor:
    """A tensor that may lie in parts, gathered from all processes, each of which must ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def held(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Shards:
    """A recipe on its device, cut up in place among all processes.

    whole: the same recipe for whole weights, of which it has none but inside `gathered`. Raises DataError for a recipe
    that has no `sharded_by`.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        if recipe.sharded_by is None:
            raise DataError(f"sharding=full: {type(recipe).__name__} does not say by which blocks (Recipe.sharded_by)")
        self.recipe, self.main = recipe, accelerator.is_main_process
        absent = {id(parameter): _absent(parameter) for parameter in recipe.parameters()}
        self.whole: Recipe = copy.deepcopy(recipe, dict(absent)).eval()
        mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
        for block in recipe.get_submodule(recipe.sharded_by).children():
            fully_shard(block, mesh=mesh)
        fully_shard(recipe, mesh=mesh)

    def state_dict(self) -> Mapping[str, Tensor]:
        """The recipe's, whole and on the CPU, in process 0; elsewhere empty. All processes must ask for it."""
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        return cast(dict[str, Tensor], get_model_state_dict(self.recipe, options=options))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take this process's parts of whole tensors, of which some may be absent."""
        options = StateDictOptions(full_state_dict=True, strict=False)
        set_model_state_dict(self.recipe, dict(state), options=options)

    def keep_whole(self, optimizer: torch.optim.Optimizer, average: AveragedModel) -> None:
        """State dicts of these are whole from now on: given as by `state_dict`, taken as by `load_state_dict`."""

        def parts_of_moments(_: object, state: dict[str, Any]) -> dict[str, Any]:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                number: {name: _part(value, parameters[number]) for name, value in values.items()}
                for number, values in state["state"].items()
            }
            return {**state, "state": moments}

        def parts_of_means(module: nn.Module, state: dict[str, Any], prefix: str, *_: object) -> None:
            for name, mean in module.named_parameters(prefix.removesuffix(".")):
                state[name] = _part(state[name], mean)

        optimizer.register_state_dict_post_hook(lambda _, state: self._gathered(state))
        optimizer.register_load_state_dict_pre_hook(parts_of_moments)
        average.register_state_dict_post_hook(lambda _, state, *__: state.update(self._gathered(dict(state))))
        average.register_load_state_dict_pre_hook(parts_of_means)

    @contextlib.contextmanager
    def gathered(self, trained: Sequence[Tensor]) -> Iterator[Recipe]:
        """`whole`, in process 0 with these values of the trained parameters, elsewhere empty; all must enter."""
        values = iter(trained)
        parameters = dict(self.recipe.named_parameters())
        state = {name: self._whole(next(values) if p.requires_grad else p) for name, p in parameters.items()}
        if self.main:
            buffers = {name: buffer for name, buffer in self.recipe.state_dict().items() if name not in state}
            self.whole.load_state_dict({**buffers, **state}, assign=True)
        del state
        try:
            yield self.whole
        finally:
            absent = {name: _absent(parameter) for name, parameter in parameters.items()}
            self.whole.load_state_dict(absent, strict=False, assign=True)

    def _gathered(self, tree: dict[str, Any]) -> dict[str, Any]:
        return tree_map_only(DTensor, lambda part: self._whole(part).cpu(), tree)

    def _whole(self, tensor: Tensor) -> Tensor:
        """In process 0; elsewhere nothing is kept."""
        gathered = whole(tensor.detach())
        return gathered if self.main else gathered.new_empty(0)


def _absent(parameter: Tensor) -> nn.Parameter:
    return nn.Parameter(torch.empty(parameter.shape, dtype=parameter.dtype, device="meta"), parameter.requires_grad)


def _part(tensor: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor, cut up as a parameter is; one of another shape stays as it is."""
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)
