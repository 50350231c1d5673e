"""Training: state, phases, the step and the loop. Knows neither models nor diffusion."""
