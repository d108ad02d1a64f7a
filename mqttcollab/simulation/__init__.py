"""A fleet, requests and a virtual clock: what the scheduling policies would cost, beside what could be had at best."""
