"""Scores, analysers, statistics and the ablation runner."""
