"""Checks of the exercises: each takes the reader's answer and says in a sentence what is wrong.

A check knows the answer from elsewhere, a closed form or the package, and also what the usual
mistakes give. Its sentence begins with "Right" where the answer is right, however it was written.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

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
    if found.shape != right.shape:
        return f"Not yet: the shape should be {[*right.shape]}, and it is {[*found.shape]}.{where}"
    if not found.isfinite().all():
        return f"Not yet: not all of it is finite. Something was divided by zero.{where}"
    if _near(found, right, tolerance):
        return f"Right. {praise}"
    for message, wrong in mistakes.items():
        if _near(found, torch.as_tensor(wrong).double(), tolerance):
            return f"Not yet: {message}{where}"
    return f"Not yet: it is off by up to {(found - right).abs().max():.2g}.{where}"


def _blank(found) -> bool:
    return found is None or found is ...


def _near(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return a.shape == b.shape and (a - b).abs().max().item() <= tolerance


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


def average(answer: Callable) -> str:
    """answer(z_t, x, place): the mean of the x whose z_t is within 0.1 of a place."""
    mixture, schedule, generator = pinwheel(), CosineSchedule(), torch.Generator().manual_seed(0)
    x, _ = mixture.sample(1_000_000, generator)
    z_t = schedule.add_noise(x, torch.randn(x.shape, generator=generator), 0.5)
    place = torch.tensor([0.6, 0.3])
    right = mixture.denoiser(schedule)(place[None], 0.5, torch.tensor([mixture.num_classes])).x[0]
    distance = (z_t - place).norm(dim=1)
    near = distance < 0.1
    mistakes = {
        "this is the place itself. Select by z_t, but average the x behind it.": place,
        "this is the place divided by alpha. That undoes the scaling, not the noise.": place
        / schedule.alpha_sigma(torch.tensor(0.5))[0],
        "this is the average of all x. Only those whose z_t is near the place count.": x.mean(0),
        "this is one x, a sample. The guess is the average of all that are possible.": x[
            distance.argmin()
        ],
        "this is a sum. Divide it by the number of points.": x[near].sum(0),
    }
    praise = "By counting, without a formula: the guess is an average."
    return _judge(answer(z_t, x, place), right, praise, mistakes, tolerance=0.03)


def landing(answer: float) -> str:
    """Where the exact teacher's single step lands at w = 3, in multiples of the class mean."""
    mistakes = {
        "that is without guidance. The guess of the class is exaggerated by 1 + w.": 1.0,
        "the class is weighted with 1 + w, not with w.": 3.0,
        "the mean of everything is 0, and with class the guess moves away from it.": 0.0,
    }
    praise = "(1 + 3) times the class mean, less 3 times the mean of all, which is 0."
    return _judge(answer, 4.0, praise, mistakes)


def implied_x(answer: Callable) -> str:
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


def share_of_stage_one(answer: float, stage_one: float, student: float) -> str:
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


def from_v(answer: Callable) -> str:
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


def explosions(answer: Mapping) -> str:
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


def implied(answer: Callable) -> str:
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


def zero_terminal_snr(answer: Callable) -> str:
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
