"""Rounders: which of the storable values is chosen?"""

from lowbit.rounding.ldlq import Ldlq as Ldlq
from lowbit.rounding.nearest import Nearest as Nearest
from lowbit.rounding.optq import Optq as Optq
