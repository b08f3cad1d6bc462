"""Schedules against their closed form, and against diffusers."""

import json
import math

import pytest
import torch
from diffusers import DDIMScheduler
from helpers import Wave, cosine_alphas_cumprod, linear_alphas_cumprod, schedules

from cfgdistill import CosineSchedule, Denoiser, DiscreteSchedule, ddim
from cfgdistill.core.schedules import expand, per_example

TIMES = torch.linspace(0, 1, 33, dtype=torch.float64)


def test_cosine_schedule_is_cos_and_sin_of_a_quarter_turn():
    alpha, sigma = CosineSchedule().alpha_sigma(TIMES)
    known = [(math.cos(math.pi / 2 * t), math.sin(math.pi / 2 * t)) for t in TIMES.tolist()]
    torch.testing.assert_close(
        torch.stack([alpha, sigma], 1), torch.tensor(known, dtype=torch.float64)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_cosine_schedule_ends_in_exactly_no_signal_and_starts_with_exactly_no_noise(dtype):
    alpha, sigma = CosineSchedule().alpha_sigma(torch.tensor([0.0, 1.0], dtype=dtype))
    assert alpha.tolist() == [1.0, 0.0] and sigma.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", schedules())
def test_every_schedule_preserves_variance(name):
    alpha, sigma = schedules()[name].alpha_sigma(TIMES)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(TIMES), rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", schedules())
def test_the_angle_is_atan2_of_sigma_and_alpha(name):
    schedule = schedules()[name]
    alpha, sigma = schedule.alpha_sigma(TIMES)
    torch.testing.assert_close(schedule.angle(TIMES), torch.atan2(sigma, alpha))


@pytest.mark.parametrize("name", schedules())
def test_signal_to_noise_falls_with_time(name):
    assert (schedules()[name].logsnr(TIMES).diff() < 0).all()


def test_logsnr_of_the_cosine_schedule_by_hand():
    # t = 1/2: alpha = sigma, log 1 = 0.  t = 1/3: alpha/sigma = cot 30 degrees = sqrt 3, log 3.
    t = torch.tensor([1 / 2, 1 / 3, 2 / 3], dtype=torch.float64)
    known = torch.tensor([0.0, math.log(3), -math.log(3)], dtype=torch.float64)
    torch.testing.assert_close(CosineSchedule().logsnr(t), known, rtol=0, atol=1e-14)
    torch.testing.assert_close(
        CosineSchedule().snr(t), torch.tensor([1.0, 3.0, 1 / 3], dtype=torch.float64)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logsnr_is_clipped_to_20_at_both_ends(dtype):
    assert CosineSchedule().logsnr(torch.tensor([0.0, 1.0], dtype=dtype)).tolist() == [20.0, -20.0]


def test_add_noise_is_alpha_x_plus_sigma_eps_with_one_time_per_example():
    x, eps = torch.full((3, 1, 2, 2), 5.0).double(), torch.full((3, 1, 2, 2), 7.0).double()
    t = torch.tensor([0.0, 1 / 3, 1.0], dtype=torch.float64)
    z = CosineSchedule().add_noise(x, eps, t)
    known = torch.tensor([5.0, 5 * math.sqrt(3) / 2 + 7 / 2, 7.0], dtype=torch.float64)
    torch.testing.assert_close(z, known.reshape(3, 1, 1, 1).expand_as(x))


@pytest.mark.parametrize("T", [50, 1000, 1024])
def test_discrete_schedule_reads_entry_k_at_time_k_plus_1_over_T(T):
    table = linear_alphas_cumprod(T)
    t = (torch.arange(T) + 1).double() / T
    alpha, sigma = DiscreteSchedule(table).alpha_sigma(t)
    torch.testing.assert_close(alpha**2, table, rtol=0, atol=1e-12)
    torch.testing.assert_close(sigma**2, 1 - table, rtol=0, atol=1e-12)


def test_discrete_schedule_is_clean_data_at_time_0():
    alpha, sigma = schedules()["discrete"].alpha_sigma(torch.zeros(1, dtype=torch.float64))
    assert alpha.item() == 1.0 and sigma.item() == 0.0


def test_discrete_schedule_is_linear_in_the_angle_between_entries():
    schedule = DiscreteSchedule(torch.tensor([0.75, 0.25], dtype=torch.float64))  # 30, 60 degrees
    t = torch.tensor([0.25, 0.5, 0.75, 1.0], dtype=torch.float64)
    degrees = torch.tensor([15.0, 30.0, 45.0, 60.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.angle(t).rad2deg(), degrees)


def test_the_time_of_an_angle_by_hand_and_1_where_the_table_ends_below():
    schedule = DiscreteSchedule(torch.tensor([0.75, 0.25], dtype=torch.float64))  # 30, 60 degrees
    degrees = torch.tensor([0.0, 15.0, 30.0, 45.0, 60.0, 90.0], dtype=torch.float64)
    t = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0, 1.0], dtype=torch.float64)
    torch.testing.assert_close(schedule.time(degrees.deg2rad()), t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_time_of_an_angle_is_the_inverse_of_the_angle_at_a_time(dtype):
    schedule = DiscreteSchedule(stable_diffusion_table())
    t = torch.linspace(0, 1, 1777, dtype=dtype)
    atol = {torch.float32: 1e-4, torch.float64: 1e-12}[dtype]
    torch.testing.assert_close(schedule.time(schedule.angle(t)), t, atol=atol, rtol=0)


def test_discrete_table_of_the_cosine_schedule_is_the_cosine_schedule_everywhere():
    t = torch.linspace(0, 1, 777, dtype=torch.float64)  # its angle is linear: also between entries
    discrete = DiscreteSchedule(cosine_alphas_cumprod(1024)).alpha_sigma(t)
    torch.testing.assert_close(discrete, CosineSchedule().alpha_sigma(t), rtol=0, atol=1e-12)


def test_discrete_schedule_has_the_alphas_of_diffusers():
    table = DDIMScheduler(num_train_timesteps=1000, beta_schedule="scaled_linear").alphas_cumprod
    t = (torch.arange(1000) + 1).double() / 1000
    alpha, _ = DiscreteSchedule(table).alpha_sigma(t)
    torch.testing.assert_close(alpha.square().float(), table, rtol=0, atol=1e-6)


def stock_trajectory(z, steps, table, prediction_type):
    """What DDIMScheduler does with the pseudo-network and exactly this table."""
    T = len(table)
    betas = 1 - table / torch.cat([torch.ones(1).double(), table[:-1]])
    scheduler = DDIMScheduler(
        num_train_timesteps=T,
        trained_betas=betas.numpy(),
        prediction_type=prediction_type,
        timestep_spacing="trailing",
        set_alpha_to_one=True,
        clip_sample=False,
        steps_offset=1,
    )
    # The table itself, and not what diffusers multiplies up from its betas in float32, of which
    # every processor has last bits of its own.
    scheduler.alphas_cumprod = table.to(z.dtype)
    scheduler.set_timesteps(steps)
    for k in scheduler.timesteps:
        t = ((k + 1) / T).expand(len(z))
        z = scheduler.step(Wave()(z, t, None, None), k, z).prev_sample
        yield z


@pytest.mark.parametrize("steps", [1, 2, 4, 8, 16, 32])
def test_ddim_with_the_cosine_schedule_equals_diffusers_step_by_step(steps):
    z = torch.randn(16, 3, generator=torch.Generator().manual_seed(0)).double()
    ours = list(ddim(Denoiser(Wave(), CosineSchedule(), "v"), z, steps))
    stock = list(stock_trajectory(z, steps, cosine_alphas_cumprod(1024), "v_prediction"))
    assert len(ours) == len(stock) == steps
    torch.testing.assert_close(torch.stack(ours), torch.stack(stock), rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("v", "v_prediction"), ("eps", "epsilon"), ("x", "sample")]
)
@pytest.mark.parametrize("steps", [4, 20])
def test_ddim_with_a_1000_step_table_equals_diffusers_for_every_prediction_type(
    ours, theirs, steps
):
    z = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    table = linear_alphas_cumprod(1000)
    denoiser = Denoiser(Wave(), DiscreteSchedule(table), ours)
    mine = torch.stack(list(ddim(denoiser, z, steps)))
    stock = torch.stack(list(stock_trajectory(z, steps, table, theirs)))
    # The table ends at alpha = 0.0063, by which an eps-prediction is divided: relative error.
    torch.testing.assert_close(mine, stock, rtol=2e-4, atol=1e-4)


def test_per_example_gives_one_number_to_all_or_each_its_own():
    z = torch.zeros(3, 2, dtype=torch.float64)
    assert per_example(0.5, z).tolist() == [0.5, 0.5, 0.5]
    assert per_example(torch.tensor([1.0, 2.0, 3.0]), z).tolist() == [1.0, 2.0, 3.0]
    assert per_example(0.5, z).dtype == torch.float64


def test_expand_lines_one_number_up_with_each_example():
    assert expand(torch.tensor([1.0, 2.0]), torch.zeros(2, 3, 4, 4)).shape == (2, 1, 1, 1)


# ---- a table of Stable Diffusion, made to end in noise ------------------------------------------


def stable_diffusion_table() -> torch.Tensor:
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    return torch.cumprod(1 - betas, 0)


def test_zero_terminal_snr_is_the_algorithm_of_lin_et_al_as_diffusers_has_it():
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

    table = stable_diffusion_table()
    betas = 1 - table / torch.cat([table.new_ones(1), table[:-1]])
    known = torch.cumprod(1 - rescale_zero_terminal_snr(betas), 0)
    ours = DiscreteSchedule(table).zero_terminal_snr()
    torch.testing.assert_close(ours.alphas_cumprod, known, atol=1e-12, rtol=1e-9)
    assert ours.alpha_sigma(torch.ones(1))[0] == 0 and table[-1] > 0.004


def test_a_resampled_table_has_the_angles_of_the_first_one():
    schedule = DiscreteSchedule(stable_diffusion_table()).zero_terminal_snr()
    other = schedule.resampled(1024)
    t = torch.arange(9, dtype=torch.float64) / 8  # entries of both tables
    assert len(other.alphas_cumprod) == 1024
    torch.testing.assert_close(other.angle(t), schedule.angle(t), atol=1e-9, rtol=0)
    between = torch.tensor([0.3337, 0.9001]).double()
    torch.testing.assert_close(other.angle(between), schedule.angle(between), atol=1e-6, rtol=0)


def test_a_schedule_says_in_json_what_it_is():
    schedule = DiscreteSchedule(stable_diffusion_table())
    said = json.loads(json.dumps(schedule.describe()))
    again = DiscreteSchedule(torch.tensor(said["alphas_cumprod"], dtype=torch.float64))
    assert torch.equal(again.angles, schedule.angles)
    assert CosineSchedule().describe() == "CosineSchedule"


def test_the_table_of_a_discrete_schedule_goes_to_each_device_and_precision_once(monkeypatch):
    schedule, to, moves = DiscreteSchedule(linear_alphas_cumprod(64)), torch.Tensor.to, []

    def noted(a, *given, **more):
        if a is schedule.angles:
            moves.append(given)
        return to(a, *given, **more)

    monkeypatch.setattr(torch.Tensor, "to", noted)
    for t in 3 * [torch.rand(2), torch.rand(2, dtype=torch.float64), torch.rand(2, device="meta")]:
        schedule.angle(t)
    assert len(moves) == 3
