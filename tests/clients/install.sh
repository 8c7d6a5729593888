#!/usr/bin/env bash
# Installs what the real-client tests need, beside this file: `.venv` (matrix-nio with its
# encryption) and `node_modules` (matrix-js-sdk, and a Node.js that is new enough for it).
# Works on a fresh Debian 12, as root or with sudo. Does nothing when all is there already.
set -euo pipefail
cd "$(dirname "$0")"

as_root() {
    if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi
}

need_packages() {
    echo "installing Debian packages for the client tests: $*"
    as_root apt-get update -qq
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o Dpkg::Use-Pty=0 \
        --no-install-recommends "$@" >/dev/null
}

wanted="$(cat requirements.txt package.json package-lock.json install.sh | sha256sum)"
if [ "$(cat .installed 2>/dev/null)" = "$wanted" ]; then
    exit 0
fi

missing=()
python3 -c 'import venv, ensurepip' 2>/dev/null || missing+=(python3 python3-venv)
command -v npm >/dev/null || missing+=(npm)
[ ${#missing[@]} = 0 ] || need_packages "${missing[@]}"

rm -rf .venv .installed
python3 -m venv .venv
.venv/bin/pip install --quiet --requirement requirements.txt

npm ci --no-audit --no-fund --loglevel=error
# The package `node` fetches the binary of this architecture in an install script, which npm may
# have been told to skip.
[ -x node_modules/node/bin/node ] || npm rebuild node --loglevel=error

.venv/bin/python -c 'import nio.crypto; assert nio.crypto.ENCRYPTION_ENABLED'
node_modules/node/bin/node --version >/dev/null
echo "$wanted" >.installed
echo "the client tests are installed"
