"""The demo's own measure."""

from __future__ import annotations

import numpy as np
import pytest

from runnel.tools.demo import si_sdr


def test_si_sdr_is_the_ratio_of_orthogonal_parts_whatever_the_scale() -> None:
    n = np.arange(1600)
    clean = np.sin(2 * np.pi * n / 160).astype(np.float32)
    error = np.cos(2 * np.pi * n / 160).astype(np.float32)
    assert si_sdr(clean + 0.1 * error, clean) == pytest.approx(20, abs=1e-3)
    assert si_sdr(3 * clean + 0.3 * error, clean) == pytest.approx(20, abs=1e-3)
