"""One paper a file: what is trained and how it is sampled."""
