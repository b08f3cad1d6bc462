"""Networks behind the one call net(z, t, cond, w): new ones, and those of others."""
