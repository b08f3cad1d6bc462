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
# # 12 · Any guidance rule in, one student out
#
# [![Open In Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/cfgdistill/cfgdistill/blob/main/notebooks/12_guidance_rules.ipynb)
#
# Classifier-free guidance is one way to combine two predictions. Others guide only in the middle of the way, or against a *worse
# network*, or without the part that oversaturates, or up the gradient of a classifier. All of them cost two evaluations a step or more. Stage one of
# [Meng et al.](https://arxiv.org/abs/2210.03142) never asks which one it is learning, so **one network can learn to say any of them in one evaluation**, with
# the strengths as inputs. Here we find out for which rules that is true, for which it cannot be, and what a student with a dial can do that
# nobody trained it for.
#
# **You will**
#
# - write a guidance rule of your own in three lines, and see six known ones from the same noise,
# - distil them with an unchanged stage one, and measure how much of each strength the students deliver,
# - meet a rule that no such student can learn, find out why, and distil it all the same,
# - turn $w$ into a function of time, give a student negative prompts without any training, and meet one that takes them as an input.
#
# **You need** notebooks [02](02_guided_teacher.ipynb) and [03](03_stage_one.ipynb).
#
# | profile | hardware | time to run |
# | --- | --- | --- |
# | `smoke` | any CPU | under a minute |
# | `laptop` (the default) | two CPU cores | about ten minutes |
#
# The students are trained on digits, which takes a minute each. Pictures are CIFAR-10's wherever a finished model can draw them: it comes with the
# package, and sampling needs no data set. Allow about 30 minutes to read it, and 25 for the exercises.
#
# **The exercises check themselves.** Here their solutions are filled in and folded. Write your own in a new cell below, and run the check
# after it; or make an edition with blanks, `make editions NAMES=12`.

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
from functools import partial

import torch

import cfgdistill as cd
from cfgdistill.course import checks, stages, widgets
from cfgdistill.judge import plotting
from cfgdistill.training.environment import flag

# %% tags=["parameters"]
profile = os.environ.get("CFGDISTILL_PROFILE", "laptop")
out = os.environ.get("CFGDISTILL_OUT", "out")
retrain = flag("CFGDISTILL_RETRAIN")  # False: use the models of the package
seed = 0

# %%
recipe = cd.get_recipe("digits", profile, seed=seed)
if not retrain:
    recipe = cd.use_pretrained(recipe, out)
smoke = profile == "smoke"
data = cd.load_data("digits", "train", recipe.images)
network = stages.train_teacher(recipe, data, out)
photographs = cd.load("cifar10/teacher", device=network.device)
null = data.num_classes  # 10, for both of them
print(f"{recipe.name} for training, {type(photographs.net).__name__} of CIFAR-10 for pictures")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 1. What a rule is
#
# A rule is given a point: $z_t$, the time, the condition $c$, and a network to ask about it; and a strength $w$. It returns the
# $v$ of the guided step. This is the one you know, [Ho & Salimans](https://arxiv.org/abs/2207.12598)', in two lines:


# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
def from_scratch(at, w):
    cond, uncond = at.predict(at.cond, at.null)  # two evaluations, in one call
    return cond.v + w * (cond.v - uncond.v)


x, labels = data.batch(torch.arange(64))
x, labels = x.to(network.device), labels.to(network.device)
t = torch.linspace(0.05, 1, 64, device=network.device)
z = network.schedule.add_noise(x, torch.randn(x.shape, device=x.device), t)
ours = cd.GuidedDenoiser(network, null, rule=from_scratch)(z, t, labels, 2.0)
package = cd.GuidedDenoiser(network, null)(z, t, labels, 2.0)
print(f"largest difference to the package's own rule: {(ours.v - package.v).abs().max():.3f}")

# %% [markdown] slideshow={"slide_type": "slide"}
# **Others are as short.** `cfgdistill.rules` has one function for each; all are written in $v$, where the difference of two
# predictions is theirs in $x$, or in $\varepsilon$, but for a factor.
#
# | rule | what it says | evaluations |
# | --- | --- | --- |
# | [guidance interval](https://arxiv.org/abs/2404.07724) | classifier-free, where $\sigma/\alpha$ lies in an interval, else $v_c$ | 2 inside, 1 outside |
# | [autoguidance](https://arxiv.org/abs/2406.02507) | $(1 + w)\,v_c - w\,v_c^{\text{weak}}$, away from a worse network | 2 |
# | [APG](https://arxiv.org/abs/2410.02416), `projected` | classifier-free, without its part along $x_c$ | 2 |
# | [CFG-Zero*](https://arxiv.org/abs/2503.18886), `zero_star` | classifier-free, against the nearest multiple of $v_\varnothing$ | 2 |
# | [rescaled](https://arxiv.org/abs/2305.08891) | classifier-free, brought back towards the spread of $v_c$ | 2 |
# | [classifier guidance](https://arxiv.org/abs/2105.05233) | $v_c - w\,\frac{\sigma}{\alpha}\nabla_z \log p(c \mid z, t)$ | 4: a gradient counts as three |

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 1: guidance without its part along the picture *(fill in, 6 minutes)*
#
# More of $x_c$ itself makes a picture brighter and more colourful, and says nothing of the class. So APG guides sideways only. **Take the part along `x_cond` off the difference of the two answers**, and add $w$ times the rest to `v_cond`.
#
# <details><summary>Hint</summary>
#
# The part of $d$ along $x$ is $\frac{\langle d, x \rangle}{\langle x, x \rangle}\, x$. There are many examples in the batch, and each has inner products of its own: `(d * x).sum((1, 2, 3), keepdim=True)`.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "sideways", "locked": false, "schema_version": 3, "solution": true, "task": false}
def sideways(v_cond, v_null, x_cond, w):
    """The v of the guided step; v_cond, v_null, x_cond [b, c, H, W], w [b, 1, 1, 1]."""
    ### BEGIN SOLUTION
    d = v_cond - v_null
    length2 = (x_cond * x_cond).sum((1, 2, 3), keepdim=True)
    along = (d * x_cond).sum((1, 2, 3), keepdim=True) / length2 * x_cond
    return v_cond + w * (d - along)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "sideways-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.sideways(sideways))
### BEGIN HIDDEN TESTS
assert checks.sideways(sideways).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* one inner product for the whole batch, so that a picture depends on its neighbours; dividing by the length instead of its square; projecting on `v_cond`.
#
# *To discuss:* $d$ is a difference of $v$, and the paper takes that of $x$. Why is the result the same?
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# **What do the six do to a picture?** The same noise and the same labels, $w = 3$, 32 steps of the CIFAR-10 teacher:


# %% slideshow={"slide_type": "slide"}
def middle(at, w):
    """A guidance interval whose ends are fixed, so that w is its only strength."""
    inside = (0.3 < at.sigma / at.alpha) & (at.sigma / at.alpha <= 5.0)
    return cd.rules.classifier_free(at, w * inside)


steps = 2 if smoke else 32
labels10 = torch.arange(2 if smoke else 10)
plain = {
    "classifier-free": None,
    "interval": middle,
    "APG": cd.rules.projected,
    "CFG-Zero*": cd.rules.zero_star,
    "rescaled": cd.rules.rescaled,
}
pictures = {"no guidance": cd.sample(photographs, labels10, 0.0, steps=steps, seed=seed)}
for name, rule in plain.items():
    guided = cd.GuidedDenoiser(photographs, null, rule)
    pictures[name] = cd.sample(guided, labels10, 3.0, steps=steps, seed=seed)
plotting.show(
    plotting.image_rows(pictures),
    alt="Six rows of ten CIFAR-10 pictures from the same noise, airplane to truck: without guidance, then five rules at w = 3.",
)

# %% [markdown] slideshow={"slide_type": "slide"}
# Guidance has two effects, and the rules differ in how they weigh them: it makes the class plainer, and it drives colours to their ends. **How
# far?** The share of colour values that end within 2% of black or full, and the standard deviation over all values:

# %% slideshow={"slide_type": "fragment"}
for name, drawn in pictures.items():
    ends = (drawn.abs() > 0.96).float().mean().item()
    print(f"{name:16s} at the ends {ends:6.1%}   standard deviation {drawn.std().item():.3f}")

# %% [markdown] slideshow={"slide_type": "fragment"}
# Classifier-free guidance makes the bird a bird and the frog a frog, triples the share of colours at the ends and widens their spread by a third. APG and the rescaled rule keep the spread where
# it was, and their classes are as plain. The interval (written by hand here, it asks twice everywhere; `rules.interval` asks once outside) leaves the first steps alone, so that its pictures are
# composed like the unguided ones: look at the airplane.

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
guided = cd.GuidedDenoiser(network, null, cd.rules.interval)
for place, at in (("inside", 0.5), ("outside", 0.95)):
    guided.nfe = 0
    guided(z, at, labels, (2.0, 0.3, 5.0))
    print(f"{place} of the interval, at t = {at:g}: evaluations {guided.nfe}")

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 2. One student for each, by the same stage one
#
# For autoguidance we need a worse network: a smaller one, on the same data and with the same conditions, after few updates. For classifier guidance, a
# classifier that knows noise.

# %%
weak = cd.build_unet(channels=1, size=8, num_classes=null, widths=(16, 32), seed=seed)
for _ in cd.train(
    weak,
    cd.teacher_loss(null, recipe.drop),
    data,
    cd.Optim(updates=4 if smoke else 150, batch=64, rate=1e-3),
    cd.Run("weak", seed=seed),
):
    pass


class NoisyClassifier(torch.nn.Module):
    """net(z, t) -> logits [b, 10]."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(64 + 9, 256), torch.nn.SiLU(), torch.nn.Linear(256, 256)
        )
        self.last = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(256, 10))

    def forward(self, z, t):
        angles = t[:, None] * torch.arange(1, 10, device=t.device) * torch.pi / 2
        return self.last(self.layers(torch.cat([z.flatten(1), angles.cos()], 1)))


class OnDigits(torch.nn.Module):
    """What `train` trains is called `net`."""

    def __init__(self):
        super().__init__()
        self.net = NoisyClassifier()


def cross_entropy(model, x, cond, draw):
    t, eps = draw.uniform(), draw.normal(x.shape[1:])
    logits = model.net(network.schedule.add_noise(x, eps, t), t)
    return torch.nn.functional.cross_entropy(logits, cond, reduction="none")


with torch.random.fork_rng():
    torch.manual_seed(seed)
    judged = OnDigits()
updates = 4 if smoke else 1500
optim = cd.Optim(updates=updates, batch=128, rate=2e-3)
for _ in cd.train(judged, cross_entropy, data, optim, cd.Run("noisy", seed=seed)):
    pass
classifier = judged.net.requires_grad_(False)

# %% [markdown]
# **Stage one, six times**, and not a line of it knows which rule it is. To be quick we do not start from the teacher but from the student of
# notebook 03. It takes a weight already, and now learns what else a weight may mean.

# %%
taught = {
    **plain,
    "autoguidance": partial(cd.rules.autoguidance, weak=weak),
    "classifier": partial(cd.rules.classifier, net=classifier),
}
teachers = {name: cd.GuidedDenoiser(network, null, rule) for name, rule in taught.items()}
start = stages.train_stage_one(recipe, data, out)
students = {"classifier-free": start}


def distil(name):
    students[name] = start.copy()
    for _ in cd.train(
        students[name],
        cd.stage_one_loss(teachers[name], start.w_range, w_power=1.2, balanced=True),
        data,
        cd.Optim(updates=3 if smoke else 400, batch=64, rate=1e-3, faster={"cond_proj": 10.0}),
        cd.Run(name, seed=seed),
    ):
        pass


for name in ("interval", "APG"):
    distil(name)

# %%
for name in ("CFG-Zero*", "rescaled"):
    distil(name)

# %%
for name in ("autoguidance", "classifier"):
    distil(name)

# %% [markdown] slideshow={"slide_type": "slide"}
# **Do they obey?** The strength that each delivers when it is asked for 1, 2 and 4: where, on the line from no guidance to the rule's own answer, its
# answer lies (notebook 03). Beside it, what the student of classifier-free guidance says if it is taken for a student of that rule.

# %% slideshow={"slide_type": "fragment"}
asked = (1.0, 2.0, 4.0)
print(f"{'rule':16s} delivered at w = 1, 2, 4    the classifier-free student, taken for it")
for name, teacher in teachers.items():
    how = dict(n=64 if smoke else 1024, seed=seed)
    own = [cd.delivered_w(students[name], teacher, data, w, **how) for w in asked]
    other = [cd.delivered_w(start, teacher, data, w, **how) for w in asked]
    print(f"{name:16s} " + "  ".join(f"{w:6.2f}" for w in (*own, *other)))

# %% [markdown] slideshow={"slide_type": "slide"}
# The first five obey, within 5% but for the interval at $w = 4$ (9%): 400 updates, a minute each, were enough, as they had little to learn. The student of classifier-free guidance would even pass for one of the interval, APG or CFG-Zero*,
# **by this measure**, which looks along the rule's own line only and does not see what is added beside it. The rescaled rule shows the difference: asked for 4, the old student goes half as far again as that rule does, for it does not hold back. Autoguidance is another
# direction altogether (the old student has a quarter of it), and 400 updates bring three quarters to four fifths of what was asked. Of classifier guidance the student has learnt next to nothing. The next table says why that is no loss.
#
# **And what are they worth?** Teacher and student of each rule at $w = 2$. The teacher also at *half* the steps, where a rule of two evaluations costs
# what the student costs at all of them.

# %%
judge, n = stages.make_judge(recipe, data, out), recipe.samples
most = 4 if smoke else 32
rows = []
for name, teacher in teachers.items():
    for model, kind, count in (
        (teacher, "teacher", most),
        (teacher, "teacher", most // 2),
        (students[name], "student", most),
    ):
        row = cd.evaluate(
            model, judge, data, model=f"{name}, {kind}", steps=count, w=2.0, n=n, seed=seed
        )
        rows.append(row)
print(f"{n} samples, {judge.name}, reference {judge.reference}, seed {seed}, w = 2")
print(f"{'':28s} steps  NFE  Fréchet  precision  recall  accuracy")
for row in rows:
    print(
        f"{row['model']:28s} {row['steps']:5d} {row['nfe']:4d} {row['frechet_distance']:8.2f} "
        f"{row['precision']:10.3f} {row['recall']:7.3f} {row['class_accuracy']:9.3f}"
    )

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
print(
    "evaluations of a student for every step:", {row["nfe"] // row["steps"] for row in rows[2::3]}
)
print("and of its teachers:", [row["nfe"] // row["steps"] for row in rows[::3]])

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 2: the best number of the table *(read a table, 4 minutes)*
#
# At the `laptop` profile the smallest Fréchet distance of all is that of the student of classifier guidance: 3.27. Its teacher has 22. **Why is the student so much nearer to the data?** Read both tables.
#
# (a) A student answers with averages, and so it cannot be fooled as its teacher is. It is the better model of the rule.\
# (b) It spends its 32 evaluations on 32 steps, its teacher only on 8.\
# (c) It hardly guides.\
# (d) A Fréchet distance does not read labels, and the student's digits are wrong ones.
#
# <details><summary>Hint</summary>
#
# What was it asked for, and what did it deliver?
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "best_of_the_table", "locked": false, "schema_version": 3, "solution": true, "task": false}
best_of_the_table = None
### BEGIN SOLUTION
best_of_the_table = "c"
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "best_of_the_table-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.best_of_the_table(best_of_the_table))
### BEGIN HIDDEN TESTS
assert checks.best_of_the_table(best_of_the_table).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>Why</summary>
#
# Of the 2 that it was asked for it delivers 0.3, and the rule at $w = 0.3$ is nearly the model without guidance, whose distance is small: distances fall when guidance falls. Its labels are right, see the last column.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* (a), which is what one would like to publish; (b), by counting a teacher's evaluations the wrong way: it has its 32 steps, at four each.
#
# *To discuss:* what would a fair table show beside each distance?
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# - With half the evaluations of its teacher each of the first five students is at most 1% further from the data than its teacher, and nearer than its teacher with as many. (400 samples: differences of a few per cent mean nothing.)
# - Interval and rescaled rule have a better distance and more recall than plain guidance; autoguidance has much more recall (0.73 against 0.40), at a lower precision. That is what it was made for: the weak network errs in the
#   same places, so moving away from it costs no diversity. Its student is the only one that is behind its teacher at equal evaluations.
# - **Classifier guidance fails here,** teacher first: with 128 evaluations its distance is 22, and of the samples only 85% are read as their class. The gradient of a small classifier points to where that classifier is fooled, not to where digits are.
#   A function so rough is hard to learn as well, so its student delivers 0.3 instead of 2. And see what the distance makes of that: 3.27 is the *best* number of the table, earned by not doing what was asked. No distance without
#   the delivered strength beside it.
#
# ## 3. A dial with several scales
#
# Strengths may be several: the student takes a vector. With the interval's two ends as inputs beside $w$, *one* student is the guided model with any
# interval, and the unguided one too. Each of the three has a range of its own.

# %% slideshow={"slide_type": "fragment"}
dials = ((0.0, 4.0), (0.0, 1.0), (1.0, 20.0))  # w, lower end, upper end of sigma / alpha
teacher3 = cd.GuidedDenoiser(network, null, cd.rules.interval)
student3 = cd.add_w_conditioning(network, dials)
for _ in cd.train(
    student3,
    cd.stage_one_loss(teacher3, dials),
    data,
    cd.Optim(updates=3 if smoke else 800, batch=64, rate=2.5e-3, faster={"cond_proj": 10.0}),
    cd.Run("interval-dials", seed=seed),
):
    pass
for ends in ((0.0, 20.0), (0.3, 5.0), (0.9, 2.0)):
    told = cd.delivered_w(student3, teacher3, data, (2.0, *ends), n=64 if smoke else 1024)
    print(f"sigma / alpha in ({ends[0]:g}, {ends[1]:g}]: asked for w = 2, it delivers {told:.2f}")

# %% [markdown] slideshow={"slide_type": "fragment"}
# It listens to all three dials, and gives too little: 800 updates are few for a network that starts from the teacher, and the narrower the interval, the more sharply it has to tell times apart. Notebook 03 had the same to say of $w$ alone: patience first.
#
# ## 4. The rule that stage one refuses
#
# [CFG++](https://arxiv.org/abs/2406.08070) takes $x$ from the guided prediction and the *noise* from the unconditional one, and steps to $s$ with the two. That is
# no $v$ of one point, for what it does depends on where the step ends. A student of stage one is told $z$, $t$, $c$ and $w$, and could not know:

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
try:
    cd.stage_one_loss(
        cd.GuidedDenoiser(network, null, partial(cd.rules.plus_plus, steps=8)), (0.0, 1.0)
    )
except ValueError as error:
    print(error)

# %% [markdown] slideshow={"slide_type": "fragment"}
# Of the five things on which a step of CFG++ depends, $z$, $t$, $c$, $\lambda$ and $s$, the last is the one that it is not told. But one can calculate.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 3: which weight is it? *(derive, 8 minutes)*
#
# With $\Delta = x_c - x_\varnothing$, CFG++ steps to $z_s = \alpha_s\,(x_\varnothing + \lambda \Delta) + \sigma_s\, \varepsilon_\varnothing$. Ordinary guidance with a weight $w$ takes *both* parts from the guided prediction. **For which $w$ do the two land on the same $z_s$?**
#
# <details><summary>Hint</summary>
#
# With ordinary guidance $x$ moves by $(1 + w)\,\Delta$. By how much does $\varepsilon$ move then? Both predictions fit the same $z_t = \alpha_t x + \sigma_t \varepsilon$, so $\alpha_t\,\Delta x + \sigma_t\,\Delta\varepsilon = 0$.
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "plus_plus_weight", "locked": false, "schema_version": 3, "solution": true, "task": false}
def plus_plus_weight(strength, alpha_t, sigma_t, alpha_s, sigma_s):
    """The w of ordinary guidance; strength is lambda."""
    ### BEGIN SOLUTION
    # lambda alpha_s = (1 + w) (alpha_s - sigma_s alpha_t / sigma_t)
    return strength * alpha_s * sigma_t / (alpha_s * sigma_t - sigma_s * alpha_t) - 1
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "plus_plus_weight-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.plus_plus_weight(plus_plus_weight))
### BEGIN HIDDEN TESTS
assert checks.plus_plus_weight(plus_plus_weight).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* the scale $1 + w$; $\lambda - 1$, which forgets that guidance moves the noise as well; the wrong sign of $\Delta\varepsilon$.
#
# *To discuss:* what happens to $w$ when $s$ comes close to $t$? What would a student have to know to learn this?
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# **So the step of CFG++ from $t$ to $s$ is a step of ordinary guidance** with a weight of its own,
#
# $$ 1 + w(t, s) = \lambda\, \frac{\sin \phi_t \cos \phi_s}{\sin(\phi_t - \phi_s)}, $$
#
# where $\phi$ is the angle of the schedule, $\tan \phi = \sigma / \alpha$ (a sine of a difference is what stands below the line above). **What does that look like?** For $\lambda = 0.6$ and more and more steps:

# %% slideshow={"slide_type": "fragment"}
fig, axis = plotting.figure(width=6.5, height=3.2)
for N, color, marker in zip((4, 16, 64), plotting.COLORS, "os^", strict=False):
    times = torch.arange(N, 0, -1, dtype=torch.float64) / N
    axis.plot(
        times,
        cd.rules.plus_plus_w(0.6, times, times - 1 / N, network.schedule),
        color=color,
        marker=marker,
        label=f"{N} steps",
    )
axis.set(xlabel="t", ylabel="w of the step that begins at t")
axis.legend(frameon=False)
plotting.show(
    fig,
    alt="The guidance weight of CFG++ against t, three arches that are highest half-way, at about 0 for 4 steps, 2.4 for 16 and 11.5 "
    "for 64, and at both ends fall to -0.4.",
)

# %% [markdown] slideshow={"slide_type": "slide"}
# An arch: CFG++ is a guidance interval in disguise, with a weight *below* 0 in the first step and the last. And with ever more steps it grows without end:

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
for N in (4, 16, 64, 256):
    times = torch.tensor([1, 0.5, 1 / N], dtype=torch.float64)
    first, half, last = cd.rules.plus_plus_w(0.6, times, times - 1 / N, network.schedule).tolist()
    print(
        f"{N:3d} steps: w = {first:.1f} in the first, {half:5.2f} half-way, {last:.1f} in the last"
    )

# %% [markdown] slideshow={"slide_type": "slide"}
# So there is no limit to distil. With the steps fixed there is: **stage two** knows where a step ends. Eight steps of CFG++ become four:

# %% slideshow={"slide_type": "fragment"}
plus_plus = cd.GuidedDenoiser(network, null, partial(cd.rules.plus_plus, steps=8))
halved = cd.add_w_conditioning(network, (0.0, 1.0)).for_steps(4)
for _ in cd.train(
    halved,
    cd.stage_two_loss(plus_plus, 4, halved.w_range),
    data,
    cd.Optim(updates=3 if smoke else 600, batch=64, rate=1e-3, faster={"cond_proj": 10.0}),
    cd.Run("cfg++", seed=seed),
):
    pass
digits20 = torch.arange(20) % 10
drawn = {
    "CFG++, 8 steps, 16 evaluations": cd.generate(
        plus_plus, data.shape, digits20, steps=8, w=0.6, seed=seed
    ),
    "its student, 4 steps, 4 evaluations": cd.generate(
        halved, data.shape, digits20, steps=4, w=0.6, seed=seed
    ),
    "classifier-free, 8 steps, w = 0": cd.generate(
        teachers["classifier-free"], data.shape, digits20, steps=8, w=0.0, seed=seed
    ),
}
plotting.show(
    plotting.image_rows(drawn, columns=20),
    alt="Twenty digits, 0 to 9 twice, by CFG++ with 8 steps, by its student with 4, and without guidance, from the same noise.",
)
first, second, third = drawn.values()
print(f"rms, student to CFG++:       {(first - second).square().mean().sqrt():.3f}")
print(f"rms, no guidance to CFG++:   {(first - third).square().mean().sqrt():.3f}")

# %% [markdown] slideshow={"slide_type": "fragment"}
# Four evaluations instead of sixteen, and nearer to CFG++ than the same model without guidance is. (With 8 steps and $\lambda = 0.6$ its weights are between -0.4 and 0.8, so the three lines are much alike.)
#
# ## 5. $w$ as a function of time, for nothing
#
# A student is asked anew in every step, so each step may ask for another weight. Nobody has trained for that, and nothing has to be. So an interval costs a
# student *no* evaluation, and whoever wants strong guidance early and none late just says so. The CIFAR-10 student of four steps:

# %% slideshow={"slide_type": "fragment"}
four = cd.load("cifar10/stage-two/steps-4", device=network.device)
shapes = {
    "w = 0": 0.0,
    "w = 4": 4.0,
    "4 early, then 0": lambda t: 4.0 * (t > 0.6),
    "0 early, then 4": lambda t: 4.0 * (t <= 0.6),
}
lines = {name: cd.sample(four, labels10, w, seed=seed) for name, w in shapes.items()}
plotting.show(
    plotting.image_rows(lines),
    alt="Ten CIFAR-10 pictures by the student of four steps with w = 0, w = 4, 4 in the first two steps only, and 4 in the last two only.",
)
for name in ("4 early, then 0", "0 early, then 4"):
    away = [(lines[name] - lines[end]).square().mean().sqrt().item() for end in ("w = 0", "w = 4")]
    print(f"{name}: rms {away[0]:.3f} to the pictures of w = 0, {away[1]:.3f} to those of w = 4")

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
four.nfe = 0
cd.sample(four, ["horse"], lambda t: 4.0 * (t > 0.6), seed=seed)
print("evaluations of the student in its four steps:", four.nfe)

# %% [markdown] slideshow={"slide_type": "fragment"}
# The first two steps decide nearly everything. Guided early, the pictures are those of $w = 4$, a little softer; guided late, those of $w = 0$ with stronger colours.
#
# **Set the weight of each step yourself.** Which of the four can be 0 without a loss? Does the last one do anything?


# %% slideshow={"slide_type": "slide"}
def step_by_step(first, second, third, fourth, label):
    def w(t):
        """t [b], all of them 4/4, 3/4, 2/4 or 1/4."""
        return t.new_tensor([fourth, third, second, first])[(4 * t).round().long() - 1]

    rows = {
        "no guidance": 0.0,
        "as you set it": w,
        "w = 4 in all steps": 4.0,
    }
    drawn = {name: cd.sample(four, [label] * 8, w, seed=seed) for name, w in rows.items()}
    return plotting.image_rows(drawn, columns=8)


step, names = (0.0, 4.0, 0.5), ["horse", "ship", "cat", "frog", "airplane", "truck"]
widgets.explore(
    step_by_step,
    "Eight horses by the student of four steps without guidance, with w = 4 in the first step alone, and with w = 4 in all steps. The second "
    "row resembles the third.",
    first=(4.0, *step),
    second=(0.0, *step),
    third=(0.0, *step),
    fourth=(0.0, *step),
    label=names,
)

# %% [markdown] slideshow={"slide_type": "slide"}
# ## 6. Negative prompts
#
# What people ask of distilled models more than anything else: *not this*. A guided teacher puts the unwanted condition in the place of the null, $(1 + w)\,v_c - w\,v_n$.
# A student $S(c, w)$ has no such place.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 4: not this *(fill in, 5 minutes)*
#
# **Guide a student away from a condition**, with two evaluations and without any training.
#
# <details><summary>Hint</summary>
#
# What is $S(c, 0)$, if the student is perfect? And $S(n, 0)$?
#
# </details>


# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "not_this", "locked": false, "schema_version": 3, "solution": true, "task": false}
def not_this(student, cond, negative, w):
    """(1 + w) v_c - w v_n; student(cond, w) gives a v."""
    ### BEGIN SOLUTION
    return (1 + w) * student(cond, 0.0) - w * student(negative, 0.0)
    ### END SOLUTION


# %% nbgrader={"grade": true, "grade_id": "not_this-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.not_this(not_this))
### BEGIN HIDDEN TESTS
assert checks.not_this(not_this).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* asking the student for `w` as well, which guides twice; leaving the student out of one half.
#
# *To discuss:* the students of FLUX and LCM were never trained at $w = 0$. Which two of their answers give $v_c$?
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# At $w = 0$ a perfect student *is* the conditional model, whatever the condition; so two evaluations of it give exactly
# that, $(1 + w)\,S(c, 0) - w\,S(n, 0)$. (`cd.sample(..., negative=...)` does.)

# %% slideshow={"slide_type": "fragment"}
stage_one = cd.load("cifar10/stage-one", device=network.device)
wanted, unwanted = ["horse", "ship", "truck", "frog", "cat"], "automobile"
if smoke:
    wanted = wanted[:2]
how = dict(w=2.0, seed=seed, steps=steps)
against = cd.GuidedDenoiser(photographs, 1)  # 1 is the label of automobiles
lines = {
    "teacher, no negative": cd.sample(photographs, wanted, **how),
    "teacher, not an automobile": cd.sample(against, wanted, **how),
    "stage one, not an automobile": cd.sample(stage_one, wanted, negative=unwanted, **how),
    "4 steps, not an automobile": cd.sample(four, wanted, 2.0, seed=seed, negative=unwanted),
}
plotting.show(
    plotting.image_rows(lines, columns=8),
    alt="A horse, a ship, a truck, a frog and a cat by the teacher, and again with automobile as the negative, by the teacher, by stage one and by the student of four steps.",
)
truth = lines["teacher, not an automobile"]
for name in list(lines)[2:]:
    print(f"{name}: rms {(lines[name] - truth).square().mean().sqrt():.3f} to the teacher's")
away = (lines["teacher, no negative"] - truth).square().mean().sqrt()
print(f"what the negative does to the teacher's pictures: rms {away:.3f}")

# %% [markdown]
# The negative keeps the composition and takes what is like a car out of it. Stage one is as exact here as at $w = 0$; four steps follow less closely, but they follow: their distance to the teacher's is well below what the
# negative itself does. With fewer steps it ends: a step over half of the way is no velocity, and two of them cannot be combined.

# %%
# NBVAL_CHECK_OUTPUT
try:
    cd.sample(cd.load("cifar10/stage-two/steps-2"), ["horse"], negative="automobile")
except ValueError as error:
    print(error.args[0].split(" (")[0])

# %% [markdown] slideshow={"slide_type": "slide"}
# **Can the negative be an input, too, like $w$?** Then stage one asks for $(1 + w)\,v_c - w\,v_n$ outright, with pairs of conditions: the negative is that of some other example, or, half the
# time, the null. Its features enter the network beside those of $w$, and weigh nothing at first. Halved as ever, `get_recipe(..., negatives=True)`, such students come with the package for digits. Fours that are to be no nines:

# %% slideshow={"slide_type": "fragment"}
teacher = cd.load("digits/teacher", device=network.device)
fours, nine, how = [4] * 50, 9, dict(w=2.0, seed=seed)
truth = cd.sample(cd.GuidedDenoiser(teacher, nine), fours, steps=32, **how)
lines = {
    "teacher, no negative": cd.sample(teacher, fours, steps=32, **how),
    "teacher, no nine": truth,
}
away = {"32 steps": [(lines["teacher, no negative"] - truth).square().mean().sqrt().item()]}
for n in (4, 2, 1):
    plain = cd.load(f"digits/stage-two/steps-{n}", device=network.device)
    told = cd.load(f"digits/stage-two-negatives/steps-{n}", device=network.device)
    lines[f"told, {n} NFE"] = cd.sample(told, fours, negative=nine, **how)
    drawn = [cd.sample(plain, fours, **how), lines[f"told, {n} NFE"]]
    if n == 4:
        drawn.append(cd.sample(plain, fours, negative=nine, **how))
    away[f"{n} steps"] = [(x - truth).square().mean().sqrt().item() for x in drawn]
plotting.show(
    plotting.image_rows({name: x[:10] for name, x in lines.items()}),
    alt="Ten fours at w = 2 by the teacher, which are rounder and closed; the same without nines, open at the top; and by students of 4, 2 and 1 steps that were told so.",
)
print(
    "rms to the teacher's, guided away from 9: not told, told as an input, two evaluations a step"
)
for name, row in away.items():
    print(f"{name:8s}", *(f"{value:.3f}" for value in row))

# %%
# NBVAL_CHECK_OUTPUT
told = [row[1] < row[0] / 2 for name, row in away.items() if name != "32 steps"]
print("being told halves the distance at 4, 2 and 1 steps:", *told)

# %% [markdown]
# Told as an input, the negative is followed to about what a student gets wrong anyway, down to a single evaluation; and with 4 steps it is nearer than two
# evaluations are, each of which adds an error of its own. It is no shortcut: stage one took as many updates as before, and without any negative these students are a little
# farther from the teacher than those that know $w$ alone.

# %% [markdown] slideshow={"slide_type": "slide"}
# **Why "true CFG on top" looks burnt.** Some put classifier-free guidance around a student that is *already* asked for a weight, $(1 + u)\,S(c, w) - u\,S(\varnothing, w)$.
# At the null both halves of $S$ are the same, so $S(\varnothing, w) = v_\varnothing$.

# %% [markdown] slideshow={"slide_type": "slide"}
# ### Exercise 5: how much may be put on top? *(predict before the figure, 4 minutes)*
#
# A student is asked for $w = 2$, and you want pictures of $w = 5$. **With which weight $u$ is it to be guided once more?**
#
# <details><summary>Hint</summary>
#
# Put $S(c, w) = (1 + w)\,v_c - w\,v_\varnothing$ and $S(\varnothing, w) = v_\varnothing$ in, and look at what stands before $v_c$.
#
# </details>

# %% cellView="form" jupyter={"source_hidden": true} nbgrader={"grade": false, "grade_id": "weight_on_top", "locked": false, "schema_version": 3, "solution": true, "task": false}
weight_on_top = None
### BEGIN SOLUTION
weight_on_top = 1
### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "weight_on_top-check", "points": 1, "locked": true, "schema_version": 3, "solution": false, "task": false}
# NBVAL_CHECK_OUTPUT
print(checks.weight_on_top(weight_on_top))
### BEGIN HIDDEN TESTS
assert checks.weight_on_top(weight_on_top).startswith("Right")
### END HIDDEN TESTS

# %% [markdown] slideshow={"slide_type": "fragment"} tags=["solution"]
# <details><summary>Why</summary>
#
# $(1 + u)(1 + 2) = 1 + 5$. Before $v_c$ stands $(1 + u)(1 + w)$, so it is the scales that multiply.
#
# </details>

# %% [markdown] tags=["instructor"]
# <details><summary>For teachers</summary>
#
# *Common wrong answers:* 3, as if weights added up; 2, the scale; 5, as if the student gave none.
#
# *To discuss:* is there a $u$ that takes guidance *away* from a student?
#
# </details>

# %% [markdown] slideshow={"slide_type": "slide"}
# **The two weights do not add up.** They multiply: what comes out is guidance with
#
# $$ (1 + u)(1 + w) - 1. $$
#
# Two innocent weights of 2 make an 8:

# %% slideshow={"slide_type": "fragment"}
# NBVAL_CHECK_OUTPUT
teacher = teachers["classifier-free"]
twice = cd.guide(
    teacher(z, t, labels, 2.0).v, teacher(z, t, torch.full_like(labels, null), 2.0).v, 2.0
)
off = (twice - teacher(z, t, labels, 8.0).v).abs().max().item()
print(f"guidance of 2 around guidance of 2 is guidance of 8: off by less than 0.001: {off < 1e-3}")


# %% slideshow={"slide_type": "fragment"}
def on_top(at, w):
    """Guidance around a student that gives w = 2 already."""
    cond, uncond = (stage_one(at.z, at.t.flatten(), c, 2.0).v for c in (at.cond, at.null))
    return cd.guide(cond, uncond, w)


lines = {
    "stage one at w = 2": cd.sample(stage_one, labels10, **how),
    "and true CFG of 2 on top": cd.sample(
        cd.GuidedDenoiser(photographs, null, on_top), labels10, **how
    ),
    "the teacher at w = 8": cd.sample(photographs, labels10, 8.0, seed=seed, steps=steps),
}
plotting.show(
    plotting.image_rows(lines),
    alt="Ten CIFAR-10 pictures by stage one at w = 2, by guidance of 2 around it, and by the teacher at w = 8.",
)

# %% [markdown]
# Black, glaring, and like nothing that was asked for: not a fault of the student, but arithmetic. [Notebook 14](14_bug_museum.ipynb) has it among its exhibits.
#
# ## Further questions
#
# 1. Write a rule that guides with $w$ where $t > 0.5$ and with $w/2$ below. Which of section 2's students needs no training to follow it?
# 2. `rules.rescaled(phi=1)` gives every example the spread of $v_c$. Distil it. Why can its student not be read off two of its answers, as one of
#    classifier-free guidance can?
# 3. Autoguidance with a weak network that was trained *without* the label would be something else. What? (Hint: what does it predict?)
# 4. Ask the three-dialled student for an interval that lies between two of the grid points of four steps. What does it draw, and what should it?
# 5. `diffusers.guiders` has a dozen rules. `cd.guider_rule(guider)` takes most of them. Which does it refuse, and what have they in common?
#
# **Next:** [13 · Your own teacher](13_your_own_teacher.ipynb).

# %%
stages.print_provenance(recipe, data, "12_guidance_rules")
