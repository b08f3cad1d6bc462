"""Class-conditional networks of diffusers without an input for w: DiT, and UNet2DModel.

Both are asked net(z, k, class_labels); and the pipelines in which they, or U-Nets, come.
"""

import torch
from torch import Tensor, nn

from cfgdistill.core.denoiser import Denoiser
from cfgdistill.core.schedules import Example, PerExample, Strengths
from cfgdistill.data.autoencoder import VAEEncoder
from cfgdistill.data.meaning import Classes
from cfgdistill.teachers.files import network, options
from cfgdistill.teachers.stable_diffusion import PREDICTIONS, own_schedule, refuse_scheduler
from cfgdistill.teachers.unet import TIMESTEPS, ClassUNet
from cfgdistill.teachers.w_input import W_FEATURES, LabelsAndW, w_features


class _Labelled(nn.Module):
    """A network of diffusers as net(z, t, cond, w), with labels for conditions.

    timesteps: how many of diffusers' time steps t = 0 .. 1 spans; 1000 for most that are published

    Where it says a variance beside the mean, as DiT does, the variance is left out. Labels are
    dropped by whoever trains it (see `teacher_loss`), never by itself.
    """

    kind: str  # the class of diffusers
    rows: str  # the entry of its configuration that says how many labels it knows

    def __init__(self, net, timesteps: int = TIMESTEPS):
        super().__init__()
        self.net, self.timesteps, self.strengths = net, timesteps, 0
        config, name = net.config, type(net).__name__
        if not isinstance(config.sample_size, int):
            raise ValueError(
                f"This {name} has sample_size {config.sample_size}: make one for squares, with a "
                "whole number there."
            )
        channels, said = config.in_channels, config.out_channels or config.in_channels
        if said not in (channels, 2 * channels):
            raise ValueError(
                f"This {name} turns {channels} channels into {said}: a denoiser's output has the "
                "channels of its input, or twice as many with a variance."
            )

    @property
    def config(self) -> dict:
        own = {"timesteps": self.timesteps, "strengths": self.strengths}
        return {"net": type(self).__name__, **options(self.net), **own}

    @classmethod
    def from_config(cls, timesteps: int = TIMESTEPS, strengths: int = 0, **config) -> "_Labelled":
        net = cls(_new(cls.kind, config), timesteps)
        if strengths:
            net.add_w(strengths)
        return net

    @property
    def shape(self) -> tuple[int, int, int]:
        config = self.net.config
        return (config.in_channels, config.sample_size, config.sample_size)

    def add_w(self, strengths: int) -> None:
        """An input for so many weights, as a part of every embedding of labels, 0 at first."""
        self.strengths = strengths
        for owner in [*self.net.modules()]:
            for name, part in [*owner.named_children()]:
                if isinstance(part, nn.Embedding) and not isinstance(owner, LabelsAndW):
                    setattr(owner, name, LabelsAndW(part, strengths))

    def stock(self):
        """A copy as stock diffusers knows it: the projections of w are more rows of its tables."""
        config, state = options(self.net), self.net.state_dict()
        for key in [key for key in state if key.endswith("cond_proj.weight")]:
            table = key.replace("cond_proj.", "")
            state[table] = torch.cat([state[table], state.pop(key).T])
        more = {self.rows: config[self.rows] + self.strengths * W_FEATURES}
        stock = _new(self.kind, {**config, **more})
        stock.load_state_dict(state)
        return stock.eval()

    def forward(self, z: Example, t: PerExample, cond: Tensor, w: Strengths | None) -> Example:
        """z [b, c, h, h], t [b], labels cond [b], w [b] (None for a network without a w input)."""
        if z.shape[1:] != self.shape:
            raise ValueError(
                f"z is {list(z.shape)}, but this {self.kind} takes "
                f"[batch, {', '.join(map(str, self.shape))}]."
            )
        features = w_features(w, z, self.strengths * W_FEATURES)
        given = cond if features is None else (cond, features)
        # Entry k of a diffusers schedule is t = (k + 1) / T.
        said = self.net(z, self.timesteps * t - 1, class_labels=given).sample
        return said[:, : z.shape[1]]


@network
class DiT(_Labelled):
    """A `DiTTransformer2DModel` (Peebles and Xie 2023) as net(z, t, cond, w)."""

    kind, rows = "DiTTransformer2DModel", "num_embeds_ada_norm"

    def __init__(self, net, timesteps: int = TIMESTEPS):
        super().__init__(net, timesteps)
        for block in net.transformer_blocks:
            block.norm1.emb.class_embedder.dropout_prob = 0.0


@network
class UNet2D(_Labelled):
    """A `UNet2DModel` with class labels as net(z, t, cond, w)."""

    kind, rows = "UNet2DModel", "num_class_embeds"

    def __init__(self, net, timesteps: int = TIMESTEPS):
        super().__init__(net, timesteps)
        if net.config.num_class_embeds is None or net.config.class_embed_type is not None:
            raise ValueError(
                "This UNet2DModel has no table of class labels, so there is nothing to guide by: "
                "make one with num_class_embeds, the number of classes and one for none."
            )
        if net.config.time_embedding_type != "positional":
            raise ValueError(
                f"This UNet2DModel has {net.config.time_embedding_type} time embeddings, and only "
                "positional ones know the times between time steps."
            )


def _new(kind: str, config: dict):
    """diffusers' network of this configuration, with random weights."""
    import diffusers

    return getattr(diffusers, kind).from_config(config)


def class_denoiser(pipe) -> Denoiser:
    """A class-conditional pipeline's network as it is: guided, it samples as the pipeline does.

    pipe: a DiTPipeline, or any with a scheduler that has alphas_cumprod and, as `transformer` or
    `unet`, one of DiTTransformer2DModel, UNet2DModel and UNet2DConditionModel with a table of
    labels, the last of which means none. It takes its class names and its autoencoder along.

    What it says is what it was trained to say, mostly eps; one-step students should say v. That can
    be learnt with stage one: student.prediction_type = "v". ValueError for other pipelines.
    """
    refuse_scheduler(pipe.scheduler, "the pipeline")
    net = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    kind, schedule = type(net).__name__, own_schedule(pipe)
    known = {"DiTTransformer2DModel": DiT, "UNet2DModel": UNet2D, "UNet2DConditionModel": ClassUNet}
    if kind not in known or kind == "UNet2DConditionModel" and not net.config.num_class_embeds:
        raise ValueError(
            f"The network of this {type(pipe).__name__} is a {kind} without class labels: pass a "
            "DiTPipeline, say, or for text base_denoiser or flow_denoiser."
        )
    net = known[kind](net, timesteps=len(schedule.alphas_cumprod))
    rows = net.config.get("num_class_embeds") or net.config["num_embeds_ada_norm"] + 1
    said = PREDICTIONS[pipe.scheduler.config.prediction_type]
    denoiser = Denoiser(net, schedule, said, num_classes=rows - 1)
    vae = VAEEncoder(pipe.vae) if getattr(pipe, "vae", None) is not None else None
    denoiser.meaning = Classes(rows - 1, _names(pipe, rows - 1), vae)
    return denoiser.eval()


def _names(pipe, num_classes: int) -> tuple[str, ...]:
    """The first name of every label of a DiTPipeline; () where not all have one."""
    names: dict[int, str] = {}
    for name, label in getattr(pipe, "labels", {}).items():
        names.setdefault(label, name)
    known = [names.get(label) for label in range(num_classes)]
    return () if None in known else tuple(known)
