# Shared by the scripts beside it: `. scripts/lib.sh` in the project's root, under `set -eu`.
# Variable: PYTHON, the interpreter that makes .venv (python3).

PYTHON=${PYTHON:-python3}

fail() {
    echo "error: $*" >&2
    exit 1
}

# Whether what a build needs is here: Python 3.11 with venv and headers, a C compiler, the headers of
# cJSON and Vulkan.
have_build_tools() {
    "$PYTHON" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null &&
        printf '#include <Python.h>\n#include <cjson/cJSON.h>\n#include <vulkan/vulkan_core.h>\n' |
        cc -fsyntax-only -I"$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')" \
            -x c - 2>/dev/null
}

# The tests also compile for aarch64 and run its kernels, and run on a Vulkan device in software with
# the validation layer, which nothing else needs. Elsewhere than on Debian and Ubuntu what is missing is skipped.
have_test_tools() {
    command -v apt-get >/dev/null || return 0
    [ "$(uname -m)" != x86_64 ] || {
        command -v qemu-aarch64 >/dev/null &&
            echo '#include <math.h>' | aarch64-linux-gnu-gcc -fsyntax-only -x c - 2>/dev/null
    } || return 1
    ls /usr/share/vulkan/icd.d/lvp_icd.*json >/dev/null 2>&1 &&
        [ -e /usr/share/vulkan/explicit_layer.d/VkLayer_khronos_validation.json ]
}
install_test_tools() {
    set -- mesa-vulkan-drivers vulkan-validationlayers
    [ "$(uname -m)" != x86_64 ] || set -- "$@" gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user
    install_packages "$@"
}

# Without setuptools' remarks about editable installs.
pip_install() {
    PYTHONWARNINGS=ignore .venv/bin/pip install -q --disable-pip-version-check "$@"
}

# install_packages NAME...: with apt-get, or a line that says what to install by hand.
install_packages() {
    command -v apt-get >/dev/null || fail "install Python 3.11 or later with venv and headers, gcc" \
        "cJSON and Vulkan's headers: python3-devel gcc cjson-devel vulkan-headers (Fedora)," \
        "python gcc cjson vulkan-headers (Arch)"
    sudo=
    if [ "$(id -u)" != 0 ]; then
        command -v sudo >/dev/null || fail "no sudo: as root, run apt-get install $*"
        sudo=sudo
    fi
    echo "Installing system packages: $*"
    $sudo apt-get update -qq || true # a broken third-party source need not matter
    $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
        >/dev/null || fail "apt-get install $* failed"
}

# prepare EXTRAS: the system's packages, .venv with the project (editable) and its EXTRAS, the extension built.
prepare() {
    have_build_tools || install_packages python3 python3-venv python3-dev gcc libc6-dev libcjson-dev \
        libvulkan-dev
    have_build_tools || fail "Python 3.11 or later with venv and headers, cc, cJSON and Vulkan's headers are needed" \
        "(PYTHON=... chooses an interpreter)"
    [ -x .venv/bin/pip ] || "$PYTHON" -m venv --clear .venv
    stamp=.venv/installed-$1
    key=$(cksum pyproject.toml)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$key" ]; then
        echo "Installing gptoss-engine[$1] into .venv"
        pip_install 'setuptools>=77'
        pip_install --no-build-isolation -e ".[$1]"
        echo "$key" >"$stamp"
    fi
    .venv/bin/python setup.py -q build_ext --inplace
}
