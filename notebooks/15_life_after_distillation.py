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
# # 15 · Life after distillation
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/15_life_after_distillation.ipynb)
#
# You have a student, and want it to learn something more: a person, a product, a style. With an ordinary diffusion model you
# would train a **LoRA** ([Hu et al. 2022](https://arxiv.org/abs/2106.09685)) on a few pictures. On a guidance-distilled model the same recipe does harm that no loss curve shows:
# **its $w$ dies**. This is what people meet who fine-tune models with embedded guidance, and here it can be watched in minutes, on a CPU, together with three ways around it.
#
# **You will**
#
# - teach a new look to a distilled model by the ordinary loss, and measure what becomes of its dial,
# - find the loss of which that is no accident, and one that has its own guidance in it,
# - train the LoRA on the *teacher* instead, and move it to students that never saw it,
# - distil the teacher with its LoRA, by stage one and by both stages, and compare them all.
#
# **You need** notebooks [03](03_stage_one.ipynb) and [09](09_distilling_text_to_image.ipynb).
#
# | profile | hardware | time to run, with the models of the package |
# | --- | --- | --- |
# | `smoke` | any CPU | seconds; the pictures are noise |
# | `laptop` | two CPU cores | thirteen minutes |
#
# Allow about 15 minutes to read it, and 10 for the exercises.
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=15`.

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
import copy
import os
from dataclasses import replace

import torch
from peft import LoraConfig

import cfgdistill as cd
from cfgdistill.course import checks, stages, widgets
from cfgdistill.judge import plotting
from cfgdistill.teachers.unet import LORA_LAYERS
from cfgdistill.training import environment, randomness

# %% tags=["parameters"]
captions = os.environ.get("CFGDISTILL_CAPTIONS", "emoji")
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
retrain = environment.flag("CFGDISTILL_RETRAIN")  # or use the models of the package
seed = 0

# %%
recipe = cd.get_recipe(captions, profile, seed=seed)
if not retrain:
    recipe = cd.use_pretrained(recipe, out)
data = stages.load_recipe_data(recipe, out)
network = stages.train_teacher(recipe, data, out)
student = stages.train_stage_one(recipe, data, out)
few = {each.steps: each for each in stages.train_stage_two(recipe, data, out)}
device = network.device
print(f"stage one takes w from {student.w_range[0]:g} to {student.w_range[1]:g}; then", list(few))

# %% [markdown]
# ## 1. A new look
#
# Forty pictures in blue ink: the brightness of a picture decides how much ink there is. A real set would come from a person with a pen. Ours is computed, so that we can *measure* how much of the look has
# arrived: how far a picture is from its own version in ink.


# %%
def in_ink(x):
    """Pictures [b, 3, h, h] in [-1, 1] as if drawn in blue ink on white."""
    ink, luma = (
        torch.tensor(value, device=x.device)[:, None, None]
        for value in ((-0.9, -0.7, 0.1), (0.299, 0.587, 0.114))
    )
    darkest = (ink * luma).sum()
    bright = ((x * luma).sum(1, keepdim=True) - darkest) / (1 - darkest)
    return ink + (1 - ink) * bright.clamp(0, 1)


def off_the_look(x):
    """Root mean square between pictures and their versions in ink: 0 for the look itself."""
    return (x - in_ink(x)).square().mean().sqrt().item()


rows = data.prompts(40)[1]
pictures = in_ink(data.images.batch(rows)[0])
latents = data.vae.encode(pictures).cpu()
look = replace(data, stored=latents, labels=data.labels[rows], further=None)
fig = plotting.image_rows(
    {"training pictures": data.images.batch(rows)[0][:10], "the look": pictures[:10]}
)
plotting.show(
    fig, alt="Ten emoji in colour, and below them the same ten in shades of blue on white."
)

# %%
# NBVAL_CHECK_OUTPUT
print(f"pictures in ink are off the look by {off_the_look(in_ink(pictures)):.2f}")
print("40 pictures, 40 captions:", len(look.stored) == len(look) == 40)

# %% [markdown]
# ## 2. A LoRA
#
# A layer says $Wx + BAx$ instead of $Wx$, with a narrow pair of matrices $B$ and $A$ that are trained. $B$ begins at 0, so nothing has changed yet. The layers are those that
# diffusers' script for LCM-LoRA chooses; $w$'s own projection is not among them.


# %%
def with_lora(denoiser, rank=4):
    """A copy of a model, frozen, with changes of low rank that are trained and still 0."""
    changed = copy.deepcopy(denoiser)
    changed.requires_grad_(False)
    with randomness.seeded(seed):
        how = LoraConfig(r=rank, lora_alpha=rank, target_modules=LORA_LAYERS)
        changed.net.unet.add_adapter(how)
    return changed


def changes(denoiser):
    """The trained part of it, by name."""
    return {name: p for name, p in denoiser.named_parameters() if "lora_" in name}


plain = with_lora(student)
trained = sum(p.numel() for p in changes(plain).values())
print(f"{trained:,} numbers are trained, beside {sum(p.numel() for p in student.parameters()):,}")

# %%
# NBVAL_CHECK_OUTPUT
eps = torch.randn(4, *data.shape, generator=torch.Generator().manual_seed(seed)).to(device)
cond = data.labels[rows[:4]].to(device)
with torch.no_grad():
    same = torch.equal(plain(eps, 0.5, cond, 1.0).v, student(eps, 0.5, cond, 1.0).v)
print("untrained, it says what the student says, bit for bit:", same)
needed = {name for name, p in plain.named_parameters() if p.requires_grad}
print("nothing else is trained:", needed == set(changes(plain)))

# %% [markdown]
# ### Exercise 1: the size of a LoRA *(derive, 3 minutes)*
#
# A layer has $W$ with 320 outputs and 1,280 inputs. **How many numbers does a LoRA of rank 4 train for it?**
#
# <details><summary>Hint</summary>
#
# $A$ brings 1,280 numbers down to the rank, $B$ brings those up to 320.
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "lora_numbers", "locked": false, "schema_version": 3, "solution": true, "task": false}
lora_numbers = None
### BEGIN SOLUTION
lora_numbers = 4 * (1280 + 320)
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "lora_numbers-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.lora_numbers(lora_numbers))
### BEGIN HIDDEN TESTS
assert checks.lora_numbers(lora_numbers).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* the product 320 x 1,280, which is the whole layer; the rank between the two, 4 x 320 x 1,280; one of the two matrices alone.
#
# *To discuss:* of which changes is this no restriction at all? (Notebook 09's folded $w$ is one of rank 1.)
#
# </details>

# %% [markdown]
# ## 3. The ordinary loss
#
# **Take the student, take the loss of a teacher, train.** The loss asks for the $v$ that made $z_t$, whatever $w$ the student is asked for; we draw $w$ from its range.

# %%
updates = 3 if profile == "smoke" else 240


def learn(model, loss):
    """Train the low-rank changes on the look."""
    optim = cd.Optim(updates=updates, batch=16, rate=2e-3, warm_up=10)
    for _ in cd.train(model, loss, look, optim, cd.Run("look", seed=seed, precision="mixed")):
        pass
    return model


def noised(x, t, eps):
    """z_t, and the v that made it."""
    alpha, sigma = (cd.expand(value, x) for value in student.schedule.alpha_sigma(t))
    return student.schedule.add_noise(x, eps, t), alpha * eps - sigma * x


def ordinary_loss(model, x, cond, draw):
    t, w, eps = draw.uniform(), recipe.w_max * draw.uniform(), draw.normal(x.shape[1:])
    z, v = noised(x, t, eps)
    return (model(z, t, cond, w).v - v).square().flatten(1).mean(1)


plain = learn(plain, ordinary_loss)

# %%
# NBVAL_CHECK_OUTPUT
before, after = dict(student.named_parameters()), dict(plain.named_parameters())
name = "net.unet.conv_in.weight"
print("the student's own weights are as they were:", torch.equal(before[name], after[name]))
moved = [p for name, p in changes(plain).items() if "lora_B" in name]
print("the changes are not 0 any more:", all(bool((p != 0).any()) for p in moved))

# %% [markdown]
# ### Exercise 2: what is best for this loss? *(choose, 4 minutes)*
#
# The loss draws $w$ and then compares with a $v$ that does not depend on it. **What does the best network under this loss say?** (a) the guided answer at $w$, in the new look; (b) the conditional answer in the new look, at every $w$; (c) the guided
# answer at the mean of all $w$; (d) the old guided answer plus the new look's mean.
#
# <details><summary>Hint</summary>
#
# The minimum of a mean square is a conditional mean. Of what, given what?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "best_answer", "locked": false, "schema_version": 3, "solution": true, "task": false}
best_answer = None
### BEGIN SOLUTION
best_answer = "b"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "best_answer-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.best_answer(best_answer))
### BEGIN HIDDEN TESTS
assert checks.best_answer(best_answer).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* (a), the hope with which people start; (c), which would need targets that are guided.
#
# *To discuss:* would it help to train at $w = 0$ only? (The answers there would be right, and those elsewhere nobody's business: they go wherever the shared weights take them.)
#
# </details>

# %% [markdown]
# ## 4. A target with guidance in it
#
# **Can the target be guided without a teacher?** The student knows what it would say without a caption: that is the null prediction $u$. Guidance pushes the answer away from it, and so may the target:
#
# $$v^\ast = u + (1 + w)\,(v - u),$$
#
# with $v$ from the new pictures and $u$ said by the student itself at $w = 0$, without gradients. Trainers for models with embedded guidance use this form.

# %% [markdown]
# ### Exercise 3: the guided target *(fill in, 4 minutes)*
#
# **Write the target** for `v` and `u` of the shape [b, c, h, h] and one `w` for each example.
#
# <details><summary>Hint</summary>
#
# `w.reshape(-1, 1, 1, 1)` has a weight for each example, and broadcasts over the rest.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "pushed_target", "locked": false, "schema_version": 3, "solution": true, "task": false}
def pushed_target(v, u, w):
    """v, u [b, c, h, h], w [b] -> the v that the student should say at w."""
    ### BEGIN SOLUTION
    return u + (1 + w.reshape(-1, 1, 1, 1)) * (v - u)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "pushed_target-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.pushed_target(pushed_target))
### BEGIN HIDDEN TESTS
assert checks.pushed_target(pushed_target).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* $u + w (v - u)$, which is the scale taken for the weight; $v$ and $u$ exchanged; `w` not expanded, which fails or, where b = h, silently broadcasts along the width.
#
# *To discuss:* $v$ contains the noise of one draw, $u$ does not. Which part of $v^\ast$ is multiplied by $1 + w$ that should not be?
#
# </details>


# %%
def guided_loss(model, x, cond, draw):
    t, w, eps = draw.uniform(), recipe.w_max * draw.uniform(), draw.normal(x.shape[1:])
    z, v = noised(x, t, eps)
    null = data.null.to(x.device).expand_as(cond)
    with torch.no_grad():
        u = model(z, t, null, 0.0).v
    error = model(z, t, cond, w).v - (u + cd.expand(1 + w, v) * (v - u))  # exercise 3
    return cd.balance(w) * error.square().flatten(1).mean(1)


guided = learn(with_lora(student), guided_loss)

# %% [markdown]
# ## 5. On the teacher, and moved
#
# **The student began as a copy of its teacher**, layer by layer, and all its layers still have the same names and shapes. So the LoRA can be trained on the *teacher*, where the ordinary loss with dropped captions is the right one, and its
# matrices be loaded into the student.

# %%
teacher = learn(with_lora(network), cd.teacher_loss(data.null, drop=0.1))
target = cd.GuidedDenoiser(teacher, data.null)


def move(source, model):
    """The low-rank changes of one model in a copy of another."""
    moved = with_lora(model)
    missing = moved.load_state_dict(changes(source), strict=False).missing_keys
    assert not any("lora_" in name for name in missing)
    return moved


moved = move(teacher, student)

# %%
# NBVAL_CHECK_OUTPUT
print("the same layers, by name:", changes(teacher).keys() == changes(moved).keys())
equal = [torch.equal(p, changes(moved)[name]) for name, p in changes(teacher).items()]
print("the same changes:", all(equal))
print("the student still takes w:", moved.w_range == student.w_range)

# %% [markdown]
# ## 6. By stage one
#
# What the student *should* say is known now: it is what the guided teacher with its LoRA says. So stage one, once more, with the LoRA as all that is trained:

# %%
loss = cd.stage_one_loss(target, student.w_range, w_power=recipe.w_power, balanced=True)
distilled = learn(move(teacher, student), loss)

# %% [markdown]
# ## 7. Does the dial still work?
#
# `delivered_w` of notebook 03: along the line from the conditional to the guided answer of the teacher *with the look*, how far does each get? And what do samples look like, without guidance and with as much as they take?

# %%
models = {
    "plainly, on the student": plain,
    "with a guided target": guided,
    "on the teacher, moved": moved,
    "moved, then distilled": distilled,
}
asked = [0.0, recipe.w_max / 2, recipe.w_max]
n = 64 if profile == "smoke" else 512
old = cd.GuidedDenoiser(network, data.null)
given = {"before": {w: cd.delivered_w(student, old, data, w, n=n) for w in asked}}
given |= {
    name: {w: cd.delivered_w(model, target, look, w, n=n) for w in asked}
    for name, model in models.items()
}
for name, line in given.items():
    print(f"{name:24s}", ", ".join(f"{w:g}: {found:5.2f}" for w, found in line.items()))
plotting.show(
    plotting.asked_against_delivered(given),
    alt="The w that is delivered against the w that was asked for, from 0 to 2. The student before any LoRA, the guided target, and moved and distilled lie together, and end a little above 1; the LoRA that was only moved a little "
    "lower; the one that was trained plainly on the student stays level, at or below 0.1.",
)

# %%
shown = [10, 200, 500, 900, 1300]
tokens = data.labels[[k % len(data) for k in shown]]
how = dict(shape=data.shape, labels=tokens, seed=seed, decode=data.decode)
drawn = {}
for w in (0.0, recipe.w_max):
    column = drawn[f"w = {w:g}"] = {"before": cd.generate(student, steps=16, w=w, **how)}
    column["the teacher with its LoRA"] = cd.generate(target, steps=16, w=w, **how)
    for name, model in models.items():
        column[name] = cd.generate(model, steps=16, w=w, **how)
fig = plotting.sample_grid(drawn, len(shown), width=4.2)
print("from left to right:", ", ".join(data.class_names[k % len(data)] for k in shown))
plotting.show(
    fig,
    alt="Five emoji at w = 0 and w = 2, in six rows: in colour before, in shades of blue in the other five. At w = 2 the row of the plain LoRA is as pale as at w = 0; those of the other three are darker and clearer, and the teacher has kept a green corner of a flag.",
)
for head, column in drawn.items():
    for name, x in column.items():
        apart = (x - column["the teacher with its LoRA"]).square().mean().sqrt()
        print(f"{head}, {name:26s} off the look {off_the_look(x):.3f}, off the teacher {apart:.3f}")

# %% [markdown]
# **The ordinary loss has killed the dial.** (Numbers of the models of the package.) The student gave 0.73 and 1.06 where 1 and 2 were asked for, which is little enough: notebook 09 says why. After 240 updates of the ordinary loss it gives -0.01 and 0.10. Its
# pictures are in ink, and a look at $w = 0$ shows nothing wrong; but at $w = 2$ they are as pale as at 0. The -0.23 at $w = 0$ lies beyond the conditional answer, away from the guided one. We have not found out why.
#
# **The guided target keeps the dial**: 0.78 and 1.14. It also gives 0.12 where 0 was asked for. Its pictures at $w = 2$ are nearer to the teacher's (0.136) than those of the plain LoRA (0.150), and further away than those of the next two.
#
# **The LoRA of the teacher fits the student**, though the student never saw it: 0.65 and 0.97, nine tenths of before, and pictures nearer to the teacher's (0.044 at $w = 0$) than either of those trained on the student itself. Distilling it for as long again brings the dial back to what it was (0.73 and 1.12) and the pictures
# nearer where there is guidance: 0.105 instead of 0.124.
#
# So: **train on the teacher, move, distil if you can.** Where nobody gives you the teacher, as with many published models, use the guided target, and measure what is left of $w$. One more thing to see in the pictures: at $w = 2$ the teacher itself has kept some green. Guidance magnifies what the LoRA has not reached.
#
# ## 8. And the students of few steps?
#
# They are copies of copies of the teacher. **Does its LoRA still fit a student of 4 steps, of 1?** Nothing is trained here:

# %%
inked = {steps: move(teacher, each) for steps, each in few.items()}

# %% [markdown]
# And by stage two? The student of 4 steps learns to do in one step what stage one *with the look* does in two. Again the LoRA is all that is trained, and it begins with the teacher's:

# %%
loss = cd.stage_two_loss(distilled, 4, student.w_range, w_power=recipe.w_power, balanced=True)
halved = learn(move(teacher, few[4]), loss)

# %%
w = recipe.w_max / 2
lines = {"teacher, 32 NFE": cd.generate(target, steps=16, w=w, **how)}
for steps in sorted(few, reverse=True):
    name = f"student, {steps} NFE"
    lines[name] = cd.generate(inked[steps], steps=steps, w=w, **how)
lines["4 NFE, by both stages"] = cd.generate(halved, steps=4, w=w, **how)
plotting.show(
    plotting.sample_grid({f"w = {w:g}": lines}, len(shown), width=4.2),
    alt="Five emoji in shades of blue by the teacher and by students of 8, 4, 2 and 1 steps, nearly alike; with one step the flag and the heart have some green and violet left. A last row, of 4 steps by both stages, looks like that of 4 steps.",
)
for name, x in lines.items():
    apart = (x - lines["teacher, 32 NFE"]).square().mean().sqrt()
    print(f"{name:21s} off the look {off_the_look(x):.3f}, off the teacher {apart:.3f}")

# %%
# NBVAL_CHECK_OUTPUT
fits = [changes(teacher).keys() == changes(each).keys() for each in inked.values()]
print("a LoRA of the teacher has a place in every student:", all(fits))
try:
    cd.ddim(inked[4], eps, 8, cond, 1.0)
except ValueError as error:
    print(error)

# %% [markdown]
# It does, down to a single step: a LoRA that was trained for minutes on the teacher puts all students into ink, without a halving. With fewer steps a little more of the old colours is left (0.037, 0.040, 0.048 and 0.067 off the look with 8, 4, 2 and 1), as these students have moved further from where the teacher stands. They are 0.102 (4 steps) and 0.144 (1 step) away
# from the teacher's pictures; before the LoRA, on other captions, notebook 09 has 0.083 and 0.116. **By both stages** the student of 4 steps comes a tenth nearer, to 0.092, and is off the look by 0.038: 240 updates for a little more
# than the moved LoRA has given for nothing. (Five pictures here, one seed: take them as an indication.)
#
# **Now you.** How much of the look, and how much guidance? The LoRA of the teacher in the student of 4 steps, at any strength: at 0 it is not there, and beyond 1 nobody has trained it.


# %%
def draw(look, w, seed):
    inked[4].net.unet.set_adapters("default", look)
    x = cd.generate(inked[4], steps=4, w=w, **(how | {"seed": seed}))
    inked[4].net.unet.set_adapters("default", 1.0)
    return plotting.sample_grid({"": {"": x}}, len(shown), width=7.2)


widgets.explore(
    draw,
    alt="Five emoji by the student of four steps with the whole of the LoRA, in shades of blue.",
    look=(1.0, 0.0, 1.5, 0.25),
    w=(1.0, recipe.w_min, recipe.w_max, 0.1),
    seed=(0, 0, 20, 1),
)

# %% [markdown]
# ## Further questions
#
# 1. Train the plain LoRA at $w = 0$ only. What does it deliver at $w = 2$ then?
# 2. Train on 400 pictures instead of 40. Does the plain LoRA's dial die more slowly, or sooner?
# 3. Go on by stage two, from `halved` to 2 steps and to 1. How much nearer does a single step come than the LoRA that was only moved?
# 4. Leave the time embedding (`time_emb_proj`) out of the LoRA. What is lost of the look, and what of the dial?

# %%
stages.print_provenance(recipe, data.images, "15_life_after_distillation")
