"""Second-order optimization on pytrees, inside ``jit``, ``scan`` and ``vmap``."""
