"""Side-cars: what is kept apart from the codes?"""

from lowbit.sidecars.columns import KeptColumns as KeptColumns
from lowbit.sidecars.criteria import Magnitude as Magnitude
from lowbit.sidecars.criteria import RoundingCost as RoundingCost
from lowbit.sidecars.criteria import Sensitivity as Sensitivity
from lowbit.sidecars.criteria import TwoCriteria as TwoCriteria
from lowbit.sidecars.low_rank import LowRank as LowRank
from lowbit.sidecars.outliers import SparseOutliers as SparseOutliers
from lowbit.sidecars.thresholding import HardThresholding as HardThresholding
