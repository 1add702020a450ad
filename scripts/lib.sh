# Functions that the scripts in this directory share. Sourced, not run; the sourcing script sets `set -euo pipefail`.
# shellcheck shell=bash disable=SC2034

# Where it is set, cd prints.
unset CDPATH

# The checkout: every script works on its own one, from any directory.
root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv
# bcc's Python module is made for the system's interpreter only.
system_python=/usr/bin/python3

# say TEXT...: one line of progress on stderr; stdout belongs to results.
say() {
    printf '==> %s\n' "$*" >&2
}

# die TEXT...: one line on stderr, exit 1.
die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}

# usage: print the comment at the head of the running script.
usage() {
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' -- "$0"
}

# need_root ARG...: die unless root, naming the exact command to type (ARG... are the script's own arguments).
need_root() {
    [[ $EUID -eq 0 ]] && return
    local script
    script=$(cd -- "$(dirname -- "$0")" && pwd -P)/${0##*/}
    die "needs root; run: sudo$(printf ' %q' "$script" "$@")"
}

# installed PACKAGE...: print those of the Debian packages that are installed, one a line.
installed() {
    # An unknown name makes dpkg-query exit 1, which is an answer here, not a failure.
    dpkg-query -W -f '${db:Status-Status} ${Package}\n' -- "$@" 2>/dev/null | sed -n 's/^installed //p' | sort -u || true
}

# missing_packages SPEC...: print the packages to be installed, one a line. A SPEC is a package's name, or several
# joined by "|" for a package whose name differs between releases: any installed one will do.
missing_packages() {
    local -a names
    local spec name present found
    IFS='|' read -ra names <<<"$(IFS='|' && printf '%s' "$*")"
    present=$(installed "${names[@]}")
    for spec in "$@"; do
        found=""
        IFS='|' read -ra names <<<"$spec"
        for name in "${names[@]}"; do
            if grep -qxF -- "$name" <<<"$present"; then found=1; fi
        done
        [[ -n $found ]] || printf '%s\n' "$spec"
    done
}

# quietly COMMAND...: run it, and show what it printed only if it fails.
quietly() {
    local output status=0
    output=$("$@" 2>&1 </dev/null) || status=$?
    [[ $status -eq 0 ]] || printf '%s\n' "$output" >&2
    return "$status"
}

# available SPEC: print the first of the names in SPEC that this release has.
available() {
    local -a names
    local name
    IFS='|' read -ra names <<<"$1"
    for name in "${names[@]}"; do
        # A name that other packages only mention or provide has a policy, but no candidate.
        if [[ -n "$(LC_ALL=C apt-cache policy -- "$name" | sed -n '/^  Candidate: [^(]/p')" ]]; then
            printf '%s\n' "$name"
            return
        fi
    done
    die "this release has no package ${1//|/ or }; is its main archive enabled in /etc/apt?"
}

# apt_install SPEC...: install what is missing (see missing_packages). Asks the archive only if something is, and
# starts no service: installing redis-server for the tests must not leave a server running.
apt_install() {
    local -a specs=() names=() masked=()
    local spec name status=0
    mapfile -t specs < <(missing_packages "$@")
    [[ ${#specs[@]} -gt 0 ]] || return 0
    command -v apt-get >/dev/null || die "no apt-get: install these packages by your system's means: ${specs[*]}"

    say "apt: updating the package lists"
    quietly apt-get -qq update || say "apt: some lists could not be updated (see above); trying with those there are"
    for spec in "${specs[@]}"; do
        name=$(available "$spec")
        names+=("$name")
    done

    say "apt: installing ${names[*]}"
    # RUNLEVEL=1 keeps SysV services down; under systemd a mask that lasts until the next boot at most does it.
    if [[ -d /run/systemd/system ]]; then
        for name in redis-server debuginfod; do
            [[ " ${names[*]} " != *" $name "* ]] || masked+=("$name.service")
        done
        [[ ${#masked[@]} -eq 0 ]] || systemctl --quiet --runtime mask "${masked[@]}" || true
    fi
    quietly env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 apt-get -qq -o DPkg::Lock::Timeout=300 \
        -o Dpkg::Use-Pty=0 install --yes --no-install-recommends "${names[@]}" || status=$?
    if [[ ${#masked[@]} -gt 0 ]]; then
        systemctl --quiet --runtime unmask "${masked[@]}" || true
        systemctl --quiet disable "${masked[@]}" || true
    fi
    [[ $status -eq 0 ]] || die "apt-get install failed; see above"
}
