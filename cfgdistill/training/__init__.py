"""The one training loop, what it keeps on disk, and its random numbers."""
