//! The hash that decides where a container runs: XXH64 over bytes that this crate encodes itself.
//!
//! Written out here, and held by golden values, because a hash that came with the compiler or a dependency could change with
//! an update and move every container at once. It resists no adversary: a tenant can choose names that fall on one
//! node, which the bound on loads answers, not the hash.

const P1: u64 = 0x9E37_79B1_85EB_CA87;
const P2: u64 = 0xC2B2_AE3D_27D4_EB4F;
const P3: u64 = 0x1656_67B1_9E37_79F9;
const P4: u64 = 0x85EB_CA77_C2B2_AE63;
const P5: u64 = 0x27D4_EB2F_1656_67C5;

const fn round(accumulator: u64, input: u64) -> u64 {
    accumulator.wrapping_add(input.wrapping_mul(P2)).rotate_left(31).wrapping_mul(P1)
}

const fn merge(accumulator: u64, value: u64) -> u64 {
    (accumulator ^ round(0, value)).wrapping_mul(P1).wrapping_add(P4)
}

fn word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes[..8].try_into().unwrap_or_default())
}

/// XXH64 of `bytes`.
#[must_use]
pub fn xxh64(bytes: &[u8], seed: u64) -> u64 {
    let mut rest = bytes;
    let mut hash = if rest.len() >= 32 {
        let mut lanes = [seed.wrapping_add(P1).wrapping_add(P2), seed.wrapping_add(P2), seed, seed.wrapping_sub(P1)];
        while rest.len() >= 32 {
            for (lane, chunk) in lanes.iter_mut().zip(rest.chunks_exact(8)) {
                *lane = round(*lane, word(chunk));
            }
            rest = &rest[32..];
        }
        let [a, b, c, d] = lanes;
        let mixed = a.rotate_left(1).wrapping_add(b.rotate_left(7)).wrapping_add(c.rotate_left(12)).wrapping_add(d.rotate_left(18));
        lanes.into_iter().fold(mixed, merge)
    } else {
        seed.wrapping_add(P5)
    };
    hash = hash.wrapping_add(bytes.len() as u64);
    while rest.len() >= 8 {
        hash = (hash ^ round(0, word(rest))).rotate_left(27).wrapping_mul(P1).wrapping_add(P4);
        rest = &rest[8..];
    }
    if rest.len() >= 4 {
        let half = u32::from_le_bytes(rest[..4].try_into().unwrap_or_default());
        hash = (hash ^ u64::from(half).wrapping_mul(P1)).rotate_left(23).wrapping_mul(P2).wrapping_add(P3);
        rest = &rest[4..];
    }
    for byte in rest {
        hash = (hash ^ u64::from(*byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
    }
    finish(hash)
}

const fn finish(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 29)).wrapping_mul(P3);
    hash ^ (hash >> 32)
}

/// The longest key: two names of 63 bytes and what joins them.
const KEY_MAX: usize = 128;

/// The place of a container on the ring: the hash of `tenant NUL container`. Names hold no NUL, so no two containers share
/// an encoding. Longer texts than names may be (nobody's, since they are no names) are cut, never refused.
#[must_use]
pub fn container_point(tenant: &str, container: &str) -> u64 {
    let mut key = [0_u8; KEY_MAX];
    let tenant = &tenant.as_bytes()[..tenant.len().min(63)];
    let container = &container.as_bytes()[..container.len().min(63)];
    key[..tenant.len()].copy_from_slice(tenant);
    let begin = tenant.len() + 1;
    key[begin..begin + container.len()].copy_from_slice(container);
    xxh64(&key[..begin + container.len()], 0)
}

/// One of the points of a node on the ring: the hash of `node NUL name NUL index`, the index as four bytes, the lowest first.
#[must_use]
pub fn node_point(name: &[u8], index: u32) -> u64 {
    let mut key = Vec::with_capacity(name.len() + 10);
    key.extend_from_slice(b"node\0");
    key.extend_from_slice(name);
    key.push(0);
    key.extend_from_slice(&index.to_le_bytes());
    xxh64(&key, 0)
}

/// A number from 0 to 999 that says whether a container is among those which an overloaded node hands on. It grows with
/// nothing: raising the node's share only adds containers, lowering it only takes some back.
#[must_use]
pub const fn overflow_rank(container_point: u64, node_seed: u64) -> u16 {
    (finish(container_point ^ node_seed.rotate_left(17)) % 1000) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_values_of_the_published_algorithm() {
        assert_eq!(xxh64(b"", 0), 0xEF46_DB37_51D8_E999);
        assert_eq!(xxh64(b"a", 0), 0xD24E_C4F1_A98C_6E5B);
        assert_eq!(xxh64(b"abc", 0), 0x44BC_2CF5_AD77_0999);
        assert_eq!(xxh64(b"Nobody inspects the spammish repetition", 0), 0xFBCE_A83C_8A37_8BF1);
    }

    #[test]
    fn the_joint_of_tenant_and_container_counts() {
        assert_ne!(container_point("ab", "c"), container_point("a", "bc"));
        assert_eq!(container_point("acme", "main"), xxh64(b"acme\0main", 0));
        let long = "x".repeat(500);
        assert_eq!(container_point(&long, &long), container_point(&long[..63], &long[..63]));
    }
}
