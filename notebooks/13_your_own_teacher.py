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
# The data are the digits, for every profile. Allow about 15 minutes to read it, and 15 for the exercises.
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=13`.

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
from cfgdistill.course import checks, widgets
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
# beside the mean, in a second half of the channels, which no sampler of ours needs.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 1: leave the variance out *(fill in, 3 minutes)*
#
# A DiT for images of 4 channels may say 8: the mean, and after it the variance. Another says 4. **Keep the mean**, of either of them.
#
# <details><summary>Hint</summary>
#
# What it says has the shape [b, 8, H, W] or [b, 4, H, W], and the mean comes first.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "mean_alone", "locked": false, "schema_version": 3, "solution": true, "task": false}
def mean_alone(said, channels):
    """said: what a DiT says of images with so many channels; its mean [b, channels, H, W]."""
    ### BEGIN SOLUTION
    return said[:, :channels]
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "mean_alone-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.mean_alone(mean_alone))
### BEGIN HIDDEN TESTS
assert checks.mean_alone(mean_alone).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* `said[:channels]`, which cuts the batch; `said.chunk(2, 1)[0]`, which halves the mean of a network without a variance.
#
# *To discuss:* what did the authors of such a network need the variance for, and why does DDIM not?
#
# </details>

# %% [markdown]
# Ours says no variance. And published DiTs drop labels themselves while they are trained. A student must not: it would match the teacher's answer to a label that it
# was not shown.


# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
def from_scratch(z, t, cond):
    return transformer(z, timestep=1024 * t - 1, class_labels=cond).sample


generator = torch.Generator().manual_seed(seed)
labels = torch.arange(10)
z = torch.randn(10, 1, 8, 8, generator=generator)
t = torch.rand(10, generator=generator)
with torch.no_grad():
    difference = (from_scratch(z, t, labels) - network(z, t, labels).v).abs().max().item()
print(f"from scratch and by the package: difference {difference:.3f}")

# %% [markdown] slideshow={"slide_type": "slide"}
# **Does it draw digits?** Guided as ever: `GuidedDenoiser` asks it twice.

# %% slideshow={"slide_type": "fragment"}
teacher = cd.GuidedDenoiser(network, null=data.null)
noise = torch.randn(20, 1, 8, 8, generator=generator)
wanted = torch.arange(20) % 10
own = {w: cd.last(cd.ddim(teacher, noise, 32, wanted, w)) for w in (0.0, 1.0, 2.0, 3.0, 4.0)}
rows = {f"w = {w:g}, 2 x 32 network evaluations": own[w] for w in (0.0, 1.0, 3.0)}
plotting.show(
    plotting.image_rows(rows, columns=20),
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

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 2: a call of FLUX *(read a table, 4 minutes)*
#
# The pipeline of FLUX.1-dev is called with `guidance_scale=3.5, num_inference_steps=28`. **Which $w$ is that, and how often is its transformer evaluated for a picture?**
#
# <details><summary>Hint</summary>
#
# What is it told, by the table? And where does its guidance come from, from a second evaluation or from an input?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "flux_call", "locked": false, "schema_version": 3, "solution": true, "task": false}
flux_call = {"w": None, "evaluations": None}
### BEGIN SOLUTION
flux_call = {"w": 2.5, "evaluations": 28}
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "flux_call-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.flux_call(flux_call))
### BEGIN HIDDEN TESTS
assert checks.flux_call(flux_call).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>Why</summary>
#
# It is told the scale $1 + w = 3.5$, so $w = 2.5$, and since that is an input, one evaluation a step is enough: 28. (Inside the network the scale is multiplied by 1000, as the time is. That concerns nobody who calls it.)
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* $w = 3.5$; 56 evaluations, which its teacher would need.
#
# *To discuss:* what does the same call do to a model whose transformer has no such input, such as FLUX.1-schnell?
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
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
rows = {"teacher, 64 evaluations, w = 3": own[3.0]}
rows |= {f"student, {n} evaluation{'s' * (n > 1)}, w = 3": drawn[n][3.0] for n in few}
plotting.show(
    plotting.image_rows(rows, columns=20),
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
# So $u$ knows what $v$ knows. What remains is $z$ itself.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 3: from the line to the circle *(derive, 6 minutes)*
#
# Our $z$ is $\cos\varphi\, x + \sin\varphi\, \varepsilon$, with $\varphi = \pi t / 2$ on the cosine schedule. **Make one out of $z = (1 - \tau)\,x + \tau\,\varepsilon$**, and say which $t$ it has.
#
# <details><summary>Hint</summary>
#
# Divide $z$ by something such that the squares of the two factors add up to 1. Then the quotient of the factors gives $\tan\varphi$.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "on_the_circle", "locked": false, "schema_version": 3, "solution": true, "task": false}
def on_the_circle(z, tau):
    """z and t of ours, for a z of flow matching; tau: a number as a tensor."""
    ### BEGIN SOLUTION
    length = torch.sqrt((1 - tau) ** 2 + tau**2)
    return z / length, torch.atan2(tau, 1 - tau) / (torch.pi / 2)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "on_the_circle-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.on_the_circle(on_the_circle))
### BEGIN HIDDEN TESTS
assert checks.on_the_circle(on_the_circle).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* $t = \tau$, which is right at 0, 1/2 and 1 only; $\varphi = \arccos(1 - \tau)$, without the length; the angle in place of the time.
#
# *To discuss:* at which $\tau$ is the difference between $t$ and $\tau$ largest, and does it matter?
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# **Divide $z$ by its length** $\sqrt{(1-\tau)^2 + \tau^2}$, and it is a point of ours, at the angle
# $\varphi = \operatorname{atan2}(\tau, 1 - \tau)$. `flow_denoiser` does that. To try it we need a network of flow matching: we dress up our own transformer as one.


# %%
def velocity(z, tau, cond, w):
    """What our teacher would say if it had been trained by flow matching: u [b, *d]."""
    angle, length = torch.atan2(tau, 1 - tau), torch.hypot(tau, 1 - tau)
    said = network(z / cd.expand(length, z), angle / (torch.pi / 2), cond)
    return said.eps - said.x


# %%
# NBVAL_CHECK_OUTPUT
for tau in (0.25, 0.5, 0.9):
    at = torch.full((10,), tau)
    length, t_ours = torch.hypot(at, 1 - at)[0], torch.atan2(at, 1 - at) / (torch.pi / 2)
    with torch.no_grad():
        u, point = velocity(z, at, labels, None), network(z / length, t_ours, labels)
    off = max((z - tau * u - point.x).abs().max(), (z + (1 - tau) * u - point.eps).abs().max())
    print(f"tau = {tau:g}: x and eps from u are those of the point of ours, off by {off:.4f}")


# %% slideshow={"slide_type": "fragment"}
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

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 4: what a shift of 3 does *(predict before the figure, 4 minutes)*
#
# The signal-to-noise ratio is $(1 - \tau)^2 / \tau^2$. **With which number does a shift of 3 multiply it?** It is the same at every time.
#
# <details><summary>Hint</summary>
#
# Take one time, $\tau = 1/2$. Which $\tau'$ is visited instead?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "shifted_snr", "locked": false, "schema_version": 3, "solution": true, "task": false}
shifted_snr = None
### BEGIN SOLUTION
shifted_snr = 1 / 9
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "shifted_snr-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.shifted_snr(shifted_snr))
### BEGIN HIDDEN TESTS
assert checks.shifted_snr(shifted_snr).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>Why</summary>
#
# $\tau = 1/2$ becomes $\tau' = 3/4$, and the ratio becomes $(1/4)^2 / (3/4)^2 = 1/9$ instead of 1. In general $(1 - \tau') / \tau' = (1 - \tau) / (s\,\tau)$.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* 1/3, the ratio of the amplitudes; 9, the wrong way round; $-2 \log 3$, the change of its logarithm.
#
# *To discuss:* why do large images want more noise? (Notebook 14, the exhibit with the grey squares.)
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# In terms of the signal-to-noise ratio it is nothing but a constant: its logarithm falls by $2 \log s$, at every time.

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
for t in (0.2, 0.4, 0.8):
    at = torch.tensor([t]).double()
    plain, shifted = (cd.FlowSchedule(shift).logsnr(at).item() for shift in (1.0, 3.0))
    print(f"t = {t:g}: log-SNR {plain:6.3f} becomes {shifted:6.3f}: {shifted - plain:.3f}")

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
# So the cosine schedule and flow matching without a shift differ little, and only near both ends. **Move the time and the shift**, and see both paths at once: the line of flow
# matching, on which $z$ is $1 - \tau$ of $x$ and $\tau$ of $\varepsilon$, and our circle. A ray from the origin joins what is equally noisy. The dots are the times of eight steps.


# %% slideshow={"slide_type": "slide"}
def two_paths(t, shift):
    fig, axis = plotting.figure(width=4.6, height=4.4)
    circle = torch.linspace(0, torch.pi / 2, 100)
    axis.plot([1, 0], [0, 1], color=plotting.COLORS[1], label="flow matching")
    axis.plot(circle.cos(), circle.sin(), color=plotting.COLORS[0], label="ours")
    schedule = cd.FlowSchedule(shift)
    grid = torch.arange(9) / 8
    tau = schedule.tau(grid)
    axis.plot(1 - tau, tau, "s", color=plotting.COLORS[1], markersize=4)
    axis.plot(*schedule.alpha_sigma(grid), "o", color=plotting.COLORS[0], markersize=4)
    here = torch.tensor([t])
    alpha, sigma = (a.item() for a in schedule.alpha_sigma(here))
    axis.plot([0, alpha], [0, sigma], color="black", lw=1)
    tau, angle = schedule.tau(here).item(), schedule.angle(here).rad2deg().item()
    axis.set_title(f"tau = {tau:.2f}, an angle of {angle:.0f} degrees", fontsize=9)
    axis.set(xlabel="of the image", ylabel="of the noise", aspect="equal")
    axis.legend(frameon=False, fontsize=8, loc="upper right")
    return fig


widgets.explore(
    two_paths,
    "A straight line from image to noise and a quarter of a circle over it, eight steps marked on both; a ray from the origin to the "
    "circle cuts the line where the noise is the same.",
    t=(0.25, 0.0, 1.0, 0.05),
    shift=(1.0, 1.0, 6.0, 0.5),
)

# %% [markdown]
# Guidance is linear in $u$ too, and both stages go through
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
