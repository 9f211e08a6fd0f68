"""Recipes: a published method is a function that picks parts. `CATALOGUE` lists them by name.

Each docstring names the paper, the exact bits per weight and what differs from the authors' code.
"""

from lowbit.core.recipe import to_dict as to_dict
from lowbit.recipes.beside import easyquant as easyquant
from lowbit.recipes.beside import lorc as lorc
from lowbit.recipes.beside import lq_lora as lq_lora
from lowbit.recipes.beside import owq as owq
from lowbit.recipes.beside import quantease_outlier as quantease_outlier
from lowbit.recipes.beside import spqr as spqr
from lowbit.recipes.calibrated import boa as boa
from lowbit.recipes.calibrated import qronos as qronos
from lowbit.recipes.calibrated import rsq as rsq
from lowbit.recipes.catalogue import CATALOGUE as CATALOGUE
from lowbit.recipes.catalogue import make_recipe as make_recipe
from lowbit.recipes.incoherent import exl3 as exl3
from lowbit.recipes.incoherent import qtip as qtip
from lowbit.recipes.incoherent import quip as quip
from lowbit.recipes.incoherent import quip_sharp as quip_sharp
from lowbit.recipes.incoherent import trellis as trellis
from lowbit.recipes.scalar import optq as optq
from lowbit.recipes.scalar import rtn as rtn
from lowbit.recipes.serial import PARTS as PARTS
from lowbit.recipes.serial import from_dict as from_dict
from lowbit.recipes.serial import from_toml as from_toml
from lowbit.recipes.serial import to_toml as to_toml
