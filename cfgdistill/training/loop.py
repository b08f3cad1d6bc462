"""Training as a generator: `for update in train(...)`. One loop serves every stage and every model.

The random numbers of update k depend on the seed and on k alone, never on what ran before. So a run
that was killed and resumed ends with the same bits as one that was not, and several processes
together draw what one would have drawn.
"""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.losses import Loss
from cfgdistill.core.names import one_of
from cfgdistill.training.checkpoints import plain
from cfgdistill.training.environment import (
    HALF,
    ask_the_launcher,
    default_device,
    flag,
    mixed_precision,
)
from cfgdistill.training.optim import Optim
from cfgdistill.training.randomness import Draw, seed_at, seeded
from cfgdistill.training.sharding import gather, is_asked, shard
from cfgdistill.training.state import Run, State, finished, only_run


class Update(NamedTuple):
    """What `train` yields: updates done so far, the loss of the last one, and its learning rate."""

    number: int
    loss: float
    rate: float


def train(
    model: nn.Module, loss: Loss, data, optim: Optim, run: Run | None = None
) -> Iterator[Update]:
    """Train `model` in place (its `model.net` holds the parameters); yields after every update.

    Parameters that need no gradient stay as they are; ValueError where none needs one.
    `data.batch(indices, u)` gives x and cond. A loss that is not finite raises FloatingPointError
    and leaves the last checkpoint untouched. The same call gives the same bits, interrupted or not,
    on a CPU; on a GPU as far as its kernels do.
    """
    from accelerate import PartialState
    from accelerate.utils import convert_to_fp32
    from torch.nn.parallel import DistributedDataParallel
    from tqdm.auto import tqdm

    run = run or Run()
    ask_the_launcher(run.precision)
    device, processes = torch.device(run.device or default_device()), PartialState()
    kind = "no"
    if one_of("precision", run.precision, ("full", "mixed")) == "mixed":
        kind = mixed_precision(device)
    if not is_asked():
        model.to(device)
    if isinstance(model, Denoiser) and model.meaning is None:  # what it is trained on says it
        model.meaning = getattr(data, "meaning", None)
    folder = None if run.folder is None else Path(run.folder)
    about = {**run.about, "name": run.name, "seed": run.seed, **optim.about()}
    if finished(model, folder, about):
        return
    if optim.batch % processes.num_processes:
        raise ValueError(
            f"A batch of {optim.batch} cannot be shared by {processes.num_processes} processes: "
            "choose a multiple of their number."
        )
    size = optim.batch // processes.num_processes
    share = slice(processes.process_index * size, (processes.process_index + 1) * size)
    whole = model.net
    net = shard(whole, device) if is_asked() else whole
    state = State(net, optim, folder, about, kind)
    asked: list[int] = []  # signals to stop
    with ExitStack() as at_the_end:
        if folder is not None and processes.is_main_process:
            # What cannot be kept is told now, and not when it is lost.
            plain("What is said about a run", {"about": about, "notes": run.notes})
            plain("What a model says of itself", model.describe())
            at_the_end.enter_context(only_run(folder))
            if finished(model, folder, about):  # by another process, since we looked
                return
        state.restore()
        state.optimizer.zero_grad()  # whatever the caller has left there
        if state.shared:
            model.net = net
        elif processes.num_processes > 1:
            ids = None if device.type == "cpu" else [processes.local_process_index]
            model.net = DistributedDataParallel(net, device_ids=ids)
        if kind in HALF:  # what a network says in half precision is worked with in float32
            hook = net.register_forward_hook(lambda _, given, said: convert_to_fp32(said))
            at_the_end.callback(hook.remove)
        model.train()
        bar = tqdm(
            total=optim.updates,
            initial=state.done,
            desc=run.name,
            disable=flag("CI") or flag("TQDM_DISABLE"),
            leave=False,
        )
        try:
            while state.done < optim.updates:
                with _held_back(asked):
                    started = time.perf_counter()
                    where = (run.seed, run.name, state.done)
                    draw = Draw(where, optim.batch, share, device)
                    x, cond = data.batch(draw.integers(len(data)), draw.uniform())
                    with (
                        seeded(seed_at(*where, processes.process_index)),  # for dropout
                        # Also for the frozen teacher. A device may have no autocast at all.
                        torch.autocast(device.type, HALF[kind]) if kind in HALF else nullcontext(),
                    ):
                        value = loss(model, x, cond, draw).mean()
                    state.scaler.scale(value).backward()
                    # Only now does a GPU have to be waited for.
                    mean = float(_over_processes(value.detach(), "mean"))
                    if not math.isfinite(mean):
                        raise FloatingPointError(
                            f"The loss became {mean} at update {state.done + 1} of {run.name}. "
                            f"{state.where_saved()} Try a lower learning rate."
                        )
                    rate = optim.rate_at(state.done)
                    state.step(rate)
                    state.seconds += time.perf_counter() - started
                    state.losses.append(mean)
                    bar.update()
                    # Where one process is asked to stop all do, after the same update.
                    wishes = torch.tensor(
                        [len(asked), state.save_now(run.save_every)], device=device
                    )
                    stop, save = _over_processes(wishes, "sum").tolist()
                    if stop or save:
                        state.save()
                    if stop:
                        raise KeyboardInterrupt(f"Stopped in {run.name}. {state.where_saved()}")
                try:
                    yield Update(state.done, mean, rate)
                except GeneratorExit:
                    state.save()
                    raise
        finally:
            bar.close()
            state.optimizer.zero_grad()
            model.net = whole
            model.eval()
        if state.average is not None:
            state.average.copy_to(state.trained.values())
        if state.shared:
            gather(net, whole)
        if folder is not None and processes.is_main_process:
            state.finish(model, run.notes)
        processes.wait_for_everyone()
    if asked:  # since the last look
        raise KeyboardInterrupt(f"Stopped after {run.name}, which is finished.")


def _over_processes(value: Tensor, how: str) -> Tensor:
    """The mean or the sum of numbers over all processes."""
    from accelerate.utils import reduce

    return reduce(value, how)


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
