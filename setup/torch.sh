#!/usr/bin/env bash
# Installs PyTorch: without CUDA where there is no NVIDIA GPU, which spares gigabytes of libraries that nothing would use.
#
# On Linux PyPI has the build with CUDA alone; the one without comes from PyTorch's own index. Where that cannot be
# reached, or pip has been given an index of somebody's own, pip's index decides. TORCH_CUDA=1 or 0 says which, for
# machines that install for others.
set -euo pipefail
python=${1:?usage: torch.sh PYTHON torch==VERSION}
torch=${2:?usage: torch.sh PYTHON torch==VERSION}
index=https://download.pytorch.org/whl/cpu

has_gpu() { command -v nvidia-smi >/dev/null || [ -e /dev/nvidiactl ]; }
is_without_cuda() { "$python" -m pip show torch 2>/dev/null | grep -q '^Version: .*+cpu'; }
has_own_index() { [ -n "${PIP_INDEX_URL:-}" ] || "$python" -m pip config list 2>/dev/null | grep -q '\.index-url='; }
install() { "$python" -m pip install --quiet --disable-pip-version-check "$@"; }

case ${TORCH_CUDA:-} in
  0 | 1) cuda=$TORCH_CUDA ;;
  "") if has_gpu; then cuda=1; else cuda=0; fi ;;
  *) echo "TORCH_CUDA=$TORCH_CUDA is neither 1 (PyTorch with CUDA) nor 0 (without)." >&2; exit 1 ;;
esac

# To pip both builds are of one version.
if [ "$cuda" = 1 ] && is_without_cuda; then
  "$python" -m pip uninstall --quiet --yes torch
fi
if [ "$cuda" = 0 ] && [ "$(uname -s)" = Linux ] && ! has_own_index; then
  if install --index-url "$index" --retries 1 --timeout 30 "$torch" 2>/dev/null; then
    exit 0
  fi
  echo "$torch without CUDA could not be had from $index: pip's own index decides, which may bring gigabytes of CUDA." >&2
fi
install "$torch"
