"""How good the samples are: metrics, and figures."""
