"""Curvature: products with it, systems solved with it, Kronecker-factored approximations of it."""
