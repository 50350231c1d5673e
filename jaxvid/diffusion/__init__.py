"""The mathematics of diffusion, with the denoiser as an argument."""
