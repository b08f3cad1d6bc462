"""delivered_w on students whose answer is known in closed form."""

import pytest
import torch
from torch import nn

from cfgdistill import (
    CosineSchedule,
    GuidedDenoiser,
    ddim,
    delivered_by_samples,
    delivered_w,
    last,
    rules,
)
from cfgdistill.core.parameterization import Prediction
from cfgdistill.data.named import load_data
from cfgdistill.data.toy import pinwheel
from cfgdistill.teachers.files import load
from cfgdistill.teachers.shipped import copy_pretrained

DATA = load_data("toy")
EXACT = pinwheel().denoiser(CosineSchedule())
TEACHER = GuidedDenoiser(EXACT, null=3)


class Student(nn.Module):
    """Delivers `answer(w)`, with an error at right angles to the guidance."""

    device = TEACHER.device

    def __init__(self, answer, error=0.0):
        super().__init__()
        self.answer, self.error = answer, error

    def forward(self, z, t, cond, w):
        own, more = TEACHER(z, t, cond, self.answer(w)), TEACHER(z, t, cond, 1.0).v
        along = more - TEACHER(z, t, cond, 0.0).v
        across = along.flip(1) * along.new_tensor([1.0, -1.0])  # turned by a right angle
        return Prediction(own.x, own.eps, own.v + self.error * across)


@pytest.mark.parametrize("w", [0.0, 0.3, 1.0, 4.0])
def test_a_perfect_student_delivers_what_it_is_asked_for(w):
    assert delivered_w(TEACHER, TEACHER, DATA, w, n=500) == pytest.approx(w, abs=1e-5)


@pytest.mark.parametrize("w", [0.0, 1.0, 4.0])
def test_what_is_delivered_is_read_off_whatever_the_error_across(w):
    student = Student(lambda w: 0.7 * w + 0.1, error=2.0)
    found = delivered_w(student, TEACHER, DATA, w, n=500)
    assert found == pytest.approx(0.7 * w + 0.1, abs=1e-4)


def test_a_blind_student_delivers_the_same_at_every_w():
    blind = Student(lambda w: 1.5)
    for w in (0.0, 4.0):
        assert delivered_w(blind, TEACHER, DATA, w) == pytest.approx(1.5, abs=1e-5)


def test_of_any_rule_the_measure_is_along_its_own_line():
    def squared(at, w):  # whose answer is no line through those at 0 and 1
        return rules.classifier_free(at, w * w)

    teacher = GuidedDenoiser(EXACT, 3, squared)
    assert delivered_w(teacher, teacher, DATA, 3.0, n=500) == pytest.approx(3.0, abs=1e-5)
    # Taken for it, classifier-free guidance with w = 3 does a third of what it should, 9.
    assert delivered_w(TEACHER, teacher, DATA, 3.0, n=500) == pytest.approx(1.0, abs=1e-5)


def test_of_several_strengths_the_first_one_is_read_and_the_others_stay():
    teacher = GuidedDenoiser(EXACT, 3, rules.interval)
    asked = (2.0, 0.5, 2.0)
    assert delivered_w(teacher, teacher, DATA, asked, n=500) == pytest.approx(2.0, abs=1e-5)


def test_the_measure_is_that_of_the_times_that_are_asked_about():
    class Late(Student):
        def forward(self, z, t, cond, w):
            return TEACHER(z, t, cond, torch.where(t > 0.5, torch.full_like(t, w), 0 * t))

    late = Late(None)
    for times, expected in (((0.5, 1.0), 2.0), ((0.1, 0.5), 0.0)):
        assert delivered_w(late, TEACHER, DATA, 2.0, times=times) == pytest.approx(expected)


def test_a_teacher_that_ignores_its_condition_is_told():
    deaf = pinwheel().denoiser(CosineSchedule())
    deaf.net.labels.zero_()
    guided = GuidedDenoiser(deaf, null=0)
    x = torch.zeros(8, 2)
    data = type("Zeros", (), {"__len__": lambda _: 8, "batch": lambda _, i: (x[i], 0 * i)})()
    with pytest.raises(ValueError, match="no guidance to deliver"):
        delivered_w(guided, guided, data, 1.0, n=8)


def test_samples_of_the_teacher_itself_are_found_at_their_own_w():
    z = torch.randn(64, 2, generator=torch.Generator().manual_seed(0))
    cond = torch.arange(64) % 3
    grid = {w: last(ddim(TEACHER, z, 8, cond, w)) for w in (0.0, 1.0, 2.0, 4.0)}
    for w, x in grid.items():
        assert delivered_by_samples(x, grid) == pytest.approx(w, abs=1e-6)
    between = 0.75 * grid[1.0] + 0.25 * grid[2.0]
    assert delivered_by_samples(between, grid) == pytest.approx(1.25, abs=1e-6)
    beyond = grid[4.0] + (grid[4.0] - grid[2.0])
    assert delivered_by_samples(beyond, grid) == 4.0
    with pytest.raises(ValueError, match="pass two"):
        delivered_by_samples(between, {1.0: grid[1.0]})


def test_the_shipped_digits_student_obeys_its_dial(tmp_path):
    """Within 5 % of what it is asked for; and asked for none, it gives none."""
    digits = load_data("digits")
    teacher = GuidedDenoiser(load(copy_pretrained("digits/teacher", tmp_path / "a")), digits.null)
    student = load(copy_pretrained("digits/stage-one", tmp_path / "b"))
    for w in (0.0, 0.3, 1.0, 2.0, 3.0, 4.0):
        given = delivered_w(student, teacher, digits, w, n=1000)
        assert given == pytest.approx(w, abs=0.03 if w == 0 else 0.05 * w)
