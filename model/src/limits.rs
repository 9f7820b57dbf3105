//! Every fixed bound of the system, with its reason. What an operator may change lives in a `Config`; these are the ceilings.

/// Longest request target accepted: longer answers 414.
pub const REQUEST_TARGET_BYTES_MAX: usize = 8 * 1024;
/// All request headers together: more answers 431.
pub const REQUEST_HEADER_BYTES_MAX: usize = 32 * 1024;
/// Number of request headers: more answers 431.
pub const REQUEST_HEADERS_MAX: usize = 100;
/// All response headers of a function together: more answers 502.
pub const RESPONSE_HEADER_BYTES_MAX: usize = 64 * 1024;
/// Headers of a function's answer.
pub const RESPONSE_HEADERS_MAX: usize = 100;
/// Default bound of an invocation's body.
pub const REQUEST_BODY_BYTES_DEFAULT: u64 = 100 * 1024 * 1024;
/// A management call's JSON body: code and its envelope.
pub const MANAGE_BODY_BYTES_MAX: usize = 8 * 1024 * 1024;
/// All files of one function version together.
pub const BUNDLE_BYTES_MAX: usize = 5 * 1024 * 1024;
/// Files of one function version.
pub const BUNDLE_FILES_MAX: usize = 1_000;
/// Length of a file's path within a bundle.
pub const BUNDLE_PATH_BYTES_MAX: usize = 512;
/// Code up to this size is kept inside the version's record, above it as an artifact (DynamoDB items end at 400 KB).
pub const CODE_INLINE_BYTES_MAX: usize = 64 * 1024;
/// Direct dependencies of one function.
pub const DEPENDENCIES_MAX: usize = 100;
/// Entries of `env` and of `secrets`, each.
pub const ENV_ENTRIES_MAX: usize = 100;
/// A name in `env` or `secrets`.
pub const ENV_NAME_BYTES_MAX: usize = 256;
/// A value in `env` or `secrets`.
pub const ENV_VALUE_BYTES_MAX: usize = 32 * 1024;
/// All of `env` and `secrets` of one version together.
pub const ENV_TOTAL_BYTES_MAX: usize = 128 * 1024;
/// Shortest deadline of an invocation.
pub const TIMEOUT_MS_MIN: u64 = 10;
/// Default deadline of an invocation.
pub const TIMEOUT_MS_DEFAULT: u64 = 30_000;
/// Longest deadline of an invocation.
pub const TIMEOUT_MS_MAX: u64 = 900_000;
/// Smallest memory of a container; Node does not start below it.
pub const MEMORY_MB_MIN: u64 = 64;
/// Default memory of a container.
pub const MEMORY_MB_DEFAULT: u64 = 256;
/// Largest memory of a container.
pub const MEMORY_MB_MAX: u64 = 4_096;
/// Default number of requests that one container serves at once.
pub const CONCURRENCY_DEFAULT: u32 = 1_000;
/// Largest number of requests that one container serves at once.
pub const CONCURRENCY_MAX: u32 = 10_000;
/// Default page of a list.
pub const PAGE_DEFAULT: usize = 100;
/// Largest page of a list.
pub const PAGE_MAX: usize = 1_000;
/// One document of a function's `context.storage`.
pub const STORAGE_DOCUMENT_BYTES_MAX: usize = 500 * 1024;
/// Versions kept per function; the oldest that is not live goes first.
pub const VERSIONS_KEPT_MAX: usize = 100;
/// One line of a function's log; longer ones are cut.
pub const LOG_LINE_BYTES_MAX: usize = 16 * 1024;
/// One message of the control protocol.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// How long a build that will not work by itself is told to be so at once; afterwards somebody's asking tries it again.
pub const BUILD_FAILURE_KEPT_S: u64 = 600;
