"""Training as a generator: `for update in train(...)`. One loop serves every stage and every model.

The random numbers of update k depend on the seed and on k alone, never on what ran before. So a run
that was killed and resumed ends with the same bits as one that was not, and several processes
together draw what one would have drawn.
"""

import importlib.util
import math
import os
import signal
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.losses import Loss, Weighting, snr_plus_one
from cfgdistill.core.names import one_of
from cfgdistill.core.stage_two import continue_a_halving, halvings, stage_two_loss
from cfgdistill.training.checkpoints import (
    alone,
    fill,
    load_weights,
    plain,
    read_tensors,
    refuse_other,
    save_weights,
    weights_of,
    write_tensors,
)
from cfgdistill.training.environment import HALF, default_device, flag, mixed_precision
from cfgdistill.training.randomness import Draw, seed_at, seeded

SAVE_MINUTES = 5.0  # what a crash costs at most; a checkpoint of a large network takes a while
MOST_LOSSES = 2000  # in a card: more than a figure is wide


class Update(NamedTuple):
    """What `train` yields: updates done so far, the loss of the last one, and its learning rate."""

    number: int
    loss: float
    rate: float


def train(
    model: nn.Module,
    loss: Loss,
    data,
    *,
    name: str,
    updates: int,
    batch: int,
    rate: float,
    warm_up: int = 50,
    faster: dict[str, float] | None = None,
    seed: int = 0,
    ema: float = 0.0,
    folder: str | Path | None = None,
    about: dict | None = None,
    notes: dict | None = None,
    save_every: int | None = None,
    precision: str = "full",
    eight_bit: bool = False,
    device: str | torch.device | None = None,
) -> Iterator[Update]:
    """Train `model` in place (its `model.net` holds the parameters); yields after every update.

    Parameters that need no gradient stay as they are; ValueError where none needs one. The learning
    rate rises over the first `warm_up` updates to `rate` and falls linearly to 0; parameters whose
    name contains a key of `faster` learn that many times faster (the first key that fits). With
    `ema` > 0 the model ends with the running average of its weights. `data.batch(indices, u)` gives
    x and cond. `name` and `seed` fix the random numbers, those of dropout too; batch is the size
    over all processes together.

    With a `folder`, work is kept there: a finished model is loaded and nothing is yielded, an
    unfinished one is resumed; two runs cannot train there at once. `about` (JSON) is stored with
    the weights, and a folder that holds something else is refused with a ValueError; `notes` (JSON)
    are stored and not compared. A checkpoint is written after every `save_every` updates, or, for
    None, SAVE_MINUTES; closing the generator, Ctrl-C, SIGTERM or SIGHUP writes one first. With
    precision "mixed" the networks compute in `mixed_precision()`; schedules, z, targets and losses
    stay in float32. `eight_bit` keeps Adam's moments in 8 bits where bitsandbytes is installed and
    there is a GPU. `device` is where a single process trains; None: `default_device()`.
    A loss that is not finite raises FloatingPointError and leaves the last checkpoint untouched.
    The same call gives the same bits, interrupted or not, on a CPU; on a GPU as far as its kernels
    do.
    """
    from accelerate import PartialState
    from accelerate.utils import convert_to_fp32
    from diffusers.training_utils import EMAModel
    from torch.nn.parallel import DistributedDataParallel
    from tqdm.auto import tqdm

    device = torch.device(device or default_device())
    state = PartialState()
    kind = "no"
    if one_of("precision", precision, ("full", "mixed")) == "mixed":
        kind = mixed_precision(device)
    _ask_the_launcher(precision)
    model.to(device)
    if isinstance(model, Denoiser) and model.meaning is None:  # what it is trained on says it
        model.meaning = getattr(data, "meaning", None)
    folder = None if folder is None else Path(folder)
    faster = faster or {}
    about = {
        **(about or {}),
        "name": name,
        "updates": updates,
        "batch": batch,
        "rate": rate,
        "faster": faster,
        "seed": seed,
        "ema": ema,
        # Said where it differs, so that older cards still hold.
        **({} if warm_up == 50 else {"warm_up": warm_up}),
    }
    if _finished(model, folder, about):
        return
    if batch % state.num_processes:
        raise ValueError(
            f"A batch of {batch} cannot be shared by {state.num_processes} processes: "
            "choose a multiple of their number."
        )
    size = batch // state.num_processes
    share = slice(state.process_index * size, (state.process_index + 1) * size)

    groups: dict[float, list] = {}
    trained = {key: p for key, p in model.net.named_parameters() if p.requires_grad}
    if not trained:
        raise ValueError(
            f"Nothing in the model of {name} can be trained, for all of its parameters are frozen: "
            "call requires_grad_(True) on those that should learn."
        )
    for key, parameter in trained.items():
        factor = next((value for part, value in faster.items() if part in key), 1.0)
        groups.setdefault(factor, []).append(parameter)
    optimizer = _adam(
        [{"params": parameters, "factor": factor} for factor, parameters in groups.items()],
        rate,
        eight_bit,
    )
    average = EMAModel(trained.values(), decay=ema, foreach=True) if ema else None
    scaler = torch.amp.GradScaler("cuda", enabled=kind == "fp16")
    net, run = model.net, _Run(model.net, optimizer, average, scaler, folder, about, kind)
    asked: list[int] = []  # signals to stop
    with ExitStack() as at_the_end:
        if folder is not None and state.is_main_process:
            # What cannot be kept is told now, and not when it is lost.
            plain("What is said about a run", {"about": about, "notes": notes})
            plain("What a model says of itself", model.describe())
            at_the_end.enter_context(_only_run(folder))
            if _finished(model, folder, about):  # by another process, since we looked
                return
        run.restore()
        optimizer.zero_grad()  # whatever the caller has left there
        if state.num_processes > 1:
            ids = None if device.type == "cpu" else [state.local_process_index]
            model.net = DistributedDataParallel(net, device_ids=ids)
        if kind in HALF:  # what a network says in half precision is worked with in float32
            hook = net.register_forward_hook(lambda _, given, said: convert_to_fp32(said))
            at_the_end.callback(hook.remove)
        model.train()
        bar = tqdm(
            total=updates,
            initial=run.done,
            desc=name,
            disable=flag("CI") or flag("TQDM_DISABLE"),
            leave=False,
        )
        try:
            while run.done < updates:
                with _held_back(asked):
                    started = time.perf_counter()
                    where = (seed, name, run.done)
                    draw = Draw(where, batch, share, device)
                    x, cond = data.batch(draw.integers(len(data)), draw.uniform())
                    with (
                        seeded(seed_at(*where, state.process_index)),  # for dropout
                        # Also for the frozen teacher. A device may have no autocast at all.
                        torch.autocast(device.type, HALF[kind]) if kind in HALF else nullcontext(),
                    ):
                        value = loss(model, x, cond, draw).mean()
                    scaler.scale(value).backward()
                    # Only now does a GPU have to be waited for.
                    mean = _over_processes(value.detach(), "mean")
                    if not math.isfinite(mean):
                        raise FloatingPointError(
                            f"The loss became {mean} at update {run.done + 1} of {name}. "
                            f"{run.where_saved()} Try a lower learning rate."
                        )
                    rate_now = rate * min(1, (run.done + 1) / warm_up) * (1 - run.done / updates)
                    for group in optimizer.param_groups:
                        group["lr"] = rate_now * group["factor"]
                    scaler.unscale_(optimizer)
                    nn.utils.clip_grad_norm_(net.parameters(), 1.0)
                    scaler.step(optimizer)
                    scaler.update()
                    optimizer.zero_grad()
                    if average is not None:
                        average.step(trained.values())
                    run.seconds += time.perf_counter() - started
                    run.losses.append(mean)
                    bar.update()
                    # Where one process is asked to stop all do, after the same update.
                    stop = _over_processes(torch.tensor(len(asked), device=device), "sum") > 0
                    if stop or run.save_now(save_every):
                        run.save()
                    if stop:
                        raise KeyboardInterrupt(f"Stopped in {name}. {run.where_saved()}")
                try:
                    yield Update(run.done, mean, rate_now)
                except GeneratorExit:
                    run.save()
                    raise
        finally:
            bar.close()
            optimizer.zero_grad()
            model.net = net
            model.eval()
        if average is not None:
            average.copy_to(trained.values())
        if folder is not None and state.is_main_process:
            count = sum(parameter.numel() for parameter in trained.values())
            run.finish(model, {"trained_parameters": count, **(notes or {})})
        state.wait_for_everyone()
    if asked:  # since the last look
        raise KeyboardInterrupt(f"Stopped after {name}, which is finished.")


def distill_progressively(
    teacher: Denoiser,
    data,
    *,
    start: int,
    updates: int,
    batch: int,
    rate: float,
    late_rate: float = 1.0,
    warm_up: int = 50,
    seed: int = 0,
    sampler: str = "ddim",
    w_power: float = 1.0,
    balanced: bool = False,
    weighting: Weighting = snr_plus_one,
    drop: float = 0.0,
    pretrained: bool = True,
    folder: str | Path | None = None,
    about: dict | None = None,
    notes: dict | None = None,
    save_every: int | None = None,
    precision: str = "full",
    eight_bit: bool = False,
    device: str | torch.device | None = None,
) -> Iterator[Denoiser]:
    """Stage two, the halving loop: yields the finished students of start, start/2, ..., 1 steps.

    Each student starts as a copy of its teacher (unless not `pretrained`) and then is the next
    one's teacher. As in the released configurations of Salimans & Ho 2022: the rate falls to 0 in
    every halving, no EMA, and more updates for long steps: three times as many for 4 steps and
    fewer (theirs: twice for 2 and 1). With 2 steps and 1 the rate is `late_rate` times `rate`: the
    longer a step, the more its student has to change. Arguments as in `stage_two_loss` and `train`;
    a folder gets one sub-folder per student, steps-N. A student that is not there although a later
    one is has done its work as a teacher: it is left out. A teacher that is itself a student goes
    on as it began: with its own sampler, from half as many steps.
    """
    continue_a_halving(teacher, start, sampler)
    at = {n: None if folder is None else Path(folder) / f"steps-{n}" for n in halvings(start)}
    last = min(
        (n for n, place in at.items() if place and (place / "card.json").exists()), default=0
    )
    for steps, place in at.items():
        if last and steps > last and not (place / "card.json").exists():
            continue
        student = teacher.for_steps(steps, sampler)
        if not pretrained:
            reset(student.net, seed)
        # A single stochastic step is the teacher's own single step: that student is a copy, and
        # Adam would only magnify the rounding errors of a loss of zero.
        copied = sampler == "stochastic" and steps == 1
        for _ in train(
            student,
            stage_two_loss(
                teacher,
                steps,
                teacher.w_range,
                sampler=sampler,
                w_power=w_power,
                balanced=balanced,
                weighting=weighting,
                drop=drop,
            ),
            data,
            name=f"steps-{steps}" if sampler == "ddim" else f"{sampler}-steps-{steps}",
            updates=0 if copied else updates * (3 if steps <= 4 else 1),
            batch=batch,
            rate=rate * (late_rate if steps <= 2 else 1),
            warm_up=warm_up,
            seed=seed,
            folder=place,
            about={**(about or {}), "start": start},
            notes=notes,
            save_every=save_every,
            precision=precision,
            eight_bit=eight_bit,
            device=device,
        ):
            pass
        # The next one's teacher is a copy, for the caller may do with this one as it pleases.
        teacher = student.copy()
        yield student


def reset(net: nn.Module, seed: int = 0) -> None:
    """Random weights again, as before any training; what is frozen stays as it is."""
    with seeded(seed):
        for part in net.modules():
            own = [*part.parameters(recurse=False)]
            if hasattr(part, "reset_parameters") and any(p.requires_grad for p in own):
                part.reset_parameters()


def _adam(groups: list[dict], rate: float, eight_bit: bool) -> torch.optim.Optimizer:
    """Adam without weight decay; its moments in 8 bits where that is asked for and possible."""
    if eight_bit and torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes"):
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, lr=rate, weight_decay=0.0)
    return torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, fused=True)


LAUNCHER = {"MIXED_PRECISION": "no", "GRADIENT_ACCUMULATION_STEPS": "1", "DYNAMO_BACKEND": "no"}


def _ask_the_launcher(precision: str) -> None:
    """Refuse what `accelerate launch` was asked for and cannot be; say what is not done."""
    for sharded in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        if flag(f"ACCELERATE_USE_{sharded}"):
            raise ValueError(
                f"`accelerate launch` was asked for {sharded}, which shares the weights out, and "
                "here every process has all of them: use --multi_gpu, or answer `accelerate "
                "config` again."
            )
    asked = {key: os.environ.get(f"ACCELERATE_{key}", usual) for key, usual in LAUNCHER.items()}
    other = [f"{k.lower()} {v}" for k, v in asked.items() if v.lower() != LAUNCHER[k]]
    if other:
        warnings.warn(
            f"Of {', '.join(other)}, asked of `accelerate launch`, nothing is done: the recipe "
            f"decides, and its precision is {precision!r}.",
            stacklevel=3,
        )


def _finished(model: nn.Module, folder: Path | None, about: dict) -> bool:
    """Whether the model lies finished in the folder; then it is loaded."""
    if folder is None or not (folder / "card.json").exists():
        return False
    load_weights(model, folder, about)
    model.eval()
    return True


@contextmanager
def _only_run(folder: Path) -> Iterator[None]:
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


class _Run:
    """What a training run is made of between two updates, and its file training.safetensors."""

    def __init__(self, net, optimizer, average, scaler, folder, about, precision):
        self.net, self.optimizer, self.average, self.scaler = net, optimizer, average, scaler
        self.folder, self.about = folder, about
        self.seconds, self.losses, self.precisions = 0.0, [], [precision]
        self.saved_at = time.perf_counter()

    @property
    def done(self) -> int:
        return len(self.losses)

    @property
    def kind(self) -> str:
        return type(self.optimizer).__name__

    @property
    def file(self) -> Path:
        return self.folder / "training.safetensors"

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

        if self.folder is None or not PartialState().is_main_process:
            return
        tensors = {f"net.{key}": value for key, value in weights_of(self.net).items()}
        numbers = {}  # 8-bit Adam counts its steps in Python
        for i, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                kept = tensors if isinstance(value, Tensor) else numbers
                kept[f"optimizer.{i}.{key}"] = value
        if self.average is not None:
            tensors |= {f"ema.{i}": p for i, p in enumerate(self.average.shadow_params)}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        state = {"about": self.about, "seconds": self.seconds, "scaler": self.scaler.state_dict()}
        state |= {"optimizer": self.kind, "numbers": numbers, "precisions": self.precisions}
        write_tensors(self.file, tensors, state)
        self.saved_at = time.perf_counter()

    def restore(self) -> None:
        if self.folder is None or not self.file.exists():
            return
        tensors, state = read_tensors(self.file)
        refuse_other(self.folder, state.get("about"), self.about)
        # The finished model may be used anywhere; the moments of Adam only fit their own kind.
        refuse_other(
            self.file, {"optimizer": state.get("optimizer", "AdamW")}, {"optimizer": self.kind}
        )

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

    def finish(self, model, notes: dict) -> None:
        """The finished model takes the place of the training state."""
        from accelerate import PartialState

        on_cpu = next(self.net.parameters()).device.type == "cpu"
        threads = torch.get_num_threads() if on_cpu else 1
        stretch = max(1, math.ceil(self.done / MOST_LOSSES))
        means = [part.mean().item() for part in torch.tensor(self.losses).double().split(stretch)]
        card = notes | {
            "minutes": round(self.seconds / 60, 2),
            "cores": threads * PartialState().num_processes,  # or GPUs
            "precisions": self.precisions,  # "no" is float32; more than one where it was resumed
            "losses": [float(f"{v:.4g}") for v in means],
            "updates_per_loss": stretch,  # each is the mean over so many, the last over the rest
        }
        save_weights(model, self.folder, self.about, **card)
        load_weights(model, self.folder, self.about)  # it can be: only then is the rest let go
        self.file.unlink(missing_ok=True)


def _over_processes(value: Tensor, how: str) -> float:
    """The mean or the sum of a number over all processes."""
    from accelerate.utils import reduce

    return float(reduce(value, how))


@contextmanager
def _held_back(asked: list[int]) -> Iterator[None]:
    """Signals to stop are noted in `asked` until the update is complete; a second acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set a signal handler
        return
    stops = [getattr(signal, name, None) for name in ("SIGINT", "SIGTERM", "SIGHUP")]
    before = {number: signal.getsignal(number) for number in stops if number is not None}
    # What is ignored, as under nohup, stays so; None is a handler that Python did not set.
    before = {k: handler for k, handler in before.items() if handler not in (signal.SIG_IGN, None)}

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    def note(number, frame) -> None:
        asked.append(number)
        restore()

    try:
        for number in before:
            signal.signal(number, note)
        yield
    finally:
        restore()
