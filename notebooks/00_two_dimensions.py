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
# # 00 · The whole argument in two dimensions
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/00_two_dimensions.ipynb)
#
# A guided diffusion model needs hundreds of network evaluations for one sample. This course turns it
# into a model that needs one. Here you see the whole argument in about a minute, on points in the plane
# instead of images. In the plane we know the best possible teacher in closed form, so nothing is hidden
# behind a badly trained network: every error you see is an error of the method.
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
# | profile | hardware | time |
# | --- | --- | --- |
# | `smoke` | any CPU | seconds, and the samples show it |
# | `laptop` | two CPU cores | about a minute |
# | `colab`, `paper` | any CPU | some minutes, for smaller errors |

# %%
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("cfgdistill") is None:  # on Colab, say
    source = "cfgdistill @ git+https://github.com/cfgdistill/cfgdistill"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", source], check=True)

import os
import time

import torch
from accelerate import Accelerator

from cfgdistill import CosineSchedule, Denoiser
from cfgdistill.checkpoints import provenance
from cfgdistill.config import one_of
from cfgdistill.data import load_data
from cfgdistill.distillation import progressive_target
from cfgdistill.guidance import GuidedDenoiser, guide
from cfgdistill.plotting import COLORS, figure, show
from cfgdistill.sampling import ddim, ddim_step, implied_v, last
from cfgdistill.schedules import per_example
from cfgdistill.toy import MLP, pinwheel
from cfgdistill.training import distill_progressively, stage_one_loss, train

# %% tags=["parameters"]
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
seed = 0

# %% [markdown]
# The profile decides how long we train. Everything else is the same in all of them. `start` is the number
# of steps of the first student; its teacher takes twice as many.

# %%
SIZES = {
    "smoke": {"batch": 128, "stage_one": 60, "halving": 10, "start": 16},
    "laptop": {"batch": 512, "stage_one": 1500, "halving": 150, "start": 32},
    "colab": {"batch": 1024, "stage_one": 6000, "halving": 600, "start": 32},
    "paper": {"batch": 2048, "stage_one": 20000, "halving": 2000, "start": 64},
}
size = SIZES[one_of("profile", profile, SIZES)]
W_RANGE = (0.0, 4.0)  # the guidance weights that the students learn

# %% [markdown]
# ## 1. The data
#
# Three classes, each an arm of a spiral made of four round blobs. The blobs overlap, and near the centre
# the classes overlap too. Think of a point as a very small image: two pixels, one number each.
#
# **What do we want to be able to draw?** New points of a class that we name.

# %%
data = load_data("toy")
x, labels = data.all()


def scatter(axis, points, classes, title="", reach=2.5):
    """Points of the plane, coloured by class."""
    for label in range(3):
        axis.scatter(*points[classes == label].T, s=5, alpha=0.5, lw=0, color=COLORS[label])
    axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
    axis.set_title(title, fontsize=10)


fig, axis = figure(width=3.6, height=3.6)
scatter(axis, x[:3000], labels[:3000], reach=2)
axis.legend([f"{name} class" for name in data.class_names], markerscale=4, frameon=False)
show(fig, alt="Three classes of points in the plane: spiral arms that start at the centre.")

# %% [markdown]
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
#
# For images a network has to learn this average. For our blobs it is a formula. If $x$ came from a blob with
# centre $\mu$ and standard deviation $s$, then $z_t$ is Gaussian around $\alpha_t \mu$ with variance
# $q = \alpha_t^2 s^2 + \sigma_t^2$, and the best guess moves from $\mu$ towards $z_t / \alpha_t$ by the share
# of the variance that is not noise. We do not know the blob, so we ask how likely each one is, given
# $z_t$, and average.

# %%
mixture, schedule = pinwheel(), CosineSchedule()


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
# `denoiser(z, t, cond, w)`. `cond` is the class; the label 3 means *no class given*. The answer holds the
# guess of $x$ and, for free, the guess of the noise: if you know $z_t$ and $x$, you know $\varepsilon$.
#
# Cells like the next one are checked: their output must be the same on every machine.

# %%
# NBVAL_CHECK_OUTPUT
exact = mixture.denoiser(schedule)
generator = torch.Generator().manual_seed(seed)
z = torch.randn(500, 2, generator=generator)
first, nothing = torch.zeros(500).long(), torch.full((500,), 3)

torch.testing.assert_close(exact(z, 0.6, nothing).x, exact_x(z, 0.6, mixture.means, mixture.std))
torch.testing.assert_close(exact(z, 0.6, first).x, exact_x(z, 0.6, mixture.means[:4], mixture.std))
print("our formula is the package's denoiser, with and without a class: True")

# %% [markdown]
# **What does the denoiser answer as the noise grows?** Each arrow starts at a noisy point $z_t$ and ends at
# the guess of $x$. No class is given. (`per_example(t, z)` gives every point the same time; in training each will
# have its own.)

# %%
eps = torch.randn(60, 2, generator=generator)
fig, axes = figure(1, 3, width=8.4, height=3.1)
for axis, t in zip(axes, (0.2, 0.5, 0.9), strict=True):
    z_t = schedule.add_noise(x[:60], eps, per_example(t, eps))
    guess = exact(z_t, t, nothing[:60]).x
    scatter(axis, x[:2000], labels[:2000], f"t = {t}", reach=3)
    axis.quiver(*z_t.T, *(guess - z_t).T, angles="xy", scale_units="xy", scale=1, width=0.005)
alt = "Arrows from noisy points to guesses of x. At t = 0.2 they are short and end on the nearest arm; at t = 0.5 on and between the arms; at t = 0.9 nearly all end close to the centre."
show(fig, alt=alt)

# %% [markdown]
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
# This is DDIM. It draws no random numbers: the start $z_1$ decides where the walk ends. With more and
# smaller steps the walks approach smooth curves, a flow that carries noise to data.


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
torch.testing.assert_close(path[-1], last(ddim(exact, z, 128, first)))

# %% [markdown]
# **How does a point get from noise to data?** 40 walks of 128 steps, once without a class and once with the
# first class.

# %%
fig, axes = figure(1, 2, width=7.2, height=3.7)
for axis, cond, title in zip(axes, (nothing, first), ("no class", "first class"), strict=True):
    path = walk(exact, z[:40], 128, cond[:40])
    scatter(axis, x[:2000], labels[:2000], title, reach=2.8)
    axis.plot(path[..., 0], path[..., 1], color="0.35", lw=0.7)
    axis.scatter(*path[0].T, s=10, facecolor="white", edgecolor="black", lw=0.7, zorder=3)
    axis.scatter(*path[-1].T, s=12, color="black", zorder=3)
alt = "Curved paths from white circles (noise) to black dots (samples). Without a class the dots lie on all three arms, with the first class all on the first arm."
show(fig, alt=alt)

# %% [markdown]
# White circles are noise, black dots are samples. Two paths may cross on paper, but never at the same $t$:
# the point and the time alone decide how the walk goes on. And the paths **bend**, since the guess changes on the
# way. A long step is taken with one guess and cannot follow. That is the whole difficulty.
#
# ## 4. Guidance: two evaluations per step
#
# A class makes a sample plausible for the class, often not plausible enough. Classifier-free
# guidance asks the denoiser twice, with and without the class, and exaggerates the difference:
#
# $$\hat x_w = (1 + w)\, \hat x(z_t, \text{class}) - w\, \hat x(z_t) .$$
#
# $w = 0$ is no guidance. **Watch the convention:** other programs call $1 + w$ the guidance scale, and
# for them 1 is no guidance. The pair of evaluations is our **guided teacher**.

# %%
# NBVAL_CHECK_OUTPUT
teacher = GuidedDenoiser(exact, null=3)
with_class, without = exact(z, 0.6, first).x, exact(z, 0.6, nothing).x
torch.testing.assert_close(teacher(z, 0.6, first, 2.0).x, guide(with_class, without, 2.0))
print("by hand, (1 + 3) * 2 - 3 * 1 =", guide(2, 1, 3))

teacher.nfe = 0
last(ddim(teacher, z, 128, first, 2.0))
print("network evaluations (NFE) of one guided sample in 128 steps:", teacher.nfe)

# %% [markdown]
# **What does $w$ do?** The same noise at three weights.

# %%
noise = torch.randn(1200, 2, generator=torch.Generator().manual_seed(seed + 1))
classes = torch.arange(1200) % 3
reference = {w: last(ddim(teacher, noise, 128, classes, w)) for w in (0.0, 1.0, 3.0)}


def panels(pictures, columns, alt, reach=2.5):
    """{title: points} as a grid of panels."""
    rows = len(pictures) // columns
    fig, axes = figure(rows, columns, width=8.6, height=9.2 / columns * rows, squeeze=False)
    for axis, (title, points) in zip(axes.flat, pictures.items(), strict=True):
        scatter(axis, points, classes, title, reach)
    show(fig, alt=alt)


alt = "Samples of three classes at w = 0, 1 and 3. At 0 the arms meet in the centre as in the data; the larger w is, the further they draw apart, and the narrower they are."
panels({f"guided teacher, w = {w:g}, 256 NFE": sample for w, sample in reference.items()}, 3, alt)

# %% [markdown]
# At $w = 0$ the samples are the data: the three arms touch in the centre. As $w$ grows, each class leaves
# the region that it shares with the others. There is less doubt about the class, and less variety.
# For images that trade is usually worth it. Which $w$ is best depends on the taste of the user, so we want **one
# model for every $w$**.
#
# ## 5. Why not simply take fewer steps?
#
# **What does the exact teacher give in 1, 2 and 4 steps?** It is the best denoiser there is, so the fault cannot
# lie in its training.

# %%
pictures = {}
for w in (0.0, 3.0):
    for steps in (1, 2, 4, 128):
        sample = last(ddim(teacher, noise, steps, classes, w))
        pictures[f"w = {w:g}, {steps} x 2 = {2 * steps} NFE"] = sample
alt = "The exact teacher in 1, 2, 4 and 128 steps, at w = 0 and 3. One step gives one point per class, at w = 3 far outside the data; two and four steps give deformed arms."
panels(pictures, 4, alt, reach=3.6)

# %% [markdown]
# One step gives **one point per class**. Of course: at $t = 1$ there is nothing in $z_1$ about $x$, so the
# guess is the average of the class, whatever the noise was. Guidance then exaggerates it, and at $w = 3$ the point lies
# outside the data. Two and four steps give something, but not the arms.
#
# So a one-step model must not be a denoiser. It has to answer another question: not *what is the
# average of all $x$ behind this $z_1$*, but *where does the walk that starts at $z_1$ end?* That question has one
# answer, which can be learned. Two stages get us there.
#
# ## 6. Stage one: the pair becomes one network
#
# A small network gets $z_t$, $t$, the class **and $w$**, and learns to say what the guided pair says. In
# every update we draw $w$ uniformly from $[0, 4]$, noise some data, ask the teacher for its guided guess, and
# minimise the squared distance:
#
# $$\mathbb{E}_{w, t, x, \varepsilon}\, \omega_t \left\| \hat x_\text{student}(z_t, w) - \hat x_w(z_t) \right\|^2 .$$
#
# The data only decides *where* we ask. The labels of the lesson come from the teacher: there is no noise in
# the target, and a network that is large enough can reach zero. On images the student will start from the
# teacher's weights; our exact teacher has none, so the student starts at random. (The weight $\omega_t$ is a
# topic of notebook 01.)

# %%
torch.manual_seed(seed)
student = Denoiser(MLP(), schedule, w_range=W_RANGE, num_classes=3)
loss = stage_one_loss(teacher, W_RANGE)
# Two dimensions are too small for a GPU to help.
how = {"batch": size["batch"], "seed": seed}
how["accelerator"] = Accelerator(cpu=True, mixed_precision="no")

started = time.perf_counter()
run = train(student, loss, data, name="stage-one", updates=size["stage_one"], rate=6e-3, **how)
losses = [update.loss for update in run]
print(f"stage one: {len(losses)} updates, {time.perf_counter() - started:.0f} s")
print(f"loss of the first update {losses[0]:.3f}, mean of the last 20 {sum(losses[-20:]) / 20:.5f}")

# %% [markdown]
# **Does one network match the pair, for every $w$?** Circles are the guided teacher, dots the student, both
# in 128 steps from the same noise. A line joins each pair. The teacher has paid 256 evaluations, the student 128.
# The error in the titles is the root of the mean squared distance per coordinate (rmse).

# %%
fig, axes = figure(1, 3, width=9.0, height=3.4)
for axis, (w, target) in zip(axes, reference.items(), strict=True):
    target, sample = target[:150], last(ddim(student, noise[:150], 128, classes[:150], w))
    rmse = (sample - target).square().mean().sqrt()
    scatter(axis, sample, classes[:150], f"w = {w:g}, rmse {rmse:.3f}", reach=2.3)
    axis.scatter(*target.T, s=26, facecolor="none", edgecolor="0.3", lw=0.6)
    axis.plot(*torch.stack([sample, target]).permute(2, 0, 1), color="black", lw=0.8)
alt = "Student samples as dots, teacher samples as circles, at w = 0, 1 and 3. At the laptop profile each dot sits in its circle, but for a few near the centre at w = 0."
show(fig, alt=alt)

# %% [markdown]
# At the `laptop` profile the dots sit in their circles at every $w$, least well at $w = 0$: it lies at the
# edge of the range, and there the samples are spread widest. We have halved the cost, and nothing else
# has changed: the student is still a denoiser, its guess is still an average, and with one step it would
# fail as the teacher did.
#
# ## 7. Stage two: two steps become one, again and again
#
# Now we change the question. Let a teacher with $2N$ steps go **two** steps, from $t$ over the middle to $s$. Then ask:
# which answer would have brought us to the same $z_s$ in **one** step? A step is linear in the answer, so we
# can solve for it. With $v$, which you will meet in notebook 01, a step is a rotation by the
# angle $d = \tfrac{\pi}{2}(s - t)$,
#
# $$z_s = \cos(d)\, z_t + \sin(d)\, v \quad\Longrightarrow\quad \tilde v = \frac{z_s - \cos(d)\, z_t}{\sin(d)} .$$
#
# $\tilde v$ is the target of the student. It is not an average any more: it is where two steps of a walk lead.


# %%
def two_steps_as_one(teacher, z, t, s, cond, w):
    """The v whose single step t -> s lands where two teacher steps land."""
    mid = (t + s) / 2
    z_mid = ddim_step(teacher(z, t, cond, w), per_example(mid, z), schedule)
    z_s = ddim_step(teacher(z_mid, mid, cond, w), per_example(s, z), schedule)
    return implied_v(z, z_s, per_example(t, z), per_example(s, z), schedule), z_s


# %% [markdown]
# The heart of the method is an identity, so we check it as one, in double precision: a student that answers
# $\tilde v$ lands where the teacher's two steps land. This must hold in every interval of every student.

# %%
# NBVAL_CHECK_OUTPUT
z64 = noise.double()
for steps in (1, 2, 4, 8, 64):
    worst = 0.0
    for i in range(steps, 0, -1):
        t, s = i / steps, (i - 1) / steps
        v, z_s = two_steps_as_one(teacher, z64, t, s, classes, 3.0)
        torch.testing.assert_close(v, progressive_target(teacher, z64, t, s, classes, 3.0))
        d = torch.tensor(torch.pi / 2 * (s - t), dtype=torch.float64)
        worst = max(worst, (d.cos() * z64 + d.sin() * v - z_s).abs().max().item())
    print(f"N = {steps}: one student step is two teacher steps to 1e-10: {worst < 1e-10}")

# %% [markdown]
# A student that has learned this takes $N$ steps. It becomes the teacher of the next student, which takes
# $N/2$, and so on down to 1. Each student starts from the weights of its teacher, so it has little to
# learn; and it keeps its $w$ input, so all weights are distilled at once.
#
# Why not learn the last step directly from 64 steps? Exercise 1 lets you find out.

# %%
started = time.perf_counter()
# The last two students, of 2 steps and 1 step, get twice the updates.
halve = distill_progressively(
    student, data, start=size["start"], updates=size["halving"], rate=3e-3, **how
)
students = {model.steps: model for model in halve}
print(f"stage two: students of {list(students)} steps, {time.perf_counter() - started:.0f} s")

# %% [markdown]
# ## 8. What have we got?
#
# **Same noise, 256 evaluations or one: can you tell the difference?**

# %%
pictures = {}
for w, target in reference.items():
    first_guess, one = (last(ddim(m, noise, 1, classes, w)) for m in (teacher, students[1]))
    pictures[f"w = {w:g}: teacher, 256 NFE"] = target
    pictures[f"w = {w:g}: teacher, 2 NFE"] = first_guess
    pictures[f"w = {w:g}: student, 1 NFE"] = one
    rmse = [(sample - target).square().mean().sqrt() for sample in (first_guess, one)]
    print(f"w = {w:g}, one step: rmse of the teacher {rmse[0]:.3f}, of the student {rmse[1]:.3f}")
alt = "Rows: w = 0, 1, 3. Left: the teacher in 128 steps, three arms. Middle: the teacher in one step, one point per class. Right: the student in one step; at the laptop profile the arms again."
panels(pictures, 3, alt, reach=3.6)

# %% [markdown]
# At the `laptop` profile the right column repeats the left one, with one evaluation instead of 256. Look
# closely at $w = 0$, though: where the arms meet, the student leaves a small gap. Its error there is the largest of the
# three, about 0.08 against the teacher's 0.45; at $w = 3$ it is 0.025 against 1.3. Near $w = 0$ the samples move fastest
# when $w$ changes (compare $w = 0$ and 1 in section 4), and a uniform draw from $[0, 4]$ seldom goes there. The
# last exercise takes this up.
#
# **How far is each sample from the one that the teacher's 128 steps make of the same noise?** We take 2,000 new noises, and
# $w$ uniform in $[0, 4]$. The error is the mean squared error over the points and both coordinates, and its root (rmse).

# %%
n = 2000
generator = torch.Generator().manual_seed(seed + 2)
noise, classes = torch.randn(n, 2, generator=generator), torch.randint(3, (n,), generator=generator)
w = W_RANGE[1] * torch.rand(n, generator=generator)
target = last(ddim(teacher, noise, 128, classes, w))


def errors(model, steps):
    """Steps, NFE, mean squared error and rmse to 128 guided teacher steps from the same noise."""
    model.nfe = 0
    mse = (last(ddim(model, noise, steps, classes, w)) - target).square().mean().item()
    return steps, model.nfe, mse, mse**0.5


rows = [("guided teacher", *errors(teacher, steps)) for steps in (64, 32, 16, 8, 4, 2, 1)]
rows += [("stage one", *errors(student, 2 * size["start"]))]
rows += [("student", *errors(model, steps)) for steps, model in students.items()]
print(f"{'model':<16}{'steps':>5}{'NFE':>6}{'mse':>12}{'rmse':>10}")
for name, steps, nfe, mse, rmse in rows:
    print(f"{name:<16}{steps:>5}{nfe:>6}{mse:>12.6f}{rmse:>10.4f}")

mse, rmse = (a / b for a, b in zip(rows[6][3:], rows[-1][3:], strict=True))
print(f"one step, teacher over student: {rmse:.0f} times in rmse, {mse:.0f} times in mse")

# %%
fig, axis = figure(width=6.2, height=3.6)
for color, marker, name in zip(COLORS, "os^", dict.fromkeys(row[0] for row in rows), strict=False):
    own = [(row[2], row[4]) for row in rows if row[0] == name]
    axis.plot(*zip(*own, strict=True), marker=marker, color=color, label=name)
axis.set(xscale="log", yscale="log", xlabel="network evaluations (NFE)", ylabel="rmse to 128 steps")
axis.set_xticks([2**k for k in range(8)], [2**k for k in range(8)], minor=False)
axis.minorticks_off()
axis.legend(frameon=False)
alt = "Error against network evaluations, both axes logarithmic. The teacher's error falls steadily from 2 to 128 evaluations; at the laptop profile the students' is low and nearly flat down to 1."
show(fig, alt=alt)

# %% [markdown]
# The teacher's error falls with every doubling of the steps, in the end by half or more, but its line starts high
# and has to pay two evaluations for each step. The students' line is nearly flat. At the `laptop` profile:
#
# - one step of the teacher has an rmse of 1.02; one step of the student about 0.03. That is **about 35 times less, for
#   half the evaluations** (in mean squared error more than 1,000 times);
# - with its one evaluation the student is about as close to the reference as the teacher with 32;
# - about half of what is left is the error of stage one, and each halving adds a little. Both are a matter of network
#   size and training. (`smoke` trains for seconds only; its students are several times worse.)
#
# Nothing here needed a plane. The next notebooks repeat the argument on images, where the teacher is a network
# with errors of its own, the student a U-Net, and the distance between two sets of samples has to be measured
# with more care.
#
# ## Exercises
#
# 1. **Skip the staircase.** Start stage two at `start=1`, so that the one-step student learns from two steps of
#    stage one. How large is its error, and why does more training not help? *Hint: compute the error of
#    the stage-one student in two steps. A halving inherits the error of its teacher.*
# 2. **Outside the range.** Ask a student for $w = 5$. What happens, and why is a refusal better than an answer?
#    *Hint: call `last(ddim(students[1], noise, 1, classes, 5.0))`; then set `students[1].w_range = None`, try again,
#    and compare with the teacher at $w = 5$.*
# 3. **A famous mistake.** In `two_steps_as_one`, return the teacher's second $v$ instead of the implied one, and run
#    the check. In which interval does the guess of $x$ still agree? *Hint: look at $s = 0$. The second
#    step then ends on the guess of $x$ itself.*
# 4. **How crooked is a walk?** Compute the length of each walk over the distance between its ends, for
#    $w = 0, 1, 3$. *Hint: `walk` returns all points; the length is the sum of `path.diff(dim=0).norm(dim=-1)`.*
# 5. **More practice near $w = 0$.** Train stage one with $w = 4 u^3$, $u$ uniform, and compare the errors at $w = 0$ and at
#    $w = 3$. Who pays? *Hint: `stage_one_loss` and
#    `distill_progressively` take `w_power=3`. On images we shall do exactly this, in notebook 03.*
#
# ## What to try next
#
# [Notebook 01](01_schedules_and_parameterizations.ipynb) explains what we used without proof: the schedule, $v$, the
# weights of the loss, and why a step is a rotation. Then [notebook 02](02_guided_teacher.ipynb) starts again with real images,
# where the teacher has to be learned as well.

# %%
for key, value in provenance(profile=profile, seed=seed, data=data.hash, **size).items():
    print(f"{key}: {value}")
