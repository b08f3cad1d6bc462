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
# The students of notebook 04 are deterministic: the noise at the start decides everything. The paper
# ([Meng et al. 2023](https://arxiv.org/abs/2210.03142)) has a second sampler, which jumps **twice as far** as it should and
# then adds noise to come **half the way back**. It needs students of its own, and here they are trained.
#
# **You will**
#
# - write the sampler in a few lines and check that its noise keeps every marginal,
# - find out at which times, and for which jumps, its students are asked, and derive their targets,
# - follow the whole chain of halvings, 64 steps to 1, on a Gaussian where every number is known,
# - distil the students, and compare both kinds in pictures and in numbers: neither of them is always the better one.
#
# **You need** notebook 04 (what you skipped is trained here first).
#
# | profile | hardware | time, if all is trained here |
# | --- | --- | --- |
# | `smoke` | any CPU | under a minute |
# | `laptop` | two CPU cores | five minutes on digits, after stage one |
# | `colab` | one free T4 | `dataset = "cifar10"`: about a third of a session |
# | `paper` | a large GPU | the published budget |
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=05`.

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("cfgdistill") is None:  # on Colab or Kaggle: the project alone
    source = "cfgdistill @ git+https://github.com/cfgdistill/cfgdistill"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", source], check=True)
from cfgdistill.course.colab import set_up

set_up(drive=False, minutes=None)  # keep checkpoints on Drive? stop after so many minutes?

# %%
import os
from dataclasses import replace

import torch

import cfgdistill as cd
from cfgdistill.course import checks, stages
from cfgdistill.judge import plotting
from cfgdistill.training import checkpoints
from cfgdistill.training.environment import flag

# %% tags=["parameters"]
dataset = os.environ.get("CFGDISTILL_DATASET", "digits")
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
retrain = flag("CFGDISTILL_RETRAIN")  # or use the models of the package
seed = 0

# %% [markdown]
# ## 1. Jump too far, then come half the way back
#
# DDIM ([Song et al. 2021](https://arxiv.org/abs/2010.02502)) is deterministic, and where it has made an error, nothing later is designed to
# undo it. Adding noise erases part of the current state, and with it part of the error.
#
# With $N$ steps, from $t = i/N$: a DDIM step of **double** length down to $k = t - 2/N$, and then fresh
# noise up to $s = t - 1/N$.

# %% [markdown]
# ### Exercise 1: how much noise? *(derive, 6 minutes)*
#
# Suppose $z_k = \alpha_k x + \sigma_k \varepsilon$ is what noising an image gives. Then $z_s$ should be the same for time $s$: $\alpha_s x$, plus noise of standard deviation $\sigma_s$. The factor $\alpha_s / \alpha_k$ puts the mean right. It also
# scales the noise that is there. **How much fresh noise is missing?** (Independent noises add up in variance.)
#
# <details><summary>Hint</summary>
#
# What is the variance of $(\alpha_s / \alpha_k)\, \sigma_k \varepsilon$, and what should it be in all?
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "added_noise", "locked": false, "schema_version": 3, "solution": true, "task": false}
def added_noise(alpha_k, sigma_k, alpha_s, sigma_s):
    """The standard deviation of the fresh noise, s above k."""
    ### BEGIN SOLUTION
    return (sigma_s**2 - (alpha_s / alpha_k) ** 2 * sigma_k**2).sqrt()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "added_noise-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.added_noise(added_noise))
### BEGIN HIDDEN TESTS
assert checks.added_noise(added_noise).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* the difference of standard deviations; $\sqrt{\sigma_s^2 - \sigma_k^2}$, which forgets that the old noise is scaled down; the variance without the root; $k$ and $s$ swapped, which is no number.
#
# *Accepted:* $\sqrt{1 - (\alpha_s / \alpha_k)^2}$ as well.
#
# </details>

# %% [markdown]
# So the way up is
#
# $$ z_s = \frac{\alpha_s}{\alpha_k} z_k + \sigma_{s|k}\, \varepsilon', \qquad
# \sigma_{s|k}^2 = \sigma_s^2 - \Big(\frac{\alpha_s}{\alpha_k}\Big)^2 \sigma_k^2
# = 1 - \Big(\frac{\alpha_s}{\alpha_k}\Big)^2 . $$
#
# (The last form uses $\alpha^2 + \sigma^2 = 1$.) The last jump, from $t = 1/N$, has single length and no noise. Each step is
# still one evaluation.


# %%
def stochastic_from_scratch(denoiser, z, N, noise):
    for i in range(N, 0, -1):
        t, s, k = (torch.full((len(z),), max(i - back, 0) / N).to(z) for back in (0, 1, 2))
        z = cd.ddim_step(denoiser(z, t), k, denoiser.schedule)
        if i > 1:
            (alpha_k, _), (alpha_s, _) = map(denoiser.schedule.alpha_sigma, (k, s))
            kept = (alpha_s / alpha_k)[:, None]
            z = kept * z + (1 - kept**2).sqrt() * noise[N - i]
    return z


exact = cd.pinwheel().denoiser(cd.CosineSchedule())
null = torch.full((6,), 3)  # E[x | z] over all classes


class Unconditional:
    schedule = exact.schedule

    def __call__(self, z, t):
        return exact(z, t, null)


z = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).double()
generator = torch.Generator().manual_seed(2)
noise = [torch.randn(6, 2, generator=generator, dtype=torch.float64) for _ in range(3)]
ours = cd.last(cd.stochastic(exact, z, 4, null, generator=torch.Generator().manual_seed(2)))
torch.testing.assert_close(stochastic_from_scratch(Unconditional(), z, 4, noise), ours)

# %% [markdown]
# Why this variance and no other? Suppose $z_k = \alpha_k x + \sigma_k \varepsilon$ is what noising an image $x$ gives. Then $z_s$
# should be $\alpha_s x$ plus noise of standard deviation $\sigma_s$. The factor $\alpha_s/\alpha_k$ puts the mean right, and $\sigma_{s|k}$
# is exactly the noise that is then missing. So a model cannot tell $z_s$ from a freshly noised image.

# %%
# NBVAL_CHECK_OUTPUT
one, zero = torch.ones(1, 1).double(), torch.zeros(1, 1).double()
schedule = cd.CosineSchedule()


def factors(k, s):
    """What `renoise` multiplies z_k with, and what it multiplies the fresh noise with."""
    kept = cd.renoise(one, zero, k, s, schedule)  # z_k = 1 and no noise
    added = cd.renoise(zero, one, k, s, schedule)  # z_k = 0 and noise 1
    return kept.item(), added.item()


worst = 0.0
for i in range(1, 64):
    for j in range(i):
        k, s = (torch.tensor([n / 64]).double() for n in (j, i))
        kept, added = factors(k, s)
        (alpha_k, sigma_k), (alpha_s, sigma_s) = schedule.alpha_sigma(k), schedule.alpha_sigma(s)
        worst = max(worst, (kept * alpha_k - alpha_s).abs().item())
        worst = max(worst, (kept**2 * sigma_k**2 + added**2 - sigma_s**2).abs().item())
print(f"mean and variance right at all pairs of 64 times, to 1e-12: {worst < 1e-12}")
same = torch.equal(cd.last(cd.stochastic(exact, z, 1, null)), cd.last(cd.ddim(exact, z, 1, null)))
print(f"with one step it is the deterministic sampler: {same}")

# %% [markdown]
# **Which way does a sample take through time?** Down is towards the image.

# %%
fig, axes = plotting.figure(1, 3, width=9, height=2.8, sharey=True)
for axis, N in zip(axes, (8, 4, 2), strict=True):
    axis.plot(
        range(N + 1), [i / N for i in range(N, -1, -1)], color=plotting.COLORS[0], label="DDIM"
    )
    spent, times = [0.0], [1.0]
    for i in range(N, 0, -1):
        spent += [N - i + (0.8 if i > 1 else 1.0), N - i + 1.0]  # down in the evaluation, then up
        times += [max(i - 2, 0) / N, (i - 1) / N]
    axis.plot(spent, times, color=plotting.COLORS[1], linestyle="--", label="stochastic")
    axis.set(xlabel="evaluations", title=f"N = {N}", xticks=range(0, N + 1, max(1, N // 4)))
axes[0].set_ylabel("time t")
axes[0].legend(frameon=False)
plotting.show(
    fig,
    alt="Time against evaluations for 8, 4 and 2 steps. DDIM falls in a straight line from 1 to 0. The "
    "stochastic sampler zigzags around it: a jump of double length down, then half of it up again.",
)

# %% [markdown]
# With $N = 2$ the way is $1 \to 0 \to \tfrac12 \to 0$: a whole image, made in one jump, is noised again up to the middle
# and denoised once more. **What does it do to a trajectory?** One starting noise in the plane of notebook 00: three runs step by step,
# and the end points of 300.

# %%
start = torch.tensor([[-0.6, 0.5]]).double()
points, _ = cd.pinwheel().sample(800, torch.Generator().manual_seed(0))
many = start.repeat(300, 1)
runs = [
    many,
    *cd.stochastic(
        exact, many, 16, torch.full((300,), 3), generator=torch.Generator().manual_seed(seed)
    ),
]
runs = torch.stack(runs)  # [17, 300, 2]
path = torch.cat([start, *cd.ddim(exact, start, 16, null[:1])])
fig, axes = plotting.figure(1, 2, width=8.4, height=4.1, sharex=True, sharey=True)
for axis in axes:
    axis.scatter(*points.T, s=3, color="0.8")
    axis.set_aspect("equal")
axes[0].plot(*path.T, color=plotting.COLORS[0], marker="o", markersize=3, label="DDIM")
for run in range(3):
    axes[0].plot(
        *runs[:, run].T, color=plotting.COLORS[run + 1], linewidth=0.9, label=f"run {run + 1}"
    )
    axes[0].plot(*runs[-1, run], color=plotting.COLORS[run + 1], marker="s", markersize=7)
axes[0].set_title("DDIM, and three stochastic runs")
axes[1].scatter(*runs[-1].T, s=8, color=plotting.COLORS[1])
axes[1].plot(*path[-1], color=plotting.COLORS[0], marker="o", markersize=8)
axes[1].set_title("where 300 stochastic runs end")
for axis in axes:
    axis.plot(*start[0], color="black", marker="*", markersize=12)
axes[0].legend(frameon=False, fontsize=8, loc="lower left")
plotting.show(
    fig,
    alt="Left: paths from one starting point, a star, in the plane of three spiral arms. DDIM's is short and smooth; three stochastic "
    "runs wander far and end elsewhere in the data. Right: the end points of 300 stochastic runs cover all three arms.",
)
numbers = ", ".join(f"{value:.2f}" for value in (*runs[-1].std(0), *points.std(0)))
print("standard deviation in x and y, of the 300 end points and of the data:", numbers)

# %% [markdown]
# DDIM ends in one place. The stochastic sampler, from the same noise, ends nearly anywhere in the data: with 16 steps the first
# noise decides next to nothing. The noise that is added on the way does.
#
# ## 2. What the students must learn
#
# What is one jump of a student in terms of its teacher's?

# %% [markdown]
# ### Exercise 2: two jumps in one *(fill in three times, 6 minutes)*
#
# A student is asked at $t = i/N$, always for a jump of $2/N$, and only from $t = 1/N$ for one of half that length. Its teacher takes
# $2N$ steps, so the jumps it was trained for are $2/2N = 1/N$ long. **At which times $t$, `mid` and $s$ does the student's jump begin, is the teacher asked for the second time, and does the jump end?** Where one jump of the teacher is enough, `mid` is $s$.
#
# <details><summary>Hint 1</summary>
#
# Regular, $i \ge 2$: two jumps of the teacher, each $1/N$ long.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# At the edge, $i = 1$, one jump of the teacher leads to 0.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "jump_times", "locked": false, "schema_version": 3, "solution": true, "task": false}
def jump_times(i, N):
    """t, mid, s for i = N, ..., 1."""
    ### BEGIN SOLUTION
    return tuple(max(i - back, 0) / N for back in (0, 1, 2))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "jump_times-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.jump_times(jump_times))
### BEGIN HIDDEN TESTS
assert checks.jump_times(jump_times).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* $s = t - 1/N$ (DDIM); at the edge two jumps of half the length, for which the teacher was never trained; times below 0.
#
# *To discuss:* why is the halving from 2 steps to 1 a copy?
#
# </details>

# %% [markdown]
# Two of the teacher's jumps are the student's:
#
# - **regular**, $i \ge 2$: two teacher jumps, $t \to t - 1/N \to t - 2/N$;
# - **edge**, $i = 1$: *one* teacher jump, $1/N \to 0$. The teacher knows it, since $1/N$ is $2/2N$, its regular jump. The target is its
#   own prediction. (No other rule asks the teacher only for jumps that it was trained for.)
#
# No noise is needed in the training: what is distilled is the jump. The target is that of progressive distillation
# ([Salimans & Ho 2022](https://arxiv.org/abs/2202.00512)), as in notebook 04; only the times differ:
# `progressive_target(teacher, z, t, s, mid=...)`, with `mid` = 0 at the edge.
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
# At every other grid time the question would be new to it.
#
# ## 3. The whole chain, where every number is known
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
        gains[t] = cd.progressive_target(teacher, one, t, s, mid=mid).item()
    return cd.Denoiser(Gains(gains), schedule)


def variance(denoiser, N):
    value = 1.0
    for i in range(N, 0, -1):
        k, s = (torch.tensor([max(i - back, 0) / N]).double() for back in (2, 1))
        value *= cd.ddim_step(denoiser(one, i / N), k, schedule).item() ** 2
        if i > 1:
            kept, added = factors(k, s)
            value = kept**2 * value + added**2
    return value


gaussian = cd.GaussianMixture(torch.zeros(1, 1), torch.zeros(1).long(), std=0.4**0.5)
gaussian = gaussian.denoiser(schedule)


def chain_from(first):
    """The variance that is left at each number of steps, when the chain starts at `first`."""
    model, left, N = gaussian, {}, first
    while N >= 1:
        model = halve(model, N)
        left[N] = variance(model, N)
        N //= 2
    return left


chain = chain_from(64)
often = {N: variance(gaussian, N) for N in chain}
fig, axis = plotting.figure(width=5.5, height=2.9)
axis.axhline(0.4, color="black", linewidth=0.8, label="data")
axis.plot(
    chain.keys(),
    chain.values(),
    marker="^",
    color=plotting.COLORS[0],
    label="distilled, 64 down to N",
)
axis.plot(
    often.keys(),
    often.values(),
    marker="o",
    color=plotting.COLORS[1],
    label="exact denoiser, N steps",
)
axis.set(xscale="log", xlabel="steps N", ylabel="variance of the samples", ylim=(0, None))
axis.set_xticks(list(chain), list(chain))
axis.minorticks_off()
axis.legend(frameon=False)
plotting.show(
    fig,
    alt="Variance of the samples against the number of steps. The distilled chain stays just below 0.4 down to one step; "
    "the exact denoiser loses more and more variance with fewer steps, and has none left at one step.",
)

# %% [markdown]
# ### Exercise 3: a longer chain *(predict before the numbers, 3 minutes)*
#
# The chain from 64 steps ends with a variance of 0.383. From how many steps must a chain start to end at **0.39 or more**, with as few as possible? (a) 32, (b) 64, (c) 128, (d) 256. And does it help or harm that a longer chain has more halvings?
#
# <details><summary>Hint</summary>
#
# What is lost is lost in the first halving, to the steps of a many-step teacher. What happens to it if those are half as long?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "long_enough", "locked": false, "schema_version": 3, "solution": true, "task": false}
long_enough = None
### BEGIN SOLUTION
long_enough = "c"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "long_enough-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.long_enough(long_enough))
### BEGIN HIDDEN TESTS
assert checks.long_enough(long_enough).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* (a), "every halving loses a little, so the fewer, the better".
#
# *To discuss:* the loss is 0.033, 0.017, 0.008, 0.004. Of which order is the sampler?
#
# </details>

# %%
# NBVAL_CHECK_OUTPUT
print("variance of the samples, steps:", *(f"{value:.3f} ({N})" for N, value in chain.items()))
ends = {first: chain_from(first)[1] for first in (32, 64, 128, 256)}
print("at one step, if the chain starts at:", *(f"{v:.3f} ({first})" for first, v in ends.items()))

# %% [markdown]
# The last student makes samples of variance 0.38 in a single step. Those of the exact denoiser have none at all: its one answer is the mean. What
# is missing from 0.4 is lost in the **first** halving, to the steps of its many-step teacher: a longer chain loses less, and every later
# halving passes on what it was given.
# And the last two numbers of the first line are equal: at $N = 1$ the only interval is an edge. So the halving from 2 to 1 is a copy, and is not trained.
#
# ## 4. Students
#
# The same call as in notebook 04, with one more argument.

# %%
recipe = cd.get_recipe(dataset, profile, seed=seed)
if not retrain:
    recipe = cd.use_pretrained(recipe, out)
print(recipe)
data = cd.load_data(dataset, "train", recipe.images)
teacher = cd.GuidedDenoiser(stages.train_teacher(recipe, data, out), null=data.num_classes)
students = {s.steps: s for s in stages.train_stage_two(recipe, data, out)}
noisy = {s.steps: s for s in stages.train_stage_two(recipe, data, out, sampler="stochastic")}

# %% [markdown]
# A student's folder says which sampler it is for. The wrong one is refused before any work is done:

# %%
# NBVAL_CHECK_OUTPUT
try:
    cd.stochastic(students[4], torch.randn(1, *data.shape), 4, torch.tensor([3]), 1.0)
except ValueError as error:
    print(error)

# %% [markdown]
# **The same starting noise through both.** Each place in a grid is one noise and one label.

# %%
shown = [n for n in (8, 4, 2) if n in students and n in noisy]
wanted = torch.arange(10)
weights = (0.0, 1.0, 3.0)


def column(w):
    how = dict(shape=data.shape, labels=wanted, w=w, seed=seed)
    lines = {"teacher, DDIM, 256 NFE": cd.generate(teacher, steps=128, **how)}
    for n in shown:
        lines[f"deterministic, {n} NFE"] = cd.generate(students[n], steps=n, **how)
        lines[f"stochastic, {n} NFE"] = cd.generate(noisy[n], steps=n, sampler=cd.stochastic, **how)
    return lines


fig = plotting.sample_grid({f"w = {w:g}": column(w) for w in (0.0, 3.0)}, 10)
fig.set_size_inches(10, 0.75 * (2 * len(shown) + 1))
plotting.show(
    fig,
    alt="Ten digits a row for w = 0 and 3: the deterministic students repeat the teacher's sample of the same "
    "noise, the stochastic ones draw other images of the same classes, just as clear.",
)

# %% [markdown]
# The deterministic students repeat their teacher's images. The stochastic ones draw their own: same class, other hand.
# **How much of an image does the first noise still decide?** One starting noise per column; each row adds other noise.
# In numbers: the variance of a pixel between draws from *one* first noise, beside its variance between all samples of that class. What is
# missing in the former is what the first noise decides.

# %%
draws, per_class = {}, 40
classes = torch.arange(per_class * data.num_classes) % data.num_classes
first = torch.randn(40, *data.shape, generator=torch.Generator().manual_seed(seed))
many = first.repeat(8, *[1] * len(data.shape)).to(teacher.device)  # 8 draws from each of 40
for n in dict.fromkeys((shown[0], shown[-1])):
    rows = draws[f"{n} steps"] = {}
    for w in (0.0, 3.0):
        how = dict(shape=data.shape, labels=classes, steps=n, w=w, sampler=cd.stochastic)
        own = cd.generate(noisy[n], seed=seed, **how)
        total = own.unflatten(0, (per_class, -1)).var(0).mean().item()
        generator = torch.Generator().manual_seed(seed)
        labels = classes[:40].repeat(8).to(teacher.device)
        images = cd.last(cd.stochastic(noisy[n], many, n, labels, w, generator=generator)).cpu()
        images = images.clamp(-1, 1).unflatten(0, (8, 40))  # [draw, first noise, *d]
        rows[f"w = {w:g}"] = images[:4, :10].flatten(0, 1)
        within = images.var(0).mean().item()
        print(
            f"{n} steps, w = {w:g}: standard deviation of a pixel {within**0.5:.2f} from one first noise, "
            f"{total**0.5:.2f} in all: the first noise decides {1 - within / total:.0%}"
        )
fig = plotting.sample_grid(draws, 10)
fig.set_size_inches(10, 4.6)
plotting.show(
    fig,
    alt="Four rows of images for each of 8 and 2 steps and w = 0 and 3. A column starts from one noise. With 8 steps its four "
    "images differ in shape; with 2 steps, and more so with w = 3, they look alike.",
)

# %% [markdown]
# With 8 steps the first noise decides little: 4% at $w = 0$, 10% at $w = 3$. With 2 steps noise is added only once, half-way up, and the first noise decides half: 50% and 55%.
# Guidance makes all samples of a class more alike, and increases the share that the first noise decides.
#
# ## 5. Numbers
#
# **Which sampler is better?** The many-step teacher is asked as well, by DDIM, by this sampler and by the ancestral sampler
# of DDPM ([Ho et al. 2020](https://arxiv.org/abs/2006.11239)), which also adds noise in every step. A reminder before you compare numbers:
# a student is good when it is like *its* teacher, and the two kinds of students have different teachers, the same network under two samplers.

# %%
judge = stages.make_judge(recipe, data, out)
common = dict(judge=judge, data=data, recipe=recipe, out=out)
cases = [
    ("teacher", teacher, n, s) for n in (64, 16) for s in (cd.ddim, cd.stochastic, cd.ancestral)
]
cases += [("student", students[n], n, cd.ddim) for n in (*shown, 1)]
cases += [("student", noisy[n], n, cd.stochastic) for n in (*shown, 1)]
print(f"{recipe.samples} samples, {judge.name}, reference {judge.reference}, seed {seed}")
print("model   sampler    steps  NFE | Frechet, w = 0, 1, 3 | precision         | recall")
for name, model, n, sampler in cases:
    rows = stages.evaluate_rows(
        model, model=name, steps=[n], weights=weights, sampler=sampler, **common
    )
    groups = [
        " ".join(f"{row[key]:{width}.2f}" for row in rows)
        for key, width in (("frechet_distance", 6), ("precision", 5), ("recall", 5))
    ]
    print(f"{name} {sampler.__name__:10s} {n:5d} {rows[0]['nfe']:5d} | " + " | ".join(groups))

# %% [markdown]
# One seed of a few hundred samples says little. **Which differences are real?** The same with four seeds of the noise, at $w = 0$ and $w = 3$,
# as mean and standard deviation:

# %%
keys = ("frechet_distance", "precision", "recall")
families = {
    "teacher, DDIM": (lambda n: teacher, cd.ddim, (64, 16)),
    "teacher, stochastic": (lambda n: teacher, cd.stochastic, (64, 16)),
    "students, DDIM": (students.get, cd.ddim, shown),
    "students, stochastic": (noisy.get, cd.stochastic, shown),
}


def seeds_table(name, n, w):
    """Mean and standard deviation over four seeds: {"nfe": ..., each key: (mean, deviation)}."""
    model, sampler, _ = families[name]
    how = dict(model=name.split(",")[0].rstrip("s"), steps=[n], weights=[w], sampler=sampler)
    rows = []
    for number in range(seed, seed + 4):
        again = common | {"recipe": replace(recipe, seed=number)}
        rows += stages.evaluate_rows(model(n), **how, **again)
    values = {key: torch.tensor([row[key] for row in rows]) for key in keys}
    return {"nfe": rows[0]["nfe"]} | {
        k: (v.mean().item(), v.std().item()) for k, v in values.items()
    }


fig, axes = plotting.figure(2, 3, width=9.5, height=5.4, sharex=True)
found = {}
for line, w in zip(axes, (0.0, 3.0), strict=True):
    print(f"w = {w:g}{'':28s}Frechet        precision      recall")
    for (name, (_, _, steps)), color, marker in zip(
        families.items(), plotting.COLORS, "os^D", strict=False
    ):
        own = [seeds_table(name, n, w) for n in steps]
        found |= {(name, n, w): row for n, row in zip(steps, own, strict=True)}
        for row in own:
            text = "  ".join("{:.3f} ({:.3f})".format(*row[key]) for key in keys)
            print(f"{name:21s} {row['nfe']:4d} NFE   {text}")
        for axis, key in zip(line, keys, strict=True):
            mean, spread = zip(*(row[key] for row in own), strict=True)
            nfe = [row["nfe"] for row in own]
            axis.errorbar(nfe, mean, spread, color=color, marker=marker, capsize=2, label=name)
            axis.set(xscale="log", title=f"{key.replace('_', ' ')}, w = {w:g}")
            axis.set_xticks([2, 8, 32, 128], [2, 8, 32, 128])
            axis.minorticks_off()
for axis in axes[1]:
    axis.set_xlabel("NFE")
axes[0, 0].legend(frameon=False, fontsize=8)
plotting.show(
    fig,
    alt="Frechet distance, precision and recall against evaluations, mean and standard deviation over four seeds. At w = 0 both stochastic "
    "families have higher precision and lower recall than both deterministic ones; at w = 3 they have lower Frechet distance and higher recall.",
)
print("stochastic less deterministic students, in standard errors of the difference:")
for w in (0.0, 3.0):
    for n in shown:
        text = []
        for key in keys:
            (a, s), (b, r) = (
                found[f"students, {kind}", n, w][key] for kind in ("stochastic", "DDIM")
            )
            text.append(
                f"{key.replace('_', ' ')} {a - b:+.3f} ({abs(a - b) / max(1e-9, (s**2 + r**2) ** 0.5 / 2):.1f})"
            )
        print(f"w = {w:g}, {n} steps:", ", ".join(text))

# %% [markdown]
# **With guidance** noise helps: at $w = 3$ the stochastic students of 8, 4 and 2 steps have a lower Frechet distance than the deterministic ones (4.0, 4.2 and 4.5 against 5.0, 5.0 and 5.1) and a higher
# recall (0.39, 0.38 and 0.36 against 0.33, 0.32 and 0.32), by 2.9 to 7.1 standard errors. Guidance drives samples together, and noise spreads them again. But are those the better *students*? Look at their
# teacher: with this sampler and 128 evaluations it has 3.9 and 0.41 itself, and with DDIM 5.2 and 0.32. So both kinds do what their own teacher does,
# though the stochastic ones lose a little with every halving. What sets the two kinds apart is the sampler, not the quality of the distillation.
#
# What the distillation is worth can be seen at 32 evaluations. There the teacher's noisy samplers are worse than its DDIM at $w = 0$ and 1 (1.9 and 1.8 against 0.9, then 3.8 and 4.0
# against 3.7) and better only at $w = 3$, because they need many steps. The students with 8 evaluations are past that.
#
# A single stochastic step is the exception: 5.4 at $w = 3$. It adds no noise at all. And because the halving from 2 steps to 1 is a copy, its network had no halving
# of its own: it is the one of 2 steps, which had to learn $t = 1$ and $t = \tfrac12$ in the same updates.
#
# **Without guidance**, at $w = 0$, there is a price. The deterministic students have the lower Frechet distance at 8, 4 and 2 steps, but by 1.6 to 1.8 standard errors, which proves
# nothing. And at every number of steps the stochastic ones have **less recall and more precision**, by 2.9 to 7.5 standard
# errors. So at $w = 0$ the stochastic students do not beat the deterministic ones. Why not?
#
# Because they do what they were taught. The many-step teacher, asked to sample with noise, makes the same exchange, at nearly equal Frechet distance:
# precision 0.90 instead of 0.85, recall 0.89 instead of 0.94, with 128 evaluations. Each time noise is added the network is asked again what the image should be, and
# each time it answers with something a little more typical: the mean of what is possible. The Gaussian above loses variance in just this way. It matters most when the
# steps are long (the teacher at 32 evaluations, recall 0.81), and the students have inherited the short steps of the start of their chain, nothing more.
# Which sampler to prefer depends on what is wanted: with guidance, or for precision, the stochastic one; for diversity without guidance DDIM.
#
# ## Further questions
#
# 1. In `stochastic_from_scratch` and in `factors`, add too little noise (half of $\sigma_{s|k}$). Which of the checks above notices, and which number
#    of the Gaussian chain changes?
# 2. Use the deterministic 2-step student under the stochastic sampler with 4 steps, in spite of the refusal (`student.sampler = None`,
#    `student.steps = None`). Which of its four jumps go wrong?
# 3. The chain on the Gaussian loses variance in its first halving. By how much does the loss shrink when the chain starts at twice as many steps, and why?
# 4. Write a sampler in between: jump by $1 + \eta$ steps and come back by $\eta$. For which $\eta$ do you get DDIM, for
#    which this sampler? Which students would you need?
#
# **Next:** notebook 06 runs the flow upwards, from images to noise.

# %%
facts = checkpoints.provenance(
    notebook="05_stochastic_sampler",
    recipe=recipe.name,
    seed=seed,
    data=data.hash[:16],
    split=data.split,
)
for key, value in facts.items():
    print(f"{key}: {value}")
