//! Raw requests that try to smuggle.
