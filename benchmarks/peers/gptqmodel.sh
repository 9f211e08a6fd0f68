#!/usr/bin/env bash
# An environment of its own for GPTQModel on a CPU:  bash benchmarks/peers/gptqmodel.sh .venv-gptqmodel
# Its own requirements would replace torch by another build, so it and optimum are installed without them.
set -euo pipefail
folder=${1:?folder of the environment}
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet torch==2.13.0
"$folder/bin/pip" install --quiet --no-deps gptqmodel==7.7.0 torchao==0.18.0 optimum==2.3.0
"$folder/bin/pip" install --quiet accelerate==1.15.0 numpy==2.4.6 safetensors filelock transformers==5.23.0 threadpoolctl \
  packaging device-smi protobuf pillow requests pypcre 'tokenicer>=0.0.14' logbar jinja2 ninja maturin datasets pyarrow \
  dill 'defuser>=0.0.28'
