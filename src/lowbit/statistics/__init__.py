"""Statistics: what is W's job? Streaming reductions of a layer's inputs that end in a LayerProblem."""

from lowbit.statistics.isotropic import Isotropic as Isotropic
from lowbit.statistics.second_moment import SecondMoment as SecondMoment
