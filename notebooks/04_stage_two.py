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
# # 04 · Stage two: progressive distillation
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/04_stage_two.ipynb)
#
# One network now does the work of the guided pair, but it still needs dozens of steps. In this notebook
# a student learns to do **two of its teacher's steps in one**. Then it becomes the teacher, and the next
# student learns to do two of *its* steps in one; and so on, down to a single step from noise to image. This is
# *progressive distillation* ([Salimans & Ho](https://arxiv.org/abs/2202.00512)), and with a $w$ that each student is told, the
# second stage of [the paper](https://arxiv.org/abs/2210.03142).
#
# **You will**
#
# - derive the target of a halving, and check that one step with it lands exactly where two steps land,
# - meet a wrong target that looks right, and see where it goes wrong,
# - run the halving loop down to one step,
# - compare teacher and students from the same noise, in pictures and in numbers, and count the cost.
#
# **You need** notebooks [02](02_guided_teacher.ipynb) and [03](03_stage_one.ipynb) (what you skipped is loaded or trained here).
#
# | profile | hardware | time to run, if all is trained here |
# | --- | --- | --- |
# | `smoke` | any CPU | under a minute |
# | `laptop` (the default) | two CPU cores | four minutes on digits, an hour on CIFAR-10, after stage one |
# | `colab` | one free T4 | CIFAR-10: about a third of a session |
# | `paper` | a large GPU | the published budget |
#
# Unless you ask for training, finished models are loaded, and the notebook runs in about eight minutes on CIFAR-10 (a quarter of an hour if 02 and 03 were not run before), in three on digits. (For a first run, train on
# digits: see notebook 02.) Allow about 25 minutes to read it, and 20 for the exercises;
# without what is *further*, 30 in all.
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=04`.

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
from pathlib import Path

import torch

import cfgdistill as cd
from cfgdistill.course import checks, stages, walk, widgets
from cfgdistill.judge import plotting
from cfgdistill.training import checkpoints
from cfgdistill.training.environment import flag

# %% tags=["parameters"]
dataset = os.environ.get("CFGDISTILL_DATASET") or walk.at_hand()
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
retrain = flag("CFGDISTILL_RETRAIN")  # False: use the models of the package
seed = 0

# %% [markdown]
# ## 1. Two steps in one
#
# The student is to take $N$ steps, from $t = i/N$ to $s = (i-1)/N$. Its teacher takes two steps over the
# same interval, with a stop at $m = t - \tfrac{1}{2N}$:
#
# $$ z_t \;\xrightarrow{\text{teacher}}\; z_m \;\xrightarrow{\text{teacher}}\; z_s. $$
#
# What must the student *predict* at $z_t$, so that its **single** step lands on that $z_s$? A DDIM step is
# $z_s = \alpha_s \tilde x + \sigma_s \tilde\varepsilon$, and prediction and noise belong together,
# $z_t = \alpha_t \tilde x + \sigma_t \tilde\varepsilon$. Two equations, two unknowns. As in notebook 00, eliminate
# $\tilde\varepsilon$ and you have the target of Salimans & Ho:
#
# $$ \tilde x = \frac{z_s - (\sigma_s / \sigma_t)\, z_t}{\alpha_s - (\sigma_s / \sigma_t)\, \alpha_t}. $$
#
# Or think of the circle of [notebook 01](01_schedules_and_parameterizations.ipynb). The step turns $z_t$ by the angle $d = \phi_s - \phi_t$ towards $v$,
# $z_s = \cos(d)\, z_t + \sin(d)\, v$, so the $v$ that leads to $z_s$ is
#
# $$ \tilde v = \frac{z_s - \cos(d)\, z_t}{\sin(d)}. $$
#
# The two say the same. Why does the package use the second? On the way down, which is all that we need here, neither
# divides by zero: $\sigma_t$ is positive at every $t \ge 1/N$. On the way *up*, from data to noise, the first step starts at
# $\sigma_0 = 0$, where the first form fails and the second does not. [Notebook 06](06_encoders_and_style_transfer.ipynb) goes that way.
#
# And why halve at all, instead of learning one step from the ends of the whole walk? A target of a halving costs *two*
# evaluations of its teacher, that of a whole walk of 64 steps costs 64 for every image of every update; and a student that
# starts as a copy of its teacher starts close to its answer. (The whole walk has been used too:
# [Luhman & Luhman](https://arxiv.org/abs/2101.02388).)


# %%
def target_from_scratch(teacher, z, t, s, cond, w):
    alpha_sigma, mid = teacher.schedule.alpha_sigma, (t + s) / 2
    z_mid = cd.ddim_step(teacher(z, t, cond, w), mid, teacher.schedule)
    z_s = cd.ddim_step(teacher(z_mid, mid, cond, w), s, teacher.schedule)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = alpha_sigma(t), alpha_sigma(s)
    ratio = sigma_s / sigma_t
    return (z_s - cd.expand(ratio, z) * z) / cd.expand(alpha_s - ratio * alpha_t, z)  # x form


# %% [markdown]
# In double precision the claim "one step equals two" can be checked to the last digits. We use the exact
# guided teacher of notebook 00, so nothing here depends on training.

# %%
# NBVAL_CHECK_OUTPUT
exact = cd.GuidedDenoiser(cd.pinwheel().denoiser(cd.CosineSchedule()), null=3)
generator = torch.Generator().manual_seed(1)
cond, w = torch.arange(3).repeat(20), 4 * torch.rand(60, generator=generator).double()
worst = 0.0
for N in (1, 2, 4, 8, 64):
    for i in range(1, N + 1):
        z = torch.randn(60, 2, generator=generator).double()
        t, s = torch.full((60,), i / N).double(), torch.full((60,), (i - 1) / N).double()
        mid = (t + s) / 2
        z_mid = cd.ddim_step(exact(z, t, cond, w), mid, exact.schedule)
        two_steps = cd.ddim_step(exact(z_mid, mid, cond, w), s, exact.schedule)
        v = cd.progressive_target(exact, z, t, s, cond, w)
        d = cd.expand(exact.schedule.angle(s) - exact.schedule.angle(t), z)
        worst = max(worst, (d.cos() * z + d.sin() * v - two_steps).abs().max().item())
        x = target_from_scratch(exact, z, t, s, cond, w)
        alpha, sigma = (cd.expand(a, z) for a in exact.schedule.alpha_sigma(t))
        torch.testing.assert_close(alpha * z - sigma * v, x, atol=1e-9, rtol=1e-9)
print(f"one step with the target lands where two steps land, to 1e-10: {worst < 1e-10}")
print("the x form from scratch and the v form of the package agree")

# %% [markdown]
# ### Exercise 1: what two answers come to *(derive, 10 minutes)*
#
# The teacher answers $v_1$ at $z_t$ and $v_2$ at $z_m$, and each of its steps turns by the same angle $d$ (as it does with the cosine schedule, where $d < 0$ on the way down). The student turns by $2d$ at once.
# **Write the $\tilde v$ that does both in terms of $v_1$, $v_2$ and $z_t$.**
#
# <details><summary>Hint 1</summary>
#
# $z_m = \cos d\, z_t + \sin d\, v_1$ and $z_s = \cos d\, z_m + \sin d\, v_2$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $\tilde v = (z_s - \cos 2d\, z_t) / \sin 2d$. Use $\sin 2d = 2 \sin d \cos d$ and $\cos^2 d - \cos 2d = \sin^2 d$.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "two_in_one", "locked": false, "schema_version": 3, "solution": true, "task": false}
def two_in_one(v_1, v_2, z, d):
    """The v whose one step by 2d from z lands where steps by d with v_1, then v_2, land."""
    ### BEGIN SOLUTION
    return (v_1 + v_2 / d.cos() + d.tan() * z) / 2
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "two_in_one-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.two_in_one(two_in_one))
### BEGIN HIDDEN TESTS
assert checks.two_in_one(two_in_one).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["solution"]
# <details><summary>Why</summary>
#
# $$ \tilde v = \tfrac{1}{2} \Bigl( v_1 + \frac{v_2}{\cos d} + \tan d \; z_t \Bigr). $$
#
# For short steps, $d \to 0$, the target is simply the mean of the two answers. For the last student, $N = 1$ and $d = -\pi/4$, it is $\tfrac{1}{2} (v_1 + \sqrt{2}\, v_2 - z_t)$.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* $(v_1 + v_2)/2$. The error fades as $N$ grows, so this one nearly passes a test with many steps; $v_2$ alone; a wrong sign of the tangent.
#
# *To discuss:* is $\tilde v$ between $v_1$ and $v_2$? What would a student learn that is trained with the mean?
#
# </details>

# %% [markdown]
# ## 2. A wrong target that looks right
#
# After its two steps the teacher has a fresh opinion about the image: the $x$-prediction at $z_m$. Surely
# that is what the student should predict? It is an easy mistake to make.

# %% [markdown]
# ### Exercise 2: where does it miss? *(predict before the figure, 3 minutes)*
#
# Let the student have $N = 4$ steps, and let interval $i$ lead from $t = i/4$ to $(i - 1)/4$. **In which interval does the wrong target miss most, and in which not at all?**
#
# <details><summary>Hint 1</summary>
#
# Exercise 4 of [notebook 00](00_two_dimensions.ipynb) asked for one of the two.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# Where do the first and the second guess of the teacher differ most?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "where_it_misses", "locked": false, "schema_version": 3, "solution": true, "task": false}
where_it_misses = {"most": ..., "not at all": ...}
### BEGIN SOLUTION
where_it_misses = {"most": 2, "not at all": 1}
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "where_it_misses-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.where_it_misses(where_it_misses))
### BEGIN HIDDEN TESTS
assert checks.where_it_misses(where_it_misses).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* most in interval 4, "where the noise is": there both guesses are averages, and alike; most in interval 1.
#
# *To discuss:* which number of steps would a careless author test with?
#
# </details>

# %% [markdown]
# **What does a target cost?** The first halving, of a guided teacher, would ask it for both opinions at both steps. Stage one has made
# one network of them, so stage two needs half of these, and every student is the teacher of the next.

# %%
# NBVAL_CHECK_OUTPUT
exact.nfe = 0
cd.progressive_target(exact, torch.zeros(60, 2).double(), 0.5, 0.25, cond, w)
print("evaluations of a guided teacher for one target:", exact.nfe)

# %% [markdown]
# **By how much does the student then miss $z_s$?**

# %%
N = 4
misses = []
for i in range(N, 0, -1):
    z = torch.randn(60, 2, generator=generator).double()
    t, s = torch.full((60,), i / N).double(), torch.full((60,), (i - 1) / N).double()
    mid = (t + s) / 2
    z_mid = cd.ddim_step(exact(z, t, cond, w), mid, exact.schedule)
    second = exact(z_mid, mid, cond, w)
    two_steps = cd.ddim_step(second, s, exact.schedule)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        exact.schedule.alpha_sigma(t),
        exact.schedule.alpha_sigma(s),
    )
    eps = (z - cd.expand(alpha_t, z) * second.x) / cd.expand(sigma_t, z)
    landed = cd.expand(alpha_s, z) * second.x + cd.expand(sigma_s, z) * eps
    misses.append((landed - two_steps).square().sum(1).mean().sqrt().item())
fig, axis = plotting.figure(width=6, height=3)
axis.bar([f"{i}/{N} to {i - 1}/{N}" for i in range(N, 0, -1)], misses, color=plotting.COLORS[1])
axis.set(ylabel="distance to $z_s$", xlabel="interval")
plotting.show(
    fig,
    alt="Bars of the distance by which the wrong target misses z_s in the four intervals: it grows from the "
    "first to the third, and is zero in the last.",
)

# %% [markdown]
# It misses everywhere but in the last interval, and most of all in the one before it. In the last one $\sigma_s = 0$, the noise drops out, and the teacher's
# second $x$ *is* the answer. A test that looks only at the last step, or only at $N = 1$, passes.
#
# **Now you.** The same in a picture, interval by interval: dotted the teacher's two steps from $z_t$ over $z_m$ to $z_s$, in colour single steps. In which interval does the
# second $x$ land right, whatever the number of steps is? And what makes the mean of the teacher's two $v$ (exercise 1) a better and better target?


# %%
def arc(axis, z, v, t, s, **look):
    """Draw how a step with v turns z on the way from t to s; where it ends."""
    turn = exact.schedule.angle(s) - exact.schedule.angle(t)
    d = (torch.linspace(0, 1, 50)[:, None] * turn)[..., None]
    path = d.cos() * z + d.sin() * v
    axis.plot(*path.unbind(-1), **look)
    return path[-1]


means = cd.pinwheel().means[[2, 6, 10]]  # a blob of each class, half the way out
clean, classes = means.repeat(2, 1), torch.arange(3).repeat(2)
its_noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(3))


def draw(steps, interval, w, point, wrong_targets):
    i, k = min(interval, steps), [point]
    t, mid, s = (torch.tensor([a / steps]) for a in (i, i - 0.5, i - 1))
    fig, axis = plotting.figure(width=8, height=4)
    z = exact.schedule.add_noise(clean[k], its_noise[k], t)
    v_1 = exact(z, t, classes[k], w).v
    z_mid = arc(axis, z, v_1, t, mid, color="0.5", ls=":", marker="o", markevery=[-1])
    second = exact(z_mid, mid, classes[k], w)
    z_s = arc(axis, z_mid, second.v, mid, s, color="0.5", ls=":", label="two steps")
    targets = {"target": cd.progressive_target(exact, z, t, s, classes[k], w)}
    if wrong_targets:
        targets["second x"] = cd.convert(second.x, z, *exact.schedule.alpha_sigma(t), "x").v
        targets["mean of the two v"] = (v_1 + second.v) / 2
    for (name, v), color, marker in zip(targets.items(), plotting.COLORS, "os^", strict=False):
        end = arc(axis, z, v, t, s, color=color, marker=marker, markevery=[-1], ms=8)
        axis.lines[-1].set_label(f"{name}: misses by {(end - z_s).norm():.2f}")
    axis.plot(*z.T, "o", color="black", ms=8, fillstyle="none", label=f"$z_t$, t = {i}/{steps}")
    axis.set_title(f"from t = {i}/{steps} to {i - 1}/{steps}, w = {w:g}")
    axis.set_aspect("equal", adjustable="datalim")
    axis.set_axis_off()
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return fig


widgets.explore(
    draw,
    alt="A point of the plane. From it, a dotted path of two arcs, the teacher's steps; and an arc in one go with the "
    "target, which ends at the same place. The arcs of the second x and of the mean of the two v end beside it.",
    steps=[2, 1, 4, 8, 16],
    interval=(2, 1, 16, 1),
    w=(3.0, 0.0, 4.0, 0.5),
    point=(0, 0, 5, 1),
    wrong_targets=True,
)

# %% [markdown]
# ## 3. The halving loop
#
# The student of stage one takes any number of steps, so it is the first teacher. A halving is short enough
# to be written down:

# %%
recipe = cd.get_recipe(dataset, profile, seed=seed)
if not retrain:
    recipe = cd.use_pretrained(recipe, out)
print(walk.why(dataset))
print(
    f"{recipe.name}: from {2 * recipe.start} steps down, batch {recipe.student_batch}, seed {recipe.seed}"
)
data = cd.load_data(dataset, "train", recipe.images)
stage_one = stages.train_stage_one(recipe, data, out)


def halve(teacher, steps, updates):
    student = teacher.for_steps(steps)  # starts as a copy of its teacher
    optimizer = torch.optim.AdamW(student.parameters(), lr=recipe.rate_two)
    for _ in range(updates):
        x, cond = data.batch(torch.randint(len(data), (recipe.student_batch,)))
        i = torch.randint(1, steps + 1, (len(x),)).float()  # which of the N intervals
        w = cd.sample_w(torch.rand(len(x)), student.w_range, recipe.w_power)
        x, cond, i, w = (value.to(student.device) for value in (x, cond, i, w))
        losses = cd.progressive_loss(student, teacher, x, cond, w, i / steps, (i - 1) / steps)
        loss = (
            cd.balance(w) * losses
        ).mean()  # an error counts relative to its target: notebook 03
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return student, loss.item()


first, loss = halve(stage_one, recipe.start, updates=2)
print(f"two updates of the student of {recipe.start} steps: loss {loss:.4f}")

# %% [markdown]
# Three things are easy to overlook. The times $t = i/N$ are drawn from the *grid*, because the student
# will never be asked anything else. $w$ is drawn anew for each example, in every halving, so that the one-step
# student still obeys its guidance weight. And every halving should have a fresh optimiser, with a learning rate
# that falls to zero, so that what is passed on to the next student is a settled network. (Our loop has a constant rate;
# the fourth of the further questions repairs that.)
#
# `train_stage_two` runs the same loop with all of this and with checkpoints: a finished student is loaded, an interrupted run
# continues. The students go from 32 steps to 1 on digits, from 16 on CIFAR-10. Of those, the package brings the students of 8, 4, 2 and 1 steps with it;
# unless you train yourself, those before them are missing from the list and the figure below.

# %%
students = {}
for student in stages.train_stage_two(recipe, data, out):
    students[student.steps] = student
    card = checkpoints.read_card(stages.home(recipe, out) / "stage-two" / f"steps-{student.steps}")
    print(f"N = {student.steps:3d}: {card['about']['updates']} updates, {card['minutes']} minutes")

# %% [markdown]
# **Which halving is the hardest?** The loss is the squared distance in $v$ between what the student says and
# what its own teacher's two steps amount to.

# %%
fig, axis = plotting.figure(width=6.5, height=3.6)
for steps, color in zip(students, plotting.COLORS * 2, strict=False):
    card = checkpoints.read_card(stages.home(recipe, out) / "stage-two" / f"steps-{steps}")
    losses, each = card["losses"], card.get("updates_per_loss", 1)
    window = max(1, len(losses) // 25)
    smooth = torch.tensor(losses[: len(losses) // window * window]).reshape(-1, window).mean(1)
    updates = torch.arange(1, len(smooth) + 1) * window * each
    axis.plot(updates, smooth, color=color, label=f"{steps}")
axis.set(xlabel="update", ylabel="loss", yscale="log")
axis.legend(title="steps", frameon=False, ncols=2)
plotting.show(
    fig,
    alt="Loss curves of the halvings on a logarithmic axis. Each halving starts and ends at a higher loss "
    "than the one before it; the last, to one step, is the highest.",
)

# %% [markdown]
# The fewer the steps, the longer each one is, and the more it has to bend: each halving starts and ends
# higher than the one before it. That is why those to 4 steps and fewer get three times the updates.

# %% [markdown]
# ### Exercise 3: what the stairs save *(further: count, 4 minutes)*
#
# On digits, at the `laptop` profile, the students of 32, 16 and 8 steps get 200 updates each, those of 4, 2 and 1 step 600 each. Every target takes two evaluations of the student's teacher. Suppose somebody trains the one-step student for 600 updates on the ends of the
# 64-step walk instead. **How many times as many evaluations do the targets cost then?** (For each image of a batch; without those of the student that learns.)
#
# <details><summary>Hint</summary>
#
# The stairs: 2 evaluations for each of all updates of the six students.
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "staircase", "locked": false, "schema_version": 3, "solution": true, "task": false}
staircase = None
### BEGIN SOLUTION
staircase = 64 * 600 / (2 * (3 * 200 + 3 * 600))
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "staircase-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.staircase(staircase))
### BEGIN HIDDEN TESTS
assert checks.staircase(staircase).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["solution"]
# <details><summary>Why</summary>
#
# $64 \cdot 600 = 38{,}400$ against $2\,(3 \cdot 200 + 3 \cdot 600) = 4{,}800$: eight times as many. And 600 updates would hardly do for a student that starts so far from its answer.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* 16 (one evaluation for a target of the stairs), 32 (compares single targets).
#
# *To discuss:* what does the walk have in its favour? (No error is passed on from student to student.)
#
# </details>

# %% [markdown]
# ## 4. Looking at samples
#
# **The same noise through teacher and students.** Every column is one noise and one label. Under each line stands how
# far it is from the first one, pixel by pixel (black: not at all; white: by 1 or more, half the way from black to white).

# %%
teacher = cd.GuidedDenoiser(stages.train_teacher(recipe, data, out), null=data.num_classes)
many = 128 if dataset == "digits" else 32  # steps of a teacher that takes its time
shown = [steps for steps in (8, 4, 2, 1) if steps in students]
weights = (0.0, 1.0, 3.0)
runs = [("teacher", teacher, steps, 2 * steps) for steps in (many, 4, 1)]
runs += [("student", students[steps], steps, steps) for steps in (4, 1) if steps in students]
for w in (0.0, 3.0):
    lines = {}
    for name, model, steps, nfe in runs:
        x = cd.generate(model, data.shape, torch.arange(10), steps=steps, w=w, seed=seed)
        lines[f"w = {w:g}: {name}, N = {steps}, {nfe} NFE"] = x
        first = next(iter(lines.values()))
        if x is not first:
            lines[f"{name}, N = {steps}: distance to the first line"] = 2 * (x - first).abs() - 1
    plotting.show(
        plotting.image_rows(lines),
        alt=f"Ten images at w = {w:g}, one of each class: by the teacher in many steps, in 4 and in 1, and by the students of "
        "4 steps and of 1, each but the first with its distance to the first line. The teacher's single step is a blur, and its "
        "distances are bright; its 4 steps are softer than its many. Those of the students look like the first line, and "
        "their distances are fainter.",
        path=Path(out) / "samples.png" if w else None,
    )

# %% [markdown]
# Compare the first line of each figure with the student of one step. From the same noise it draws nearly what the guided teacher, several
# generations up, draws in many steps, each of two evaluations. The teacher itself, if it has only one step,
# can only answer with an average over everything the noise might become: a grey blur at $w = 0$, whose contrast and colours guidance
# exaggerates at $w = 3$, and no more of a picture. Its 4 steps, at 8 evaluations, are pale and soft on CIFAR-10. (On digits they look good to the eye, and what is wrong with
# them shows in the distances only.) At $w = 3$ the students' distances are brighter than at $w = 0$: there stage one errs most, see below.
#
# ## 5. Measuring

# %%
judge = stages.make_judge(recipe, data, out)
few = replace(recipe, samples=min(128, recipe.samples))
rungs = dict(steps=32 if dataset == "digits" else 16, weights=stages.w_ladder(recipe))
ladder = stages.teachers_own(teacher, data, few, out, **rungs)
common = dict(judge=judge, data=data, recipe=recipe, out=out, weights=weights, ladder=ladder)
teachers_steps = list(dict.fromkeys((many, 32, 8, 4, 2, 1)))
rows = stages.evaluate_rows(teacher, model="teacher", steps=teachers_steps, **common)
rows += stages.evaluate_rows(stage_one, model="stage_one", steps=(32,), **common)
for steps in shown:
    rows += stages.evaluate_rows(students[steps], model="student", steps=(steps,), **common)

floor = judge(*cd.load_data(dataset, "test", recipe.images).all())["frechet_distance"]
spent = stages.training_minutes(recipe, out)
minutes = sum(spent.values()) + sum(row["ms_per_image"] for row in rows) * recipe.samples / 60_000
meta = {
    "dataset": dataset,
    "profile": profile,
    "seed": seed,
    "git_commit": checkpoints.provenance()["git_commit"],
    "feature_net": judge.name,
    "reference": judge.reference,
    "n_samples": recipe.samples,
    "minutes": round(minutes, 2),  # of training all stages and of sampling for this table
    "training_minutes": spent,
    "real_floor": round(floor, 4),  # the test split's own distance to the reference
}
checkpoints.write_json(Path(out) / "results.json", {"meta": meta, "rows": rows})

print(f"{meta['n_samples']} samples, {judge.name}, reference {judge.reference}, seed {seed}")
print("model      steps  NFE | Fréchet at w = 0, 1, 3     | delivered w       | ms/image")
for k in range(0, len(rows), len(weights)):
    own = rows[k : k + len(weights)]
    distances = " ".join(f"{row['frechet_distance']:8.2f}" for row in own)
    delivered = " ".join(f"{row['delivered_w']:5.2f}" for row in own)
    name, ms = own[0]["model"], own[0]["ms_per_image"]
    print(
        f"{name:10s} {own[0]['steps']:4d} {own[0]['nfe']:5d} | {distances} | {delivered} | {ms:8.2f}"
    )

# %%
# NBVAL_CHECK_OUTPUT
for model in ("teacher", "stage_one", "student"):
    own = {row["nfe"] / row["steps"] for row in rows if row["model"] == model}
    print(f"{model}: evaluations a step {own}")

# %%
fig = plotting.quality_against_nfe(rows)
values = [row["frechet_distance"] for row in rows]
for axis in fig.axes:  # the same scale in all three, or w = 3 would look as steep as w = 0
    axis.set_ylim(0.9 * min(values), 1.1 * max(values))
fig.axes[0].set_ylabel("Fréchet distance")
plotting.show(
    fig,
    alt="Three panels with the same scale, w = 0, 1 and 3: Fréchet distance against network evaluations. The teacher's "
    "curve shoots up below some tens of evaluations, steeply at w = 0, less so at w = 3; the students' is nearly flat "
    "down to a single evaluation.",
    path=Path(out) / "quality_vs_nfe.png",
)

# %% [markdown]
# The teacher's curve is the price of asking less often. The students' curve is nearly flat, at every guidance weight, because $w$
# is an input and not a constant of the training. By this measure a handful of evaluations does nearly what the teacher needs
# dozens for. Two warnings. The distance depends on which samples are drawn: in notebook 02 random subsets of the training
# images differed by some tenths among themselves. The rows here share their noise, which helps, but a few
# hundredths should not be read as an order. And the distance to the data says nothing about how like its teacher a student is. It falls
# where guidance is missing, as notebook 03 has shown, and rises where there is too much of it. Hence the column *delivered w*: asked for 3, the students of CIFAR-10 give 3.1 to 3.2, and at that $w$ their distances
# are a tenth larger than the teacher's. The single step, which gives the least of it, has the smallest.
#
# ## 6. What is lost on the way *(further)*
#
# A student can only become as good as its teacher's *two steps*; the error that its teacher makes is passed
# on, and each halving adds its own. **How far is each model from the many-step teacher's sample of the same
# noise?** (Root mean square over pixels in $[-1, 1]$; many: 128 steps on digits, 32 on CIFAR-10.)

# %%
labels = torch.arange(min(60, recipe.samples)) % 10
arguments = dict(shape=data.shape, labels=labels, seed=seed)
print("model          NFE |" + "".join(f"  w = {w:g}" for w in weights))
reference = {w: cd.generate(teacher, steps=many, w=w, **arguments) for w in weights}
models = [("teacher", teacher, steps) for steps in (16, 8, 4, 2, 1)]
models += [("stage one", stage_one, 32)] + [("student", students[n], n) for n in shown]
table = {}
for name, model, steps in models:
    errors = [
        (cd.generate(model, steps=steps, w=w, **arguments) - reference[w])
        .square()
        .mean()
        .sqrt()
        .item()
        for w in weights
    ]
    nfe = 2 * steps if name == "teacher" else steps
    table[name, steps] = dict(zip(weights, errors, strict=True))
    print(f"{name:10s} {nfe:7d} | " + " ".join(f"{error:6.3f}" for error in errors))

# %% [markdown]
# ### Exercise 4: where is the bargain smallest? *(further: read a table, 5 minutes)*
#
# The 8-step student and the teacher in 4 steps both cost 8 evaluations. **At which $w$ is the student's error the largest part of the teacher's?** Take the numbers from `table`, whose entry
# `table["student", 8]` is `{w: rmse}`.
#
# <details><summary>Hint</summary>
#
# Divide the two, $w$ by $w$.
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "least_gain", "locked": false, "schema_version": 3, "solution": true, "task": false}
least_gain = None
### BEGIN SOLUTION
ratio = {w: table["student", 8][w] / table["teacher", 4][w] for w in weights}
least_gain = max(ratio, key=ratio.get)
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "least_gain-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.least_gain(least_gain, table["student", 8], table["teacher", 4]))
### BEGIN HIDDEN TESTS
assert checks.least_gain(least_gain, table["student", 8], table["teacher", 4]).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["solution"]
# <details><summary>Why</summary>
#
# For the models of the package the quotients are 0.27, 0.31 and 0.40 on digits, 0.09, 0.12 and 0.33 on CIFAR-10: the bargain is smallest at $w = 3$. It is still one.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Expected with the models of the package:* $w = 3$.
#
# *Common wrong answers:* $w = 0$, "since notebook 03 says that small $w$ is hard"; comparing with the teacher in 8 steps, which costs 16.
#
# *To discuss:* which stage is to blame? (Stage one: on digits it alone has 0.043 of the 0.049 at $w = 3$.)
#
# </details>

# %% [markdown]
# This table is stricter. (With the students that come with the package.)
#
# - The distillation is a bargain at every $w$: one evaluation of the last student is nearer to the reference than eight of the teacher, on digits just so (0.099 against
#   0.124 at $w = 3$), on CIFAR-10 by far. And the 8-step student is nearer than sixteen.
# - Nearly all of what the 8-step student lacks was there before the first halving, in stage one. Stage two passed it on, and
#   added little down to two steps, more in the last halving.
#
# Notebook 03 asked stage one's *network* whether it obeys its dial. **Do the samples, down to a single step?** For each model and each $w$ that it is
# asked for, we look for the $w$ at which the *teacher's* samples from the same noise are nearest.

# %%
conds, _ = data.prompts(few.samples)
again = dict(shape=data.shape, labels=conds, seed=seed)
given = {}
for name, model, steps in models[5:]:
    line = given["stage one, 32 steps" if name == "stage one" else f"student, {steps}"] = {}
    for w in (0.0, 0.5, 1.0, 2.0, 3.0, 4.0):
        line[w] = cd.delivered_by_samples(cd.generate(model, steps=steps, w=w, **again), ladder)
for name, line in given.items():
    print(f"{name:20s}", ", ".join(f"{w:g}: {nearest:.2f}" for w, nearest in line.items()))
plotting.show(
    plotting.asked_against_delivered(given),
    alt="The w that samples of each model deliver against the w that they were asked for, beside the diagonal: "
    "all lines begin on it. On digits those of few steps lie below it at large w, with one step by about half at "
    "w = 4; on CIFAR-10 all lie a little above it there.",
)

# %% [markdown]
# On digits they do. What is asked for up to $w = 2$ is delivered within a few hundredths with 8 or 4 steps, and within 0.12 with one. The fewer the steps, the less
# arrives of a large $w$: asked for 4, a single step gives 3.4. (Readings above 4 are no more guidance than was asked for. The measure looks at pictures, and
# errors of other kinds move it as well.) On CIFAR-10 stage one's samples give 1.0 of 1, 2.0 of 2 and 3.2 of 3, and stage two hands on what it got: the student of one step is about 0.1 below it, at
# any $w$ from 1 on. So the dial works down to one step; at 3 and 4 it gives up to 8% too much.
# (By its single answers, in notebook 03, the same network gave 2.8 of 3. A walk through all times and the answers at random times are not the same question.)
#
# ## 7. What did it cost? *(further)*

# %%
for name, value in spent.items():
    print(f"{name:20s} {value:6.2f} minutes")
stage_two_minutes = sum(v for k, v in spent.items() if k.startswith("stage-two"))
print(
    f"distillation / teacher: {(spent['stage-one'] + stage_two_minutes) / max(spent['teacher'], 0.01):.1f}"
)

# %% [markdown]
# On digits the students that come with the package cost 45 times what their teacher did. Nearly all of that is stage one, whose 25,600 updates buy the obedience that
# notebook 03 looks for. At the `laptop` profile, if you train here, it is about three and a half times; on CIFAR-10, where the teacher had the longest training of all, 1.3 times (0.9 times in minutes of one core, as stage two had no more).
# [Salimans & Ho](https://arxiv.org/abs/2202.00512) report that in *their* setting, without guidance, the whole of it takes no more
# time than training the teacher; there the teacher was trained for hundreds of thousands of updates,
# ours for 1,300 on digits and 13,000 on CIFAR-10. Three quarters of stage two go to the last three students: a halving to four
# steps or fewer gets three times the updates of the others, because there the student has the most to learn at once.
# All of it is paid once. The teacher's evaluations are paid for every image.
#
# **What if the number of steps is not a power of two?** Then there is nothing to halve, and the package says so before
# it trains anything.

# %%
# NBVAL_CHECK_OUTPUT
print("halvings from 16:", cd.halvings(16))
try:
    cd.halvings(12)
except ValueError as error:
    print(error)

# %% [markdown]
# ## Further questions
#
# 1. Sample the 4-step student with 2 steps. The package refuses; set `student.steps = 2` and look. Why is a
#    4-step student not a 2-step student? (Hint: at which times has it been trained, and for which jumps?)
# 2. Skip a generation: distil straight from `start = 4`. What does the 1-step student lose?
#    (`distill_progressively(stage_one, data, start=4, ...)`.)
# 3. Train with the wrong target of section 2. At which number of steps do the samples go bad?
# 4. Repair `halve` so that it clips gradients and lets the learning rate fall to zero.
#    Then compare with `cfgdistill/training/loop.py`.
# 5. Plot the class accuracy against $w \in [0, 4]$ for the one-step student. And at $w = 5$?
#
# **Next:** [05 · The stochastic sampler](05_stochastic_sampler.ipynb) starts once more from the student of stage one, and distils it
# for a sampler that adds noise on its way.

# %%
stages.print_provenance(recipe, data, "04_stage_two")
