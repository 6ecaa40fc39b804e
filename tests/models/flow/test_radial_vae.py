"""Radial flows on the energies of the paper; what they share with planar ones is in test_planar_vae.py."""

from dgmbench.models.flow.planar_vae import Radial

from .energies import require_that_length_helps


def test_long_flows_fit_the_papers_energies_better_than_short_ones() -> None:
    require_that_length_helps(Radial, updates=400)
