# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · The stochastic sampler
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/05_stochastic_sampler.ipynb)
#
# The students of notebook 04 are deterministic: the noise at the start decides everything. The paper has a second
# sampler, which jumps **twice as far** as it should and then adds noise to come **half the way back**. It needs
# students of its own, and here they are trained.
#
# **You will**
#
# - write the sampler in a few lines and check that its noise keeps every marginal,
# - find out at which times, and for which jumps, its students are asked, and derive their targets,
# - follow the whole chain of halvings, 64 steps to 1, on a Gaussian where every number is known,
# - distil the students, and compare both kinds in pictures and in numbers. One of them is not always better.
#
# **You need** notebook 04 (what you skipped is trained here first).
#
# | profile | hardware | time, if all is trained here |
# | --- | --- | --- |
# | `smoke` | any CPU | under a minute |
# | `laptop` | two CPU cores | five minutes on digits, after stage one |
# | `colab` | one free T4 | `dataset = "cifar10"`: about a third of a session |
# | `paper` | a large GPU | the published budget |

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("cfgdistill") is None:  # on Colab, say
    source = "cfgdistill @ git+https://github.com/cfgdistill/cfgdistill"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

import os
from dataclasses import replace

import torch

from cfgdistill import (
    CosineSchedule,
    GuidedDenoiser,
    ancestral,
    ddim,
    ddim_step,
    get_recipe,
    last,
    progressive_target,
    stochastic,
)
from cfgdistill.checkpoints import provenance
from cfgdistill.data import load_data
from cfgdistill.denoiser import Denoiser
from cfgdistill.metrics import generate
from cfgdistill.plotting import COLORS, figure, sample_grid, show
from cfgdistill.pretrained import use_pretrained
from cfgdistill.sampling import renoise
from cfgdistill.stages import (
    evaluate_rows,
    make_judge,
    train_stage_two,
    train_teacher,
)
from cfgdistill.toy import GaussianMixture, pinwheel

# %% tags=["parameters"]
dataset = os.environ.get("CFGDISTILL_DATASET", "digits")
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
retrain = bool(os.environ.get("CFGDISTILL_RETRAIN"))  # or use the models of the package
seed = 0

# %% [markdown]
# ## Jump too far, then come half the way back
#
# A deterministic sampler carries each of its errors to the end: nothing that happens later undoes it. Noise does. Who
# adds noise forgets a part of where he was, and of how wrong it was.
#
# With $N$ steps, from $t = i/N$: a DDIM step of **double** length down to $k = t - 2/N$, and then fresh
# noise up to $s = t - 1/N$,
#
# $$ z_s = \frac{\alpha_s}{\alpha_k} z_k + \sigma_{s|k}\, \epsilon', \qquad
# \sigma_{s|k}^2 = \sigma_s^2 - \Big(\frac{\alpha_s}{\alpha_k}\Big)^2 \sigma_k^2 . $$
#
# The last jump, from $t = 1/N$, has single length and no noise. Each step is still one evaluation.


# %%
def stochastic_from_scratch(denoiser, z, N, noise):
    for i in range(N, 0, -1):
        t, s, k = (torch.full((len(z),), max(i - back, 0) / N).to(z) for back in (0, 1, 2))
        z = ddim_step(denoiser(z, t), k, denoiser.schedule)
        if i > 1:
            (alpha_k, sigma_k), (alpha_s, sigma_s) = map(denoiser.schedule.alpha_sigma, (k, s))
            ratio = (alpha_s / alpha_k)[:, None]
            added = (sigma_s[:, None] ** 2 - ratio**2 * sigma_k[:, None] ** 2).clamp_min(0).sqrt()
            z = ratio * z + added * noise[i - 2]
    return z


exact = pinwheel().denoiser(CosineSchedule())
null = torch.full((6,), 3)  # E[x | z] over all classes


class Unconditional:
    schedule = exact.schedule

    def __call__(self, z, t):
        return exact(z, t, null)


z = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).double()
generator = torch.Generator().manual_seed(2)
noise = [torch.randn(6, 2, generator=generator, dtype=torch.float64) for _ in range(3)][::-1]
ours = last(stochastic(exact, z, 4, null, generator=torch.Generator().manual_seed(2)))
torch.testing.assert_close(stochastic_from_scratch(Unconditional(), z, 4, noise), ours)

# %% [markdown]
# Why this variance and no other? Suppose $z_k = \alpha_k x + \sigma_k \epsilon$ is what noising an image $x$ gives. Then $z_s$
# should be $\alpha_s x$ plus noise of standard deviation $\sigma_s$. The factor $\alpha_s/\alpha_k$ puts the mean right, and the noise that is
# missing then is just $\sigma_{s|k}$. So a model that sees $z_s$ cannot tell that it has been there before.

# %%
# NBVAL_CHECK_OUTPUT
one, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
levels = CosineSchedule().alpha_sigma
worst = 0.0
for i in range(1, 64):
    for j in range(i):
        k, s = (torch.tensor([n / 64]).double() for n in (j, i))
        kept, added = (
            renoise(*pair, k, s, CosineSchedule()) for pair in ((one, zero), (zero, one))
        )
        (alpha_k, sigma_k), (alpha_s, sigma_s) = levels(k), levels(s)
        worst = max(worst, (kept * alpha_k - alpha_s).abs().item())
        worst = max(worst, (kept**2 * sigma_k**2 + added**2 - sigma_s**2).abs().item())
print(f"mean and variance right at all pairs of 64 times, to 1e-12: {worst < 1e-12}")
same = torch.equal(last(stochastic(exact, z, 1, null)), last(ddim(exact, z, 1, null)))
print(f"with one step it is the deterministic sampler: {same}")

# %% [markdown]
# **Which way does a sample take through time?** Down is towards the image.

# %%
fig, axes = figure(1, 3, width=9, height=2.8, sharey=True)
for axis, N in zip(axes, (8, 4, 2), strict=True):
    axis.plot(range(N + 1), [i / N for i in range(N, -1, -1)], color=COLORS[0], label="DDIM")
    zigzag = [(0, 1.0)]
    for step, i in enumerate(range(N, 0, -1)):
        zigzag += [(step + (0.8 if i > 1 else 1), max(i - 2, 0) / N), (step + 1, (i - 1) / N)]
    axis.plot(*zip(*zigzag, strict=True), color=COLORS[1], label="stochastic")
    axis.set(xlabel="evaluations", title=f"N = {N}", xticks=range(0, N + 1, max(1, N // 4)))
axes[0].set_ylabel("time t")
axes[0].legend(frameon=False)
show(
    fig,
    alt="Time against evaluations for 8, 4 and 2 steps. DDIM falls in a straight line from 1 to 0. The "
    "stochastic sampler zigzags around it: a jump of double length down, then half of it up again.",
)

# %% [markdown]
# With $N = 2$ the way is $1 \to 0 \to \tfrac12 \to 0$: a whole image, made in one jump, is noised again to the middle
# and repaired. **What does it do to a trajectory?** One starting noise in the plane of notebook 00, and several runs:

# %%
start = torch.tensor([[0.9, -0.4]]).double()
fig, axis = figure(width=4.6, height=4.2)
points, _ = pinwheel().sample(800, torch.Generator().manual_seed(0))
axis.scatter(*points.T, s=2, color="0.8")
path = torch.cat([start, *ddim(exact, start, 16, null[:1])])
axis.plot(*path.T, color=COLORS[0], marker="o", markersize=3, label="DDIM")
for run in range(3):
    generator = torch.Generator().manual_seed(run)
    path = torch.cat([start, *stochastic(exact, start, 16, null[:1], generator=generator)])
    axis.plot(*path.T, color=COLORS[run + 1], linewidth=0.9, label=f"stochastic, run {run + 1}")
    axis.plot(*path[-1], color=COLORS[run + 1], marker="s")
axis.plot(*start[0], color="black", marker="*", markersize=10)
axis.set_aspect("equal")
axis.legend(frameon=False, fontsize=8)
show(
    fig,
    alt="Paths from one starting point in the plane: DDIM's is smooth; those of three stochastic runs wander and end at "
    "different places of the data.",
)

# %% [markdown]
# ## What the students must learn
#
# A student is asked at $t = i/N$, always for a jump of $2/N$, and only from $t = 1/N$ for a single one. Its teacher takes
# $2N$ steps, so the jumps it was trained for are $2/2N = 1/N$ long. Two of them are the student's jump:
#
# - **regular**, $i \ge 2$: two teacher jumps, $t \to t - 1/N \to t - 2/N$;
# - **edge**, $i = 1$: *one* teacher jump, $1/N \to 0$. The teacher knows it, since $1/N$ is $2/2N$, its regular jump. The target is its own prediction.
#
# No noise is needed in the training: what is distilled is the jump. The target is the one of notebook 04; only the
# times differ: `progressive_target(teacher, z, t, s, mid=...)`, with `mid` = 0 at the edge.
#
# **Could we save the training, and use a deterministic student of $N/2$ steps?** It also jumps by $2/N$.

# %%
# NBVAL_CHECK_OUTPUT
N = 4
asked = [f"{i}/{N}" for i in range(N, 0, -1)]
trained = [f"{2 * i}/{N}" for i in range(N // 2, 0, -1)]
print(f"stochastic, {N} steps, asks at:         ", *asked)
print(f"deterministic, {N // 2} steps, was trained at:", *trained)
print("never seen:                            ", *(t for t in asked if t not in trained))

# %% [markdown]
# At every second time it would be asked something for the first time in its life.
#
# ## The whole chain, where every number is known
#
# Take Gaussian data with variance 0.4 in one dimension. Everything is linear: a network is a list of gains, $v = g_t\, z$, one for each
# time, and a halving computes the next list without any error of training. **What is left of the variance 0.4 after six halvings, from 64
# steps to 1? And what does the exact denoiser reach if it is simply asked less often?**


# %%
class Gains(torch.nn.Module):
    def __init__(self, gains):
        super().__init__()
        self.gains = gains

    def forward(self, z, t, cond, w):
        return torch.stack([self.gains[u] * x for u, x in zip(t.tolist(), z, strict=True)])


def halve(teacher, N):
    gains = {0.0: 0.0}  # where nothing is left to do
    for i in range(1, N + 1):
        t, mid, s = (max(i - back, 0) / N for back in (0, 1, 2))
        gains[t] = progressive_target(teacher, one, t, s, mid=mid).item()
    return Denoiser(Gains(gains), CosineSchedule())


def variance(denoiser, N):
    value = 1.0
    for i in range(N, 0, -1):
        k, s = (torch.tensor([max(i - back, 0) / N]).double() for back in (2, 1))
        value *= ddim_step(denoiser(one, i / N), k, denoiser.schedule).item() ** 2
        if i > 1:
            kept, added = (
                renoise(*p, k, s, denoiser.schedule).item() for p in ((one, zero), (zero, one))
            )
            value = kept**2 * value + added**2
    return value


gaussian = GaussianMixture(torch.zeros(1, 1), torch.zeros(1).long(), std=0.4**0.5)
model = gaussian.denoiser(CosineSchedule())
chain = {}
for N in (64, 32, 16, 8, 4, 2, 1):
    model = halve(model, N)
    chain[N] = variance(model, N)
often = {N: variance(gaussian.denoiser(CosineSchedule()), N) for N in chain}
fig, axis = figure(width=5.5, height=2.9)
axis.axhline(0.4, color="black", linewidth=0.8, label="data")
axis.plot(
    chain.keys(), chain.values(), marker="^", color=COLORS[0], label="distilled, 64 down to N"
)
axis.plot(
    often.keys(), often.values(), marker="o", color=COLORS[1], label="exact denoiser, N steps"
)
axis.set(xscale="log", xlabel="steps N", ylabel="variance of the samples", ylim=(0, None))
axis.set_xticks(list(chain), list(chain))
axis.minorticks_off()
axis.legend(frameon=False)
show(
    fig,
    alt="Variance of the samples against the number of steps. The distilled chain stays just below 0.4 down to one step; "
    "the exact denoiser loses more and more variance with fewer steps, and has none left at one step.",
)

# %%
# NBVAL_CHECK_OUTPUT
print("variance of the samples, steps:", *(f"{value:.3f} ({N})" for N, value in chain.items()))

# %% [markdown]
# The last student makes samples of variance 0.38 in a single step, and the exact denoiser none at all: its one answer is the mean. What is
# missing to 0.4 is lost in the **first** halving, to the steps of its many-step teacher; the others pass on what they were given.
# And the last two numbers are equal: at $N = 1$ the only interval is an edge. So the halving from 2 to 1 is a copy, and is not trained.
#
# ## Students
#
# The same call as in notebook 04, with one more argument.

# %%
recipe = get_recipe(dataset, profile, seed=seed)
if not retrain:
    recipe = use_pretrained(recipe, out)
print(recipe)
data = load_data(dataset, "train", recipe.images)
teacher = GuidedDenoiser(train_teacher(recipe, data, out), null=data.num_classes)
students = {s.steps: s for s in train_stage_two(recipe, data, out)}
noisy = {s.steps: s for s in train_stage_two(recipe, data, out, sampler="stochastic")}

# %% [markdown]
# A student's folder says which sampler it is for. The wrong one is refused before any work is done:

# %%
# NBVAL_CHECK_OUTPUT
try:
    stochastic(students[4], torch.randn(1, *data.shape), 4, torch.tensor([3]), 1.0)
except ValueError as error:
    print(error)

# %% [markdown]
# **The same starting noise through both.** Each place in a grid is one noise and one label.

# %%
shown = [n for n in (8, 4, 2) if n in students and n in noisy]
wanted = torch.arange(20) % 10
weights = (0.0, 1.0, 3.0)


def column(w):
    how = dict(shape=data.shape, labels=wanted, w=w, seed=seed)
    lines = {"teacher, DDIM, 256 NFE": generate(teacher, steps=128, **how)}
    for n in shown:
        lines[f"deterministic, {n} NFE"] = generate(students[n], steps=n, **how)
        lines[f"stochastic, {n} NFE"] = generate(noisy[n], steps=n, sampler=stochastic, **how)
    return lines


show(
    sample_grid({f"w = {w:g}": column(w) for w in weights}, 10),
    alt="Grids of samples for w = 0, 1 and 3: the deterministic students repeat the teacher's sample of the same "
    "noise, the stochastic ones draw other images of the same classes, as clear.",
)

# %% [markdown]
# The deterministic students repeat their teacher's images. The stochastic ones draw their own: same class, other hand.
# **How much of an image does the first noise still decide?** One starting noise per column; each row adds other noise.

# %%
device = next(teacher.parameters()).device
first = torch.randn(10, *data.shape, generator=torch.Generator().manual_seed(seed)).to(device)
draws = {}
for n in dict.fromkeys((shown[0], shown[-1])):
    for w in (0.0, 3.0):
        images = torch.stack(
            [
                last(
                    stochastic(
                        noisy[n],
                        first,
                        n,
                        wanted[:10].to(device),
                        w,
                        generator=torch.Generator().manual_seed(draw),
                    )
                )
                for draw in range(8)
            ]
        ).cpu()
        draws[f"{n} steps, w = {w:g}"] = {"": images[:4].flatten(0, 1)}
        spread = images.std(0).square().mean().sqrt()
        print(f"{n} steps, w = {w:g}: standard deviation of a pixel over 8 draws {spread:.2f}")
images, own = data.all()
classes = [images[own == k].var(0).mean() for k in range(data.num_classes)]
print(f"real images of one class: {torch.stack(classes).mean().sqrt():.2f}")
show(
    sample_grid(draws, 10),
    alt="Four rows of images for each of 8 and 2 steps and w = 0 and 3. A column starts from one noise; with w = 0 its four "
    "images differ in shape, with w = 3 they look more alike.",
)

# %% [markdown]
# With 8 steps hardly anything is decided by the first noise: between draws a pixel varies by 0.35, and between real images of a class by
# 0.42. With 2 steps noise is added only once, half-way up, and more is kept: 0.27. Guidance narrows both.
#
# ## Numbers
#
# **Which sampler is better?** The many-step teacher is asked as well, by DDIM, by this sampler and by the ancestral sampler
# of DDPM, which also adds noise in every step.

# %%
judge = make_judge(recipe, data, out)
common = dict(judge=judge, data=data, recipe=recipe, out=out)
cases = [("teacher", teacher, n, s) for n in (64, 16) for s in (ddim, stochastic, ancestral)]
cases += [("student", students[n], n, ddim) for n in (*shown, 1)]
cases += [("student", noisy[n], n, stochastic) for n in (*shown, 1)]
print(f"{recipe.samples} samples, {judge.name}, reference {judge.reference}, seed {seed}")
print("model   sampler    steps  NFE | Frechet, w = 0, 1, 3 | precision         | recall")
for name, model, n, sampler in cases:
    rows = evaluate_rows(model, model=name, steps=[n], weights=weights, sampler=sampler, **common)
    groups = [
        " ".join(f"{row[key]:{width}.2f}" for row in rows)
        for key, width in (("frechet_distance", 6), ("precision", 5), ("recall", 5))
    ]
    print(f"{name} {sampler.__name__:10s} {n:5d} {rows[0]['nfe']:5d} | " + " | ".join(groups))

# %% [markdown]
# With guidance the stochastic students are ahead, of the deterministic ones and even of the teacher's DDIM: at $w = 3$ their Frechet
# distance is 3.9 to 4.1 against 4.9, and their recall 0.39 to 0.42 against 0.31, at 8 and 4 steps. Guidance drives samples together, and noise spreads them again. The teacher's own
# samplers show the same with 128 evaluations. It is also clear what the distillation is worth: at 32 evaluations the teacher's
# noisy samplers are worse than its DDIM, because they need many steps; the students with 8 are past that.
#
# A single stochastic step is the exception: 5.6 at $w = 3$. It adds no noise at all, and it is a copy of the first of two steps, which was
# trained to be repaired by the second.
#
# At $w = 0$ it is the other way round: a little more Frechet distance, less recall, and more precision.
#
# **Is the difference at w = 0 real?** One number from a few hundred samples says little. The same again with four seeds of the
# noise:

# %%
seeds = range(seed, seed + 4)
fig, axes = figure(1, 3, width=9.5, height=3)
families = {
    "teacher, DDIM": (lambda n: teacher, ddim, (128, 64, 16)),
    "teacher, stochastic": (lambda n: teacher, stochastic, (128, 64, 16)),
    "students, DDIM": (students.get, ddim, shown),
    "students, stochastic": (noisy.get, stochastic, shown),
}
keys = ("frechet_distance", "precision", "recall")
for (name, (model, sampler, steps)), color, marker in zip(
    families.items(), COLORS, "os^D", strict=False
):
    table = {}
    for n in steps:
        rows = [
            evaluate_rows(
                model(n),
                model=name.split(",")[0].rstrip("s"),
                steps=[n],
                weights=[0.0],
                sampler=sampler,
                **common | {"recipe": replace(recipe, seed=k)},
            )[0]
            for k in seeds
        ]
        values = torch.tensor([[row[key] for key in keys] for row in rows])
        table[rows[0]["nfe"]] = values.mean(0).tolist(), values.std(0).tolist()
        text = "  ".join(f"{m:.3f} ({s:.3f})" for m, s in zip(*table[rows[0]["nfe"]], strict=True))
        print(f"{name:21s} {rows[0]['nfe']:4d} NFE   {text}")
    for i, axis in enumerate(axes):
        means, spread = zip(*((m[i], s[i]) for m, s in table.values()), strict=True)
        axis.errorbar(list(table), means, spread, color=color, marker=marker, capsize=2, label=name)
for axis, key in zip(axes, keys, strict=True):
    axis.set(xscale="log", xlabel="NFE", title=f"{key.replace('_', ' ')}, w = 0")
    axis.set_xticks([2, 8, 32, 128], [2, 8, 32, 128])
    axis.minorticks_off()
axes[0].legend(frameon=False, fontsize=7)
show(
    fig,
    alt="Frechet distance, precision and recall at w = 0 against evaluations, mean and standard deviation over four seeds. "
    "Both stochastic families have higher precision and lower recall than both deterministic ones.",
)

# %% [markdown]
# Now it can be said what is real. With 8 steps the two Frechet distances do not differ by more than the seeds do; with 4 and with 2 the deterministic
# students are better. And at every number of steps the stochastic ones have **less recall and more precision**, by several standard
# deviations. So at $w = 0$ the stochastic students do not beat the deterministic ones. Why not?
#
# Because they do what they were taught. The many-step teacher, asked to sample with noise, makes the same exchange, at equal Frechet distance:
# precision 0.89 for 0.84, recall 0.90 for 0.94, even with 256 evaluations. Each time noise is added the network is asked again what the image should be, and
# each time it answers with something a little more typical: the mean of what is possible. The Gaussian above loses variance in just this way. It matters most when the
# steps are long (the teacher at 32 evaluations, recall 0.80), and the students have inherited the short steps of the start of their chain, not more.
# Which sampler to prefer depends on what is wanted: with guidance, or for precision, the stochastic one; for diversity without guidance DDIM.
#
# ## Exercises
#
# 1. Change `renoise` so that it adds too little noise (half of $\sigma_{s|k}$). Which of the checks above notices, and what do the
#    samples look like?
# 2. Use the deterministic 2-step student under the stochastic sampler with 4 steps, in spite of the refusal (`student.sampler = None`,
#    `student.steps = None`). Which of its four jumps goes wrong?
# 3. The chain on the Gaussian loses variance in its first halvings. How does the final variance depend on where the chain starts?
# 4. Write a sampler in between: jump by $1 + \eta$ steps and come back by $\eta$. For which $\eta$ do you get DDIM, for
#    which this sampler? Which students would you need?
#
# **Next:** notebook 06 runs the flow upwards, from images to noise.

# %%
facts = provenance(
    notebook="05_stochastic_sampler",
    recipe=recipe.name,
    seed=seed,
    data=data.hash[:16],
    split=data.split,
)
for key, value in facts.items():
    print(f"{key}: {value}")
