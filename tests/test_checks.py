"""The checks of the exercises: each accepts what is right, and says what is wrong with the rest.

The solutions are those of the scripts. Beside them, here, stand another way to write each, and the
usual wrong answers, with words of the sentence that is meant for each.
"""

import math

import course
import editions
import jupytext
import pytest
import torch

from cfgdistill import (
    CosineSchedule,
    GuidedDenoiser,
    convert,
    ddim,
    ddim_step,
    expand,
    last,
    pinwheel,
)
from cfgdistill.course import checks

# What the solutions find in their notebooks.
TABLE = {("student", 8): {0.0: 0.03, 1.0: 0.035, 3.0: 0.049}}
TABLE["teacher", 4] = {0.0: 0.112, 1.0: 0.113, 3.0: 0.124}
ROWS = [(0, 0, 0, float(k), k**0.5) for k in range(1, 12)]  # stage one has 8, the student 11
FOUND = {"dataset": "digits", "rows": ROWS, "table": TABLE, "weights": (0.0, 1.0, 3.0)}


def exercises():
    """{name: the cell of its solution}, of all notebooks."""
    for script in sorted((course.ROOT / "notebooks").glob("*.py")):
        for cell in course.code_cells(jupytext.read(script)):
            about = cell.metadata.get("nbgrader", {})
            if about.get("solution"):
                yield pytest.param(cell.source, id=about["grade_id"])


def verdict(name: str, answer) -> str:
    more = {
        "share_of_stage_one": (8.0, 11.0),
        "order_at_one_step": ("digits",),
        "least_gain": (TABLE["student", 8], TABLE["teacher", 4]),
    }
    return getattr(checks, name)(answer, *more.get(name, ()))


def average_of(values):
    """An answer to `average` that averages something else than x, near the place."""
    return lambda z_t, x, place: values(z_t, x)[(z_t - place).norm(dim=1) < 0.1].mean(0)


def nearest(z_t, x, place):
    return x[(z_t - place).norm(dim=1).argmin()]


def in_a_loop(z_t, x, place):
    near = ((z_t - place) ** 2).sum(1).sqrt().lt(0.1).nonzero().squeeze(1)
    return torch.stack([x[near, k].sum() / len(near) for k in range(2)])


def shifted(table):
    return (table - table[-1]) * table[0] / (table[0] - table[-1])


def cut(table):
    return torch.cat([table[:-1], torch.zeros(1, dtype=table.dtype)])


def angle_of(a, b):
    return torch.arccos(a @ b / (a.norm() * b.norm()))


def along(d, x):
    return (d * x).sum((1, 2, 3), True) / x.square().sum((1, 2, 3), True) * x


def explosions(at_noise, at_data, one_step):
    return {"t = 1": at_noise, "t = 0": at_data, "one step": one_step}


# {exercise: (another right answer, {words of the sentence: a wrong answer})}
ANSWERS = {
    # 00
    "average": (
        in_a_loop,
        {
            "the place itself": average_of(lambda z_t, x: z_t),
            "undoes the scaling": average_of(lambda z_t, x: z_t * 2**0.5),
            "average of all x": lambda z_t, x, place: x.mean(0),
            "one x, a sample": nearest,
            "this is a sum": lambda z_t, x, place: x[(z_t - place).norm(dim=1) < 0.1].sum(0),
            "the shape should be [2]": lambda z_t, x, place: x.mean(),
        },
    ),
    "landing": (
        torch.tensor(4),
        {"without guidance": 1, "1 + w, not with w": 3, "moves away from it": 0, "off by": 7},
    ),
    "implied_x": (
        lambda z_t, z_s, a_t, s_t, a_s, s_s: (s_t * z_s - s_s * z_t) / (s_t * a_s - s_s * a_t),
        {
            "the noise in it has to go": lambda z_t, z_s, a_t, s_t, a_s, s_s: z_s / a_s,
            "Look at the sign": lambda z_t, z_s, a_t, s_t, a_s, s_s: (
                (z_s + s_s / s_t * z_t) / (a_s + s_s / s_t * a_t)
            ),
            "multiplied by sigma_s / sigma_t first": lambda z_t, z_s, a_t, s_t, a_s, s_s: (
                (z_s - z_t) / (a_s - a_t)
            ),
            "in the denominator as well": lambda z_t, z_s, a_t, s_t, a_s, s_s: (
                (z_s - s_s / s_t * z_t) / a_s
            ),
            "keep x": lambda z_t, z_s, a_t, s_t, a_s, s_s: (
                (a_t * z_s - a_s * z_t) / (a_t * s_s - a_s * s_t)
            ),
        },
    ),
    "second_x_lands": (
        [1],
        {"count down to the data": {4}, "there is one": set(), "not the teacher's": {1, 2, 3, 4}},
    ),
    "share_of_stage_one": (
        1 - 3 / 11,
        {
            "compares the roots": (8 / 11) ** 0.5,
            "other way round": 11 / 8,
            "share of the halvings": 3 / 11,
            "from 0 to 1": 73 - 3 / 11,
        },
    ),
    # 01
    "from_v": (
        lambda v, z, alpha, sigma: [
            alpha * (z - sigma / alpha * v),
            (z + alpha / sigma * v) * sigma,
        ],
        {
            "the sign of v in x": lambda v, z, a, s: (a * z + s * v, s * z + a * v),
            "swapped in x": lambda v, z, a, s: (s * z - a * v, s * z + a * v),
            "The first is to be x": lambda v, z, a, s: (s * z + a * v, a * z - s * v),
            "the sign of v in eps": lambda v, z, a, s: (a * z - s * v, s * z - a * v),
            "swapped in eps": lambda v, z, a, s: (a * z - s * v, a * z + s * v),
            "return two things": lambda v, z, a, s: a * z - s * v,
        },
    ),
    "explosions": (
        explosions(["eps"], "x", ("v", "x")),
        {
            "never exceed 1": explosions({"eps", "v"}, {"x"}, {"x", "v"}),
            "other way round": explosions({"x"}, {"eps"}, {"x", "v"}),
            "at t = 1, alpha is 0": explosions({"x", "eps"}, {"x"}, {"v"}),
            "at t = 0, sigma is 0": explosions({"eps"}, set(), {"v"}),
            "v can be used, and it is not the only one": explosions({"eps"}, {"x"}, {"v"}),
            "eps says nothing": explosions({"eps"}, {"x"}, {"eps", "v"}),
        },
    ),
    "implied": (
        lambda z_t, z_s, d: z_s / torch.sin(d) - z_t / torch.tan(d),
        {
            "take off cos(d) z_t": lambda z_t, z_s, d: (z_s - z_t) / d.sin(),
            "difference quotient": lambda z_t, z_s, d: (z_s - z_t) / d,
            "the sign of d": lambda z_t, z_s, d: (z_s - d.cos() * z_t) / (-d).sin(),
            "by sin(d), not by d": lambda z_t, z_s, d: (z_s - d.cos() * z_t) / d,
            "is to be taken off": lambda z_t, z_s, d: (z_s + d.cos() * z_t) / d.sin(),
        },
    ),
    "zero_terminal_snr": (
        lambda table: (
            table[0]
            * ((table.sqrt() - table[-1] ** 0.5) / (table[0] ** 0.5 - table[-1] ** 0.5)) ** 2
        ),
        {
            "not the table itself": shifted,
            "Scale it back": lambda table: (table.sqrt() - table[-1].sqrt()).square(),
            "The table holds its square": lambda table: shifted(table.sqrt()),
            "one entry is not enough": cut,
            "nothing has changed": lambda table: table,
        },
    ),
    # 02
    "drop_label": (
        lambda cond, u, drop, null: cond.masked_fill(~(u >= drop), null),
        {
            "drops nine tenths": lambda cond, u, drop, null: torch.where(u > drop, null, cond),
            "the label of a class": lambda cond, u, drop, null: torch.where(u < drop, 0, cond),
            "no label is dropped": lambda cond, u, drop, null: cond,
            "all labels are dropped": lambda cond, u, drop, null: torch.full_like(cond, null),
        },
    ),
    "null_as_label": (
        "(B)",
        {"anything between": "a", "would have to differ": "c", "trained with it": "d"},
    ),
    "count_nfe": (
        55.0,
        {
            "without the steps that are not guided": 46,
            "seven tenths of 64": 44.8,
            "not every step asks twice": 64,
            "the last above 0.3": 54,
            "the first above 0.3": 56,
        },
    ),
    "order_at_one_step": (
        torch.tensor([1.0, 3.0, 0.0]),
        {
            "order of many steps": [0, 1, 3],
            "more than digits have": (3, 1, 0),
            "the three weights": [1, 3],
            "too little contrast": [0, 3, 1],
        },
    ),
    # 03
    "guided_target": (
        lambda v_cond, v_uncond, w: torch.stack(
            [c + one * (c - u) for c, u, one in zip(v_cond, v_uncond, w, strict=True)]
        ),
        {
            "w went along the columns": lambda c, u, w: (1 + w) * c - w * u,
            "the two answers are swapped": lambda c, u, w: u + expand(w, u) * (u - c),
            "guidance_scale = w": lambda c, u, w: u + expand(w, u) * (c - u),
            "must add up to 1": lambda c, u, w: (1 + expand(w, u)) * c + expand(w, u) * u,
        },
    ),
    "affine_in_w": (
        "B",
        {"where the second one begins": "a", "whatever the two answers": "c", "is affine": "d"},
    ),
    "blind_w": (
        lambda w, k: torch.dot(w, k / k.sum()),
        {
            "this is the mean of w": lambda w, k: w.mean(),
            "divide by the sum of k": lambda w, k: (k * w).mean(),
            "where k is largest": lambda w, k: w[k.argmax()],
            "not the largest w": lambda w, k: w.max(),
            "a mean of k": lambda w, k: (k * w).sum() / w.sum(),
        },
    ),
    "delivered": (
        lambda s, c, u: torch.linalg.lstsq((c - u).reshape(-1, 1), (s - c).reshape(-1, 1))[0][0, 0],
        {
            "a mean of quotients": lambda s, c, u: ((s - c) / (c - u)).mean(),
            "beside the line": lambda s, c, u: (s - c).norm() / (c - u).norm(),
            "the guidance scale": lambda s, c, u: (
                ((s - u) * (c - u)).sum() / (c - u).square().sum()
            ),
            "from without label": lambda s, c, u: (
                ((s - c) * (u - c)).sum() / (u - c).square().sum()
            ),
            "not by its length": lambda s, c, u: ((s - c) * (c - u)).sum() / (c - u).norm(),
            "the shape should be []": lambda s, c, u: (s - c) / (c - u),
        },
    ),
    "cautious": (
        lambda share, k: 1 - (1 - share) / (1 + k * share),
        {
            "Project it on d": lambda share, k: (1 + k) / (1 + k * share),
            "with k = 0": lambda share, k: share,
            "more than was asked for": lambda share, k: (1 + k) * share,
            "counted twice": lambda share, k: (1 + k) * share**2 / (1 + k * share),
            "what is missing": lambda share, k: (1 - share) / (1 + k * share),
        },
    ),
    # 04
    "two_in_one": (
        lambda v_1, v_2, z, d: (
            (d.cos() * (d.cos() * z + d.sin() * v_1) + d.sin() * v_2 - (2 * d).cos() * z)
            / (2 * d).sin()
        ),
        {
            "the mean of the two": lambda v_1, v_2, z, d: (v_1 + v_2) / 2,
            "not at the midpoint": lambda v_1, v_2, z, d: v_2,
            "sign of the tangent": lambda v_1, v_2, z, d: (v_1 + v_2 / d.cos() - d.tan() * z) / 2,
            "z is missing": lambda v_1, v_2, z, d: (v_1 + v_2 / d.cos()) / 2,
            "twice as much": lambda v_1, v_2, z, d: v_1 + v_2 / d.cos() + d.tan() * z,
            "belongs below v_2": lambda v_1, v_2, z, d: (v_1 + v_2 * d.cos() + d.tan() * z) / 2,
        },
    ),
    "where_it_misses": (
        {"not at all": 1.0, "most": 2.0},
        {
            "both are averages": {"most": 4, "not at all": 1},
            "ends at s = 0": {"most": 1, "not at all": 4},
            "cannot be both": {"most": 1, "not at all": 1},
            "part most": {"most": 3, "not at all": 1},
        },
    ),
    "staircase": (
        38400 / 4800,
        {
            "takes two evaluations": 16,
            "for one target": 32,
            "the other way round": 1 / 8,
            "first three students": 38400 / 7200,
            "Divide": 33600,
        },
    ),
    "least_gain": (
        3,
        {"gains most": 0.0, "Where is it largest": 1.0, "name one of the weights": 2.0},
    ),
    # 05
    "added_noise": (
        lambda a_k, s_k, a_s, s_s: torch.sqrt(1 - (a_s / a_k) ** 2),
        {
            "standard deviations do not": lambda a_k, s_k, a_s, s_s: s_s - a_s / a_k * s_k,
            "scaled down as well": lambda a_k, s_k, a_s, s_s: (s_s**2 - s_k**2).sqrt(),
            "this is the variance": lambda a_k, s_k, a_s, s_s: 1 - (a_s / a_k) ** 2,
            "all of sigma_s": lambda a_k, s_k, a_s, s_s: s_s,
            "not all of it is finite": lambda a_k, s_k, a_s, s_s: (1 - (a_k / a_s) ** 2).sqrt(),
        },
    ),
    "jump_times": (
        lambda i, N: [i / N, (i - 1) / N, (i - 2) / N if i > 1 else 0],
        {
            "the step of DDIM": lambda i, N: (i / N, (i - 0.5) / N, (i - 1) / N),
            "below 0": lambda i, N: (i / N, (i - 1) / N, (i - 2) / N),
            "no jump of half": lambda i, N: (i / N, max(i - 1, 0.5) / N, max(i - 2, 0) / N),
            "asked at t = i/N": lambda i, N: ((i - 1) / N, i / N, 0),
            "two of them": lambda i, N: (i / N, max(i - 2, 0) / N, max(i - 4, 0) / N),
        },
    ),
    "long_enough": ("(c)", {"loses 0.03": "a", "it is 0.383": "b", "half of it does too": "d"}),
    # 06
    "place_along_the_arm": (
        "C",
        {"knows nothing of arms": "a", "something is kept": "b", "one of the letters": "d"},
    ),
    "slerp": (
        lambda a, b, u: (
            a * torch.cos(u * angle_of(a, b))
            + torch.nn.functional.normalize(b - (a @ b) / (a @ a) * a, dim=0)
            * a.norm()
            * torch.sin(u * angle_of(a, b))
        ),
        {
            "a straight line": torch.lerp,
            "u and 1 - u are swapped": lambda a, b, u: (
                (torch.sin(u * angle_of(a, b)) * a + torch.sin((1 - u) * angle_of(a, b)) * b)
                / angle_of(a, b).sin()
            ),
            "not at even angles": lambda a, b, u: (
                torch.lerp(a, b, u) * a.norm() / torch.lerp(a, b, u).norm()
            ),
            "by the sine of the angle": lambda a, b, u: (
                torch.sin((1 - u) * angle_of(a, b)) * a + torch.sin(u * angle_of(a, b)) * b
            ),
        },
    ),
    "w_for_encoding": ("c", {"errors grow": "a", "is chance": "b", "one of the letters": "0"}),
    # 07
    "blind_spot": (" d. ", {"two Gaussians": "a", "nearly perfect": "b", "every label is": "c"}),
    "fewer_images": ("B", {"always a distance": "a", "less of the truth": "c", "one side": "d"}),
    "snr_on_v": (
        torch.tensor([0.0, 0.5, 1.0]),
        {
            "Begin with the noise": (1, 0.5, 0),
            "the plain error of v": (1, 1, 1),
            "How large is the error": (0, 1, 1),
            "forgets no time": (1, 0.5, 1),
            "divided by SNR + 1": (0, 1, math.inf),
        },
    ),
    # 08
    "half_time": (
        lambda std: math.atan2(std, 1) / (math.pi / 2),
        {
            "the other way round": lambda std: 2 / math.pi * math.atan(1 / std),
            "a quarter of a turn": lambda std: math.atan(std),
            "not 1 - t and t": lambda std: std / (1 + std),
            "with a variance": lambda std: 2 / math.pi * math.atan(std**2),
        },
    ),
    "most_pieces": ("D", {"hearts of all": "a", "so many faces": "b", "two pieces": "c"}),
    "no_answer": (1, {"it is not free": 0, "add up to 1": 2.0, "both parts of v": 0.5}),
    # 09
    "share_before_halving": (
        0.72,
        {
            "roots of mean squares": 0.056 / 0.066,
            "share of the halvings": 0.28,
            "the part divided": (0.066 / 0.056) ** 2,
            "from 0 to 1": 72.0,
        },
    ),
    "stock_call": (
        {"guidance_scale": 2, "num_inference_steps": 4},
        {
            "50 is the pipeline's default": {"guidance_scale": 2, "num_inference_steps": 50},
            "and no others": {"guidance_scale": 2, "num_inference_steps": 8},
            "no guidance": {"guidance_scale": 1.0, "num_inference_steps": 4},
            "w = 6.5": {"guidance_scale": 7.5, "num_inference_steps": 4},
            "is 1 + w": {"guidance_scale": 0, "num_inference_steps": 4},
        },
    ),
    "folded_bias": (
        lambda bias, weight, proj, f: torch.nn.functional.linear(proj @ f, weight, bias),
        {
            "goes through its weight": lambda bias, weight, proj, f: bias + proj @ f,
            "the old bias": lambda bias, weight, proj, f: weight @ (proj @ f),
            "transposed": lambda bias, weight, proj, f: bias + (proj @ f) @ weight,
            "wrong order": lambda bias, weight, proj, f: bias + proj @ (weight @ f),
            "through cond_proj first": lambda bias, weight, proj, f: bias + weight @ f,
        },
    ),
    # 10
    "evaluations": (
        lambda strength, steps: next(
            (i for i in range(1, steps + 1) if math.isclose(i / steps, strength)), None
        ),
        {
            "int() takes another": lambda strength, steps: int(
                strength * steps + 1e-9
            ),  # diffusers' rule
            "None is the answer": lambda strength, steps: math.ceil(strength * steps - 1e-9),
            "need tolerance": lambda strength, steps: (
                int(strength * steps) if strength * steps == int(strength * steps) else None
            ),
            "Round, do not cut": lambda strength, steps: int(strength * steps),
        },
    ),
    "latent_mask": (
        lambda mask: torch.nn.functional.max_pool2d(mask, 2),
        {
            "thin strokes vanish": lambda mask: (
                torch.nn.functional.avg_pool2d(mask, 2) > 0.5
            ).float(),
            "one pixel in four": lambda mask: mask[..., ::2, ::2],
            "masked as a whole": lambda mask: -torch.nn.functional.max_pool2d(-mask, 2),
            "1 repaints, 0 keeps": lambda mask: 1 - torch.nn.functional.max_pool2d(mask, 2),
            "no half measures": lambda mask: torch.nn.functional.avg_pool2d(mask, 2),
            "the shape should be": lambda mask: mask,
        },
    ),
    "put_back": (
        lambda z_s, x, eps, mask, alpha, sigma: torch.where(mask > 0, z_s, alpha * x + sigma * eps),
        {
            "the original is clean": lambda z_s, x, eps, mask, alpha, sigma: torch.lerp(
                x, z_s, mask.expand_as(x)
            ),
            "1 repaints, 0 keeps": lambda z_s, x, eps, mask, alpha, sigma: torch.where(
                mask > 0, alpha * x + sigma * eps, z_s
            ),
            "nothing of the new": lambda z_s, x, eps, mask, alpha, sigma: alpha * x + sigma * eps,
            "has its noise already": lambda z_s, x, eps, mask, alpha, sigma: (
                alpha * x + sigma * eps + mask * (z_s - x)
            ),
            "nothing is put back": lambda z_s, x, eps, mask, alpha, sigma: z_s,
        },
    ),
    # 11
    "whole_entries": (
        [1, 2, 4, 8],
        {
            "62.5": {32, 16, 8, 4, 2, 1},
            "31.25": {32, 8, 4, 2, 1},
            "entry 1000 alone": {8, 4, 2},
            "125": {1, 2, 4},
            "divide 1000": {1, 8},
        },
    ),
    "v_of_the_base": (
        lambda eps, z, own_alpha, own_sigma, alpha, sigma: (
            ((alpha - 1 / own_alpha) * z + own_sigma / own_alpha * eps) / sigma
        ),
        {
            "in the base's own numbers": lambda eps, z, a_0, s_0, a, s: (
                (a * z - (z - s * eps) / a) / s
            ),
            "with our alpha and sigma": lambda eps, z, a_0, s_0, a, s: (
                (a_0 * z - (z - s_0 * eps) / a_0) / s_0
            ),
            "equally noisy. Go through z": lambda eps, z, a_0, s_0, a, s: (
                a * eps - s * (z - s_0 * eps) / a_0
            ),
            "the sign": lambda eps, z, a_0, s_0, a, s: ((z - s_0 * eps) / a_0 - a * z) / s,
            "this is x": lambda eps, z, a_0, s_0, a, s: (z - s_0 * eps) / a_0,
        },
    ),
    "gib_of_training": (
        lambda frozen, trained: (frozen / 2 + 5 * trained) / 2**28,
        {
            "one of five": lambda frozen, trained: (2 * frozen + 16 * trained) / 2**30,
            "two of five": lambda frozen, trained: (2 * frozen + 12 * trained) / 2**30,
            "weights alone": lambda frozen, trained: (2 * frozen + 4 * trained) / 2**30,
            "is two bytes": lambda frozen, trained: (4 * frozen + 20 * trained) / 2**30,
            "no gradient": lambda frozen, trained: (10 * frozen + 20 * trained) / 2**30,
            "of 10^9": lambda frozen, trained: (2 * frozen + 20 * trained) / 10**9,
            "these are bytes": lambda frozen, trained: 2 * frozen + 20 * trained,
        },
    ),
    "hours_of_training": (
        3.4,
        {
            "four images": 7300 * 6 * 0.8 / 11.5 / 3600,
            "without the teacher": 7300 * 4 * 4 * 0.8 / 11.5 / 3600,
            "a pass is missing": 7300 * 4 * 5 * 0.8 / 11.5 / 3600,
            "these are seconds": 7300 * 4 * 6 * 0.8 / 11.5,
            "these are minutes": 7300 * 4 * 6 * 0.8 / 11.5 / 60,
        },
    ),
    "guided_again": (
        (1 + 6.5) * 7.5 - 1,
        {
            "a student as well": 6.5,
            "do not add up": 13,
            "that is the scale": 56.25,
            "not the weights": 42.25,
            "6.5 is a weight": 6.5 * 7.5 - 1,
        },
    ),
    # 12
    "sideways": (
        lambda v, v_0, x, w: torch.stack(
            [
                one + a * (d - (d.flatten() @ y.flatten()) / (y.norm() ** 2) * y)
                for one, d, y, a in zip(v, v - v_0, x, w, strict=True)
            ]
        ),
        {
            "nothing has been taken off": lambda v, v_0, x, w: (1 + w) * v - w * v_0,
            "one long example": lambda v, v_0, x, w: (
                v + w * (v - v_0 - ((v - v_0) * x).sum() / x.square().sum() * x)
            ),
            "projected on v_cond": lambda v, v_0, x, w: v + w * (v - v_0 - along(v - v_0, v)),
            "It is what should go": lambda v, v_0, x, w: v + w * along(v - v_0, x),
            "the square of the length": lambda v, v_0, x, w: (
                v + w * (v - v_0 - along(v - v_0, x) * x.square().sum((1, 2, 3), True).sqrt())
            ),
            "not to v_null": lambda v, v_0, x, w: v_0 + w * (v - v_0 - along(v - v_0, x)),
        },
    ),
    "best_of_the_table": ("(C)", {"other table first": "a", "128": "b", "last column does": "d"}),
    "plus_plus_weight": (
        lambda w, a_t, s_t, a_s, s_s: (
            w * s_t * a_s / torch.sin(torch.atan2(s_t, a_t) - torch.atan2(s_s, a_s)) - 1
        ),
        {
            "this is the scale": lambda w, a_t, s_t, a_s, s_s: (
                w * a_s * s_t / (a_s * s_t - s_s * a_t)
            ),
            "moves the noise as well": lambda w, a_t, s_t, a_s, s_s: w - 1,
            "the sign of the noise": lambda w, a_t, s_t, a_s, s_s: (
                w * a_s * s_t / (a_s * s_t + s_s * a_t) - 1
            ),
            "changed places": lambda w, a_t, s_t, a_s, s_s: (
                w * a_t * s_s / (a_t * s_s - a_s * s_t) - 1
            ),
            "alpha_t / sigma_t times": lambda w, a_t, s_t, a_s, s_s: w * a_s / (a_s - s_s) - 1,
        },
    ),
    "not_this": (
        lambda student, cond, negative, w: torch.lerp(
            student(negative, 0), student(cond, 0), 1.0 + w
        ),
        {
            "the weights multiply": lambda student, cond, negative, w: (
                (1 + w) * student(cond, w) - w * student(negative, w)
            ),
            "away from nothing": lambda student, cond, negative, w: student(cond, w),
            "towards the negative": lambda student, cond, negative, w: (
                (1 + w) * student(negative, 0) - w * student(cond, 0)
            ),
            "Look at the sign": lambda student, cond, negative, w: (
                (1 + w) * student(cond, 0) + w * student(negative, 0)
            ),
            "guided with w - 1": lambda student, cond, negative, w: (
                student(negative, 0) + w * (student(cond, 0) - student(negative, 0))
            ),
            "one of the two": lambda student, cond, negative, w: (
                (1 + w) * student(cond, w) - w * student(negative, 0)
            ),
        },
    ),
    "weight_on_top": (
        torch.tensor(6 / 3 - 1),
        {
            "do not add up": 3,
            "that is the scale": 2,
            "they are multiplied": 5,
            "not the weights that multiply": 5 / 2,
        },
    ),
    # 13
    "mean_alone": (
        lambda said, channels: said.split(channels, 1)[0],
        {
            "this is the variance": lambda said, channels: said[:, channels:],
            "cuts the batch": lambda said, channels: said[:channels],
            "do not alternate": lambda said, channels: said[:, ::2],
            "half of its mean": lambda said, channels: said.chunk(2, dim=1)[0],
            "an average of channels": lambda said, channels: said.mean(1),
            "nothing has been left out": lambda said, channels: said,
        },
    ),
    "flux_call": (
        {"evaluations": 28.0, "w": torch.tensor(3.5) - 1},
        {
            "that is the scale": {"w": 3.5, "evaluations": 28},
            "the other way round": {"w": 4.5, "evaluations": 28},
            "own business": {"w": 2500, "evaluations": 28},
            "its teacher needed": {"w": 2.5, "evaluations": 56},
            "none of its own": {"w": 2.5, "evaluations": 29},
            "How many steps": {"w": 2.5, "evaluations": 1},
        },
    ),
    "on_the_circle": (
        lambda z, tau: [
            z / torch.stack([tau, 1 - tau]).norm(),
            torch.acos((1 - tau) / torch.hypot(tau, 1 - tau)) * 2 / math.pi,
        ],
        {
            "z as it was": lambda z, tau: (z, tau),
            "multiplied, where": lambda z, tau: (z * torch.hypot(tau, 1 - tau), tau),
            "the root of the sum": lambda z, tau: (z / (tau**2 + (1 - tau) ** 2), tau),
            "no time of ours": lambda z, tau: (z / torch.hypot(tau, 1 - tau), tau),
            "a quarter of a turn": lambda z, tau: (
                z / torch.hypot(tau, 1 - tau),
                torch.atan2(tau, 1 - tau),
            ),
            "have changed places": lambda z, tau: (
                z / torch.hypot(tau, 1 - tau),
                torch.atan2(1 - tau, tau) * 2 / math.pi,
            ),
            "the cosine is": lambda z, tau: (
                z / torch.hypot(tau, 1 - tau),
                torch.acos(1 - tau) * 2 / math.pi,
            ),
            "the sine is": lambda z, tau: (
                z / torch.hypot(tau, 1 - tau),
                torch.asin(tau) * 2 / math.pi,
            ),
            "return two things": lambda z, tau: z / torch.hypot(tau, 1 - tau),
        },
    ),
    "shifted_snr": (
        torch.tensor(0.1111),
        {
            "for the amplitudes": 1 / 3,
            "the other way round": 9,
            "a ratio of squares": 3,
            "its logarithm falls": -2 * math.log(3),
            "that is tau'": 3 / 4,
        },
    ),
    # 14
    "spot_the_line": ("D", {"the midpoint": "a", "first of the two": "b", "made of its": "c"}),
    "leading_times": (
        (750.0, 500.0, 250.0, 0.0),
        {
            "noisiest entry is just what is left out": [999, 749, 499, 249],
            "from noise to data": [0, 250, 500, 750],
            "four calls": [750, 500, 250],
            "into k * 1000 / 4": [751, 501, 251, 1],
        },
    ),
    "guided_twice": (
        (1 + 3) ** 2 - 1,
        {
            "multiplies the first": 6,
            "not w": 9,
            "that is the scale": 16,
            "given so much already": 3,
            "One w was there": 12,
        },
    ),
    # 15
    "lora_numbers": (
        torch.tensor([4.0 * 1280, 320 * 4.0]).sum(),
        {
            "the whole layer": 320 * 1280,
            "this is rank 1": 1600,
            "they are added": 4 * 320 * 1280,
            "this is A alone": 5120,
            "this is B alone": 1280,
        },
    ),
    "best_answer": (
        "(B)",
        {
            "nothing in this loss is guided": "a",
            "guided at none": "c",
            "nothing rewards the old one": "d",
            "one of the letters a, b, c, d": "e",
        },
    ),
    "pushed_target": (
        lambda v, u, w: torch.stack(
            [(1 + each) * a - each * b for a, b, each in zip(v, u, w, strict=True)]
        ),
        {
            "the factor is 1 + w": lambda v, u, w: u + w[:, None, None, None] * (v - u),
            "changed places": lambda v, u, w: v + (1 + w)[:, None, None, None] * (u - v),
            "guided already": lambda v, u, w: v + (1 + w)[:, None, None, None] * (v - u),
            "along the width": lambda v, u, w: u + (1 + w) * (v - u),
            "Give w the shape": lambda v, u, w: u + (1 + w[:3]) * (v - u),
            "off by up to": lambda v, u, w: v,
        },
    ),
}


@pytest.mark.parametrize("source", [*exercises()])
def test_a_check_accepts_the_solution_and_says_so_of_a_blank(source, request):
    name = request.node.callspec.id
    known = {"math": math, "torch": torch}
    answered, blank = {**FOUND, **known}, {**known}
    exec(editions.solved(source), answered)
    assert verdict(name, answered[name]).startswith("Right. ")
    exec(editions.blanked(source), blank)
    assert verdict(name, blank[name]) == checks.NOTHING


def test_every_exercise_has_another_right_answer_and_three_wrong_ones_or_more():
    assert [*ANSWERS] == [exercise.id for exercise in exercises()]
    assert all(len(wrong) >= 3 for _, wrong in ANSWERS.values())


@pytest.mark.parametrize("name", ANSWERS)
def test_a_check_accepts_another_way_to_write_it(name):
    assert verdict(name, ANSWERS[name][0]).startswith("Right. ")


@pytest.mark.parametrize(
    "name, words", [(name, words) for name, (_, wrong) in ANSWERS.items() for words in wrong]
)
def test_a_wrong_answer_hears_what_is_wrong_with_it(name, words):
    said = verdict(name, ANSWERS[name][1][words])
    assert said.startswith("Not yet: ") and words in said and said.count("\n") == 0


def test_what_is_no_number_or_of_no_use_hears_what_is_wanted():
    assert "should be a number, and this is a str" in checks.landing("far out")
    assert "divided by zero" in checks.landing(float("nan"))
    assert checks.landing(...) == checks.landing(None) == checks.NOTHING


def test_what_is_to_be_predicted_in_the_plane_is_so():
    exact = GuidedDenoiser(pinwheel().denoiser(CosineSchedule()), null=3)
    z, cond = torch.randn(300, 2, generator=torch.Generator().manual_seed(0)), torch.arange(300) % 3
    z = z.double()
    means = pinwheel().means.double().reshape(3, 4, 2).mean(1)
    torch.testing.assert_close(last(ddim(exact, z, 1, cond, 3.0)), 4 * means[cond])

    misses = {}
    for i in (4, 3, 2, 1):
        t, mid, s = (torch.full((300,), (i - back) / 4).double() for back in (0, 0.5, 1))
        second = exact(ddim_step(exact(z, t, cond, 2.0), mid, exact.schedule), mid, cond, 2.0)
        said = convert(second.x, z, *exact.schedule.alpha_sigma(t), "x")
        off = ddim_step(said, s, exact.schedule) - ddim_step(second, s, exact.schedule)
        misses[i] = off.square().mean().sqrt().item()
    order = sorted(misses, key=misses.get)
    assert misses[1] < 1e-12 < 1e-2 < misses[4] and (order[0], order[-1]) == (1, 2)


def test_the_order_at_one_step_is_another_on_photographs():
    said = [checks.order_at_one_step(order, "cifar10") for order in ([3, 1, 0], [1, 3, 0])]
    assert said[0].startswith("Right") and "too much for a grey photograph" in said[1]
