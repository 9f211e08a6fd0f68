"""Transforms: in which coordinates is W rounded? Invertible maps of W and H, or the order of visiting columns."""

from lowbit.transforms.chain import Chain as Chain
from lowbit.transforms.hadamard import RandomizedHadamard as RandomizedHadamard
from lowbit.transforms.identity import NoTransform as NoTransform
from lowbit.transforms.kronecker import RandomKronecker as RandomKronecker
from lowbit.transforms.order import ActOrder as ActOrder
from lowbit.transforms.order import GroupOrder as GroupOrder
from lowbit.transforms.order import StaticOrder as StaticOrder
from lowbit.transforms.rescale import ChannelScales as ChannelScales
from lowbit.transforms.rescale import Rescale as Rescale
