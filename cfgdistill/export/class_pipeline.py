"""A class-conditional, guidance-distilled network as a diffusers pipeline: for stock diffusers.

    DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)

This file lies in the folder of the model and uses diffusers and torch only.
"""

import json
import math
from contextlib import ExitStack
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image


class ClassConditionalPipeline(DiffusionPipeline):
    """pipe([3, 7]).images; pipe(["cat"], guidance_scale=2.0).images

    unet:        or transformer: the network. Where it has no `time_cond_proj_dim`, to which w is
                 given, the last 64 rows of its tables of labels are no labels: features of w,
                 multiplied with them, are added to what it makes of a label
    vae:         decodes samples that are latents
    steps:       the number that the network was distilled for; None: any
    w_range:     of the guidance weights that it has learnt; guidance_scale = 1 + w
    class_names: of the labels 0, 1, ...; may be empty
    patch:       side of the squares of pixels that the network sees as channels of one place
    timesteps:   that the network counts from data to noise
    """

    _optional_components = ["unet", "transformer", "vae"]

    def __init__(
        self,
        scheduler,
        unet=None,
        transformer=None,
        vae=None,
        steps=None,
        w_range=(0.0, 4.0),
        class_names=(),
        patch=1,
        timesteps=1024,
    ):
        super().__init__()
        self.register_modules(scheduler=scheduler, unet=unet, transformer=transformer, vae=vae)
        self.register_to_config(
            steps=steps,
            w_range=list(w_range),
            class_names=list(class_names),
            patch=patch,
            timesteps=timesteps,
        )

    @torch.no_grad()
    def __call__(
        self,
        class_labels,
        num_inference_steps=None,
        guidance_scale=None,
        generator=None,
        latents=None,
        output_type="pil",
    ):
        """An image for each label or class name; one network evaluation per step.

        By default the steps are those that the network was distilled for (64 for one that takes any
        number), and w is 1 or the nearest weight that it has learnt.
        """
        config, net = self.config, self._net.config
        low, high = (1 + w for w in config.w_range)
        scale = min(max(2.0, low), high) if guidance_scale is None else guidance_scale
        if not low <= scale <= high:
            raise ValueError(
                f"This network has learnt guidance_scale from {low:g} to {high:g}, not {scale:g}."
            )
        steps = num_inference_steps or config.steps or 64
        if config.steps not in (None, steps):
            raise ValueError(
                f"This network was distilled for num_inference_steps={config.steps}, not {steps}: "
                "leave it out."
            )
        labels = torch.tensor(self._labels(class_labels), device=self.device)
        side = net.sample_size * config.patch
        shape = (len(labels), net.in_channels // config.patch**2, side, side)
        z = latents
        if z is None:
            z = randn_tensor(shape, generator=generator, device=self.device, dtype=self._net.dtype)
        half = self._features // 2
        frequency = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
        phase = 1000.0 * (scale - 1) * frequency
        embedded = torch.cat([phase.sin(), phase.cos()]).expand(len(labels), -1).to(z)
        self.scheduler.set_timesteps(steps, device=self.device)
        entries = self.scheduler.config.num_train_timesteps
        with ExitStack() as asking:
            given = self._given(embedded, asking)
            for k in self.progress_bar(self.scheduler.timesteps):
                patches = F.pixel_unshuffle(z, config.patch)
                time = ((k + 1) * config.timesteps / entries - 1).expand(len(labels))
                v = self._net(patches, time, class_labels=labels, **given).sample
                v = F.pixel_shuffle(v[:, : patches.shape[1]], config.patch)  # without a variance
                z = self.scheduler.step(v, k, z).prev_sample
        if output_type == "latent":
            return ImagePipelineOutput(images=z)
        if self.vae is not None:
            known = self.vae.config
            z = self.vae.decode(z / known.scaling_factor + (known.shift_factor or 0)).sample
        x = ((z.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        if x.shape[-1] == 1:
            x = x[..., 0]
        return ImagePipelineOutput(images=[Image.fromarray(image) for image in x])

    @property
    def _net(self):
        return self.unet if self.transformer is None else self.transformer

    @property
    def _features(self):
        """Of w, that the network is given."""
        return self._net.config.get("time_cond_proj_dim") or 64

    def _given(self, embedded, asking):
        """What a network is given beside labels, so that it knows w, for as long as is asked."""
        if self._net.config.get("time_cond_proj_dim"):
            return {"encoder_hidden_states": None, "timestep_cond": embedded}
        for part in self._net.modules():
            if isinstance(part, torch.nn.Embedding):
                added = embedded @ part.weight[-self._features :]
                hook = part.register_forward_hook(lambda part, labels, said, w=added: said + w)
                asking.callback(hook.remove)
        return {}

    def _labels(self, given):
        """Labels and class names as numbers; ValueError where one is neither."""
        if isinstance(given, torch.Tensor):
            given = given.flatten().tolist()
        names, given = self.config.class_names, [given] if isinstance(given, (int, str)) else given
        labels = [names.index(label) if label in names else label for label in given]
        net = self._net.config
        rows = net.get("num_class_embeds") or net.num_embeds_ada_norm + 1
        taken = 0 if net.get("time_cond_proj_dim") else self._features
        known = range(rows - taken - 1)  # the last one is "no class"
        for label in labels:
            if label not in known:
                told = f", or of {', '.join(names)}" if names else ""
                raise ValueError(
                    f"There is no class {label!r}: pass numbers from 0 to {known[-1]}{told}."
                )
        return [int(label) for label in labels]

    def save_pretrained(
        self, save_directory, safe_serialization=True, variant=None, max_shard_size=None
    ):
        """As every pipeline, with this file: without it the folder could not be loaded."""
        super().save_pretrained(save_directory, safe_serialization, variant, max_shard_size)
        folder = Path(save_directory)
        code = Path(__file__).read_text(encoding="utf-8")
        (folder / "class_pipeline.py").write_text(code, encoding="utf-8")
        index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
        index["_class_name"] = ["class_pipeline", type(self).__name__]
        (folder / "model_index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")
