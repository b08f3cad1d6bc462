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
# | `laptop` | two CPU cores | ten minutes on digits, after stage one |
# | `colab` | one free T4 | `dataset = "cifar10"`: about a third of a session |
# | `paper` | a large GPU | the published budget |
#
# Allow about 20 minutes to read it, and 15 for the exercises;
# without what is *further*, 30 in all.
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
from itertools import product

import torch

import cfgdistill as cd
from cfgdistill.course import checks, pretrained, stages, widgets
from cfgdistill.judge import metrics, plotting
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
#
# In code, a little more generally: jump too far by $\eta$ steps, and come back by $\eta$. With $\eta = 1$ it is this sampler, with $\eta = 0$ DDIM.


# %%
def stochastic_from_scratch(denoiser, z, N, noise, cond=None, eta=1.0):
    for i in range(N, 0, -1):
        t, s, k = (z.new_full((len(z),), max(i - back, 0) / N) for back in (0, 1, 1 + eta))
        z = cd.ddim_step(denoiser(z, t, cond), k, denoiser.schedule)
        if i > 1:
            (alpha_k, _), (alpha_s, _) = map(denoiser.schedule.alpha_sigma, (k, s))
            kept = (alpha_s / alpha_k)[:, None]
            z = kept * z + (1 - kept**2).sqrt() * noise[N - i]
        yield z


schedule = cd.CosineSchedule()
exact = cd.pinwheel().denoiser(schedule)
everything = torch.full((300,), 3)  # the null label: E[x | z] over all classes
z, null = torch.randn(6, 2, generator=torch.Generator().manual_seed(1)).double(), everything[:6]
generator = torch.Generator().manual_seed(2)
noise = [torch.randn(6, 2, generator=generator, dtype=torch.float64) for _ in range(3)]
ours = cd.last(cd.stochastic(exact, z, 4, null, generator=torch.Generator().manual_seed(2)))
plain = cd.last(cd.ddim(exact, z, 4, null))
for eta, end in ((1, ours), (0, plain)):
    found = cd.last(stochastic_from_scratch(exact, z, 4, noise, null, eta))
    torch.testing.assert_close(found, end)

# %% [markdown]
# **Is the noise that is added the noise that is missing?** At all pairs of times, in the mean and in the variance? Then a model cannot tell
# $z_s$ from a freshly noised image.

# %%
# NBVAL_CHECK_OUTPUT
k, s = torch.combinations(torch.arange(64) / 64).double().T  # all pairs of 64 times, k < s
one, zero = torch.ones(len(k), 1).double(), torch.zeros(len(k), 1).double()
kept = cd.renoise(one, zero, k, s, schedule)[:, 0]  # of z_k = 1, without noise
added = cd.renoise(zero, one, k, s, schedule)[:, 0]  # of z_k = 0, with noise 1
(alpha_k, sigma_k), (alpha_s, sigma_s) = map(schedule.alpha_sigma, (k, s))
mean, variance = kept * alpha_k - alpha_s, kept**2 * sigma_k**2 + added**2 - sigma_s**2
worst = max(mean.abs().max(), variance.abs().max())
print(f"mean and variance right at all {len(k)} pairs of 64 times, to 1e-12: {worst < 1e-12}")
same = torch.equal(cd.last(cd.stochastic(exact, z, 1, null)), cd.last(cd.ddim(exact, z, 1, null)))
print(f"with one step it is the deterministic sampler: {same}")

# %% [markdown]
# With $N = 2$ the way is $1 \to 0 \to \tfrac12 \to 0$: a whole image, made in one jump, is noised again up to the middle
# and denoised once more. **Which way does a sample take through time, and through space?** On the left, down is towards the image. On the right, the plane of
# notebook 00: one starting noise, a star; one run of many from there, and where 300 of them end. Move $\eta$ from 0 to 1, and the number of steps.

# %%
points, _ = cd.pinwheel().sample(800, torch.Generator().manual_seed(seed))


def draw(steps, eta, start):
    times = [1.0, *(max(j, 0) / steps for i in range(steps)[::-1] for j in (i - eta, i))]
    spent = [0.0, *(i + share for i in range(steps) for share in (0.8, 1.0))]  # down, then up
    angle = torch.tensor(start * torch.pi / 180).double()
    first = 0.8 * torch.stack([angle.cos(), angle.sin()]).repeat(300, 1)
    noise = torch.randn(steps, 300, 2, generator=torch.Generator().manual_seed(seed)).double()
    runs = stochastic_from_scratch(exact, first, steps, noise, everything, eta)
    runs = torch.stack([first, *runs])  # [step, run, 2]
    fig, (time, plane) = plotting.figure(1, 2, width=9, height=4.1)
    time.plot(spent, times)
    time.set(xlabel="evaluations", ylabel="time t")
    plane.scatter(*points.T, s=3, color="0.8")
    plane.scatter(*runs[-1].T, s=8, color=plotting.COLORS[1])
    plane.plot(*runs[:, 0].T, linewidth=0.9)
    plane.plot(*first[0], "k*", markersize=12)
    plane.set_title("the ends spread by {:.2f} and {:.2f}".format(*runs[-1].std(0)))
    return fig


alt = (
    "Left: time against evaluations, a zigzag of 8 steps: a jump of double length down, then half of it up again. "
    "Right: three spiral arms in grey, a star, a path that wanders far from it, and the ends of 300 such runs on all three arms."
)
widgets.explore(draw, alt, steps=(8, 1, 64, 1), eta=(1.0, 0.0, 1.0, 0.25), start=(140, 0, 360, 10))
print("the data spread by {:.2f} and {:.2f}".format(*points.std(0)))

# %% [markdown]
# With $\eta = 0$, DDIM, all end in one place. The stochastic sampler, from the same noise, ends nearly anywhere in the data: with 8 steps the first noise
# decides little. The noise that is added on the way does. (Its ends spread less than the data do, 0.57 and 0.53 against 0.74 and 0.72. That is what long steps cost, as section 3 will show: try 32.)
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
# ## 3. The whole chain, where every number is known *(further)*
#
# Take Gaussian data with variance 0.4 in one dimension. Everything is linear: a network is a list of gains, $v = g_t\, z$, one for each
# time, and a halving computes the next list without any error of training. The variance of the samples is known as well: a sampler that is linear
# in all its noises adds up what each of them, put in alone, makes of the end. **What is left of the variance 0.4 after six halvings, from 64
# steps to 1? And what does the exact denoiser reach if it is simply asked less often?**


# %%
# NBVAL_CHECK_OUTPUT
def halve(teacher, N):
    one, gains = torch.ones(1, 1).double(), {0.0: 0.0}  # at t = 0 nothing is left to do
    for i in range(1, N + 1):
        t, mid, s = (max(i - back, 0) / N for back in (0, 1, 2))
        gains[t] = cd.progressive_target(teacher, one, t, s, mid=mid).item()
    return cd.Denoiser(lambda z, t, cond, w: gains[t[0].item()] * z, schedule)


def variance_of(model, N):
    """Each of the N noises alone is a run: noise n is 1 in run n. What they leave, squared."""
    first, *added = torch.eye(N).double()[:, :, None]
    return cd.last(stochastic_from_scratch(model, first, N, added)).square().sum().item()


gaussian = cd.GaussianMixture(torch.zeros(1, 1), torch.zeros(1).long(), std=0.4**0.5)
gaussian = gaussian.denoiser(schedule)


def chain_from(first):
    """The variance that is left at each number of steps, when the chain starts at `first`."""
    model, left, N = gaussian, {}, first
    while N >= 1:
        model = halve(model, N)
        left[N] = variance_of(model, N)
        N //= 2
    return left


chain = chain_from(64)
fewer = {N: variance_of(gaussian, N) for N in chain}
print("variance of the samples, steps:", *(f"{value:.3f} ({N})" for N, value in chain.items()))
print("the exact denoiser, asked less:", *(f"{value:.3f} ({N})" for N, value in fewer.items()))

# %% [markdown]
# ### Exercise 3: a longer chain *(further: predict before the numbers, 3 minutes)*
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
# **The same starting noise through both.** Each column is one label and one first noise; the stochastic sampler draws twice from it.
#
# **How much of an image does the first noise still decide?** In numbers: the variance of a pixel between draws from *one* first noise, beside its variance
# between samples of that class from different ones. What is missing in the former is what the first noise decides.

# %%
shown = [n for n in (8, 4, 2, 1) if n in students and n in noisy]
labels = torch.arange(400) % data.num_classes
first = torch.randn(400, *data.shape, generator=torch.Generator().manual_seed(seed))


def draws(n, w):
    """Two samples from each first noise: [2, 400, *d]."""
    z, cond = (torch.cat([part] * 2).to(teacher.device) for part in (first, labels))
    generator = torch.Generator().manual_seed(seed + 1)  # not the first noise once more
    x = cd.last(cd.stochastic(noisy[n], z, n, cond, w, generator=generator))
    return x.cpu().clamp(-1, 1).unflatten(0, (2, 400))


few = first[:10].to(teacher.device), labels[:10].to(teacher.device)
lines = {"teacher, DDIM, 128 NFE": cd.last(cd.ddim(teacher, few[0], 64, few[1], 3.0))}
for n in (8, 2):
    lines[f"deterministic, {n} NFE"] = cd.last(cd.ddim(students[n], few[0], n, few[1], 3.0))
    for k, images in enumerate(draws(n, 3.0), 1):
        lines[f"stochastic, {n} NFE, draw {k}"] = images[:10]
plotting.show(
    plotting.image_rows(lines),
    alt="Ten columns of digits at w = 3, each of one first noise: the deterministic students of 8 and 2 steps repeat the teacher's digit. The two "
    "draws of each stochastic student are other digits of the same class, just as clear: with 8 steps all differ, with 2 steps they are more alike.",
)
for n, w in product((8, 2), (0.0, 3.0)):
    images = draws(n, w)
    within = images.var(0).mean()
    total = images[0].unflatten(0, (-1, data.num_classes)).var(0).mean()
    print(f"{n} steps, w = {w:g}: the first noise decides {1 - within / total:.0%}")

# %% [markdown]
# The deterministic students repeat their teacher's images. The stochastic ones draw their own: same class, other hand.
# With 8 steps the first noise decides little: 6% at $w = 0$, 12% at $w = 3$. With 2 steps noise is added only once, half-way up, and the first noise decides half: 49% and 53%.
# Guidance makes all samples of a class more alike, and increases the share that the first noise decides.
#
# ## 5. Numbers
#
# **Which sampler is better?** A reminder before you compare numbers:
# a student is good when it is like *its* teacher, and the two kinds of students have different teachers, the same network under two samplers. So the
# many-step teacher is asked as well, by both.
#
# One seed of a few hundred samples says little. **Which differences are real?** Four seeds of the noise, as mean and standard deviation. That is four times
# the work, so the rows come with the package, and the next cell measures one of them again. With `retrain = True` all of them are made here.

# %%
judge = stages.make_judge(recipe, data, out)
cases = [("teacher", teacher, n, sampler) for sampler in (cd.ddim, cd.stochastic) for n in (64, 16)]
cases += [("student", students[n], n, cd.ddim) for n in shown]
cases += [("student", noisy[n], n, cd.stochastic) for n in shown]


def measure(number, samples, weights=(0.0, 3.0), cases=cases):
    """Rows of one seed."""
    asked, rows = replace(recipe, seed=number, samples=samples), []
    for name, model, n, sampler in cases:
        how = dict(model=name, steps=[n], weights=weights, sampler=sampler)
        rows += stages.evaluate_rows(model, judge, data, asked, out, **how)
    return [row | {"seed": number, "samples": samples} for row in rows]


def make():
    return [row for number in range(4) for row in measure(number, recipe.samples)]


rows = pretrained.measured("seeds", make, recipe, judge, out, again=retrain)

# %%
# NBVAL_CHECK_OUTPUT
keys = ("frechet_distance", "precision", "recall")
kept = next(row for row in rows if row["sampler"] == "stochastic" and row["nfe"] == 4)
(row,) = measure(0, kept["samples"], [0.0], [("student", noisy[4], 4, cd.stochastic)])
print("the stochastic student, 4 NFE, w = 0, measured again, is the same to 0.02:")
print(", ".join(f"{key} {abs(row[key] - kept[key]) < 0.02}" for key in keys))

# %%
print(metrics.table(rows, dict.fromkeys(keys, ".2f")))
plotting.show(
    plotting.quality_against_nfe(rows, keys),
    alt="Frechet distance, precision and recall against evaluations, mean and standard deviation over four seeds. At w = 0 "
    "the stochastic students of 8, 4 and 2 steps have a higher precision and a lower recall than the deterministic ones; at w = 3 a lower Frechet distance and a higher recall.",
)


def student(sampler, n, w, key):
    """The mean over the seeds, and the square of its standard error."""
    about = ("student", sampler, n, w)
    own = [row for row in rows if tuple(row[k] for k in ("model", "sampler", "nfe", "w")) == about]
    values = torch.tensor([row[key] for row in own])
    return values.mean(), values.var() / len(values)


print("stochastic less deterministic students, in standard errors of the difference:")
for w, n in product((0.0, 3.0), shown):
    text = []
    for key in keys:
        (one, error), (other, more) = (student(s, n, w, key) for s in ("stochastic", "ddim"))
        text.append(f"{key.replace('_', ' ')} {(one - other) / (error + more).sqrt():+.1f}")
    print(f"w = {w:g}, {n} steps:", ", ".join(text))

# %% [markdown]
# **With guidance** noise helps: at $w = 3$ the stochastic students of 8, 4 and 2 steps have a lower Frechet distance than the deterministic ones (4.0, 4.2 and 4.5 against 5.0, 5.0 and 5.1) and a higher
# recall (0.39, 0.38 and 0.36 against 0.33, 0.32 and 0.32), by 2.9 to 7.1 standard errors. Guidance drives samples together, and noise spreads them again. But are those the better *students*? Look at their
# teacher: with this sampler and 128 evaluations it has 3.9 and 0.41 itself, and with DDIM 5.2 and 0.32. So both kinds do what their own teacher does,
# though the stochastic ones lose a little with every halving. What sets the two kinds apart is the sampler, not the quality of the distillation.
#
# What the distillation is worth can be seen at 32 evaluations. There the teacher's noisy sampler is worse than its DDIM at $w = 0$ (1.8 against 1.0)
# and better only at $w = 3$ (4.8 against 5.6), because it needs many steps. The students with 8 evaluations are past that.
#
# A single stochastic step is the exception: 5.5 at $w = 3$. It adds no noise at all. And because the halving from 2 steps to 1 is a copy, its network had no halving
# of its own: it is the one of 2 steps, which had to learn $t = 1$ and $t = \tfrac12$ in the same updates.
#
# **Without guidance**, at $w = 0$, there is a price. The deterministic students have the lower Frechet distance at 8, 4 and 2 steps, but by 1.6 to 1.8 standard errors, which proves
# nothing. But the stochastic ones have **less recall and more precision**, by 2.9 to 7.5 standard errors. So at $w = 0$ the stochastic students do not beat the deterministic ones. Why not?
#
# Because they do what they were taught. The many-step teacher, asked to sample with noise, makes the same exchange, at nearly equal Frechet distance:
# precision 0.90 instead of 0.85, recall 0.89 instead of 0.94, with 128 evaluations. Each time noise is added the network is asked again what the image should be, and
# each time it answers with something a little more typical: the mean of what is possible. The Gaussian above loses variance in just this way. It matters most when the
# steps are long (the teacher at 32 evaluations, recall 0.81), and the students have inherited the short steps of the start of their chain, nothing more.
# Which sampler to prefer depends on what is wanted: with guidance, or for precision, the stochastic one; for diversity without guidance DDIM.
#
# ## Further questions
#
# 1. In `stochastic_from_scratch`, add too little noise (half of $\sigma_{s|k}$). Which of the checks above notices, and which number
#    of the Gaussian chain changes?
# 2. Use the deterministic 2-step student under the stochastic sampler with 4 steps, in spite of the refusal (`student.sampler = None`,
#    `student.steps = None`). Which of its four jumps go wrong?
# 3. The chain on the Gaussian loses variance in its first halving. By how much does the loss shrink when the chain starts at twice as many steps, and why?
# 4. Which students would a sampler in between need, with $\eta = \tfrac12$? For which jumps, and at which times, would they be asked?
#
# **Next:** notebook 06 runs the flow upwards, from images to noise.

# %%
stages.print_provenance(recipe, data, "05_stochastic_sampler")
