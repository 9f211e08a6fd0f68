"""Recipes: a published method is a function that picks parts. `CATALOGUE` lists them by name.

Each docstring names the paper, the exact bits per weight and what differs from the authors' code.
"""

from lowbit.core.recipe import to_dict as to_dict
from lowbit.recipes.beside import easyquant as easyquant
from lowbit.recipes.beside import gwq as gwq
from lowbit.recipes.beside import lorc as lorc
from lowbit.recipes.beside import lq_lora as lq_lora
from lowbit.recipes.beside import owq as owq
from lowbit.recipes.beside import quantease_outlier as quantease_outlier
from lowbit.recipes.beside import spqr as spqr
from lowbit.recipes.binary import db_llm as db_llm
from lowbit.recipes.binary import gptqt as gptqt
from lowbit.recipes.binary import pb_llm as pb_llm
from lowbit.recipes.calibrated import boa as boa
from lowbit.recipes.calibrated import qronos as qronos
from lowbit.recipes.calibrated import rsq as rsq
from lowbit.recipes.catalogue import CATALOGUE as CATALOGUE
from lowbit.recipes.catalogue import OTHER_NAMES as OTHER_NAMES
from lowbit.recipes.catalogue import make_recipe as make_recipe
from lowbit.recipes.catalogue import method as method
from lowbit.recipes.floats import block_float as block_float
from lowbit.recipes.floats import dint as dint
from lowbit.recipes.floats import llm_fp4 as llm_fp4
from lowbit.recipes.floats import normal_float as normal_float
from lowbit.recipes.floats import nupes as nupes
from lowbit.recipes.floats import ternary as ternary
from lowbit.recipes.floats import zeroquant_fp6 as zeroquant_fp6
from lowbit.recipes.granular import dgq as dgq
from lowbit.recipes.granular import finequant as finequant
from lowbit.recipes.granular import slim_llm as slim_llm
from lowbit.recipes.incoherent import exl3 as exl3
from lowbit.recipes.incoherent import qtip as qtip
from lowbit.recipes.incoherent import quip as quip
from lowbit.recipes.incoherent import quip_sharp as quip_sharp
from lowbit.recipes.incoherent import trellis as trellis
from lowbit.recipes.native import kquant as kquant
from lowbit.recipes.nonuniform import gptvq as gptvq
from lowbit.recipes.nonuniform import jlcm as jlcm
from lowbit.recipes.nonuniform import lcq as lcq
from lowbit.recipes.nonuniform import squeezellm as squeezellm
from lowbit.recipes.nonuniform import vptq as vptq
from lowbit.recipes.rounded import beam as beam
from lowbit.recipes.rounded import gpfq as gpfq
from lowbit.recipes.rounded import integers as integers
from lowbit.recipes.rounded import magr as magr
from lowbit.recipes.rounded import optq_stochastic as optq_stochastic
from lowbit.recipes.rounded import quantease as quantease
from lowbit.recipes.scalar import optq as optq
from lowbit.recipes.scalar import rtn as rtn
from lowbit.recipes.serial import PARTS as PARTS
from lowbit.recipes.serial import from_dict as from_dict
from lowbit.recipes.serial import from_toml as from_toml
from lowbit.recipes.serial import to_toml as to_toml
