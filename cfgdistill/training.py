"""Training as a generator: `for update in train(...)`. One loop serves every stage and every model.

The random numbers of update k depend on the seed and on k alone, never on what ran before. So a run
that was killed and resumed ends with the same bits as one that was not, and several processes
together draw what one would have drawn.
"""

import hashlib
import importlib.util
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cfgdistill.checkpoints import (
    load_weights,
    read_tensors,
    refuse_other,
    save_weights,
    write_tensors,
)
from cfgdistill.config import flag, one_of
from cfgdistill.denoiser import Denoiser
from cfgdistill.distillation import (
    Weighting,
    balance,
    diffusion_loss,
    guidance_matching_loss,
    progressive_loss,
    snr_plus_one,
)
from cfgdistill.guidance import drop_condition, sample_w
from cfgdistill.schedules import per_example

Loss = Callable[[nn.Module, Tensor, Tensor, "Draw"], Tensor]  # model, x, cond, draw -> [b]


class Update(NamedTuple):
    """What `train` yields: updates done so far, the loss of the last one, and its learning rate."""

    number: int
    loss: float
    rate: float


class Draw:
    """The random numbers of one update: drawn for the whole batch; a process keeps its share.

    So what an example draws does not depend on how many processes share the batch. The numbers are
    made on the device, which never waits for them.
    """

    def __init__(self, where: tuple, batch: int, share: slice, device: str | torch.device):
        self.batch, self.share = batch, share
        self.made = {"generator": random_at(*where, device=device), "device": device}

    def uniform(self) -> Tensor:
        """U[0, 1], one per example."""
        return torch.rand(self.batch, **self.made)[self.share]

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """N(0, I) of the given shape for each example."""
        return torch.randn(self.batch, *shape, **self.made)[self.share]

    def integers(self, high: int) -> Tensor:
        """Whole numbers 0 .. high - 1, one per example."""
        return torch.randint(high, (self.batch,), **self.made)[self.share]


def random_at(*where, device: str | torch.device = "cpu") -> torch.Generator:
    """A generator whose numbers depend on `where` alone, such as (seed, "teacher", 812)."""
    digest = hashlib.sha256(repr(where).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little", signed=True))


# ---- what the three stages minimise ---------------------------------------------------------

# How far one call of each sampler leads towards the data, in units of 1/N.
JUMPS = {"ddim": 1, "stochastic": 2, "ddim_encode": -1}


def teacher_loss(
    null: int | Tensor, drop: float, weighting: Weighting = snr_plus_one, t_power: float = 1.0
) -> Loss:
    """The diffusion loss, with the condition replaced by null with probability `drop`.

    t = u^t_power with u ~ U[0, 1]: at 1 uniform, at 1/2 with density 2 t. The condition decides
    at the noisy end, so a smaller power makes the network listen sooner, at some cost in detail.
    """

    def loss(denoiser, x, cond, draw):
        cond, t = drop_condition(cond, null, drop, draw.uniform()), draw.uniform() ** t_power
        eps = draw.normal(x.shape[1:])
        return diffusion_loss(denoiser, x, cond, t, eps=eps, weighting=weighting)

    return loss


def stage_one_loss(
    teacher,
    w_range: tuple[float, float],
    *,
    w_power: float = 1.0,
    balanced: bool = False,
    weighting: Weighting = snr_plus_one,
) -> Loss:
    """Guidance matching at random w (see `sample_w`) and t ~ U[0, 1]; `balanced`: see `balance`."""

    def loss(student, x, cond, draw):
        w, t = sample_w(draw.uniform(), w_range, w_power), draw.uniform()
        eps = draw.normal(x.shape[1:])
        losses = guidance_matching_loss(
            student, teacher, x, cond, w, t, eps=eps, weighting=weighting
        )
        return balance(w) * losses if balanced else losses

    return loss


def stage_two_loss(
    teacher,
    steps: int,
    w_range: tuple[float, float] | None,
    *,
    sampler: str = "ddim",
    w_power: float = 1.0,
    balanced: bool = False,
    weighting: Weighting = snr_plus_one,
    drop: float = 0.0,
) -> Loss:
    """Progressive distillation to N = `steps` steps, from the times at which its sampler calls.

    One student step does two of its teacher's, which take 2N. From t = i/N, i uniform in 1 .. N,
    they lead down by 1/N for "ddim", and by 2/N for "stochastic", whose jumps are of double length
    (from 1/N to 0 it does one). For "ddim_encode" they lead up by 1/N from 0, ..., 1 - 1/N.
    Without a w range the networks take no w: plain progressive distillation. `drop` is the
    probability of the null label, for a student that is to be both halves of a guided pair.
    """
    jump = JUMPS[one_of("sampler", sampler, JUMPS)]

    def loss(student, x, cond, draw):
        w = sample_w(draw.uniform(), w_range, w_power) if w_range is not None else None
        if drop:
            cond = drop_condition(cond, teacher.num_classes, drop, draw.uniform())
        i = per_example(draw.integers(steps), x) + (jump > 0)
        t, mid, s = ((i - back).clamp_min(0) / steps for back in (0, jump / 2, jump))
        eps = draw.normal(x.shape[1:])
        losses = progressive_loss(
            student, teacher, x, cond, w, t, s, mid=mid, eps=eps, weighting=weighting
        )
        return balance(w) * losses if balanced else losses

    return loss


# ---- the loop -------------------------------------------------------------------------------


def train(
    model: nn.Module,
    loss: Loss,
    data,
    *,
    name: str,
    updates: int,
    batch: int,
    rate: float,
    faster: dict[str, float] | None = None,
    seed: int = 0,
    ema: float = 0.0,
    folder: str | Path | None = None,
    about: dict | None = None,
    notes: dict | None = None,
    save_every: int = 200,
    precision: str = "full",
    eight_bit: bool = False,
    accelerator=None,
) -> Iterator[Update]:
    """Train `model` in place (its `model.net` holds the parameters); yields after every update.

    Parameters that need no gradient stay as they are.
    The learning rate rises over the first 50 updates to `rate` and falls linearly to 0; parameters
    whose name contains a key of `faster` learn that many times faster. With `ema`
    > 0 the model ends with the running average of its weights. `data.batch(indices, u)` gives x and
    cond. `name` and `seed` fix the random numbers; batch is the size over all processes together.

    With a `folder`, work is kept there: a finished model is loaded and nothing is yielded, an
    unfinished one is resumed. `about` (JSON) is stored with the weights, and a folder that holds
    something else is refused with a ValueError; `notes` (JSON) are stored and not compared. Closing
    the generator, or Ctrl-C, saves first. With precision "mixed" the networks compute in
    `mixed_precision()`; schedules, z, targets and losses stay in float32. `eight_bit` keeps Adam's
    moments in 8 bits where bitsandbytes is installed and there is a GPU.
    A loss that is not finite raises FloatingPointError and leaves the last checkpoint untouched.
    """
    from diffusers.training_utils import EMAModel
    from tqdm.auto import tqdm

    accelerator = accelerator or _accelerator(precision)
    model.to(accelerator.device)
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
    }
    if folder is not None and (folder / "card.json").exists():
        load_weights(model, folder, about)
        model.eval()
        return
    if batch % accelerator.num_processes:
        raise ValueError(
            f"A batch of {batch} cannot be shared by {accelerator.num_processes} processes: "
            "choose a multiple of their number."
        )
    size = batch // accelerator.num_processes
    share = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)

    groups: dict[float, list] = {}
    trained = {key: p for key, p in model.net.named_parameters() if p.requires_grad}
    for key, parameter in trained.items():
        factor = math.prod(value for part, value in faster.items() if part in key)
        groups.setdefault(factor, []).append(parameter)
    optimizer = _adam(
        [{"params": parameters, "factor": factor} for factor, parameters in groups.items()],
        rate,
        eight_bit,
    )
    average = EMAModel(trained.values(), decay=ema, foreach=True) if ema else None
    run = _Run(model.net, optimizer, average, accelerator, folder, about)
    run.restore()
    model.net, optimizer = accelerator.prepare(model.net, optimizer)
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
            with _interrupt_after_update() as interrupted:
                started = time.perf_counter()
                draw = Draw((seed, name, run.done), batch, share, accelerator.device)
                x, cond = data.batch(draw.integers(len(data)), draw.uniform())
                with accelerator.autocast():  # also for the frozen teacher
                    value = loss(model, x, cond, draw).mean()
                mean = accelerator.reduce(value.detach(), "mean").item()
                if not math.isfinite(mean):
                    raise FloatingPointError(
                        f"The loss became {mean} at update {run.done + 1} of {name}. "
                        f"{run.where_saved()} Try a lower learning rate."
                    )
                rate_now = rate * min(1, (run.done + 1) / 50) * (1 - run.done / updates)
                for group in optimizer.param_groups:
                    group["lr"] = rate_now * group["factor"]
                accelerator.backward(value)
                accelerator.clip_grad_norm_(model.net.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                if average is not None:
                    average.step(trained.values())
                run.seconds += time.perf_counter() - started
                run.losses.append(mean)
                bar.update()
                stop = _any(interrupted(), accelerator)
                if stop or run.done % save_every == 0:
                    run.save()
                if stop or accelerator.num_processes == 1 and interrupted():
                    raise KeyboardInterrupt(f"Stopped in {name}. {run.where_saved()}")
            try:
                yield Update(run.done, mean, rate_now)
            except GeneratorExit:
                run.save()
                raise
    finally:
        bar.close()
        model.net = accelerator.unwrap_model(model.net, keep_fp32_wrapper=False)
        model.eval()
    if average is not None:
        average.copy_to(trained.values())
    if folder is not None and accelerator.is_main_process:
        run.finish(model, notes or {})
    accelerator.wait_for_everyone()


def halvings(start: int) -> list[int]:
    """[start, start/2, ..., 1]; start must be a power of two."""
    if start < 1 or start & (start - 1):
        low = 2 ** max(start, 1).bit_length() // 2
        raise ValueError(
            f"steps must be a power of two, not {start}: each halving takes two steps at once. "
            f"Try {low} or {2 * low}."
        )
    return [start >> k for k in range(start.bit_length())]


def distill_progressively(
    teacher: Denoiser,
    data,
    *,
    start: int,
    updates: int,
    batch: int,
    rate: float,
    late_rate: float = 1.0,
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
    save_every: int = 200,
    precision: str = "full",
    eight_bit: bool = False,
    accelerator=None,
) -> Iterator[Denoiser]:
    """Stage two, the halving loop: yields the finished students of start, start/2, ..., 1 steps.

    Each student starts as a copy of its teacher (unless not `pretrained`) and then is the next
    one's teacher. As in the released configurations of Salimans & Ho 2022: the rate falls to 0 in
    every halving, no EMA, and more updates for long steps: three times as many for 4 steps and
    fewer (theirs: twice for 2 and 1). With 2 steps and 1 the rate is `late_rate` times `rate`: the
    longer a step, the more its student has to change. Arguments as in `stage_two_loss` and `train`;
    a folder gets one sub-folder per student, steps-N. A student that is not there although a later
    one is has done its work as a teacher: it is left out.
    """
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
            seed=seed,
            folder=place,
            about={**(about or {}), "start": start},
            notes=notes,
            save_every=save_every,
            precision=precision,
            eight_bit=eight_bit,
            accelerator=accelerator,
        ):
            pass
        yield student
        teacher = student


def reset(net: nn.Module, seed: int = 0) -> None:
    """Random weights again, as before any training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for part in net.modules():
            if hasattr(part, "reset_parameters"):
                part.reset_parameters()


def mixed_precision() -> str:
    """bf16 where GPU or CPU compute in it, fp16 with a loss scaler on older GPUs, or no."""
    if torch.cuda.is_available():
        # torch.cuda.is_bf16_supported() also says yes to GPUs that only emulate it, slowly.
        return "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "fp16"
    able = getattr(torch.cpu, "get_capabilities", dict)()  # new in torch 2.9
    return "bf16" if able.get("avx512_bf16") or able.get("amx_bf16") else "no"


def _adam(groups: list[dict], rate: float, eight_bit: bool) -> torch.optim.Optimizer:
    """Adam without weight decay; its moments in 8 bits where that is asked for and possible."""
    if eight_bit and torch.cuda.is_available() and importlib.util.find_spec("bitsandbytes"):
        from bitsandbytes.optim import AdamW8bit

        return AdamW8bit(groups, lr=rate, weight_decay=0.0)
    return torch.optim.AdamW(groups, lr=rate, weight_decay=0.0, fused=True)


def _accelerator(precision: str):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    one_of("precision", precision, ("full", "mixed"))
    AcceleratorState._reset_state()  # else the precision of the first run would be that of all
    return Accelerator(mixed_precision=mixed_precision() if precision == "mixed" else "no")


class _Run:
    """What a training run is made of between two updates, and its file training.safetensors."""

    def __init__(self, net, optimizer, average, accelerator, folder, about):
        self.net, self.optimizer, self.average = net, optimizer, average
        self.accelerator, self.folder, self.about = accelerator, folder, about
        self.seconds, self.losses = 0.0, []

    @property
    def done(self) -> int:
        return len(self.losses)

    @property
    def kind(self) -> str:
        return type(getattr(self.optimizer, "optimizer", self.optimizer)).__name__

    @property
    def file(self) -> Path:
        return self.folder / "training.safetensors"

    def where_saved(self) -> str:
        if self.folder is None or not self.file.exists():
            return "Nothing was saved."
        return f"The last checkpoint is in {self.folder}; the same call again resumes from it."

    def save(self) -> None:
        if self.folder is None or not self.accelerator.is_main_process:
            return
        tensors = {f"net.{key}": value for key, value in self.net.state_dict().items()}
        numbers = {}  # 8-bit Adam counts its steps in Python
        for i, state in self.optimizer.state_dict()["state"].items():
            for key, value in state.items():
                kept = tensors if isinstance(value, Tensor) else numbers
                kept[f"optimizer.{i}.{key}"] = value
        if self.average is not None:
            tensors |= {f"ema.{i}": p for i, p in enumerate(self.average.shadow_params)}
        tensors["losses"] = torch.tensor(self.losses, dtype=torch.float64)
        scaler = self.accelerator.scaler
        scaler_state = {} if scaler is None else scaler.state_dict()
        state = {"about": self.about, "seconds": self.seconds, "scaler": scaler_state}
        state |= {"optimizer": self.kind, "numbers": numbers}
        write_tensors(self.file, tensors, state)

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

        self.net.load_state_dict(part("net."))
        optimizer_state: dict[int, dict] = {}
        numbers = {key.removeprefix("optimizer."): v for key, v in state.get("numbers", {}).items()}
        for key, value in (part("optimizer.") | numbers).items():
            i, entry = key.split(".", 1)
            optimizer_state.setdefault(int(i), {})[entry] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": optimizer_state, "param_groups": groups})
        self.losses, self.seconds = tensors["losses"].tolist(), state["seconds"]
        if self.average is not None:
            kept = part("ema.")
            for i, p in enumerate(self.average.shadow_params):
                p.copy_(kept[str(i)])
            self.average.optimization_step = self.done
        if state["scaler"] and self.accelerator.scaler is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])

    def finish(self, model, notes: dict) -> None:
        """The finished model takes the place of the training state."""
        threads = torch.get_num_threads() if self.accelerator.device.type == "cpu" else 1
        card = notes | {
            "minutes": round(self.seconds / 60, 2),
            "cores": threads * self.accelerator.num_processes,  # or GPUs
            "losses": [float(f"{v:.4g}") for v in self.losses],
        }
        save_weights(model, self.folder, self.about, **card)
        self.file.unlink(missing_ok=True)


def _any(flag: bool, accelerator) -> bool:
    """Whether it is so in any process: then all of them act on it, after the same update."""
    if accelerator.num_processes == 1:
        return flag
    return accelerator.reduce(torch.tensor(float(flag), device=accelerator.device)).item() > 0


@contextmanager
def _interrupt_after_update() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back until the update is complete; a second Ctrl-C acts at once."""
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False  # only the main thread may set a signal handler
        return
    requested = False

    def request(number, frame):
        nonlocal requested
        requested = True
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, request)
    try:
        yield lambda: requested
    finally:
        signal.signal(signal.SIGINT, before)
