//! Text of strangers against everything that reads it without I/O: names and paths, ranges, policies, what a runtime says. Nothing panics, and
//! what is accepted means one thing. `make fuzz` runs more cases; what was found stays in `proptest-regressions`.

use hearth_model::{Egress, FunctionPath, TenantLimits, protocol::FromRuntime};
use proptest::{collection::vec, prelude::*, sample::select};

/// Pieces that such texts are made of, and what attackers put between them.
fn text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        select(vec![
            "a",
            "acme",
            "main",
            "-",
            "/",
            "//",
            "..",
            ".",
            "%2f",
            "%2e%2e",
            "\\",
            "@",
            "^1",
            "~1.2",
            "||",
            " ",
            "*",
            "x",
            "git",
            "file:",
            "npm:",
            "://",
            "#",
            ":443",
            "10.0.0.0/8",
            "0x7f.1",
            "2130706433",
            "[::1]",
            "\0",
            "\r\n",
            "\u{202e}",
            "\u{ff0f}",
            "\u{1f600}",
            "1e999",
            "99999999999999999999",
        ])
        .prop_map(str::to_owned),
        any::<char>().prop_map(String::from),
        "[a-z0-9-]{1,70}",
    ];
    vec(piece, 0..12).prop_map(|pieces| pieces.concat())
}

/// JSON that a runtime, or whoever has taken its place, may send.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let tag = select(vec!["ready", "loaded", "preloaded", "pong", "log", "storage_get", "storage_set", "exit", "hello", ""]);
    let key = select(vec![
        "id", "function", "version", "level", "line", "at", "data", "etag", "force", "code", "ms", "failed", "t", "secret",
    ]);
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|n| n.to_string()),
        text().prop_map(|t| serde_json::Value::String(t).to_string()),
        select(vec!["null", "true", "[]", "{}", "[[[[]]]]", "1e400", "-0", "\"info\"", "[\"a@1\"]", "{\"a\":{}}"])
            .prop_map(str::to_owned),
    ];
    let whole = (tag, vec((key, value), 0..8)).prop_map(|(tag, fields)| {
        let fields: String = fields.into_iter().map(|(key, value)| format!(",\"{key}\":{value}")).collect();
        format!("{{\"t\":\"{tag}\"{fields}}}").into_bytes()
    });
    (whole, vec((any::<usize>(), any::<u8>()), 0..3)).prop_map(|(mut bytes, swaps)| {
        for (at, byte) in swaps {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes
    })
}

proptest! {
    #[test]
    fn a_path_that_is_one_is_written_one_way(text in text()) {
        if let Ok(path) = text.parse::<FunctionPath>() {
            prop_assert_eq!(path.to_string(), text.clone());
            prop_assert!(text.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'/')));
            prop_assert_eq!(text.split('/').count(), 3);
        }
    }

    #[test]
    fn a_range_that_is_one_leads_to_the_registry_alone(name in text(), range in text()) {
        let Ok(name) = name.parse().or_else(|_| "lodash".parse()) else { return Ok(()) };
        if hearth_model::module::check_range(&name, &range).is_ok() {
            prop_assert!(!range.contains(['/', ':', '#', '@', '\\']), "{}", range);
        }
    }

    #[test]
    fn a_policy_survives_being_written_down(to in vec(text(), 0..4), mode in select(vec!["none", "public", "allow", "ALLOW", ""])) {
        let policy = serde_json::json!({ "mode": mode, "to": to });
        if let Ok(egress) = serde_json::from_value::<Egress>(policy) {
            let _ = egress.check();
            let again: Egress = serde_json::from_value(serde_json::to_value(&egress).unwrap()).unwrap();
            prop_assert_eq!(again, egress);
        }
    }

    #[test]
    fn what_a_runtime_says_is_a_message_or_an_error(bytes in message()) {
        if let Ok(message) = serde_json::from_slice::<FromRuntime>(&bytes) {
            // A time is read back to its last digit but one; what is beyond JSON's numbers is the one thing that does not come back.
            let written = serde_json::to_vec(&message).unwrap();
            let (again, message) = match (serde_json::from_slice::<FromRuntime>(&written), message) {
                (_, FromRuntime::Loaded { ms, .. }) if !ms.is_finite() => return Ok(()),
                (Ok(FromRuntime::Loaded { id, model, linked, error, ms: again }), message @ FromRuntime::Loaded { ms, .. }) => {
                    prop_assert!((again - ms).abs() <= ms.abs() * 1e-15, "{} {}", again, ms);
                    (FromRuntime::Loaded { id, model, linked, error, ms }, message)
                }
                (again, message) => (again.unwrap(), message),
            };
            prop_assert_eq!(again, message);
        }
    }

    #[test]
    fn limits_are_limits_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
        let _ = serde_json::from_slice::<TenantLimits>(&bytes);
    }
}
