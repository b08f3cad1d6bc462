"""For what does not fit one card: every process keeps its share of every weight (FSDP2).

Asked for by `accelerate launch --use_fsdp --fsdp_version 2`. Outside of training models stay whole,
in the computer's memory: `shard` and `share_out` make the copies that are trained and asked, and a
model gets its weights back when its training is finished.
"""

import copy
import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from cfgdistill.training.environment import default_device, flag


def is_asked() -> bool:
    """Whether weights are to be shared out over several processes."""
    from accelerate import PartialState

    return flag("ACCELERATE_USE_FSDP") and PartialState().num_processes > 1


def shard(net: nn.Module, device: torch.device, frozen: bool = False) -> nn.Module:
    """A copy of a network, of whose every weight each process keeps its share on its device.

    A block that diffusers says is not to be split (`_no_split_modules`) is gathered when it is
    asked and let go afterwards; so is what is outside of the blocks, with the network itself.
    """
    from accelerate import PartialState
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    net = copy.deepcopy(net)
    if frozen:
        net.requires_grad_(False)
    mesh = init_device_mesh(device.type, (PartialState().num_processes,))
    whole = [getattr(part, "_no_split_modules", None) or () for part in net.modules()]
    blocks = {name for names in whole for name in names}
    for part in reversed([*net.modules()]):  # what is within a block before the block
        if part is net or type(part).__name__ in blocks:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
    return net


def share_out(teacher, device: str | torch.device | None = None):
    """A frozen copy of a denoiser, shared out; where that is not asked for, the denoiser itself."""
    if not is_asked():
        return teacher
    return teacher.copy(shard(teacher.net, torch.device(device or default_device()), frozen=True))


@torch.no_grad()
def gather(net: nn.Module, whole: nn.Module) -> None:
    """The weights of a network that is shared out, into the one it is a copy of."""
    shares = net.state_dict()
    for key, value in whole.state_dict().items():
        share = shares[key]
        value.copy_(share.full_tensor() if hasattr(share, "full_tensor") else share)


def save_shares(tensors: dict[str, Tensor], folder: Path) -> None:
    """Each process writes what it has of these tensors; all have to call it."""
    import torch.distributed.checkpoint as dcp

    dcp.save(
        tensors, storage_writer=dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    )


def load_shares(tensors: dict[str, Tensor], folder: Path) -> None:
    """Fill these tensors, or each process's share of them, from the safetensors files of a folder.

    They may have been written by any number of processes. ValueError where they cannot be read.
    """
    import torch.distributed.checkpoint as dcp

    alone = not torch.distributed.is_initialized()
    try:
        with warnings.catch_warnings():  # one process alone is told that it is
            warnings.simplefilter("ignore", UserWarning)
            reader = dcp.HuggingFaceStorageReader(str(folder))
            dcp.load(tensors, storage_reader=reader, no_dist=alone)
    except (Exception, dcp.api.CheckpointException) as error:  # which is no Exception
        raise ValueError(
            f"What was kept in {folder} cannot be read: it is truncated or not a checkpoint. "
            "Delete it and training.safetensors beside it to start again."
        ) from error
