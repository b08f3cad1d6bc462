"""A class-conditional, guidance-distilled U-Net as a diffusers pipeline: for stock diffusers.

    DiffusionPipeline.from_pretrained(FOLDER, custom_pipeline=FOLDER, trust_remote_code=True)

This file lies in the folder of the model and uses diffusers and torch only.
"""

import math

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline, ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image


class ClassConditionalPipeline(DiffusionPipeline):
    """pipe([3, 7], guidance_scale=2.0, num_inference_steps=4).images"""

    def __init__(self, unet, scheduler, class_names=None, patch=1):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)
        self.register_to_config(class_names=class_names, patch=patch)

    @torch.no_grad()
    def __call__(
        self,
        class_labels,
        num_inference_steps=4,
        guidance_scale=2.0,
        generator=None,
        latents=None,
        output_type="pil",
    ):
        """An image for each label. guidance_scale = 1 + w; one network evaluation per step."""
        labels = torch.as_tensor(class_labels, device=self.device).reshape(-1)
        config, patch = self.unet.config, self.config.patch
        side = config.sample_size * patch
        shape = (len(labels), config.in_channels // patch**2, side, side)
        z = latents
        if z is None:
            z = randn_tensor(shape, generator=generator, device=self.device, dtype=self.unet.dtype)
        half = config.time_cond_proj_dim // 2
        frequency = torch.exp(torch.arange(half) * (-math.log(10000.0) / (half - 1)))
        phase = 1000.0 * (guidance_scale - 1) * frequency
        embedded = torch.cat([phase.sin(), phase.cos()]).expand(len(labels), -1).to(z)
        self.scheduler.set_timesteps(num_inference_steps, device=self.device)
        for k in self.progress_bar(self.scheduler.timesteps):
            patches = F.pixel_unshuffle(z, patch)  # squares of pixels are channels of one place
            v = self.unet(
                patches, k, encoder_hidden_states=None, class_labels=labels, timestep_cond=embedded
            ).sample
            v = F.pixel_shuffle(v, patch)
            z = self.scheduler.step(v, k, z).prev_sample
        if output_type == "latent":
            return ImagePipelineOutput(images=z)
        x = ((z.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        if x.shape[-1] == 1:
            x = x[..., 0]
        return ImagePipelineOutput(images=[Image.fromarray(image) for image in x])
