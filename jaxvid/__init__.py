"""Text-to-video diffusion with factorized space-time U-Nets, in JAX."""
