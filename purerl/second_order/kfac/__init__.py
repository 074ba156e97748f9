"""K-FAC: layers found in a network, their Kronecker factors, the gradient transformation."""
