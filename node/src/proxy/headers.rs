//! Header rewriting between client and function: what is hop-by-hop or the platform's own is taken out first, what the platform
//! vouches for is put in last.

use hearth_model::{header as names, limits};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, CONTENT_LENGTH, EXPECT, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
};
use std::net::IpAddr;

const CALL: HeaderName = HeaderName::from_static(names::CALL);
const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHENTICATE: HeaderName = HeaderName::from_static("proxy-authenticate");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Which header limit a request breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Oversize {
    Count(usize),
    Bytes(usize),
}

/// Checks number and size of the headers.
pub(super) fn check_size(headers: &HeaderMap) -> Result<(), Oversize> {
    if headers.len() > limits::REQUEST_HEADERS_MAX {
        return Err(Oversize::Count(headers.len()));
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if bytes > limits::REQUEST_HEADER_BYTES_MAX { Err(Oversize::Bytes(bytes)) } else { Ok(()) }
}

/// Whether two framings contradict each other, which is how requests are smuggled (RFC 9112, 6.3).
pub(super) fn ambiguous_framing(headers: &HeaderMap, version: http::Version) -> bool {
    let chunked = headers.contains_key(TRANSFER_ENCODING);
    chunked && (headers.contains_key(CONTENT_LENGTH) || version < http::Version::HTTP_11)
        || headers.get_all(CONTENT_LENGTH).iter().count() > 1
}

/// Whether the client asks to upgrade the connection.
pub(super) fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(|v| v.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")))
}

/// Takes out what concerns one hop only, what a `Connection` header nominates, and everything of the platform's own.
pub(super) fn strip(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let nominated: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|token| token.trim().parse().ok())
            // A client cannot take these away from the function by nominating them.
            .filter(|name: &HeaderName| *name != http::header::HOST && *name != CONTENT_LENGTH)
            .collect();
        for name in nominated {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [TRANSFER_ENCODING, UPGRADE, TE, TRAILER, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION] {
        headers.remove(name);
    }
    if headers.keys().any(|name| name.as_str().starts_with(names::PREFIX)) {
        let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(names::PREFIX)).cloned().collect();
        for name in own {
            headers.remove(name);
        }
    }
}

/// Who called, as far as this edge can know.
pub(super) fn client_ip(headers: &HeaderMap, peer: IpAddr, trust_forwarded_for: bool) -> IpAddr {
    if !trust_forwarded_for {
        return peer;
    }
    headers
        .get_all(&X_FORWARDED_FOR)
        .iter()
        .next_back()
        .and_then(|v| v.to_str().ok())
        .and_then(|v| v.rsplit(',').next())
        .and_then(|v| v.trim().parse().ok())
        .unwrap_or(peer)
}

/// Puts in what the platform vouches for.
pub(super) fn add_trusted(headers: &mut HeaderMap, call: HeaderValue, client: &HeaderValue, trust_forwarded: bool) {
    headers.remove(EXPECT);
    if trust_forwarded {
        headers.entry(X_FORWARDED_FOR).or_insert_with(|| client.clone());
        headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static("http"));
    } else {
        headers.insert(X_FORWARDED_FOR, client.clone());
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static("http"));
        headers.remove(X_FORWARDED_HOST);
    }
    headers.insert(CALL, call);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn map(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn a_client_cannot_remove_what_the_platform_adds() {
        let mut headers =
            map(&[("connection", "hearth-call, x-forwarded-for, x-secret"), ("hearth-call", "forged"), ("x-secret", "1")]);
        strip(&mut headers);
        add_trusted(&mut headers, HeaderValue::from_static("real"), &HeaderValue::from_static("1.2.3.4"), false);
        assert_eq!(headers.get_all("hearth-call").iter().collect::<Vec<_>>(), ["real"]);
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4");
        assert!(!headers.contains_key("x-secret") && !headers.contains_key("connection"));
    }

    #[test]
    fn framing_that_contradicts_itself_is_seen() {
        assert!(ambiguous_framing(&map(&[("content-length", "1"), ("transfer-encoding", "chunked")]), http::Version::HTTP_11));
        assert!(ambiguous_framing(&map(&[("transfer-encoding", "chunked")]), http::Version::HTTP_10));
        assert!(ambiguous_framing(&map(&[("content-length", "1"), ("content-length", "1")]), http::Version::HTTP_11));
        assert!(!ambiguous_framing(&map(&[("transfer-encoding", "chunked")]), http::Version::HTTP_11));
    }

    #[test]
    fn header_bounds() {
        let mut headers = HeaderMap::new();
        for n in 0..limits::REQUEST_HEADERS_MAX {
            headers.insert(format!("x-{n}").parse::<HeaderName>().unwrap(), HeaderValue::from_static("v"));
        }
        assert_eq!(check_size(&headers), Ok(()));
        headers.insert("one-more", HeaderValue::from_static("v"));
        assert!(matches!(check_size(&headers), Err(Oversize::Count(_))));
        let fits = limits::REQUEST_HEADER_BYTES_MAX - 1 - 4;
        assert_eq!(check_size(&map(&[("a", &"v".repeat(fits))])), Ok(()));
        assert!(matches!(check_size(&map(&[("a", &"v".repeat(fits + 1))])), Err(Oversize::Bytes(_))));
    }

    proptest! {
        #[test]
        fn nothing_of_the_platforms_own_passes(pairs in prop::collection::vec(("(hearth-)?[a-z-]{1,12}", "[ -~]{0,20}"), 0..20)) {
            let mut headers = HeaderMap::new();
            for (name, value) in &pairs {
                if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), value.parse::<HeaderValue>()) {
                    headers.append(name, value);
                }
            }
            strip(&mut headers);
            prop_assert!(headers.keys().all(|name| !name.as_str().starts_with("hearth-")));
            prop_assert!(!headers.contains_key("connection") && !headers.contains_key("transfer-encoding"));
        }
    }
}
