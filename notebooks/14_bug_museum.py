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
# # 14 · The bug museum
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/14_bug_museum.ipynb)
#
# Every exhibit of this museum is a mistake that somebody really made: in public code, in a course, in a pipeline that thousands use, or in an early version of this package. None of them raises an error. Most of them train
# without complaint, and some of the pictures look fine.
#
# **You will**, for each of eight mistakes,
#
# - read the code first, and try to spot it,
# - see what it does, beside the right version and from the same noise,
# - find the short test that catches it, in a second and without a GPU.
#
# **You need** notebooks [00](00_two_dimensions.ipynb) to [04](04_stage_two.ipynb).
#
# | profile | hardware | time to run |
# | --- | --- | --- |
# | all of them | any CPU | about a minute; nothing is trained |
#
# Allow about 20 minutes to read it, and 10 for the exercises.
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=14`.

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
import math
import os
from functools import partial

import torch

import cfgdistill as cd
from cfgdistill.core.rules import plus_plus
from cfgdistill.course import checks
from cfgdistill.judge import plotting
from cfgdistill.training import checkpoints

# %% tags=["parameters"]
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
seed = 0

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The two rooms
#
# Half of the exhibits stand in the plane, where notebook 00's exact teacher answers without any error of a network. The other half are digits, drawn by the models that come with the package. `walk` takes DDIM steps along any list of
# times, and asks no questions. That is the first lesson: the package's own samplers refuse half of what follows.

# %%
schedule = cd.CosineSchedule()
exact = cd.GuidedDenoiser(cd.pinwheel().denoiser(schedule), null=3)
generator = torch.Generator().manual_seed(seed)
noise, classes = torch.randn(450, 2, generator=generator), torch.arange(450) % 3


@torch.no_grad()
def walk(model, z, times, cond, w):
    """DDIM from each of `times` to the next."""
    for t, s in zip(times[:-1], times[1:], strict=True):
        z = cd.ddim_step(model(z, t, cond, w), cd.per_example(s, z), schedule)
    return z


def even(steps):
    return [i / steps for i in range(steps, -1, -1)]


def rmse(a, b):
    return (a - b).square().mean().sqrt().item()


def points(pictures, alt, reach=2.4):
    """{title: points of three classes} as a row of panels."""
    fig, axes = plotting.figure(1, len(pictures), width=2.6 * len(pictures), height=2.9)
    for axis, (title, x) in zip(axes, pictures.items(), strict=True):
        for label in range(3):
            axis.scatter(*x[classes == label].T, s=5, alpha=0.6, lw=0, color=plotting.COLORS[label])
        axis.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal", xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        axis.set_title(title, fontsize=9)
    plotting.show(fig, alt=alt)


def digits(lines, alt):
    """{title: ten digits} as rows."""
    fig, axes = plotting.figure(len(lines), 1, width=7.0, height=1.0 * len(lines))
    for axis, (title, x) in zip(axes, lines.items(), strict=True):
        plotting.draw_images(axis, x, 10, title)
    plotting.show(fig, alt=alt)


# %% [markdown] slideshow={"slide_type": "slide"}
# ## 1. The fresher opinion
#
# A student is to do in one step what its teacher does in two. This is its target, in public code that people learn from:
#
# ```python
# def target(teacher, z, t, s, cond, w):
#     mid = (t + s) / 2                                           # (a)
#     z_mid = ddim_step(teacher(z, t, cond, w), mid, schedule)    # (b)
#     second = teacher(z_mid, mid, cond, w)                       # (c)
#     return second.x                                             # (d)
# ```

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 1: spot it *(find the mistake, 3 minutes)*
#
# **In which line is the mistake?** Answer with its letter.
#
# <details><summary>Hint</summary>
#
# Where does a student land that says this in one step? And where do two steps of the teacher land?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "spot_the_line", "locked": false, "schema_version": 3, "solution": true, "task": false}
spot_the_line = None
### BEGIN SOLUTION
spot_the_line = "d"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "spot_the_line-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.spot_the_line(spot_the_line))
### BEGIN HIDDEN TESTS
assert checks.spot_the_line(spot_the_line).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>Why</summary>
#
# The teacher has taken one step and looked again. It has not taken the second step. The target has to be the $x$ whose *single* step lands on $z_s$: `implied_v` reads it off $z_t$ and $z_s$.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* (a), looking for the mistake in the times; (c), "the teacher should be asked at $s$".
#
# *To discuss:* who would notice, and when?
#
# </details>

# %% [markdown]
# To see what a target does, we need no training. **A perfect student** says exactly what its target is, and asks its teacher for it; its teacher is a perfect student of twice as many steps, and so on up to the exact model.
# What such a chain of 32, 16, 8, 4, 2 and 1 steps makes of the noise is what training can reach at best.


# %% slideshow={"slide_type": "slide"}
class Perfect:
    """A student that has learned its target, (teacher, z, t, s, cond, w) -> Prediction, by heart."""

    def __init__(self, teacher, steps, target):
        self.teacher, self.steps, self.target = teacher, steps, target

    def __call__(self, z, t, cond, w):
        return self.target(self.teacher, z, t, t - 1 / self.steps, cond, w)


def chain(target, steps):
    """The perfect student of so many steps, at the end of its chain of halvings from 32."""
    teacher = exact if steps == 32 else chain(target, 2 * steps)
    return Perfect(teacher, steps, target)


def says(output, z, t, kind):
    return cd.convert(output, z, *schedule.alpha_sigma(cd.per_example(t, z)), kind)


def step(model, z, t, s, cond, w):
    return cd.ddim_step(model(z, t, cond, w), cd.per_example(s, z), schedule)


def right(teacher, z, t, s, cond, w):
    mid = (t + s) / 2
    z_mid = step(teacher, z, t, mid, cond, w)
    z_s = step(teacher, z_mid, mid, s, cond, w)
    return says(
        cd.implied_v(z, z_s, cd.per_example(t, z), cd.per_example(s, z), schedule), z, t, "v"
    )


def second_x(teacher, z, t, s, cond, w):
    mid = (t + s) / 2
    z_mid = step(teacher, z, t, mid, cond, w)
    return says(teacher(z_mid, mid, cond, w).x, z, t, "x")


truth = walk(exact, noise, even(64), classes, 3.0)
print("rmse of perfect students to the exact 64 steps, w = 3")
for target in (right, second_x):
    found = {n: walk(chain(target, n), noise, even(n), classes, 3.0) for n in (8, 4, 2, 1)}
    print(f"{target.__name__:>9}:", {n: round(rmse(x, truth), 3) for n, x in found.items()})
points(
    {
        "64 steps of the teacher": truth,
        "right, 1 step": walk(chain(right, 1), noise, [1.0, 0.0], classes, 3.0),
        "second x, 1 step": found[1],
    },
    "Three panels of three arms. The right student's are those of the teacher. With the second x the arms look much the "
    "same: the mistake is hard to see.",
)

# %% [markdown] slideshow={"slide_type": "fragment"}
# The right chain is exact to the last digits that are shown. The wrong one is off by 0.18 with a single step, seven times as much as the trained student of notebook 00. **And the picture looks fine.** The points are at the wrong places, but they lie on the arms. Nobody would find
# this mistake by looking. The error grows from halving to halving, but for the last: with $N = 1$ the only interval ends at $s = 0$, and there the second $x$ *is* right.
#
# **The test:** one step of the student lands where two steps of the teacher land, in every interval and for more than one $N$. (In double precision, with a tolerance of $10^{-10}$.)

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
z64 = noise.double()


def lands(target, steps, i):
    """Whether one step with the target lands where two steps of the exact teacher do."""
    t, s = i / steps, (i - 1) / steps
    two = step(exact, step(exact, z64, t, (t + s) / 2, classes, 3.0), (t + s) / 2, s, classes, 3.0)
    one = cd.ddim_step(target(exact, z64, t, s, classes, 3.0), cd.per_example(s, z64), schedule)
    return (one - two).abs().max().item() < 1e-10


for target in (right, second_x):
    print(
        f"{target.__name__}, N = 1:",
        [lands(target, 1, 1)],
        "N = 4:",
        [lands(target, 4, i) for i in (4, 3, 2, 1)],
    )

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 2. Two times, two letters
#
# ```python
# def target(teacher, z, t, s, cond, w):
#     mid = (t + s) / 2
#     z_s = step(teacher, z, t, s, cond, w)
#     z_mid = step(teacher, z_s, s, mid, cond, w)
#     return says(implied_v(z, z_mid, t, s, schedule), ...)
# ```
#
# **Spot it,** then look.


# %% slideshow={"slide_type": "fragment"}
def swapped(teacher, z, t, s, cond, w):
    mid = (t + s) / 2
    z_s = step(teacher, z, t, s, cond, w)
    z_mid = step(teacher, z_s, s, mid, cond, w)
    return says(
        cd.implied_v(z, z_mid, cd.per_example(t, z), cd.per_example(s, z), schedule), z, t, "v"
    )


points(
    {"teacher": truth}
    | {
        f"swapped, N = {n}": walk(chain(swapped, n), noise, even(n), classes, 3.0)
        for n in (32, 8, 1)
    },
    "The teacher's three arms, and samples of students with mid and s swapped: with 32 steps the arms are wider and nearer to "
    "each other, with 8 and with 1 the three classes are scattered over and beyond one another.",
    reach=3.6,
)

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>What is wrong</summary>
#
# `mid` and `s` have changed places: the teacher jumps to the end of the interval and comes *back* up to its middle, where the walk is half as far as it should be. Every student lags behind its teacher, and the next one lags behind that.
# A training loss shows nothing: the student learns this target as well as any other.
#
# </details>

# %% [markdown]
# **The test** is the same as before. It needs one interval.

# %%
# NBVAL_CHECK_OUTPUT
print("swapped, N = 4:", [lands(swapped, 4, i) for i in (4, 3, 2, 1)])

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 3. A layer that nobody asked
#
# The student of stage one gets a new input for $w$. In `diffusers` that is one argument:
#
# ```python
# student = UNet2DConditionModel.from_config(teacher.config, time_cond_proj_dim=64)
# student.load_state_dict(teacher.state_dict(), strict=False)
# ```
#
# **Spot it.** Below are the teacher's digits, and those of two students before their first update. One of them has this mistake.

# %% slideshow={"slide_type": "fragment"}
teacher, stage_one = cd.load("digits/teacher"), cd.load("digits/stage-one")
z = torch.randn(10, *teacher.shape, generator=generator)
labels = torch.arange(10)
fresh = cd.add_w_conditioning(teacher, (0.0, 4.0))
spoilt = cd.add_w_conditioning(teacher, (0.0, 4.0))
torch.manual_seed(seed)
spoilt.net.unet.time_embedding.cond_proj.reset_parameters()  # as PyTorch makes a layer
digits(
    {
        "the teacher, w = 0": walk(teacher, z, even(16), labels, None),
        "a fresh student, one way": walk(fresh, z, even(16), labels, 0.0),
        "and another": walk(spoilt, z, even(16), labels, 0.0),
    },
    "Ten digits by the teacher, the same ten by the first student, and by the second one nearly the same: a 1 has lost its stem.",
)
with torch.no_grad():
    for name, student in (("one way", fresh), ("another", spoilt)):
        off = student(z, 0.8, labels, 2.0).v - teacher(z, 0.8, labels).v
        print(f"{name}: rmse to the teacher's answer at t = 0.8: {off.square().mean().sqrt():.3f}")

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>What is wrong</summary>
#
# `strict=False` forgives the weights that are missing: those of `cond_proj`, which `diffusers` leaves at random. So the student starts as a *damaged* teacher. On these small digits one has to look twice to see it; training repairs it, mostly; and nobody looks at a student before its first update. With zeros the student starts as the conditional
# teacher to the last bit, whatever $w$ is, and its loss at $w = 0$ starts at 0.
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# **The test:** before the first update, student and conditional teacher are equal. Not close: equal.

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
with torch.no_grad():
    for name, student in (("zeros", fresh), ("random", spoilt)):
        off = (student(z, 0.8, labels, 2.0).v - teacher(z, 0.8, labels).v).abs().max()
        print(f"{name}: equal to the teacher: {off == 0}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 4. The noisiest step
#
# A scheduler with a table of 1000 noise levels is asked for 4 steps, and its setting reads `timestep_spacing="leading"`, which is the default: the steps start at the entries $k \cdot 1000/4$, $k = 3, 2, 1, 0$.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 2: which times does it visit? *(predict before the figure, 4 minutes)*
#
# The sampler starts with pure noise. **At which entries of the table is the network asked?** A list, in the order of the calls.
#
# <details><summary>Hint</summary>
#
# Put $k = 3, 2, 1, 0$ in.
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "leading_times", "locked": false, "schema_version": 3, "solution": true, "task": false}
leading_times = None
### BEGIN SOLUTION
leading_times = [750, 500, 250, 0]
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "leading_times-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.leading_times(leading_times))
### BEGIN HIDDEN TESTS
assert checks.leading_times(leading_times).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>Why</summary>
#
# 750, 500, 250, 0. The network is given pure noise and told that it is an image three quarters of the way. Entry 999, the only one at which pure noise is what it has been trained on, is never visited, and the last call is
# spent on an image that has hardly any noise left. With 1000 steps nobody notices, with 4 hardly anybody; with one step, nothing is left of the model. `timestep_spacing="trailing"` visits 999, 749, 499, 249.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* [1000, 750, 500, 250], which is the grid of the student; [999, 749, 499, 249], which is `trailing`.
#
# *To discuss:* with 1000 steps the two settings differ by one entry. With how many does it begin to matter?
#
# </details>


# %% slideshow={"slide_type": "slide"}
def leading(steps):
    """The same steps, called one entry too late; an entry of the table is a thousandth."""
    return [max((i - 1) / steps, 0.001) for i in range(steps, 0, -1)] + [0.0]


reference = walk(cd.GuidedDenoiser(teacher, 10), z, even(128), labels, 1.0)
lines = {}
for n in (4, 2, 1):
    student = cd.load(f"digits/stage-two/steps-{n}")
    for name, times in (("its own times", even(n)), ("leading", leading(n))):
        x = lines[f"N = {n}, {name}"] = walk(student, z, times, labels, 1.0)
        print(f"N = {n}, {name}: rmse to the teacher's 128 steps {rmse(x, reference):.2f}")
digits(
    lines,
    "Ten digits by the students of 4, 2 and 1 steps, each with its own times and with leading spacing. With 4 steps the two lines "
    "are much alike; with 2 the second is rough; with 1 it is nothing but noise.",
)

# %% [markdown] slideshow={"slide_type": "fragment"}
# **The test:** the first time that a sampler asks at is 1. And a student of 4 steps should know its times, and be asked at no others. In `diffusers`, the setting travels with the model, in `scheduler_config.json`: our export writes `trailing`.

# %%
# NBVAL_CHECK_OUTPUT
asked = []


def network_that_listens(z, t, cond, w):
    asked.append(round(float(t), 3))
    return says(torch.zeros_like(z), z, t, "v")


for times in (even(4), leading(4)):
    asked.clear()
    walk(network_that_listens, z, times, labels, 1.0)
    print(f"asked at {asked}; starts at 1: {asked[0] == 1}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 5. Seven per cent of signal
#
# Stable Diffusion's table of noise levels ends at $\alpha_1 = 0.068$, not at 0 ([notebook 01](01_schedules_and_parameterizations.ipynb), section 7). Sampling starts from pure noise all the same. **What is lost?**
#
# Let us take the simplest images that there are: all pixels of an image have the same grey value $b$, and $b$ is a standard normal number. Then everything can be computed. Of $d$ pixels only their sum matters; in $z_1$ its variance (over $d$) is $\alpha_1^2 d + \sigma_1^2$. An exact
# sampler maps this distribution onto that of $b$, by dividing by its standard deviation. Pure noise has variance 1.

# %% slideshow={"slide_type": "fragment"}
betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
table = cd.DiscreteSchedule((1 - betas).cumprod(0))
end = torch.ones(1, dtype=torch.float64)


def greys(schedule, pixels, p):
    """Grey values of exact samples that start from noise whose pixels sum up to p * sqrt(pixels)."""
    alpha, sigma = schedule.alpha_sigma(end)
    return p / (alpha**2 * pixels + sigma**2).sqrt()


p = torch.randn(40, generator=generator, dtype=torch.float64)
squares = {
    "ends in pure noise: 64 x 64 pixels": greys(table.zero_terminal_snr(), 64**2, p),
    "alpha_1 = 0.068: 8 x 8 pixels": greys(table, 8**2, p),
    "alpha_1 = 0.068: 64 x 64 pixels": greys(table, 64**2, p),
}
fig, axes = plotting.figure(3, 1, width=7.5, height=2.9)
for axis, (title, b) in zip(axes, squares.items(), strict=True):
    plotting.draw_images(
        axis, (0.5 * b).float().reshape(-1, 1, 1, 1).expand(-1, 1, 4, 4), 20, title
    )
plotting.show(
    fig,
    alt="Three blocks of forty grey squares. With a schedule that ends in pure noise they run from black to white; with alpha_1 = 0.068 and "
    "8 x 8 pixels a little less; with 64 x 64 pixels all of them are medium grey.",
)

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>What is wrong</summary>
#
# In training, $z_1$ gives away the mean brightness of the image: 0.068 of it in every pixel, and there are thousands of pixels to average. The network learns to read it. Pure noise has a mean near 0, so the network reads "medium grey", every time. With 64 x 64 pixels the spread of $b$ is 0.22 instead of 1:
# that is why Stable Diffusion paints neither a black night nor a white sheet ([Lin et al.](https://arxiv.org/abs/2305.08891)).
#
# </details>

# %% [markdown] slideshow={"slide_type": "fragment"}
# **The test:** $\alpha_1 = 0$, exactly.

# %%
# NBVAL_CHECK_OUTPUT
for name, each in (
    ("Stable Diffusion's", table),
    ("mended", table.zero_terminal_snr()),
    ("cosine", schedule),
):
    print(f"{name}: alpha_1 is 0: {each.alpha_sigma(end)[0].item() == 0}")
print("spread of the greys, 64 x 64 pixels:", round(greys(table, 64**2, 1.0).item(), 2))

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 6. Twice is more
#
# A student has learned $w$. Somebody puts it into a pipeline that does what pipelines do: it asks twice, with and without the label, and combines the two with the same $w$.
#
# ```python
# v = guide(student(z, t, cond, w).v, student(z, t, null, w).v, w)
# ```
#
# It is the same mistake when a student is distilled from a teacher that was itself trained on guided samples. (An early version of our notebook 11 did that.)

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 3: how much is it? *(derive, 5 minutes)*
#
# Let the student be perfect. With a label it says $v_c + w\,\Delta$, with $\Delta = v_c - v_\varnothing$. With the null label for a label there is no difference, and it says $v_\varnothing$ at every $w$. **Which guidance weight do the samples get, if $w = 3$?**
#
# <details><summary>Hint 1</summary>
#
# Put the two answers into $(1 + w)\, a - w\, b$, and collect the terms with $\Delta$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $a - b = v_c + w\,\Delta - v_\varnothing = (1 + w)\,\Delta$.
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "guided_twice", "locked": false, "schema_version": 3, "solution": true, "task": false}
guided_twice = None
### BEGIN SOLUTION
w = 3
guided_twice = w + w * (1 + w)
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "guided_twice-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.guided_twice(guided_twice))
### BEGIN HIDDEN TESTS
assert checks.guided_twice(guided_twice).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>Why</summary>
#
# $a + w\,(a - b) = v_c + w\,\Delta + w\,(1 + w)\,\Delta$, so the weight is $2 w + w^2 = (1 + w)^2 - 1$. At $w = 3$ that is 15. In `diffusers`' convention scales multiply: $4 \cdot 4 = 16$.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* 6 (adds), 9 (multiplies $w$), 16 (the scale, not the weight).
#
# *To discuss:* how do stock pipelines know that they must not ask twice? (`time_cond_proj_dim` is set in the U-Net's configuration.)
#
# </details>

# %% slideshow={"slide_type": "slide"}
null = torch.full_like(labels, 10)


def twice(z, t, cond, w):
    v = cd.guide(stage_one(z, t, cond, w).v, stage_one(z, t, null, w).v, w)
    return says(v, z, t, "v")


digits(
    {
        "the student, w = 3": walk(stage_one, z, even(32), labels, 3.0),
        "guided once more, w = 3": walk(twice, z, even(32), labels, 3.0),
        "the teacher at w = 15": walk(cd.GuidedDenoiser(teacher, 10), z, even(32), labels, 15.0),
    },
    "Ten clear digits by the student at w = 3; guided once more they have thick, hard strokes in black and white; the teacher's at w = 15 look much like those.",
)

# %% [markdown] slideshow={"slide_type": "fragment"}
# **The test:** measure the weight that is delivered (notebook 03), or, simpler, count the calls. A student asks once in a step.

# %%
# NBVAL_CHECK_OUTPUT
for name, model in (("once", stage_one), ("twice", twice)):
    stage_one.nfe = 0
    walk(model, z, even(8), labels, 1.0)
    print(f"guided {name}: {stage_one.nfe} evaluations for 8 steps")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 7. Smaller and smaller steps
#
# [CFG++](https://arxiv.org/abs/2406.08070) changes one symbol in the DDIM step: the noise that is put back is the *unconditional* one, and a strength $\lambda$ between 0 and 1 replaces $w$. It is made for few steps. Somebody who wants a reference for a table does the usual thing, and takes many.
# **What do 4, 16, 64 and 256 steps give, with the same $\lambda$ and the same noise?**


# %% slideshow={"slide_type": "fragment"}
def cfg_plus_plus(steps):
    rule = partial(plus_plus, steps=steps)
    return cd.GuidedDenoiser(cd.pinwheel().denoiser(schedule), null=3, rule=rule)


finer = {n: cd.last(cd.ddim(cfg_plus_plus(n), noise, n, classes, 0.6)) for n in (4, 16, 64, 256)}
points(
    {f"CFG++, {n} steps": x for n, x in finer.items()},
    "Samples of CFG++ with 4, 16, 64 and 256 steps: three arms that draw apart and shrink; with 256 steps each is a small clump far outside the data.",
    reach=2.9,
)
guided = {n: cd.last(cd.ddim(exact, noise, n, classes, 3.0)) for n in (16, 64, 256)}
for name, x in (("CFG, w = 3", guided), ("CFG++, 0.6", finer)):
    print(
        f"{name}: 16 and 64 steps differ by {rmse(x[16], x[64]):.3f}, 64 and 256 by {rmse(x[64], x[256]):.3f}"
    )

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>What is wrong</summary>
#
# One step of CFG++ from $t$ to $s$ is one step of ordinary guidance with the scale $\lambda \sin\phi_t \cos\phi_s / \sin(\phi_t - \phi_s)$. The denominator goes to 0 with the step, so guidance grows without bound: there is nothing that the samples tend to, and no reference with many steps.
# The number of steps is part of the method. (So a student can be distilled from it only together with the number of steps.)
#
# </details>

# %% [markdown] slideshow={"slide_type": "fragment"}
# **The test:** refine. Twice the steps has to change less than the last time.

# %%
# NBVAL_CHECK_OUTPUT
for name, x in (("CFG", guided), ("CFG++", finer)):
    print(f"{name} settles: {rmse(x[64], x[256]) < 0.5 * rmse(x[16], x[64])}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 8. Jump, noise, jump
#
# A one-step student jumps from any $t$ to the data. Then, the recipe of [consistency models](https://arxiv.org/abs/2303.01469) goes, more steps improve it: jump, put fresh noise on the result, jump again from a smaller $t$. In the plane we have the *perfect* jumper, the exact walk itself.
# **What do 1, 2, 4 and 8 perfect jumps give at $w = 3$?**


# %% slideshow={"slide_type": "fragment"}
def jump(z, i, w, steps=64):
    """The exact walk from t = i/steps to the data, as a single answer."""
    return walk(exact, z, [k / steps for k in range(i, -1, -1)], classes, w)


def jumps(n, w):
    fresh = torch.Generator().manual_seed(seed)
    x = jump(noise, 64, w)
    for i in range(n - 1, 0, -1):
        eps = torch.randn(noise.shape, generator=fresh)
        x = jump(schedule.add_noise(x, eps, cd.per_example(i / n, x)), 64 * i // n, w)
    return x


radius = {}
for w in (0.0, 3.0):
    found = {n: jumps(n, w) for n in (1, 2, 4, 8)}
    radius[w] = {n: x.norm(dim=1).mean().item() for n, x in found.items()}
    print(
        f"w = {w:g}: mean distance from the centre", {n: round(r, 2) for n, r in radius[w].items()}
    )
points(
    {f"w = 3, {n} jump{'s' * (n > 1)}": x for n, x in found.items()},
    "Samples of 1, 2, 4 and 8 perfect jumps at w = 3: with one, three arms far apart; the more jumps, the closer to the centre they come.",
)

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>What is wrong</summary>
#
# Putting noise on $x$ gives a $z_s$ as in *training*: noised data. But a guided walk does not pass through noised guided samples: at time $s$ its points are distributed otherwise, and only at $w = 0$ are the two the same. So every round of noise takes back a part of the guidance, even with a perfect jumper: the samples
# drift back to the data. No training repairs that. It is also why the stochastic sampler of [notebook 05](05_stochastic_sampler.ipynb) behaves differently under guidance.
#
# </details>

# %% [markdown] slideshow={"slide_type": "fragment"}
# **The test:** more steps of an exact model must not move the distribution. At $w = 0$ they do not: test with guidance on.

# %%
# NBVAL_CHECK_OUTPUT
for w in radius:
    drift = abs(radius[w][8] - radius[w][1]) / radius[w][1]
    print(f"w = {w:g}: eight jumps and one agree to 10%: {drift < 0.1}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## The cabinet of small things
#
# Four that need no picture. Each line is the mistake, and what it gives.

# %%
# NBVAL_CHECK_OUTPUT
alpha_1 = torch.cos(torch.tensor(math.pi / 2))
print(
    "alpha_1 as a cosine is below 0 in float32:",
    (alpha_1 < 0).item(),
    "- its logarithm:",
    alpha_1.log().item(),
)
print(
    "guidance_scale passed as w, asked for none:",
    cd.guide(2, 1, w=1),
    "instead of",
    cd.guide(2, 1, w=0),
)
print("steps of image-to-image at strength 0.3 with 3 steps, int(3 * 0.3):", int(3 * 0.3))
print("6001 as w features see it in bfloat16:", torch.tensor(6001.0).bfloat16().item())

# %% [markdown] slideshow={"slide_type": "fragment"}
# - The cosine of $\pi/2$ is -4e-8 in float32, and logsnr is not a number at $t = 1$. Write it as $\sin(\tfrac{\pi}{2}(1 - t))$, which is 0 there, and limit logsnr.
# - `diffusers`' `guidance_scale` is $1 + w$, and 1 means none. Passed on as $w$, it guides those who asked for nothing.
# - $\mathrm{int}(N \cdot \text{strength})$ is 0 whenever strength is below $1/N$: the picture comes back unchanged. A student of few steps has few strengths; say which.
# - Features of $1000\,w$ do not fit into 8 bits of mantissa. Embed $w$ in float32, whatever the network computes in.
#
# ## What caught them
#
# | exhibit | seen in the picture? | seen in the loss? | the test |
# | --- | --- | --- | --- |
# | 1. second $x$ as target | hardly | no | one step = two steps, in every interval |
# | 2. mid and s swapped | yes | no | the same, in any interval |
# | 3. random `cond_proj` | hardly | at the start | fresh student == teacher |
# | 4. leading spacing | the more, the fewer the steps | no | the first time is 1 |
# | 5. no zero terminal SNR | in the average of many | no | $\alpha_1 = 0$ |
# | 6. guided twice | yes, and it looks "strong" | no | count the calls |
# | 7. CFG++ in small steps | yes | - | refine: it has to settle |
# | 8. noise between guided jumps | hardly, without a reference | no | more steps do not move the distribution |
#
# Two columns of "no" and one of short tests: each takes less than a second, none needs a trained network, and each has an answer that was known before the code was written.
#
# ## Further questions
#
# 1. Build an exhibit: student and teacher with tables of their own, of $N/2$ and $N$ betas between the same ends. At which $t$ do their $\alpha_t$ differ most? Which test would catch it?
# 2. `clip_sample=True` clips the guess of $x$ to $[-1, 1]$ in every step. Guidance is the same in $x$, $\varepsilon$ and $v$ "as long as nothing is clipped": find a $z$ for which the three now differ.
# 3. Which mistake of your own would deserve a place here, and which three lines would have caught it?

# %%
for key, value in checkpoints.provenance(profile=profile, seed=seed).items():
    print(f"{key}: {value}")
