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
# # 13 · Your own teacher: transformers and flow matching
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/13_your_own_teacher.ipynb)
#
# All teachers so far were U-Nets that say $v$ on the cosine schedule. The models that people have are often something else: diffusion
# *transformers*, trained by *flow matching*. **Nothing in the two stages knows what a network looks like inside.** Here a transformer of
# `diffusers` becomes a teacher in three lines and goes through both stages, and a network of flow matching turns out to be a $v$-teacher on
# another clock.
#
# **You will**
#
# - make a transformer (DiT, [Peebles and Xie 2023](https://arxiv.org/abs/2212.09748)) answer the one call of this course,
# - give it an input for $w$, though `diffusers` has no place for one,
# - distil it to 4, 2 and 1 steps, and measure the guidance that is delivered,
# - show that flow matching takes the same steps, after a change of scale.
#
# **You need** notebooks [03](03_stage_one.ipynb) and [04](04_stage_two.ipynb).
#
# | profile | hardware | time to run |
# | --- | --- | --- |
# | `smoke` | any CPU | seconds |
# | `laptop` (the default) | one CPU core | about two minutes |
#
# The data are the digits, for every profile. Allow 25 minutes to read it.

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
from diffusers import DiTTransformer2DModel, FlowMatchEulerDiscreteScheduler

import cfgdistill as cd
from cfgdistill.judge import plotting
from cfgdistill.training import checkpoints
from cfgdistill.training.randomness import seeded

# %% tags=["parameters"]
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
seed = 0

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 1. A transformer as a teacher
#
# A DiT cuts the image into patches and treats them as words. Our digits have 8 x 8 pixels; in patches of 2 x 2 they are 16 words. Time and
# label do not enter as words: they decide, in every block, how its layers are shifted, scaled and gated (*adaptive layer norm*).

# %%
small = profile == "smoke"
data = cd.load_data("digits", "train", 100 if small else None)
with seeded(seed):
    transformer = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=32,
        num_layers=3,
        in_channels=1,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=data.num_classes,
    )
network = cd.Denoiser(cd.DiT(transformer), cd.CosineSchedule(), num_classes=data.num_classes)
folder = f"{out}/own-teacher-{profile}"
optim = cd.Optim(updates=2 if small else 700, batch=64, rate=2e-3, ema=0.99)
run = cd.Run("teacher", seed=seed, folder=f"{folder}/teacher", device="cpu")
for _ in cd.train(network, cd.teacher_loss(data.null, drop=0.1), data, optim, run):
    pass
print(f"{sum(p.numel() for p in network.parameters()):,} parameters, {len(data)} digits")

# %% [markdown] slideshow={"slide_type": "slide"}
# **What does `DiT` add to the transformer?** Very little. `diffusers` counts 1024 time steps where we have $t$, and published DiTs say a variance
# beside the mean, in a second half of the channels, which no sampler of ours needs. And they drop labels themselves while they are trained. A
# student must not: it would match the teacher's answer to a label that it was not shown.


# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
def from_scratch(z, t, cond):
    said = transformer(z, timestep=1024 * t - 1, class_labels=cond).sample
    return said[:, : z.shape[1]]  # the mean, if there is a variance too


generator = torch.Generator().manual_seed(seed)
labels = torch.arange(10)
z = torch.randn(10, 1, 8, 8, generator=generator)
t = torch.rand(10, generator=generator)
with torch.no_grad():
    torch.testing.assert_close(from_scratch(z, t, labels), network(z, t, labels).v)
print("a DiT is asked with a label and a time, and says v")

# %% [markdown] slideshow={"slide_type": "slide"}
# **Does it draw digits?** Guided as ever: `GuidedDenoiser` asks it twice.

# %% slideshow={"slide_type": "fragment"}
teacher = cd.GuidedDenoiser(network, null=data.null)
noise = torch.randn(20, 1, 8, 8, generator=generator)
wanted = torch.arange(20) % 10
own = {w: cd.last(cd.ddim(teacher, noise, 32, wanted, w)) for w in (0.0, 1.0, 2.0, 3.0, 4.0)}
fig, axes = plotting.figure(3, 1, width=7, height=5.4)
for axis, w in zip(axes, (0.0, 1.0, 3.0), strict=True):
    plotting.draw_images(axis, own[w], 10, f"w = {w:g}, 2 x 32 network evaluations")
plotting.show(
    fig,
    alt="The digits 0 to 9, twice each, drawn by the guided transformer at w = 0, 1 and 3. At w = 0 some cannot be "
    "read; with more guidance they are clearer and more alike.",
)

# %% [markdown] slideshow={"slide_type": "fragment"}
# ## 2. An input for w, where there is no place for one
#
# Where could $w$ enter? It has to reach every layer, as time and label do. Each kind of network has its own place:
#
# | network | where w enters | who made the place |
# | --- | --- | --- |
# | `UNet2DConditionModel` | `time_cond_proj_dim`: added to the time, before its embedding | diffusers, for students like ours |
# | `FluxTransformer2DModel` | `guidance_embeds`: beside the time; it is told the scale $1 + w$ | diffusers: FLUX.1-dev is such a student |
# | `DiTTransformer2DModel`, `UNet2DModel` | added to the embedding of the label | we do |
#
# In a DiT the label goes through an embedding in every block. Ours takes a *pair*, the label and the features of $w$, and adds a projection of the
# second to what it makes of the first. That projection is zero at first. So, once more, **the student starts as exactly the conditional teacher, for every w**.

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
student = cd.add_w_conditioning(network, (0.0, 4.0))
with torch.no_grad():
    difference = (student(z, t, labels, 3.0).v - network(z, t, labels).v).abs().max().item()
print("largest difference between fresh student and conditional teacher:", difference)
added = student.net.state_dict().keys() - network.net.state_dict().keys()
print(f"{len(added)} new layers, one in each block")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 3. Both stages, unchanged
#
# These are the very lines of notebooks 03 and 04.

# %% slideshow={"slide_type": "fragment"}
fresh = {w: cd.delivered_w(student, teacher, data, w, n=128) for w in (0.0, 1.0, 2.0, 3.0, 4.0)}
optim = cd.Optim(
    updates=2 if small else 600, batch=64, rate=1e-3, faster={"cond_proj": 10.0}, ema=0.99
)
loss = cd.stage_one_loss(teacher, student.w_range, w_power=2.0, balanced=True)
run = cd.Run("stage-one", seed=seed, folder=f"{folder}/stage-one", device="cpu")
for _ in cd.train(student, loss, data, optim, run):
    pass
told = {w: cd.delivered_w(student, teacher, data, w, n=512) for w in fresh}
for w in told:
    print(f"asked for w = {w:g}: fresh {fresh[w]:.2f}, after stage one {told[w]:.2f}")
plotting.show(
    plotting.asked_against_delivered({"fresh": fresh, "stage one": told}),
    alt="The w that is delivered against the w that was asked for. Before stage one it is 0 throughout; after it "
    "the points rise along the diagonal, and fall a little short of it from 3 on.",
)

# %% [markdown]
# After half a minute of stage one the dial works: 0.96 where 1 is asked for, and 3.6 for 4 (at the `laptop` profile). Longer training closes the gap at
# the top, as for the U-Nets of notebook 03. Now the steps are halved.

# %%
optim = cd.Optim(updates=1 if small else 40, batch=64, rate=1e-3)
run = cd.Run(seed=seed, folder=f"{folder}/stage-two", device="cpu")
few = {model.steps: model for model in cd.distill_progressively(student, data, optim, run, start=4)}
drawn = {n: {w: cd.last(cd.ddim(few[n], noise, n, wanted, w)) for w in (1.0, 3.0)} for n in few}
print("steps | w | delivered by its samples | distance to the teacher's 32 steps")
for n, samples in drawn.items():
    for w, x in samples.items():
        distance = (x - own[w]).square().mean().sqrt().item()
        print(f"{n:5d} | {w:g} | {cd.delivered_by_samples(x, own):24.2f} | {distance:.3f}")

# %% [markdown] slideshow={"slide_type": "slide"}
# Two measures: how far the samples are from the teacher's own from the same noise, and at which $w$ the teacher's samples are nearest to them. With
# 4 steps and 120 updates the student is close; at $w = 3$ it asks for more training than we gave it.
#
# **Does one evaluation draw what sixty-four did?** The same noise and labels in every row.

# %% slideshow={"slide_type": "fragment"}
rows = {"teacher, 64 evaluations": own[3.0]}
rows |= {f"student, {n} evaluation{'s' * (n > 1)}": drawn[n][3.0] for n in few}
fig, axes = plotting.figure(4, 1, width=7, height=7)
for axis, (title, x) in zip(axes, rows.items(), strict=True):
    plotting.draw_images(axis, x, 10, f"{title}, w = 3")
plotting.show(
    fig,
    alt="Twenty digits at w = 3, four times from the same noise: by the guided teacher with 64 evaluations, and by "
    "its students with 4, 2 and 1. They are the same digits; the fewer evaluations, the softer their edges.",
)

# %% [markdown]
# The folder of a student says what its network is, so the student can be loaded where nobody has heard of this notebook:

# %%
# NBVAL_CHECK_OUTPUT
again = cd.load(f"{folder}/stage-two/steps-1", device="cpu")
same = torch.equal(
    cd.last(cd.ddim(again, noise, 1, wanted, 2.0)), cd.last(cd.ddim(few[1], noise, 1, wanted, 2.0))
)
print(f"{type(again.net).__name__}, {again.steps} step, w in {again.w_range}; the same: {same}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 4. Flow matching is this, on another clock
#
# A network of flow matching (SD3, FLUX) sees $z = (1 - \tau)\,x + \tau\,\varepsilon$ and says $u = \varepsilon - x$. That looks different from
# all we did: the path is straight, and its variance is not one. But two lines undo it:
#
# $$ x = z - \tau\, u, \qquad \varepsilon = z + (1 - \tau)\, u. $$
#
# So $u$ knows what $v$ knows. **Divide $z$ by its length** $\sqrt{(1-\tau)^2 + \tau^2}$, and it is a point of ours, at the angle
# $\varphi = \operatorname{atan2}(\tau, 1 - \tau)$. `flow_denoiser` does that. To try it we need a network of flow matching: we dress up our own transformer as one.


# %%
def velocity(z, tau, cond, w):
    """What our teacher would say if it had been trained by flow matching: u [b, *d]."""
    angle, length = torch.atan2(tau, 1 - tau), torch.hypot(tau, 1 - tau)
    said = network(z / cd.expand(length, z), angle / (torch.pi / 2), cond)
    return said.eps - said.x


def sampled_by_diffusers(noise, steps, shift):
    """Euler steps on the straight path, as the pipelines of SD3 and FLUX take them."""
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    scheduler.set_timesteps(sigmas=[i / steps for i in range(steps, 0, -1)])
    z = noise
    for k in scheduler.timesteps:
        u = velocity(z, k.expand(len(z)) / 1000, wanted, None)
        z = scheduler.step(u, k, z).prev_sample
    return z


# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
with torch.no_grad():
    for shift in (1.0, 3.0):
        ours = cd.last(cd.ddim(cd.flow_denoiser(velocity, shift), noise, 8, wanted))
        theirs = sampled_by_diffusers(noise, 8, shift)
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
        print(f"shift {shift:g}: DDIM is diffusers' Euler sampler")

# %% [markdown] slideshow={"slide_type": "slide"}
# **And what is the shift?** SD3 and FLUX visit $\tau' = s\,\tau / (1 + (s - 1)\,\tau)$ instead of $\tau$: more of their steps at high noise, for large images.
# In terms of the signal-to-noise ratio it is nothing but a constant: the log-SNR falls by $2 \log s$, at every time.

# %% slideshow={"slide_type": "fragment"}
times = torch.linspace(0.02, 0.98, 49)
fig, axis = plotting.figure(width=5.5, height=3)
clocks = {
    "cosine": cd.CosineSchedule(),
    "flow": cd.FlowSchedule(),
    "flow, shift 3": cd.FlowSchedule(3.0),
}
for (name, schedule), color, marker in zip(clocks.items(), plotting.COLORS, "os^", strict=False):
    axis.plot(times, schedule.logsnr(times), color=color, label=name)
    grid = torch.arange(1, 8) / 8
    axis.plot(grid, schedule.logsnr(grid), color=color, marker=marker, linestyle="")
axis.set(xlabel="t", ylabel="log-SNR")
axis.legend(frameon=False)
plotting.show(
    fig,
    alt="Log-SNR against t, falling, with the times of eight steps as markers: the cosine schedule and flow "
    "matching without a shift cross at t = 1/2 and are near each other, and flow matching with a shift of 3 lies "
    "below the latter by a constant.",
)

# %% [markdown]
# So the cosine schedule and flow matching without a shift differ little, and only near both ends. Guidance is linear in $u$ too, and both stages go through
# `flow_denoiser` as they are: stage one into a student of a FLUX transformer gives what FLUX.1-dev is, a network with guidance as an input, which the class of
# stock `diffusers` loads.
#
# ## 5. And your network?
#
# [Bring your own network](bring_your_own_network.md) is one page with a whole program: thirty lines of a network that nobody has seen before, which is
# trained, distilled, stopped and resumed, loaded and exported.
#
# ## Further questions
#
# 1. Train with `patch_size=1`: each pixel is a word of its own. How much slower is an update, and what is gained?
# 2. Make a network of your own out of `velocity`, with the transformer in it, and train it by flow matching: `flow_denoiser` and
#    `teacher_loss(10, 0.1, flow_matching)`. Is it as good after as many updates?
# 3. Make two experts, a copy for $t \le 1/2$ and one for the rest (`Experts`), and train each on its half for 100 updates more. Is the pair better than
#    its parent, and is its one student?
#
# **Next:** [14 · The bug museum](14_bug_museum.ipynb).

# %%
facts = checkpoints.provenance(
    notebook="13_your_own_teacher", profile=profile, seed=seed, data=data.hash[:16]
)
for key, value in facts.items():
    print(f"{key}: {value}")
