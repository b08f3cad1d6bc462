"""Flow matching, as SD3 and FLUX are trained: networks that say u = eps - x on a straight path.

On z = (1 - tau) x + tau eps such a network fixes x = z - tau u and eps = z + (1 - tau) u, as v does
on ours. So it is a teacher like all others, on another clock and at another scale.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.schedules import Example, FlowSchedule, PerExample, Strengths, expand
from cfgdistill.teachers.files import build_network, network, options
from cfgdistill.teachers.w_input import refuse_w
from cfgdistill.training.randomness import seeded


@network
class Flow(nn.Module):
    """A network of flow matching as net(z, t, cond, w) -> v.

    velocity: net(z, tau, cond, w) -> u, with z on the straight path and tau in [0, 1]
    schedule: the `FlowSchedule` that the denoiser around it lives on
    """

    def __init__(self, velocity: Callable[..., Tensor], schedule: FlowSchedule):
        super().__init__()
        self.velocity, self.schedule = velocity, schedule

    @property
    def config(self) -> dict:
        return {"net": "Flow", "shift": self.schedule.shift, "velocity": self.velocity.config}

    @classmethod
    def from_config(cls, shift: float, velocity: dict) -> "Flow":
        return cls(build_network(velocity), FlowSchedule(shift))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.velocity.shape

    def add_w(self, strengths: int) -> None:
        self.velocity.add_w(strengths)

    def forward(self, z: Example, t: PerExample, cond, w: Strengths | None) -> Example:
        """z [b, *d] of variance one, t [b], cond and w as the network takes them."""
        tau = expand(self.schedule.tau(t), z)
        length = torch.hypot(1 - tau, tau)
        u = self.velocity((length * z).to(z.dtype), tau.flatten(), cond, w)
        # v = alpha eps - sigma x, with alpha = (1 - tau) / length and sigma = tau / length.
        return (1 - 2 * tau) * z + length * u


@network
class Flux(nn.Module):
    """A `FluxTransformer2DModel` as velocity(z, tau, cond, w), for images or latents.

    size: side of z [b, c, size, size], of which FLUX sees squares of 2 x 2 as tokens

    Its conditions are {"prompt": [b, n, d], "pooled": [b, p]}, as its text encoders make them. Or
    labels [b]: a label is one word of d numbers, and p of them pooled, all 0 but one.
    """

    def __init__(self, transformer, size: int):
        super().__init__()
        if size % 2:
            raise ValueError(f"FLUX sees squares of 2 x 2, and {size} is odd: choose another size.")
        self.transformer, self.size = transformer, size

    @property
    def config(self) -> dict:
        return {"net": "Flux", "size": self.size, **options(self.transformer)}

    @classmethod
    def from_config(cls, size: int, **config) -> "Flux":
        return cls(_flux(config), size)

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.transformer.config.in_channels // 4, self.size, self.size)

    def add_w(self, strengths: int) -> None:
        """What FLUX.1-dev has and FLUX.1's teacher has not; its last layer is 0 at first."""
        if strengths > 1:
            raise ValueError(
                f"A FLUX transformer has an input for one guidance weight, not {strengths}: pass "
                "one range (low, high)."
            )
        with seeded(0):
            new = _flux({**options(self.transformer), "guidance_embeds": True})
        new.load_state_dict(self.transformer.state_dict(), strict=False)
        for parameter in new.time_text_embed.guidance_embedder.linear_2.parameters():
            nn.init.zeros_(parameter)
        self.transformer = new

    def forward(self, z: Example, tau: PerExample, cond, w: Strengths | None) -> Example:
        """z [b, c, size, size], tau [b], cond (see above), w [b] (None without an input for it)."""
        config = self.transformer.config
        refuse_w(w, config.guidance_embeds)
        if z.shape[1:] != self.shape:
            raise ValueError(
                f"z is {list(z.shape)}, but this FLUX transformer takes "
                f"[batch, {', '.join(map(str, self.shape))}]."
            )
        if isinstance(cond, Tensor):
            pooled = functional.one_hot(cond, config.pooled_projection_dim).to(z)
            prompt = functional.one_hot(cond, config.joint_attention_dim).to(z)[:, None]
            cond = {"prompt": prompt, "pooled": pooled}
        side = self.size // 2
        rows, columns = torch.meshgrid(*2 * [torch.arange(side, device=z.device)], indexing="ij")
        places = torch.stack([torch.zeros_like(rows), rows, columns], 2).reshape(-1, 3)
        u = self.transformer(
            functional.pixel_unshuffle(z, 2).flatten(2).mT,
            encoder_hidden_states=cond["prompt"],
            pooled_projections=cond["pooled"],
            timestep=tau.to(z.dtype),  # which it multiplies by 1000, as it does guidance
            img_ids=places,
            txt_ids=places.new_zeros(cond["prompt"].shape[1], 3),
            guidance=None if w is None else (1 + w).to(z.dtype),
        ).sample
        return functional.pixel_shuffle(u.mT.unflatten(2, (side, side)), 2)


def _flux(config: dict):
    """diffusers' transformer of this configuration, with random weights."""
    from diffusers import FluxTransformer2DModel

    return FluxTransformer2DModel.from_config(config)


def flow_denoiser(
    velocity: Callable[..., Tensor], shift: float = 1.0, *, num_classes: int | None = None
) -> Denoiser:
    """A network u = velocity(z, tau, cond, w) of flow matching as a denoiser on t = i/N.

    shift: of the times that its samplers visit, as in diffusers' FlowMatchEulerDiscreteScheduler,
    whose steps with sigmas i/N are then those of `ddim`. Training is uniform in the shifted times.
    """
    schedule = FlowSchedule(shift)
    return Denoiser(Flow(velocity, schedule), schedule, "v", num_classes=num_classes)


def flow_matching(logsnr: PerExample) -> PerExample:
    """omega = (1 + sqrt(SNR))^2, the error of u: on v, as in `losses`, (alpha + sigma)^2."""
    return 1 + 2 * (logsnr.sigmoid() * (-logsnr).sigmoid()).sqrt()
