"""Captioned emoji in the hub's layout: `cfgdistill.data.load_captioned("emoji")` reads them."""
