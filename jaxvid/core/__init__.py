"""Arrays and runs: configuration, keys, sharding, checkpoints, metrics. Knows no videos."""
