"""Experts by noise level: one network to all who ask it, and distilled by unchanged stages."""

import pytest
import torch
from helpers import Wave, tiny_mlp

import cfgdistill as cd
from cfgdistill.training.checkpoints import fingerprint, save_weights

SCHEDULE = cd.CosineSchedule()


def some(n=40):
    z = torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return z, torch.linspace(0, 1, n, dtype=torch.float64), torch.arange(n) % 3


def together(edges, denoisers):
    experts = cd.Experts(edges, denoisers)
    return cd.Denoiser(experts, denoisers[0].schedule, num_classes=3).eval()


def test_experts_that_are_one_network_are_that_network():
    exact, (z, t, cond) = cd.pinwheel().denoiser(SCHEDULE), some()
    for edges in ((), (0.5,), (0.1, 0.4, 0.9)):
        same = together(edges, [exact] * (len(edges) + 1))
        for mine, theirs in zip(same(z, t, cond), exact(z, t, cond), strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-9, rtol=1e-9)
    assert same.nfe == 1


def test_each_expert_is_asked_in_its_interval_whatever_it_predicts():
    class Constant(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            self.value = value

        def forward(self, z, t, cond, w):
            return torch.full_like(z, self.value)

    # The second says eps, which is worth as much v as convert says; at t = 3/4.
    low, high = (cd.Denoiser(Constant(v), SCHEDULE, form) for v, form in ((1.0, "v"), (2.0, "eps")))
    z, t = torch.zeros(3, 2).double(), torch.tensor([0.0, 0.5, 0.75]).double()
    v = together((0.5,), [low, high])(z, t).v
    alpha, sigma = SCHEDULE.alpha_sigma(t[2:])
    assert v[:2].eq(1).all()
    torch.testing.assert_close(v[2], (2 * (alpha + sigma**2 / alpha)).expand(2))


def test_two_half_steps_may_be_those_of_two_experts():
    first, second = cd.Denoiser(Wave(), SCHEDULE), cd.pinwheel().denoiser(SCHEDULE)
    both, (z, _, cond) = together((0.5,), [second, first]), some(6)
    one = torch.ones(6).double()
    middle = cd.ddim_step(first(z, one, cond), one / 2, SCHEDULE)
    end = cd.ddim_step(second(middle, one / 2, cond), 0 * one, SCHEDULE)
    v = cd.progressive_target(both, z, 1.0, 0.0, cond)
    torch.testing.assert_close(v, cd.implied_v(z, end, one, 0 * one, SCHEDULE))


def test_experts_are_distilled_into_one_network_or_into_experts_by_unchanged_stages(tmp_path):
    exact = cd.pinwheel()
    experts = together((0.5,), [tiny_mlp(0), tiny_mlp(1)])
    guided = cd.GuidedDenoiser(experts, 3)

    class Points:
        def __len__(self):
            return 100

        def batch(self, indices, u):
            x, cond = exact.sample(len(indices), generator=torch.Generator().manual_seed(0))
            return x.float(), cond

    for start in (tiny_mlp(0), experts):
        student = cd.add_w_conditioning(start, (0.0, 2.0))
        loss = cd.stage_one_loss(guided, student.w_range)
        errors = [u.loss for u in cd.train(student, loss, Points(), cd.Optim(60, 64, 5e-3))]
        assert sum(errors[-5:]) < 0.8 * sum(errors[:5])
        optim = cd.Optim(2, 8, 1e-3)
        few = [*cd.distill_progressively(student, Points(), optim, start=2)]
        assert [each.steps for each in few] == [2, 1]
        save_weights(few[-1], tmp_path / type(start.net).__name__, {})
        back = cd.load(tmp_path / type(start.net).__name__, device="cpu")
        z, _, cond = some(6)
        a, b = (cd.last(cd.ddim(model, z.float(), 1, cond, 1.5)) for model in (few[-1], back))
        assert torch.equal(a, b) and fingerprint(back) == fingerprint(few[-1])


@pytest.mark.parametrize(
    "edges, number, said",
    [
        ((0.5,), 3, "1 edges lie between 2 experts, not 3"),
        ((0.5, 0.5), 3, r"Edges must rise from 0 to 1, both excluded, and \(0.5, 0.5\) do not"),
        ((1.0,), 2, "Edges must rise"),
    ],
)
def test_experts_need_an_interval_each(edges, number, said):
    with pytest.raises(ValueError, match=said):
        cd.Experts(edges, [tiny_mlp() for _ in range(number)])


def test_experts_need_one_schedule():
    other = cd.Denoiser(tiny_mlp().net, cd.FlowSchedule())
    with pytest.raises(ValueError, match="must be on one schedule"):
        cd.Experts((0.5,), [tiny_mlp(), other])
