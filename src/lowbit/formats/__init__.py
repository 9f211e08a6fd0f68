"""Formats: how quantized models lie on disk."""

from lowbit.formats.checkpoint import ParsedConfig as ParsedConfig
from lowbit.formats.checkpoint import parse_quantization_config as parse_quantization_config
from lowbit.formats.checkpoint import quantization_config as quantization_config
from lowbit.formats.checkpoint import restored_layer as restored_layer
from lowbit.formats.checkpoint import stored_layout as stored_layout
from lowbit.formats.checkpoint import stored_tensors as stored_tensors
from lowbit.formats.files import file_digest as file_digest
from lowbit.formats.files import write_bytes_atomically as write_bytes_atomically
from lowbit.formats.files import write_json_atomically as write_json_atomically
from lowbit.formats.files import write_tensors_atomically as write_tensors_atomically
from lowbit.formats.legality import check_checkpoint as check_checkpoint
from lowbit.formats.legality import read_quantization_config as read_quantization_config
from lowbit.formats.shards import Entry as Entry
from lowbit.formats.shards import Shards as Shards
