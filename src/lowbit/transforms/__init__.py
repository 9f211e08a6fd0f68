"""Transforms: in which coordinates is W rounded? Invertible maps of W and H, or the order of visiting columns."""

from lowbit.transforms.chain import Chain as Chain
from lowbit.transforms.identity import NoTransform as NoTransform
from lowbit.transforms.order import ActOrder as ActOrder
from lowbit.transforms.order import StaticOrder as StaticOrder
