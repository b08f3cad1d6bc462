"""A class-conditional, guidance-distilled U-Net as a diffusers pipeline: for stock diffusers.

    DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)

This file lies in the folder of the model and uses diffusers and torch only.
"""

import json
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image


class ClassConditionalPipeline(DiffusionPipeline):
    """pipe([3, 7]).images; pipe(["cat"], guidance_scale=2.0).images

    steps:       the number that the network was distilled for; None: any
    w_range:     of the guidance weights that it has learnt; guidance_scale = 1 + w
    class_names: of the labels 0, 1, ...; may be empty
    patch:       side of the squares of pixels that the network sees as channels of one place
    """

    def __init__(self, unet, scheduler, steps=None, w_range=(0.0, 4.0), class_names=(), patch=1):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(
            steps=steps, w_range=list(w_range), class_names=list(class_names), patch=patch
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
        config, net = self.config, self.unet.config
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
            z = randn_tensor(shape, generator=generator, device=self.device, dtype=self.unet.dtype)
        half = net.time_cond_proj_dim // 2
        frequency = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
        phase = 1000.0 * (scale - 1) * frequency
        embedded = torch.cat([phase.sin(), phase.cos()]).expand(len(labels), -1).to(z)
        self.scheduler.set_timesteps(steps, device=self.device)
        for k in self.progress_bar(self.scheduler.timesteps):
            patches = F.pixel_unshuffle(z, config.patch)
            v = self.unet(
                patches, k, encoder_hidden_states=None, class_labels=labels, timestep_cond=embedded
            ).sample
            v = F.pixel_shuffle(v, config.patch)
            z = self.scheduler.step(v, k, z).prev_sample
        if output_type == "latent":
            return ImagePipelineOutput(images=z)
        x = ((z.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        if x.shape[-1] == 1:
            x = x[..., 0]
        return ImagePipelineOutput(images=[Image.fromarray(image) for image in x])

    def _labels(self, given):
        """Labels and class names as numbers; ValueError where one is neither."""
        if isinstance(given, torch.Tensor):
            given = given.flatten().tolist()
        names, given = self.config.class_names, [given] if isinstance(given, (int, str)) else given
        labels = [names.index(label) if label in names else label for label in given]
        known = range(self.unet.config.num_class_embeds - 1)  # the last one is "no class"
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
