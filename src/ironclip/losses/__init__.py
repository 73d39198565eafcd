"""The mathematics of methods and attacks: pure functions of tensors, nothing else."""
