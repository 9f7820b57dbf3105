//! What people see: tables, lines of output, the state of a node.

use super::http::Client;
use anyhow::Result;
use futures_util::StreamExt;
use hearth_model::ContainerPath;
use serde_json::Value;
use std::{
    collections::HashMap,
    io::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub fn json(value: &Value) -> Result<()> {
    Ok(writeln!(std::io::stdout(), "{}", plain_json(&serde_json::to_string_pretty(value)?))?)
}

/// The same JSON with the controls escaped that JSON lets pass; those below U+0020 it escapes itself.
fn plain_json(json: &str) -> String {
    let escaped = |c: char| if ('\u{7f}'..='\u{9f}').contains(&c) { format!("\\u{:04x}", u32::from(c)) } else { c.to_string() };
    json.chars().map(escaped).collect()
}

/// Text of a tenant or an npm module for a terminal: what would move its cursor, change its title or begin a line of its own is shown as an
/// escape (`\u{1b}`).
pub fn printable_line(text: &str) -> String {
    let is_plain = |c: char| c == '\t' || !c.is_control() && !matches!(c, '\u{2028}' | '\u{2029}');
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_plain(c) { shown.push(c) } else { shown.extend(c.escape_default()) }
    }
    shown
}

/// The same of text that may have several lines, each of which stays one.
pub fn printable(text: &str) -> String {
    text.lines().map(printable_line).collect::<Vec<_>>().join("\n")
}

/// One line for people, the whole value for programs.
pub fn done(value: &Value, as_json: bool, line: &str) -> Result<()> {
    if as_json { json(value) } else { Ok(writeln!(std::io::stdout(), "{line}")?) }
}

/// A table of some of the items' fields; a column that nobody has is left out.
pub fn table(items: &[Value], as_json: bool, columns: &[&str]) -> Result<()> {
    if as_json {
        return json(&Value::Array(items.to_vec()));
    }
    let columns: Vec<&str> = columns.iter().copied().filter(|c| items.iter().any(|i| !find(i, c).is_null())).collect();
    let rows: Vec<Vec<String>> = items.iter().map(|item| columns.iter().map(|c| cell(c, find(item, c))).collect()).collect();
    let width = |at: usize| rows.iter().map(|r| r[at].chars().count()).chain([columns[at].len()]).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut out = std::io::stdout().lock();
    let line = |cells: Vec<String>| {
        let padded: Vec<String> = cells.iter().zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        padded.join("  ").trim_end().to_owned()
    };
    if items.is_empty() {
        eprintln!("(none)");
        return Ok(());
    }
    writeln!(out, "{}", line(columns.iter().map(|c| c.to_uppercase()).collect()))?;
    for row in rows {
        writeln!(out, "{}", line(row))?;
    }
    Ok(())
}

fn find<'a>(item: &'a Value, column: &str) -> &'a Value {
    match &item[column] {
        Value::Null => &item["artifact"][column],
        value => value,
    }
}

fn cell(column: &str, value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Number(n) if column.ends_with("_at") => time(n.as_u64().unwrap_or(0)),
        Value::Number(n) if column.ends_with("_bytes") => bytes(n.as_u64().unwrap_or(0)),
        Value::String(text) => printable_line(&text.chars().take(100).collect::<String>()),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
        other => other.to_string(),
    }
}

fn bytes(n: u64) -> String {
    bytesize::ByteSize::b(n).to_string()
}

/// How long ago.
fn time(at_ms: u64) -> String {
    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_millis() as u64);
    let ago_s = now_ms.saturating_sub(at_ms) / 1_000;
    match ago_s {
        0..60 => format!("{ago_s} s ago"),
        60..3_600 => format!("{} min ago", ago_s / 60),
        3_600..86_400 => format!("{} h ago", ago_s / 3_600),
        _ => format!("{} d ago", ago_s / 86_400),
    }
}

/// A container's output. When the connection ends while following, it is opened again.
pub async fn logs(client: &Client, path: &ContainerPath, follow: bool, as_json: bool) -> Result<()> {
    let url = format!("/v1/tenants/{}/containers/{}/logs?follow={follow}", path.tenant, path.container);
    let mut last_at = HashMap::new();
    loop {
        let response = client.perform(client.request(reqwest::Method::GET, &url)).await?;
        if response.status().as_u16() >= 400 {
            return client.value(response).await.map(|_| ());
        }
        let mut chunks = response.bytes_stream();
        let mut rest = Vec::new();
        while let Some(Ok(chunk)) = chunks.next().await {
            // A chunk may end within a character.
            rest.extend_from_slice(&chunk);
            while let Some(end) = rest.windows(2).position(|pair| pair == b"\n\n") {
                let event: Vec<u8> = rest.drain(..end + 2).collect();
                print_event(&String::from_utf8_lossy(&event), as_json, &mut last_at)?;
            }
        }
        if !follow {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

fn print_event(event: &str, as_json: bool, last_at: &mut HashMap<String, u64>) -> Result<()> {
    let field = |name: &str| event.lines().find_map(|l| l.strip_prefix(name)).map(str::trim);
    let Some(data) = field("data:") else { return Ok(()) };
    let mut out = std::io::stdout().lock();
    if field("event:") == Some("dropped") {
        eprintln!("({data} lines were lost)");
        return Ok(());
    }
    let line: Value = serde_json::from_str(data).unwrap_or_default();
    let at = line["at"].as_u64().unwrap_or(0);
    // After a reconnection the kept lines come again; each node's clock is its own.
    let last_at = last_at.entry(line["node"].as_str().unwrap_or_default().to_owned()).or_default();
    if at < *last_at {
        return Ok(());
    }
    *last_at = at;
    if as_json {
        writeln!(out, "{}", plain_json(&line.to_string()))?;
    } else {
        let text = |name: &str| line[name].as_str().unwrap_or("-");
        let version = line["version"].as_u64().map(|v| format!("@{v}")).unwrap_or_default();
        writeln!(out, "{:>9} {:<5} {}{version} {}", time(at), text("level"), text("function"), printable_line(text("line")))?;
    }
    Ok(out.flush()?)
}

/// What a node says of itself, on one screen.
pub fn status(value: &Value, as_json: bool) -> Result<()> {
    if as_json {
        return json(value);
    }
    let mut out = std::io::stdout().lock();
    let n = |pointer: &str| {
        value.pointer(pointer).map_or_else(|| "-".into(), |v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    };
    let b = |pointer: &str| bytes(value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0));
    writeln!(out, "hearth {}, up {} s, {}", n("/version"), n("/uptime_s"), n("/engine"))?;
    writeln!(
        out,
        "pool        {} of {} ({} prepared, {} preloaded, {} being made); {} made, {} failed",
        n("/handler/pool/level"),
        n("/handler/pool/target"),
        n("/handler/pool/prepared"),
        n("/handler/pool/preloaded"),
        n("/handler/pool/creating"),
        n("/handler/pool/refills"),
        n("/handler/pool/refill_failures")
    )?;
    writeln!(
        out,
        "containers  {} running ({} of them on background CPUs{}), {} frozen, {} of memory; claims {} from the pool, {} made on demand; {} adopted; {} requests wait",
        n("/handler/containers/running"),
        n("/handler/containers/background"),
        if value["handler"]["containers"]["requests_apart"] == true { ", requests kept to the others" } else { "" },
        n("/handler/containers/frozen"),
        b("/handler/memory_bytes"),
        n("/handler/claims/pooled"),
        n("/handler/claims/created"),
        n("/handler/adopted"),
        n("/handler/waiting")
    )?;
    writeln!(
        out,
        "ended       {} idle, {} for memory, {} crashed, {} out of memory, {} stuck, {} retired",
        n("/handler/ended/idle"),
        n("/handler/ended/memory"),
        n("/handler/ended/crashed"),
        n("/handler/ended/out_of_memory"),
        n("/handler/ended/stuck"),
        n("/handler/ended/retired")
    )?;
    writeln!(
        out,
        "modules     {} artifacts, {} of {}; {} mounts ({}); {} fetched, {} refused, {} evicted",
        n("/modules/artifacts"),
        b("/modules/bytes"),
        b("/modules/bytes_max"),
        n("/modules/mounts"),
        n("/modules/mode"),
        n("/modules/fetches"),
        n("/modules/refused"),
        n("/modules/evictions")
    )?;
    for warning in value["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        writeln!(out, "warning     {warning}")?;
    }
    drop(out);
    cluster(&value["cluster"])?;
    table(
        value.pointer("/handler/list").and_then(Value::as_array).map_or(&[], Vec::as_slice),
        false,
        &["path", "slot", "state", "in_flight", "idle_ms", "loaded"],
    )
}

/// The cluster as the node that answered knows it.
fn cluster(value: &Value) -> Result<()> {
    if value.is_null() {
        return Ok(());
    }
    let mut out = std::io::stdout().lock();
    let text = |pointer: &str| {
        value.pointer(pointer).map_or_else(|| "-".into(), |v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    };
    let stale = if value["table"]["stale"] == true { ", stale: etcd is away" } else { "" };
    writeln!(
        out,
        "cluster     {} answers; table at revision {}, {} ms old{stale}; {} exceptions (generation {})\n",
        text("/node"),
        text("/table/revision"),
        text("/table/age_ms"),
        text("/table/exceptions"),
        text("/table/generation")
    )?;
    drop(out);
    let list = |name: &str| value[name].as_array().map_or(&[] as &[Value], Vec::as_slice);
    table(
        list("nodes"),
        false,
        &["name", "zone", "state", "data_addr", "capacity", "containers", "in_flight", "rate_per_s", "memory_bytes", "error"],
    )?;
    if !list("placements").is_empty() {
        println!();
        table(list("placements"), false, &["container", "exception"])?;
    }
    println!();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_stays_a_line_and_commands_a_terminal_nothing() {
        assert_eq!(printable_line("a\tb \u{e9} \u{1f525} \\"), "a\tb \u{e9} \u{1f525} \\");
        assert_eq!(printable_line("\u{1b}[2J\r\n\0\u{7f}\u{9b}1m\u{2028}"), "\\u{1b}[2J\\r\\n\\u{0}\\u{7f}\\u{9b}1m\\u{2028}");
        assert_eq!(cell("note", &Value::from("a\u{1b}[2J\nb")), "a\\u{1b}[2J\\nb");
        let value = Value::from("\u{1b}\u{7f}\u{9b}1m\u{e9}");
        assert_eq!(plain_json(&value.to_string()), "\"\\u001b\\u007f\\u009b1m\u{e9}\"");
        assert_eq!(serde_json::from_str::<Value>(&plain_json(&value.to_string())).unwrap(), value);
        assert_eq!(printable("two\nlines\u{7}"), "two\nlines\\u{7}");
    }
}
