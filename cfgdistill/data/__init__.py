"""What networks are trained on: images and labels, or latents and captions."""
