"""Sizes of generated graphs."""

from __future__ import annotations

import numpy as np
import pytest

from sci.graphs.sizes import draw_sizes
from sci.noise import Noise


def test_sizes_follow_the_law_and_are_never_zero():
    sizes = draw_sizes((3, 0, 1, 2, 4), Noise(0, range(7000)), None, 4)
    counts = np.bincount(sizes, minlength=5) / 1000
    assert counts[:2].sum() == 0
    assert counts[2:] == pytest.approx([1, 2, 4], abs=0.15)


def test_sizes_belong_to_the_items():
    law = (0, 5, 3, 2)
    whole = draw_sizes(law, Noise(3, range(50)), None, 3)
    assert whole[[7, 40]].tolist() == draw_sizes(law, Noise(3, [7, 40]), None, 3).tolist()
    assert whole.tolist() != draw_sizes(law, Noise(4, range(50)), None, 3).tolist()


def test_a_size_can_be_asked_for():
    assert draw_sizes((), Noise(0, range(3)), 5, 9).tolist() == [5, 5, 5]
    with pytest.raises(ValueError, match="size is 10, but .* at most 9"):
        draw_sizes((), Noise(0, range(3)), 10, 9)
    with pytest.raises(ValueError, match="ask for a size"):
        draw_sizes((), Noise(0, range(3)), None, 9)
