"""Exchange: quantized models from and to the formats of other tools, codes as they are."""

from lowbit.exchange.catalogue import FORMATS as FORMATS
from lowbit.exchange.exporting import export_folder as export_folder
from lowbit.exchange.importing import import_folder as import_folder
from lowbit.exchange.importing import is_foreign as is_foreign
