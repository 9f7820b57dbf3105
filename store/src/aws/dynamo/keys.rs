//! Where each noun's items are. Partitions are as fine as consistency allows, so that one busy tenant does not make a hot one: what requests
//! read lies in a partition of its function; the partitions that lists go through hold names and change only when names come and go.
//!
//! | partition | sort key | what |
//! | --- | --- | --- |
//! | `META` | `#` | which installation the table belongs to |
//! | `TENANTS` | tenant | index of tenants by name |
//! | `T#{tenant}` | `#`, `N` | the tenant; its counts |
//! | `T#{tenant}` | `C#{container}`, `N#{container}` | a container; its counts |
//! | `T#{tenant}` | `K#{id}` | index of the tenant's tokens |
//! | `C#{tenant}/{container}` | function | index of functions by name |
//! | `F#{tenant}/{container}/{function}` | `H`, `L`, `D`, `V#{number}` | head, copy of the live version, storage document, versions |
//! | `K#{hash}` | `#` | a token by the hash of its text |
//! | `TOKENS` | id | index of tokens by id |
//! | `M#{build}` | `#` | a module record |
//! | `MODULES` | name, version, build | index of module records |
//! | `W#{build}` | function and version | versions that may wait for a build |
//! | `U#{build}` | function and version | versions that may be live and use a build |
//! | `R#{request}` | `#` | marker of a write, for a day |

use super::table::Key;
use hearth_model::{BuildKey, ContainerPath, FunctionPath, ModuleRecord, TenantName, TokenHash, VersionNumber};

pub(super) const TENANTS: &str = "TENANTS";
pub(super) const TOKENS: &str = "TOKENS";
pub(super) const MODULES: &str = "MODULES";
/// Sorts after every key that is made here.
pub(super) const LAST: &str = "\u{7f}";

/// Sorts right after `after` and before all that begins with it.
pub(super) fn beyond(prefix: &str, after: &str) -> String {
    format!("{prefix}{after}\u{1}")
}

/// The end of all keys with a prefix.
pub(super) fn end(prefix: &str) -> String {
    format!("{prefix}{LAST}")
}

pub(super) fn meta() -> Key {
    Key::new("META", "#")
}

pub(super) fn tenant(name: &TenantName) -> Key {
    Key::new(tenant_partition(name), "#")
}

pub(super) fn tenant_partition(name: &TenantName) -> String {
    format!("T#{name}")
}

pub(super) fn tenant_counts(name: &TenantName) -> Key {
    Key::new(tenant_partition(name), "N")
}

pub(super) fn tenant_index(name: &TenantName) -> Key {
    Key::new(TENANTS, name.as_str())
}

pub(super) fn container(path: &ContainerPath) -> Key {
    Key::new(tenant_partition(&path.tenant), format!("C#{}", path.container))
}

pub(super) fn container_counts(path: &ContainerPath) -> Key {
    Key::new(tenant_partition(&path.tenant), format!("N#{}", path.container))
}

pub(super) fn function_index_partition(path: &ContainerPath) -> String {
    format!("C#{path}")
}

pub(super) fn function_index(path: &FunctionPath) -> Key {
    Key::new(function_index_partition(&path.container_path()), path.function.as_str())
}

fn function_partition(path: &FunctionPath) -> String {
    format!("F#{path}")
}

pub(super) fn head(path: &FunctionPath) -> Key {
    Key::new(function_partition(path), "H")
}

pub(super) fn live(path: &FunctionPath) -> Key {
    Key::new(function_partition(path), "L")
}

pub(super) fn document(path: &FunctionPath) -> Key {
    Key::new(function_partition(path), "D")
}

pub(super) fn version(path: &FunctionPath, version: VersionNumber) -> Key {
    Key::new(function_partition(path), format!("V#{:012}", version.0))
}

pub(super) fn token(hash: &TokenHash) -> Key {
    Key::new(format!("K#{}", hash.to_hex()), "#")
}

pub(super) fn token_index(id: &str) -> Key {
    Key::new(TOKENS, id)
}

pub(super) fn tenant_token(tenant: &TenantName, id: &str) -> Key {
    Key::new(tenant_partition(tenant), format!("K#{id}"))
}

pub(super) fn module(key: &BuildKey) -> Key {
    Key::new(format!("M#{}", key.0), "#")
}

/// Sorts by name, then version, then build: the separator is lower than every character of a name or a version.
pub(super) fn module_order(record: &ModuleRecord) -> String {
    format!("{}\n{}\n{}", record.spec.name, record.spec.version, record.key.0)
}

pub(super) fn waiting_partition(key: &BuildKey) -> String {
    format!("W#{}", key.0)
}

pub(super) fn users_partition(key: &BuildKey) -> String {
    format!("U#{}", key.0)
}

/// The sort key of a version in the partitions of a build. `id` tells it from another attempt to make the same number.
pub(super) fn of_version(path: &FunctionPath, version: VersionNumber, id: &str) -> String {
    format!("{path}#{:012}#{id}", version.0)
}

/// Which version a sort key of a build's partition names.
pub(super) fn to_version(sk: &str) -> Option<(FunctionPath, VersionNumber, &str)> {
    let mut parts = sk.split('#');
    let (path, number, id) = (parts.next()?, parts.next()?, parts.next()?);
    Some((path.parse().ok()?, VersionNumber(number.parse().ok()?), id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_starts_right_after_its_cursor() {
        assert!(*"f" < *beyond("", "f") && *beyond("", "f") < *"f-" && *beyond("", "f") < *"f0");
        assert!(*beyond("", "") < *"0" && *"z" < *end(""));
        assert!(*"C#z" < *end("C#") && *end("C#") < *"K#");
    }

    #[test]
    fn a_version_of_a_build_is_found_again() {
        let path: FunctionPath = "acme/main/hello".parse().unwrap();
        let sk = of_version(&path, VersionNumber(12), "ab");
        assert_eq!(to_version(&sk), Some((path, VersionNumber(12), "ab")));
        assert_eq!(to_version("nonsense"), None);
    }
}
