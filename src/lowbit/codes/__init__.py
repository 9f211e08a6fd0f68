"""Codes: which values can be stored, and how are they reached?"""

from lowbit.codes.binary import BinaryCoding as BinaryCoding
from lowbit.codes.binary import LeastSquares as LeastSquares
from lowbit.codes.binary import TwoStep as TwoStep
from lowbit.codes.clustered import ClusteredLevels as ClusteredLevels
from lowbit.codes.clustered import SharedLevels as SharedLevels
from lowbit.codes.dual import DualGrained as DualGrained
from lowbit.codes.e8p import E8P as E8P
from lowbit.codes.fitting import Levelled as Levelled
from lowbit.codes.fitting import Padded as Padded
from lowbit.codes.integer import IntegerGrid as IntegerGrid
from lowbit.codes.layout import Digits as Digits
from lowbit.codes.layout import Exchanged as Exchanged
from lowbit.codes.layout import LaidOut as LaidOut
from lowbit.codes.layout import Planes as Planes
from lowbit.codes.lookup import Lookup as Lookup
from lowbit.codes.lowrank import LowRankLevels as LowRankLevels
from lowbit.codes.midrise import MidriseGrid as MidriseGrid
from lowbit.codes.mixed import MixedWidths as MixedWidths
from lowbit.codes.ranges import HessianRange as HessianRange
from lowbit.codes.ranges import MinMax as MinMax
from lowbit.codes.ranges import SearchedRange as SearchedRange
from lowbit.codes.scaled import ScaledLevels as ScaledLevels
from lowbit.codes.scales import Scales as Scales
from lowbit.codes.trellis import BitshiftTrellis as BitshiftTrellis
from lowbit.codes.trellis import TailBiting as TailBiting
from lowbit.codes.vector import VectorCodebook as VectorCodebook
