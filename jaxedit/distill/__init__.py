"""Distillation: a rendered image in, a gradient on it out."""
