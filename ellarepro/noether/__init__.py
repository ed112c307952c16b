"""Noether's razor: conserved quantities of a Hamiltonian system learned by the evidence (NeurIPS 2024)."""
