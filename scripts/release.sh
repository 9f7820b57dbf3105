#!/usr/bin/env bash
# Builds a release: what machines install, by version, with checksums and a list of what is in it.
#
#   release.sh [--debug-binary FILE [--version VERSION]] [--without-images] [OUT]
#
# OUT (target/release-files by default) gets hearth-ARCH.tar.gz (stripped binary, units, default configuration, install script, runbooks),
# images-ARCH.tar.gz (the containers' images), hearth-ARCH.cdx.json (bill of materials), SHA256SUMS, and release.auto.tfvars.json for Terraform.
# arm64 is built where this machine has a linker for it and the Rust target; otherwise it says that it is not. --debug-binary packs a binary
# that is there, under another version if need be (tests do), --without-images leaves the images out (a router needs none).
set -euo pipefail
cd "$(dirname "$0")/.."

# Amazon Linux 2023, on which releases run, has this C library; Debian 12 and Ubuntu 22.04 have newer ones.
GLIBC_MAX=2.34
target=${CARGO_TARGET_DIR:-target}
say() { echo "release: $*" >&2; }
fail() { say "$*"; exit 1; }

binary='' images=yes out='' version=''
while [ $# -gt 0 ]; do
  case "$1" in
    --debug-binary) binary=${2:?--debug-binary FILE} && shift ;;
    --version) version=${2:?--version VERSION} && shift ;;
    --without-images) images=no ;;
    -*) fail "unknown argument $1" ;;
    *) out=$1 ;;
  esac
  shift
done
out=${out:-$target/release-files}
[ -z "$version" ] || [ -n "$binary" ] || fail '--version is for --debug-binary: a release has the version of Cargo.toml'
version=${version:-$(sed -n '/^\[workspace.package\]/,/^\[/s/^version = "\(.*\)"/\1/p' Cargo.toml)}
[ -n "$version" ] || fail 'Cargo.toml names no version in [workspace.package]'
rm -rf "$out"
mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d "$out/.work.XXXXXX")
trap 'rm -rf "$work"' EXIT
# Archives whose bytes depend on their content alone.
epoch=$(git log -1 --format=%ct 2>/dev/null || echo 0)
packed() { tar -c --owner=0 --group=0 --numeric-owner --sort=name --mtime="@$epoch" "$@" | gzip -n; }

pack_binary() { # pack_binary ARCH FILE
  local arch=$1 dir=$work/$1/hearth
  mkdir -p "$dir/docs"
  install -m 0755 "$2" "$dir/hearth"
  "${STRIP:-strip}" --strip-all "$dir/hearth"
  local glibc
  glibc=$("${OBJDUMP:-objdump}" -T "$dir/hearth" | grep -o 'GLIBC_[0-9.]*' | sort -Vu | tail -n 1)
  [ "$(printf 'GLIBC_%s\n%s\n' "$GLIBC_MAX" "$glibc" | sort -V | tail -n 1)" = "GLIBC_$GLIBC_MAX" ] ||
    fail "the binary needs $glibc, and machines have GLIBC_$GLIBC_MAX: build on an older distribution"
  cp -r packaging/{bin,config,systemd,install.sh,cloudwatch-agent.json,logrotate.conf} LICENSE "$dir/"
  cp -r docs/operations "$dir/docs/"
  echo "$version" >"$dir/VERSION"
  packed -C "$work/$arch" hearth >"$out/hearth-$arch.tar.gz"
  python3 scripts/sbom.py --arch "$arch" >"$out/hearth-$arch.cdx.json"
}

# The names that `hearth` looks for in its image cache, so that no machine assembles anything.
pack_images() { # pack_images ARCH
  local cache purpose files=() made=$work/images-$1
  cache=${HEARTH_IMAGES_FROM:-/var/cache/hearth/images}
  for purpose in runtime build; do
    files+=("hearth-$purpose-$(IMAGE_ARCH=$1 bash sandbox/image/build.sh --digest "$purpose" | cut -c1-12).tar")
    [ -f "$cache/${files[-1]}" ] || [ -d "$made" ] || IMAGE_ARCH=$1 bash sandbox/image/build.sh "$made"
  done
  [ ! -d "$made" ] || cache=$made
  packed -C "$cache" "${files[@]}" >"$out/images-$1.tar.gz"
}

if [ -z "$binary" ]; then
  cargo build --release --locked --package hearth-cli
  binary=$target/release/hearth
fi
pack_binary "$(uname -m)" "$binary"
[ "$images" = no ] || pack_images "$(uname -m)"

if [ "$(uname -m)" = x86_64 ] && [ "$binary" = "$target/release/hearth" ]; then
  if command -v aarch64-linux-gnu-gcc >/dev/null && rustc --print target-libdir --target aarch64-unknown-linux-gnu 2>/dev/null | xargs -r test -d; then
    # The cross compiler does not find mold, with which native builds link.
    CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER=aarch64-linux-gnu-gcc CC_aarch64_unknown_linux_gnu=aarch64-linux-gnu-gcc \
      RUSTFLAGS='-C link-arg=-fuse-ld=bfd' \
      cargo build --release --locked --package hearth-cli --target aarch64-unknown-linux-gnu
    STRIP=aarch64-linux-gnu-strip OBJDUMP=aarch64-linux-gnu-objdump pack_binary aarch64 "$target/aarch64-unknown-linux-gnu/release/hearth"
    [ "$images" = no ] || pack_images aarch64
  else
    say 'no arm64: that needs the Debian packages gcc-aarch64-linux-gnu and libc6-dev-arm64-cross, and `rustup target add aarch64-unknown-linux-gnu`'
  fi
fi

(cd "$out" && sha256sum -- *.tar.gz *.cdx.json >SHA256SUMS)
sum=$(sha256sum "$out/SHA256SUMS" | cut -d' ' -f1)
printf '{\n  "hearth_version": "%s",\n  "hearth_sha256": "%s"\n}\n' "$version" "$sum" >"$out/release.auto.tfvars.json"
say "version $version in $out:"
(cd "$out" && du -h -- *.tar.gz *.cdx.json SHA256SUMS >&2)
say "put it where machines find it: aws s3 cp --recursive --exclude '*.tfvars.json' $out s3://RELEASES_BUCKET/hearth/$version/"
