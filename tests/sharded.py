"""What test_sharding.py has one process do, and two that share the weights out.

accelerate launch --use_fsdp ... sharded.py FOLDER WHAT/NAME ...    prints losses as JSON
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState
from helpers import TINY, unet_of

from cfgdistill import (
    GuidedDenoiser,
    Optim,
    Run,
    add_w_conditioning,
    distill_progressively,
    load_data,
    stage_one_loss,
    teacher_loss,
    train,
)
from cfgdistill.training.sharding import shard, share_out
from cfgdistill.training.state import State

DATA = load_data("digits", images=40)
OPTIM = Optim(6, 4, 1e-3, ema=0.9, faster={"time_emb": 3.0})


def new(seed: int = 0):
    """A U-Net of random weights."""
    return unet_of(replace(TINY, seed=seed), channels=1, size=8, num_classes=10)


def begin(folder: Path) -> list[float]:
    """Three updates of a teacher, and the checkpoint that is left by whoever stops then."""
    updates = train(new(), teacher_loss(10, 0.1), DATA, OPTIM, Run("a", folder=folder))
    losses = [next(updates).loss for _ in range(3)]
    updates.close()
    return losses


def go_on(folder: Path) -> list[float]:
    """The rest of them."""
    teacher = new(seed=1)
    updates = train(teacher, teacher_loss(10, 0.1), DATA, OPTIM, Run("a", folder=folder))
    return [update.loss for update in updates]


def whole(folder: Path) -> list[float]:
    """A teacher, stage one and stage two without a stop."""
    teacher = new()
    run = Run("a", folder=folder / "teacher")
    losses = [u.loss for u in train(teacher, teacher_loss(10, 0.1), DATA, OPTIM, run)]
    student = add_w_conditioning(teacher, (0.0, 4.0))
    loss = stage_one_loss(GuidedDenoiser(share_out(teacher), 10), (0.0, 4.0))
    losses += [u.loss for u in train(student, loss, DATA, OPTIM)]
    list(distill_progressively(student, DATA, Optim(1, 4, 1e-3), Run(folder=folder), start=2))
    return losses


def shares(folder: Path) -> list[float]:
    """What this process holds of a frozen teacher, of a student, and of its average, of 1."""
    teacher, student = share_out(new()).net, shard(new().net, torch.device("cpu"))
    average = State(student, OPTIM, None, {"name": "a"}, "no").average.shadow_params
    held = []
    for tensors in ([*teacher.parameters()], [*student.parameters()], average):
        held.append(sum(p.to_local().numel() for p in tensors) / sum(p.numel() for p in tensors))
    return held


if __name__ == "__main__":
    PartialState(cpu=True)  # the processes of a launcher meet here
    folder = Path(sys.argv[1])
    did = {
        word: globals()[word.split("/")[0]](folder / word.split("/")[1]) for word in sys.argv[2:]
    }
    if PartialState().is_main_process:
        print(json.dumps(did))
