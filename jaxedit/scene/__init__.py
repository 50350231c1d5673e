"""Scenes: cameras, posed images and the formats that they come in; toy scenes with known truth."""
