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

# %% [markdown] slideshow={"slide_type": "slide"}
# # 00 · The whole argument in two dimensions
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/00_two_dimensions.ipynb)
#
# A guided diffusion model takes tens to hundreds of network evaluations to draw one sample. This course turns it
# into a model that takes one, with the method of
# [Meng et al., *On Distillation of Guided Diffusion Models*](https://arxiv.org/abs/2210.03142), which the course
# simply calls "the paper". Here you see the whole argument on points in the plane instead of images. In the
# plane we know the best possible teacher in closed form, so nothing is hidden behind a badly trained network:
# every error you see is an error of the method.
#
# **You will**
#
# - see what a denoiser is, and why its answer is an *average*,
# - sample by walking from noise to data, and steer the walk with a guidance weight $w$,
# - watch the same walk fail when it takes only a few steps,
# - distil the guided teacher twice: first two evaluations per step become one, then 64 steps become one,
# - measure the result against the teacher, from the same noise.
#
# **You need** some PyTorch, and to have trained a network once. No diffusion paper is assumed.
#
# | profile | hardware | time to run |
# | --- | --- | --- |
# | `smoke` | any CPU | seconds, and the samples show it |
# | `laptop` (the default) | two CPU cores | about a minute |
# | `colab`, `paper` | any CPU | some minutes, for smaller errors |
#
# Allow about 30 minutes to read it, and 25 for the exercises;
# without what is *further*, 50 in all.
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=00`.

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
import time

import torch

import cfgdistill as cd
from cfgdistill.core.names import one_of
from cfgdistill.course import checks, widgets
from cfgdistill.judge import plotting
from cfgdistill.training import checkpoints

# %% tags=["parameters"]
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
seed = 0

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 1. The data
#
# Three classes, each an arm of a spiral made of four round blobs. The blobs overlap, and near the centre
# the classes overlap too. Think of a point as a very small image: two pixels, one number each.
#
# **What do we want to be able to draw?** New points of a class that we name.

# %% slideshow={"slide_type": "fragment"}
data = cd.load_data("toy")
x, labels = data.all()


def scatter(axis, points, classes, title="", reach=2.5, s=5, alpha=0.5):
    """Points of the plane, coloured by class."""
    for label in range(3):
        axis.scatter(
            *points[classes == label].T, s=s, alpha=alpha, lw=0, color=plotting.COLORS[label]
        )
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    axis.spines[:].set_visible(False)
    axis.set_title(title, fontsize=10)


fig, axis = plotting.figure(width=3.6, height=3.6)
scatter(axis, x[:3000], labels[:3000], reach=2)
axis.legend([f"{name} class" for name in data.class_names], markerscale=4, frameon=False)
plotting.show(
    fig, alt="Three classes of points in the plane: spiral arms that start at the centre."
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 2. A denoiser, and here we know the best one
#
# Mix a data point $x$ with Gaussian noise $\varepsilon$:
#
# $$z_t = \alpha_t x + \sigma_t \varepsilon, \qquad \alpha_t = \cos(\tfrac{\pi}{2} t), \quad \sigma_t = \sin(\tfrac{\pi}{2} t).$$
#
# At $t = 0$ this is data, at $t = 1$ it is pure noise. A **denoiser** gets $z_t$ and $t$ and guesses $x$.
# Many different $x$ can lie behind the same $z_t$, so no guess is always right. Trained with a squared error,
# the best guess is the average of all of them, $\mathbb{E}[x \mid z_t]$. Remember that word, *average*: it is
# the reason why a diffusion model needs many steps.

# %% [markdown]
# ### Exercise 1: an average by brute force *(fill in a line, 5 minutes)*
#
# You need no formula for this average if you have enough examples. Given a million pairs $(x, z_t)$ at $t = 0.5$, `average` is to
# estimate the best guess at one place of the plane: the mean of all $x$ whose $z_t$ lies within 0.1 of it.
#
# <details><summary>Hint 1</summary>
#
# The distance of every $z_t$ from the place is `(z_t - place).norm(dim=1)`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# A tensor of truth values selects rows: `x[near]`.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "average", "locked": false, "schema_version": 3, "solution": true, "task": false}
def average(z_t, x, place):
    """The mean of the x whose z_t is near a place: z_t, x [n, 2], place [2] -> [2]."""
    ### BEGIN SOLUTION
    near = (z_t - place).norm(dim=1) < 0.1
    return x[near].mean(0)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "average-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.average(average))
### BEGIN HIDDEN TESTS
assert checks.average(average).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Expected:* (0.27, 0.18) at the place (0.6, 0.3), from about 4,600 points; the exact answer is (0.276, 0.179).
#
# *Common wrong answers:* the mean of `z_t[near]` gives back the place; the place over $\alpha$ undoes the scaling only; the $x$ of the nearest $z_t$ is a
# sample, another one for another draw; `x.mean(0)` forgets to select.
#
# *To discuss:* how many points would be near in 64 dimensions instead of 2, and what does a network do about it?
#
# </details>

# %% [markdown]
# For images a network has to learn this average. For our blobs it is a formula. If $x$ came from a blob with
# centre $\mu$ and standard deviation $s$, then $z_t$ is Gaussian around $\alpha_t \mu$ with variance
# $q = \alpha_t^2 s^2 + \sigma_t^2$, and the best guess moves from $\mu$ towards $z_t / \alpha_t$ by the share
# of the variance that is not noise. We do not know the blob, so we ask how likely each one is, given
# $z_t$, and average. (All blobs have the same $q$, so the constant in front of the Gaussian cancels and a
# softmax of the exponents is enough.)

# %%
mixture, schedule = cd.pinwheel(), cd.CosineSchedule()


def exact_x(z, t, means, std):
    """E[x | z_t] for a mixture of equally likely round blobs."""
    alpha, sigma = schedule.alpha_sigma(torch.tensor(t))
    q = alpha**2 * std**2 + sigma**2
    offset = z[:, None] - alpha * means  # from every point to every blob
    likely = (-offset.square().sum(-1) / (2 * q)).softmax(1)
    guess = means + alpha * std**2 / q * offset  # the best one, blob by blob
    return (likely[..., None] * guess).sum(1)


# %% [markdown]
# The package has the same formula behind the one call that every model of this course answers,
# `denoiser(z, t, cond, w)`. `cond` is the class; the label 3 means *no class given*. The answer contains the
# guess of $x$ and, for free, the guess of the noise: if you know $z_t$ and $x$, you know $\varepsilon$.
#
# Cells marked `NBVAL_CHECK_OUTPUT`, like the next one, are compared by the tests: their output must be the
# same on every machine.

# %%
# NBVAL_CHECK_OUTPUT
exact = mixture.denoiser(schedule)
generator = torch.Generator().manual_seed(seed)
z = torch.randn(500, 2, generator=generator)
first, nothing = torch.zeros(500).long(), torch.full((500,), 3)

torch.testing.assert_close(exact(z, 0.6, nothing).x, exact_x(z, 0.6, mixture.means, mixture.std))
torch.testing.assert_close(exact(z, 0.6, first).x, exact_x(z, 0.6, mixture.means[:4], mixture.std))
print("our formula is the package's denoiser, with and without a class: True")

# %% [markdown] slideshow={"slide_type": "slide"}
# **What does the denoiser answer as the noise grows?** Each arrow starts at a noisy point $z_t$ (a white circle) and
# ends at the guess of $x$. No class is given. (`per_example(t, z)` gives every point the same time; in training each
# will have its own.)

# %% slideshow={"slide_type": "fragment"}
eps = torch.randn(25, 2, generator=generator)
fig, axes = plotting.figure(1, 3, width=9.6, height=3.4)
for axis, t in zip(axes, (0.2, 0.5, 0.9), strict=True):
    z_t = schedule.add_noise(x[:25], eps, cd.per_example(t, eps))
    guess = exact(z_t, t, nothing[:25]).x
    scatter(axis, x[:1500], labels[:1500], f"t = {t}", reach=2.8)
    arrows = {"angles": "xy", "scale_units": "xy", "scale": 1, "width": 0.005}
    axis.quiver(*z_t.T, *(guess - z_t).T, headwidth=3.5, headlength=4, **arrows)
    axis.scatter(*z_t.T, s=14, facecolor="white", edgecolor="black", lw=0.8, zorder=3)
alt = "Arrows from noisy points, drawn as white circles, to guesses of x. At t = 0.2 they are short and end on the nearest arm; at t = 0.5 on and between the arms; at t = 0.9 all of them end close to the centre."
plotting.show(fig, alt=alt)

# %% [markdown] slideshow={"slide_type": "fragment"}
# With little noise the guess is the nearest piece of an arm: there is not much to average over. With
# much noise every arm is possible, and the guess is the average of everything: the middle of the picture, nearly the
# same point for all. **A denoiser's guess is not a sample.** For images that average is a grey blur.
#
# ## 3. Sampling is a walk from noise to data
#
# The guess is poor when $t$ is large, but it points in the right direction. So we take only a small step:
# guess $x$ and $\varepsilon$, mix them again with a little less noise, and ask again. A step from $t$ down to
# $s$ is
#
# $$z_s = \alpha_s \hat x + \sigma_s \hat\varepsilon .$$
#
# This is [DDIM](https://arxiv.org/abs/2010.02502). It draws no random numbers: the start $z_1$ decides where the walk
# ends. With more and smaller steps the walks approach smooth curves, the solutions of a differential equation (the
# [*probability-flow ODE*](https://arxiv.org/abs/2011.13456)). If the denoiser is exact, points that start as pure
# noise are at every time $t$ distributed like noised data $z_t$, so at $t = 0$ they are distributed like the data:
# the walk maps the whole cloud of noise onto the whole cloud of data, although it asks for averages all the way.


# %%
def walk(denoiser, z, steps, cond, w=None):
    """DDIM from t = 1 to t = 0 in equal steps; every point on the way."""
    path = [z]
    for i in range(steps, 0, -1):
        guess = denoiser(path[-1], i / steps, cond, w)
        alpha, sigma = schedule.alpha_sigma(torch.tensor((i - 1) / steps))
        path.append(alpha * guess.x + sigma * guess.eps)
    return torch.stack(path)


path = walk(exact, z, 128, first)
torch.testing.assert_close(path[-1], cd.last(cd.ddim(exact, z, 128, first)))

# %% [markdown] slideshow={"slide_type": "slide"}
# **How does a point get from noise to data?** 40 walks of 128 steps, once without a class and once with the
# first class.

# %% slideshow={"slide_type": "fragment"}
fig, axes = plotting.figure(1, 2, width=7.2, height=3.7)
for axis, cond, title in zip(axes, (nothing, first), ("no class", "first class"), strict=True):
    path = walk(exact, z[:40], 128, cond[:40])
    scatter(axis, x[:2000], labels[:2000], title, reach=3.7)
    axis.plot(path[..., 0], path[..., 1], color="0.35", lw=0.7)
    axis.scatter(*path[0].T, s=10, facecolor="white", edgecolor="black", lw=0.7, zorder=3)
    axis.scatter(*path[-1].T, s=12, color="black", zorder=3)
alt = "Curved paths from white circles (noise) to black dots (samples). Without a class the dots lie on all three arms, with the first class all on the first arm."
plotting.show(fig, alt=alt)

# %% [markdown] slideshow={"slide_type": "fragment"}
# White circles are noise, black dots are samples. Two paths may cross on paper, but never at the same $t$:
# the point and the time alone decide how the walk goes on. And the paths **bend**, since the guess changes on the
# way. A long step is taken with one guess and cannot follow. That is the whole difficulty.
#
# ## 4. Guidance: two evaluations per step
#
# Conditioning on the class gives samples that look like that class, but often not strongly enough.
# [Classifier-free guidance](https://arxiv.org/abs/2207.12598) (Ho & Salimans) asks the denoiser twice, with and
# without the class, and exaggerates the difference:
#
# $$\hat x_w = (1 + w)\, \hat x(z_t, \text{class}) - w\, \hat x(z_t) .$$
#
# $w = 0$ is no guidance. **Watch the convention:** other programs call $1 + w$ the guidance scale, and
# for them 1 is no guidance. The pair of evaluations is our **guided teacher**.

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
teacher = cd.GuidedDenoiser(exact, null=3)
with_class, without = exact(z, 0.6, first).x, exact(z, 0.6, nothing).x
torch.testing.assert_close(teacher(z, 0.6, first, 2.0).x, cd.guide(with_class, without, 2.0))
print("by hand, (1 + 3) * 2 - 3 * 1 =", cd.guide(2, 1, 3))

teacher.nfe = 0
cd.last(cd.ddim(teacher, z, 128, first, 2.0))
print("network evaluations (NFE) of one guided sample in 128 steps:", teacher.nfe)

# %% [markdown] slideshow={"slide_type": "slide"}
# **What does $w$ do?** The same noise at three weights.

# %% slideshow={"slide_type": "fragment"}
noise = torch.randn(1200, 2, generator=torch.Generator().manual_seed(seed + 1))
classes = torch.arange(1200) % 3
reference = {w: cd.last(cd.ddim(teacher, noise, 128, classes, w)) for w in (0.0, 1.0, 3.0)}


def panels(pictures, columns, alt, reach=2.5):
    """{title: points} as a grid of panels."""
    rows = len(pictures) // columns
    fig, axes = plotting.figure(
        rows, columns, width=8.6, height=9.2 / columns * rows, squeeze=False
    )
    for axis, (title, points) in zip(axes.flat, pictures.items(), strict=True):
        scatter(axis, points, classes, title, reach)
    plotting.show(fig, alt=alt)


alt = "Samples of three classes at w = 0, 1 and 3. At 0 the arms meet in the centre as in the data; the larger w is, the further they draw apart, and the narrower they are."
panels({f"guided teacher, w = {w:g}, 256 NFE": sample for w, sample in reference.items()}, 3, alt)

# %% [markdown]
# At $w = 0$ the samples are distributed like the data: the three arms touch in the centre. As $w$ grows, each class leaves
# the region that it shares with the others. There is less doubt about the class, and less variety.
# For images that trade is usually worth it. Which $w$ is best is a matter of taste, so we want **one
# model for every $w$**.
#
# ## 5. Why not simply take fewer steps?
#
# What if the exact teacher takes only a few steps? It is the best denoiser there is, so whatever is wrong then, the fault cannot
# lie in its training.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 2: where does a single step land? *(predict before the figure, 3 minutes)*
#
# At $t = 1$ we have $\alpha = 0$: nothing of $x$ is in $z_1$. So with a class the exact guess is the mean of that class, whatever the noise was, and without a class it is the mean of
# everything, which is 0 in our pinwheel. One step from $t = 1$ to $t = 0$ lands on the *guided* guess. **Where is that at $w = 3$, in multiples of the class mean?**
#
# <details><summary>Hint</summary>
#
# Put both guesses into $(1 + w)\, \hat x(z_t, \text{class}) - w\, \hat x(z_t)$.
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "landing", "locked": false, "schema_version": 3, "solution": true, "task": false}
landing = None
### BEGIN SOLUTION
landing = 4.0
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "landing-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.landing(landing))
### BEGIN HIDDEN TESTS
assert checks.landing(landing).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>Why</summary>
#
# $(1 + 3) \cdot \text{mean of the class} - 3 \cdot 0$: four times as far out as the class mean, for every noise.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* 1 ("at the class mean": that is $w = 0$), 3 (mixes up $w$ with $1 + w$).
#
# *To discuss:* why is a picture with four times the contrast of an average not a good picture?
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# **What does the exact teacher give in 1, 2 and 4 steps?**

# %% slideshow={"slide_type": "fragment"}
pictures = {}
for w in (0.0, 3.0):
    for steps in (1, 2, 4):
        sample = cd.last(cd.ddim(teacher, noise, steps, classes, w))
        pictures[f"w = {w:g}, {steps} x 2 = {2 * steps} NFE"] = sample
    pictures[f"w = {w:g}, 128 x 2 = 256 NFE"] = reference[w]
alt = "The exact teacher in 1, 2, 4 and 128 steps, at w = 0 and 3. One step gives one point per class, at w = 3 far outside the data; two and four steps give deformed arms."
panels(pictures, 4, alt, reach=3.6)

# %% [markdown] slideshow={"slide_type": "fragment"}
# One step gives **one point per class**. Of course: at $t = 1$ there is nothing in $z_1$ about $x$, so the
# guess is the average of the class, whatever the noise was. Guidance then exaggerates it, and at $w = 3$ the point lies
# outside the data. With two and four steps there are arms again, but thinner and shorter
# ones; at $w = 3$, two steps make them fans that scatter outwards.

# %% [markdown]
# **Now you.** Black are walks in a few steps, grey those in 128 from the same noise, and the samples are coloured and grey likewise. How many steps does it take until black lies on grey, at $w = 0$ and at $w = 3$? And
# which point does every first step head for, whatever the noise is?


# %%
def draw(steps, w, noise=noise[:600], classes=classes[:600]):  # of now: section 8 has others
    few, many = (walk(teacher, noise, n, classes, w) for n in (steps, 128))
    rmse = (few[-1] - many[-1]).square().mean().sqrt()
    fig, axes = plotting.figure(1, 2, width=9.6, height=4.9)
    titles = f"{steps} x 2 = {2 * steps} NFE, w = {w:g}", f"twelve of the walks; rmse {rmse:.2f}"
    for axis, title in zip(axes, titles, strict=True):
        axis.scatter(*many[-1].T, s=8, lw=0, color="0.8")
        scatter(axis, few[-1], classes, title, reach=3.3, s=10)
    axes[1].plot(*many[:, :12].unbind(-1), color="0.6", lw=2)
    axes[1].plot(*few[:, :12].unbind(-1), color="black", lw=0.8, marker=".", ms=3)
    axes[1].scatter(*noise[:12].T, s=16, facecolor="white", edgecolor="black", zorder=3)
    return fig


widgets.explore(
    draw,
    alt="Left: samples of the exact teacher in four steps at w = 2, coloured arms that are thinner than those of 128 steps, in grey behind them. Right: "
    "twelve of the walks, broken lines in black, beside smooth grey curves from the same white circles; the broken ones overshoot the bends.",
    steps=(4, 1, 64, 1),
    w=(2.0, 0.0, 3.0, 0.5),
)

# %% [markdown]
# So a one-step model cannot be a denoiser. It has to answer another question: not *what is the
# average of all $x$ behind this $z_1$*, but *where does the walk that starts at $z_1$ end?* That question has one
# answer, which can be learned. Two stages get us there.
#
# (Two words from here on. A **denoiser** answers with the average, and works with any number of steps. A **student of
# $N$ steps** answers with the $x$ whose one long step lands where the walk leads, and works with its own $N$ steps
# only. In the code they share one interface, the class `Denoiser`: either is called as `denoiser(z, t, cond, w)`,
# and only what it was trained for decides which of the two it is.)
#
# ## 6. Stage one: the pair becomes one network
#
# A small network gets $z_t$, $t$, the class **and $w$**, and learns to say what the guided pair says. In
# every update we draw $w$ uniformly from $[0, 4]$, noise some data, ask the teacher for its guided guess, and
# minimise the squared distance:
#
# $$\mathbb{E}_{w, t, x, \varepsilon} \left\| \hat x_\text{student}(z_t, w) - \hat x_w(z_t) \right\|^2 .$$
#
# The data only decides *where* we ask. The targets come from the teacher: there is no noise in them,
# and a network that is large enough can reach zero. On images the student will start from the
# teacher's weights; our exact teacher has none, so the student starts at random. (The package also multiplies the
# error by a weight that depends on $t$ alone. The best answer is the same; notebook 01 explains what it is for.)
#
# The profile decides how long we train. Everything else is the same in all of them. `start` is the number
# of steps of the first student of stage two; its teacher takes twice as many.

# %%
SIZES = {
    "smoke": {"batch": 128, "stage_one": 60, "halving": 10, "start": 16},
    "laptop": {"batch": 512, "stage_one": 1500, "halving": 150, "start": 32},
    "colab": {"batch": 1024, "stage_one": 6000, "halving": 600, "start": 32},
    "paper": {"batch": 2048, "stage_one": 20000, "halving": 2000, "start": 64},
}
size = SIZES[one_of("profile", profile, SIZES)]
W_RANGE = (0.0, 4.0)  # the guidance weights that the students learn

torch.manual_seed(seed)
student = cd.Denoiser(cd.MLP(), schedule, w_range=W_RANGE, num_classes=3)
loss = cd.stage_one_loss(teacher, W_RANGE)
# Two dimensions are too small for a GPU to help.
how = cd.Run("stage-one", seed=seed, device="cpu")

started = time.perf_counter()
updates = cd.train(student, loss, data, cd.Optim(size["stage_one"], size["batch"], rate=6e-3), how)
losses = [update.loss for update in updates]
print(f"stage one: {len(losses)} updates, {time.perf_counter() - started:.0f} s")
print(f"loss of the first update {losses[0]:.3f}, mean of the last 20 {sum(losses[-20:]) / 20:.5f}")

# %% [markdown] slideshow={"slide_type": "slide"}
# **Does one network match the pair, for every $w$?** Grey discs are the guided teacher, dots the student, both
# in 128 steps from the same noise. A line joins each pair. The teacher has paid 256 evaluations, the student 128.
# The error in the titles is the root of the mean squared distance per coordinate (rmse).

# %% slideshow={"slide_type": "fragment"}
fig, axes = plotting.figure(1, 3, width=10.5, height=3.8)
for axis, (w, target) in zip(axes, reference.items(), strict=True):
    target, sample = target[:150], cd.last(cd.ddim(student, noise[:150], 128, classes[:150], w))
    rmse = (sample - target).square().mean().sqrt()
    axis.scatter(*target.T, s=60, color="0.82", lw=0)
    axis.plot(*torch.stack([sample, target]).permute(2, 0, 1), color="black", lw=0.8)
    scatter(axis, sample, classes[:150], f"w = {w:g}, rmse {rmse:.3f}", reach=2.1, s=14, alpha=1)
alt = "Student samples as coloured dots on teacher samples as grey discs, at w = 0, 1 and 3. At the laptop profile the dots lie on their discs at w = 1 and 3; at w = 0 about one in ten, most of them near the centre, lies beside it."
plotting.show(fig, alt=alt)

# %% [markdown] slideshow={"slide_type": "slide"}
# At the `laptop` profile the dots lie on their discs at $w = 1$ and 3. At $w = 0$ about one in ten does not. **Why is
# $w = 0$ the hardest?** Let us see how fast a sample of the teacher moves when $w$ changes a little.

# %% slideshow={"slide_type": "fragment"}
print("how far a sample moves per unit of w (rmse)")
for w in (0.0, 1.0, 3.0):
    near, far = (cd.last(cd.ddim(teacher, noise[:300], 64, classes[:300], v)) for v in (w, w + 0.1))
    print(f"  at w = {w:g}: {(far - near).square().mean().sqrt() / 0.1:.2f}")

# %% [markdown] slideshow={"slide_type": "slide"}
# Near $w = 0$ the samples move fastest, so a student that misjudges $w$ slightly errs most there. (On images the
# loss makes it worse: see notebook 03.) Apart from that we have halved the cost of a step, and nothing else
# has changed: the student is still a denoiser, its guess is still an average, and with one step it would
# fail as the teacher did.
#
# ## 7. Stage two: two steps become one, again and again
#
# Now we change the question. This is *progressive distillation* ([Salimans & Ho](https://arxiv.org/abs/2202.00512)).
# Let a teacher with $2N$ steps take **two** of them, from $t$ through the midpoint to $s$. Then ask:
# which answer $\tilde x$ would have brought us to the same $z_s$ in **one** step? With $\tilde\varepsilon$, the noise that belongs
# to it, that means
#
# $$z_t = \alpha_t \tilde x + \sigma_t \tilde\varepsilon, \qquad z_s = \alpha_s \tilde x + \sigma_s \tilde\varepsilon .$$
#
# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 3: the target of distillation *(derive, 8 minutes)*
#
# We know $z_t$ and $z_s$, and the four levels: two equations, two unknowns. **Solve them for $\tilde x$.**
#
# <details><summary>Hint 1</summary>
#
# Multiply the first equation by a number that makes its $\tilde\varepsilon$ as large as that of the second.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# The number is $\sigma_s / \sigma_t$. Subtract, and $\tilde\varepsilon$ is gone.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "implied_x", "locked": false, "schema_version": 3, "solution": true, "task": false}
def implied_x(z_t, z_s, alpha_t, sigma_t, alpha_s, sigma_s):
    """The x that is mixed into z_t and into z_s with the same eps."""
    ### BEGIN SOLUTION
    ratio = sigma_s / sigma_t
    return (z_s - ratio * z_t) / (alpha_s - ratio * alpha_t)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "implied_x-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.implied_x(implied_x))
### BEGIN HIDDEN TESTS
assert checks.implied_x(implied_x).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* $z_s / \alpha_s$ (right at $s = 0$ alone); $(z_s - z_t) / (\alpha_s - \alpha_t)$, without the ratio; a plus sign; the ratio in the numerator only.
#
# *Accepted:* every form that is equal, such as $(\sigma_t z_s - \sigma_s z_t) / (\sigma_t \alpha_s - \sigma_s \alpha_t)$, which is the formula of two lines and their crossing.
#
# *To discuss:* when does the denominator vanish? (At $s = t$ only: no step.)
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# Multiply the first equation by $\sigma_s / \sigma_t$, subtract it from the second, and $\tilde\varepsilon$ is gone:
#
# $$\tilde x = \frac{z_s - (\sigma_s / \sigma_t)\, z_t}{\alpha_s - (\sigma_s / \sigma_t)\, \alpha_t} .$$
#
# $\tilde x$ is the target of the student. It is not an average any more: it is where two steps of a walk lead.


# %%
def two_steps_as_one(teacher, z, t, s, cond, w):
    """The x whose single step t -> s lands where two teacher steps land, and that place."""
    mid = (t + s) / 2
    z_mid = cd.ddim_step(teacher(z, t, cond, w), cd.per_example(mid, z), schedule)
    second = teacher(z_mid, mid, cond, w)
    z_s = cd.ddim_step(second, cd.per_example(s, z), schedule)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(t, z), levels(s, z)
    ratio = sigma_s / sigma_t
    return (z_s - ratio * z) / (alpha_s - ratio * alpha_t), z_s


def levels(t, z):
    """alpha_t and sigma_t in the precision of z."""
    return schedule.alpha_sigma(torch.tensor(t, dtype=z.dtype))


# %% [markdown] slideshow={"slide_type": "fragment"}
# The heart of the method is an identity, so we check it as one, in double precision: a student that answers
# $\tilde x$ lands where the teacher's two steps land. This must hold in every interval of every student. (The package
# has the same target in another form, as a prediction $v$ that notebook 01 explains; the two are compared as well.)

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
z64 = noise.double()
for steps in (1, 2, 4, 8, 64):
    worst = 0.0
    for i in range(steps, 0, -1):
        t, s = i / steps, (i - 1) / steps
        x_target, z_s = two_steps_as_one(teacher, z64, t, s, classes, 3.0)
        (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(t, z64), levels(s, z64)
        eps_target = (z64 - alpha_t * x_target) / sigma_t
        landed = alpha_s * x_target + sigma_s * eps_target
        worst = max(worst, (landed - z_s).abs().max().item())
        v = cd.progressive_target(teacher, z64, t, s, classes, 3.0)
        torch.testing.assert_close(x_target, alpha_t * z64 - sigma_t * v)
    print(f"N = {steps}: one student step is two teacher steps to 1e-10: {worst < 1e-10}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 4: a famous mistake *(find the mistake, 5 minutes)*
#
# After its two steps the teacher has a fresh guess, `second.x`. Public code exists that takes *this* for the target of the student. Let the student have $N = 4$ steps; interval $i$ goes
# from $t = i/4$ to $s = (i - 1)/4$. **In which intervals does a step with `second.x` still land on $z_s$?** Answer with a set, such as `{1, 2}`.
#
# <details><summary>Hint 1</summary>
#
# The student takes its $\tilde\varepsilon$ from $z_t$ and $\tilde x$. Is it the noise that the teacher used in its second step?
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# What if $\sigma_s = 0$?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "second_x_lands", "locked": false, "schema_version": 3, "solution": true, "task": false}
second_x_lands = None
### BEGIN SOLUTION
second_x_lands = {1}
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "second_x_lands-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.second_x_lands(second_x_lands))
### BEGIN HIDDEN TESTS
assert checks.second_x_lands(second_x_lands).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>Why</summary>
#
# The teacher lands on $z_s = \alpha_s x_2 + \sigma_s \varepsilon_2$ with *its* $\varepsilon_2$, the noise that belongs to $x_2$ at the midpoint. The student's belongs to $x_2$ at $z_t$ and is another one. Only at $s = 0$ is there no
# noise in $z_s$: the last interval, $i = 1$. So with $N = 1$, where the last interval is the only one, **a test of the wrong target passes**. [Notebook 04](04_stage_two.ipynb) measures
# how far the others miss.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* $\{4\}$, counting from the noise, or because "that is where the noise is"; all of them ("it is the better guess").
#
# *To discuss:* which test would have caught it? (Any interval with $s > 0$: landing on $z_s$ is the definition of the target.)
#
# </details>

# %% [markdown]
# A student that has learned this takes $N$ steps. It becomes the teacher of the next student, which takes
# $N/2$, and so on down to 1. Each student starts from the weights of its teacher, so it has little to
# learn; and it keeps its $w$ input, so all weights are distilled at once.
#
# Why not teach the single step directly, from the ends of the 64-step walk? That works, and it was done first
# ([Luhman & Luhman](https://arxiv.org/abs/2101.02388)). Such a student even inherits less: no error but that of the 64
# steps. What speaks against it is the price. Every target costs 64 evaluations of the stage-one model instead of 2,
# for every example of every update. And a student of the staircase starts close to its answer, since the answers of
# $2N$ steps and of $N$ steps are much alike. Starting the staircase at its foot is not a third way: see the first of the further questions.

# %%
started = time.perf_counter()
# The last two students, of 2 steps and 1 step, get twice the updates.
optim = cd.Optim(size["halving"], size["batch"], rate=3e-3)
halve = cd.distill_progressively(student, data, optim, how, start=size["start"])
students = {model.steps: model for model in halve}
print(f"stage two: students of {list(students)} steps, {time.perf_counter() - started:.0f} s")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 8. What have we got?
#
# **Same noise, 256 evaluations or one: can you tell the difference?**

# %% slideshow={"slide_type": "fragment"}
pictures = {}
for w, target in reference.items():
    first_guess, one = (cd.last(cd.ddim(m, noise, 1, classes, w)) for m in (teacher, students[1]))
    pictures[f"w = {w:g}: teacher, 256 NFE"] = target
    pictures[f"w = {w:g}: teacher, 2 NFE"] = first_guess
    pictures[f"w = {w:g}: student, 1 NFE"] = one
    rmse = [(sample - target).square().mean().sqrt() for sample in (first_guess, one)]
    print(
        f"w = {w:g}: rmse of the teacher's one step {rmse[0]:.2f}, of the student's {rmse[1]:.3f}"
    )
alt = "Rows: w = 0, 1, 3. Left: the teacher in 128 steps, three arms. Middle: the teacher in one step, one point per class. Right: the student in one step; at the laptop profile the arms again."
panels(pictures, 3, alt, reach=3.6)

# %% [markdown] slideshow={"slide_type": "slide"}
# At the `laptop` profile the right column repeats the left one, with one evaluation instead of 256. Look
# closely at $w = 0$, though: where the arms meet, the student leaves a small gap. As the numbers above the figure say,
# its error there is about three times that at $w = 1$ and 3. It is where stage one was worst already, and for the
# same reason: near $w = 0$ the samples move fastest with $w$. The last of the further questions takes this up.
#
# **How far is each sample from where the exact walk of the same noise ends?** As the exact walk we take 1,024 steps of
# the teacher, for 1,000 new noises and $w$ uniform in $[0, 4]$. (128 steps would not do as a yardstick here: they are
# not exact themselves, and the teacher's 64 steps would look too good beside them.) The error is the mean squared
# error over the points and both coordinates (mse), and its root (rmse).

# %%
n = 1000
generator = torch.Generator().manual_seed(seed + 2)
noise, classes = torch.randn(n, 2, generator=generator), torch.randint(3, (n,), generator=generator)
w = W_RANGE[1] * torch.rand(n, generator=generator)
target = cd.last(cd.ddim(teacher, noise, 1024, classes, w))


def errors(model, steps):
    """Steps, NFE, mean squared error and rmse to 1,024 teacher steps from the same noise."""
    model.nfe = 0
    mse = (cd.last(cd.ddim(model, noise, steps, classes, w)) - target).square().mean().item()
    return steps, model.nfe, mse, mse**0.5


rows = [("guided teacher", *errors(teacher, steps)) for steps in (64, 32, 16, 8, 4, 2, 1)]
rows += [("stage one", *errors(student, 2 * size["start"]))]
rows += [("student", *errors(model, steps)) for steps, model in students.items()]
print(f"{'model':<16}{'steps':>5}{'NFE':>6}{'mse':>12}{'rmse':>10}")
for name, steps, nfe, mse, rmse in rows:
    print(f"{name:<16}{steps:>5}{nfe:>6}{mse:>12.6f}{rmse:>10.4f}")

mse, rmse = (a / b for a, b in zip(rows[6][3:], rows[-1][3:], strict=True))
print(f"one step, teacher over student: {rmse:.0f} times in rmse, {mse:.0f} times in mse")

# %% [markdown]
# ### Exercise 5: who made the error? *(further: read a table, 5 minutes)*
#
# The last row is the one-step student, the row "stage one" the model that its chain of halvings started from. **Which share of the student's squared error was there before the first
# halving?** Take the two numbers from `rows`, so that the answer fits your run.
#
# <details><summary>Hint 1</summary>
#
# A row is (model, steps, NFE, mse, rmse), and stage one is `rows[7]`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Errors with independent causes add up when they are squared, as variances do.
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "share_of_stage_one", "locked": false, "schema_version": 3, "solution": true, "task": false}
share_of_stage_one = None
### BEGIN SOLUTION
share_of_stage_one = rows[7][3] / rows[-1][3]
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "share_of_stage_one-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.share_of_stage_one(share_of_stage_one, rows[7][3], rows[-1][3]))
### BEGIN HIDDEN TESTS
assert checks.share_of_stage_one(share_of_stage_one, rows[7][3], rows[-1][3]).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Expected at `laptop`:* 0.35.
#
# *Common wrong answers:* 0.59, the ratio of the rmse (the roots do not add up); 0.65, the share of the halvings; 2.9, upside down.
#
# *To discuss:* why does the square of stage one lie on the teacher's line in the next figure?
#
# </details>

# %% slideshow={"slide_type": "fragment"}
fig, axis = plotting.figure(width=6.2, height=3.6)
styles = {"guided teacher": {"marker": "o"}, "student": {"marker": "^"}}
styles["stage one"] = {"marker": "s", "markersize": 11, "fillstyle": "none", "mew": 2, "ls": ""}
for color, (name, style) in zip(plotting.COLORS, styles.items(), strict=False):
    own = [(row[2], row[4]) for row in rows if row[0] == name]
    axis.plot(*zip(*own, strict=True), color=color, label=name, **style)
axis.set(xscale="log", yscale="log", xlabel="network evaluations (NFE)", ylabel="rmse")
axis.set_xticks([2**k for k in range(8)], [2**k for k in range(8)], minor=False)
axis.minorticks_off()
axis.legend(frameon=False)
alt = "Error against network evaluations, both axes logarithmic. The teacher's error falls along a straight line from 8 to 128 evaluations; at the laptop profile the students' is low and nearly flat down to 1, and stage one, a hollow square at 64, lies almost on the teacher's line."
plotting.show(fig, alt=alt)

# %% [markdown] slideshow={"slide_type": "slide"}
# The teacher's error halves with every doubling of the steps: from 4 steps on, the line has slope $-1$. (DDIM is a
# method of first order.) But the line starts high, and every step costs two evaluations. The students' line is nearly
# flat. At the `laptop` profile:
#
# - one step of the teacher has an rmse of 1.03, one step of the student 0.027. That is **about a 40th, for half
#   the evaluations** (in mean squared error about a 1,500th);
# - with its one evaluation the student is closer to the exact walk than the teacher with 32;
# - stage one alone gains little *at equal cost*: 0.016 with 64 evaluations, where the teacher has 0.019. It takes
#   twice as many steps with them, but the error of the network eats up most of that advantage. What makes it worth the
#   trouble is that it is *one* network, whose steps stage two can halve;
# - of the one-step student's mse about a third (35%) was there after stage one; the rest came in with the six halvings.
#   (Compare mean squared errors, not their roots: those of independent causes add up, the roots do not.)
#   Both parts are a matter of network size and training. (`smoke` trains for
#   seconds only; its students are several times worse.)
#
# None of this depended on working in two dimensions. The next notebooks repeat the argument on images, where the
# teacher is a network with errors of its own, the student a U-Net, and the distance between two sets of samples has to
# be measured with more care.
#
# ## Further questions
#
# 1. **Start at the foot of the staircase.** Run stage two with `start=1`, so that the one-step student learns from
#    *two* steps of stage one. How large is its error, and why does more training not help? *Hint: compute the error of
#    the stage-one student in two steps. A halving inherits the error of its teacher. (Learning from the 64 steps
#    directly, as in section 7, has no such error.)*
# 2. **Outside the range.** Ask a student for $w = 5$. What happens, and why is a refusal better than an answer?
#    *Hint: call `last(ddim(students[1], noise, 1, classes, 5.0))`; then set `students[1].w_range = None`, try again,
#    and compare with the teacher at $w = 5$.*
# 3. **How crooked is a walk?** Compute the length of each walk over the distance between its ends, for
#    $w = 0, 1, 3$. *Hint: `walk` returns all points; the length is the sum of `path.diff(dim=0).norm(dim=-1)`.*
# 4. **More practice near $w = 0$.** Train stage one with $w = 4 u^3$, $u$ uniform, and compare the errors at $w = 0$ and at
#    $w = 3$. Which $w$ pays for it? *Hint: `stage_one_loss` takes
#    `w_power=3`. On images we shall do exactly this, in notebook 03.*
#
# ## What to try next
#
# [Notebook 01](01_schedules_and_parameterizations.ipynb) explains what we used without proof: the schedule, $v$, the
# weights of the loss, and why a step is a rotation. Then [notebook 02](02_guided_teacher.ipynb) starts again with real images,
# where the teacher has to be learned as well.

# %%
for key, value in checkpoints.provenance(
    profile=profile, seed=seed, data=data.hash, **size
).items():
    print(f"{key}: {value}")
