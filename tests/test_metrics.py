"""Metrics against closed forms, and the row of a results table."""

import pytest
import torch
from helpers import Wave

from cfgdistill import CosineSchedule, Denoiser, GuidedDenoiser, ddim, last
from cfgdistill.data import Data, load_data
from cfgdistill.metrics import Classifier, Judge, classification_loss, evaluate, generate
from cfgdistill.toy import pinwheel
from cfgdistill.training import train


class Identity(Classifier):
    """Features are the points themselves; the class is whether the first number is positive."""

    num_features = 2

    def __init__(self):
        torch.nn.Module.__init__(self)
        self.p = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x

    def logits(self, x):
        return torch.stack([-x[:, 0], x[:, 0]], 1)


def white(n=400, seed=0):
    """n points whose mean is exactly 0 and whose covariance is exactly I."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    z = z - z.mean(0)
    return torch.linalg.solve_triangular(torch.linalg.cholesky(z.T.cov()), z.T, upper=False).T


def reference(x):
    labels = torch.zeros(len(x), dtype=torch.long)
    return Data("points", "test", x.float(), labels, ("left", "right"), None)


FACTORS = torch.tensor([[[1.0, 0.0], [0.5, 2.0]], [[1.5, 0.0], [-1.0, 0.7]]], dtype=torch.float64)
CENTRES = torch.tensor([[0.0, 1.0], [2.0, -1.0]], dtype=torch.float64)


def test_frechet_distance_of_two_gaussians_is_the_closed_form():
    real, fake = (white(seed=i) @ FACTORS[i].T + CENTRES[i] for i in (0, 1))
    a, b = (factor @ factor.T for factor in FACTORS)
    # tr sqrt(ab) of two 2 x 2 matrices: the square root of tr(ab) + 2 sqrt(det(ab)).
    cross = ((a @ b).trace() + 2 * (a.det() * b.det()).sqrt()).sqrt()
    known = (CENTRES[0] - CENTRES[1]).square().sum() + a.trace() + b.trace() - 2 * cross
    distance, _ = Judge(Identity(), reference(real))(fake.float(), torch.zeros(400).long())
    assert distance == pytest.approx(known.item(), rel=1e-4)


def test_frechet_distance_of_a_shift_by_3_and_4_is_25():
    x = white()
    judge = Judge(Identity(), reference(x))
    shifted = (x + torch.tensor([3.0, 4.0])).float()
    assert judge(shifted, torch.zeros(400).long())[0] == pytest.approx(25, rel=1e-5)
    assert judge(x.float(), torch.zeros(400).long())[0] == pytest.approx(0, abs=1e-4)


def test_a_judge_forgets_the_samples_and_keeps_the_reference():
    x, labels = white(), torch.zeros(400).long()
    judge = Judge(Identity(), reference(x))
    near, far = (x + 0.1).float(), (x * 5).float()
    first = judge(near, labels)
    judge(far, labels)
    assert judge(near, labels) == first


def test_the_batch_of_a_judge_changes_nothing():
    x, labels = white(), torch.arange(400) % 2
    judges = [Judge(Identity(), reference(x), batch=batch) for batch in (7, 1000)]
    (a, right), (b, same) = (judge((x + 1).float(), labels) for judge in judges)
    assert a == pytest.approx(b, rel=1e-6) and right == same


def test_accuracy_is_the_share_of_samples_that_are_of_their_class():
    x = torch.tensor([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0], [-3.0, 0.0], [4.0, 1.0]])
    judge = Judge(Identity(), reference(white()))
    assert judge(x, torch.tensor([1, 1, 0, 0, 1]))[1] == 1.0
    assert judge(x, torch.tensor([1, 0, 0, 1, 1]))[1] == pytest.approx(3 / 5)


def test_a_judge_says_what_it_measures_with():
    judge = Judge(Identity(), reference(white()))
    assert judge.name == "points classifier, 2 features"
    assert judge.reference == "points test, 400 images"


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 32)])
def test_a_classifier_gives_64_features_and_one_logit_per_class(channels, size):
    classifier, x = Classifier(channels, size, 10), torch.zeros(2, channels, size, size)
    assert classifier(x).shape == (2, 64) and classifier.logits(x).shape == (2, 10)
    assert torch.equal(classifier.net[1](classifier(x)), classifier.logits(x))


def test_a_classifier_learns_to_read_digits():
    data = load_data("digits", images=200)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        classifier = Classifier(1, 8, 10)
    updates = train(
        classifier, classification_loss, data, name="c", updates=40, batch=32, rate=5e-3
    )
    assert len(list(updates)) == 40
    x, labels = data.all()
    with torch.no_grad():
        assert (classifier.logits(x).argmax(1) == labels).float().mean() > 0.7


# ---- samples -----------------------------------------------------------------------------------


class Scaled(Wave):
    """A pseudo-network with a parameter, from which the device is read."""

    def __init__(self):
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(1))


LABELS = torch.arange(10) % 3
POINTS = reference(white())


def student():
    return Denoiser(Scaled(), CosineSchedule())


def test_samples_start_from_the_noise_of_their_seed_alone():
    torch.manual_seed(3)
    noise = torch.randn(10, 1, 2, 2, generator=torch.Generator().manual_seed(7))
    known = last(ddim(student(), noise, 3, LABELS, 1.0)).clamp(-1, 1)
    x = generate(student(), (1, 2, 2), LABELS, steps=3, w=1.0, seed=7)
    assert torch.equal(x, known)
    other = generate(student(), (1, 2, 2), LABELS, steps=3, w=1.0, seed=8)
    assert not torch.equal(x, other)


def test_the_batch_of_a_sampler_changes_no_sample():
    whole, parts = (
        generate(student(), (1, 2, 2), LABELS, steps=3, w=1.0, batch=batch) for batch in (10, 3)
    )
    torch.testing.assert_close(whole, parts)


def test_an_exact_denoiser_which_has_no_parameters_can_be_sampled_too():
    exact = pinwheel().denoiser(CosineSchedule())
    x = generate(exact, (2,), LABELS, steps=4, w=None)
    assert x.shape == (10, 2) and x.isfinite().all()


def test_samples_lie_between_minus_1_and_1():
    x = generate(student(), (1, 4, 4), torch.zeros(50).long(), steps=1, w=0.0)
    assert x.min() >= -1 and x.max() <= 1


class Class(torch.nn.Module):
    """Knows the x of each label: class 1 to the right, class 0 and null to the left."""

    def __init__(self):
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(1))

    def forward(self, z, t, cond, w):
        return torch.where(cond == 1, 0.5, -0.5)[:, None].expand_as(z)


def test_a_row_of_the_table_holds_quality_and_cost():
    denoiser = Denoiser(Class(), CosineSchedule(), "x")
    guided = GuidedDenoiser(denoiser, null=2)
    judge = Judge(Identity(), reference(white()))
    for model, name, nfe in ((denoiser, "student", 4), (guided, "teacher", 8)):
        model.nfe = 99  # what was spent before is not charged
        row = evaluate(model, judge, POINTS, model=name, steps=4, w=0.0, n=20, batch=8)
        assert (row["model"], row["sampler"], row["steps"]) == (name, "ddim", 4)
        assert row["nfe"] == nfe and row["w"] == 0.0 and row["class_accuracy"] == 1.0
        assert row["ms_per_image"] > 0
        # 20 points at +-(1/2, 1/2), half of each: mean 0, every covariance entry 20/19 / 4.
        # Against N(0, I): 2 + 2 q - 2 sqrt(2 q) with q = 5/19.
        q = 5 / 19
        assert row["frechet_distance"] == pytest.approx(2 + 2 * q - 2 * (2 * q) ** 0.5, abs=2e-3)


def test_the_classes_of_a_row_come_in_equal_parts(monkeypatch):
    seen = []
    judge = Judge(Identity(), reference(white()))
    monkeypatch.setattr(
        Judge, "__call__", lambda self, x, labels: (seen.append(labels), (0.0, 0.0))[1]
    )
    evaluate(student(), judge, POINTS, model="s", steps=1, w=0.0, n=30)
    assert torch.bincount(seen[0]).tolist() == [15, 15]
