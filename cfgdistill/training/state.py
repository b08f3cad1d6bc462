"""A training run: what is asked of it, and its exact state on disk between two updates."""

import math
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from cfgdistill.training.checkpoints import (
    alone,
    fill,
    load_weights,
    read_tensors,
    refuse_other,
    save_weights,
    weights_of,
    write_tensors,
)
from cfgdistill.training.optim import Optim
from cfgdistill.training.sharding import is_asked, load_shares, save_shares

SAVE_MINUTES = 5.0  # what a crash costs at most; a checkpoint of a large network takes a while
MOST_LOSSES = 2000  # in a card: more than a figure is wide


@dataclass(frozen=True)
class Run:
    """Where a training takes place, and what is kept of it.

    `name` and `seed` fix its random numbers, those of dropout too. With a `folder`, work is kept
    there: a finished model is loaded and nothing is trained, an unfinished one is resumed; two runs
    cannot train there at once. `about` (JSON) is stored with the weights, and a folder that holds
    something else is refused with a ValueError; `notes` (JSON) are stored and not compared. A
    checkpoint is written after every `save_every` updates, or, for None, SAVE_MINUTES; closing the
    generator, Ctrl-C, SIGTERM or SIGHUP writes one first. With precision "mixed" the networks
    compute in `mixed_precision()`; schedules, z, targets and losses stay in float32. `device` is
    where a single process trains; None: `default_device()`.
    """

    name: str = "run"
    _: KW_ONLY
    seed: int = 0
    folder: str | Path | None = None
    about: dict = field(default_factory=dict)
    notes: dict = field(default_factory=dict)
    save_every: int | None = None
    precision: str = "full"
    device: str | torch.device | None = None


def finished(model: nn.Module, folder: Path | None, about: dict) -> bool:
    """Whether the model lies finished in the folder; then it is loaded."""
    if folder is None or not (folder / "card.json").exists():
        return False
    load_weights(model, folder, about)
    model.eval()
    return True


@contextmanager
def only_run(folder: Path) -> Iterator[None]:
    """Nothing else is trained in this folder for as long as this lasts."""
    with ExitStack() as held:
        try:
            held.enter_context(alone(folder / "lock", wait=0.0))
        except BlockingIOError as error:
            raise ValueError(
                f"Something is trained in {folder} already ({error}): wait for its end, or choose "
                "another folder. If that process is gone, with its machine, delete the file."
            ) from error
        # By a run that was killed while it wrote, or while safetensors did.
        for left in (*folder.glob("*.tmp"), *folder.glob(".tmp*")):
            left.unlink()
        yield


class State:
    """What a training run is made of between two updates, and its file training.safetensors.

    Where weights are shared out, each process keeps its shares in a folder training-N beside the
    file, which has the rest and says which folder it is. Any number of processes goes on from it.
    """

    def __init__(self, net: nn.Module, optim: Optim, folder: Path | None, about: dict, kind: str):
        from diffusers.training_utils import EMAModel

        self.net, self.folder, self.about = net, folder, about
        self.trained = {key: p for key, p in net.named_parameters() if p.requires_grad}
        if not self.trained:
            raise ValueError(
                f"Nothing in the model of {about['name']} can be trained, for all of its "
                "parameters are frozen: call requires_grad_(True) on those that should learn."
            )
        self.shared = is_asked()
        # bitsandbytes knows whole tensors only.
        optim = replace(optim, eight_bit=optim.eight_bit and not self.shared)
        self.optimizer = optim.adam(self.trained)
        self.average = None
        if optim.ema:
            how = {"decay": optim.ema, "foreach": not self.shared}  # shares know no foreach copy
            self.average = EMAModel(self.trained.values(), **how)
        self.scaler = torch.amp.GradScaler("cuda", enabled=kind == "fp16")
        self.seconds, self.losses, self.precisions = 0.0, [], [kind]
        self.saved_at = time.perf_counter()

    @property
    def done(self) -> int:
        return len(self.losses)

    @property
    def file(self) -> Path:
        return self.folder / "training.safetensors"

    def step(self, rate: float) -> None:
        """Adam moves the weights along the gradients that are there, and the average follows."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.net.parameters(), 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.step(self.trained.values())

    def where_saved(self) -> str:
        if self.folder is None or not self.file.exists():
            return "Nothing was saved."
        return f"The last checkpoint is in {self.folder}; the same call again resumes from it."

    def save_now(self, every: int | None) -> bool:
        """Whether it is time for a checkpoint: after so many updates, else after some minutes."""
        if every is not None:
            return self.done % every == 0
        return time.perf_counter() - self.saved_at >= 60 * SAVE_MINUTES

    def save(self) -> None:
        from accelerate import PartialState

        self.saved_at, processes = time.perf_counter(), PartialState()
        if self.folder is None or not (processes.is_main_process or self.shared):
            return
        tensors = {f"net.{key}": value for key, value in weights_of(self.net).items()}
        numbers = {}  # 8-bit Adam counts its steps in Python
        for i, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                kept = tensors if isinstance(value, Tensor) else numbers
                kept[f"optimizer.{i}.{key}"] = value
        tensors |= self._average()
        state = {"about": self.about, "seconds": self.seconds, "scaler": self.scaler.state_dict()}
        state |= {"optimizer": type(self.optimizer).__name__, "numbers": numbers}
        state |= {"precisions": self.precisions}
        if self.shared:
            state["shares"] = f"training-{self.done}"
            if processes.is_main_process:  # of a run that was killed while it wrote
                shutil.rmtree(self.folder / state["shares"], ignore_errors=True)
            processes.wait_for_everyone()
            save_shares(tensors, self.folder / state["shares"])
            tensors = {}
        if processes.is_main_process:
            tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
            write_tensors(self.file, tensors, state)
            self._let_go(but=state.get("shares"))

    def _average(self) -> dict[str, Tensor]:
        """The moving average, by the names it has on disk."""
        return {f"ema.{i}": p for i, p in enumerate(getattr(self.average, "shadow_params", ()))}

    def _let_go(self, but: str | None = None) -> None:
        """Shares of earlier updates are in nobody's way any more."""
        for old in self.folder.glob("training-*"):
            if old.name != but:
                shutil.rmtree(old)

    def _places(self) -> dict[str, Tensor]:
        """Where all that `save` keeps of a run with AdamW comes back to; its moments are new."""
        places = {f"net.{key}": value for key, value in weights_of(self.net).items()}
        ordered = [p for group in self.optimizer.param_groups for p in group["params"]]
        for i, p in enumerate(ordered):
            places[f"optimizer.{i}.step"] = torch.zeros((), device=p.device)
            for moment in ("exp_avg", "exp_avg_sq"):
                places[f"optimizer.{i}.{moment}"] = torch.zeros_like(p.detach())
        return places | self._average()

    def restore(self) -> None:
        if self.folder is None or not self.file.exists():
            return
        tensors, state = read_tensors(self.file)
        refuse_other(self.folder, state.get("about"), self.about)
        # The finished model may be used anywhere; the moments of Adam only fit their own kind.
        kinds = state.get("optimizer", "AdamW"), type(self.optimizer).__name__
        refuse_other(self.file, *({"optimizer": kind} for kind in kinds))

        if self.shared or "shares" in state:
            shares = self._places()
            load_shares(shares, self.folder / state.get("shares", ""))
            tensors |= shares

        def part(prefix):
            return {k[len(prefix) :]: v for k, v in tensors.items() if k.startswith(prefix)}

        fill(self.net, part("net."))
        optimizer_state: dict[int, dict] = {}
        numbers = {key.removeprefix("optimizer."): v for key, v in state.get("numbers", {}).items()}
        for key, value in (part("optimizer.") | numbers).items():
            i, entry = key.split(".", 1)
            optimizer_state.setdefault(int(i), {})[entry] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})
        self.losses, self.seconds = tensors["losses"].tolist(), state["seconds"]
        before = state.get("precisions", [])  # it may go on where another precision is to be had
        self.precisions = before + [p for p in self.precisions if p not in before[-1:]]
        if self.average is not None:
            kept = part("ema.")
            for i, p in enumerate(self.average.shadow_params):
                p.copy_(kept[str(i)])
            self.average.optimization_step = self.done
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])

    def finish(self, model: nn.Module, notes: dict) -> None:
        """The finished model takes the place of the training state."""
        from accelerate import PartialState

        on_cpu = next(self.net.parameters()).device.type == "cpu"
        threads = torch.get_num_threads() if on_cpu else 1
        stretch = max(1, math.ceil(self.done / MOST_LOSSES))
        means = [part.mean().item() for part in torch.tensor(self.losses).double().split(stretch)]
        card = {
            "trained_parameters": sum(p.numel() for p in self.trained.values()),
            **notes,
            "minutes": round(self.seconds / 60, 2),
            "cores": threads * PartialState().num_processes,  # or GPUs
            "precisions": self.precisions,  # "no" is float32; more than one where it was resumed
            "losses": [float(f"{v:.4g}") for v in means],
            "updates_per_loss": stretch,  # each is the mean over so many, the last over the rest
        }
        save_weights(model, self.folder, self.about, **card)
        load_weights(model, self.folder, self.about)  # it can be: only then is the rest let go
        self.file.unlink(missing_ok=True)
        self._let_go()
