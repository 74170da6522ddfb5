"""Small batched tensor routines on the device of their inputs."""
