# Sourced. `need PROGRAM APT_PACKAGE BREW_FORMULA` installs what is missing and says so.

_find() {
  command -v "$1" >/dev/null && return
  # Debian keeps PostgreSQL's programs in a versioned folder outside PATH.
  ls /usr/lib/postgresql/*/bin/"$1" >/dev/null 2>&1 && return
  ls /usr/sbin/"$1" >/dev/null 2>&1
}

_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

need() {
  _find "$1" && return
  if command -v apt-get >/dev/null; then
    [ -n "$2" ] || return 0
    echo "$1 is missing: installing the package $2 by apt"
    if [ -z "${_apt_updated:-}" ]; then
      _root apt-get update -qq
      _apt_updated=1
    fi
    # The stores are started privately; Debian's own services stay off.
    _root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get install -y -qq --no-install-recommends "$2" >/dev/null
  elif command -v brew >/dev/null; then
    [ -n "$3" ] || return 0
    echo "$1 is missing: installing the formula $3 by brew"
    brew install --quiet "$3"
  else
    echo "$1 is missing, and there is neither apt-get nor brew to install it: install it, then try again" >&2
    return 1
  fi
}
