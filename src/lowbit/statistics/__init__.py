"""Statistics: what is W's job? Streaming reductions of what a layer sees that end in a LayerProblem."""

from lowbit.statistics.attention_aware import AttentionAware as AttentionAware
from lowbit.statistics.cross_moment import CrossMoment as CrossMoment
from lowbit.statistics.fisher import FisherDiagonal as FisherDiagonal
from lowbit.statistics.importance import ActivationNorm as ActivationNorm
from lowbit.statistics.importance import AttentionReceived as AttentionReceived
from lowbit.statistics.importance import FirstTokens as FirstTokens
from lowbit.statistics.importance import TokenRarity as TokenRarity
from lowbit.statistics.importance import Uniform as Uniform
from lowbit.statistics.isotropic import Isotropic as Isotropic
from lowbit.statistics.second_moment import SecondMoment as SecondMoment
from lowbit.statistics.two_sided import GradientCovariance as GradientCovariance
from lowbit.statistics.two_sided import GradientEnergy as GradientEnergy
from lowbit.statistics.two_sided import TwoSided as TwoSided
from lowbit.statistics.weighted_moment import WeightedMoment as WeightedMoment
