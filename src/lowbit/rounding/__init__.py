"""Rounders: which of the storable values is chosen?"""

from lowbit.rounding.descent import CoordinateDescent as CoordinateDescent
from lowbit.rounding.ldlq import Ldlq as Ldlq
from lowbit.rounding.nearest import Nearest as Nearest
from lowbit.rounding.optq import Optq as Optq
from lowbit.rounding.refit import RefittedScales as RefittedScales
