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
# # 08 · Latents and text
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/08_latents_and_text.ipynb)
#
# The second half of the paper ([Meng et al. 2023](https://arxiv.org/abs/2210.03142)) distils **latent** diffusion models
# ([Rombach et al. 2022](https://arxiv.org/abs/2112.10752)), among them Stable Diffusion. A U-Net's cost grows with the
# number of pixels in its input. So an **autoencoder** turns an image into a much smaller array of latents, the diffusion model draws latents,
# and a decoder turns them back into an image. The condition is no longer one of ten labels but a **sentence**. Here we build all of it, on a small scale, from
# 1,716 captioned emoji.
#
# **You will**
#
# - train an autoencoder, and see what its latents keep and lose,
# - find out why a single number, the *scale* of the latents, decides whether the noise schedule fits,
# - turn captions into tokens, and the empty caption into "no condition",
# - train a text-to-image teacher with the very function that trained the digits, and give it prompts for which there is no picture.
#
# **You need** notebooks [02](02_guided_teacher.ipynb) to [04](04_stage_two.ipynb).
#
# | profile | hardware | time, if all is trained here |
# | --- | --- | --- |
# | `smoke` | any CPU | under a minute; the pictures are noise |
# | `laptop` | two CPU cores | half an hour: autoencoder 4, teacher 24, matcher 2 |
#
# Allow about 20 minutes to read it, and 10 for the exercises.
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=08`.

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
from cfgdistill.data.autoencoder import psnr
from cfgdistill.judge import plotting
from cfgdistill.training import checkpoints
from cfgdistill.training.environment import flag

# %% tags=["parameters"]
captions = os.environ.get("CFGDISTILL_CAPTIONS", "emoji")
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
retrain = flag("CFGDISTILL_RETRAIN")  # or use the models of the package
seed = 0

# %% [markdown]
# ## 1. Captioned images
#
# Every picture has a name, and the names share words: *red heart* and *blue heart*, *cat* and *cat face*. That is what a model can
# learn language from. All variants of one emoji are either in the training set or held out, never in both.
#
# Here, too, finished models come with the package, and are used unless you set `retrain = True` above.

# %%
recipe = cd.get_recipe(captions, profile, seed=seed)
if not retrain:
    recipe = cd.use_pretrained(recipe, out)
print(recipe)
held_out = cd.load_captioned(captions, "test", size=recipe.size)
images = cd.load_captioned(captions, "train", size=recipe.size, images=recipe.images)
print(f"{len(images)} images to train on, {len(held_out)} held out, {list(images.shape)} each")
rows = images.prompts(16)[1]
for k in rows[:8]:
    print("   ", images.class_names[k])
fig, axis = plotting.figure(width=7, height=2)
plotting.draw_images(axis, images.batch(rows)[0], 8)
plotting.show(
    fig,
    alt="Sixteen emoji of the training set on white, among them signs, flags, animals, plants and faces.",
)

# %% [markdown]
# ## 2. The autoencoder
#
# `load_recipe_data` prepares what the stages are trained on. The first time it trains a small KL autoencoder (a variational one, [Kingma & Welling
# 2013](https://arxiv.org/abs/1312.6114)), which halves the side of the image and writes four channels; then it keeps the latents of all images on
# disk. *KL*: the encoder answers with a Gaussian, of which we use the mean, and a small penalty, its divergence from $\mathcal{N}(0, I)$, keeps the
# latents from spreading.

# %%
data = stages.load_recipe_data(recipe, out)
x = images.batch(rows)[0]
latents = data.vae.encode(x)
pixels, numbers = x[0].numel(), latents[0].numel()
print(f"{list(x.shape[1:])} = {pixels} numbers become {list(latents.shape[1:])} = {numbers}")

# %%
# NBVAL_CHECK_OUTPUT
side = x.shape[-1] // latents.shape[-1]
print(
    f"of every {pixels / numbers:g} numbers one is left; a latent stands for {side} x {side} pixels"
)

# %% [markdown]
# **What is lost?** The same pictures, there and back; then the latents themselves, channel by channel. The number is the
# peak signal-to-noise ratio, $20 \log_{10}(2 / \text{rms})$ for images in $[-1, 1]$: at 20 dB the error is a tenth of the range.

# %%
back = data.decode(latents)
fig, axes = plotting.figure(3, 1, width=7, height=2.9)
plotting.draw_images(axes[0], x[:12], 12, "images")
plotting.draw_images(axes[1], back[:12], 12, "encoded and decoded")
channels = (latents[:3].flatten(0, 1)[:, None] / 3).clamp(-1, 1)  # 3 deviations are black or white
plotting.draw_images(axes[2], channels, 12, "the four latent channels of the first three")
plotting.show(
    fig,
    alt="Emoji above, their reconstructions below, which keep shapes and colours and lose a little sharpness. Under "
    "them the latent channels: small grey pictures in which the shapes of the emoji can still be seen.",
)
for name, split in (("training", images), ("held-out", held_out)):
    some = split.batch(split.prompts(min(180, len(split)))[1])[0]
    value = psnr(data.decode(data.vae.encode(some)), some)
    print(f"{name} images: {value:.1f} dB ({len(some)} images)")

# %% [markdown]
# The latents look like small, odd copies of the image. That is no accident: a convolutional encoder keeps things where they
# are. So a U-Net can work on them as it does on pixels, and image editing with masks (notebook 10) still makes sense.
#
# Look at the reconstructions of *rare* colours before you train on latents: the mean error, in decibels, does not reveal a colour that is missing.
#
# <details><summary><b>How small may latents be?</b> A trial that failed (no cell here repeats it)</summary>
#
# We first tried images of 64 pixels with latents of a quarter of their side: 12 numbers become 1. (Stable Diffusion's latents have an eighth of
# the side of 512: 48 numbers become 1.) After 700 updates (6.6 minutes) the reconstructions of training images reached 21.6 dB, and there was *no green* in them. The four channels
# held brightness, its fine detail, and the difference between orange and blue. Apples and cacti were brown, and a teacher of such latents cannot know better. Giving more weight to
# colour, or to its averages over 4 x 4 pixels, changed nothing within 250 updates; permuting red, green and blue at random did, but slowly. At 32 pixels 3 numbers
# become 1, and there is room for every colour.
#
# </details>
#
# ## 3. One number that must be right
#
# The schedule was made for data of about unit variance: at the time $t$ where $\alpha_t = \sigma_t$, half of $z_t$ should be signal. An
# autoencoder does not know that. **What happens if its latents are used as they come?** Scaling data by $c$ multiplies the signal-to-noise ratio by $c^2$
# at every $t$, which moves the whole schedule.

# %% [markdown]
# ### Exercise 1: when is it half signal? *(derive, 5 minutes)*
#
# With the cosine schedule $z_t = \cos(\tfrac{\pi}{2} t)\, x + \sin(\tfrac{\pi}{2} t)\, \varepsilon$. Let $x$ have a standard deviation of `std` instead of 1. **At which $t$ are signal and noise equally strong?**
#
# <details><summary>Hint</summary>
#
# $\tan(\tfrac{\pi}{2} t) = \sigma_t / \alpha_t$.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "half_time", "locked": false, "schema_version": 3, "solution": true, "task": false}
def half_time(std):
    """The t at which alpha_t std = sigma_t."""
    ### BEGIN SOLUTION
    return 2 / torch.pi * torch.atan(torch.tensor(std))
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "half_time-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.half_time(half_time))
### BEGIN HIDDEN TESTS
assert checks.half_time(half_time).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Expected:* 0.885 for 5.49 (Stable Diffusion's raw latents), 0.5 for 1.
#
# *Common wrong answers:* $\arctan(1/\text{std})$, 0.115, the wrong way round; the angle without the factor; $\text{std}/(1 + \text{std})$, as if the schedule were linear.
#
# *To discuss:* what would a model trained with these latents be bad at?
#
# </details>


# %%
def scale_from_scratch(vae, batches):
    z = torch.cat([vae.encode(x.to(vae.device)).latent_dist.mode() for x in batches])
    shift = z.mean((0, 2, 3), keepdim=True)
    return shift.flatten(), 1 / (z - shift).square().mean().sqrt()


parts = [images.batch(part)[0] for part in torch.arange(len(images)).split(64)]
with torch.no_grad():
    shift, scale = scale_from_scratch(data.vae.vae, parts)
torch.testing.assert_close(shift, data.vae.shift.flatten(), atol=1e-3, rtol=1e-3)
torch.testing.assert_close(scale.item(), data.vae.scale, atol=1e-3, rtol=1e-3)
moved = -2 * torch.log(scale).item()
print(
    f"raw latents: standard deviation {1 / scale.item():.3f}, so log-SNR would be off by {moved:+.2f}"
)

# %%
# NBVAL_CHECK_OUTPUT
t = torch.linspace(0, 1, 101)[1:-1]
logsnr = cd.CosineSchedule().logsnr(t)
print(f"as measured: mean {data.stored.mean().abs():.2f}, variance {data.stored.var():.2f}")
for std in (1.0, 5.49):  # Stable Diffusion's raw latents have a deviation of about 5.49
    half = t[(logsnr + 2 * torch.log(torch.tensor(std))).abs().argmin()]
    print(
        f"standard deviation {std:.2f}: half signal, half noise at t = {half:.2f} of our schedule"
    )

# %% [markdown]
# Our raw latents have a deviation of about 1.5, which the penalty keeps from growing. Stable Diffusion's penalty is far weaker, hence 5.49. With its
# raw latents on our schedule, noise and signal would balance at $t = 0.89$ only: at most times the image would be nearly clean, and the model would
# get little practice in deciding what goes where. (Stable Diffusion has a schedule of its own, but the argument is the same.) That is why its
# configuration carries the famous factor 0.18215 = 1 / 5.49. `VAEEncoder.measured` measures ours.
#
# ## 4. From captions to tokens
#
# A *byte-pair* vocabulary ([Sennrich et al. 2016](https://arxiv.org/abs/1508.07909)) is counted from the captions themselves: it starts with letters
# and merges the most frequent neighbours, again and again; `</w>` marks the end of a word. A caption becomes 18 numbers: a start, its words, an end,
# and padding.

# %% [markdown]
# ### Exercise 2: what is spelt? *(predict before the output, 2 minutes)*
#
# The vocabulary has been counted from captions of emoji. **Which of these words falls into the most pieces?** (a) heart, (b) face, (c) apple, (d) flamingo.
#
# <details><summary>Hint</summary>
#
# Frequent neighbours are merged first. In how many captions does each word stand, and in how many its parts?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "most_pieces", "locked": false, "schema_version": 3, "solution": true, "task": false}
most_pieces = None
### BEGIN SOLUTION
most_pieces = "d"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "most_pieces-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.most_pieces(most_pieces))
### BEGIN HIDDEN TESTS
assert checks.most_pieces(most_pieces).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* (c), since an apple is so common. In the language it is; among the captions it is as rare as a flamingo, but its two halves are parts of other words.
#
# *To discuss:* what does the model know of a word that it has always seen in pieces?
#
# </details>

# %%
text = data.text
for caption in ("red heart", "cat face", "a blue apple", "flamingo pool party"):
    tokens = text.tokens([caption])[0]
    words = text.tokenizer.convert_ids_to_tokens(tokens.tolist())
    print(f"{caption!r:22s}", [word for word in words if not word.startswith("<|")])

# %% [markdown]
# Words that are frequent among the captions are one token; rare ones fall into pieces, and every word can be spelt.

# %%
# NBVAL_CHECK_OUTPUT
tokens = text.tokens(["red heart", "flamingo pool party", ""])
print("all are as long as one another:", tokens.shape == (3, len(text.null)))
print("all begin with the same token:", len(set(tokens[:, 0].tolist())) == 1)
end = (tokens == text.tokenizer.eos_token_id).int().argmax(1)
print("words before the end of the empty caption:", end[2].item() - 1)
print("more pieces, a later end:", end[1].item() > end[0].item())

# %%
# NBVAL_CHECK_OUTPUT
for caption in ("red heart", "zebra crossing!", ""):
    back = text.tokenizer.decode(text.tokens([caption])[0], skip_special_tokens=True)
    print(f"{caption!r} is read back as {back!r}")
print("no condition is the empty caption:", torch.equal(text.null, text.tokens([""])[0]))

# %% [markdown]
# The empty caption takes the place of the null label: with probability `recipe.drop` a caption is replaced by it in training, and guidance
# compares the two answers, as in notebook 02. The text encoder has two layers of CLIP's architecture
# ([CLIP](https://arxiv.org/abs/2103.00020) is a pair of networks for images and captions, and Stable Diffusion reads with its text half). It is trained together with the U-Net, which looks at its
# words by cross-attention at the lowest resolution; the caption as a whole is added to the time embedding, and so scales and shifts the features of
# every block.
#
# **What happens to a prompt that is too long?** It is cut, as in diffusers, and you are told.

# %%
import warnings

with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    long, longer = (text.tokens(["cat face " * n]) for n in (20, 40))
print(told[0].message)

# %%
# NBVAL_CHECK_OUTPUT
print("prompts that were cut:", len(told))
print("no longer than others:", long.shape == text.tokens(["cat face"]).shape)
print("the last token is the end:", long[0, -1].item() == text.tokenizer.eos_token_id)
print("the rest is gone:", torch.equal(long, longer))

# %% [markdown]
# ## 5. The teacher
#
# `data` is now what digits were before: examples (latents), conditions (tokens), and a null condition. So the function of notebook 02 trains the
# teacher, unchanged. Apart from length and precision, its recipe differs in three places: the network, the learning rate, and the times it is trained
# at. *What made it listen*, in section 6, says why.

# %%
network = stages.train_teacher(recipe, data, out)
teacher = cd.GuidedDenoiser(network, null=data.null)
card = checkpoints.read_card(stages.home(recipe, out) / "teacher")
parameters = sum(p.numel() for p in network.net.unet.parameters()) / 1e6
print(
    f"U-Net: {parameters:.1f} M parameters, {card['about']['updates']} updates, {card['minutes']} minutes"
)
losses, each = torch.tensor(card["losses"]), card.get("updates_per_loss", 1)
window = max(1, len(losses) // 60)
smooth = losses[: len(losses) // window * window].reshape(-1, window).mean(1)
fig, axis = plotting.figure(width=6, height=2.8)
axis.plot(torch.arange(1, len(smooth) + 1) * window * each, smooth, color=plotting.COLORS[0])
axis.set(xlabel="update", ylabel="loss (v)")
plotting.log_y(axis)
plotting.show(
    fig,
    alt="The loss of the teacher on a logarithmic axis: it falls steeply for 300 updates, then slowly, and from update 2,000 on faster "
    "again, until it levels off at the end.",
)

# %% [markdown]
# On this logarithmic axis the loss falls *faster* again from update 2,000 on. The learning rate is going to zero by then, but there is a second
# reason: 3,300 updates of 64 are 123 passes through the same 1,716 pictures.

# %% [markdown]
# ### Exercise 3: what does ignorance cost? *(derive, 3 minutes)*
#
# The loss is the mean squared error of $v = \alpha_t \varepsilon - \sigma_t x$, and our latents have variance 1. **What does a network lose that answers 0, always?**
#
# <details><summary>Hint</summary>
#
# $x$ and $\varepsilon$ are independent, each of variance 1.
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "no_answer", "locked": false, "schema_version": 3, "solution": true, "task": false}
no_answer = None
### BEGIN SOLUTION
no_answer = 1.0
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "no_answer-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.no_answer(no_answer))
### BEGIN HIDDEN TESTS
assert checks.no_answer(no_answer).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* 2; something that depends on $t$.
#
# *To discuss:* at $t = 0.9$ the loss on held-out pictures is about that. What has the network learnt for captions that it does not know?
#
# </details>

# %% [markdown]
# **Does it learn emoji, or these emoji?** The same loss, of training
# pictures and of those held out:

# %%
test = stages.load_recipe_data(recipe, out, "test")
generator = torch.Generator().manual_seed(seed)
with torch.no_grad():
    for t in (0.3, 0.5, 0.7, 0.9):
        found = []
        for part in (data, test):
            z0, tokens = part.batch(part.prompts(180)[1])
            eps = torch.randn(z0.shape, generator=generator)
            z0, tokens, eps = (value.to(network.device) for value in (z0, tokens, eps))
            times = torch.full((len(z0),), t, device=z0.device)
            alpha, sigma = network.schedule.alpha_sigma(times)
            target = cd.expand(alpha, z0) * eps - cd.expand(sigma, z0) * z0
            z = network.schedule.add_noise(z0, eps, times)
            found.append((network(z, times, tokens).v - target).square().mean().item())
        print(
            f"loss at t = {t}: {found[0]:.3f} of training pictures, {found[1]:.3f} of held-out ones"
        )

# %% [markdown]
# These emoji. On held-out pictures the loss is more than twice as large at $t = 0.3$, and at $t = 0.9$, where the caption has to say what to draw, more than ten times. There it is
# about 1, the variance of $v$: no better than no answer at all. Keep that in mind when you look at the pictures: the captions below are those of pictures that it has learnt.
#
# **What does it draw, and what does $w$ do?** The same noise in all three columns, one prompt for each place, 50 steps of two evaluations
# each. These prompts are captions of the training set.

# %%
prompts = ["red heart", "green apple", "cat face", "strawberry", "castle", "angry face"]
prompts += ["rainbow", "crescent moon", "orange circle", "blue heart", "cactus", "octopus"]
how = dict(shape=data.shape, steps=50, seed=seed, decode=data.decode)
drawn = {
    f"w = {w:g}": {"": cd.generate(teacher, labels=text.tokens(prompts), w=w, **how)}
    for w in (0.0, 2.0, 5.0)
}
fig = plotting.sample_grid(drawn, 4)
print("row by row:", ", ".join(prompts))
plotting.show(
    fig,
    alt="Twelve prompts drawn with w = 0, 2 and 5, among them a red heart, a green apple, a cat face, a strawberry, a castle "
    "and an angry face. All but the octopus, a pink blob, can be recognised. Without guidance edges are ragged and colours mixed; with w = 2 both are clear; with w = 5 "
    "colours are overdrawn, and the white ground is speckled.",
)

# %% [markdown]
# All but the octopus can be recognised. Without guidance edges are ragged and colours are mixed; with $w = 2$ both are clear, and with $w = 5$ colours are overdrawn.
#
# ## 6. Does the picture fit the prompt?
#
# The usual measure, the CLIP score ([Hessel et al. 2021](https://arxiv.org/abs/2104.08718)), needs CLIP: hundreds of megabytes of weights, trained on
# pictures from the web. We train a small **matcher** instead: image features and word vectors that must point the same way. The **retrieval score**
# is the share of samples whose own caption, among all those of the data set, comes first. It is not the CLIP score; the matcher knows emoji only, and
# its score serves to compare rows of one table.

# %%
judge = stages.make_judge(recipe, data, out)
real = judge(images.all()[0], images.labels)["retrieval_score"]
decoded = judge(data.decode(data.stored), images.labels)["retrieval_score"]
print(f"real training images: {real:.1%}; after the autoencoder: {decoded:.1%}")
common = dict(judge=judge, data=data, recipe=recipe, out=out, weights=(0.0, 1.0, 2.0, 4.0))
table = stages.evaluate_rows(teacher, model="teacher", steps=(16,), **common)
fig, axis = plotting.figure(width=5, height=2.8)
weights = [row["w"] for row in table]
axis.plot(weights, [row["retrieval_score"] for row in table], marker="o", color=plotting.COLORS[0])
axis.axhline(decoded, color="#666666", linestyle=":")
axis.text(weights[-1], decoded, "decoded training images", ha="right", va="bottom", fontsize=8)
axis.set(xlabel="guidance weight w", ylabel="retrieval score", ylim=(0, 1.05))
plotting.show(
    fig, alt="Retrieval score against w: it rises from w = 0 to 1 and falls slowly beyond."
)
for row in table:
    share = row["retrieval_score"]
    error = (share * (1 - share) / recipe.samples) ** 0.5
    print(f"w = {row['w']:g}: retrieval {share:.1%} (standard error {error:.1%}), {row['nfe']} NFE")
print(f"{recipe.samples} samples each, {judge.name}")

# %% [markdown]
# Two of three samples at $w = 1$ bring their own caption to the top of 1,716, although the matcher has learnt from clean pictures; a guess would succeed
# once in 1,716 times. Guidance helps up to $w = 1$ or 2. Beyond, colours are overdrawn, and the matcher, which never saw such pictures,
# recognises fewer of them: more guidance is not more truth. (There is no Frechet distance here: 150 samples are too few for the covariance of 128 features,
# as [notebook 07](07_evaluation.ipynb) has shown.)
#
# <details><summary><b>What made it listen?</b> Trials with the captions, the learning rate and the times (no cell here repeats them)</summary>
#
# A teacher that ignores its captions still has a falling loss, and paints soft averages of everything. The loss near $t = 1$, where nothing but the
# caption can tell what to draw, gives it away. Measured after 3,000 updates of 64 images, on 192 training images, seed 0, in the latents of the
# 64-pixel autoencoder above (after 900 updates):
#
# | how the teacher was trained | loss at $t = 0.99$ | at $t = 0.5$ |
# | --- | --- | --- |
# | peak learning rate $10^{-3}$ | 0.364 | 0.137 |
# | $5 \cdot 10^{-4}$ | 0.336 | 0.136 |
# | and caption and time *scale and shift* the features of every block; $t = u^{0.4}$ instead of uniform | **0.084** | **0.105** |
# | the last without any caption, for comparison | 0.826 | 0.180 |
#
# In the first two the caption reaches the blocks as a shift only, which a normalisation that follows can partly undo. Drawing more times near the noisy end, as the only
# change, lowers the loss by 10 % after 400 updates. A run at $2 \cdot 10^{-3}$ never learns to use its captions, and one with batches of 32 at $1.5 \cdot 10^{-3}$
# ends at 0.504 after 5,000 updates (160,000 images instead of 192,000, and a higher rate: we did not separate the two). Stopping after 2,200
# updates costs a lot: 0.202 and 0.143.
#
# </details>
#
# ## 7. Prompts without a picture
#
# **Does the model put words together?** No picture of these was in the training set.

# %%
unseen = ["red apple", "pouting cat", "hollow red circle", "tiger face"]  # held out
unseen += ["blue apple", "purple cat face", "yellow octopus", "black strawberry"]  # nobody's
print("in the training set:", sum(prompt in images.class_names for prompt in unseen), "of 8")
print("in the held-out set:", sum(prompt in held_out.class_names for prompt in unseen), "of 8")
pictures = cd.generate(teacher, labels=text.tokens(unseen), w=2.0, **how)
fig, axes = plotting.figure(2, 4, width=7, height=3.9)
for axis, prompt, picture in zip(axes.flat, unseen, pictures, strict=True):
    plotting.draw_images(axis, picture[None], 1, prompt)
plotting.show(
    fig,
    alt="Eight prompts that are not in the training set, with w = 2: a red apple, orange patches, a pink blot, a yellow "
    "face with stripes, a dark blue apple with orange sides, a purple disc, a yellow blot and a black ball.",
)

# %% [markdown]
# In new combinations the *colour* often arrives: the red apple is red and round, the blue apple blue, the purple cat purple, the octopus yellow, the
# strawberry black. *Things* do not: the purple cat has no face, the circle is not hollow, and the tiger is just another yellow face. What the model paints
# well are the pictures of the training set; it has not learnt a language. Stable Diffusion has seen about a million times as many pictures.
#
# **Now you.** Type a prompt. In the first row is what the teacher draws from three noises, and below each picture the nearest of all training pictures, with its name. Which prompts
# does it know by heart, whatever the noise is? And into how many pieces fall the words that it gets wrong?

# %%
known = images.all()[0]


def draw(prompt, w, steps, seed):
    cond = text.tokens([prompt] * 3)
    how = dict(steps=steps, w=w, seed=seed, decode=data.decode)
    x = cd.generate(teacher, data.shape, cond, **how).cpu()
    nearest = torch.cdist(x.flatten(1), known.flatten(1)).argmin(1)
    fig, axes = plotting.figure(2, 3, width=7.2, height=5)
    for (above, below), picture, row in zip(axes.T, x, nearest, strict=True):
        plotting.draw_images(above, picture[None], 1)
        plotting.draw_images(below, known[row][None], 1, images.class_names[images.labels[row]])
    words = text.tokenizer.convert_ids_to_tokens(cond[0].tolist())
    fig.suptitle("   ".join(word for word in words if not word.startswith("<|")))
    return fig


widgets.explore(
    draw,
    alt="The pieces of the prompt, red and heart, over two rows of three pictures. In the first the teacher's, from three noises, all nearly the same red heart; in the "
    "second the nearest training picture of each, which is always the one named red heart.",
    prompt="red heart",
    w=(2.0, 0.0, 6.0, 0.5),
    steps=(4, 1, 8, 1),
    seed=(0, 0, 20, 1),
)

# %% [markdown]
# ## Further questions
#
# 1. Train an autoencoder with one more halving (`vae_channels=(48, 64, 96)`, with an `out` of its own; 4 minutes). What do reconstructions lose, and how much faster is
#    an update of the teacher? (A few updates are enough to tell.)
# 2. Make latents that are five times too loud: `vae = copy.deepcopy(data.vae)`, `vae.scale *= 5`, `loud = dataclasses.replace(data, stored=5 *
#    data.stored, vae=vae)`. Train a teacher on them with an `out` of its own (24 minutes). Look at $w = 0$ first.
# 3. Replace the empty caption by a random one as the null condition. What does guidance do then?
# 4. Swap two words ("face cat"). Does the text encoder care about their order?
# 5. Type prompts of your own. Which words does the model know? (`text.tokenizer.get_vocab()`.)
#
# **Next:** in [notebook 09](09_distilling_text_to_image.ipynb) the same two stages as before turn this teacher into students that need 4, 2 or 1 evaluations.

# %%
facts = checkpoints.provenance(
    notebook="08_latents_and_text",
    recipe=recipe.name,
    seed=seed,
    data=images.hash[:16],
    split=images.split,
)
for key, value in facts.items():
    print(f"{key}: {value}")
