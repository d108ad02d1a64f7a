"""A fleet, requests and a virtual clock: what the policies would cost, beside the bound that no schedule can beat."""
