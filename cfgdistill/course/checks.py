"""Checks of the exercises: each takes the reader's answer and says in a sentence what is wrong.

Readers write anything, so an answer may be of any type. A check knows the right one from elsewhere,
a closed form or the package, and also what the usual mistakes give. Its sentence begins with
"Right" where the answer is right, however it was written.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from cfgdistill.core.rules import plus_plus_w
from cfgdistill.core.schedules import CosineSchedule, DiscreteSchedule
from cfgdistill.data.toy import pinwheel

NOTHING = "Nothing here yet: put your answer where the three dots are."


def _judge(
    found, right, praise: str, mistakes: Mapping[str, object], tolerance=1e-4, where: str = ""
) -> str:
    """What a number or tensor deserves to hear; mistakes: {what to say: what the mistake gives}.

    where: for which of several questions it is, said of what is wrong
    """
    if _blank(found):
        return NOTHING
    try:
        found = torch.as_tensor(found).detach().double().cpu()
    except (TypeError, ValueError, RuntimeError):
        kind = "a number" if torch.as_tensor(right).ndim == 0 else "a tensor"
        return f"Not yet: the answer should be {kind}, and this is a {type(found).__name__}."
    right = torch.as_tensor(right).double()
    if _near(found, right, tolerance):
        return f"Right. {praise}"
    for message, wrong in mistakes.items():
        if _near(found, torch.as_tensor(wrong).double(), tolerance):
            return f"Not yet: {message}{where}"
    if found.shape != right.shape:
        return f"Not yet: the shape should be {[*right.shape]}, and it is {[*found.shape]}.{where}"
    if not found.isfinite().all():
        return f"Not yet: not all of it is finite. Something was divided by zero.{where}"
    return f"Not yet: it is off by up to {(found - right).abs().max():.2g}.{where}"


def _blank(found) -> bool:
    return found is None or found is ...


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance).all())


def _choose(found, praise: str, right: str, others: Mapping[str, str]) -> str:
    """The same for a letter."""
    if _blank(found):
        return NOTHING
    letter = str(found).strip().strip("().").lower()
    if letter == right:
        return f"Right. {praise}"
    if letter in others:
        return f"Not yet: {others[letter]}"
    return f"Not yet: answer with one of the letters {', '.join(sorted([right, *others]))}."


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _set(found) -> set:
    """One thing, or several in a set, list or tuple, as a set."""
    return set(found) if isinstance(found, set | frozenset | list | tuple) else {found}


# ---- 00, two dimensions ---------------------------------------------------------------------


def average(answer) -> str:
    """answer(z_t, x, place): the mean of the x whose z_t is within 0.1 of a place."""
    mixture, schedule, generator = pinwheel(), CosineSchedule(), torch.Generator().manual_seed(0)
    x, _ = mixture.sample(1_000_000, generator)
    eps, t = torch.randn(x.shape, generator=generator), torch.full((len(x),), 0.5)
    z_t = schedule.add_noise(x, eps, t)
    place = torch.tensor([0.6, 0.3])
    right = mixture.denoiser(schedule)(place[None], 0.5, torch.tensor([mixture.num_classes])).x[0]
    distance = (z_t - place).norm(dim=1)
    near = distance < 0.1
    mistakes = {
        "this is the place itself. Select by z_t, but average the x behind it.": place,
        "this is the place divided by alpha. That undoes the scaling, not the noise.": place
        / schedule.alpha_sigma(torch.tensor([0.5]))[0],
        "this is the average of all x. Only those whose z_t is near the place count.": x.mean(0),
        "this is one x, a sample. The guess is the average of all that are possible.": x[
            distance.argmin()
        ],
        "this is a sum. Divide it by the number of points.": x[near].sum(0),
    }
    praise = "By counting, without a formula: the guess is an average."
    return _judge(answer(z_t, x, place), right, praise, mistakes, tolerance=0.03)


def landing(answer) -> str:
    """Where the exact teacher's single step lands at w = 3, in multiples of the class mean."""
    mistakes = {
        "that is without guidance. The guess of the class is exaggerated by 1 + w.": 1.0,
        "the class is weighted with 1 + w, not with w.": 3.0,
        "the mean of everything is 0, and with class the guess moves away from it.": 0.0,
    }
    praise = "(1 + 3) times the class mean, less 3 times the mean of all, which is 0."
    return _judge(answer, 4.0, praise, mistakes)


def implied_x(answer) -> str:
    """answer(z_t, z_s, alpha_t, sigma_t, alpha_s, sigma_s): the x consistent with both ends."""
    for t, s in ((1.0, 0.5), (0.5, 0.25), (0.25, 0.0)):
        levels = CosineSchedule().alpha_sigma(torch.tensor([t, s], dtype=torch.float64))
        (alpha_t, alpha_s), (sigma_t, sigma_s) = levels
        x, eps = _random(2, 20, 2)
        z_t, z_s = alpha_t * x + sigma_t * eps, alpha_s * x + sigma_s * eps
        ratio = sigma_s / sigma_t
        mistakes = {
            "z_s is not only alpha_s x: the noise in it has to go.": z_s / alpha_s,
            "the noise is added up instead of taken out. Look at the sign.": (z_s + ratio * z_t)
            / (alpha_s + ratio * alpha_t),
            "the noise cancels only if z_t is multiplied by sigma_s / sigma_t first.": (z_s - z_t)
            / (alpha_s - alpha_t),
            "z_t is to be multiplied by sigma_s / sigma_t in the denominator as well.": (
                z_s - ratio * z_t
            )
            / alpha_s,
            "this is the noise eps. Eliminate eps and keep x.": eps,
        }
        found = answer(z_t, z_s, alpha_t, sigma_t, alpha_s, sigma_s)
        praise = "From any two points of a straight mixture you get back what was mixed."
        said = _judge(found, x, praise, mistakes, where=f" (From t = {t:g} to s = {s:g}.)")
        if not said.startswith("Right"):
            break
    return said


def second_x_lands(answer) -> str:
    """The intervals i of N = 4 in which a step with the teacher's second x lands on z_s."""
    if _blank(answer):
        return NOTHING
    found = _set(answer)
    if found == {1}:
        return "Right. At s = 0 there is no noise left, and z_s is the second x itself."
    if not found:
        return "Not yet: there is one. At which s does eps drop out of z_s?"
    if 1 not in found:
        return "Not yet: intervals count down to the data. The noise drops out of z_s at s = 0."
    return "Not yet: at s > 0 the noise that belongs to this x at z_t is not the teacher's."


def share_of_stage_one(answer, stage_one: float, student: float) -> str:
    """The share of a student's squared error that stage one had, from the two mse."""
    right = stage_one / student
    mistakes = {
        "this compares the roots. Squared errors of independent causes add up, their roots do "
        "not.": math.sqrt(right),
        "this is the other way round. The part divided by the whole.": 1 / right,
        "this is the share of the halvings. What is left of 1?": 1 - right,
        "a share is a number from 0 to 1.": 100 * right,
    }
    praise = "Squared errors add up, so this is stage one's part of the whole."
    return _judge(answer, right, praise, mistakes, tolerance=0.02)


# ---- 01, schedules and parameterisations ----------------------------------------------------


def from_v(answer) -> str:
    """answer(v, z, alpha, sigma): x and eps."""
    x, eps = _random(2, 20, 2)
    phi = torch.tensor(0.6, dtype=torch.float64)
    alpha, sigma = phi.cos(), phi.sin()
    z, v = alpha * x + sigma * eps, alpha * eps - sigma * x
    found = answer(v, z, alpha, sigma)
    if _blank(found):
        return NOTHING
    if not (isinstance(found, list | tuple) and len(found) == 2):
        return "Not yet: return two things, x and eps."
    mistakes = {
        "the sign of v in x. v leads away from the data.": alpha * z + sigma * v,
        "alpha and sigma are swapped in x.": sigma * z - alpha * v,
        "these are eps and x. The first is to be x.": eps,
    }
    said = _judge(found[0], x, "", mistakes)
    if said.startswith("Right"):
        mistakes = {
            "the sign of v in eps. v leads towards the noise.": sigma * z - alpha * v,
            "alpha and sigma are swapped in eps.": alpha * z + sigma * v,
        }
        return _judge(found[1], eps, "Two arms turned back by the angle phi.", mistakes)
    return said


def explosions(answer) -> str:
    """{"t = 1": ..., "t = 0": ..., "one step": ...}, each a set of "x", "eps", "v"."""
    if any(_blank(value) for value in answer.values()):
        return NOTHING
    if "v" in _set(answer["t = 1"]) | _set(answer["t = 0"]):
        return "Not yet: from v one multiplies by alpha and sigma only, which never exceed 1."
    if _set(answer["t = 1"]) == {"x"} and _set(answer["t = 0"]) == {"eps"}:
        return "Not yet: it is the other way round. z_1 is the noise, so there eps says nothing."
    if _set(answer["t = 1"]) != {"eps"}:
        return "Not yet: at t = 1, alpha is 0. Which branch divides by alpha?"
    if _set(answer["t = 0"]) != {"x"}:
        return "Not yet: at t = 0, sigma is 0. Which branch divides by sigma?"
    if "eps" in _set(answer["one step"]):
        return "Not yet: a one-step student is asked at t = 1 only, where eps says nothing."
    if _set(answer["one step"]) == {"v"}:
        return "Not yet: v can be used, and it is not the only one. What is v at t = 1?"
    if _set(answer["one step"]) == {"x"}:
        return "Not yet: x can be used, and it is not the only one. What is v at t = 1?"
    if _set(answer["one step"]) != {"x", "v"}:
        return "Not yet: two of the three can be used in one step."
    return "Right. At t = 1 v is -x, so for one step the two are the same."


def implied(answer) -> str:
    """answer(z_t, z_s, d): the v of the step by the angle d from z_t to z_s."""
    z_t, v = _random(2, 20, 2)
    for d in (-0.7, -math.pi / 2, 0.4):
        d = torch.tensor(d, dtype=torch.float64)
        z_s = d.cos() * z_t + d.sin() * v
        mistakes = {
            "z_t is turned as well: take off cos(d) z_t, not z_t.": (z_s - z_t) / d.sin(),
            "that is the difference quotient. It holds for small angles only.": (z_s - z_t) / d,
            "the sign of d. It is the angle at s less the angle at t.": -v,
            "divide by sin(d), not by d.": (z_s - d.cos() * z_t) / d,
            "the part of z_t is to be taken off.": (z_s + d.cos() * z_t) / d.sin(),
        }
        praise = "It holds for long steps, and for steps up to the noise too."
        said = _judge(answer(z_t, z_s, d), v, praise, mistakes, where=f" (For d = {d:.1f}.)")
        if not said.startswith("Right"):
            break
    return said


def zero_terminal_snr(answer) -> str:
    """answer(alphas_cumprod): the same table with alpha_1 = 0 and its first entry kept."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    table = (1 - betas).cumprod(0)
    right = DiscreteSchedule(table).zero_terminal_snr().alphas_cumprod
    alpha = table.sqrt()
    cut = table.clone()
    cut[-1] = 0
    mistakes = {
        "shift alpha, the square root of the table, not the table itself.": (table - table[-1])
        * table[0]
        / (table[0] - table[-1]),
        "the last entry is 0, but the first is no longer what it was. Scale it back.": (
            alpha - alpha[-1]
        ).square(),
        "this is alpha. The table holds its square.": right.sqrt(),
        "one entry is not enough: the one before it still shows the image.": cut,
        "nothing has changed yet.": table,
    }
    praise = "Shifted to 0 at the end, scaled to what it was at the start."
    return _judge(answer(table.clone()), right, praise, mistakes, tolerance=1e-7)


# ---- 02, the guided teacher -----------------------------------------------------------------


def drop_label(answer) -> str:
    """answer(cond, u, drop, null): the labels, null where u says so."""
    cond, null, drop = torch.arange(40) % 10, 10, 0.1
    u = torch.rand(40, generator=torch.Generator().manual_seed(3))
    right = torch.where(u < drop, null, cond)
    mistakes = {
        "this drops nine tenths. The loss looks fine, the labels are not learnt.": torch.where(
            u > drop, null, cond
        ),
        "0 is the label of a class. The null label is one of its own.": torch.where(
            u < drop, 0, cond
        ),
        "no label is dropped.": cond,
        "all labels are dropped.": torch.full_like(cond, null),
    }
    praise = f"{int((u < drop).sum())} of 40 labels are gone."
    return _judge(answer(cond, u, drop, null), right, praise, mistakes)


def count_nfe(answer) -> str:
    """Evaluations of 32 steps that are guided while t > 0.3 only."""
    guided = sum(i / 32 > 0.3 for i in range(1, 33))
    mistakes = {
        "that is without the steps that are not guided. They cost one each.": 2 * guided,
        "those steps are not free: seven tenths of 64 leaves them out.": 45,
        "not every step asks twice, and none is free.": 64,
        "so many steps are there. Most of them ask twice.": 32,
        "count the times i/32 again: which is the last above 0.3?": 2 * guided + 32 - guided - 1,
        "count the times i/32 again: which is the first above 0.3?": 2 * guided + 32 - guided + 1,
    }
    praise = f"{guided} steps ask twice, {32 - guided} once."
    return _judge(answer, 32 + guided, praise, mistakes, tolerance=0.3)


def null_as_label(answer) -> str:
    """What w does where the label is the null label."""
    others = {
        "a": "the label is null, and so is the other. Is there anything between the two answers?",
        "c": "for that the two answers would have to differ. Do they?",
        "d": "the network knows the null label, it was trained with it.",
    }
    praise = "The two answers are one and the same, so any w gives (1 + w) v - w v = v."
    return _choose(answer, praise, "b", others)


def order_at_one_step(answer, dataset: str) -> str:
    """The weights 0, 1, 3 by the distance of the teacher's single step, best first."""
    if _blank(answer):
        return NOTHING
    order = [float(w) for w in answer]
    digits = dataset == "digits"
    if order == ([1, 3, 0] if digits else [3, 1, 0]):
        return "Right. An average of a class has too little contrast, and guidance gives some back."
    if sorted(order) != [0, 1, 3]:
        return "Not yet: put the three weights 0, 1 and 3 in order."
    if order == [0, 1, 3]:
        return "Not yet: that is the order of many steps, where guidance costs diversity."
    if order == [3, 1, 0]:
        return "Not yet: w = 0 is last, but four times the contrast is more than digits have."
    if order == [1, 3, 0]:
        return "Not yet: w = 0 is last. Is four times the contrast too much for a grey photograph?"
    return "Not yet: an average has too little contrast. Which w gives some back, and not too much?"


# ---- 03, stage one --------------------------------------------------------------------------


def affine_in_w(answer) -> str:
    """Which of the two targets is affine in w."""
    others = {
        "a": "guidance in the first of two steps moves the place where the second one begins.",
        "c": "(1 + w) v - w v' is affine in w, whatever the two answers are.",
        "d": "(1 + w) v - w v' is affine in w, whatever the two answers are.",
    }
    return _choose(answer, "One evaluation is affine in w. A walk of two is not.", "b", others)


def guided_target(answer) -> str:
    """answer(v_cond, v_uncond, w): what the pair says, each example at its own w."""
    return _guided(
        answer,
        "Every example at its own w.",
        columns="w went along the columns of the images, since batch and width are both 8. "
        "Expand it.",
        swapped="the two answers are swapped. With w = 0 the label must decide.",
        scale="this is with guidance_scale = w. Ours is 1 + w, and w = 0 is the answer with label.",
        more=lambda v, u, w: {
            "the weights must add up to 1, or the target is too large.": (1 + w) * v + w * u
        },
    )


def _guided(
    answer, praise: str, *, columns: str, swapped: str, scale: str, more: Callable[..., dict]
) -> str:
    """Of answer(v, u, w), which should be v + w (v - u), each example at its own w.

    columns, swapped, scale: what to say where w ran along the width, v and u are exchanged, or w is
    the scale 1 + w; more(v, u, w): further mistakes
    """
    v, u = _random(2, 8, 1, 8, 8)  # a batch as large as an image is wide
    w = torch.linspace(0, 4, 8, dtype=torch.float64)
    each = w.reshape(8, 1, 1, 1)
    mistakes = {
        columns: v + w * (v - u),
        swapped: u + each * (u - v),
        scale: u + each * (v - u),
        **more(v, u, each),
    }
    return _judge(answer(v, u, w), v + each * (v - u), praise, mistakes)


def blind_w(answer) -> str:
    """answer(w, k): the one number that minimises the mean of k (w - number)^2."""
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    w = 4 * u
    k = 1 / (1 + w) ** 2
    right = (math.log(5) - 0.8) / 0.8  # int w / (1 + w)^2 over int 1 / (1 + w)^2, from 0 to 4
    mistakes = {
        "this is the mean of w. Errors at some w weigh more than at others: use k.": 2.0,
        "divide by the sum of k as well, as in every weighted mean.": (k * w).mean(),
        "that is where k is largest, or w. One number has to do for all of them.": 0.0,
        "the answer is a mean, not the largest w, however large its errors are.": 4.0,
        "this is sum of k w over sum of w: a mean of k.": (k * w).sum() / w.sum(),
    }
    praise = "A mean of w, weighted by k. With uniform w and no weight it is 2."
    return _judge(answer(w, k), right, praise, mistakes, tolerance=0.01)


def delivered(answer) -> str:
    """answer(v_student, v_cond, v_uncond): the w at which the pair is nearest to the student."""
    v_cond, v_uncond, noise = _random(3, 64, 8)
    along = v_cond - v_uncond
    noise = noise - (noise * along).sum() / along.square().sum() * along
    v_student = v_cond + 1.7 * along + 0.5 * noise
    off = v_student - v_cond
    mistakes = {
        "a mean of quotients. Where the two answers agree it divides by nearly nothing.": (
            off / along
        ).mean(),
        "lengths also count what lies beside the line. Project on it.": off.norm() / along.norm(),
        "from v_uncond it is the guidance scale, which is 1 + w. Start at v_cond.": 2.7,
        "the direction leads from without label to with label.": -1.7,
        "divide by the squared length of the direction, not by its length.": (off * along).sum()
        / along.norm(),
    }
    return _judge(answer(v_student, v_cond, v_uncond), 1.7, "It is a projection.", mistakes)


def cautious(answer) -> str:
    """answer(share, k): the delivered share of w if errors along the guidance count 1 + k times."""
    share, k = torch.tensor([0.5, 0.8, 0.8, 1.0]).double(), torch.tensor([1.0, 0.0, 3.0, 2.0])
    a = (1 + k) / (1 + k * share)
    mistakes = {
        "this is a, the length of the answer beside m's. Project it on d.": a,
        "that is what least squares delivers, with k = 0. A larger k pays for more.": share,
        "with k = 3 that is more than was asked for: divide by what the square in a has.": (
            (1 + k) * share
        ),
        "R^2 is counted twice: the projection of m on d is R^2, and not its square.": a * share**2,
        "this is what is missing. What is delivered?": 1 - a * share,
    }
    praise = "It is R^2 with k = 0, and tends to 1 as k grows; with R^2 = 1 it is always 1."
    return _judge(answer(share, k), a * share, praise, mistakes)


# ---- 04, stage two --------------------------------------------------------------------------


def two_in_one(answer) -> str:
    """answer(v_1, v_2, z, d): the v of one step by 2d that equals two by d, from v_1 and v_2."""
    v_1, v_2, z = _random(3, 20, 2)
    for N in (8, 2, 1):
        d = torch.tensor(-math.pi / 4 / N, dtype=torch.float64)
        z_mid = d.cos() * z + d.sin() * v_1
        z_s = d.cos() * z_mid + d.sin() * v_2
        mistakes = {
            "the mean of the two is what it comes to for short steps only.": (v_1 + v_2) / 2,
            "the student starts at z, not at the midpoint, where v_2 is all there is.": v_2,
            "the sign of the tangent.": (v_1 + v_2 / d.cos() - d.tan() * z) / 2,
            "z is missing: both steps turn it.": (v_1 + v_2 / d.cos()) / 2,
            "this is twice as much.": v_1 + v_2 / d.cos() + d.tan() * z,
            "sin(2d) is 2 sin(d) cos(d), so cos(d) belongs below v_2.": (
                (v_1 + v_2 * d.cos() + d.tan() * z) / 2
            ),
        }
        right = (z_s - (2 * d).cos() * z) / (2 * d).sin()
        praise = "For short steps it is the mean of the two, for one step it is far from it."
        said = _judge(answer(v_1, v_2, z, d), right, praise, mistakes, where=f" (N = {N}.)")
        if not said.startswith("Right"):
            break
    return said


def where_it_misses(answer) -> str:
    """{"most": i, "not at all": i}, intervals of N = 4 with the teacher's second x as target."""
    if any(_blank(value) for value in answer.values()):
        return NOTHING
    most, least = answer["most"], answer["not at all"]
    if least != 1:
        return "Not yet: it misses nowhere where z_s has no noise. Which interval ends at s = 0?"
    if most == 4:
        return "Not yet: at t = 1 the two guesses are much alike, both are averages."
    if most == 1:
        return "Not yet: the same interval cannot be both."
    if most == 3:
        return "Not yet: near. The two guesses part most where the picture is being decided."
    if most != 2:
        return "Not yet: name an interval from 1, which ends at the data, to 4."
    return "Right. It is exact at the end alone, and worst just before it."


def least_gain(answer, student: Mapping, teacher: Mapping) -> str:
    """The w at which a student's rmse is least below the teacher's; both {w: rmse}."""
    if _blank(answer):
        return NOTHING
    ratio = {w: student[w] / teacher[w] for w in student}
    if answer not in ratio:
        return f"Not yet: name one of the weights {', '.join(f'{w:g}' for w in ratio)}."
    if answer == max(ratio, key=ratio.__getitem__):
        return "Right. At equal cost, one w after the other."
    if answer == min(ratio, key=ratio.__getitem__):
        return "Not yet: there the student gains most. Compare it with the teacher at equal cost."
    return "Not yet: a quotient of student and teacher for each w. Where is it largest?"


def staircase(answer) -> str:
    """How many times as many evaluations the targets of a whole walk cost: 64 for 600 updates."""
    stairs, whole = 2 * (3 * 200 + 3 * 600), 64 * 600
    mistakes = {
        # Two mistakes that give the same number.
        "a target of a halving takes two evaluations, and the last three students get 600 "
        "updates each.": 2 * whole / stairs,
        "this is for one target. The six students do not have as many updates as the one.": 32,
        "this is the other way round.": stairs / whole,
        "the first three students get 200 updates each.": whole / (2 * 6 * 600),
        "this is a difference. Divide.": whole - stairs,
    }
    praise = "4,800 evaluations for each image of a batch, against 38,400."
    return _judge(answer, whole / stairs, praise, mistakes, tolerance=0.01)


# ---- 05, the stochastic sampler -------------------------------------------------------------


def added_noise(answer) -> str:
    """answer(alpha_k, sigma_k, alpha_s, sigma_s): how much noise is added on the way up to s."""
    t = torch.arange(1, 64, dtype=torch.float64) / 64
    (alpha_k, sigma_k), (alpha_s, sigma_s) = (CosineSchedule().alpha_sigma(a) for a in (t / 2, t))
    ratio = alpha_s / alpha_k
    variance = sigma_s**2 - ratio**2 * sigma_k**2
    mistakes = {
        "variances add up, standard deviations do not.": sigma_s - ratio * sigma_k,
        "the noise that is there already has been scaled down as well.": (
            sigma_s**2 - sigma_k**2
        ).sqrt(),
        "this is the variance. Its root multiplies the noise.": variance,
        "this is all of sigma_s, as if z_k had no noise.": sigma_s,
    }
    praise = "No model can tell the result from a freshly noised image."
    return _judge(answer(alpha_k, sigma_k, alpha_s, sigma_s), variance.sqrt(), praise, mistakes)


def jump_times(answer) -> str:
    """answer(i, N): t, mid and s of a student's jump, and of the two of its teacher."""
    for i in (4, 3, 2, 1):
        found = answer(i, 4)
        if _blank(found):
            return NOTHING
        t, mid, s = (float(time) for time in found)
        where = f" (At i = {i}, N = 4.)"
        if abs(t - i / 4) > 1e-9:
            return f"Not yet: the student is asked at t = i/N.{where}"
        if min(mid, s) < 0:
            return f"Not yet: a time below 0. At the edge there is no room for two jumps.{where}"
        if i > 1 and abs(s - (i - 1) / 4) < 1e-9:
            return f"Not yet: that is the step of DDIM. These jumps are twice as long.{where}"
        if i == 1 and mid > 0:
            return f"Not yet: the teacher knows no jump of half that length. One of its own.{where}"
        if (mid, s) != (max(i - 1, 0) / 4, max(i - 2, 0) / 4):
            return f"Not yet: the teacher's jumps are 1/N long, and there are two of them.{where}"
    return "Right. The teacher is asked for nothing but what it was trained for."


def long_enough(answer) -> str:
    """Where the chain on the Gaussian has to start for a variance of 0.39 or more."""
    others = {
        "a": "with 32 steps the first halving loses 0.03.",
        "b": "it is 0.383. Every doubling at the start halves the loss.",
        "d": "that will do, but half of it does too.",
    }
    return _choose(answer, "The first halving decides, not their number.", "c", others)


# ---- 06, encoders and style transfer --------------------------------------------------------


def place_along_the_arm(answer) -> str:
    """The sign of the rank correlation between places along two arms."""
    others = {
        "a": "the flow knows nothing of arms. It keeps where a point is in the plane.",
        "b": "something is kept: look at the colours, on top and below.",
    }
    praise = "What is kept is the place in the plane, and an arm runs there another way."
    return _choose(answer, praise, "c", others)


def slerp(answer) -> str:
    """answer(a, b, u): the point at share u of the great circle from a to b, of equal length."""
    a, b = _random(2, 64)
    b = b * a.norm() / b.norm()
    angle = torch.arccos((a @ b) / (a.norm() * b.norm()))
    for u in (0.0, 0.3, 1.0):
        line = (1 - u) * a + u * b
        right = (torch.sin((1 - u) * angle) * a + torch.sin(u * angle) * b) / angle.sin()
        mistakes = {
            "a straight line leads through the middle, where noise is too short.": line,
            "u and 1 - u are swapped.": (
                (torch.sin(u * angle) * a + torch.sin((1 - u) * angle) * b) / angle.sin()
            ),
            "right on the sphere, but not at even angles.": line * a.norm() / line.norm(),
            "divide by the sine of the angle.": (
                torch.sin((1 - u) * angle) * a + torch.sin(u * angle) * b
            ),
        }
        praise = "All the way as long as noise is."
        said = _judge(answer(a, b, u), right, praise, mistakes, where=f" (At u = {u:g}.)")
        if not said.startswith("Right"):
            break
    return said


def w_for_encoding(answer) -> str:
    """The w with which an image is best encoded."""
    others = {
        "a": "upwards the same flow pushes apart, and errors grow with w.",
        "b": "a spread of 1 in all is chance: some values vary too little, others too much.",
    }
    return _choose(answer, "Encode without guidance, and guide the decoder.", "c", others)


# ---- 07, evaluation -------------------------------------------------------------------------


def blind_spot(answer) -> str:
    """The measure that notices one picture per class, again and again."""
    others = {
        "a": "ten good pictures are not far from all of them, by two Gaussians of features.",
        "b": "each picture is clearly of one class, and all classes are there: nearly perfect.",
        "c": "every label is right. What is missing is not in any single picture.",
    }
    praise = "Ten small balls hold hardly any of the real images."
    return _choose(answer, praise, "d", others)


def fewer_images(answer) -> str:
    """What the Frechet distance says of 50 images and of 800, drawn from the reference itself."""
    others = {
        "a": "the covariance of few samples is off, and being off is always a distance.",
        "c": "fewer samples hold less of the truth, not more.",
        "d": "it scatters too, but it is wrong to one side: a distance cannot be below 0.",
    }
    return _choose(answer, "It is biased: compare rows of equally many samples.", "b", others)


def snr_on_v(answer) -> str:
    """The weight SNR as a weight on the error of v, at t = 1, 1/2 and 0."""
    if _blank(answer):
        return NOTHING
    mistakes = {
        "that is from t = 0 to t = 1. Begin with the noise.": [1.0, 0.5, 0.0],
        "this is the weighting SNR + 1, the plain error of v.": [1.0, 1.0, 1.0],
        "SNR multiplies the error of x. How large is the error of v beside it?": [0.0, 1.0, 1.0],
        "that is truncated SNR, which forgets no time.": [1.0, 0.5, 1.0],
    }
    if math.inf in list(answer):
        return "Not yet: that is on the error of x. On that of v it is divided by SNR + 1."
    praise = "SNR / (SNR + 1): at t = 1, where one step has all of its work, nothing counts."
    return _judge(list(answer), [0.0, 0.5, 1.0], praise, mistakes)


# ---- 08, latents and text -------------------------------------------------------------------


def half_time(answer) -> str:
    """answer(std): the time at which data of that deviation is half of the cosine z_t."""
    for std in (5.49, 1.0, 0.3):
        right = 2 / math.pi * math.atan(std)
        mistakes = {
            "the other way round: stronger data needs more noise, a later t.": 1 - right,
            "an angle in radians. t = 1 is a quarter of a turn.": math.atan(std),
            "signal and noise are cosine and sine here, not 1 - t and t.": std / (1 + std),
            "compare deviations, not a deviation with a variance.": (
                2 / math.pi * math.atan(std**2)
            ),
        }
        praise = "Stable Diffusion's raw latents are half signal at t = 0.89 only."
        where = f" (For a deviation of {std:g}.)"
        said = _judge(answer(std), right, praise, mistakes, tolerance=1e-3, where=where)
        if not said.startswith("Right"):
            break
    return said


def no_answer(answer) -> str:
    """The mean squared error of a network that always answers v = 0, on data of variance 1."""
    mistakes = {
        "zero is no answer, but it is not free. What is the mean of v squared?": 0.0,
        "alpha and sigma squared add up to 1.": 2.0,
        "both parts of v count, that of eps and that of x.": 0.5,
    }
    praise = "alpha^2 + sigma^2, at every t. A loss near 1 is no knowledge at all."
    return _judge(answer, 1.0, praise, mistakes)


def most_pieces(answer) -> str:
    """The word that a vocabulary of emoji captions spells in the most pieces."""
    others = {
        "a": "there are hearts of all colours, so the word is one token.",
        "b": "there are so many faces that the word is one token.",
        "c": "two pieces, which other words have too. Which word is as rare, and longer?",
    }
    return _choose(answer, "What is rare is spelt.", "d", others)


# ---- 09, distilling text-to-image -----------------------------------------------------------


def share_before_halving(answer) -> str:
    """Stage one's share of the 8-step student's squared error: distances 0.056 and 0.066."""
    ratio = 0.056 / 0.066
    mistakes = {
        "these are roots of mean squares, and the squares are what adds up.": ratio,
        "this is the share of the halvings. What is left of 1?": 1 - ratio**2,
        "the part divided by the whole.": 1 / ratio**2,
        "a share is a number from 0 to 1.": 100 * ratio**2,
    }
    praise = "Nearly three quarters were there before any halving."
    return _judge(answer, ratio**2, praise, mistakes, tolerance=0.02)


def stock_call(answer) -> str:
    """What stock diffusers has to be told for w = 1 from the 4-step student."""
    scale, steps = answer.get("guidance_scale"), answer.get("num_inference_steps")
    if _blank(scale) or _blank(steps):
        return NOTHING
    if steps == 50:
        return "Not yet: 50 is the pipeline's default. This student knows 4 steps, and no others."
    if steps != 4:
        return "Not yet: this student knows 4 steps, and no others."
    if scale == 1:
        return "Not yet: a guidance_scale of 1 is w = 0, no guidance."
    if scale == 7.5:
        return "Not yet: that is the pipeline's default, w = 6.5, far outside what was learnt."
    if scale != 2:
        return "Not yet: guidance_scale is 1 + w."
    return "Right. Both defaults would have been wrong."


def folded_bias(answer) -> str:
    """answer(bias, weight, cond_proj, features): a bias that has the w input in it for good."""
    weight, cond_proj = _random(2, 16, 16)
    bias, features, time = _random(3, 16, seed=1)
    right = weight @ (time + cond_proj @ features) + bias - weight @ time
    mistakes = {
        "what is added before the layer goes through its weight as well.": (
            bias + cond_proj @ features
        ),
        "the old bias is still needed.": weight @ cond_proj @ features,
        "the weight is transposed: a linear layer is weight @ input + bias.": (
            bias + weight.T @ cond_proj @ features
        ),
        "the two layers are in the wrong order.": bias + cond_proj @ weight @ features,
        "features of w go through cond_proj first.": bias + weight @ features,
    }
    praise = "A network without a w input that answers as the student does at this w."
    return _judge(answer(bias, weight, cond_proj, features), right, praise, mistakes)


# ---- 10, editing ----------------------------------------------------------------------------


def evaluations(answer) -> str:
    """answer(strength, steps): what the edit costs; None where the student has no such strength."""
    if _blank(answer(0.75, 4)):
        return NOTHING
    cases = {(0.75, 4): 3, (0.5, 2): 1, (1.0, 1): 1, (0.07, 100): 7, (0.29, 100): 29}
    for (strength, steps), right in cases.items():
        found = answer(strength, steps)
        where = f" (Strength {strength:g} with {steps} steps.)"
        if found is None:
            return f"Not yet: this strength exists. Floating-point numbers need tolerance.{where}"
        if found != right:
            return f"Not yet: {found} evaluations instead of {right}. Round, do not cut.{where}"
    for strength, steps in ((0.3, 2), (0.3, 4), (0.6, 1)):
        found, where = answer(strength, steps), f" (Strength {strength:g} with {steps} steps.)"
        if found == int(strength * steps):
            return f"Not yet: int() takes another strength than was asked for. Refuse.{where}"
        if found is not None:
            return f"Not yet: this student has no such strength. None is the answer.{where}"
    return "Right. i/N costs i evaluations, and anything else is refused."


def latent_mask(answer) -> str:
    """answer(mask): [b, 1, H, W] of pixels, 1 repaints, as a mask of latents of half the side."""
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 1, :] = 1  # a thin stroke, in odd rows
    mask[..., 4:8, 4:7] = 1
    mask[..., 6:8, 0], mask[..., 6, 1] = 1, 1  # three of four
    blocks = mask.unfold(2, 2, 2).unfold(3, 2, 2).flatten(4)
    mistakes = {
        "thin strokes vanish. Whatever is touched has to be repainted.": (
            (blocks.mean(-1) > 0.5).float()
        ),
        "one pixel in four does not speak for the others.": mask[..., ::2, ::2],
        "only what is masked as a whole is repainted. The rest of the stroke stays.": (
            blocks.amin(-1)
        ),
        "this is the wrong way round: 1 repaints, 0 keeps.": 1 - blocks.amax(-1),
        "a latent is repainted or it is kept: no half measures.": blocks.mean(-1),
    }
    praise = "Every latent that a masked pixel touches."
    return _judge(answer(mask), blocks.amax(-1), praise, mistakes)


def put_back(answer) -> str:
    """answer(z_s, x, eps, mask, alpha_s, sigma_s): z_s with the original where it is kept."""
    z_s, x, eps = _random(3, 2, 4, 8, 8)
    mask = (_random(2, 1, 8, 8, seed=5) > 0).double()
    phi = torch.tensor(0.8, dtype=torch.float64)
    noised = phi.cos() * x + phi.sin() * eps
    mistakes = {
        "the original is clean, and what is around it is not. Noise it to time s.": (
            mask * z_s + (1 - mask) * x
        ),
        "this is the wrong way round: 1 repaints, 0 keeps.": mask * noised + (1 - mask) * z_s,
        "nothing of the new picture is left.": noised,
        "what is repainted has its noise already.": noised + mask * (z_s - x),
        "nothing is put back.": z_s,
    }
    right = mask * z_s + (1 - mask) * noised
    praise = "The model sees the truth around the hole, at the right noise level."
    return _judge(answer(z_s, x, eps, mask, phi.cos(), phi.sin()), right, praise, mistakes)


# ---- 11, Stable Diffusion -------------------------------------------------------------------


def whole_entries(answer) -> str:
    """The students of 32, 16, ..., 1 steps whose times are entries of a table of 1000."""
    if _blank(answer):
        return NOTHING
    found = _set(answer)
    if found == {8, 4, 2, 1}:
        return "Right. 1000 has three factors of 2, and 16 has four."
    if extra := found & {16, 32}:
        return f"Not yet: 1000 / {min(extra)} = {1000 / min(extra):g} is no whole entry."
    if 1 not in found:
        return "Not yet: one step asks at entry 1000 alone, which is a whole one."
    if 8 not in found:
        return "Not yet: 1000 / 8 is 125, a whole number."
    return "Not yet: divide 1000 by each of the six."


def v_of_the_base(answer) -> str:
    """answer(eps, z, own_alpha, own_sigma, alpha, sigma): what the base says, as our v."""
    x, eps = _random(2, 2, 4, 3, 3)
    for own, ours in ((0.3, 0.3), (1.4, 1.5), (1.5, math.pi / 2)):  # angles of the schedules
        (own_alpha, alpha), (own_sigma, sigma) = (
            f(torch.tensor([own, ours], dtype=torch.float64)) for f in (torch.cos, torch.sin)
        )
        z = own_alpha * x + own_sigma * eps
        mistakes = {
            "x has to be taken out in the base's own numbers, with which it was asked.": (
                alpha * z - (z - sigma * eps) / alpha
            )
            / sigma,
            "v is to be written with our alpha and sigma.": (own_alpha * z - x) / own_sigma,
            "this is right only where both times are equally noisy. Go through z.": (
                alpha * eps - sigma * x
            ),
            "the sign. x = alpha z - sigma v.": (x - alpha * z) / sigma,
            "this is x. Write it as v.": x,
        }
        levels = (own_alpha, own_sigma, alpha, sigma)
        where = f" (Where {'both are' if own == ours else 'ours is not'} equally noisy.)"
        praise = "Finite at t = 1 too, where v is -x."
        said = _judge(
            answer(eps, z, *levels), (alpha * z - x) / sigma, praise, mistakes, where=where
        )
        if not said.startswith("Right"):
            break
    return said


def gib_of_training(answer) -> str:
    """answer(frozen, trained): GiB of weights, gradients, Adam and the running average."""
    frozen, trained = 859_520_964, 67_252_224
    gib = 2**30
    mistakes = {
        "one of five is missing: weight, gradient, two moments, running average.": (
            (2 * frozen + 16 * trained) / gib
        ),
        "two of five are missing: weight, gradient, two moments, running average.": (
            (2 * frozen + 12 * trained) / gib
        ),
        "this holds the weights alone, and they are to be trained.": (
            (2 * frozen + 4 * trained) / gib
        ),
        "half precision is two bytes. What learns is in single precision, four.": (
            (4 * frozen + 20 * trained) / gib
        ),
        "what is frozen has no gradient, no moments and no average.": (
            (10 * frozen + 20 * trained) / gib
        ),
        "these are gigabytes of 10^9. A GiB is 2^30 bytes.": (2 * frozen + 20 * trained) / 1e9,
        "these are bytes. A GiB is 2^30 of them.": 2 * frozen + 20 * trained,
    }
    praise = "20 bytes for each number that learns, 2 for each that does not."
    right = (2 * frozen + 20 * trained) / gib
    return _judge(answer(frozen, trained), right, praise, mistakes, tolerance=0.01)


def hours_of_training(answer) -> str:
    """Hours of both stages on a T4, at 11.5 TFLOP a second."""
    hours = 7300 * 4 * 0.8 / 11.5 / 3600  # of one pass for each image
    mistakes = {
        "there are four images to an update.": 6 * hours / 4,
        "this is without the teacher, and guidance takes two evaluations of it.": 4 * hours,
        "a pass is missing: two of a guided teacher, and 1 + 1 + 2 of the student.": 5 * hours,
        "these are seconds.": 6 * hours * 3600,
        "these are minutes.": 6 * hours * 60,
    }
    praise = "If a T4 trains as fast as it samples, which nobody has measured here."
    return _judge(answer, 6 * hours, praise, mistakes, tolerance=0.06)


def guided_again(answer) -> str:
    """The w of a LoRA file for w = 6.5 that is called with guidance_scale=7.5."""
    mistakes = {
        "the pipeline guides whatever it has loaded, a student as well.": 6.5,
        "they do not add up. What stands before v_c?": 13.0,
        "that is the scale. w is one less.": 56.25,
        "the scales multiply, 1 + w, not the weights.": 42.25,
        "6.5 is a weight, and 7.5 a scale. Take both as scales.": 47.75,
    }
    return _judge(answer, 55.25, "7.5 * 7.5 - 1: call it with 1.", mistakes, tolerance=0.01)


# ---- 12, guidance rules ---------------------------------------------------------------------


def sideways(answer) -> str:
    """answer(v_cond, v_null, x_cond, w): guidance without the part of the difference along x."""
    v_cond, v_null, x_cond = _random(3, 2, 3, 4, 4)
    w = torch.tensor([2.0, 0.5], dtype=torch.float64).reshape(2, 1, 1, 1)
    d, one = v_cond - v_null, (1, 2, 3)

    def along(x, dims):
        return (d * x).sum(dims, keepdim=True) / (x * x).sum(dims, keepdim=True) * x

    length = (x_cond * x_cond).sum(one, keepdim=True).sqrt()
    mistakes = {
        "nothing has been taken off: this is classifier-free guidance.": v_cond + w * d,
        "the batch was taken for one long example. Each has inner products of its own.": (
            v_cond + w * (d - along(x_cond, (0, 1, 2, 3)))
        ),
        "this is projected on v_cond. It is x_cond that makes colours stronger.": (
            v_cond + w * (d - along(v_cond, one))
        ),
        "this is the part along x_cond, alone. It is what should go.": (
            v_cond + w * along(x_cond, one)
        ),
        "divide by the square of the length of x_cond.": (
            v_cond + w * (d - length * along(x_cond, one))
        ),
        "the rest is to be added to v_cond, not to v_null.": (
            v_null + w * (d - along(x_cond, one))
        ),
    }
    praise = "What is left is at right angles to the picture, for each example."
    right = v_cond + w * (d - along(x_cond, one))
    return _judge(answer(v_cond, v_null, x_cond, w), right, praise, mistakes)


def best_of_the_table(answer) -> str:
    """Why the student of classifier guidance has the smallest distance, by a letter."""
    others = {
        "a": "look at the other table first. Is it a model of that rule at all?",
        "b": "its teacher takes 32 steps too, at four evaluations each: 128.",
        "d": "a distance does not read labels, but the last column does.",
    }
    praise = "It delivers 0.3 of the 2 that it was asked for. Less guidance, less distance."
    return _choose(answer, praise, "c", others)


def plus_plus_weight(answer) -> str:
    """answer(strength, alpha_t, sigma_t, alpha_s, sigma_s): the w that steps as CFG++ does."""
    schedule, strength = CosineSchedule(), 0.6
    for t, s in ((0.75, 0.25), (1.0, 0.75), (0.25, 0.0)):
        times = torch.tensor([t, s], dtype=torch.float64)
        (alpha_t, alpha_s), (sigma_t, sigma_s) = schedule.alpha_sigma(times)
        right = plus_plus_w(strength, times[:1], times[1:], schedule)[0]
        mistakes = {
            "this is the scale, 1 + w. The weight is one less.": right + 1,
            "x is right with this one, but ordinary guidance moves the noise as well.": (
                strength - 1
            ),
            "the sign of the noise. Where x grows, eps falls, for z_t stays what it is.": (
                strength * alpha_s * sigma_t / (alpha_s * sigma_t + sigma_s * alpha_t) - 1
            ),
            "t and s have changed places.": (
                strength * alpha_t * sigma_s / (alpha_t * sigma_s - sigma_t * alpha_s) - 1
            ),
            "eps does not fall by as much as x grows, but alpha_t / sigma_t times as much.": (
                strength * alpha_s / (alpha_s - sigma_s) - 1
            ),
        }
        praise = "It depends on where the step ends, which a student of stage one is not told."
        found = answer(strength, alpha_t, sigma_t, alpha_s, sigma_s)
        where = f" (From t = {t:g} to s = {s:g}.)"
        said = _judge(found, right, praise, mistakes, where=where)
        if not said.startswith("Right"):
            break
    return said


def not_this(answer) -> str:
    """answer(student, cond, negative, w): the student guided away from a negative condition."""
    v_cond, v_negative, v_null = _random(3, 20)
    v = {"cond": v_cond, "negative": v_negative}
    w = 3.0

    def student(cond, w):
        return (1 + w) * v[cond] - w * v_null

    guided = student("cond", w)
    mistakes = {
        "the student gives w already, and it is given once more: the weights multiply.": (
            (1 + w) * guided - w * student("negative", w)
        ),
        "this is guided away from nothing. Where is the negative?": guided,
        "it is guided towards the negative. They have changed places.": (
            (1 + w) * v_negative - w * v_cond
        ),
        "the weights of the two have to add up to 1. Look at the sign.": (
            (1 + w) * v_cond + w * v_negative
        ),
        "this is guided with w - 1. The condition is weighted with 1 + w.": (
            w * v_cond + (1 - w) * v_negative
        ),
        "one of the two has been asked for w. At 0 alone it is the conditional model.": (
            (1 + w) * guided - w * v_negative
        ),
    }
    praise = "At w = 0 it is the conditional model, whatever the condition."
    right = v_cond + w * (v_cond - v_negative)
    return _judge(answer(student, "cond", "negative", w), right, praise, mistakes)


def weight_on_top(answer) -> str:
    """The weight around a student that gives w = 2, for w = 5 in all."""
    mistakes = {
        "weights do not add up. What stands before v_c?": 3.0,
        "that is the scale, 1 + u. The weight is one less.": 2.0,
        "the student gives 2 already, and they are multiplied.": 5.0,
        "it is not the weights that multiply. They are 1 + u and 1 + w.": 2.5,
    }
    return _judge(answer, 1.0, "(1 + 1) (1 + 2) - 1 is 5.", mistakes)


# ---- 13, your own teacher -------------------------------------------------------------------


def mean_alone(answer) -> str:
    """answer(said, channels): the mean, of a network that may say a variance after it."""
    for kind, size in (("with a variance", 8), ("without one", 4)):
        said = _random(5, size, 3, 3)
        mistakes = {
            "this is the variance. The mean comes first.": said[:, 4:],
            "this cuts the batch: channels are the second dimension.": said[:4],
            "mean and variance do not alternate: one comes after the other.": said[:, ::2],
            "this network says no variance, and half of its mean is lost.": said[:, :2],
            "the mean of the distribution is meant, not an average of channels.": said.mean(1),
            "nothing has been left out.": said,
        }
        where = f" (For a network {kind}.)"
        praise = "Also where there is no variance."
        judged = _judge(answer(said, 4), said[:, :4], praise, mistakes, where=where)
        if not judged.startswith("Right"):
            break
    return judged


def flux_call(answer) -> str:
    """w, and evaluations for a picture, of guidance_scale=3.5, num_inference_steps=28."""
    w, evaluations = answer.get("w"), answer.get("evaluations")
    if _blank(w) or _blank(evaluations):
        return NOTHING
    said = _judge(
        w,
        2.5,
        "",
        {
            "that is the scale, 1 + w.": 3.5,
            "the other way round: 3.5 is 1 + w.": 4.5,
            "the factor of 1000 is the network's own business.": 2500.0,
        },
        where=" (This is about w.)",
    )
    if not said.startswith("Right"):
        return said
    mistakes = {
        "a second evaluation is what its teacher needed. Here guidance is an input.": 56,
        "an evaluation for each step, and guidance has none of its own.": 29,
        "a student of one step would need one. How many steps are these?": 1,
    }
    praise = "Its teacher would have needed 56."
    return _judge(evaluations, 28, praise, mistakes, where=" (This is about evaluations.)")


def on_the_circle(answer) -> str:
    """answer(z, tau): z and t of the cosine schedule, for a z of flow matching."""
    x, eps = _random(2, 20)
    for tau in torch.tensor([0.3, 0.8, 1.0], dtype=torch.float64):
        z, length = (1 - tau) * x + tau * eps, torch.hypot(tau, 1 - tau)
        phi, where = torch.atan2(tau, 1 - tau), f" (At tau = {tau:g}.)"
        found = answer(z, tau)
        if _blank(found):
            return NOTHING
        if not (isinstance(found, list | tuple) and len(found) == 2):
            return "Not yet: return two things, z and t."
        mistakes = {
            "this is z as it was. Its factors are 1 - tau and tau: add up their squares.": z,
            "multiplied, where it should be divided.": z * length,
            "divide by the length, the root of the sum of squares.": z / length**2,
        }
        said = _judge(found[0], phi.cos() * x + phi.sin() * eps, "", mistakes, where=where)
        if said.startswith("Right"):
            t = phi / (math.pi / 2)
            mistakes = {
                "tau is no time of ours, except at 0, 1/2 and 1. Which angle is it?": tau,
                "this is the angle. t = 1 is a quarter of a turn.": phi,
                "noise and image have changed places: tan of the angle is tau / (1 - tau).": 1 - t,
                "the cosine is (1 - tau) divided by the length.": (
                    torch.acos(1 - tau) / (math.pi / 2)
                ),
                "the sine is tau divided by the length.": torch.asin(tau) / (math.pi / 2),
            }
            said = _judge(found[1], t, "The same point, in our letters.", mistakes, where=where)
        if not said.startswith("Right"):
            break
    return said


def shifted_snr(answer) -> str:
    """What a shift of 3 multiplies the signal-to-noise ratio with."""
    mistakes = {
        "that is for the amplitudes, and the ratio is one of squares.": 1 / 3,
        "the other way round: more noise is a smaller ratio.": 9.0,
        "more noise is a smaller ratio, and it is a ratio of squares.": 3.0,
        "that is by how much its logarithm falls. What is it multiplied with?": -2 * math.log(3),
        "that is tau', of tau = 1/2. What is the ratio there?": 0.75,
    }
    praise = "At every time alike, so it is one number that is taken off the logarithm."
    return _judge(answer, 1 / 9, praise, mistakes, tolerance=2e-3)


# ---- 14, the bug museum ---------------------------------------------------------------------


def spot_the_line(answer) -> str:
    """The line of the wrong target, by its letter."""
    others = {
        "a": "the midpoint is where it should be.",
        "b": "that is the first of the two steps, and it is right.",
        "c": "the teacher has to be asked there. What is then made of its answer?",
    }
    return _choose(answer, "The second step is never taken.", "d", others)


def leading_times(answer) -> str:
    """The entries of a table of 1000 at which 4 steps with leading spacing ask."""
    if _blank(answer):
        return NOTHING
    found = [int(time) for time in answer]
    if found == [750, 500, 250, 0]:
        return "Right. Pure noise is taken for an image three quarters of the way."
    if found == [0, 250, 500, 750]:
        return "Not yet: these are the entries. Sampling goes from noise to data."
    if 1000 in found or 999 in found:
        return "Not yet: the noisiest entry is just what is left out. Put in k = 3, 2, 1, 0."
    if len(found) != 4:
        return "Not yet: four steps are four calls."
    return "Not yet: put k = 3, 2, 1, 0 into k * 1000 / 4."


def guided_twice(answer) -> str:
    """The weight that arrives where a student asked for w = 3 is guided with w = 3 again."""
    mistakes = {
        "the second guidance also multiplies the first: put the answers in.": 6.0,
        "what multiplies is 1 + w, not w.": 9.0,
        "that is the scale, 1 + w. The weight is one less.": 16.0,
        "the student has given so much already, and it is exaggerated once more.": 3.0,
        "this is w (1 + w). One w was there before.": 12.0,
    }
    return _judge(answer, 15.0, "(1 + 3) (1 + 3) - 1.", mistakes)


# ---- 15, life after distillation ------------------------------------------------------------


def lora_numbers(answer) -> str:
    """How many numbers a LoRA of rank 4 trains for a layer with 320 outputs and 1,280 inputs."""
    mistakes = {
        "this is the whole layer. A LoRA trains two narrow matrices in its place.": 320 * 1280,
        "this is rank 1. Every row and column is there four times.": 320 + 1280,
        "A has 4 rows of 1,280 numbers, B has 320 rows of 4: they are added.": 4 * 320 * 1280,
        "this is A alone. B brings the rank up to 320 outputs.": 4 * 1280,
        "this is B alone. A brings 1,280 inputs down to the rank.": 4 * 320,
    }
    return _judge(answer, 6400, "A 64th of the layer's 409,600.", mistakes)


def best_answer(answer) -> str:
    """What the best network says under the ordinary loss at random w, by a letter."""
    others = {
        "a": "nothing in this loss is guided. Where should the network learn it from?",
        "c": "the targets are the same at all w, and guided at none.",
        "d": "what is trained sees the whole answer, and nothing rewards the old one.",
    }
    praise = "The target is independent of w, so the mean of it given z, t, c and w is, too."
    return _choose(answer, praise, "b", others)


def pushed_target(answer) -> str:
    """answer(v, u, w): u + (1 + w) (v - u), for v and u [b, c, h, h] and w [b]."""
    try:
        return _guided(
            answer,
            "At w = 0 it is v itself.",
            columns="w ran along the width of the images. Give it the shape [b, 1, 1, 1] first.",
            swapped="v and u have changed places: this pushes towards what was not asked for.",
            scale="at w = 0 this is u. The target there is v: the factor is 1 + w.",
            more=lambda v, u, w: {
                "this starts from v, so that at w = 0 it is guided already.": v + (1 + w) * (v - u)
            },
        )
    except RuntimeError as error:
        return f"Not yet: {error}. Give w the shape [b, 1, 1, 1] first."
