"""The checks of the exercises: each accepts what is right, and says what is wrong with the rest.

The solutions are those of the scripts. Beside them, here, stand another way to write each, and the
usual wrong answers, with words of the sentence that is meant for each.
"""

import course
import editions
import jupytext
import pytest
import torch

from cfgdistill.course import checks

ROWS = [(0, 0, 0, float(k), k**0.5) for k in range(1, 12)]  # stage one has 8, the student 11


def exercises():
    """{name: the cell of its solution}, of all notebooks."""
    for script in sorted((course.ROOT / "notebooks").glob("*.py")):
        for cell in course.code_cells(jupytext.read(script)):
            about = cell.metadata.get("nbgrader", {})
            if about.get("solution"):
                yield pytest.param(cell.source, id=about["grade_id"])


def verdict(name: str, answer) -> str:
    more = {"share_of_stage_one": (8.0, 11.0)}
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
}


@pytest.mark.parametrize("source", [*exercises()])
def test_a_check_accepts_the_solution_and_says_so_of_a_blank(source, request):
    name = request.node.callspec.id
    answered, blank = {"rows": ROWS, "torch": torch}, {"torch": torch}
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
