"""The paper: schedules, denoisers, guidance, both stages and samplers, with nothing but torch."""

from cfgdistill.core import rules as rules
