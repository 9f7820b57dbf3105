//! The page, by its structure: whole, self-contained, and the same for every reader. How it looks is checked by eye in a browser.

use crate::{
    call_urls,
    stub::{Reply, Stub},
};
use hearth_loadtest::report;
use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Elements of HTML that need no end.
const OPEN_ENDED: [&str; 9] = ["meta", "html", "p", "tr", "td", "th", "li", "br", "!doctype"];

/// Every element that must be closed is closed, in order; gives all elements' names.
fn elements(html: &str) -> Vec<String> {
    let (mut open, mut seen) = (Vec::<String>::new(), Vec::new());
    let mut rest = html;
    while let Some(start) = rest.find('<') {
        rest = &rest[start + 1..];
        let end = rest.find('>').expect("a tag ends");
        let tag = &rest[..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            if !OPEN_ENDED.contains(&name) {
                assert_eq!(open.pop().as_deref(), Some(name), "closed where something else is open");
            }
            continue;
        }
        let name = tag.split([' ', '/']).next().unwrap_or("").to_owned();
        if !tag.ends_with('/') && !OPEN_ENDED.contains(&name.as_str()) {
            open.push(name.clone());
        }
        seen.push(name);
    }
    assert!(open.is_empty(), "never closed: {open:?}");
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_is_whole_and_needs_nothing_from_elsewhere() {
    let count = AtomicUsize::new(0);
    let stub = Stub::start(move |_| match count.fetch_add(1, Ordering::Relaxed) % 10 {
        0 => Reply::status(200, "hearth-start: cold\r\nhearth-node: <b>n1</b>\r\nserver-timing: claim;dur=3\r\n"),
        1 => Reply::problem(503, "platform", "<script>alert(1)</script>"),
        2 => Reply::Reset,
        n => Reply::status(200, if n % 2 == 0 { "hearth-start: warm\r\nhearth-node: n2\r\n" } else { "hearth-start: warm\r\n" }),
    });
    let dir = tempfile::tempdir().unwrap();
    let urls: Vec<String> = (0..3).map(|n| stub.url(&format!("/{n}"))).collect();
    let flags = ["--rate", "300", "--duration", "2s", "--fault", "at=1s,name=<i>mark</i>,cmd=true", "--max-lag", "5s"];
    let (_, result) = call_urls(dir.path(), &urls, &flags).await;
    let html = report::page(&result);

    assert!(html.starts_with("<!doctype html>") && html.trim_end().ends_with("</html>"));
    let seen = elements(&html);
    let plots = seen.iter().filter(|n| *n == "svg").count();
    assert!(plots >= 7, "latency, percentiles, cold and warm, rate, errors, nodes, in flight: {plots}");
    for absent in ["script", "link", "img", "iframe", "b>n1", "i>mark"] {
        assert!(!seen.iter().any(|n| n == absent), "{absent} in the page");
    }
    for absent in ["href=", "src=", "url(", "@import", "NaN", "inf ", "<script"] {
        assert!(!html.contains(absent), "{absent:?} in the page");
    }
    assert!(html.contains("&lt;script&gt;"), "what the target said is text");
    assert!(html.contains("&lt;i&gt;mark&lt;/i&gt;"), "the fault is marked");
    for present in ["prefers-color-scheme:dark", "@media print", "role=img aria-label=", "charset=utf-8", "lang=en"] {
        assert!(html.contains(present), "{present} is missing");
    }
    // Every colour that is used has a value in the light and in the dark palette, and on paper.
    let used: BTreeSet<&str> = html.split("var(--").skip(1).filter_map(|t| t.split(')').next()).collect();
    for name in used {
        assert_eq!(html.matches(&format!("--{name}:")).count(), 3, "--{name} has no value in one of the palettes");
    }
    // Every number that places something lies on its drawing.
    for value in html.split(" cx=").skip(1).filter_map(|t| t.split(' ').next()) {
        let x: f64 = value.parse().expect("a number");
        assert!((0.0..=1_000.0).contains(&x), "{x}");
    }
    assert!(html.len() < 2_000_000, "{} bytes", html.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_without_a_single_answer_has_a_page_too() {
    let stub = Stub::start(|_| Reply::Close);
    let dir = tempfile::tempdir().unwrap();
    let (_, result) = call_urls(dir.path(), &[stub.url("/")], &["--rate", "20", "--duration", "1s"]).await;
    elements(&report::page(&result));
    assert!(report::table(&result).contains("20 lost"));
}
