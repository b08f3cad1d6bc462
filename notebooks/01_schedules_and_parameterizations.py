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
# # 01 · Schedules and parameterisations
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/01_schedules_and_parameterizations.ipynb)
#
# Every diffusion paper has its own letters for the same two things: how much noise is in the picture, and what the
# network is asked to predict. Here you learn both once, with one picture to keep in mind: **noising is a
# rotation**. From it follow the prediction $v$, the sampler's step and the target of
# distillation. Nothing is trained in this notebook.
#
# **You will**
#
# - noise real images and read $\alpha$, $\sigma$, the log-SNR and the angle of a schedule,
# - derive $v$ and convert between $x$, $\varepsilon$ and $v$ in a few lines,
# - see where each of them says nothing, and that losses in the three differ only by a weight,
# - write the DDIM step as a rotation, and invert it,
# - see why a schedule that does not end in pure noise spoils a one-step student.
#
# **You need** [notebook 00](00_two_dimensions.ipynb) for motivation; sine and cosine for the rest.
#
# | profile | hardware | time to run |
# | --- | --- | --- |
# | all of them | any CPU | seconds; with `dataset = "cifar10"` also the download |
#
# Allow about 25 minutes to read it, and 25 for the exercises;
# without what is *further*, 25 in all.
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=01`.
#
# **Sources.** The prediction $v$ and the loss weightings are from
# [Salimans & Ho](https://arxiv.org/abs/2202.00512), the sampler is [DDIM](https://arxiv.org/abs/2010.02502), the cosine
# schedule goes back to [Nichol & Dhariwal](https://arxiv.org/abs/2102.09672), and section 7 follows
# [Lin et al.](https://arxiv.org/abs/2305.08891) "The paper" is
# [Meng et al.](https://arxiv.org/abs/2210.03142), as everywhere in this course.

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

import torch

import cfgdistill as cd
from cfgdistill.course import checks, widgets
from cfgdistill.judge import plotting
from cfgdistill.training import checkpoints

# %% tags=["parameters"]
dataset = os.environ.get("CFGDISTILL_DATASET", "digits")
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
seed = 0

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 1. Noise on real images
#
# Time $t$ runs from 0 (data) to 1 (pure noise). On the way, an image $x$ and Gaussian noise $\varepsilon$ are mixed:
#
# $$z_t = \alpha_t x + \sigma_t \varepsilon, \qquad \alpha_t^2 + \sigma_t^2 = 1 .$$
#
# Why let the squares add up to one? If the pixels had mean square one, as the noise has, then so would $z_t$
# at every $t$, and the network would always see inputs of the same size. (Pixels in $[-1, 1]$ come close enough. The
# next cell prints their root mean square.) A **schedule**
# says how fast $\alpha$ falls. The cosine schedule of this course is
# $\alpha_t = \cos(\tfrac{\pi}{2} t)$, $\sigma_t = \sin(\tfrac{\pi}{2} t)$. (In the code `per_example(t, x)` gives every example of a
# batch the same time. In training, each gets its own.)

# %%
data = cd.load_data(dataset, images=500)  # a few are enough to look at
x, labels = data.all()
x = torch.stack([x[labels == label][0] for label in range(data.num_classes)])  # one of each class
eps = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
schedule = cd.CosineSchedule()


def noised(x, eps, t):
    """z_t = cos(pi t / 2) x + sin(pi t / 2) eps."""
    angle = torch.tensor(torch.pi / 2 * t)
    return angle.cos() * x + angle.sin() * eps


for t in (0.0, 0.3, 0.7, 1.0):
    torch.testing.assert_close(noised(x, eps, t), schedule.add_noise(x, eps, cd.per_example(t, x)))
rms = {"x": x, "z at t = 0.5": noised(x, eps, 0.5), "eps": eps}
print(
    "root mean square:",
    {name: round(a.square().mean().sqrt().item(), 2) for name, a in rms.items()},
)

# %% [markdown] slideshow={"slide_type": "slide"}
# **How much noise can you read through?** One row per time, the same noise in all rows.

# %% slideshow={"slide_type": "fragment"}
fig, axes = plotting.figure(6, 1, width=7.6, height=6.8)
for axis, t in zip(axes, (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), strict=True):
    plotting.draw_images(axis, noised(x, eps, t), len(x), f"t = {t:g}")
alt = "One image of each class at six times. Clear at t = 0, readable with effort at t = 0.4, mere noise at t = 0.8 and beyond."
plotting.show(fig, alt=alt)

# %% [markdown] slideshow={"slide_type": "slide"}
# With the first row in mind you can name most images up to about $t = 0.4$; from $t = 0.8$ on they look alike to us. (To be shown, values outside
# $[-1, 1]$ are cut off. The model sees them whole.) That is what *we* can read. When a sampler makes up its mind is
# another question. To answer it, split one walk into two at some $t$ and see how far apart they end: the last of the further
# questions does that with the teacher of notebook 02.
#
# ## 2. Four ways to say how noisy
#
# $\alpha$ and $\sigma$ are two numbers tied by $\alpha^2 + \sigma^2 = 1$, so one number is enough. Two are in use:
#
# - the **signal-to-noise ratio** $\mathrm{SNR} = \alpha^2 / \sigma^2$, mostly as its logarithm `logsnr`. It is 0 where
#   signal and noise are equally strong. At the ends it is infinite, so code limits it, here to $\pm 20$.
# - the **angle** $\phi = \operatorname{atan2}(\sigma, \alpha)$, from 0 to $\pi/2$. Since $\alpha = \cos\phi$ and
#   $\sigma = \sin\phi$, every schedule of this kind has one. It is finite everywhere.
#
# **Which of them does the cosine schedule move evenly?**

# %% slideshow={"slide_type": "fragment"}
t = torch.linspace(0, 1, 201)
alpha, sigma = schedule.alpha_sigma(t)
fig, axes = plotting.figure(1, 3, width=9.0, height=2.9)
axes[0].plot(t, alpha, label=r"$\alpha_t$")
axes[0].plot(t, sigma, "--", label=r"$\sigma_t$")
axes[0].legend(frameon=False, loc="lower center", fontsize=12)
axes[1].plot(t, schedule.logsnr(t), color=plotting.COLORS[2])
axes[2].plot(t, schedule.angle(t), color=plotting.COLORS[3])
axes[2].set_yticks([0, torch.pi / 4, torch.pi / 2], ["0", r"$\pi/4$", r"$\pi/2$"])
names = (r"$\alpha_t$ and $\sigma_t$", "logsnr", r"$\phi$ in radians")
for axis, title, name in zip(axes, ("signal and noise", "logsnr", "angle"), names, strict=True):
    axis.set(title=title, xlabel="t", ylabel=name)
alt = "Against t: alpha falls from 1 to 0 and sigma rises from 0 to 1 like cosine and sine; logsnr falls from 20 to -20, steeply at both ends; the angle is a straight line from 0 to pi/2."
plotting.show(fig, alt=alt)

# %% [markdown] slideshow={"slide_type": "fragment"}
# The angle is a straight line: **the cosine schedule is a rotation at constant speed.** logsnr is not; it dives at
# both ends, where a little time changes the ratio without limit.
#
# ## 3. The circle, and where $v$ comes from
#
# Put $x$ on one axis and $\varepsilon$ on another. Then $z_t = \cos\phi\, x + \sin\phi\, \varepsilon$ runs along a quarter of a circle, from
# $x$ to $\varepsilon$. In which direction, and how fast? Differentiate with respect to the angle:
#
# $$v := \frac{d z}{d \phi} = -\sin\phi\, x + \cos\phi\, \varepsilon = \alpha\, \varepsilon - \sigma\, x .$$
#
# So $v$ is a **velocity**: the direction in which noising moves $z_t$. It is the same circle, a quarter of a turn ahead.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 1: turn the arms back *(derive, 6 minutes)*
#
# Two perpendicular arms $(z, v)$ that turn together are just another pair of axes. So whoever knows $z$ and $v$ knows $x$ and $\varepsilon$. **Write both in terms of $z$ and $v$.**
#
# <details><summary>Hint 1</summary>
#
# Compute $\alpha z - \sigma v$ with $z = \alpha x + \sigma\varepsilon$ and $v = \alpha\varepsilon - \sigma x$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# What remains has a factor $\alpha^2 + \sigma^2$, which is 1.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "from_v", "locked": false, "schema_version": 3, "solution": true, "task": false}
def from_v(v, z, alpha, sigma):
    """x and eps behind z."""
    ### BEGIN SOLUTION
    return alpha * z - sigma * v, sigma * z + alpha * v
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "from_v-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.from_v(from_v))
### BEGIN HIDDEN TESTS
assert checks.from_v(from_v).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* $\alpha z + \sigma v$ (turned the wrong way); $\alpha$ and $\sigma$ swapped; the two results in the wrong order. At $t = 0$ and $t = 1$ some of these pass: the check takes an angle in between.
#
# *To discuss:* the matrix of this map and that of its inverse. Why are they transposes of each other?
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# One rotates back to get $x$ and $\varepsilon$:
#
# $$x = \alpha z - \sigma v, \qquad \varepsilon = \sigma z + \alpha v .$$
#
# (Substitute $z$ and $v$ and use $\alpha^2 + \sigma^2 = 1$ to check it.)
#
# **How are $x$, $\varepsilon$, $z$ and $v$ arranged?**

# %% slideshow={"slide_type": "fragment"}
phi, d = torch.tensor(0.95), torch.tensor(-0.5)
z = torch.stack([phi.cos(), phi.sin()])
v = torch.stack([-phi.sin(), phi.cos()])
z_s = d.cos() * z + d.sin() * v
fig, axis = plotting.figure(width=5.0, height=4.4)
for radius, low, high in ((1.0, 0.0, torch.pi / 2), (0.25, 0.0, phi), (0.5, phi + d, phi)):
    arc = torch.linspace(float(low), float(high), 100)
    axis.plot(radius * arc.cos(), radius * arc.sin(), color="0.6", lw=1)
starts = torch.stack([0 * z, 0 * z, 0 * z, z, 0 * z])
arrows = torch.stack([torch.tensor([1.0, 0]), torch.tensor([0, 1.0]), z, 0.6 * v, z_s])
colors = ("0.2", "0.2", *plotting.COLORS[:3])
axis.quiver(*starts.T, *arrows.T, color=colors, angles="xy", scale_units="xy", scale=1, width=0.009)
axis.plot([z[0], z[0], 0], [0, z[1], z[1]], color=plotting.COLORS[0], ls=":", lw=1)
names = r"x \varepsilon z_t v z_s \alpha_t \sigma_t \phi_t d".split()
across = (1.04, -0.02, 0.62, 0.03, 0.94, 0.55, -0.12, 0.28, 0.42)
up = (-0.02, 1.05, 0.85, 1.15, 0.45, -0.09, 0.79, 0.06, 0.33)
for name, *spot in zip(names, across, up, strict=True):
    axis.text(*spot, f"${name}$", fontsize=13)
axis.set(xlim=(-0.2, 1.15), ylim=(-0.12, 1.25), aspect="equal")
axis.set_axis_off()
alt = "A quarter circle from x on the horizontal axis to eps on the vertical one. z_t lies on it at angle phi, v is its tangent, pointing towards eps. z_s lies nearer to x, turned back by the angle d."
plotting.show(fig, alt=alt)

# %% [markdown] slideshow={"slide_type": "fragment"}
# The projections of $z_t$ on the two axes are $\alpha_t$ and $\sigma_t$, and $v$ (drawn shorter than it is) is the
# tangent, pointing from data to noise. At $t = 0$ it says $\varepsilon$, at $t = 1$ it says $-x$: always the part that $z_t$
# does not show. $z_s$ is a less noisy point on the same circle: the same radius, a smaller angle. We come back to it in section 6.
#
# ## 4. Three predictions, one piece of knowledge
#
# A network sees $z_t$ and knows $t$. Whether it predicts $x$, $\varepsilon$ or $v$ is a choice, since any one gives the
# other two: they are tied by $z = \alpha x + \sigma \varepsilon$. From scratch:


# %%
def all_three(output, z, alpha, sigma, prediction_type):
    """x, eps and v from whichever of them the network predicts."""
    if prediction_type == "x":
        x, eps = output, (z - alpha * output) / sigma
    if prediction_type == "eps":
        x, eps = (z - sigma * output) / alpha, output
    if prediction_type == "v":
        x, eps = alpha * z - sigma * output, sigma * z + alpha * output
    return x, eps, alpha * eps - sigma * x


# %%
# NBVAL_CHECK_OUTPUT
x64, eps64 = x.double(), eps.double()


def truth(t):
    """z_t, the true x, eps and v behind it, and (alpha_t, sigma_t)."""
    levels = schedule.alpha_sigma(cd.per_example(t, x64))
    alpha, sigma = (cd.expand(a, x64) for a in levels)
    true = cd.Prediction(x64, eps64, alpha * eps64 - sigma * x64)
    return alpha * x64 + sigma * eps64, true, levels


for kind in ("x", "eps", "v"):
    worst = 0.0
    for t in (0.05, 0.5, 0.95):
        z, true, levels = truth(t)
        ours = all_three(getattr(true, kind), z, *(cd.expand(a, z) for a in levels), kind)
        theirs = cd.convert(getattr(true, kind), z, *levels, kind)
        torch.testing.assert_close(ours, tuple(theirs))
        worst = max(worst, *((a - b).abs().max().item() for a, b in zip(ours, true, strict=True)))
    print(f"{kind:>3} gives back x, eps and v to 1e-12: {worst < 1e-12}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 2: who explodes, and where? *(further: predict before the figure, 4 minutes)*
#
# Two of the three branches divide. A real network is never exact, and a division by a small number makes a small mistake large. **Which predictions explode
# towards $t = 1$, and which towards $t = 0$? And which of the three can a student use that takes one single step, from $t = 1$?** Answer with sets of `"x"`, `"eps"` and `"v"`.
#
# <details><summary>Hint 1</summary>
#
# $\alpha = 0$ at $t = 1$, and $\sigma = 0$ at $t = 0$. Look for the divisions in `all_three`.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# What is $v = \alpha\varepsilon - \sigma x$ at $t = 1$?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "explosions", "locked": false, "schema_version": 3, "solution": true, "task": false}
explosions = {"t = 1": ..., "t = 0": ..., "one step": ...}
### BEGIN SOLUTION
explosions = {"t = 1": {"eps"}, "t = 0": {"x"}, "one step": {"x", "v"}}
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "explosions-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.explosions(explosions))
### BEGIN HIDDEN TESTS
assert checks.explosions(explosions).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>Why</summary>
#
# $\varepsilon$ to $x$ divides by $\alpha$, which is 0 at $t = 1$; $x$ to $\varepsilon$ divides by $\sigma$, which is 0 at $t = 0$; $v$ only multiplies. At $t = 1$, $v = -x$. So for a single step $x$ and $v$ are the same, and both will do.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* one step with $v$ only (since the course uses it); $\varepsilon$ "because it is the standard"; the two ends swapped.
#
# *To discuss:* what speaks against $x$ is not one-step sampling. What is it? (The text after the figure.)
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# **If the output of the network is off by a little, how far off are $x$ and $\varepsilon$?** We add a small error to the true output,
# convert, and measure.

# %% slideshow={"slide_type": "fragment"}
error = 0.01 * torch.randn(x64.shape, dtype=x64.dtype, generator=torch.Generator().manual_seed(1))
grid = torch.linspace(0.04, 0.96, 24)
fig, axes = plotting.figure(1, 2, width=8.4, height=3.3, sharey=True)
for color, marker, kind in zip(plotting.COLORS, "os^", ("x", "eps", "v"), strict=False):
    for k, axis in enumerate(axes):
        found = []
        for t in grid.tolist():
            z, true, levels = truth(t)
            pred = cd.convert(getattr(true, kind) + error, z, *levels, kind)
            found.append((pred[k] - true[k]).norm() / error.norm())
        axis.plot(
            grid, found, color=color, marker=marker, ms=4, label=f"the network predicts {kind}"
        )
        axis.set(
            yscale="log", xlabel="t", title=f"error in {('x', 'eps')[k]} / error of the output"
        )
axes[1].legend(frameon=False, fontsize=9)
alt = "Error amplification against t, log scale. In x: 1 for an x-prediction, at most 1 for v, growing without bound towards t = 1 for eps. In eps it is the mirror image: an x-prediction explodes at t = 0."
plotting.show(fig, alt=alt)

# %% [markdown] slideshow={"slide_type": "fragment"}
# - From $\varepsilon$, the error in $x$ is $\sigma/\alpha = \tan\phi$ times as large, and it explodes at $t = 1$. **There
#   $\varepsilon$ says nothing:** $z_1$ *is* the noise, so a network can answer perfectly without knowing anything about $x$.
# - From $x$, the error in $\varepsilon$ explodes at $t = 0$, where $z_0$ *is* the image. Same story, other end.
# - From $v$, no error ever grows: the factors are $\sigma$ in $x$ and $\alpha$ in $\varepsilon$, a sine and a cosine.
#
# A sampler with 1000 small steps hardly visits $t = 1$, and forgives an $\varepsilon$-prediction. A one-step student lives at $t = 1$ and nowhere else,
# which rules $\varepsilon$ out. It does not rule out $x$: at $t = 1$, $v$ is $-x$, so for a one-step student the two are the same. What speaks against $x$ is
# the other end. Its $\varepsilon$ explodes at $t = 0$, which is where an *encoder*, a walk from data up to noise, begins
# ([notebook 06](06_encoders_and_style_transfer.ipynb)). And a teacher that learns to predict $x$ turns out worse on our digits
# ([notebook 07](07_evaluation.ipynb) trains one of each). So this course predicts $v$.
#
# ## 5. The same loss, three weights *(further)*
#
# Two people train the same network, one with the squared error of $\varepsilon$, the other with that of $x$. Do they
# want different things? With $z$ fixed, an error $\delta$ in $x$ is an error $-\tfrac{\alpha}{\sigma} \delta$ in $\varepsilon$ (from
# $z = \alpha x + \sigma\varepsilon$) and $-\tfrac{1}{\sigma}\delta$ in $v$ (from $x = \alpha z - \sigma v$). Squared:
#
# $$\|\Delta\varepsilon\|^2 = \mathrm{SNR} \cdot \|\Delta x\|^2, \qquad
# \|\Delta v\|^2 = \frac{1}{\sigma^2} \|\Delta x\|^2 = (\mathrm{SNR} + 1) \cdot \|\Delta x\|^2 .$$
#
# So each is the loss of $x$ with a **weighting** $\omega$ that depends on $t$ alone. All of them have the same best answer at
# each $t$; they differ in which $t$ they care about. A fourth choice, *truncated SNR*
# $\max(\mathrm{SNR}, 1)$, takes the larger of the $x$ and the $\varepsilon$ error, so that no $t$ is forgotten.

# %%
# NBVAL_CHECK_OUTPUT
z, true, (alpha, sigma) = truth(0.3)
pred = cd.convert(true.v + error, z, alpha, sigma, "v")
mse = {
    kind: (getattr(pred, kind) - getattr(true, kind)).square().mean() for kind in ("x", "eps", "v")
}
ratio = (alpha[0] / sigma[0]) ** 2
print(f"SNR at t = 0.3: {ratio:.3f}")
print(f"eps error / x error: {mse['eps'] / mse['x']:.3f}")
print(f"v error / x error: {mse['v'] / mse['x']:.3f}")

# %% [markdown] slideshow={"slide_type": "slide"}
# **Which times does each loss care about?** On the left the weight on the $x$ error. On the right the same three as weights
# on the $v$ error, which is how the package computes them: divided by $\mathrm{SNR} + 1$ they stay finite, at both ends.

# %% slideshow={"slide_type": "fragment"}
t = torch.linspace(0.005, 0.995, 199)
logsnr = schedule.logsnr(t)
ratio = logsnr.exp()
omega = {
    "SNR (the eps error)": (ratio, cd.snr),
    "truncated SNR": (ratio.clamp_min(1), cd.truncated_snr),
    "SNR + 1 (the v error)": (ratio + 1, cd.snr_plus_one),
}
fig, axes = plotting.figure(1, 2, width=8.8, height=3.3)
for style, (name, (on_x, on_v)) in zip(("-", "--", ":"), omega.items(), strict=True):
    torch.testing.assert_close(on_v(logsnr), on_x / (ratio + 1))
    axes[0].plot(t, on_x, style, lw=2, label=name)
    axes[1].plot(t, on_v(logsnr), style, lw=2)
axes[0].set(yscale="log", xlabel="t", title="weight on the x error")
axes[1].set(xlabel="t", title="the same, as a weight on the v error", ylim=(0, 1.05))
axes[0].legend(frameon=False, fontsize=9)
alt = "Three weightings against t. On the x error all are above 10,000 near t = 0; SNR falls to 0 at t = 1, the others to 1. On the v error: SNR falls from 1 to 0, truncated SNR dips to 0.5 at t = 0.5 and returns to 1, SNR + 1 is constant."
plotting.show(fig, alt=alt)

# %% [markdown] slideshow={"slide_type": "fragment"}
# Near $t = 0$ the three agree. Near $t = 1$ the $\varepsilon$ loss does not care at all, and that is where a student of few steps does
# its work; the other two losses do care. Truncated SNR and SNR + 1 never differ by more than a factor of two. The package uses
# SNR + 1, the plain $v$ error, unless told otherwise.
#
# ## 6. A step of the sampler is a rotation
#
# A DDIM step takes the predictions at $t$ and mixes them for $s$: $z_s = \alpha_s x + \sigma_s \varepsilon$. On the circle this can only be
# a turn, by $d = \phi_s - \phi_t$ (negative on the way down to data). Substitute $x = \alpha_t z_t - \sigma_t v$ and
# $\varepsilon = \sigma_t z_t + \alpha_t v$, and the angle-addition formulas give
#
# $$z_s = \cos(d)\, z_t + \sin(d)\, v .$$
#
# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 3: where did it come from? *(derive, 5 minutes)*
#
# The step is linear in $v$. So if somebody tells you where a step **landed**, you can say which $v$ made it. **Solve for it.**
#
# <details><summary>Hint</summary>
#
# Solve $z_s = \cos(d)\, z_t + \sin(d)\, v$ for $v$.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "implied", "locked": false, "schema_version": 3, "solution": true, "task": false}
def implied(z_t, z_s, d):
    """The v whose step by the angle d leads from z_t to z_s; d is a tensor."""
    ### BEGIN SOLUTION
    return (z_s - d.cos() * z_t) / d.sin()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "implied-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.implied(implied))
### BEGIN HIDDEN TESTS
assert checks.implied(implied).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* $(z_s - z_t) / d$, the difference quotient, which is right for short steps only (so it passes a test with 64 steps and a loose tolerance); $d = \phi_t - \phi_s$, which gives $-v$; $\cos(d)$ forgotten.
#
# *To discuss:* for which $d$ does it fail? ($d = 0$, no step. $|d|$ never exceeds $\pi/2$.)
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# The answer reads
#
# $$\tilde v = \frac{z_s - \cos(d)\, z_t}{\sin(d)} .$$
#
# We write $\tilde v$ for such an *implied* $v$, as notebook 00 wrote $\tilde x$ for the implied $x$. This small inverse is the heart of progressive distillation: let a teacher walk any way it likes from $z_t$ to $z_s$, then
# ask which single step would have done the same. Note what is *not* there: no division by $\alpha$ or $\sigma$, so it holds
# at $t = 1$, at $t = 0$ and in both directions.

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
worst_step = worst_v = 0.0
for t, s in ((1.0, 0.5), (1.0, 0.0), (0.4, 0.3), (0.0, 0.25)):  # the last one goes up, to noise
    z, true, _ = truth(t)
    z_s = cd.ddim_step(true, cd.per_example(s, z), schedule)
    d = torch.tensor(torch.pi / 2 * (s - t), dtype=z.dtype)
    worst_step = max(worst_step, (d.cos() * z + d.sin() * true.v - z_s).abs().max().item())
    v = cd.implied_v(z, z_s, cd.per_example(t, z), cd.per_example(s, z), schedule)
    torch.testing.assert_close(v, (z_s - d.cos() * z) / d.sin())
    worst_v = max(worst_v, (v - true.v).abs().max().item())
print(f"a DDIM step is a rotation, to 1e-12: {worst_step < 1e-12}")
print(f"implied_v undoes it, to 1e-12: {worst_v < 1e-12}")

# %% [markdown]
# **Now you.** All of this in one figure that you can break: the network's output is off by an `error`, on the left in the plane of $x$ and $\varepsilon$, on the right by as much in the pixels. Let it predict
# each of the three, and move $t$ to both ends. Which predictions survive a step from $t = 0.98$ to $s = 0$, and which one from $t = 0.02$ up to $s = 1$?


# %%
def off_by(error, x, eps, t, s, predicts):
    """z_t, what a network says whose output is off by an error, and the z_s that it steps to."""
    z, (alpha, sigma) = schedule.add_noise(x, eps, t), schedule.alpha_sigma(t)
    v = cd.expand(alpha, x) * eps - cd.expand(sigma, x) * x
    output = getattr(cd.Prediction(x, eps, v), predicts) + error
    said = cd.convert(output, z, alpha, sigma, predicts)
    return {
        "z_t": z,
        r"\hat x": said.x,
        r"\hat\varepsilon": said.eps,
        "z_s": cd.ddim_step(said, s, schedule),
    }


plane, slanted = torch.eye(2)[:, None], torch.tensor([[0.6, 0.8]])
digit, its_noise = x[3:4], eps[3:4]
grain = torch.randn(digit.shape, generator=torch.Generator().manual_seed(1))


def draw(t, s, error, predicts):
    t, s = torch.tensor([t]), torch.tensor([s])
    right, wrong = (off_by(size * slanted, *plane, t, s, predicts) for size in (0, error))
    widths = {"width_ratios": (1.5, 1, 1, 1)}
    fig, axes = plotting.figure(1, 4, width=11, height=3.3, gridspec_kw=widths)
    circle = torch.linspace(-0.5, torch.pi / 2 + 0.5, 200)
    axes[0].plot(circle.cos(), circle.sin(), color="0.8")
    for name, color, marker in zip(wrong, plotting.COLORS, "os^d", strict=False):
        off = f"${name}$, off by {(wrong[name] - right[name]).norm():.2f}"
        axes[0].plot(*torch.cat([right[name], wrong[name]]).T, color=color)
        axes[0].plot(*wrong[name].T, marker, color=color, label=off)
    axes[0].set(aspect="equal", xlim=(-0.5, 1.4), ylim=(-0.6, 1.3))
    axes[0].set_xticks([0, 1], ["0", "$x$"])
    axes[0].set_yticks([0, 1], ["0", r"$\varepsilon$"])
    axes[0].legend(frameon=False, loc="center right", bbox_to_anchor=(-0.1, 0.5))
    images = off_by(error * grain, digit, its_noise, t, s, predicts)
    for axis, name in zip(axes[1:], ("z_t", r"\hat x", "z_s"), strict=True):
        plotting.draw_images(axis, images[name], 1, f"${name}$")
    return fig


widgets.explore(
    draw,
    alt="Left: the circle, with z_t on it at t = 0.8. The network predicts eps, off by 0.2; the x that follows is off by three times as much, and the z_s that it "
    "steps to lies well inside the circle. Right: a digit under noise, a spotted guess of it, and both mixed for s = 0.4.",
    t=(0.8, 0.02, 0.98, 0.02),
    s=(0.4, 0.0, 1.0, 0.05),
    error=(0.2, 0.0, 0.5, 0.05),
    predicts=["eps", "x", "v"],
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 7. Does your schedule end in pure noise? *(further)*
#
# We have taken $\alpha_1 = 0$ for granted. Stable Diffusion, among others, was trained with a table of 1000 noise levels
# (`scaled_linear`), and its last entry is not zero. Such a schedule has a *non-zero terminal SNR*.

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
table = cd.DiscreteSchedule((1 - betas).cumprod(0))
end = torch.ones(1, dtype=torch.float64)
print(f"scaled-linear: alpha_1 = {table.alpha_sigma(end)[0].item():.4f}")
print(f"cosine:        alpha_1 = {schedule.alpha_sigma(end)[0].item():.4f}")

# %% [markdown] slideshow={"slide_type": "slide"}
# Seven per cent of signal under 99.8 per cent of noise looks harmless. **What is left of the image at $t = 1$?** We noise each image 2,000 times,
# average, and divide by 0.068 to make it visible.

# %% slideshow={"slide_type": "fragment"}
t = torch.linspace(0, 1, 201)
generator = torch.Generator().manual_seed(seed)
average_eps = sum(torch.randn(x.shape, generator=generator) for _ in range(2000)) / 2000
fig, axes = plotting.figure(1, 3, width=10.5, height=3.0, gridspec_kw={"width_ratios": [1.1, 1, 1]})
both = {"cosine": (schedule, "-", axes[1]), "scaled-linear": (table, "--", axes[2])}
for name, (each, style, axis) in both.items():
    axes[0].plot(t, each.logsnr(t), style, label=name)
    left = each.add_noise(x, average_eps, cd.per_example(1.0, x)) / 0.068
    plotting.draw_images(axis, left[:9], 3)
    axis.set_title(f"{name}:\nwhat is left at t = 1")
axes[0].set(title="two schedules", xlabel="t", ylabel="logsnr")
axes[0].legend(frameon=False)
alt = "logsnr against t: both schedules fall from 20; scaled-linear stops near -5, where cosine goes on to -20. Averages of noised images at t = 1: mere noise for cosine, clearly visible images for the other."
plotting.show(fig, alt=alt)

# %% [markdown] slideshow={"slide_type": "slide"}
# With the cosine schedule nothing is left. With the other one the image is still there, under the noise. A network sees only one
# noised copy, not the average of 2,000, but it sees many pixels. **Could it tell a training input $z_1$ from
# the pure noise that we start sampling with?** Project both on the image: $\langle z_1, x \rangle / \|x\|$. For pure
# noise that is a standard normal number. For $z_1$ it is shifted by $\alpha_1 \|x\|$, and $\|x\|$ grows with the
# number of pixels.

# %% slideshow={"slide_type": "fragment"}
alpha, sigma = (level.item() for level in table.alpha_sigma(end))
# Pure noise, projected on any direction, is one standard normal number: no need for the rest.
along = torch.randn(4000, generator=torch.Generator().manual_seed(seed))
fig, axes = plotting.figure(1, 2, width=8.6, height=3.0, sharey=True)
for axis, factor in zip(axes, (1, 8), strict=True):
    large = x[0].repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    shift = alpha * large.norm().item()
    bins = torch.linspace(-4, max(8.0, shift + 4), 60).numpy()
    axis.hist(along, bins, color=plotting.COLORS[0], alpha=0.6, label="pure noise (sampling)")
    axis.hist(
        shift + sigma * along, bins, color=plotting.COLORS[1], alpha=0.6, label="$z_1$ (training)"
    )
    side = large.shape[-1]
    axis.set(title=f"{side} x {side} pixels: shifted by {shift:.1f}", yticks=[])
    axis.set_xlabel("projection on the image")
axes[0].legend(frameon=False, fontsize=9)
alt = "Histograms of the projection on the image for pure noise and for z_1 of the scaled-linear schedule. For a small image they overlap widely; enlarged eight times they are far apart."
plotting.show(fig, alt=alt)

# %% [markdown]
# With 8 x 8 digits the two overlap by more than four fifths: a shift of 0.4 is hard to notice. With 64 x 64 pixels the shift is 3.4.
# The enlarged digit has the same content as the small one, but each pixel comes 64 times, each time with noise of its
# own: averaged, that is a 64th of the noise variance. **The same schedule is less noisy at a higher resolution**
# ([Hoogeboom et al.](https://arxiv.org/abs/2301.11093)).
#
# We have projected on the very image that is there, which is the best case. A network does not know which image to look
# for, but it need not: some coarse properties that all the pixels share, such as the mean brightness, are enough to tell the
# two apart, and it has all of training to find them. So it learns to *read* something off $z_1$. In sampling we hand it pure
# noise, an input of a kind that it has never seen, with nothing to read.
#
# A sampler with many steps has time to make up for some of a bad first step (not for all of it: Lin et al. show that Stable
# Diffusion keeps its pictures at medium brightness). A student of one or two steps has no such time: $t = 1$ is where most or all
# of its work is done, and it was taught there on inputs that give the answer away. Hence two rules, which belong together: **let the
# schedule end at $\alpha_1 = 0$, and predict $v$**, since an $\varepsilon$-prediction says nothing there (section 4). The cosine schedule
# does the first, and small images forgive a lot; with Stable Diffusion you have to enforce both.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 4: mend the table *(further: find the mistake and repair it, 8 minutes)*
#
# `zero_terminal_snr` gets `alphas_cumprod`, the table of all $\alpha^2$, whose last entry ought to be 0. Shift $\alpha$ so that it ends at 0, then scale it so that its
# first entry is what it was, and return a table of $\alpha^2$ again. (Lin et al., algorithm 1.)
#
# <details><summary>Hint 1</summary>
#
# What is shifted is $\alpha$, the square root of the table.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# One line: $(a - a_T) \cdot a_1 / (a_1 - a_T)$ for $a = \sqrt{\bar\alpha}$.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "zero_terminal_snr", "locked": false, "schema_version": 3, "solution": true, "task": false}
def zero_terminal_snr(alphas_cumprod):
    """The table with alpha_1 = 0 and its first entry as it was: [T] -> [T]."""
    ### BEGIN SOLUTION
    alpha = alphas_cumprod.sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    return alpha.square()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "zero_terminal_snr-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.zero_terminal_snr(zero_terminal_snr))
### BEGIN HIDDEN TESTS
assert checks.zero_terminal_snr(zero_terminal_snr).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* shifting `alphas_cumprod` itself; not scaling back, so that the cleanest entry becomes noisier; setting the last entry alone to 0.
#
# *To discuss:* which prediction type can no longer be used with the mended table, and what follows for whoever owns a Stable Diffusion? (Notebook 11.)
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 8. Two conventions for guidance
#
# The last trap is a matter of names, and a constant source of bugs. [Ho & Salimans](https://arxiv.org/abs/2207.12598), the paper,
# and this course write
#
# $$(1 + w)\, \text{cond} - w\, \text{uncond}, \qquad w = 0: \text{no guidance.}$$
#
# diffusers and others write $\text{uncond} + g\, (\text{cond} - \text{uncond})$ with a `guidance_scale` $g$, and there 1 is no guidance. Collect
# terms and you find $g = 1 + w$. We say $w$ everywhere and convert at the boundary. And since $x$, $\varepsilon$ and $v$ are affine in
# each other once $z$ is fixed, and the weights $1 + w$ and $-w$ add up to one, it does not matter in which of them one guides.

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
cond, uncond = 2, 1
print(" w  guidance_scale  ours  diffusers")
for w in (0, 1, 3, 7):
    g = cd.scale_from_w(w)
    print(f"{w:>2}{g:>16}{cd.guide(cond, uncond, w):>6}{uncond + g * (cond - uncond):>11}")

z, true, levels = truth(0.6)
a, b = (cd.convert(true.v + k * error, z, *levels, "v") for k in (1, 2))
in_v = cd.convert(cd.guide(a.v, b.v, 3.0), z, *levels, "v")
print("guiding in x or in v is the same:", torch.allclose(in_v.x, cd.guide(a.x, b.x, 3.0)))

# %% [markdown]
# ## Further questions
#
# 1. **Even steps in what?** Make a schedule in which *logsnr* falls in a straight line from 10 to -10, and draw its angle
#    against $t$. Where does a sampler with 4 equal steps in time now spend its steps? *Hint: subclass `Schedule` and return
#    `torch.sigmoid(logsnr).sqrt()` as $\alpha$; which sigmoid is $\sigma^2$?*
# 2. **The other target.** Papers on progressive distillation write the target for $x$,
#    $\tilde x = (z_s - \tfrac{\sigma_s}{\sigma_t} z_t) / (\alpha_s - \tfrac{\sigma_s}{\sigma_t} \alpha_t)$. Show that it is $\alpha_t z_t - \sigma_t \tilde v$
#    with our $\tilde v$: first with numbers, then on paper. *Hint: multiply numerator and denominator by $\sigma_t$ and look for $\sin(\phi_t - \phi_s)$.*
# 3. **Is $v$ really perpendicular to $z$?** Compute the cosine of the angle between $z_t$ and $v$ for the images above. Why is it not
#    exactly 0, although the circle says so? *Hint: the picture takes $x$ and $\varepsilon$ as perpendicular and equally long.
#    How true is that with these pixels?*
# 4. **When does a sampler make up its mind?** (After notebook 02.) Take the teacher down to $t = 0.7$ in small steps, add a little
#    fresh noise, $0.1\, \varepsilon'$, to its $z_t$, and walk on from both points. How far apart are the two samples? And if they part at
#    $t = 0.2$? *Hint: the loop of `sample_from_scratch` in notebook 02, with another start and another first $z$.*
#
# ## What to try next
#
# [Notebook 02](02_guided_teacher.ipynb) trains a network to predict $v$ on these images, with and without the class, and guides it.

# %%
for key, value in checkpoints.provenance(
    dataset=dataset, profile=profile, seed=seed, data=data.hash
).items():
    print(f"{key}: {value}")
