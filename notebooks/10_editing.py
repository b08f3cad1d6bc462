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
# # 10 · Editing in a few evaluations
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/10_editing.ipynb)
#
# A sampler that starts from noise makes pictures. One that starts **half-way**, from a noised picture, changes them. The paper
# ([Meng et al. 2023](https://arxiv.org/abs/2210.03142)) edits images in this way with 2 to 4 steps of a distilled
# model: text-guided image-to-image, and inpainting behind a mask. Style transfer goes through an encoder instead, here with 4 evaluations up and 4 down.
#
# **You will**
#
# - turn one picture into another by noising it only in part (SDEdit), and find which strengths a student of $N$ steps has,
# - repaint a part of a picture and keep the rest, to the last bit of its latents,
# - retell a picture with a distilled encoder, and compare what the three ways keep,
# - set every edit beside the teacher's many-step result.
#
# **You need** [notebook 09](09_distilling_text_to_image.ipynb) (what you skipped is trained here first).
#
# | profile | hardware | time, if all is trained here |
# | --- | --- | --- |
# | `smoke` | any CPU | under a minute; the pictures are noise |
# | `laptop` | two CPU cores | 3 minutes: the encoder |
#
# Allow about 15 minutes to read it, and 15 for the exercises.
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=10`.

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
from pathlib import Path

import torch

import cfgdistill as cd
from cfgdistill.course import checks, stages, widgets
from cfgdistill.judge import plotting
from cfgdistill.training import checkpoints
from cfgdistill.training.environment import flag

# %% tags=["parameters"]
captions = os.environ.get("CFGDISTILL_CAPTIONS", "emoji")
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
retrain = flag("CFGDISTILL_RETRAIN")  # or use the models of the package
seed = 0

# %%
recipe = cd.get_recipe(captions, profile, seed=seed)
if not retrain:
    recipe = cd.use_pretrained(recipe, out)
data = stages.load_recipe_data(recipe, out)
teacher = cd.GuidedDenoiser(stages.train_teacher(recipe, data, out), null=data.null)
students = {student.steps: student for student in stages.train_stage_two(recipe, data, out)}
images = data.images


def pictures_of(names):
    """Images, latents and captions, of these captions."""
    rows = [images.class_names.index(name) for name in names if name in images.class_names]
    rows = torch.tensor(rows or [0, 1, 2, 3])  # the smoke profile has few images
    return images.batch(rows)[0], data.batch(rows)[0], [images.class_names[k] for k in rows]


x, latents, names = pictures_of(["red heart", "green apple", "cat face", "sun"])
device = teacher.device
latents = latents.to(device)
eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed)).to(device)


def tokens(prompts):
    return data.text.tokens(prompts).to(device)


print("to be edited:", ", ".join(names))

# %% [markdown]
# ## 1. Image to image
#
# Encode, add noise up to an intermediate $t_0$, the *strength* of the edit, and denoise from there under another prompt (SDEdit, [Meng et al.
# 2022](https://arxiv.org/abs/2108.01073), with the same first author as the paper). Strength 0 would keep everything, strength 1 is plain generation.
# What survives the noise, large shapes and colours, stays; the rest is drawn anew. From scratch:


# %%
def sdedit_from_scratch(student, x, eps, i, cond, w):
    N, schedule = student.steps, student.schedule
    t = torch.full((len(x),), i / N, device=x.device)
    z = schedule.add_noise(x, eps, t)  # from here on it is a sample at t = i/N
    for k in range(i, 0, -1):
        s = torch.full((len(x),), (k - 1) / N, device=x.device)
        with torch.no_grad():
            z = cd.ddim_step(student(z, k / N, cond, w), s, schedule)
    return z


wanted = ["blue heart", "red apple", "dog face", "crescent moon"][: len(names)]
cond, w = tokens(wanted), 1.0
mine = sdedit_from_scratch(students[4], latents, eps, 3, cond, w)
torch.testing.assert_close(
    mine, cd.last(cd.image_to_image(students[4], latents, eps, 4, 0.75, cond, w))
)

# %% [markdown]
# ### Exercise 1: what does an edit cost? *(fill in, 5 minutes)*
#
# A student of $N$ steps knows the times $i/N$ only, so these are its strengths, and strength $i/N$ costs $i$ evaluations. **Say what a strength costs, and `None` where the student does not have it.**
#
# <details><summary>Hint</summary>
#
# `strength * steps` ought to be a whole number. In floating-point numbers, 0.07 times 100 is not quite 7.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "evaluations", "locked": false, "schema_version": 3, "solution": true, "task": false}
def evaluations(strength, steps):
    """i, where strength is i/steps; None where it is not."""
    ### BEGIN SOLUTION
    i = round(strength * steps)
    return i if i > 0 and abs(strength * steps - i) < 1e-6 else None
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "evaluations-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.evaluations(evaluations))
### BEGIN HIDDEN TESTS
assert checks.evaluations(evaluations).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* `int(strength * steps)`, which is diffusers' rule: strength 0.3 with 2 steps costs nothing and changes nothing; `ceil`; comparing with `==`.
#
# *To discuss:* is it better to refuse, or to take the nearest strength?
#
# </details>

# %% [markdown]
# **Which strengths are there?** The teacher knows every $t$: with enough steps its grid is as fine as you like. A student of $N$ steps knows the times $i/N$ only, so its strengths are
# $1/N, 2/N, \dots, 1$, and strength $i/N$ costs $i$ evaluations. Anything else is refused.

# %%
# NBVAL_CHECK_OUTPUT
for steps in (8, 4, 2, 1):
    print(f"steps: {steps}, strengths:", ", ".join(f"{value:g}" for value in cd.strengths(steps)))
try:
    cd.image_to_image(students[2], latents, eps, 2, 0.3, cond, w)
except ValueError as error:
    print(error)

# %%
rows = {"images": x, "encoded and decoded, the best that an edit can keep": data.decode(latents)}
for strength in (0.5, 0.75, 1.0):
    how = dict(strength=strength, cond=cond, w=w)
    edited = cd.last(cd.image_to_image(students[4], latents, eps, 4, **how))
    rows[f"student, strength {strength:g}, {round(4 * strength)} NFE"] = data.decode(edited)
    edited = cd.last(cd.image_to_image(teacher, latents, eps, 40, **how))
    rows[f"teacher, strength {strength:g}, {round(80 * strength)} NFE"] = data.decode(edited)

print("prompts:", ", ".join(wanted))
plotting.show(
    plotting.sample_grid({"": rows}, len(names), width=6.0),
    alt="Four emoji, and below them what student and teacher make of them under new prompts with strengths 0.5, 0.75 and 1. With more "
    "strength less of the picture is kept. Student and teacher do nearly the same, but at 0.75 a piece of the sun is left in the student's moon.",
)
for strength in (0.5, 0.75, 1.0):
    student_row, teacher_row = (
        next(
            row
            for title, row in rows.items()
            if title.startswith(f"{name}, strength {strength:g},")
        )
        for name in ("student", "teacher")
    )
    apart = (student_row - teacher_row).square().mean().sqrt().item()
    print(
        f"strength {strength:g}: student and teacher differ by {apart:.3f} (rms, pixels in [-1, 1])"
    )

# %% [markdown]
# **What is left of the original at strength 1?** Begin with something else, and with the same noise.

# %%
# NBVAL_CHECK_OUTPUT
for strength in (0.5, 1.0):
    how = dict(steps=4, strength=strength, cond=cond, w=w)
    one, other = (
        cd.last(cd.image_to_image(students[4], each, eps, **how)) for each in (latents, -latents)
    )
    apart = (one - other).square().mean().sqrt().item()
    print(f"strength {strength:g}: the same from the opposite: {apart < 1e-4}")

# %% [markdown]
# At strength 0.5 signal and noise are equal ($\alpha_t = \sigma_t$), and two answers get mixed: the heart is purple, the apple neither green nor red.
# At 0.75 the prompt wins. Outlines are those that strength 1 has without the picture, and what is left of the old one is in the colours: a duller
# blue, a more orange apple. At 1 nothing is kept. What does the student lose, with 3 evaluations against the teacher's 60? At 0.75 its moon still has
# a piece of the sun beside it, and its heart is muddier. Otherwise the two can hardly be told apart.
#
# ## 2. Inpainting
#
# The mask says what to repaint: 1 repaints, 0 keeps. It lives on the latents, 2 x 2 pixels to a cell.

# %% [markdown]
# ### Exercise 2: a mask for latents *(fill in, 4 minutes)*
#
# A mask was painted on pixels: 1 repaints, 0 keeps. **Make one for latents**, of which each stands for 2 x 2 pixels. Whatever is touched has to be repainted.
#
# <details><summary>Hint</summary>
#
# Of each 2 x 2 pixels, take the largest.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "latent_mask", "locked": false, "schema_version": 3, "solution": true, "task": false}
def latent_mask(mask):
    """[b, 1, H, W] -> [b, 1, H/2, W/2], of zeros and ones."""
    ### BEGIN SOLUTION
    return torch.nn.functional.max_pool2d(mask, 2)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "latent_mask-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.latent_mask(latent_mask))
### BEGIN HIDDEN TESTS
assert checks.latent_mask(latent_mask).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* an average above 0.5, with which thin strokes vanish; every second pixel; the smallest.
#
# *To discuss:* a latent depends on more than its own pixels. What is seen at the edge of a mask?
#
# </details>

# %% [markdown]
# After every step, everything else is put back.

# %% [markdown]
# ### Exercise 3: put back what is kept *(fill in, 5 minutes)*
#
# After a step the sampler has arrived at $z_s$. **Put the original $x$ back where the mask is 0**, such that the model cannot tell.
#
# <details><summary>Hint</summary>
#
# How does the original look at time $s$?
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "put_back", "locked": false, "schema_version": 3, "solution": true, "task": false}
def put_back(z_s, x, eps, mask, alpha_s, sigma_s):
    """z_s where mask is 1, and the original, as it would look at time s, where it is 0."""
    ### BEGIN SOLUTION
    return mask * z_s + (1 - mask) * (alpha_s * x + sigma_s * eps)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "put_back-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.put_back(put_back))
### BEGIN HIDDEN TESTS
assert checks.put_back(put_back).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* the clean original in every step: the model then sees a sharp picture around a noisy hole, which it never saw in training; the mask the wrong way round.
#
# *To discuss:* the same `eps` in every step, or fresh noise?
#
# </details>

# %% [markdown]
# So the model always sees the truth around the hole, at the right noise level.
#
# First the easy case: a hole in the middle, and the caption of the picture itself. **Is the hole filled with what was there?**


# %%
def masks(n, rows, columns):
    """Latent masks [n, 1, h, h] that repaint these rows and columns; and the same for pixels."""
    mask = torch.zeros(n, 1, *data.shape[1:])
    mask[..., rows, columns] = 1
    return mask, torch.nn.functional.interpolate(mask, x.shape[-1])


side = data.shape[-1]
middle = slice(side // 4, 3 * side // 4)
some = images.prompts(min(recipe.samples, 60))[1]
x0, z0 = images.batch(some)[0], data.batch(some)[0].to(device)
own = tokens([images.class_names[k] for k in some])
mask, hole = masks(len(z0), middle, middle)
noise = torch.randn(z0.shape, generator=torch.Generator().manual_seed(seed + 1)).to(device)
how = dict(strength=1.0, cond=own, w=w)
filled = {
    "mid-grey": x0 * (1 - hole),
    "encoded and decoded, no hole": data.decode(z0).cpu(),
    "student, 4 NFE": data.decode(
        cd.last(cd.inpaint(students[4], z0, mask, noise, 4, **how))
    ).cpu(),
    "teacher, 32 NFE": data.decode(cd.last(cd.inpaint(teacher, z0, mask, noise, 16, **how))).cpu(),
}
holes = {
    "what the model may see": (x0 * (1 - hole) + 0.6 * hole)[:4],
    **{name: filled[name][:4] for name in ("student, 4 NFE", "teacher, 32 NFE")},
    "images": x0[:4],
}
plotting.show(
    plotting.sample_grid({"": holes}, 4, width=6.0),
    alt="Four emoji with a grey square in the middle; the square filled by the student in four evaluations and by the teacher in 32; and the "
    "whole emoji.",
)
print(f"error in the hole (rms, pixels in [-1, 1]), {len(x0)} pictures under their own captions:")
for name, picture in filled.items():
    error = ((picture - x0).square() * hole).sum() / (hole.sum() * x0.shape[1])
    print(f"{name:30s} {error.sqrt().item():.3f}")

# %% [markdown]
# Not exactly. The colours are right in all four; the things come back in two of them (the arrows and the skull), while the # and the infinity sign are
# strokes of white. The student's error is close to that of the teacher with eight times its evaluations, and less than half
# of what a grey square has. Both know these pictures from training, and both are still some way above the floor, which is what the autoencoder itself loses.
#
# Now the hard case: prompts that contradict what is kept.

# %%
mask, hole = masks(len(latents), slice(side // 2, None), slice(None))  # the lower half
painted = cd.last(cd.inpaint(students[4], latents, mask, eps, 4, 1.0, cond, w))
by_teacher = cd.last(cd.inpaint(teacher, latents, mask, eps, 50, 1.0, cond, w))
mask = mask.to(device)
inpainted = {
    "what the model may see": x * (1 - hole) + 0.6 * hole,
    "student, 4 NFE": data.decode(painted),
    "teacher, 100 NFE": data.decode(by_teacher),
}
print("prompts:", ", ".join(wanted))
plotting.show(
    plotting.sample_grid({"": inpainted}, len(names), width=6.0),
    alt="Four emoji with their lower halves greyed out, and the lower halves repainted under new prompts by the student in four evaluations "
    "and by the teacher in a hundred.",
)

# %%
# NBVAL_CHECK_OUTPUT
kept = 1 - mask.expand_as(latents)
print("kept latents are untouched:", torch.equal(painted * kept, latents * kept))
try:
    cd.inpaint(students[4], latents, hole, eps, 4, 1.0, cond, w)
except ValueError as error:
    print(
        "a mask of another size is refused:", "scaled to the size of what is painted" in str(error)
    )

# %% [markdown]
# **And at the two ends?** A mask that repaints everything is plain sampling; one that repaints nothing gives the original back.

# %%
# NBVAL_CHECK_OUTPUT
plain = cd.last(cd.ddim(students[4], eps, 4, cond, w))
for name, value, ought in (("everything", 1.0, plain), ("nothing", 0.0, latents)):
    found = cd.last(
        cd.inpaint(students[4], latents, torch.full_like(mask, value), eps, 4, 1.0, cond, w)
    )
    print(f"repaint {name}: as it should be to 1e-5: {(found - ought).abs().max().item() < 1e-5}")

# %% [markdown]
# The new half takes its colour from the prompt and its outline from what it must fit: the blue half ends in the tip of the same heart, the dog's
# nose sits in the cat's head. The seam is sharp, in the teacher's row too: each prompt contradicts the half that is kept, and the training set has no heart that is
# half red and half blue. Here, too, four evaluations do what a hundred do, failures included.
#
# **Now you.** The grey rectangle is drawn anew; where it covers everything, this is image to image. `top` and `left` are its corner, `height` and `width` its size, in cells of latents. Take the cat's
# face out of its head and give it back with `cat face`, then with `dog face`. And at which `strength` does the sun become a heart, if all of it may change?


# %%
def draw(picture, prompt, strength, top, left, height, width):
    k, asked = [names.index(picture)], tokens([prompt])
    mask, hole = masks(1, slice(top, top + height), slice(left, left + width))
    shown = {picture: x[k], "what is kept": x[k] * (1 - hole) + 0.6 * hole}
    for name, model, steps, each in (("student", students[4], 4, 1), ("teacher", teacher, 8, 2)):
        z = cd.last(cd.inpaint(model, latents[k], mask, eps[k], steps, strength, asked, w))
        shown[f"{name}, {round(strength * steps) * each} NFE"] = data.decode(z)
    return plotting.image_panels(shown, width=2.2)


widgets.explore(
    draw,
    alt="A red heart, the same with its lower half greyed out, and the lower half drawn anew for the prompt blue heart, by the student in 4 evaluations and by the "
    "teacher in 16: in both it is the blue tip of the same heart.",
    picture=names,
    prompt="blue heart",
    strength=[1.0, 0.75, 0.5, 0.25],
    top=(side // 2, 0, side - 1, 1),
    left=(0, 0, side - 1, 1),
    height=(side // 2, 1, side, 1),
    width=(side, 1, side, 1),
)

# %% [markdown]
# ## 3. Style transfer with a distilled encoder
#
# Noise that is added at random knows nothing of the picture. Noise that is *found*, by running the flow upwards (notebook 06), is the noise from which this very
# picture would come. Decode it under another prompt ([Su et al. 2022](https://arxiv.org/abs/2203.08382)). **Does it remember the picture then?** The encoder
# is distilled by the same function, here down to 4 steps. (It is too large to come with the package, and takes 3 minutes.)

# %%
for encoder in stages.train_stage_two(recipe, data, out, sampler="ddim_encode"):
    if encoder.steps == 4:
        break
source = tokens(names)
retold = cd.translate(encoder, students[4], latents, source, cond, 4, w=w)
by_teacher = cd.translate(teacher, teacher, latents, source, cond, 50, w=w)
back = cd.translate(encoder, students[4], latents, source, source, 4)
again = cd.translate(teacher, teacher, latents, source, source, 50)
transferred = {
    "images": x,
    "students, encoded and decoded under the same prompt, 4 + 4 NFE": data.decode(back),
    "students, decoded under the new prompt, 4 + 4 NFE": data.decode(retold),
    "teacher, the same, 100 + 100 NFE": data.decode(by_teacher),
}
print("prompts:", ", ".join(wanted))
plotting.show(
    plotting.sample_grid({"": transferred}, len(names), width=6.0),
    alt="Four emoji, their reconstruction by encoder and student, and the same noise decoded under new prompts by the students and by the teacher.",
)
errors = [(z - latents).square().mean().sqrt().item() for z in (back, again)]
print("reconstruction error in latents (standard deviation 1):")
print(f"students, 8 NFE: {errors[0]:.3f}; teacher, 200 NFE: {errors[1]:.3f}")

# %%
# NBVAL_CHECK_OUTPUT
calls = []
for network in (encoder.net, students[4].net):
    network.register_forward_hook(lambda *given: calls.append(1))
cd.translate(encoder, students[4], latents, source, cond, 4, w=w)
print("evaluations of encoder and student:", len(calls))
try:
    cd.translate(encoder, students[2], latents, source, cond, 4, w=w)
except ValueError as error:
    print(error)

# %% [markdown]
# **What does each way keep, and does it obey?** The 60 pictures of the training set again, each edited under the caption of another one: the distance from the
# original, and the share that the matcher of notebook 08 reads as the *new* caption among the 60. An edit that changes nothing is best in the first and worst in the
# second. (Held-out pictures would be the better test. But the matcher reads few of their captions even before any edit, as the last line shows, so it could not
# tell us anything.)

# %%
other = own.roll(1, 0)
unseen = cd.load_captioned(captions, "test", size=recipe.size, images=recipe.images)
rest = unseen.prompts(min(len(unseen), len(x0)))[1]
x1, others = unseen.batch(rest)[0], tokens([unseen.class_names[k] for k in rest])
results = {
    "the pictures themselves": (x0, own),
    "encoded and decoded": (data.decode(z0), own),
    "the same, as the new caption": (data.decode(z0), other),
}
for name, z in {
    "image to image, 0.5": cd.last(cd.image_to_image(students[4], z0, noise, 4, 0.5, other, w)),
    "image to image, 0.75": cd.last(cd.image_to_image(students[4], z0, noise, 4, 0.75, other, w)),
    "image to image, 1": cd.last(cd.image_to_image(students[4], z0, noise, 4, 1.0, other, w)),
    "style transfer": cd.translate(encoder, students[4], z0, own, other, 4, w=w),
}.items():
    results[name] = (data.decode(z), other)
results["held-out pictures, untouched"] = (x1, others)
matcher = stages.make_judge(recipe, data, out).classifier
print(f"{len(x0)} training images, student of 4 steps, w = {w:g}, seed {seed}")
print("                              distance (rms)  read as asked  (standard error)")
for name, (picture, wanted0) in results.items():
    before = x1 if name.startswith("held-out") else x0
    distance = (picture.cpu() - before).square().mean().sqrt().item()
    with torch.no_grad():
        read = matcher.for_captions(wanted0).logits(picture.to(device)).argmax(1)
    right = (read == torch.arange(len(read), device=read.device)).float().mean().item()
    error = (right * (1 - right) / len(read)) ** 0.5
    print(f"{name:30s}{distance:14.3f}{right:15.1%}{error:18.1%}")

# %%
four = {"images": x, "student, image to image, 0.75, 3 NFE": rows["student, strength 0.75, 3 NFE"]}
four |= {"student, inpainting, 4 NFE": inpainted["student, 4 NFE"]}
four |= {
    "students, style transfer, 4 + 4 NFE": transferred[
        "students, decoded under the new prompt, 4 + 4 NFE"
    ]
}
plotting.show(
    plotting.sample_grid({"": four}, len(names), width=6.0),
    alt="Four emoji and three ways to edit them under new prompts. Image to image: a bluish heart, an orange apple, a dog's snout, a crescent. "
    "Inpainting: upper halves kept, lower halves blue, red, a dog's nose, a crescent. Style transfer: the new things drawn anew.",
    path=Path(out) / "editing.png",
)

# %% [markdown]
# The more of the original is given up, the more often the new caption is read. Image to image with strength 0.75 obeys in 7 of 10 cases, and of the
# edits that mostly obey it stays nearest to the original. Style transfer obeys as often as drawing from scratch (strength 1), within the standard
# error of 5 points, and keeps **no more** than that: its distance is the same. So the answer is no: the noise does not remember. Up and down under
# its own caption, the picture comes back (an error of 0.1 of a deviation after 4 + 4 evaluations), but under another caption the same noise means
# something else. That fits what notebook 09 saw: here a caption all but decides the picture, so little is left for the noise to remember. (That the
# blue heart has the outline of the red one proves nothing: at strength 1 it has it too.) In notebook 06, with many digits to a label, the noise held
# how much ink there was.
#
# ## Further questions
#
# 1. Use `students[2]` and `students[8]` for image to image. Which strengths do they share?
# 2. Paint a sketch of coloured shapes (a tensor of ones, which is white, with some squares), send it through `data.vae.encode`, and give it to
#    `image_to_image` with a prompt.
# 3. Repaint everything outside a circle. Where do seams show, and why are they as wide as they are?
# 4. Encode with $w = 1$ instead of 0. (Notebook 06 says what to expect.)
# 5. The folder that notebook 09 exported opens in `StableDiffusionImg2ImgPipeline` and `StableDiffusionInpaintPipeline`. Repeat an edit with them.
#
# **Next:** distillation of a model of 860 million parameters, on a free GPU, in [notebook 11](11_stable_diffusion_on_colab.ipynb).

# %%
facts = checkpoints.provenance(
    notebook="10_editing", recipe=recipe.name, seed=seed, data=images.hash[:16], split=images.split
)
for key, value in facts.items():
    print(f"{key}: {value}")
