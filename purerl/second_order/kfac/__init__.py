"""K-FAC: a network's layers, their Kronecker factors, and the gradient transformation.

Martens and Grosse 2015, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature".
"""

# ruff: noqa: F401, I001 (the names of the folder's modules, for kfac.scale_by_kfac and the like)
from purerl.second_order.kfac.factors import INVERT, Factors, Inverse, fisher_factors
from purerl.second_order.kfac.factors import invert_eigenbasis, invert_ekfac, invert_factored
from purerl.second_order.kfac.layers import Layer, find_layers
from purerl.second_order.kfac.regions import reaching
from purerl.second_order.kfac.tapping import Tapped, tap
from purerl.second_order.kfac.transform import ALL, DampingKind, KfacState, KLClip
from purerl.second_order.kfac.transform import clip_kl, precondition, scale_by_kfac
