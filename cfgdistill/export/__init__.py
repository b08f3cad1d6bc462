"""Students as folders for stock diffusers."""

from cfgdistill.export.stock import export

__all__ = ["export"]
