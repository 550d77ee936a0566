"""Guidance: wrappers of a denoiser that steer what any sampler makes of it.

A wrapper is called like the denoiser that it holds and has its paths, so it goes into every sampler,
and into another wrapper. All of them change the data prediction; every other kind follows from it.

    denoiser = sci.guidance.ClassifierFree(denoiser, scale=2.0, null={"label": 0})
    denoiser = sci.guidance.Replacement(denoiser, {"edges": scaffold}, mask=scaffold_nodes)
    samples = sci.samplers.default(50)(denoiser, like=like, condition=condition, noise=noise)

Which one for which task:

| you have                                                     | take                              |
|--------------------------------------------------------------|-----------------------------------|
| a network trained with labels, doses or texts that were dropped at times | `ClassifierFree`      |
| a property, energy or classifier that is differentiable      | `Gradient`                        |
| linear measurements with known noise: sensors, sums, averages, blurred or sparse fields | `Observation` |
| exact values of some entries: a scaffold, a motif, a gap to fill, a past to continue | `Replacement` |
| the same, and what is filled in must fit better              | `Replacement` in `samplers.Resampled` |
| guidance that pushes data out of its range                   | `Thresholded` around it           |

Imputation and forecasting of series: `Replacement` with NaN where values are missing is quick;
`Observation` with the same entries is the exact posterior for Gaussian data, uses correlations from
the first step, and takes noisy sensors (std > 0). Motifs of protein frames: `Replacement` with a
mask by residue over translations and rotations. Scaffolds of molecules: a mask by atom; bonds are
known where both atoms are. Discrete leaves (classes): `ClassifierFree`, `Gradient` and `Replacement`.

Order: the outermost wrapper has the last word. Put `Replacement` outside, lest another wrapper
changes what is known, and `Thresholded` around what it should bound. `evaluations` says what one call
costs in network evaluations (a pass back through the network counts as one), and samplers report it
in `Samples.nfe`. Wrappers work under `torch.no_grad`; where gradients are recorded they flow through.
"""

from sci.guidance.base import Bound, Guidance
from sci.guidance.classifier_free import ClassifierFree
from sci.guidance.gradient import Gradient
from sci.guidance.observation import Observation
from sci.guidance.replacement import Replacement
from sci.guidance.thresholded import Thresholded

__all__ = [
    "Bound",
    "ClassifierFree",
    "Gradient",
    "Guidance",
    "Observation",
    "Replacement",
    "Thresholded",
]
