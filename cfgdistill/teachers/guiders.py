"""diffusers' guiders as rules of ours."""

import copy

import torch

from cfgdistill.core.parameterization import convert
from cfgdistill.core.rules import Point, Rule

STEPS = 1024  # a guider counts steps: t = 1 .. 0 is step 0 .. 1024, a power of two as our grids are


def guider_rule(guider) -> Rule:
    """A guider of `diffusers.guiders` as a rule, its guidance scale being 1 + w.

    (With `use_original_formulation` it is w.) It combines what the denoiser predicts, be it v, eps
    or x; its start and stop are the times 1 - start and 1 - stop. Two evaluations where it guides
    and one elsewhere. ValueError for a guider that is no function of two predictions, t and w.
    """
    _refuse(guider)
    guider = copy.copy(guider)  # whose scale is set here

    def ask(t: float, w: float):
        guider.set_state(min(round((1 - t) * STEPS), STEPS - 1), STEPS, t)
        guider.guidance_scale = w if guider.use_original_formulation else 1 + w
        return guider

    def rule(at: Point, w: torch.Tensor) -> torch.Tensor:
        form = at.denoiser.prediction_type
        given = torch.stack([at.t.flatten(), w.flatten()], 1)
        kinds = [(kind.tolist(), (given == kind).all(1)) for kind in given.unique(dim=0)]
        guides = any(ask(*kind).num_conditions > 1 for kind, _ in kinds)
        conds = (at.cond, at.null) if guides else (at.cond,)
        said = [getattr(pred, form) for pred in at.predict(*conds)]
        output = torch.empty_like(at.z)
        for kind, rows in kinds:  # a guider has one scale for a batch: in sampling one kind is all
            output[rows] = ask(*kind).forward(*(a[rows] for a in said)).pred
        alpha, sigma = at.alpha.flatten(), at.sigma.flatten()
        return convert(output, at.z, alpha, sigma, form).v

    settings = {k: v for k, v in guider.config.items() if k[0] != "_" and k != "guidance_scale"}
    rule.__name__ = f"{type(guider).__name__}({settings})"  # known by its settings
    return rule


def _refuse(guider) -> None:
    from diffusers.guiders import BaseGuidance

    name, why = type(guider).__name__, None
    if not isinstance(guider, BaseGuidance):
        why = "it is no guider of diffusers.guiders"
    elif getattr(guider, "adaptive_projected_guidance_momentum", None) is not None:
        why = "its momentum remembers earlier steps: make it with momentum None"
    elif getattr(guider, "zero_init_steps", 0):
        why = "it counts steps from the first: make it with zero_init_steps=0"
    elif type(guider).prepare_models is not BaseGuidance.prepare_models:
        why = "it changes layers of the network: take rules.autoguidance and a network so changed"
    elif not hasattr(guider, "guidance_scale"):
        why = "it has no one scale for w to stand for"
    if why:
        raise ValueError(
            f"{name} is no rule, that is no function of z, t, the condition and w, which is all "
            f"that a student is told: {why}."
        )
