//! Names of tenants, containers and functions: `[a-z0-9][a-z0-9-]{0,62}`, one type per noun.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr, sync::Arc};

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The text breaks the pattern.
    #[error(
        "{noun} name {text:?} must match [a-z0-9][a-z0-9-]{{0,62}}: lower-case letters, digits and hyphens, 1 to 63 of them, not starting with a hyphen"
    )]
    Pattern {
        /// Which noun was being named.
        noun: &'static str,
        /// The text, cut to 80 characters.
        text: String,
    },
    /// A path has the wrong number of parts.
    #[error("{text:?} must look like {expected}")]
    Path {
        /// The shape that was expected, as `tenant/container/function`.
        expected: &'static str,
        /// The text, cut to 80 characters.
        text: String,
    },
}

fn is_name(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.len(), 1..=63)
        && bytes[0] != b'-'
        && bytes.iter().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

macro_rules! name {
    ($type:ident, $noun:literal) => {
        #[doc = concat!("The name of a ", $noun, ". Cheap to clone.")]
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(Arc<str>);

        impl $type {
            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                if is_name(text) { Ok(Self(text.into())) } else { Err(NameError::Pattern { noun: $noun, text: cut(text) }) }
            }
        }
        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0.as_ref().to_owned()
            }
        }
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl AsRef<str> for $type {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                utoipa::openapi::ObjectBuilder::new()
                    .schema_type(utoipa::openapi::schema::Type::String)
                    .pattern(Some("^[a-z0-9][a-z0-9-]{0,62}$"))
                    .into()
            }
        }
        impl utoipa::ToSchema for $type {}
    };
}

name!(TenantName, "tenant");
name!(ContainerName, "container");
name!(FunctionName, "function");

/// `tenant/container`: the isolation boundary that a request goes to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct ContainerPath {
    /// Who owns the container.
    pub tenant: TenantName,
    /// The container's name, unique within the tenant.
    pub container: ContainerName,
}

/// `tenant/container/function`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FunctionPath {
    /// Who owns the function.
    pub tenant: TenantName,
    /// The container that it runs in.
    pub container: ContainerName,
    /// The function's name, unique within the container.
    pub function: FunctionName,
}

impl FunctionPath {
    /// The container of the function.
    #[must_use]
    pub fn container_path(&self) -> ContainerPath {
        ContainerPath { tenant: self.tenant.clone(), container: self.container.clone() }
    }
}

impl ContainerPath {
    /// The function of that name in this container.
    #[must_use]
    pub fn function(&self, function: FunctionName) -> FunctionPath {
        FunctionPath { tenant: self.tenant.clone(), container: self.container.clone(), function }
    }
}

impl fmt::Display for ContainerPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.tenant, self.container)
    }
}

impl fmt::Display for FunctionPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.tenant, self.container, self.function)
    }
}

impl FromStr for ContainerPath {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [tenant, container] => Ok(Self { tenant: tenant.parse()?, container: container.parse()? }),
            _ => Err(NameError::Path { expected: "tenant/container", text: cut(text) }),
        }
    }
}

impl FromStr for FunctionPath {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        match text.split('/').collect::<Vec<_>>()[..] {
            [tenant, container, function] => {
                Ok(Self { tenant: tenant.parse()?, container: container.parse()?, function: function.parse()? })
            }
            _ => Err(NameError::Path { expected: "tenant/container/function", text: cut(text) }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_at_the_bound_and_one_past_it() {
        assert!("a".repeat(63).parse::<TenantName>().is_ok());
        assert!("a".repeat(64).parse::<TenantName>().is_err());
        for bad in ["", "-a", "A", "a_b", "a.b", "ä", "a/b", "a b", "a\n"] {
            assert!(bad.parse::<FunctionName>().is_err(), "{bad:?}");
        }
        assert!("0-".parse::<ContainerName>().is_ok());
    }

    #[test]
    fn paths_have_exactly_their_parts() {
        let path: FunctionPath = "acme/main/hello".parse().unwrap();
        assert_eq!(path.to_string(), "acme/main/hello");
        assert_eq!(path.container_path().to_string(), "acme/main");
        for bad in ["acme/main", "acme/main/hello/x", "acme//hello", ""] {
            assert!(bad.parse::<FunctionPath>().is_err(), "{bad:?}");
        }
    }
}
