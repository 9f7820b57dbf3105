//! The npm registry as Hearth uses it.
