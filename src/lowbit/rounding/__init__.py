"""Rounders: which of the storable values is chosen?"""

from lowbit.rounding.beam import Beam as Beam
from lowbit.rounding.clamp_safe import ClampSafe as ClampSafe
from lowbit.rounding.descent import CoordinateDescent as CoordinateDescent
from lowbit.rounding.gpfq import Gpfq as Gpfq
from lowbit.rounding.ldlq import Ldlq as Ldlq
from lowbit.rounding.magr import MagR as MagR
from lowbit.rounding.nearest import Nearest as Nearest
from lowbit.rounding.optq import Optq as Optq
from lowbit.rounding.quantease import QuantEase as QuantEase
from lowbit.rounding.refit import RefittedScales as RefittedScales
from lowbit.rounding.refit_tables import RefittedTables as RefittedTables
from lowbit.rounding.stochastic import Stochastic as Stochastic
