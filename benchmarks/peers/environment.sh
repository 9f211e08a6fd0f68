#!/usr/bin/env bash
# An environment of its own for one of the tools lowbit is compared with, on a CPU:
#   bash benchmarks/peers/environment.sh brevitas|gptqmodel|autoround|hqq|llmcompressor|quanto|torchao FOLDER
# torch comes first and stays: some of these tools' own requirements would replace it by another build.
set -euo pipefail
peer=${1:?name of the peer} folder=${2:?folder of the environment}
python3 -m venv "$folder"
install() { "$folder/bin/pip" install --quiet "$@"; }
install torch==2.13.0
case $peer in
  brevitas)
    install --no-deps brevitas==0.13.0
    install dependencies==2.0.1 unfoldNd transformers==5.23.0 accelerate==1.15.0 datasets pyyaml tqdm pandas 'setuptools<70'
    ;;
  gptqmodel)
    install --no-deps gptqmodel==7.7.0 torchao==0.18.0 optimum==2.3.0
    install accelerate==1.15.0 numpy==2.4.6 safetensors filelock transformers==5.23.0 threadpoolctl packaging \
      device-smi protobuf pillow requests pypcre 'tokenicer>=0.0.14' logbar jinja2 ninja maturin datasets pyarrow dill \
      'defuser>=0.0.28'
    ;;
  autoround) install torch==2.13.0 auto-round==0.16.0 transformers==5.23.0 ;;
  hqq) install torch==2.13.0 hqq==0.2.8.post1 transformers==5.23.0 ;;
  llmcompressor) install torch==2.13.0 llmcompressor==0.14.0 ;;
  quanto) install torch==2.13.0 optimum-quanto==0.2.7 transformers==5.23.0 accelerate==1.15.0 ;;
  torchao) install torch==2.13.0 torchao==0.18.0 transformers==5.23.0 ;;
  *) echo "no peer named $peer" >&2 && exit 2 ;;
esac
