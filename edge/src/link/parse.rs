//! Reading what comes over a link: frames, the heads of answers, and the calls of routers.

use bytes::{Buf, Bytes};
use hearth_model::{limits, protocol::link as frames};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, StatusCode, Uri};
use std::fmt;

/// Headers of a router's call: a client's and the router's own.
const CALL_HEADERS_MAX: usize = 2 * limits::REQUEST_HEADERS_MAX;

/// What may not be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed(&'static str);

impl Malformed {
    pub(super) const fn new(what: &'static str) -> Self {
        Self(what)
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

pub(super) const UNKNOWN: Malformed = Malformed("a frame that fits no rule");

/// One frame.
#[derive(Debug, PartialEq, Eq)]
pub struct RawFrame<'a> {
    pub(super) exchange: u32,
    pub(super) kind: u8,
    pub(super) payload: &'a [u8],
}

/// The first frame of `bytes` and what it takes of them; none while it is not whole.
///
/// # Errors
/// A payload over its limit.
pub fn first_frame(bytes: &[u8]) -> Result<Option<(RawFrame<'_>, usize)>, Malformed> {
    let Some((mut header, rest)) = bytes.split_at_checked(frames::HEADER_BYTES) else { return Ok(None) };
    let length = header.get_u32_le() as usize;
    if length > frames::PAYLOAD_BYTES_MAX {
        return Err(Malformed("a frame over its limit"));
    }
    let Some(payload) = rest.get(..length) else { return Ok(None) };
    let (exchange, kind) = (header.get_u32_le(), header.get_u8());
    Ok(Some((RawFrame { exchange, kind, payload }, frames::HEADER_BYTES + length)))
}

/// How large an answer's head may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AnswerLimits {
    /// Number of headers.
    pub headers: usize,
    /// Bytes of names and values, with one after each.
    pub head_bytes: usize,
}

impl AnswerLimits {
    /// What a function may answer.
    pub const RUNTIME: Self = Self { headers: limits::RESPONSE_HEADERS_MAX, head_bytes: limits::RESPONSE_HEADER_BYTES_MAX };
    /// What a node may make of that.
    pub const NODE: Self =
        Self { headers: 2 * limits::RESPONSE_HEADERS_MAX, head_bytes: limits::RESPONSE_HEADER_BYTES_MAX + 32 * 1024 };
}

/// The head of an answer and the body that came with it.
#[derive(Debug)]
pub struct Answer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) whole: bool,
    pub(super) body: Bytes,
}

/// Reads the payload of an answer: whether it is whole, and the answer or what is wrong with its head, which concerns its exchange alone.
///
/// # Errors
/// When the payload contradicts itself.
pub fn parse_answer(payload: &[u8], limits: &AnswerLimits) -> Result<(bool, Result<Answer, Malformed>), Malformed> {
    const SHORT: Malformed = Malformed("an answer that is too short");
    let (mut fixed, rest) = payload.split_at_checked(7).ok_or(SHORT)?;
    let (status, whole, head) = (fixed.get_u16_le(), fixed.get_u8(), fixed.get_u32_le() as usize);
    // Copied, so that a small answer that waits for its client does not hold what was read with it.
    let mut body = Bytes::copy_from_slice(rest);
    if head > body.len() || whole > 1 {
        return Err(SHORT);
    }
    let (whole, head) = (whole == 1, body.split_to(head));
    if !whole && !body.is_empty() {
        return Err(Malformed("a body before its window"));
    }
    Ok((whole, parse_head(status, &head, limits).map(|(status, headers)| Answer { status, headers, whole, body })))
}

fn parse_head(status: u16, head: &Bytes, limits: &AnswerLimits) -> Result<(StatusCode, HeaderMap), Malformed> {
    let status = StatusCode::from_u16(status).map_err(|_| Malformed("a status that is none"))?;
    if !(200..600).contains(&status.as_u16()) {
        return Err(Malformed("a status that is no answer's"));
    }
    if head.len() > limits.head_bytes {
        return Err(Malformed("headers over their limit"));
    }
    let fields = (!head.is_empty()).then(|| head.split(|b| *b == b'\n'));
    Ok((status, parse_headers(head, fields.into_iter().flatten(), limits.headers)?))
}

fn parse_headers<'a>(head: &Bytes, mut fields: impl Iterator<Item = &'a [u8]>, max: usize) -> Result<HeaderMap, Malformed> {
    let mut headers = HeaderMap::new();
    while let Some(name) = fields.next() {
        let value = fields.next().ok_or(Malformed("a header without a value"))?;
        if headers.len() >= max {
            return Err(Malformed("too many headers"));
        }
        let name = HeaderName::from_bytes(name).map_err(|_| Malformed("a header's name that is none"))?;
        let value = HeaderValue::from_maybe_shared(head.slice_ref(trimmed(value)))
            .map_err(|_| Malformed("a header's value that is none"))?;
        headers.append(name, value);
    }
    Ok(headers)
}

/// Reads the payload of a router's call.
///
/// # Errors
/// When it is no request: routers are ours, so that this ends the link.
pub fn parse_call(payload: &[u8]) -> Result<Request<Bytes>, Malformed> {
    const SHORT: Malformed = Malformed("a call that is too short");
    let (mut fixed, rest) = payload.split_at_checked(4).ok_or(SHORT)?;
    let head = fixed.get_u32_le() as usize;
    let mut body = Bytes::copy_from_slice(rest);
    if head > body.len() {
        return Err(SHORT);
    }
    let head = body.split_to(head);
    let mut fields = head.split(|b| *b == b'\n');
    let (Some(method), Some(target)) = (fields.next(), fields.next()) else { return Err(SHORT) };
    let mut request = Request::new(body);
    *request.method_mut() = Method::from_bytes(method).map_err(|_| Malformed("a method that is none"))?;
    *request.uri_mut() = Uri::from_maybe_shared(head.slice_ref(target)).map_err(|_| Malformed("a target that is none"))?;
    *request.headers_mut() = parse_headers(&head, fields, CALL_HEADERS_MAX)?;
    Ok(request)
}

/// Without the white space around it that no value has (RFC 9110, 5.5).
fn trimmed(value: &[u8]) -> &[u8] {
    let is_space = |b: &u8| matches!(b, b' ' | b'\t');
    let start = value.iter().position(|b| !is_space(b)).unwrap_or(value.len());
    let end = value.iter().rposition(|b| !is_space(b)).map_or(start, |last| last + 1);
    &value[start..end]
}
