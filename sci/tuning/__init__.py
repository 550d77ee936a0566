"""Tuning: a sampler fitted to a denoiser and a budget of network evaluations.

`tune` fits times and settings of the multistep engine against a fine trajectory on a few items,
`tune_model` does so for a model, and `Tuned` is what both return; `sci tune` stores it with the
model.
"""

from sci.samplers.tuned import Tuned, table
from sci.tuning.fit import tune, tune_model

__all__ = ["Tuned", "table", "tune", "tune_model"]
