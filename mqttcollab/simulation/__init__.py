"""A simulated fleet on a virtual clock, and the bound that no schedule on it can beat."""
