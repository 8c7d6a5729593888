#!/usr/bin/env bash
# Installs Synapse, which the federation tests compare with, into `synapse` of the target folder.
# Works on a fresh Debian 12, as root or with sudo. Does nothing when all is there already.
set -euo pipefail
cd "$(dirname "$0")"
folder="$(realpath -m "${CARGO_TARGET_DIR:-../../target}")/synapse"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

wanted="$(cat requirements.txt install.sh | sha256sum)"
if [ "$(cat "$folder/.installed" 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

if ! python3 -c 'import venv, ensurepip' 2>/dev/null; then
    echo "installing Debian packages for Synapse: python3 python3-venv"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o Dpkg::Use-Pty=0 \
        --no-install-recommends python3 python3-venv >/dev/null
fi

rm -rf "$folder"
python3 -m venv "$folder"
"$folder/bin/pip" install --quiet --requirement requirements.txt
"$folder/bin/python" -c 'import synapse.app.homeserver'
echo "$wanted" >"$folder/.installed"
echo "Synapse is installed"
