"""The mathematics of diffusion, with the denoiser as an argument.

types             Level, Prediction, Denoise: what a denoiser takes and gives
process           z = alpha x + sigma eps: sampling it, its posterior and variances
schedule          time to log-SNR and back: cosine, sigmoid, public beta tables, EDM
parameterization  network outputs to predictions; x, epsilon, v and score into one another
loss              weighted squared errors, one per example
grid              the log-SNRs that a sampler visits
guidance          tables of branches; thresholds
reconstruction    conditioning on known parts: reconstruction guidance, replacement
samplers          one published algorithm, one function
driver            running a sampler over a grid, compiled once
"""
