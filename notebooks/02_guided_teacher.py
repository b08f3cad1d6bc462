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
# **You need** [notebook 01](01_schedules_and_parameterizations.ipynb) ($z_t$, $v$, the DDIM step as a rotation), and to
# have trained a small network before.
#
# | profile | hardware | time to run, if all is trained here |
# | --- | --- | --- |
# | `smoke` | any CPU | under a minute, and the samples show it |
# | `laptop` (the default) | two CPU cores | about three minutes on digits, two hours on CIFAR-10 |
# | `colab` | one free T4 | CIFAR-10: most of a session, resumable |
# | `paper` | a large GPU | the published budget |
#
# Unless you ask for training, finished models are loaded, and the notebook runs in about five minutes on CIFAR-10, in one on digits. Allow about 25 minutes to read it, and 15 for the exercises;
# without what is *further*, 30 in all.
#
# **For a first run** set `dataset = "digits"` and `retrain = True` in the cell of parameters: then all that is called training here and in the
# next two notebooks happens before your eyes, in minutes. CIFAR-10, with the models of the package, is for looking: its pictures show what the text speaks of.
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=02`.
#
# **Sources.** [Ho & Salimans](https://arxiv.org/abs/2207.12598) for guidance, [DDIM](https://arxiv.org/abs/2010.02502) for the
# sampler, [Heusel et al.](https://arxiv.org/abs/1706.08500) for the Fréchet distance of features.

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
# ## 1. The data
#
# One name loads a data set: images in $[-1, 1]$, labels, class names. Where CIFAR-10 is on your disk, the walk is on its 50,000
# photographs of 32 by 32 pixels. Else it is on scikit-learn's 1,797 handwritten digits, 8 by 8: small, but real, and on your disk
# already. The cell says which. The text is true of both, or says which of them it speaks of.
#
# A *recipe* holds every number of the run. There is one for each data set and profile.
# Finished models of this recipe come with the package. `use_pretrained` checks and copies them, so what is called training here and in
# the next notebooks is already done, at every profile, unless `retrain` is set in the cell above.

# %%
recipe = cd.get_recipe(dataset, profile, seed=seed)
if not retrain:
    recipe = cd.use_pretrained(recipe, out)
print(walk.why(dataset))
print(
    f"{recipe.name}: U-Net with {recipe.channels} channels, batch {recipe.batch}, seed {recipe.seed}"
)
data = cd.load_data(dataset, "train", recipe.images)
images, labels = data.all()
null = data.num_classes  # one label more than there are classes: "no label"

# %% [markdown]
# **What does each class look like?** Four training images of every class, one class in a column.

# %%
columns = torch.stack([images[labels == k][:4] for k in range(data.num_classes)])
fig = plotting.image_rows({", ".join(data.class_names): columns.transpose(0, 1).flatten(0, 1)})
plotting.show(
    fig,
    alt=f"Four real training images of {dataset} for each of the ten classes, one column per class.",
)

# %% [markdown]
# ## 2. One network, two denoisers
#
# Guidance needs two opinions about a noisy image $z_t$: what is under the noise *given the label $c$*,
# and what is under it *when nobody tells it* the label. Two networks would do. The trick of
# [Ho & Salimans](https://arxiv.org/abs/2207.12598) is to train
# one network for both: in a tenth of the examples the label is replaced by a **null label**
# $\varnothing$, and the network learns that $\varnothing$ means "any class".

# %% [markdown]
# ### Exercise 1: lose the label *(fill in a line, 4 minutes)*
#
# **Write the line that takes labels away.** `u` holds one uniform random number for each example.
#
# <details><summary>Hint</summary>
#
# `torch.where(condition, a, b)` takes from `a` where the condition holds, and from `b` elsewhere.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "drop_label", "locked": false, "schema_version": 3, "solution": true, "task": false}
def drop_label(cond, u, drop, null):
    """cond [b], with null in place of the label where u [b] says so: with probability drop."""
    ### BEGIN SOLUTION
    return torch.where(u < drop, null, cond)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "drop_label-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.drop_label(drop_label))
### BEGIN HIDDEN TESTS
assert checks.drop_label(drop_label).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* `u > drop`, which drops nine tenths. The loss curve looks good, and the labels are hardly learnt: worth showing. 0 as the null label: the zeros then mean "any digit" as well.
#
# *To discuss:* why a tenth? What would a half cost, and a hundredth?
#
# </details>

# %% [markdown]
# Everything else is ordinary denoising. Draw a time $t$, uniformly, and noise $\varepsilon$, mix
# $z_t = \alpha_t x + \sigma_t \varepsilon$, and ask for the velocity $v = \alpha_t \varepsilon - \sigma_t x$.
# Here is the whole loss. (`drop_condition` is the package's answer to exercise 1.)


# %%
def loss_from_scratch(denoiser, x, cond, t, eps, u):
    cond = cd.drop_condition(cond, null, recipe.drop, u)
    alpha, sigma = (cd.expand(a, x) for a in denoiser.schedule.alpha_sigma(t))
    z = alpha * x + sigma * eps
    v = alpha * eps - sigma * x
    return (denoiser(z, t, cond).v - v).square().flatten(1).mean(1)


# %% [markdown]
# The package's version must agree, whatever the network is. So we compare the two on a stand-in: a function of
# $z_t$, $t$ and the label that has no weights at all.

# %%
# NBVAL_CHECK_OUTPUT
generator = torch.Generator().manual_seed(1)
x, cond = images[:16], labels[:16]
t, u = torch.rand(16, generator=generator), torch.rand(16, generator=generator)
eps = torch.randn(x.shape, generator=generator)


def pseudo_network(z, t, cond, w):
    return torch.sin(3 * z) * cd.expand(t + 0.1 * cond, z)


pseudo = cd.Denoiser(pseudo_network, cd.CosineSchedule())
ours = cd.diffusion_loss(pseudo, x, cd.drop_condition(cond, null, recipe.drop, u), t, eps=eps)
torch.testing.assert_close(loss_from_scratch(pseudo, x, cond, t, eps, u), ours)
print("the loss from scratch is the package's")

# %% [markdown]
# **Are a tenth of the labels gone?** In every batch about as many; over all of them, exactly that share of the time.

# %%
# NBVAL_CHECK_OUTPUT
u = torch.rand(100_000, generator=torch.Generator().manual_seed(seed))
told = cd.drop_condition(torch.zeros(100_000, dtype=torch.long), null, recipe.drop, u)
print(f"{(told == null).float().mean().item():.2f} of the labels are the null label, {null}")
print(f"in the first batch of 64: {(told[:64] == null).sum().item()}")

# %% [markdown]
# ## 3. Training
#
# The network is `diffusers`' `UNet2DConditionModel`, with an embedding for the ten labels and the null
# label. `train_teacher` first checks whether a finished model of this recipe is in the folder `out`. It is, if
# you use the models of the package, and then the next cell only loads it. Otherwise it builds the network and runs
# AdamW on the loss above; a run that was cut short continues where it stopped. What is kept is not the last weights but a
# running average of them (`ema` in the recipe), which is less noisy.

# %%
teacher = stages.train_teacher(recipe, data, out)
card = checkpoints.read_card(stages.home(recipe, out) / "teacher")
size = sum(p.numel() for p in teacher.parameters())
print(
    f"{size:,} parameters; trained with {card['about']['updates']} updates, {card['minutes']} minutes"
)

# %% [markdown]
# **Has it learned?** The loss never reaches zero: $z_t$ does not determine $v$, and the best possible
# denoiser still has to answer with an average. What counts is that the curve has flattened.

# %%
losses, each = torch.tensor(card["losses"]), card.get("updates_per_loss", 1)
window = max(1, len(losses) // 40)
smooth = losses[: len(losses) // window * window].reshape(-1, window).mean(1)
fig, axis = plotting.figure(height=2.6)
label = "each update" if each == 1 else f"mean of {each} updates"  # of a long run
axis.plot(
    torch.arange(1, len(losses) + 1) * each,
    losses,
    color=plotting.COLORS[5],
    alpha=0.4,
    label=label,
)
axis.plot(
    torch.arange(1, len(smooth) + 1) * window * each, smooth, color=plotting.COLORS[0], label="mean"
)
axis.set(xlabel="update", ylabel="loss ($v$ error)", yscale="log")
axis.legend(frameon=False)
plotting.show(
    fig, alt="The training loss falls steeply at first, then slowly, and ends almost flat."
)

# %% [markdown]
# **What does learning look like?** Here is one that learns now, on digits, whatever data set the notebook walks on: the teacher of the `laptop` recipe in its
# first 400 updates. `train` is a generator, so we can stop to draw samples whenever we like.

# %%
small, digits = cd.get_recipe("digits", "laptop"), cd.load_data("digits")
learner, stops = (
    stages.new_teacher(small, digits),
    (10, 40, 150, 400) if profile != "smoke" else (1, 2),
)
learning = cd.Optim(stops[-1], small.batch, small.rate)
seen = {}
for update in cd.train(
    learner, stages.loss_of_teacher(small, digits), digits, learning, cd.Run(seed=seed)
):
    if update.number in stops:
        x = cd.generate(learner, digits.shape, torch.arange(10), steps=16, w=None, seed=seed)
        seen[f"after {update.number} updates, loss {update.loss:.2f}"] = x
plotting.show(
    plotting.image_rows(seen),
    alt="Ten samples, one of each digit, after a few, some tens, 150 and 400 updates, from the same noise: first noise with a bright band in "
    "it, then grey blots, then strokes, and in the end most of the digits can be read.",
)

# %% [markdown]
# ## 4. Two opinions, and what lies beyond them
#
# Take one noisy image and ask the network twice, once with a label and once with $\varnothing$. Guidance
# goes from the second answer to the first, **and then on in the same direction**:
#
# $$ v_w(z_t, c) = (1 + w)\, v_\theta(z_t, c) - w\, v_\theta(z_t, \varnothing). $$
#
# $w = 0$ is the plain conditional answer. Why should the difference of the two be a good direction? By Bayes' rule it is,
# up to a factor, the gradient of $\log p(c \mid z_t)$: the direction in which a classifier of noisy images would become
# more certain of $c$. [Classifier guidance](https://arxiv.org/abs/2105.05233) trains such a classifier; here it is implicit in
# the two answers, hence classifier-*free*. Still, nothing in the training makes $w > 0$ a denoiser of anything;
# it is an extrapolation that happens to look good. Two conventions live side by side in the field, and
# mixing them up is the most common bug of all: `diffusers` writes the same thing with
# `guidance_scale` $= 1 + w$. One number, worked by hand, pins ours down.

# %%
# NBVAL_CHECK_OUTPUT
print("w = 3 from answers 2 and 1:", cd.guide(2, 1, w=3))
print("w = 0 is the conditional answer:", cd.guide(2, 1, w=0))
print("w = -1 is the answer without a label:", cd.guide(2, 1, w=-1))

# %% [markdown]
# ### Exercise 2: nothing for a label *(predict, 3 minutes)*
#
# Suppose we sample with the null label *as* the label. **What does $w$ do then?**
#
# - (a) It makes the samples clearer, as always.
# - (b) Nothing: samples at all $w$ are the same.
# - (c) It pushes them away from all images.
# - (d) It cannot be done.
#
# <details><summary>Hint</summary>
#
# What are the two answers now?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "null_as_label", "locked": false, "schema_version": 3, "solution": true, "task": false}
null_as_label = None
### BEGIN SOLUTION
null_as_label = "b"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "null_as_label-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.null_as_label(null_as_label))
### BEGIN HIDDEN TESTS
assert checks.null_as_label(null_as_label).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["solution"]
# <details><summary>Why</summary>
#
# Both answers are $v_\theta(z_t, \varnothing)$, and $(1 + w)\, v - w\, v = v$. One gets images of all classes, unguided at every $w$. So there is no guidance without a condition: what is exaggerated is the
# *difference* that the condition makes.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* (a), for whoever takes $w$ for a knob of contrast; (c), who remembers "away from the null answer".
#
# *To discuss:* a text-to-image model is given an empty prompt at `guidance_scale` 7.5. What comes out?
#
# </details>

# %% [markdown]
# **What does the network see under the noise?** We noise test images to $t = 0.75$ and look at
# the $x$-prediction without label, with it, and guided.

# %%
guided = cd.GuidedDenoiser(teacher, null)
test_images, test_labels = cd.load_data(dataset, "test", recipe.images).all()
first = torch.stack([(test_labels == k).nonzero()[0, 0] for k in range(data.num_classes)])
x, cond = test_images[first].to(teacher.device), test_labels[first].to(teacher.device)
eps = torch.randn(x.shape, generator=generator).to(teacher.device)
z = teacher.schedule.add_noise(x, eps, cd.per_example(0.75, x))
with torch.no_grad():
    lines = {
        "clean image $x$": x,
        "noisy image $z_t$": z,
        "no label": teacher(z, 0.75, torch.full_like(cond, null)).x,
        "label, w = 0": teacher(z, 0.75, cond).x,
        "guided, w = 3": guided(z, 0.75, cond, 3.0).x,
    }
plotting.show(
    plotting.image_rows(lines),
    alt="Five rows of ten images: clean, noisy, and three denoised versions. Without a label the "
    "network's guess is blurred; with the label it is a little more of its class; guided with w = 3 it has the strongest "
    "contrast and colours.",
)

# %% [markdown]
# Without a label the network hedges between classes. The label removes some of the doubt, and guidance
# acts as if there were even less: stronger contrast, and on CIFAR-10 the colours of the class, which need not be those of the image.
#
# **Now you.** Move $t$ and $w$. At $w = -1$ the guided answer is the one without a label, at $w = 0$ the one with it, and beyond
# that it goes on in the same direction. For which $t$ is there nothing left to guide, and why?


# %%
@torch.no_grad()
def draw(image, t, w, x=x, cond=cond, eps=eps):  # these of now: below, the names mean others
    k = [data.class_names.index(image)]
    z, label = teacher.schedule.add_noise(x, eps, cd.per_example(t, x))[k], cond[k]
    told, pushed = teacher(z, t, label).x, guided(z, t, label, w).x
    shown = {
        f"$z_t$, t = {t:g}": z,
        "no label": teacher(z, t, torch.full_like(label, null)).x,
        "label": told,
        f"guided, w = {w:g}": pushed,
        "distance of the last two": 2 * (pushed - told).abs() - 1,
    }
    return plotting.image_panels(shown)


widgets.explore(
    draw,
    alt="Five pictures side by side: an image under much noise, what the network takes to be under it without a label, with the label, "
    "and guided with w = 3, and how far the last two are apart. The guided one has the most contrast.",
    image=list(data.class_names),
    t=(0.75, 0.05, 1.0, 0.05),
    w=(3.0, -1.0, 6.0, 0.5),
)

# %% [markdown]
# ## 5. Sampling
#
# Notebook 01 showed that a DDIM step rotates $z_t$ towards the data by a small angle, with the network's
# $v$ as the direction. A sampler is nothing but that, repeated from $t = 1$ to $t = 0$:


# %%
@torch.no_grad()
def sample_from_scratch(denoiser, z, steps, cond, w):
    for i in range(steps, 0, -1):
        t, s = i / steps, (i - 1) / steps
        pred = denoiser(z, t, cond, w)
        z = cd.ddim_step(pred, cd.per_example(s, z), denoiser.schedule)
    return z


# %%
# NBVAL_CHECK_OUTPUT
noise = torch.randn(10, *data.shape, generator=generator).to(teacher.device)
wanted = torch.arange(10, device=teacher.device)
guided.nfe = 0
z = cd.last(cd.ddim(guided, noise, 8, wanted, w=1.0))
print("network evaluations for 8 guided steps:", guided.nfe)
torch.testing.assert_close(sample_from_scratch(guided, noise, 8, wanted, 1.0), z)
print("the sampler from scratch is the package's")

# %% [markdown]
# **What does the sampler see on its way?** Two samples, $w = 2$, in 20 steps: at every second of them $z_t$, and what the
# guided network takes to be under its noise.

# %%
film = {name: [[], []] for name in ("$z_t$", "the guess of $x$")}
z, cond = noise[:2], torch.tensor([3, 7], device=teacher.device)
with torch.no_grad():
    for i in range(20, 0, -1):
        pred = guided(z, i / 20, cond, 2.0)
        if i % 2 == 0:
            for k in range(2):
                film["$z_t$"][k].append(z[k])
                film["the guess of $x$"][k].append(pred.x[k])
        z = cd.ddim_step(pred, cd.per_example((i - 1) / 20, z), guided.schedule)
strip = {}
for k in range(2):
    for name, shown in film.items():
        strip[f"{name}, {data.class_names[cond[k]]}, t = 1, 0.9, ..., 0.1"] = torch.stack(shown[k])
plotting.show(
    plotting.image_rows(strip),
    alt="Two film strips of sampling, each with the noisy image above and the network's guess below. The first guess is "
    "a blurred average of the class; while the noise fades, outlines appear in the guess, then details.",
)

# %% [markdown]
# The coarse things are decided first, while the image itself is still buried, and details last. The first guess is much the same for every
# noise: the average of a class, and guidance has already moved it.
#
# Count the cost: **two evaluations a step**, because every step asks twice. The course counts *network
# evaluations per sample* (NFE) next to every result. (At $w = 0$ the second answer is multiplied by zero.
# A sampler that knows this could skip it; we count the pair all the same, so that a column of a table
# always means the same thing.)

# %% [markdown]
# ### Exercise 3: guidance for a part of the way *(further: count, 4 minutes)*
#
# Somebody guides only while $t > 0.3$, and asks once in the steps after that. A step is counted by the time at which it *begins*: 32 of them begin at $t = 32/32, 31/32, \dots, 1/32$. **How many network evaluations does
# a sample cost?**
#
# <details><summary>Hint</summary>
#
# How many of the $i/32$ are above 0.3? And what do the others cost?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "count_nfe", "locked": false, "schema_version": 3, "solution": true, "task": false}
count_nfe = None
### BEGIN SOLUTION
guided_steps = sum(i / 32 > 0.3 for i in range(1, 33))
count_nfe = 2 * guided_steps + (32 - guided_steps)
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "count_nfe-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.count_nfe(count_nfe))
### BEGIN HIDDEN TESTS
assert checks.count_nfe(count_nfe).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["solution"]
# <details><summary>Why</summary>
#
# 23 steps begin above $t = 0.3$ and ask twice, 9 ask once: $46 + 9 = 55$ instead of 64. (Guidance in an interval of times only is a rule of its own:
# [Kynkäänniemi et al.](https://arxiv.org/abs/2404.07724))
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* 45 ($0.7 \cdot 64$: the other steps are not free), 46, and 54 or 56 by counting one off at the edge.
#
# *To discuss:* at which times would you leave guidance out? What is there to guide when the noise is nearly gone, and when there is nothing but noise?
#
# </details>

# %% [markdown]
# **What does $w$ do to samples?** The same noise, the same labels, three weights: two samples of each class.

# %%
weights = (0.0, 1.0, 3.0)
wanted = torch.arange(100) % 10
samples = {w: cd.generate(guided, data.shape, wanted, steps=32, w=w, seed=seed) for w in weights}
plotting.show(
    plotting.image_rows({f"w = {w:g}": x[:20] for w, x in samples.items()}),
    alt="Twenty samples, two of each class, from the same noise for each of w = 0, 1 and 3. With growing w more of them can be told, their contrast is "
    "stronger and their surroundings plainer.",
)

# %% [markdown]
# Every column is one class, and the same place in each grid is the same noise. As $w$ grows, doubtful shapes become
# clear ones: what might be anything turns into something of its class, and backgrounds that had nothing to do with it calm down. What it costs cannot be seen in two samples of a
# class: the more a sample has to be typical, the more the samples are alike. Guidance trades **diversity for fidelity**, and both can be measured.
#
# ## 6. Measuring
#
# Three numbers say more than a handful of pictures. All use a small classifier that we train on the side (the
# *feature net*):
#
# - **class accuracy**: the share of samples in which the classifier finds the class that was asked for;
# - **Fréchet distance**: fit a Gaussian to the classifier's 64 features of the samples, another to those
#   of the training images, and measure how far apart the Gaussians are,
#   $\lVert \mu_1 - \mu_2 \rVert^2 + \operatorname{tr}(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1 \Sigma_2)^{1/2})$.
#   It notices missing diversity as well as ugly samples;
# - **recall**: the share of real images that lie where samples lie, in the space of those features. It asks for diversity alone
#   ([notebook 07](07_evaluation.ipynb) takes it apart).
#
# With the Inception network as feature net this is the famous
# [FID](https://arxiv.org/abs/1706.08500). Ours is another network, so the
# values must not be compared with published FIDs, only with each other. They also depend on the number
# of samples. **What distance do real images have?** We ask for the test images, and for as many training images, drawn
# at random three times.

# %%
judge = stages.make_judge(recipe, data, out)
n = min(recipe.samples, len(test_labels))  # a distance depends on it: notebook 07
real = judge(test_images[:n], test_labels[:n])
print(f"feature net: {judge.name}; reference: {judge.reference}")
print(
    f"{n} test images: distance {real['frechet_distance']:.2f}, "
    f"accuracy {real['class_accuracy']:.3f}"
)
for _ in range(3):
    drawn = torch.randperm(len(images), generator=generator)[:n]
    known = judge(images[drawn], labels[drawn])
    print(
        f"{len(drawn)} training images: distance {known['frechet_distance']:.2f}, "
        f"accuracy {known['class_accuracy']:.3f}"
    )

# %% [markdown]
# Training images are not at 0 from the training set: a few hundred images estimate a Gaussian in 64 dimensions badly, and being off is always a
# distance. Note also how much the three random subsets differ among themselves: **a difference of a few tenths between two rows of a table may be chance.**
#
# One might take the distance of the test images for a *floor*, below which no model can get. It is none. On digits they are at 6.4, far above
# training images, and above our teacher: the feature net was trained on the very images that are the reference, it knows all 1,438 of them by heart, and it
# spreads the features of images that are new to it a little differently. (Of CIFAR-10's 50,000 it has no room to learn any by heart, and test images are where training images are.)
#
# Then a small distance might mean that the teacher has learned training images by heart. **How near is the nearest
# training image?** (Median, as root mean square over pixels.)

# %%
train, d = images.flatten(1), images[0].numel() ** 0.5
for name, x, neighbours in (
    ("samples, w = 0", samples[0.0], 1),
    ("test images", test_images[:400], 1),
    ("training images", images[:400], 2),  # the nearest but themselves
):
    distances = torch.cdist(x.flatten(1), train).topk(neighbours, largest=False).values[:, -1] / d
    print(f"{name:16s}{distances.median():.3f}")

# %% [markdown]
# On digits a sample is no nearer to its nearest training image than a test image is, or than training images are to each other. On CIFAR-10 it is nearer by
# a tenth: samples are smoother than photographs, and a smooth image is nearer to everything. Neither is a copy's distance. The teacher has not copied anything.

# %% [markdown]
# ### Exercise 4: the best of the bad *(further: predict before the table, 4 minutes)*
#
# With many steps the distance is lowest at a small $w$ and far higher at 3, since guidance costs diversity. One *single* step gives one grey average for each class. **In which order are $w = 0$, 1 and 3 then, the best first?** (On
# the data set of this run, with the teacher of the package.)
#
# <details><summary>Hint</summary>
#
# There is no diversity left to lose. What else is wrong with an average of images, and what does guidance do to it?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "order_at_one_step", "locked": false, "schema_version": 3, "solution": true, "task": false}
order_at_one_step = None
### BEGIN SOLUTION
order_at_one_step = [1, 3, 0] if dataset == "digits" else [3, 1, 0]
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "order_at_one_step-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.order_at_one_step(order_at_one_step, dataset))
### BEGIN HIDDEN TESTS
assert checks.order_at_one_step(order_at_one_step, dataset).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["solution"]
# <details><summary>Why</summary>
#
# See the text below the figure: the average of a class has too little contrast, and guidance gives some of it back. On digits $w = 3$ gives too much; on CIFAR-10,
# whose averages are nearly grey, it does not.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* 0, 1, 3, the order of many steps; on digits 3, 1, 0, "the more contrast the better", which is right on CIFAR-10.
#
# *Model answer in words:* one answer for each class, moved $1 + w$ times as far from the average of all classes as the class is.
#
# </details>

# %% [markdown]
# **How many steps does the teacher need?** We halve and halve again.

# %%
steps_shown = (128, 32, 8, 4, 2, 1) if dataset == "digits" else (32, 8, 4, 2, 1)
rows = stages.evaluate_rows(
    guided, judge, data, recipe, out, model="teacher", steps=steps_shown, weights=weights
)
print(f"{recipe.samples} samples, {judge.name}, reference {judge.reference}, seed {seed}")
print("steps  NFE | distance, w = 0, 1, 3 | accuracy          | recall")
for steps in steps_shown:
    own = [row for row in rows if row["steps"] == steps]
    columns = [
        " ".join(f"{row[key]:{width}}" for row in own)
        for key, width in (
            ("frechet_distance", "6.2f"),
            ("class_accuracy", "5.3f"),
            ("recall", "5.2f"),
        )
    ]
    print(f"{steps:5d} {own[0]['nfe']:4d} | " + "  | ".join(columns))

# %%
fig, axis = plotting.figure(width=6.5, height=4)
for w, color, marker in zip(weights, plotting.COLORS, "os^", strict=False):
    own = [row for row in rows if row["w"] == w]
    nfe, value = zip(*((row["nfe"], row["frechet_distance"]) for row in own), strict=True)
    axis.plot(nfe, value, marker=marker, color=color, label=f"w = {w:g}")
axis.set(xscale="log", xlabel="network evaluations (NFE)", ylabel="Fréchet distance")
axis.set_xticks(nfe, nfe)
axis.minorticks_off()
plotting.log_y(axis)
axis.legend(frameon=False)
plotting.show(
    fig,
    alt="Fréchet distance of the teacher's samples against network evaluations, from 2 on, for three "
    "guidance weights. All fall with more evaluations. With many of them w = 3 is the highest; at 2 evaluations w = 0 is "
    "the highest of the three.",
)

# %% [markdown]
# Begin at the right edge of the figure, where steps are many. The distance at $w = 3$ is the largest: guided samples are
# less diverse than the data. Recall says it more plainly, it falls to less than half from $w = 0$ to 3. (A little guidance need not cost anything by this measure. On CIFAR-10, where many
# unguided samples look like nothing in particular, $w = 1$ is as good as 0; on digits, which are easy, 0 is best.)
#
# Then go left. Down to 64 evaluations almost nothing is lost on digits (0.73 becomes 0.75 at $w = 0$). At 16 the distance at $w = 0$ is about twice
# as large on either data set, and from there on it shoots up.
#
# At the left edge the curves have **crossed**: with one step, $w = 0$ is last by far. One step
# gives one answer per class, the average image, whatever the noise is. Guidance pushes this grey average away from
# the average of all classes, $1 + w$ times as far as it was. That gives back some of its contrast. On digits $w = 1$ is best, and $w = 3$
# makes a caricature; averages of photographs are so grey that even $w = 3$ helps. It does nothing for diversity, recall is next to 0, and no value of $w$ makes one step good.
#
# The accuracies are a warning. On CIFAR-10 samples at $w = 3$ are recognised *better* than real test images are, and on digits even the blurs of one
# step (1.000 against 0.986): a blurred average 3 is more like a 3 than many a real one. Accuracy alone would tell
# you that $w = 3$ is better than reality, or that one step is enough. **One number is no evaluation.**
#
# So the teacher is good, and expensive. Two evaluations a step can be made one
# ([notebook 03](03_stage_one.ipynb)). Many steps can be made few ([notebook 04](04_stage_two.ipynb)).
#
# ## Further questions
#
# 1. Use $w = -0.5$. The package's samplers refuse; `sample_from_scratch` does not check.
#    Which way does guidance push now?
# 2. Find the $w$ that has the lowest Fréchet distance at 32 steps. Is it 0? (Hint: try 0.1, 0.2, 0.5.)
# 3. Apply guidance only while $t > 0.3$, as in exercise 3. Does anyone notice?
#
# **Next:** [03 · Stage one: guidance matching](03_stage_one.ipynb) puts the two evaluations into one.

# %%
facts = checkpoints.provenance(
    notebook="02_guided_teacher",
    recipe=recipe.name,
    seed=seed,
    data=data.hash[:16],
    split=data.split,
)
for key, value in facts.items():
    print(f"{key}: {value}")
