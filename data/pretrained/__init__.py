"""Finished models, as part of the package: see the README.md of each, and make_pretrained.py."""
