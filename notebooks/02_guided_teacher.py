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
# # 02 · A classifier-free-guided teacher
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/02_guided_teacher.ipynb)
#
# We train the model that everything else in this course starts from: a diffusion model of real
# images that takes a class label, and whose samples can be pushed towards that class with a guidance
# weight $w$. At the end we know what it can do, and what it costs. The cost is the problem that the
# next two notebooks solve.
#
# **You will**
#
# - train one network to denoise both *with* and *without* a label,
# - write a sampler in a few lines, and guide it,
# - see what the guidance weight buys, and what it takes away,
# - measure quality against the number of network evaluations, and see why skipping steps is no way out.
#
# **You need** notebook 01 ($z_t$, $v$, the DDIM step as a rotation). Training a U-Net should hold no
# terrors for you.
#
# | profile | hardware | time, if all is trained here |
# | --- | --- | --- |
# | `smoke` | any CPU | under a minute, and the samples show it |
# | `laptop` | two CPU cores | about three minutes on digits |
# | `colab` | one free T4 | `dataset = "cifar10"`: most of a session, resumable |
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

from cfgdistill import (
    CosineSchedule,
    Denoiser,
    GuidedDenoiser,
    ddim,
    ddim_step,
    diffusion_loss,
    get_recipe,
    guide,
    last,
)
from cfgdistill.checkpoints import provenance, read_card
from cfgdistill.data import load_data
from cfgdistill.guidance import drop_condition
from cfgdistill.metrics import generate
from cfgdistill.plotting import COLORS, draw_images, figure, sample_grid, show
from cfgdistill.pretrained import use_pretrained
from cfgdistill.schedules import expand
from cfgdistill.stages import evaluate_rows, home, make_judge, train_teacher

# %% tags=["parameters"]
dataset = os.environ.get("CFGDISTILL_DATASET", "digits")
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
retrain = bool(os.environ.get("CFGDISTILL_RETRAIN"))  # or use the models of the package
seed = 0

# %% [markdown]
# ## The data
#
# One name loads a data set: images in $[-1, 1]$, labels, class names. The default is scikit-learn's
# 1,797 handwritten digits, 8 by 8 pixels. They are small, but they are real, and they are on your disk
# already. A *recipe* holds every number of the run. There is one for each data set and profile.
#
# Finished models of this recipe come with the package. `use_pretrained` checks and copies them, so what is called training here and in
# the next notebooks is already done, at every profile. To train for real, set `retrain = True` in the cell above.

# %%
recipe = get_recipe(dataset, profile, seed=seed)
if not retrain:
    recipe = use_pretrained(recipe, out)
print(recipe)
data = load_data(dataset, "train", recipe.images)
images, labels = data.all()
null = data.num_classes  # one label more than there are classes: "no label"

# %% [markdown]
# **What does each class look like?** Ten training images of every class, one class per row.

# %%
rows = torch.cat([images[labels == k][:10] for k in range(data.num_classes)])
fig, axis = figure(width=3.6, height=3.6)
draw_images(axis, rows, columns=10)
show(fig, alt=f"Ten rows of ten real training images of {dataset}, one row per class.")

# %% [markdown]
# ## One network, two denoisers
#
# Guidance needs two opinions about a noisy image $z_t$: what is under the noise *given the label $c$*,
# and what is under it *when nobody tells*. Two networks would do. The trick of Ho & Salimans is to train
# one network for both: in a tenth of the examples the label is replaced by a **null label**
# $\varnothing$, and the network learns that $\varnothing$ means "any class".
#
# Everything else is ordinary denoising. Draw a time $t$ and noise $\epsilon$, mix
# $z_t = \alpha_t x + \sigma_t \epsilon$, and ask for the velocity $v = \alpha_t \epsilon - \sigma_t x$.
# Here is the whole loss:


# %%
def loss_from_scratch(denoiser, x, cond, t, eps, u):
    cond = torch.where(u < recipe.drop, torch.full_like(cond, null), cond)
    alpha, sigma = (expand(a, x) for a in denoiser.schedule.alpha_sigma(t))
    z = alpha * x + sigma * eps
    v = alpha * eps - sigma * x
    return (denoiser(z, t, cond).v - v).square().flatten(1).mean(1)


# %% [markdown]
# The package's version must agree, on any network. We try both on one that is not trained at all.

# %%
# NBVAL_CHECK_OUTPUT
generator = torch.Generator().manual_seed(1)
x, cond = images[:16], labels[:16]
t, u = torch.rand(16, generator=generator), torch.rand(16, generator=generator)
eps = torch.randn(x.shape, generator=generator)


def pseudo_network(z, t, cond, w):
    return torch.sin(3 * z) * expand(t + 0.1 * cond, z)


pseudo = Denoiser(pseudo_network, CosineSchedule())
ours = diffusion_loss(pseudo, x, drop_condition(cond, null, recipe.drop, u), t, eps=eps)
torch.testing.assert_close(loss_from_scratch(pseudo, x, cond, t, eps, u), ours)
print("the loss from scratch is the package's")

# %% [markdown]
# ## Training
#
# The network is `diffusers`' `UNet2DConditionModel`, with an embedding for the ten labels and the null
# label. `train_teacher` builds it and runs AdamW on the loss above. It looks first whether a finished
# model of this very recipe is in the folder `out`, and if a run was cut short there, it goes on where
# that run stopped.

# %%
teacher = train_teacher(recipe, data, out)
card = read_card(home(recipe, out) / "teacher")
size = sum(p.numel() for p in teacher.parameters())
print(f"{size:,} parameters, {card['about']['updates']} updates, {card['minutes']} minutes")

# %% [markdown]
# **Has it learned?** The loss never reaches zero: $z_t$ does not determine $v$, and the best possible
# denoiser still has to answer with an average. What counts is that the curve has flattened.

# %%
losses = torch.tensor(card["losses"])
window = max(1, len(losses) // 40)
smooth = losses[: len(losses) // window * window].reshape(-1, window).mean(1)
fig, axis = figure(height=2.6)
axis.plot(range(1, len(losses) + 1), losses, color=COLORS[5], alpha=0.4, label="each update")
axis.plot(torch.arange(1, len(smooth) + 1) * window, smooth, color=COLORS[0], label="mean")
axis.set(xlabel="update", ylabel="loss ($v$ error)", yscale="log")
axis.legend(frameon=False)
show(fig, alt="The training loss falls steeply at first, then slowly, and ends almost flat.")

# %% [markdown]
# ## Two opinions, and what lies beyond them
#
# Take one noisy image and ask the network twice, once with a label and once with $\varnothing$. Guidance
# goes from the second answer to the first, **and then on in the same direction**:
#
# $$ \tilde v = (1 + w)\, v_\theta(z_t, c) - w\, v_\theta(z_t, \varnothing). $$
#
# $w = 0$ is the plain conditional answer. Nothing in the training makes $w > 0$ a denoiser of anything;
# it is an extrapolation that happens to look good. Two conventions live side by side in the field, and
# mixing them up is the most common bug of all: `diffusers` writes the same thing with
# `guidance_scale` $= 1 + w$. One number, worked by hand, pins ours down.

# %%
# NBVAL_CHECK_OUTPUT
print("w = 3 from answers 2 and 1:", guide(2, 1, w=3))
print("w = 0 is the conditional answer:", guide(2, 1, w=0))

# %% [markdown]
# **What does the network see under the noise?** We noise test images to $t = 0.75$ and look at
# the $x$-prediction without label, with it, and guided.

# %%
guided = GuidedDenoiser(teacher, null)
test_images, test_labels = load_data(dataset, "test", recipe.images).all()
first = torch.stack([(test_labels == k).nonzero()[0, 0] for k in range(data.num_classes)])
x, cond = test_images[first], test_labels[first]
z = teacher.schedule.add_noise(
    x, torch.randn(x.shape, generator=generator), torch.full((10,), 0.75)
)
with torch.no_grad():
    lines = {
        "clean image $x$": x,
        "noisy image $z_t$": z,
        "no label": teacher(z, 0.75, torch.full_like(cond, null)).x,
        "label, w = 0": teacher(z, 0.75, cond).x,
        "guided, w = 3": guided(z, 0.75, cond, 3.0).x,
    }
fig, axes = figure(len(lines), 1, width=5.5, height=3.6)
for axis, (title, line) in zip(axes, lines.items(), strict=True):
    draw_images(axis, line, columns=10)
    axis.text(-0.02, 0.5, title, transform=axis.transAxes, ha="right", va="center")
show(
    fig,
    alt="Five rows of ten images: clean, noisy, and three denoised versions. Without a label the "
    "network's guess is blurred; with the label it is clearer; guided with w = 3 it has the strongest "
    "contrast.",
)

# %% [markdown]
# Without a label the network hedges between classes. The label removes some of the doubt, and guidance
# acts as if there were even less: stronger contrast, fewer greys.
#
# ## Sampling
#
# Notebook 01 showed that a DDIM step rotates $z_t$ towards the data by a small angle, with the network's
# $v$ as the direction. A sampler is nothing but that, repeated from $t = 1$ to $t = 0$:


# %%
@torch.no_grad()
def sample_from_scratch(denoiser, z, steps, cond, w):
    for i in range(steps, 0, -1):
        t, s = i / steps, (i - 1) / steps
        pred = denoiser(z, t, cond, w)
        z = ddim_step(pred, torch.full((len(z),), s), denoiser.schedule)
    return z


# %%
# NBVAL_CHECK_OUTPUT
noise = torch.randn(10, *data.shape, generator=generator)
guided.nfe = 0
z = last(ddim(guided, noise, 8, torch.arange(10), w=1.0))
print("network evaluations for 8 guided steps:", guided.nfe)
torch.testing.assert_close(sample_from_scratch(guided, noise, 8, torch.arange(10), 1.0), z)
print("the sampler from scratch is the package's")

# %% [markdown]
# Count the cost: **two evaluations a step**, because every step asks twice. The course counts *network
# evaluations per sample* (NFE) next to every result. (At $w = 0$ the second answer is multiplied by zero.
# A sampler that knows this could skip it; we count the pair all the same, so that a column of a table
# means one thing.)
#
# **What does $w$ do to samples?** The same noise, the same labels, three weights.

# %%
columns = 10
wanted = torch.arange(3 * columns) % 10
pictures = {
    f"w = {w:g}": {
        "teacher, 64 steps": generate(guided, data.shape, wanted, steps=64, w=w, seed=seed)
    }
    for w in (0.0, 1.0, 3.0)
}
fig = sample_grid(pictures, columns)
show(
    fig,
    alt="Three grids of samples from the same noise for w = 0, 1 and 3. With growing w the digits become "
    "cleaner and more alike.",
)

# %% [markdown]
# Column by column it is the same class, and place by place the same noise. As $w$ grows, doubtful shapes
# become clear ones. But look down a column at $w = 3$: the three samples of a class resemble each other
# more than at $w = 0$. Guidance trades **diversity for fidelity**.
#
# ## Measuring
#
# Two numbers say this without squinting. Both use a small classifier that we train on the side (the
# *feature net*):
#
# - **class accuracy**: the share of samples in which the classifier finds the class that was asked for;
# - **Frechet distance**: fit a Gaussian to the classifier's 64 features of the samples, another to those
#   of the training images, and measure how far apart the Gaussians are,
#   $\lVert \mu_1 - \mu_2 \rVert^2 + \operatorname{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})$.
#   It notices missing diversity as well as ugly samples.
#
# With the Inception network as feature net this is the famous FID. Ours is another network, so the
# values must not be compared with published FIDs, only with each other. They also depend on the number
# of samples. And no model has to reach zero: even real images that the model has never seen are at some
# distance from the training images. That distance is the *floor* to compare with.

# %%
judge = make_judge(recipe, data, out)
real = judge(test_images, test_labels)
print(f"feature net: {judge.name}; reference: {judge.reference}; samples: {recipe.samples}")
print(
    f"real test images ({len(test_labels)}): distance {real['frechet_distance']:.2f}, "
    f"accuracy {real['class_accuracy']:.3f}"
)

# %% [markdown]
# **How many steps does the teacher need?** We halve and halve again.

# %%
weights = (0.0, 1.0, 3.0)
rows = evaluate_rows(
    guided, judge, data, recipe, out, model="teacher", steps=(128, 32, 8, 4, 2, 1), weights=weights
)
print("steps  NFE | distance at w = 0, 1, 3    | accuracy at w = 0, 1, 3")
for steps in (128, 32, 8, 4, 2, 1):
    own = [row for row in rows if row["steps"] == steps]
    distances = " ".join(f"{row['frechet_distance']:8.2f}" for row in own)
    accuracies = " ".join(f"{row['class_accuracy']:6.3f}" for row in own)
    print(f"{steps:5d} {own[0]['nfe']:4d} | {distances} | {accuracies}")

# %%
fig, axes = figure(1, 2, width=8, height=3)
for w, color, marker in zip(weights, COLORS, "os^", strict=False):
    own = [row for row in rows if row["w"] == w]
    for axis, key in zip(axes, ("frechet_distance", "class_accuracy"), strict=True):
        nfe, value = zip(*((row["nfe"], row[key]) for row in own), strict=True)
        axis.plot(nfe, value, marker=marker, color=color, label=f"w = {w:g}")
axes[0].set(xscale="log", yscale="log", xlabel="NFE", ylabel="Frechet distance")
axes[1].set(xscale="log", xlabel="NFE", ylabel="class accuracy", ylim=(None, 1.01))
axes[1].set_ylim(bottom=min(0.9, axes[1].get_ylim()[0]))
axes[0].legend(frameon=False)
show(
    fig,
    alt="Left: Frechet distance of the teacher's samples falls as the network evaluations grow from 2 "
    "to 256, for three guidance weights. Right: class accuracy, which at the laptop profile is close to 1 "
    "everywhere.",
)

# %% [markdown]
# Read the left panel from right to left. Down to some tens of evaluations almost nothing is lost; below
# that the distance shoots up. At one step the sampler can only answer with an average image, and guidance
# makes a caricature of it. At the right edge, read from bottom to top: the distance *grows* with $w$, since
# guided samples are less diverse than the data.
#
# The right panel is a warning. The classifier recognises nearly everything, the grey blurs of a single step
# included: a blurred average 3 is still most like a 3. On data as easy as the digits (at the `laptop`
# profile), accuracy alone would tell you that one step is enough. **One number is no evaluation.**
#
# So the teacher is good, and dear. Two evaluations a step can be made one (notebook 03). Many steps can
# be made few (notebook 04).
#
# ## Exercises
#
# 1. Sample with the null label as the label, `torch.full_like(wanted, null)`. What do you get, and what
#    does $w$ do now? (Hint: what are the two opinions?)
# 2. Use $w = -0.5$. The package refuses; call `sample_from_scratch` with your own guided function instead.
#    Which way does guidance push now?
# 3. Find the $w$ that has the lowest Frechet distance at 32 steps. Is it 0? (Hint: try 0.1, 0.2, 0.5.)
# 4. Apply guidance only while $t > 0.3$. How many evaluations does that save, and does anyone notice?
#
# **Next:** [03 · Stage one: guidance matching](03_stage_one.ipynb) puts the two evaluations into one.

# %%
facts = provenance(
    notebook="02_guided_teacher",
    recipe=recipe.name,
    seed=seed,
    data=data.hash[:16],
    split=data.split,
)
for key, value in facts.items():
    print(f"{key}: {value}")
