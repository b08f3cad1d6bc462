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
from cfgdistill.course import checks, stages
from cfgdistill.judge import plotting
from cfgdistill.training import checkpoints
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
    axis.set_title(name, fontsize=9)
    axis.set_aspect("equal")
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
def rank_correlation(a, b):
    ranks = [values.argsort().argsort().double() for values in (a, b)]
    return torch.corrcoef(torch.stack(ranks))[0, 1].item()


print("rank correlation with arm 0:   x      y    place along the arm")
for k in (1, 2):
    view = views[f"decoded as arm {k}"]
    pairs = (
        (chosen[:, 0], view[:, 0]),
        (chosen[:, 1], view[:, 1]),
        (chosen.norm(dim=1), view.norm(dim=1)),
    )
    x, y, place = (rank_correlation(*pair) for pair in pairs)
    print(f"decoded as arm {k}: {x:17.2f} {y:6.2f} {place:12.2f}")

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
    middle = cd.ddim_step(
        exact(points, t, arms), torch.full((600,), (t + s) / 2).double(), exact.schedule
    )
    end = cd.ddim_step(
        exact(middle, (t + s) / 2, arms), torch.full((600,), s).double(), exact.schedule
    )
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (
        exact.schedule.alpha_sigma(torch.tensor([u]).double()) for u in (t, s)
    )
    ratio = sigma_s / sigma_t
    x = (end - ratio * points) / (alpha_s - ratio * alpha_t)
    from_v = cd.expand(alpha_t, points) * points - cd.expand(sigma_t, points) * v
    same = torch.allclose(x, from_v, atol=1e-9)
    print(f"t = {t}: v form finite {bool(v.isfinite().all())}, x form finite "
          f"{bool(x.isfinite().all())}, they agree {same}")  # fmt: skip

# %% [markdown]
# The loss has the same trouble. On $x$ the truncated SNR weighting of progressive distillation is $\max(\alpha^2/\sigma^2, 1)$, infinite at $t = 0$, where
# $x = \alpha z - \sigma v = z_0$ has no error, whatever $v$ the network predicts. Infinity times zero teaches nothing. An encoder must be
# judged by its $v$, the direction in which it leaves. On $v$ the same weighting reads $\max(\alpha^2, \sigma^2)$ and is harmless.

# %%
# NBVAL_CHECK_OUTPUT
alpha, sigma = cd.CosineSchedule().alpha_sigma(torch.tensor([0.0, 0.5, 1.0]).double())
on_x = (alpha**2 / sigma**2).clamp_min(1)
on_v = cd.truncated_snr(cd.CosineSchedule().logsnr(torch.tensor([0.0, 0.5, 1.0]).double()))
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
device = teacher.device
test, test_labels = cd.load_data(dataset, "test", recipe.images).all()
x, labels = test[: recipe.samples].to(device), test_labels[: recipe.samples].to(device)


def distance(a, b):
    return (a - b).square().mean().sqrt().item()


def there_and_back(encoder, decoder, steps, w=0.0):
    z = cd.last(cd.ddim_encode(encoder, x, steps, labels, w))
    return z, cd.last(cd.ddim(decoder, z, steps, labels, w))


true_noise, back = there_and_back(teacher, teacher, 128)
print(f"{len(x)} test images, w = 0; root mean square over pixels in [-1, 1]")
print("teacher, steps up + down   NFE   image error   distance to its 128-step encoding")
print(f"{'128 + 128':>24s} {512:5d} {distance(back, x):13.4f} {0:12.3f}")
teacher_error = {}
for steps in (32, 16, 8, 4, 2, 1):
    z, back = there_and_back(teacher, teacher, steps)
    teacher_error[steps] = distance(back, x)
    print(
        f"{f'{steps} + {steps}':>24s} {4 * steps:5d} {teacher_error[steps]:13.4f} "
        f"{distance(z, true_noise):12.3f}"
    )

# %% [markdown]
# As in the plane, the error about doubles each time the number of steps is halved, down to 4 steps. Below that there is little left to lose.
#
# ## 5. Encoders
#
# The same halving loop, upwards: `sampler="ddim_encode"`. The decoders are the students of notebook 04. **How do pairs of students compare with
# the teacher's 32 steps up and 32 down?**

# %%
decoders = {s.steps: s for s in stages.train_stage_two(recipe, data, out)}
encoders = {s.steps: s for s in stages.train_stage_two(recipe, data, out, sampler="ddim_encode")}
shown = [n for n in (16, 8, 4, 2, 1) if n in encoders]
few, fewest = 4 if 4 in encoders else shown[0], shown[-1]
pair_error, rebuilt = {}, {}
print("students, steps up + down  NFE   image error   of teacher's 32   distance to encoding")
for n in shown:
    z, rebuilt[n] = there_and_back(encoders[n], decoders[n], n)
    pair_error[n] = distance(rebuilt[n], x)
    print(
        f"{f'{n} + {n}':>24s} {2 * n:5d} {pair_error[n]:13.4f} "
        f"{pair_error[n] / teacher_error[32]:15.2f}x {distance(z, true_noise):16.3f}"
    )
fig, axis = plotting.figure(width=5.5, height=3)
nfe = [4 * n for n in teacher_error]
axis.plot(
    nfe, teacher_error.values(), marker="o", color=plotting.COLORS[0], label="teacher up and down"
)
nfe = [2 * n for n in pair_error]
axis.plot(nfe, pair_error.values(), marker="^", color=plotting.COLORS[1], label="pair of students")
axis.set(xscale="log", yscale="log", xlabel="NFE, up and down", ylabel="image error (rms)")
axis.set_xticks([2, 8, 32, 128], [2, 8, 32, 128])
axis.set_yticks([0.02, 0.05, 0.1, 0.2, 0.4], [0.02, 0.05, 0.1, 0.2, 0.4])
axis.minorticks_off()
axis.legend(frameon=False)
plotting.show(
    fig,
    alt="Reconstruction error against evaluations, both axes logarithmic: at equal evaluations the pair of "
    "students is several times more exact than the teacher.",
)

# %%
columns = {
    "test images": x,
    "encoded, 128 steps": (true_noise / 3),
    "back: teacher, 128 NFE": there_and_back(teacher, teacher, 32)[1],
    f"back: students, {2 * few} NFE": rebuilt[few],
    f"back: students, {2 * fewest} NFE": rebuilt[fewest],
}
fig, axes = plotting.figure(1, len(columns), width=2 * len(columns), height=1.8)
for axis, (name, images) in zip(axes, columns.items(), strict=True):
    plotting.draw_images(axis, images[:15], 5)
    axis.set_title(name, fontsize=8)
plotting.show(
    fig,
    alt="Fifteen test images, their encodings, which look like noise with a trace of the image in it, and three "
    "reconstructions; that of the four-step students can hardly be told from the image.",
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
# ## 6. Is it noise?
#
# If the model were perfect, the encodings of all images together would be $\mathcal N(0, I)$: mean 0, standard deviation 1, and no two pixels
# would be correlated. **Are they?**

# %%
encoded = cd.last(cd.ddim_encode(encoders[few], x, few, labels, 0.0))
encodings = {"teacher, 128 steps": true_noise.cpu(), f"student, {few} steps": encoded.cpu()}
fig, axes = plotting.figure(1, 3, width=10, height=3)
for (name, z), color, style in zip(encodings.items(), plotting.COLORS, ("-", "--"), strict=False):
    deviation = z.std(0).flatten()
    pairs = torch.corrcoef(z.flatten(1).T)[~torch.eye(len(deviation), dtype=torch.bool)]
    print(
        f"{name}: mean {z.mean():.3f}, standard deviation {z.std():.3f}; "
        f"{(deviation < 0.75).sum()} of {len(deviation)} values have one below 0.75; correlations {pairs.square().mean().sqrt():.3f} (rms)"
    )
    hist = dict(range=(-4, 4), density=True, histtype="step", color=color, linestyle=style)
    axes[0].hist(z.flatten(), 60, label=name, **hist)
print(f"correlations of {len(x)} independent draws: {len(x) ** -0.5:.3f} (rms)")
grid = torch.linspace(-4, 4, 200)
axes[0].plot(grid, (-grid.square() / 2).exp() / (2 * torch.pi) ** 0.5, "k:", label="N(0, 1)")
axes[0].set(xlabel="value", ylabel="density", ylim=(0, 0.85))
axes[0].legend(frameon=False, fontsize=8, loc="upper left")
maps = {
    "spread of the encoding (student)": encoded.std(0).mean(0).cpu(),
    "spread of the test images": x.std(0).mean(0).cpu(),
}
for axis, (name, values) in zip(axes[1:], maps.items(), strict=True):
    shades = axis.imshow(values, cmap="cividis", vmin=0)
    fig.colorbar(shades, ax=axis)
    axis.set_title(name, fontsize=9)
    axis.set_axis_off()
plotting.show(
    fig,
    alt="Left: histogram of all values of the encodings beside the normal density: higher and more pointed in the middle. Right: the standard "
    "deviation of each pixel's encoding, and of the pixel itself in the test images. Both are small in the same places: the columns at the left "
    "and right edge.",
)

# %% [markdown]
# Not quite. The mean is right, and the correlations are only a little larger than those of independent draws. In the middle of the image the spread
# is close to 1. But the histogram is too pointed, since the columns on the left and right have a spread of only 0.3 to 0.6. The map beside it shows
# why: those pixels are black in nearly every digit. To turn a single value into a whole bell curve the flow would have to be infinitely steep at
# $t = 0$, and no network and no finite step is. It is the price of data without noise in it, and it costs little here: a decoder puts black where it
# belongs from any noise.

# %% [markdown]
# ### Exercise 2: between two encodings *(fill in, 8 minutes)*
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
# **The left column, set apart, is the original. Does the same hand seem to have written the others?**

# %%
rows = torch.stack([(test_labels == k).nonzero()[0, 0] for k in range(0, 10, 2)])
chosen = test[rows].to(device)  # an image of every other class
source = test_labels[rows].to(device).repeat_interleave(10)
target = torch.arange(10, device=device).repeat(5)
sheets = {}
gap = torch.ones_like(chosen)[:, None]  # a white place
for w in (0.0, 3.0):
    sheets[f"w = {w:g}"] = {}
    for name, up, down, n in (
        ("teacher, 128 NFE", teacher, teacher, 32),
        (f"students, {2 * few} NFE", encoders[few], decoders[few], few),
        (f"students, {2 * fewest} NFE", encoders[fewest], decoders[fewest], fewest),
    ):
        told = cd.translate(up, down, chosen.repeat_interleave(10, 0), source, target, n, w=w)
        sheet = torch.cat([chosen[:, None], gap, told.unflatten(0, (5, 10))], 1)
        sheets[f"w = {w:g}"][name] = sheet.flatten(0, 1).cpu()
fig = plotting.sample_grid(sheets, 12)
fig.set_size_inches(10, 7.2)
plotting.show(
    fig,
    alt="For w = 0 and 3: five test images (0, 2, 4, 6, 8) in the left column, set apart, each followed by itself retold as the classes 0 to 9, by "
    "the teacher and by students of four and one steps. Most of the digits can be read, some 8 and 9 at w = 0 hardly; teacher and students draw nearly the same ones.",
)

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


def kept(before, after, classes):
    """Correlation within the target classes, so that the class itself explains nothing."""
    parts = []
    for value in (before, after):
        means = torch.stack([value[classes == k].mean() for k in range(10)])
        parts.append(value - means[classes])
    return torch.corrcoef(torch.stack(parts))[0, 1].item()


judge = stages.make_judge(recipe, data, out)
generator = torch.Generator().manual_seed(seed)
shift = torch.randint(1, 10, (len(x),), generator=generator).to(device)
target = (labels + shift) % data.num_classes
other = torch.randperm(len(x), generator=generator).to(device)
print(f"{len(x)} test images, each as another class (seed {seed}); class by {judge.name}")
print("                   w   NFE  read as target   ink kept   slant kept")
cases = [("teacher", teacher, teacher, 32, 4)]
cases += [("students", encoders[n], decoders[n], n, 2) for n in shown if n < 16]
for name, up, down, n, cost in cases:
    for w in (0.0, 1.0, 3.0):
        told = cd.translate(up, down, x, labels, target, n, w=w)
        classes = judge.classifier.logits(told.clamp(-1, 1).to(judge.device)).argmax(1)
        right = (classes == target.to(classes.device)).float().mean().item()
        ink, slant = (
            kept(a, b, target) for a, b in zip(ink_and_slant(x), ink_and_slant(told), strict=True)
        )
        print(f"{name:10s} {n:3d}   {w:3g} {cost * n:5d} {right:15.3f} {ink:10.2f} {slant:12.2f}")
chance = [
    kept(a[other], b, target) for a, b in zip(ink_and_slant(x), ink_and_slant(told), strict=True)
]
print(f"of another image {'':25s} {chance[0]:14.2f} {chance[1]:12.2f}")

# %% [markdown]
# The class changes in 98 % of the cases or more, and the amount of ink goes along with the image: a correlation of 0.8 to 0.9 where chance gives 0.
# The slant does so only in part, 0.24 to 0.40. As in the plane, a part of what the label leaves open is kept, not all of it. (One reason may be that
# a slanted 0 and a slanted 7 have their ink in different pixels, while a bold digit of any class has more of it everywhere.) Guidance makes the class
# a little surer (from 98 % to 100 %) and keeps a little less of the hand: the more typical a digit of its class, the less room there is for anything
# else. And students with one step up and one down change and keep about as much as the teacher does with 128 evaluations.
#
# ## 9. Guidance on the way up
#
# So far the encoder had $w = 0$, and only the decoder was guided. It would seem natural to encode with the same $w$.

# %% [markdown]
# ### Exercise 3: guide the encoder? *(predict before the figure, 3 minutes)*
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
sweep = (0.0, 0.5, 1.0, 2.0, 3.0, 4.0)
curves = {"teacher, 32 + 32": [], f"students, {few} + {few}": []}
spread = {name: [] for name in curves}
for w in sweep:
    for name, up, down, n in (
        ("teacher, 32 + 32", teacher, teacher, 32),
        (f"students, {few} + {few}", encoders[few], decoders[few], few),
    ):
        z, back = there_and_back(up, down, n, w)
        curves[name].append(distance(back, x))
        spread[name].append(z.std().item())
fig, axes = plotting.figure(1, 2, width=7.5, height=2.8)
for axis, values, title in (
    (axes[0], curves, "image error (rms)"),
    (axes[1], spread, "spread of the encoding"),
):
    for (name, ys), color, marker in zip(values.items(), plotting.COLORS, "o^", strict=False):
        axis.plot(sweep, ys, marker=marker, color=color, label=name)
    axis.set(xlabel="w, up and down", title=title, ylim=(0, None))
axes[1].axhline(1, color="black", linewidth=0.8)
axes[0].legend(frameon=False, fontsize=8)
plotting.show(
    fig,
    alt="Left: the reconstruction error grows with the guidance weight used in both directions, for teacher and students. "
    "Right: so does the spread of the encodings, far beyond 1.",
)

pixel = {w: cd.last(cd.ddim_encode(teacher, x, 32, labels, w)).std(0) for w in (0.0, 1.0)}
for w, own in pixel.items():
    low, high = own.flatten().quantile(torch.tensor([0.1, 0.9]).to(own)).tolist()
    print(
        f"teacher, w = {w:g}: a tenth of the values vary by less than {low:.2f}, a tenth by more than {high:.2f}"
    )

# %% [markdown]
# At $w = 1$ the spread of all values together is just 1. That is a coincidence and no reason to encode with $w = 1$: as the last lines show, some
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
for wrong in (
    lambda: cd.ddim_encode(decoders[few], x, few, labels, 0.0),
    lambda: cd.ddim_encode(encoders[few], x, 8, labels, 0.0),
):
    try:
        wrong()
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
facts = checkpoints.provenance(
    notebook="06_encoders_and_style_transfer",
    recipe=recipe.name,
    seed=seed,
    data=data.hash[:16],
    split=data.split,
)
for key, value in facts.items():
    print(f"{key}: {value}")
