<<<<<<< HEAD
"""A fleet, requests and a virtual clock: what the scheduling policies would cost, beside what could be had at best."""
=======
"""A fleet, requests and a virtual clock: what the policies would cost, beside the bound that no schedule can beat."""
>>>>>>> main
