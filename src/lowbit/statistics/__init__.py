"""Statistics: what is W's job? Streaming reductions of what a layer sees that end in a LayerProblem."""

from lowbit.statistics.cross_moment import CrossMoment as CrossMoment
from lowbit.statistics.isotropic import Isotropic as Isotropic
from lowbit.statistics.second_moment import SecondMoment as SecondMoment
