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
# # 03 · Stage one: guidance matching
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/03_stage_one.ipynb)
#
# A guided teacher asks its network twice in every step. Here we train **one** network to give the
# combined answer at once, and for *every* guidance weight: $w$ becomes an input, like the time and the
# label. That alone halves the cost of sampling. More important, it leaves us with an ordinary denoiser
# (one call, one answer), which is what the second stage needs.
#
# **You will**
#
# - write the guidance-matching loss in five lines,
# - give a trained U-Net a new input *without changing what it computes*,
# - find out why small $w$ is harder to learn than large $w$, and what helps,
# - check that the one network is as good as the pair.
#
# **You need** notebook 02 (the teacher; if you skipped it, it is trained here first).
#
# | profile | hardware | time, if all is trained here |
# | --- | --- | --- |
# | `smoke` | any CPU | under a minute |
# | `laptop` | two CPU cores | about two minutes on digits, after the teacher |
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

import torch

from cfgdistill import GuidedDenoiser, get_recipe, guidance_matching_loss, guide, train
from cfgdistill.checkpoints import provenance, read_card
from cfgdistill.data import load_data
from cfgdistill.distillation import snr, snr_plus_one, truncated_snr
from cfgdistill.guidance import embed_w, sample_w
from cfgdistill.metrics import generate
from cfgdistill.plotting import COLORS, figure, sample_grid, show
from cfgdistill.pretrained import use_pretrained
from cfgdistill.schedules import expand
from cfgdistill.stages import evaluate_rows, home, make_judge, train_stage_one, train_teacher
from cfgdistill.training import stage_one_loss
from cfgdistill.unets import W_FEATURES, add_w_conditioning

# %% tags=["parameters"]
dataset = os.environ.get("CFGDISTILL_DATASET", "digits")
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
retrain = bool(os.environ.get("CFGDISTILL_RETRAIN"))  # or use the models of the package
seed = 0

# %% [markdown]
# ## The teacher
#
# It comes from notebook 02: found in `out` if it is there, trained if not. We wrap it so that it answers
# the one call of this course, `denoiser(z, t, cond, w)`.

# %%
recipe = get_recipe(dataset, profile, seed=seed)
if not retrain:
    recipe = use_pretrained(recipe, out)
print(recipe)
data = load_data(dataset, "train", recipe.images)
images, labels = data.all()
network = train_teacher(recipe, data, out)
teacher = GuidedDenoiser(network, null=data.num_classes)

# %% [markdown]
# ## The loss
#
# Draw an image, a time, noise, **and a guidance weight**. Ask the teacher pair what it would say at that
# $w$. Ask the student to say the same:
#
# $$ \mathbb{E}_{x,\, t,\, \epsilon,\, w} \;\; \omega(t)\,
# \bigl\lVert\, \underbrace{x_\eta(z_t, c, w)}_{\text{student, one call}} - \bigl[(1 + w)\, x_\theta(z_t, c)
# - w\, x_\theta(z_t, \varnothing)\bigr]\, \bigr\rVert^2 $$
#
# There is no ground truth in it. The image $x$ only serves to make a plausible $z_t$; the target is the
# teacher's opinion. So this is plain regression on a function that we can query as often as we like, with
# a target that is exact and free of noise. We measure the error in $v$. Notebook 01 showed that this is
# the weighting $\omega = \mathrm{SNR} + 1$ of the error in $x$.


# %%
def loss_from_scratch(student, x, cond, w, t, eps):
    z = student.schedule.add_noise(x, eps, t)
    with torch.no_grad():
        v_cond = network(z, t, cond).v
        v_uncond = network(z, t, torch.full_like(cond, data.num_classes)).v
        target = guide(v_cond, v_uncond, expand(w, z))
    return (student(z, t, cond, w).v - target).square().flatten(1).mean(1)


# %% [markdown]
# ## A new input that changes nothing
#
# The student starts as a copy of the teacher's network. The copy needs an input for $w$. As for the time,
# a single number is turned into a vector of sines and cosines first. A linear layer (`cond_proj` in
# `diffusers`) then adds it to the time features.
#
# That layer is new, so what should it start with? `diffusers` leaves it at random, and then the student
# starts as a *damaged* teacher. We set it to **zero**: at the start the student is the conditional teacher
# to the last bit, whatever $w$ is. And at $w = 0$ the conditional teacher is exactly the target, so the
# loss there starts at exactly zero.

# %%
# NBVAL_CHECK_OUTPUT
generator = torch.Generator().manual_seed(1)
student = add_w_conditioning(network, (0.0, recipe.w_max))
x, cond = images[:32], labels[:32]
t, w = torch.rand(32, generator=generator), 4 * torch.rand(32, generator=generator)
eps = torch.randn(x.shape, generator=generator)
with torch.no_grad():
    z = network.schedule.add_noise(x, eps, t)
    difference = (student(z, t, cond, w).v - network(z, t, cond).v).abs().max().item()
    at_zero = guidance_matching_loss(student, teacher, x, cond, 0.0, t, eps=eps).max().item()
    ours = guidance_matching_loss(student, teacher, x, cond, w, t, eps=eps)
    torch.testing.assert_close(loss_from_scratch(student, x, cond, w, t, eps), ours)
print("the loss from scratch is the package's")
print("largest difference between fresh student and conditional teacher:", difference)
print(f"loss of the fresh student at w = 0 is below 1e-9: {at_zero < 1e-9}")

# %% [markdown]
# **How much is there to learn?** The fresh student ignores $w$, so its error is
# $w\,(v_\theta(z_t, c) - v_\theta(z_t, \varnothing))$: it grows as $w^2$ once squared, and it is large
# where the label tells most, which is at high noise. (With hardly any noise, everyone can see which
# digit it is.)

# %%
grid = torch.linspace(0, recipe.w_max, 9)
times = torch.linspace(0.05, 1, 8)


@torch.no_grad()
def mean_loss(student, w, t):
    full = torch.full((len(x),), float(t))
    return guidance_matching_loss(student, teacher, x, cond, float(w), full, eps=eps).mean().item()


fresh_by_w = [sum(mean_loss(student, w, t) for t in times) / len(times) for w in grid]
fresh_by_t = [mean_loss(student, 1.0, t) for t in times]
fig, axes = figure(1, 2, width=8, height=2.8)
axes[0].plot(grid, fresh_by_w, color=COLORS[1], marker="o")
axes[0].set(xlabel="w", ylabel="loss of the fresh student", title="averaged over t", ylim=(0, None))
axes[1].plot(times, fresh_by_t, color=COLORS[1], marker="o")
axes[1].set(xlabel="t", title="at w = 1", ylim=(0, None))
show(
    fig,
    alt="Two curves of the untrained student's loss. Against w it is a parabola that starts at zero. "
    "Against t it is small near the data and largest towards the noise.",
)

# %% [markdown]
# ## Why small $w$ is the hard part
#
# The parabola hides a trap. Nearly all of the loss is at large $w$, so that is where the gradients come
# from, and the weights are shared. While the student learns $w = 4$ it is pulled away from what was already
# *perfect* at $w = 0$, and little gradient pulls it back. Yet at small $w$ a small error is seen at
# once: there the samples are at their most diverse, and the Frechet distance at its lowest.
#
# The second difficulty is the input itself. **What does the network see of $w$?**

# %%
grid_w = torch.linspace(0, recipe.w_max, 400)
features = embed_w(grid_w, W_FEATURES)[:, : W_FEATURES // 2]
fig, axes = figure(1, 2, width=8, height=2.8)
axes[0].imshow(features.T, aspect="auto", extent=(0, recipe.w_max, 32, 0), cmap="cividis")
axes[0].set(xlabel="w", ylabel="sine feature", title="the 32 sines of 1000 w")
for k, color in zip((18, 22, 26, 31), COLORS, strict=False):
    axes[1].plot(grid_w, features[:, k], color=color, label=f"feature {k}")
axes[1].set(xlabel="w", title="four of the slow ones")
axes[1].legend(frameon=False, ncols=2, fontsize=8)
show(
    fig,
    alt="Left: the sine features of w as an image; the upper half oscillates so fast that it looks like "
    "noise, the lower part varies slowly. Right: four slow features as smooth curves of w.",
)

# %% [markdown]
# The frequencies come from the time embedding, where an input of 1000 is normal; `diffusers` therefore
# feeds $1000\,w$. On our range the upper half of the features turns over many times between $w = 0$ and
# $w = 1$: to the network they are noise. The dependence on $w$ has to be built from the few slow features
# at the bottom, the slowest of which barely moves. So the new layer needs *large* weights, and it starts
# from zero.
#
# Three changes follow.
#
# 1. The projection of $w$ learns ten times faster than the rest (`w_rate`).
# 2. Small weights are drawn more often than large ones: $w = w_{\max}\, u^3$ with uniform $u$ (`w_power = 3`; the
#    paper draws $w$ uniformly, `w_power = 1`).
# 3. The loss is divided by $(1 + w)^2$ (`balanced`). Guidance multiplies the teacher's answer by up to $1 + w$,
#    and the squared error by the square of that. After the division an error counts by its size
#    *relative to the target*, and no $w$ shouts down the others.

# %%
u = torch.rand(20000, generator=generator)
fig, axis = figure(width=5, height=2.4)
for power, color in ((1.0, COLORS[1]), (recipe.w_power, COLORS[0])):
    drawn = sample_w(u, (0.0, recipe.w_max), power)
    axis.hist(drawn, bins=40, density=True, histtype="step", color=color, label=f"power {power:g}")
axis.set(xlabel="w", ylabel="density")
axis.legend(frameon=False)
show(
    fig,
    alt="Histograms of drawn w: flat for power 1; for power 3 very high near zero, and falling.",
)

# %% [markdown]
# **Do they help?** Four short runs that differ in nothing else, and their error at every $w$.

# %%
trials = {
    "uniform w": (1.0, 1.0, False),
    "+ faster projection": (1.0, recipe.w_rate, False),
    "+ small w more often": (recipe.w_power, recipe.w_rate, False),
    "+ balanced loss": (recipe.w_power, recipe.w_rate, True),
}
by_trial = {}
for name, (w_power, faster, balanced) in trials.items():
    short = add_w_conditioning(network, (0.0, recipe.w_max))
    for _ in train(
        short,
        stage_one_loss(teacher, short.w_range, w_power=w_power, balanced=balanced),
        data,
        name="trial",
        updates=max(4, recipe.stage_one // 10),
        batch=recipe.batch,
        rate=recipe.rate_one,
        faster={"cond_proj": faster},
        seed=seed,
    ):
        pass
    by_trial[name] = [sum(mean_loss(short, w, t) for t in times) / len(times) for w in grid]
    print(f"{name:22s} error at w = 0: {by_trial[name][0]:.5f}, at w = 4: {by_trial[name][-1]:.5f}")

# %%
fig, axis = figure(width=6, height=3)
for (name, errors), color, marker in zip(by_trial.items(), COLORS[1:], "os^d", strict=False):
    axis.plot(grid, errors, color=color, marker=marker, label=name)
axis.set(xlabel="w", ylabel="loss, averaged over t", yscale="log")
axis.legend(frameon=False)
show(
    fig,
    alt="Loss against w after four short runs, on a logarithmic axis. Uniform w: high at w = 0, lowest "
    "near w = 1.5. With small w more often it is ten times lower at w = 0. With the balanced loss it is "
    "lower still there, and highest at large w.",
)

# %% [markdown]
# Remember that the fresh student's error at $w = 0$ was zero. In so few updates uniform $w$ has *spoilt* it, and the
# student is best somewhere in the middle. Drawn often, small $w$ recovers; balanced, it is hardly lost to begin
# with, and the student grows towards large $w$ from there. For the largest $w$ this start is slower. Does it catch up?
#
# A lower error is a means, not the end, so we also ran trials through to samples: a teacher of 1,500 updates with
# the network of the `laptop` recipe on digits, 900 updates of batch 64 at a rate of 0.001 unless noted, 32 steps. The first three columns are
# the Frechet distance relative to the teacher's own (digits classifier, 64 features; training split; 2,000
# samples for $w = 0$, 500 for the others), the last three the root mean square distance to the teacher's
# sample of the same noise.
#
# | stage one | $w = 0$ | $w = 1$ | $w = 3$ | rmse 0 | 1 | 3 |
# | --- | --- | --- | --- | --- | --- | --- |
# | uniform $w$, one rate | 1.96 | 1.00 | 0.97 | 0.106 | 0.057 | 0.086 |
# | projection 10 times faster | 1.69 | 1.00 | 0.96 | 0.093 | 0.057 | 0.085 |
# | projection faster, $u^3$ | 1.18 | 0.98 | 0.97 | | | |
# | the same, longer average of the weights (0.999) | 1.18 | 0.98 | 0.97 | 0.060 | 0.053 | 0.096 |
# | the same, half the rate, projection 20 times faster | 1.18 | 0.99 | 0.99 | 0.061 | 0.051 | 0.094 |
# | projection faster, $u^2$, and every fifth $w$ exactly 0 | 1.17 | 1.00 | 1.01 | 0.061 | 0.050 | 0.088 |
# | projection faster, $u^3$, features minus those of $w = 0$ | 1.27 | 1.01 | 0.98 | 0.062 | 0.053 | 0.097 |
# | projection faster, $u^4$, batch 96 | 1.11 | 0.98 | 1.00 | 0.053 | 0.054 | 0.077 |
# | projection faster, uniform $w$, balanced | 1.32 | 1.01 | 0.99 | 0.061 | 0.053 | 0.082 |
# | projection faster, $u^2$, balanced | 1.08 | 1.02 | 1.01 | 0.039 | 0.041 | 0.088 |
# | **projection faster, $u^3$, balanced** | **1.05** | 1.02 | 1.02 | 0.031 | 0.040 | 0.093 |
#
# Only $w = 0$ is ever in danger. No single change saves it: not a gentler rate, not a longer average, not drawing
# $w = 0$ itself more often. Frequency and balance together do, at next to no cost for $w = 3$. (An earlier series
# fed the network features of $10\,w$ instead of $1000\,w$. That helped about half as much as the faster projection,
# and no stock pipeline could have fed such a student.) Runs that differ in a detail differ by some 0.05 in the
# first column: believe no smaller difference.
#
# ## Training

# %%
student = train_stage_one(recipe, data, out)
card = read_card(home(recipe, out) / "stage-one")
print(
    f"{card['about']['updates']} updates, {card['minutes']} minutes, final loss {card['losses'][-1]:.4f}"
)

# %% [markdown]
# **Is the student now right at every $w$?** The same two curves as before, and the fresh student's beside
# them.

# %%
by_w = [sum(mean_loss(student, w, t) for t in times) / len(times) for w in grid]
by_t = [mean_loss(student, 1.0, t) for t in times]
fig, axes = figure(1, 2, width=8, height=2.8)
for axis, values, fresh, trained in (
    (axes[0], grid, fresh_by_w, by_w),
    (axes[1], times, fresh_by_t, by_t),
):
    shown = [(value, loss) for value, loss in zip(values, fresh, strict=True) if loss > 1e-9]
    axis.plot(*zip(*shown, strict=True), color=COLORS[1], marker="o", label="fresh")
    axis.plot(values, trained, color=COLORS[0], marker="s", label="trained")
    axis.set(yscale="log")
axes[0].set(xlabel="w", ylabel="loss", title="averaged over t")
axes[1].set(xlabel="t", title="at w = 1")
axes[0].legend(frameon=False)
show(
    fig,
    alt="The trained student's loss against w and against t, on a logarithmic axis, lies well below that "
    "of the fresh student, except at w = 0, where the fresh one was exact and has no point.",
)

# %% [markdown]
# ## Is one call as good as two?
#
# The same noise, the same labels: two evaluations a step on top, one below.

# %%
columns = 10
wanted = torch.arange(2 * columns) % 10
pictures = {
    f"w = {w:g}": {
        "teacher, 2 x 32 NFE": generate(teacher, data.shape, wanted, steps=32, w=w, seed=seed),
        "stage one, 32 NFE": generate(student, data.shape, wanted, steps=32, w=w, seed=seed),
    }
    for w in (0.0, 1.0, 3.0)
}
show(
    sample_grid(pictures, columns),
    alt="Samples of the teacher above and of the stage-one student below, from the same noise at w = 0, 1 "
    "and 3. They can hardly be told apart.",
)

# %%
judge = make_judge(recipe, data, out)
weights = (0.0, 1.0, 3.0)
grid_of = dict(steps=(32,), weights=weights)
two = evaluate_rows(teacher, judge, data, recipe, out, model="teacher", **grid_of)
one = evaluate_rows(student, judge, data, recipe, out, model="stage_one", **grid_of)
print(f"{recipe.samples} samples, {judge.name}, reference {judge.reference}, seed {seed}")
print("  w | teacher (NFE 64) | stage one (NFE 32) | ratio | accuracy of both")
for w, a, b in zip(weights, two, one, strict=True):
    ratio = b["frechet_distance"] / a["frechet_distance"]
    print(
        f"{w:3g} | {a['frechet_distance']:16.3f} | {b['frechet_distance']:18.3f} | {ratio:5.2f} | "
        f"{a['class_accuracy']:.3f} {b['class_accuracy']:.3f}"
    )

# %%
# NBVAL_CHECK_OUTPUT
print("network evaluations, teacher and student:", two[0]["nfe"], one[0]["nfe"])

# %% [markdown]
# ## A word on weightings
#
# The loss carries a factor $\omega(t)$ that says which noise levels matter. The paper's choices, as
# factors on the error in $v$, are these three. All are bounded, which is why the package computes every
# loss through $v$.

# %%
logsnr = torch.linspace(-8, 8, 200)
fig, axis = figure(width=5.5, height=2.6)
for name, weighting, color, style in (
    ("SNR", snr, COLORS[1], "--"),
    ("max(SNR, 1)", truncated_snr, COLORS[2], "-."),
    ("SNR + 1", snr_plus_one, COLORS[0], "-"),
):
    axis.plot(logsnr, weighting(logsnr), color=color, linestyle=style, label=name)
axis.set(xlabel="log SNR (noise on the left, data on the right)", ylabel="factor on the $v$ error")
axis.legend(frameon=False)
show(
    fig,
    alt="Three weightings against log SNR. SNR falls to zero at the noisy end, max(SNR, 1) dips to one half "
    "in the middle, SNR + 1 is constant.",
)

# %% [markdown]
# With SNR the noisiest times, where a few-step sampler takes its most important decisions, get no weight
# at all. The other two differ by at most a factor of two, and in our trials by less than the noise.
#
# ## Exercises
#
# 1. Train with `get_recipe(dataset, profile, w_power=1.0, w_rate=1.0)` into another folder (`out`). Which
#    $w$ suffers most? (Hint: it is not the one with the largest loss.)
# 2. Ask the student for $w = 6$. The package refuses. Set `student.w_range = (0, 6)` and look at the samples.
# 3. The student is *initialised* from the teacher. How many updates does a random initialisation need to
#    get there? (Hint: `build_unet` with another seed, then `add_w_conditioning`.)
# 4. Replace the Fourier features by $w$ itself, repeated 64 times. Does the student learn faster? What would
#    you lose? (Hint: who else has to feed this network?)
#
# **Next:** [04 · Stage two: progressive distillation](04_stage_two.ipynb) halves the steps until one is left.

# %%
facts = provenance(
    notebook="03_stage_one", recipe=recipe.name, seed=seed, data=data.hash[:16], split=data.split
)
for key, value in facts.items():
    print(f"{key}: {value}")
