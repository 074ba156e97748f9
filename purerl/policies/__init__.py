"""Networks, distributions, and acting by them."""
