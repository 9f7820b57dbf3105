//! Suites that every backend passes, as plain functions over the traits.
