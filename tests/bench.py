"""How fast, side by side in one run: `make bench`, or `python tests/bench.py --help`.

Each comparison measures A, B, B, A, A, B, ... and reports the median of the paired ratios A / B:
what slows the machine for a while slows both. Networks have random weights, on which speed does
not depend. The table goes to the screen, the numbers to out/bench.json.
"""

import argparse
import copy
import os
import statistics
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import torch
from diffusers import DDIMScheduler
from torch.utils.benchmark import Timer
from tqdm import tqdm

from cfgdistill import (
    CosineSchedule,
    GuidedDenoiser,
    Optim,
    Run,
    ddim,
    get_recipe,
    guide,
    last,
    train,
)
from cfgdistill.core.guidance import embed_w
from cfgdistill.core.stage_two import stage_two_loss
from cfgdistill.course.stages import new_teacher
from cfgdistill.data.named import load_data
from cfgdistill.teachers.unet import TIMESTEPS, W_FEATURES
from cfgdistill.teachers.w_input import add_w_conditioning
from cfgdistill.training.checkpoints import provenance, write_json
from cfgdistill.training.environment import flag, mixed_precision
from cfgdistill.training.randomness import Draw

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
STEPS = 8  # of the samplers, and of the student whose update is measured
W_RANGE = (0.0, 4.0)
# What to reach at most; the others say what this device gains.
TARGETS = {"update_over_parts": 1.08, "sampler_over_calls": 1.03, "sampler_over_diffusers": 1.0}


class Bench:
    """The measured pairs, by the name of their ratio; each is printed as soon as it is known."""

    def __init__(self, repeats: int, seconds: float):
        self.repeats, self.seconds = repeats, seconds
        self.ratios, self.quartiles, self.medians, self.skipped = {}, {}, {}, {}
        print(f"{'':30}{'ratio':>8}  {'quartiles':18}{'target':16}medians", flush=True)

    def compare(self, name: str, repeats: float = 1, **pair: Callable[[], object]) -> None:
        """Measure the first of the two callables over the second, in interleaved pairs."""
        timers = [
            Timer("run()", globals={"run": run}, num_threads=torch.get_num_threads())
            for run in pair.values()
        ]
        # Timer warms up, and compiles where there is something to, before each measurement.
        numbers = [max(1, round(self.seconds / timer.timeit(1).mean)) for timer in timers]
        seconds: tuple[list, list] = ([], [])
        bar = range(max(2, round(repeats * self.repeats)))
        for k in tqdm(bar, name, leave=False, disable=flag("CI")):
            for side in (0, 1) if k % 2 == 0 else (1, 0):
                seconds[side].append(timers[side].timeit(numbers[side]).mean)
        ratios = [a / b for a, b in zip(*seconds, strict=True)]
        self.ratios[name] = ratio = round(statistics.median(ratios), 6)
        quartiles = statistics.quantiles(ratios, method="inclusive")[::2]
        self.quartiles[name] = low, high = [round(q, 6) for q in quartiles]
        self.medians[name] = {
            key: round(1000 * statistics.median(own), 4)
            for key, own in zip(pair, seconds, strict=True)
        }
        target = TARGETS.get(name)
        met = "" if target is None else f"<= {target:g}" + " missed" * (ratio > target)
        times = ", ".join(f"{key} {value:.4g} ms" for key, value in self.medians[name].items())
        quartiles = f"{low:.4f} .. {high:.4f}"
        print(f"{name:30}{ratio:8.4f}  {quartiles:18}{met:16}{times}", flush=True)

    def skip(self, name: str, reason: str) -> None:
        self.skipped[name] = reason
        print(f"{name:30} skipped: {reason}", flush=True)

    def results(self) -> dict:
        """The median ratios (None where skipped), and beside them how sure they are."""
        return {
            "medians_ms": self.medians,
            "quartiles": self.quartiles,
            "skipped": self.skipped,
            **self.ratios,
            **dict.fromkeys(self.skipped),
        }


def bench_training(bench: Bench, dataset: str, profile: str, suffix: str = "") -> dict:
    """An update of stage two, its parts, and what it would wait for; the sizes of all that."""
    recipe = get_recipe(dataset, profile)
    data = load_data(dataset, images=recipe.images)
    denoiser = add_w_conditioning(new_teacher(recipe, data).to(DEVICE), W_RANGE)
    student, bare = (denoiser.for_steps(STEPS) for _ in range(2))
    optimizer = torch.optim.AdamW(bare.net.parameters(), weight_decay=0.0, fused=True)
    kind = mixed_precision() if recipe.precision == "mixed" else "no"
    half = torch.float16 if kind == "fp16" else torch.bfloat16
    z, t, cond, w = inputs(recipe.batch, data)

    def parts():
        with torch.autocast(DEVICE.type, half, enabled=kind != "no"):
            with torch.no_grad():
                for _ in range(2):
                    denoiser.net(z, t, cond, w)
            value = bare.net(z, t, cond, w).square().mean()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    def load():
        draw = Draw((0, "bench", 0), recipe.batch, slice(None), DEVICE)
        data.batch(draw.integers(len(data)), draw.uniform())

    updates = train(
        student,
        stage_two_loss(denoiser, STEPS, W_RANGE, w_power=recipe.w_power, balanced=True),
        data,
        Optim(10**6, recipe.batch, recipe.rate_two),
        Run("bench", precision=recipe.precision),
    )
    with closing(updates):
        pair = {"loader": load, "update": lambda: next(updates)}
        if suffix:  # beside the chosen data set: an update of cifar10 takes a second on a CPU
            bench.compare(f"loader_wait_fraction{suffix}", repeats=0.25, **pair)
        else:
            bench.compare("update_over_parts", update=pair["update"], parts=parts)
            bench.compare("loader_wait_fraction", **pair)
    return {
        "dataset": dataset,
        "profile": profile,
        "precision": kind if kind != "no" else "fp32",
        "batch": recipe.batch,
        "image": list(data.shape),
        "examples": len(data),
        "channels": list(recipe.channels),
        "parameters": sum(p.numel() for p in student.parameters()),
    }


def bench_sampling(bench: Bench, dataset: str, profile: str) -> None:
    """The sampler's loop against its bare calls and against diffusers' loop; the guided pair."""
    recipe = get_recipe(dataset, profile)
    data = load_data(dataset, images=recipe.images)
    teacher = new_teacher(recipe, data).to(DEVICE)
    student = add_w_conditioning(teacher, W_RANGE).for_steps(STEPS)
    # A new student ignores w. Here w shall matter, or a wrong one would go unnoticed below.
    torch.nn.init.normal_(student.net.unet.time_embedding.cond_proj.weight)
    net, (z, t, cond, w) = student.net, inputs(recipe.batch, data)
    scheduler = DDIMScheduler(
        TIMESTEPS,
        trained_betas=betas(),
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        steps_offset=1,
    )
    guided, null = (
        GuidedDenoiser(teacher, data.num_classes),
        torch.full_like(cond, data.num_classes),
    )

    def ours():
        return last(ddim(student, z, STEPS, cond, w))

    @torch.no_grad()
    def calls():
        for _ in range(STEPS):
            net(z, t, cond, w)

    @torch.no_grad()
    def stock():  # as diffusers' pipelines do it: w is embedded once
        scheduler.set_timesteps(STEPS, device=DEVICE)
        given = {"encoder_hidden_states": None, "class_labels": cond}
        given["timestep_cond"], x = embed_w(w, W_FEATURES), z
        for k in scheduler.timesteps:
            x = scheduler.step(net.unet(x, k, **given).sample, k, x).prev_sample
        return x

    @torch.no_grad()
    def two_calls():
        return guide(teacher(z, t, cond).v, teacher(z, t, null).v, w[:, None, None, None])

    @torch.no_grad()
    def batched():
        return guided(z, t, cond, w).v

    for one, other in ((ours, stock), (batched, two_calls)):
        torch.testing.assert_close(one(), other(), rtol=1e-3, atol=1e-3)  # the same work
    bench.compare("sampler_over_calls", sampler=ours, calls=calls)
    bench.compare("sampler_over_diffusers", repeats=2, sampler=ours, diffusers=stock)
    bench.compare("batched_over_two_calls", batched=batched, two_calls=two_calls)


def bench_network(bench: Bench, dataset: str, profile: str) -> None:
    """One forward and backward pass in other ways; the first callable is the other way."""
    recipe = get_recipe(dataset, profile)
    data = load_data(dataset, images=recipe.images)
    net = add_w_conditioning(new_teacher(recipe, data).to(DEVICE), W_RANGE).net
    z, t, cond, w = inputs(recipe.batch, data)

    def passes(net, z=z, half=False):
        def run():
            with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
                value = net(z, t, cond, w).square().mean()
            value.backward()
            net.zero_grad()

        return run

    if mixed_precision() == "bf16":
        bench.compare("bf16_over_fp32", bf16=passes(net, half=True), fp32=passes(net))
    else:
        bench.skip("bf16_over_fp32", "this device does not compute in bf16")
    try:  # on something small: the network takes a minute
        torch.compile(lambda x: x.sin() + 1)(z)
    except torch._dynamo.exc.TorchDynamoException as error:
        bench.skip("compiled_over_eager", str(error).strip().splitlines()[0])
    else:
        compiled = passes(torch.compile(copy.deepcopy(net)))
        bench.compare("compiled_over_eager", compiled=compiled, eager=passes(net))
    other = copy.deepcopy(net).to(memory_format=torch.channels_last)
    channels_last = passes(other, z.contiguous(memory_format=torch.channels_last))
    bench.compare(
        "channels_last_over_contiguous", channels_last=channels_last, contiguous=passes(net)
    )


def inputs(batch: int, data) -> tuple:
    """z, t, cond and w of one batch."""
    draw = Draw((0, "inputs", 0), batch, slice(None), DEVICE)
    cond = draw.integers(data.num_classes)
    return draw.normal(data.shape), draw.uniform(), cond, W_RANGE[1] * draw.uniform()


def betas():
    """The cosine schedule as diffusers takes it."""
    t = torch.arange(TIMESTEPS + 1, dtype=torch.float64) / TIMESTEPS
    kept = CosineSchedule().alpha_sigma(t)[0].square()
    return (1 - kept[1:] / kept[:-1]).numpy()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="digits")
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--repeats", type=int, default=20, help="pairs per comparison, >= 2 (20)")
    parser.add_argument("--seconds", type=float, default=0.25, help="per measurement (0.25)")
    parser.add_argument("--to", default="out/bench.json", help="(out/bench.json)")
    given = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # of the training's own bar
    bench, chosen = Bench(given.repeats, given.seconds), (given.dataset, given.profile)
    sizes = {"steps": STEPS, **bench_training(bench, *chosen)}
    bench_sampling(bench, *chosen)
    bench_network(bench, *chosen)
    if given.dataset == "cifar10":
        bench.skip("loader_wait_fraction_cifar10", "it is loader_wait_fraction here")
    elif not os.environ.get("CFGDISTILL_DATA"):
        bench.skip("loader_wait_fraction_cifar10", "CFGDISTILL_DATA is not set")
    else:
        sizes["cifar10"] = bench_training(bench, "cifar10", given.profile, "_cifar10")
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else None
    cpu = getattr(torch.cpu, "get_capabilities", dict)().get("cpu_name")  # new in torch 2.9
    about = {"device": name or f"cpu {cpu or ''}".strip(), "threads": torch.get_num_threads()}
    result = {**provenance(**about), "sizes": sizes, "repeats": given.repeats, **bench.results()}
    write_json(Path(given.to), result)
    print(f"{about['device']}, {about['threads']} threads: {given.to}")


if __name__ == "__main__":
    main()
