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
# # 06 · Encoders and style transfer
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/06_encoders_and_style_transfer.ipynb)
#
# DDIM ([Song et al. 2021](https://arxiv.org/abs/2010.02502)) is a flow, and a flow runs in both directions. Upwards it turns an image into the noise it would have come from.
# Decode that noise under **another** label, and the image is retold: another digit, in something of the same hand. (Two flows used in this way
# are called *dual diffusion implicit bridges*, [Su et al. 2022](https://arxiv.org/abs/2203.08382).) The paper
# ([Meng et al. 2023](https://arxiv.org/abs/2210.03142)) distils the upward direction too, so that the whole of it takes a few evaluations.
#
# **You will**
#
# - run the flow upwards, and measure what is lost on the way up and down again,
# - see why the usual form of the target cannot teach an encoder, and which one can,
# - distil encoders of 8, 4, 2 and 1 steps and compare pairs of students with the many-step teacher,
# - translate digits into each other, measure what is changed and what is kept, and find where guidance does harm.
#
# **You need** [notebook 04](04_stage_two.ipynb) (what you skipped is trained here first).
#
# | profile | hardware | time, if all is trained here |
# | --- | --- | --- |
# | `smoke` | any CPU | under a minute |
# | `laptop` | two CPU cores | five minutes on digits, after stage two |
# | `colab` | one free T4 | `dataset = "cifar10"`: about a third of a session |
# | `paper` | a large GPU | the published budget |
#
# Allow about 20 minutes to read it, and 15 for the exercises;
# without what is *further*, 15 in all.
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=06`.

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
from cfgdistill.course import checks, stages, widgets
from cfgdistill.judge import plotting
from cfgdistill.training.environment import flag

# %% tags=["parameters"]
dataset = os.environ.get("CFGDISTILL_DATASET", "digits")
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
retrain = flag("CFGDISTILL_RETRAIN")  # or use the models of the package
seed = 0

# %% [markdown]
# ## 1. The flow upwards
#
# A DDIM step goes from any time to any other: $z_s = \alpha_s \hat x + \sigma_s \hat\varepsilon$ does not ask whether $s$ is smaller than $t$. So encoding is
# sampling with the times reversed.


# %%
def encode_from_scratch(denoiser, x, N, cond):
    z = x  # at t = 0 there is no noise
    for i in range(N):
        s = torch.full((len(z),), (i + 1) / N).to(z)
        z = cd.ddim_step(denoiser(z, i / N, cond), s, denoiser.schedule)
    return z


exact = cd.pinwheel().denoiser(cd.CosineSchedule())
points, arms = cd.pinwheel().sample(600, torch.Generator().manual_seed(seed))
points = points.double()
noise = cd.last(cd.ddim_encode(exact, points, 64, arms))
torch.testing.assert_close(encode_from_scratch(exact, points, 64, arms), noise)

# %% [markdown]
# **Does a point come back?** Up and down again with the same label. On the way up a step uses the direction at its lower end,
# on the way down the one at its upper end; they differ by an amount that shrinks with the step. So the error should halve whenever the number of steps
# doubles.

# %%
# NBVAL_CHECK_OUTPUT
errors = {}
for N in (32, 64, 128, 256, 512):
    back = cd.translate(exact, exact, points, arms, arms, N, w=None, w_encode=None)
    errors[N] = (back - points).square().sum(1).mean().sqrt().item()
    print(f"{N:4d} steps up and {N} down: root mean square error {errors[N]:.4f}")
print("512 against 256 steps, error ratio:", round(errors[512] / errors[256], 2))

# %% [markdown]
# ## 2. Another label on the way down
#
# Here are three arms of a spiral. Encode the points of arm 0 under label 0: because the denoiser knows that label, they fill the whole
# bell curve $\mathcal N(0, I)$. Decode the very same noise as arm 1, or arm 2. **What survives?** The colour of a point is its
# place along arm 0: dark near the centre, light at the outer end.

# %%
chosen = points[arms == 0]
source = torch.zeros(len(chosen)).long()
noise = cd.last(cd.ddim_encode(exact, chosen, 128, source))
views = {"arm 0": chosen, "encoded": noise}
for k in (1, 2):
    views[f"decoded as arm {k}"] = cd.last(cd.ddim(exact, noise, 128, source + k))
fig, axes = plotting.figure(1, 4, width=10, height=2.8)
for axis, (name, view) in zip(axes, views.items(), strict=True):
    if name != "encoded":
        axis.scatter(*points.T, s=2, color="0.85")
    axis.scatter(*view.T, s=6, c=chosen.norm(dim=1), cmap="cividis")
    axis.set(title=name, aspect="equal")
plotting.show(
    fig,
    alt="Points of one spiral arm, dark at its inner and light at its outer end; their encodings, which fill a round cloud, dark "
    "below and light above; and the same noise decoded as the two other arms, where the light points are on top again. On the second arm "
    "the dark points, once the inner end, are the outer one.",
)

# %% [markdown]
# ### Exercise 1: what is kept? *(predict before the numbers, 3 minutes)*
#
# Rank the points of arm 0 from its inner to its outer end, and the same points, decoded as arm 1, along *that* arm. **Which sign has the correlation of the two ranks?** (a) positive, the inner points stay inside; (b) about 0, the noise forgets it;
# (c) negative, the inner points become the outer ones.
#
# <details><summary>Hint</summary>
#
# Look at the light points in the figure: where are they on each arm, and where in the plane?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "place_along_the_arm", "locked": false, "schema_version": 3, "solution": true, "task": false}
place_along_the_arm = None
### BEGIN SOLUTION
place_along_the_arm = "c"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "place_along_the_arm-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.place_along_the_arm(place_along_the_arm))
### BEGIN HIDDEN TESTS
assert checks.place_along_the_arm(place_along_the_arm).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* (a), "the place within the class is the style".
#
# *To discuss:* which property of an image do you expect to survive, then, and how would you measure it?
#
# </details>


# %%
# NBVAL_CHECK_OUTPUT
def rank_correlation(a, b):
    ranks = [values.argsort().argsort().double() for values in (a, b)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


for k in (1, 2):
    view = views[f"decoded as arm {k}"]
    x, y = (rank_correlation(chosen[:, i], view[:, i]) for i in (0, 1))
    place = rank_correlation(chosen.norm(dim=1), view.norm(dim=1))
    print(f"rank correlation, as arm {k}: x {x:.1f}, y {y:.1f}, place along the arm {place:.1f}")

# %% [markdown]
# The label has been exchanged. You may have expected a point to keep its place *along* the arm. It does rather the opposite:
# inner points of arm 0 tend to become outer points of the other arms. What is kept is where a point lies in the *plane*: what was on top stays on top.
# The flow moves points along smooth paths in the plane, and knows nothing of places along an arm.
#
# That is what style transfer does. *Style* is whatever the condition leaves open, but which part of it survives is for the flow to decide:
# it keeps what its geometry keeps. We will have to measure that for digits, too.
#
# ## 3. A target for an encoder
#
# An encoder of $N$ steps starts at $t = i/N$ for $i = 0, \dots, N-1$ and goes up to $s = t + 1/N$; its target is two steps of a teacher that takes $2N$.
# The usual form of that target ([Salimans & Ho 2022](https://arxiv.org/abs/2202.00512)) is an $x$:
#
# $$ \tilde x = \frac{z_s - (\sigma_s/\sigma_t)\, z_t}{\alpha_s - (\sigma_s/\sigma_t)\, \alpha_t}. $$
#
# **And at the first step, $t = 0$?** There $\sigma_t = 0$. With the angle $\phi$ of notebook 01 ($\alpha = \cos\phi$, $\sigma = \sin\phi$) and
# $d = \phi_s - \phi_t$, a step is a rotation, $z_s = \cos(d)\, z_t + \sin(d)\, v$. So the same target can be written as a $v$:
#
# $$ \tilde v = \frac{z_s - \cos(d)\, z_t}{\sin(d)}. $$
#
# The only divisor here is $\sin(d)$, which is not zero for $s \ne t$. Where both forms exist they agree: $\tilde x = \alpha_t z_t - \sigma_t \tilde v$.

# %%
# NBVAL_CHECK_OUTPUT
for t, s in ((0.0, 0.25), (0.25, 0.5)):
    v = cd.progressive_target(exact, points, t, s, arms)
    z_s = points
    for now, then in ((t, (t + s) / 2), ((t + s) / 2, s)):  # two steps of the teacher
        end = torch.full((600,), then).double()
        z_s = cd.ddim_step(exact(z_s, now, arms), end, exact.schedule)
    times = torch.tensor([t, s]).double()
    (alpha_t, alpha_s), (sigma_t, sigma_s) = exact.schedule.alpha_sigma(times)
    ratio = sigma_s / sigma_t
    x = (z_s - ratio * points) / (alpha_s - ratio * alpha_t)
    same = torch.allclose(x, alpha_t * points - sigma_t * v, atol=1e-9)
    finite = [bool(form.isfinite().all()) for form in (v, x)]
    print(f"t = {t}: v form finite {finite[0]}, x form finite {finite[1]}, they agree {same}")

# %% [markdown]
# The loss has the same trouble. On $x$ the truncated SNR weighting of progressive distillation is $\max(\alpha^2/\sigma^2, 1)$, infinite at $t = 0$, where
# $x = \alpha z - \sigma v = z_0$ has no error, whatever $v$ the network predicts. Infinity times zero teaches nothing. An encoder must be
# judged by its $v$, the direction in which it leaves. On $v$ the same weighting reads $\max(\alpha^2, \sigma^2)$ and is harmless.

# %%
# NBVAL_CHECK_OUTPUT
times = torch.tensor([0.0, 0.5, 1.0]).double()
alpha, sigma = cd.CosineSchedule().alpha_sigma(times)
on_x = (alpha**2 / sigma**2).clamp_min(1)
on_v = cd.truncated_snr(cd.CosineSchedule().logsnr(times))
print("truncated SNR at t = 0, 1/2, 1, on x:", *(f"{value:.2f}" for value in on_x.tolist()))
print("                                on v:", *(f"{value:.2f}" for value in on_v.tolist()))

# %% [markdown]
# ## 4. Up and down with the teacher
#
# Now images. **How much of a test image does the many-step teacher give back?** No model has seen these images.

# %%
recipe = cd.get_recipe(dataset, profile, seed=seed)
if not retrain:
    recipe = cd.use_pretrained(recipe, out)
print(recipe)
data = cd.load_data(dataset, "train", recipe.images)
teacher = cd.GuidedDenoiser(stages.train_teacher(recipe, data, out), null=data.num_classes)
test = cd.load_data(dataset, "test", recipe.images).all()
x, labels = (part[: recipe.samples].to(teacher.device) for part in test)


def distance(a, b):
    """Root mean square over pixels in [-1, 1]."""
    return (a - b).square().mean().sqrt().item()


def there_and_back(encoder, decoder, steps, w=0.0):
    z = cd.last(cd.ddim_encode(encoder, x, steps, labels, w))
    return z, cd.last(cd.ddim(decoder, z, steps, labels, w))


true_noise, back = there_and_back(teacher, teacher, 128)
print(
    f"{len(x)} test images, w = 0; 128 steps up and 128 down: image error {distance(back, x):.4f}"
)


def report(name, encoder, decoder, steps, nfe):
    z, back = there_and_back(encoder, decoder, steps)
    text = f"image error {distance(back, x):.4f}, distance to the 128-step encoding"
    print(f"{name}, {steps} + {steps}, {nfe:3d} NFE: {text} {distance(z, true_noise):.3f}")
    return back


for steps in (32, 16, 8, 4, 2, 1):
    report("teacher", teacher, teacher, steps, 4 * steps)

# %% [markdown]
# As in the plane, the error about doubles each time the number of steps is halved, down to 4 steps. Below that there is little left to lose.
#
# ## 5. Encoders
#
# The same halving loop, upwards: `sampler="ddim_encode"`. The decoders are the students of notebook 04. **How do pairs of students compare with
# the teacher, at 32 steps up and 32 down, and at equal evaluations?**

# %%
decoders = {s.steps: s for s in stages.train_stage_two(recipe, data, out)}
encoders = {s.steps: s for s in stages.train_stage_two(recipe, data, out, sampler="ddim_encode")}
lines = {"test images": x, "encoded, 128 steps": true_noise / 3}
for n in (8, 4, 2, 1):
    back = report("students", encoders[n], decoders[n], n, 2 * n)
    lines[f"back, {2 * n} NFE"] = back
plotting.show(
    plotting.image_rows({name: images[:10] for name, images in lines.items()}),
    alt="Ten test images, their encodings, which look like noise with a trace of the image in it, and four "
    "reconstructions by students; those of 8 and of 4 steps can hardly be told from the image.",
)

# %% [markdown]
# Two students of 8 steps give back the images as exactly as the teacher does with 32 up and 32 down, at an eighth of its evaluations.
# With 4 steps the error is 1.5 times as large, with one step four times; to the eye that is still the same picture. With the 16 evaluations
# of the 8-step students, the teacher (4 steps up and 4 down) has an error of 0.23: seven times theirs.
#
# How can 8 steps of students be as exact as 32 of the teacher? Encoder and decoder were both distilled from the same many-step flow, whose
# steps were 1/64 long. The teacher's 32 steps are twice as long: by the doubling seen above, 64 steps would err half as much. Stage one and the
# halvings add about the other half.
#
# ## 6. Is it noise? *(further)*
#
# If the model were perfect, the encodings of all images together would be $\mathcal N(0, I)$: mean 0, and a spread (a standard deviation) of 1 in each pixel.
# **Is it so?**

# %%
encoded = cd.last(cd.ddim_encode(encoders[4], x, 4, labels, 0.0))
for name, z in {"teacher, 128 steps": true_noise, "student, 4 steps": encoded}.items():
    narrow = (z.std(0) < 0.75).sum().item()
    print(
        f"{name}: mean {z.mean():.3f}, spread {z.std():.3f}, {narrow} values of {z[0].numel()} below 0.75"
    )
fig, axes = plotting.figure(1, 2, width=7, height=3)
maps = {"of the student's encodings": encoded, "of the test images": x}
for axis, (name, values) in zip(axes, maps.items(), strict=True):
    fig.colorbar(axis.imshow(values.std(0).mean(0).cpu(), cmap="cividis", vmin=0), ax=axis)
    axis.set(title=f"spread {name}", xticks=[], yticks=[])
plotting.show(
    fig,
    alt="The standard deviation of each pixel's encoding, and of the pixel itself in the test images. Both are small in the same places: "
    "the columns at the left and right edge.",
)

# %% [markdown]
# Not quite. The mean is right, and in the middle of the image the spread is close to 1. But the columns on the left and right have a spread of only
# 0.3 to 0.6. The map beside it shows why: those pixels are black in nearly every digit. To turn a single value into a whole bell curve the flow would have to be infinitely steep at
# $t = 0$, and no network and no finite step is. It is the price of data without noise in it, and it costs little here: a decoder puts black where it
# belongs from any noise.

# %% [markdown]
# ### Exercise 2: between two encodings *(further: fill in, 8 minutes)*
#
# Noise in many dimensions is nearly all of the same length. The straight line between two encodings leads through points that are too short, and that no image has for an encoding. **Go along the great circle instead**: at even angles, from $a$ to $b$, which are equally long here.
#
# <details><summary>Hint 1</summary>
#
# The angle between them is $\theta = \arccos(\langle a, b\rangle / (\lVert a\rVert \lVert b\rVert))$.
#
# </details>
#
# <details><summary>Hint 2</summary>
#
# $\sin((1 - u)\,\theta)\, a + \sin(u\,\theta)\, b$, divided by something that makes it $a$ at $u = 0$.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "slerp", "locked": false, "schema_version": 3, "solution": true, "task": false}
def slerp(a, b, u):
    """The point at share u of the way along the great circle: a, b [d], u from 0 to 1."""
    ### BEGIN SOLUTION
    angle = torch.arccos(a @ b / (a.norm() * b.norm()))
    return (torch.sin((1 - u) * angle) * a + torch.sin(u * angle) * b) / angle.sin()
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "slerp-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.slerp(slerp))
### BEGIN HIDDEN TESTS
assert checks.slerp(slerp).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* the straight line, whose middle has 0.7 of the length; the line scaled back to length, which is right at $u = \tfrac12$ only; $u$ and $1 - u$ swapped.
#
# *To discuss:* decode it (the second of the further questions).
#
# </details>

# %% [markdown]
# ## 7. One hand, ten digits
#
# Encode a test image as what it is, decode it as each of the ten classes. In the paper this is style transfer.
# **The left column, set apart, is the original. Does the same hand seem to have written the others?** Try a bold image and a slanted one, other $w$, and students of
# more steps.

# %%
judge = stages.make_judge(recipe, data, out)


def read(images):
    """The classes that a classifier reads."""
    return judge.classifier.logits(images.clamp(-1, 1).to(judge.device)).argmax(1)


def draw(image, w, steps):
    one, own = x[image : image + 1], labels[image : image + 1].repeat(10)
    lines, classes = {}, torch.arange(10, device=own.device)
    pair = f"students, {2 * steps} NFE"
    for name, up, down, n in (
        ("teacher, 128 NFE", teacher, teacher, 32),
        (pair, encoders[steps], decoders[steps], steps),
    ):
        told = cd.translate(up, down, one.repeat_interleave(10, 0), own, classes, n, w=w)
        title = f"{name}: read as {' '.join(map(str, read(told).tolist()))}"
        lines[title] = torch.cat([one, torch.ones_like(one), told])
    return plotting.image_rows(lines, 12)


alt = (
    "A test image of a 4, set apart, and the same retold as the classes 0 to 9 at w = 1: by the teacher, and, nearly alike, by students of "
    "one step each way. A classifier reads all of them as what they should be."
)
controls = dict(w=(1.0, recipe.w_min, recipe.w_max, 0.5), steps=[1, 2, 4, 8])
widgets.explore(draw, alt, image=(4, 0, len(x) - 1, 1), **controls)

# %% [markdown]
# That is hard to judge by eye, in 8 x 8 pixels. So we measure.
#
# ## 8. What changes, what stays
#
# Two questions can be answered in numbers. **Does a classifier read the new class?** And **is the hand kept?** For the
# second we take two features that no label decides: how much ink there is (the mean of the pixels), and how slanted the ink
# lies. If the translation keeps them, they correlate between original and translation. As a baseline, the original is
# compared with the translation of *another* image to the same class.


# %%
def ink_and_slant(images):
    mass = (images.mean(1) + 1).clamp_min(0)  # [n, h, w]
    place = torch.arange(mass.shape[-1], device=mass.device, dtype=mass.dtype)
    total = mass.sum((1, 2))
    row = (mass.sum(2) * place).sum(1) / total
    column = (mass.sum(1) * place).sum(1) / total
    down, right = place - row[:, None], place - column[:, None]
    return mass.mean((1, 2)), (mass * down[:, :, None] * right[:, None]).sum((1, 2)) / total


def kept(before, after):
    """Correlations of ink and of slant within the target classes: the class explains nothing."""
    found = []
    for pair in zip(ink_and_slant(before), ink_and_slant(after), strict=True):
        means = [torch.stack([v[target == k].mean() for k in range(10)])[target] for v in pair]
        parts = [value - mean for value, mean in zip(pair, means, strict=True)]
        found.append(torch.corrcoef(torch.stack(parts))[0, 1].item())
    return "ink kept {:.2f}, slant kept {:.2f}".format(*found)


generator = torch.Generator().manual_seed(seed)
shift = torch.randint(1, 10, (len(x),), generator=generator).to(x.device)
target = (labels + shift) % data.num_classes
other = torch.randperm(len(x), generator=generator).to(x.device)
print(f"{len(x)} test images, each as another class (seed {seed}); class by {judge.name}")
cases = [("teacher", teacher, teacher, 32, 128)]
cases += [("students", encoders[n], decoders[n], n, 2 * n) for n in (8, 4, 2, 1)]
for name, up, down, n, nfe in cases:
    for w in (0.0, 1.0, 3.0):
        told = cd.translate(up, down, x, labels, target, n, w=w)
        right = (read(told) == target.to(judge.device)).float().mean()
        print(f"{name}, {nfe} NFE, w = {w:g}: read as target {right:.3f}, {kept(x, told)}")
print(f"of another image: {kept(x[other], told)}")

# %% [markdown]
# The class changes in 98 % of the cases or more, and the amount of ink goes along with the image: a correlation of 0.8 to 0.9 where chance gives 0.
# The slant does so only in part, 0.24 to 0.40. As in the plane, a part of what the label leaves open is kept, not all of it. (One reason may be that
# a slanted 0 and a slanted 7 have their ink in different pixels, while a bold digit of any class has more of it everywhere.) Guidance makes the class
# a little surer (from 98 % to 100 %) and keeps a little less of the hand: the more typical a digit of its class, the less room there is for anything
# else. And students with one step up and one down change and keep about as much as the teacher does with 128 evaluations.
#
# ## 9. Guidance on the way up *(further)*
#
# So far the encoder had $w = 0$, and only the decoder was guided. It would seem natural to encode with the same $w$.

# %% [markdown]
# ### Exercise 3: guide the encoder? *(further: predict before the figure, 3 minutes)*
#
# An image is to be encoded, changed, and decoded with $w = 3$. **With which $w$ should it be encoded?** (a) With 3 as well, so that up and down are the same flow. (b) With the $w$ at which the encodings have a spread of 1, as noise has. (c) With 0.
#
# <details><summary>Hint</summary>
#
# Down, guidance draws trajectories together. What does the same flow do upwards?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "w_for_encoding", "locked": false, "schema_version": 3, "solution": true, "task": false}
w_for_encoding = None
### BEGIN SOLUTION
w_for_encoding = "c"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "w_for_encoding-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.w_for_encoding(w_for_encoding))
### BEGIN HIDDEN TESTS
assert checks.w_for_encoding(w_for_encoding).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* (a) by symmetry; (b), which happens to be $w = 1$: some values vary too little and others too much, and the errors cancel in the sum.
#
# *To discuss:* why is an untypical image so hard to encode under guidance?
#
# </details>

# %% [markdown]
# **How do the image error and the spread of the encodings change with $w$?**

# %%
error, spread = {}, {}
for w in (0.0, 1.0, 2.0, 4.0):
    z, back = there_and_back(teacher, teacher, 32, w)
    error[w], spread[w] = distance(back, x), z.std().item()
    low, high = z.std(0).flatten().quantile(torch.tensor([0.1, 0.9]).to(z)).tolist()
    print(
        f"w = {w:g}: a tenth of the values vary by less than {low:.2f}, a tenth by more than {high:.2f}"
    )
panels = {"image error (rms)": {"": error}, "spread of the encoding": {"": spread}}
plotting.show(
    plotting.curves(panels, "w, up and down"),
    alt="Left: the reconstruction error grows with the guidance weight used in both directions by the teacher. "
    "Right: so does the spread of the encodings, far beyond 1.",
)

# %% [markdown]
# At $w = 1$ the spread of all values together is just 1. That is a coincidence and no reason to encode with $w = 1$: as the printed lines show, some
# values still vary far too little and others now too much, and the two errors cancel.
#
# Downwards, guidance draws trajectories together towards the most typical images of a class. Upwards the same flow must push them
# apart. There is no likely noise from which guided sampling would reach an untypical image: its encoding lands
# far outside, and small errors grow. So encode with $w = 0$ and guide the decoder, as the style transfer above did. Up and down then no longer give the image back,
# but in style transfer they are not meant to.
#
# **What if you encode with a decoder?** Its steps were never trained upwards, and the package says so:

# %%
# NBVAL_CHECK_OUTPUT
for model, steps in ((decoders[4], 4), (encoders[4], 8)):
    try:
        cd.ddim_encode(model, x, steps, labels, 0.0)
    except ValueError as error:
        print(error)

# %% [markdown]
# ## Further questions
#
# 1. Encode with the *wrong* label, then decode with the right one. What is in the noise now?
# 2. Interpolate between the encodings of two images (along the great circle) and decode. Then between the images themselves.
#    What happens to the norm of the noise if you interpolate on a straight line?
# 3. Pair a 1-step encoder with an 8-step decoder, and the other way round. Which half loses more?
# 4. Encode with the null label $k$ = 10. What happens to ink, slant and the share that is read as the target?
# 5. Distil an encoder for $w = 0$ alone (`get_recipe(..., w_max=0.0)`). Is it more exact than the one for $w \in [0, 4]$?
#
# **Next:** [notebook 07](07_evaluation.ipynb) measures everything that has been trained so far, and breaks it on purpose.

# %%
stages.print_provenance(recipe, data, "06_encoders_and_style_transfer")
