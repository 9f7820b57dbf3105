//! Header rewriting between client and function: what is hop-by-hop or the platform's own is taken out first, what the platform
//! vouches for is put in last. The same on routers and nodes.

use hearth_model::{header as names, limits};
use http::{
    HeaderMap, HeaderName, HeaderValue,
    header::{CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, FORWARDED, HOST, TE, TRAILER, TRANSFER_ENCODING, UPGRADE},
};
use std::net::IpAddr;

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");
const PROXY_AUTHENTICATE: HeaderName = HeaderName::from_static("proxy-authenticate");
const PROXY_AUTHORIZATION: HeaderName = HeaderName::from_static("proxy-authorization");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// Which header limit a request breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Oversize {
    /// So many headers.
    Count(usize),
    /// So many bytes of headers.
    Bytes(usize),
}

impl std::fmt::Display for Oversize {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Count(n) => write!(f, "{n} headers, {} are allowed", limits::REQUEST_HEADERS_MAX),
            Self::Bytes(n) => write!(f, "{n} bytes of headers, {} are allowed", limits::REQUEST_HEADER_BYTES_MAX),
        }
    }
}

/// A content-length that is no number, or several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnclearLength;

/// What a head says of its body's length.
///
/// # Errors
/// [`UnclearLength`].
pub fn said_length(headers: &HeaderMap) -> Result<Option<u64>, UnclearLength> {
    let mut said = headers.get_all(CONTENT_LENGTH).iter();
    let Some(first) = said.next() else { return Ok(None) };
    let digits = first.to_str().ok().filter(|text| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()));
    match digits.and_then(|text| text.parse().ok()) {
        Some(bytes) if said.all(|again| again == first) => Ok(Some(bytes)),
        _ => Err(UnclearLength),
    }
}

/// Leaves one content-length that is a number, or none.
pub fn settle_length(headers: &mut HeaderMap) {
    match said_length(headers) {
        Ok(None) => {}
        // Once, though it may have been said twice.
        Ok(Some(bytes)) => drop(headers.insert(CONTENT_LENGTH, bytes.into())),
        Err(UnclearLength) => drop(headers.remove(CONTENT_LENGTH)),
    }
}

/// Checks number and size of the headers.
///
/// # Errors
/// [`Oversize`] says which limit is broken.
pub fn check_size(headers: &HeaderMap) -> Result<(), Oversize> {
    if headers.len() > limits::REQUEST_HEADERS_MAX {
        return Err(Oversize::Count(headers.len()));
    }
    let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 4).sum();
    if bytes > limits::REQUEST_HEADER_BYTES_MAX { Err(Oversize::Bytes(bytes)) } else { Ok(()) }
}

/// Whether two framings contradict each other, which is how requests are smuggled (RFC 9112, 6.3), or a body has a coding that is not taken
/// off here. An HTTP/1 listener refuses most of these before (`framing`); what it lets pass, and HTTP/2, ends here.
pub fn ambiguous_framing(headers: &HeaderMap, version: http::Version) -> bool {
    let mut codings = headers.get_all(TRANSFER_ENCODING).iter();
    let coding = codings.next();
    coding.is_some_and(|c| {
        !c.as_bytes().eq_ignore_ascii_case(b"chunked")
            || codings.next().is_some()
            || headers.contains_key(CONTENT_LENGTH)
            || version < http::Version::HTTP_11
    }) || headers.get_all(CONTENT_LENGTH).iter().count() > 1
}

/// Whether the client asks to upgrade the connection.
pub fn wants_upgrade(headers: &HeaderMap) -> bool {
    headers.contains_key(UPGRADE)
        && headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .any(|v| v.split(',').any(|token| token.trim().eq_ignore_ascii_case("upgrade")))
}

/// Whether a request names its host as HTTP requires: HTTP/1.1 exactly once, HTTP/2 by its authority, HTTP/1.0 as it likes.
pub fn host_is_clear(headers: &HeaderMap, uri: &http::Uri, version: http::Version) -> bool {
    match (version, headers.get_all(HOST).iter().count()) {
        (http::Version::HTTP_11, n) => n == 1,
        (http::Version::HTTP_2, n) => n <= 1 && (n == 1 || uri.authority().is_some()),
        (_, n) => n <= 1,
    }
}

/// Makes an HTTP/2 request's headers those of an HTTP/1.1 request: its authority is its host, and the crumbs of its cookie are one
/// (RFC 9113, 8.2.3).
pub fn from_http2(headers: &mut HeaderMap, uri: &http::Uri) {
    if let Some(authority) = uri.authority()
        && let Ok(host) = HeaderValue::from_str(authority.as_str())
    {
        headers.insert(HOST, host);
    }
    if headers.get_all(COOKIE).iter().nth(1).is_some() {
        let crumbs: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if let Ok(cookie) = HeaderValue::from_bytes(&crumbs.join(&b"; "[..])) {
            headers.insert(COOKIE, cookie);
        }
    }
}

/// Takes out what concerns one hop only, what a `Connection` header nominates, and everything of the platform's own.
pub fn strip(headers: &mut HeaderMap) {
    strip_hop(headers);
    if headers.keys().any(|name| name.as_str().starts_with(names::PREFIX)) {
        let own: Vec<HeaderName> = headers.keys().filter(|name| name.as_str().starts_with(names::PREFIX)).cloned().collect();
        for name in own {
            headers.remove(name);
        }
    }
}

/// Takes out what concerns one hop only and what a `Connection` header nominates: enough for what comes from another role of
/// Hearth, which has already taken out the rest.
pub fn strip_hop(headers: &mut HeaderMap) {
    if headers.contains_key(CONNECTION) {
        let nominated: Vec<HeaderName> = headers
            .get_all(CONNECTION)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .filter_map(|token| token.trim().parse().ok())
            // A client cannot take these away from the function by nominating them.
            .filter(|name: &HeaderName| *name != HOST && *name != CONTENT_LENGTH)
            .collect();
        for name in nominated {
            headers.remove(name);
        }
        headers.remove(CONNECTION);
    }
    for name in [TRANSFER_ENCODING, UPGRADE, TE, TRAILER, KEEP_ALIVE, PROXY_CONNECTION, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION] {
        headers.remove(name);
    }
}

/// Who called, as far as this edge can know.
pub fn client_ip(headers: &HeaderMap, peer: IpAddr, trust_forwarded_for: bool) -> IpAddr {
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

/// Puts in who called. A load balancer in front is believed to have said so already.
pub fn add_forwarded(headers: &mut HeaderMap, client: &HeaderValue, proto: &'static str, trust_forwarded: bool) {
    // We have answered `expect: 100-continue` ourselves by reading the body.
    headers.remove(EXPECT);
    if trust_forwarded {
        headers.entry(X_FORWARDED_FOR).or_insert_with(|| client.clone());
        headers.entry(X_FORWARDED_PROTO).or_insert(HeaderValue::from_static(proto));
    } else {
        headers.insert(X_FORWARDED_FOR, client.clone());
        headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
        headers.remove(X_FORWARDED_HOST);
        headers.remove(FORWARDED);
    }
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
    fn one_length_that_is_a_number_is_left_or_none() {
        let all: [(&[&str], Option<&str>); 6] =
            [(&[], None), (&["5"], Some("5")), (&["5", "5"], Some("5")), (&["5", "6"], None), (&["5, 5"], None), (&["abc"], None)];
        for (said, left) in all {
            let mut headers = map(&said.iter().map(|s| ("content-length", *s)).collect::<Vec<_>>());
            settle_length(&mut headers);
            let lengths: Vec<_> = headers.get_all(CONTENT_LENGTH).iter().map(|v| v.to_str().unwrap()).collect();
            assert_eq!(lengths, left.into_iter().collect::<Vec<_>>(), "{said:?}");
        }
    }

    #[test]
    fn a_client_cannot_remove_what_the_platform_adds() {
        let mut headers =
            map(&[("connection", "hearth-call, x-forwarded-for, x-secret"), ("hearth-call", "forged"), ("x-secret", "1")]);
        strip(&mut headers);
        add_forwarded(&mut headers, &HeaderValue::from_static("1.2.3.4"), "http", false);
        headers.insert(names::CALL, HeaderValue::from_static("real"));
        assert_eq!(headers.get_all("hearth-call").iter().collect::<Vec<_>>(), ["real"]);
        assert_eq!(headers["x-forwarded-for"], "1.2.3.4");
        assert!(!headers.contains_key("x-secret") && !headers.contains_key("connection"));
    }

    #[test]
    fn framing_that_contradicts_itself_is_seen() {
        assert!(ambiguous_framing(&map(&[("content-length", "1"), ("transfer-encoding", "chunked")]), http::Version::HTTP_11));
        assert!(ambiguous_framing(&map(&[("transfer-encoding", "chunked")]), http::Version::HTTP_10));
        assert!(ambiguous_framing(&map(&[("content-length", "1"), ("content-length", "1")]), http::Version::HTTP_11));
        assert!(ambiguous_framing(
            &map(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]),
            http::Version::HTTP_11
        ));
        for coding in ["gzip, chunked", "chunked, chunked", "identity", ""] {
            assert!(ambiguous_framing(&map(&[("transfer-encoding", coding)]), http::Version::HTTP_11), "{coding}");
        }
        assert!(!ambiguous_framing(&map(&[("transfer-encoding", "Chunked")]), http::Version::HTTP_11));
    }

    #[test]
    fn a_request_of_http2_becomes_one_of_http1() {
        let uri: http::Uri = "https://example.test/x".parse().unwrap();
        let mut headers = map(&[("cookie", "a=1"), ("cookie", "b=2"), ("host", "other.test")]);
        from_http2(&mut headers, &uri);
        assert_eq!(headers["host"], "example.test");
        assert_eq!(headers.get_all("cookie").iter().collect::<Vec<_>>(), ["a=1; b=2"]);
    }

    #[test]
    fn hosts_are_named_once() {
        let uri: http::Uri = "/x".parse().unwrap();
        assert!(host_is_clear(&map(&[("host", "a")]), &uri, http::Version::HTTP_11));
        assert!(!host_is_clear(&map(&[]), &uri, http::Version::HTTP_11));
        assert!(!host_is_clear(&map(&[("host", "a"), ("host", "b")]), &uri, http::Version::HTTP_11));
        assert!(host_is_clear(&map(&[]), &uri, http::Version::HTTP_10));
        assert!(!host_is_clear(&map(&[]), &uri, http::Version::HTTP_2));
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

    /// Every header that we vouch for, and the names that a client may try to smuggle past us.
    const OURS: [&str; 6] =
        ["hearth-call", "hearth-request-id", "hearth-spread", "x-forwarded-for", "x-forwarded-proto", "hearth-node"];

    proptest! {
        #[test]
        fn what_we_add_stays_as_we_add_it_whatever_is_nominated(
            nominated in prop::collection::vec(0..OURS.len(), 0..8), forged in prop::collection::vec(0..OURS.len(), 0..8),
            junk in "[ -~]{0,30}",
        ) {
            let mut headers = HeaderMap::new();
            for n in nominated {
                headers.append(CONNECTION, HeaderValue::from_static(OURS[n]));
            }
            if let Ok(junk) = HeaderValue::from_str(&junk) {
                headers.append(CONNECTION, junk);
            }
            for n in forged {
                headers.append(OURS[n], HeaderValue::from_static("forged"));
            }
            strip(&mut headers);
            add_forwarded(&mut headers, &HeaderValue::from_static("1.2.3.4"), "https", false);
            headers.insert(names::REQUEST_ID, HeaderValue::from_static("real"));
            prop_assert!(headers.iter().all(|(_, value)| value != "forged"));
            prop_assert_eq!(headers.get_all("x-forwarded-for").iter().collect::<Vec<_>>(), ["1.2.3.4"]);
            prop_assert_eq!(headers.get_all("hearth-request-id").iter().collect::<Vec<_>>(), ["real"]);
        }

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
