#!/usr/bin/env python3
"""Takes controls away, one edit each, and sees that the test which holds each of them fails without it (SECURITY.md has the table).

  controls.py            copies the tree, removes the controls round by round, runs their tests, and fails if one still passes
  controls.py --check    only says whether every edit still fits the code, exactly once
  controls.py ROUND...   some rounds alone

Controls of one round are removed together, since each one's test is not concerned with the others; those that would hide each other are
in rounds of their own. Tests of the whole system use the binary without its controls. First the same
tests must pass in the copy with the controls in place. Not among them: the table's rows without a number. Needs what `make test` needs, and
half an hour once everything is compiled.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
COPY = TARGET / "without-controls"
DEADLINE_S = 3_000


@dataclass
class Control:
    row: str  # of SECURITY.md
    file: str
    old: str
    new: str
    target: str  # lib, node, or the name of a test target
    test: str
    round: int = 1
    more: tuple = ()  # further edits of the same file, where several walls stand one behind the other

    def edits(self):
        return ((self.old, self.new), *self.more)


CONTROLS = [
    Control("1", "node/src/handler/container.rs", "| (Self::Leaving, Self::Dead)", "| (Self::Leaving, Self::Dead | Self::Running)",
            "lib", "the_lifecycle_has_no_way_back_from_leaving_or_dead"),
    Control("2", "runtime/control.js", "        if (!same(message.secret, secret)) return connection.destroy();\n", "",
            "node", "only the first secret opens the control socket"),
    Control("3", "node/src/handler/claim.rs", "            secrets.insert(name.clone(), value.to_string());",
            "            tracing::warn!(secret = value.as_str());\n            secrets.insert(name.clone(), value.to_string());",
            "system", "a_canary_is_nowhere_but_in_memory", 2),
    Control("4", "sandbox/src/docker/options.rs", "bind(&tree, paths::SLOT, true, inward)?", "bind(&tree, paths::SLOT, false, inward)?",
            "lib", "golden_runtime", 2),
    Control("5", "sandbox/src/docker/options.rs", 'cap_drop: Some(vec!["ALL".to_owned()])', "cap_drop: None",
            "docker", "nothing_is_left_to_a_tenant"),
    Control("5", "sandbox/src/docker/options.rs", '"no-new-privileges".to_owned(), format!("seccomp={}", seccomp::profile())]),', '"no-new-privileges".to_owned(), "seccomp=unconfined".to_owned()]),',
            "kernel", "the_kernel_refuses_what_no_tenant_may_have"),
    Control("6", "sandbox/src/docker/options.rs", ".checked_add(slot)", ".checked_add(slot / u32::MAX)",
            "lib", "slots_have_users_of_their_own"),
    Control("7", "sandbox/src/docker/options.rs", "pids_limit: Some(i64::from(pids))", "pids_limit: Some(i64::from(pids) + 4_000)",
            "docker", "processes_are_bounded"),
    Control("8", "sandbox/src/docker/options.rs", "        memory: Some(memory),\n        memory_swap: Some(memory),",
            "        memory: Some(memory * 8),\n        memory_swap: Some(memory * 8),",
            "docker", "memory_is_bounded_and_its_end_is_told"),
    Control("9", "node/src/proxy/service.rs", '                worker.shared.handler.suspect(&container);\n                let detail = format!("the function did not answer',
            '                let detail = format!("the function did not answer',
            "system", "an_endless_loop_is_ended_and_replaced", 2),
    Control("9", "node/src/handler/mod.rs", "if let Some(wait) = self.restarts.wait(&path, Instant::now()) {",
            "if let Some(wait) = self.restarts.wait(&path, Instant::now()).filter(Duration::is_zero) {",
            "system", "a_container_that_ends_too_often_waits_for_the_next", 3),
    Control("10", "sandbox/src/docker/options.rs", "nr_inodes={inodes},", "",
            "docker", "files_are_bounded"),
    Control("11", "node/src/handler/inbound.rs", "if self.used + bytes as f64 > per_s as f64 * 4.0 {", "if per_s == 0 {",
            "lib", "output_beyond_its_rate_is_dropped_and_counted"),
    Control("12, 13", "sandbox/src/net/rules.rs", "		ip daddr @denied goto refuse\n", "",
            "egress", "containers_reach_the_public_internet_and_nothing_else", 2),
    Control("13", "sandbox/src/net/rules.rs", '		iifname "{prefix}*" goto for_host\n', "",
            "egress", "containers_reach_the_public_internet_and_nothing_else", 3),
    Control("14", "model/src/egress.rs", "labels.last().is_some_and(|top| top.starts_with(|c: char| c.is_ascii_lowercase()))", "true",
            "lib", "destinations_and_what_is_none"),
    Control("15", "sandbox/src/net/rules.rs", "		ip daddr @denied goto refuse\n", '		oifname != "{prefix}*" ip daddr @denied goto refuse\n',
            "egress", "containers_reach_the_public_internet_and_nothing_else", 1,
            (('		oifname "{prefix}*" goto refuse\n', ""), ('		oifname "{prefix}*" drop\n', ""))),
    Control("16", "edge/src/framing.rs", "if self.coded || self.length.is_some() {", "if self.coded && self.length.is_some() {",
            "router", "one_request_in_is_one_request_out_or_a_refusal"),
    Control("17", "router/src/service.rs", "        if call.upgrade_to.is_some() {\n            // What the client has",
            "        if call.upgrade_to.as_ref().is_some_and(HeaderValue::is_empty) {\n            // What the client has",
            "router", "one_request_in_is_one_request_out_or_a_refusal", 2),
    Control("18", "edge/src/headers.rs", "            || version < http::Version::HTTP_11\n", "",
            "lib", "framing_that_contradicts_itself_is_seen"),
    Control("19", "edge/src/headers.rs", "        for name in nominated {\n            headers.remove(name);\n        }\n", "        drop(nominated);\n",
            "lib", "a_client_cannot_remove_what_the_platform_adds"),
    Control("20", "edge/src/headers.rs", "if headers.keys().any(|name| name.as_str().starts_with(names::PREFIX)) {", "if headers.is_empty() {",
            "lib", "nothing_of_the_platforms_own_passes"),
    Control("21", "node/src/proxy/forward.rs", "            && self.upload.whole.get()\n", "",
            "system", "an_answer_before_the_body_was_sent_leaves_clean_connections", 1,
            (("rposition(SendRequest::is_ready)?", "rposition(|_| true)?"),
             ("let Some(mut sender) = worker.connections.take(container.id()) else { break };",
              "let Some(mut sender) = worker.connections.take(container.id()) else { break }; let _ = sender.ready().await;"))),
    Control("21", "router/src/forward.rs", "            && self.upload.borrow().is_whole()\n", "",
            "router", "an_answer_before_the_body_has_come_leaves_no_connection_behind", 1,
            (("sender.is_ready() && since", "since"),
             ("let Some(mut sender) = worker.connections.take(node) else { break };",
              "let Some(mut sender) = worker.connections.take(node) else { break }; let _ = sender.ready().await;"))),
    Control("22", "edge/src/serve.rs", "            .header_read_timeout(self.header_timeout)\n", "",
            "router", "clients_that_dawdle_are_cut", 3),
    Control("22", "node/src/uploads.rs", "if self.0.fetch_add(1, Relaxed) >= limit {", "if self.0.fetch_add(1, Relaxed) == u32::MAX {",
            "lib", "half_of_the_places_and_one_past_it"),
    Control("22", "node/src/proxy/body.rs", "(1..=READ_FIRST_BYTES_MAX).contains(&bytes)", "(1..=0).contains(&bytes)",
            "system", "bodies_that_trickle_hold_no_place_and_are_ended", 2),
    Control("22", "edge/src/addresses.rs", "if count >= self.max {", "if count == usize::MAX {",
            "lib", "at_the_bound_of_an_address_and_one_past_it"),
    Control("23", "edge/src/serve.rs", ".max_pending_accept_reset_streams(bounds.pending_resets_max)", ".max_pending_accept_reset_streams(1_000_000)",
            "router", "rapid_resets_end_the_connection_and_cost_no_memory", 3),
    Control("23", "edge/src/serve.rs", 'Look::Stuck => return Err("the client does not take the answers it asked for".into()),', "Look::Stuck => {}",
            "router", "a_window_that_stays_shut_ends_the_connection", 3),
    Control("24", "edge/src/headers.rs", "if headers.len() > limits::REQUEST_HEADERS_MAX {", "if headers.len() == usize::MAX {",
            "lib", "header_bounds"),
    Control("25", "builder/in-container/build.js", "npm(['install', '--ignore-scripts'], scripts", "npm(['install', '--foreground-scripts'], scripts",
            "system", "hostile_packages_stay_in_their_container_and_their_artifact", 2),
    Control("26", "model/src/module.rs", 'if lower.starts_with("npm:") {', "if lower.is_empty() {",
            "lib", "ranges_of_other_sources_are_refused_by_kind"),
    Control("26", "builder/src/closure.rs", "if !package.resolved.as_ref().is_some_and(|url| url.starts_with(origin)) {", "if origin.is_empty() {",
            "lib", "what_is_not_from_the_registry_is_refused"),
    Control("27", "store/src/artifact.rs", "(found != sha256).then(", "found.is_empty().then(",
            "lib", "an_altered_artifact_is_refused"),
    Control("28", "node/src/modules/unpack.rs", "if !normal || name.components().next().is_none() {", "if !normal && name.components().next().is_none() {",
            "lib", "hostile_archives_write_nothing_outside"),
    Control("28", "node/src/modules/unpack.rs", '_ => return Err(forbidden("something that is neither file nor directory")),', "_ => drop(forbidden),",
            "lib", "hostile_archives_write_nothing_outside", 3),
    Control("28", "builder/src/pack.rs", "let metadata = entry.metadata()?;", "let metadata = fs::metadata(entry.path())?;",
            "lib", "links_and_special_files_stay_out"),
    Control("29", "node/src/modules/unpack.rs", "if entries > ENTRIES_MAX {", "if entries == u64::MAX {",
            "lib", "entries_are_counted_up_to_the_limit"),
    Control("29", "builder/src/pack.rs", "if count.bytes > RATIO_FROM_BYTES && count.bytes / out.bytes.max(1) > RATIO_MAX {", "if count.bytes == u64::MAX {",
            "lib", "what_packs_too_well_is_a_bomb"),
    Control("30", "node/src/modules/attach.rs", "MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID", "MountFlags::BIND | MountFlags::NOSUID",
            "system", "a_module_is_built_once_for_all_who_want_it", 2),
    Control("31", "node/src/manage/auth.rs", '            Some(own) if own != tenant => Err(ApiError::not_found("thing")),\n', "",
            "lib", "every_route_asks_every_kind_of_caller_for_the_right_token"),
    Control("32", "node/src/manage/auth.rs", "token.expires_at.is_some_and(|at| at <= Timestamp::from_system(SystemTime::now()))",
            "token.expires_at.is_some_and(|at| at <= Timestamp::from_system(SystemTime::UNIX_EPOCH))",
            "lib", "every_route_asks_every_kind_of_caller_for_the_right_token", 2),
    Control("32", "node/src/manage/auth.rs", 'v.strip_prefix("Bearer ").or_else(|| v.strip_prefix("bearer "))', "v.rsplit(' ').next()",
            "lib", "forged_tokens_are_nobodys"),
    Control("33", "node/src/manage/auth.rs", "*count >= self.wrong_max && since", "*count == u32::MAX && since",
            "lib", "wrong_tokens_are_bounded_per_address"),
    Control("34", "store/src/keyring.rs", "for part in [path.tenant.as_str(), path.container.as_str(), path.function.as_str(), name] {", "for part in [path.function.as_str(), name] {",
            "lib", "a_sealed_value_opens_only_in_its_place"),
    Control("35", "router/src/service.rs", 'if path == "/v1" || path.starts_with("/v1/") {', 'if !path.starts_with("/run/") {',
            "router", "one_request_in_is_one_request_out_or_a_refusal", 3),
    Control("36", "edge/src/tls.rs", "rustls::client::verify_server_name(&parsed, &name).is_ok()", "rustls::client::verify_server_name(&parsed, &name).is_ok() || !role.is_empty()",
            "cluster", "nodes_serve_routers_of_their_authority_and_nobody_else", 2),
    Control("37", "node/src/proxy/admit.rs", "if self.in_flight.fetch_add(1, Relaxed) >= limit {", "if self.in_flight.fetch_add(1, Relaxed) == u32::MAX {",
            "lib", "concurrency_at_the_bound_and_one_past_it"),
    Control("37", "node/src/proxy/admit.rs", "(arrival_ns <= now_ns.saturating_add(tolerance_ns)).then(", "(arrival_ns < u64::MAX - tolerance_ns).then(",
            "lib", "the_rate_lets_a_burst_pass_and_then_its_average"),
    Control("37", "node/src/proxy/body.rs", "self.pause = wait.map(|wait| Box::pin(tokio::time::sleep(wait)));", "drop(wait);",
            "system", "answers_keep_to_their_tenants_rate"),
    Control("37", "node/src/proxy/body.rs", "exchange.permit.answered(0).map(|wait| Box::pin(tokio::time::sleep(wait)));", "exchange.permit.answered(0).and(None);",
            "system", "answers_keep_to_their_tenants_rate", 2),
    Control("37", "node/src/proxy/service.rs", "            wait_in_line(&worker, peer, gate).await;\n            return Err(refused(why));", "            return Err(refused(why));",
            "system", "a_flood_of_requests_is_the_floods_problem", 3),
    Control("37", "node/src/proxy/pause.rs", "Some(turn(next_ns).saturating_add(ns(APART)))", "Some(turn(next_ns))",
            "lib", "refusals_stand_in_line_and_none_for_longer_than_two_seconds", 3),
    Control("37", "node/src/handler/pool.rs", "plain > target.saturating_sub(others) / 2", "plain > target.saturating_sub(others) / 1_000",
            "system", "containers_that_end_leave_half_of_the_pool_to_others", 2),
    Control("9", "node/src/handler/restarts.rs", "if !self.unreplaced.contains(path) {", "if !self.unreplaced.contains(path) || self.tenants.rate.burst > 0 {",
            "lib", "a_tenants_containers_have_a_rate_together"),
    Control("37", "node/src/handler/busy.rs", "if self.all_busy {", "if !self.all_busy {",
            "background", "a_busy_container_keeps_to_the_cpus_for_background_work_and_others_keep_off_them", 2),
    Control("37", "node/src/handler/apart.rs", "self.apart = others >= BUSY_FROM", "self.apart = others.is_nan() && others >= BUSY_FROM",
            "background", "a_busy_container_keeps_to_the_cpus_for_background_work_and_others_keep_off_them", 3),
    Control("38", "node/src/manage/audit.rs", 'mutating: !matches!(request.method().as_str(), "GET" | "HEAD" | "OPTIONS"),', 'mutating: matches!(request.method().as_str(), "PATCH"),',
            "lib", "each_change_leaves_one_audit_line_whatever_it_holds"),
]

RESULT = re.compile(r"^test (?:[\w:]+::)?(\w+)(?: - should panic)? \.\.\. (\w+)", re.MULTILINE)


def misfits():
    """Edits that do not fit the code exactly once."""
    for control in CONTROLS:
        for old, _ in control.edits():
            found = (ROOT / control.file).read_text().count(old)
            if found != 1:
                yield f"row {control.row}: {control.file} has {found} times {old!r}"


def copy_tree():
    shutil.rmtree(COPY, ignore_errors=True)
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    for name in files:
        if (ROOT / name).is_file():
            (COPY / name).parent.mkdir(parents=True, exist_ok=True)
            # With the time of now: by the sources' own, cargo would take what an earlier run has compiled without a control for current.
            shutil.copy(ROOT / name, COPY / name)
    # What scripts/setup.sh has installed there, which tests look for beside the sources.
    (COPY / "target").mkdir()
    for name in ("registry", "aws-stand-in"):
        if (ROOT / "target" / name).exists():
            (COPY / "target" / name).symlink_to(ROOT / "target" / name)


def put(file, text):
    if (COPY / file).read_text() != text:
        (COPY / file).write_text(text)


def run_cargo(target, tests):
    """The outcome of each test by its name."""
    environment = dict(os.environ, CARGO_TARGET_DIR=str(TARGET))
    which = ["--lib"] if target == "lib" else ["--test", target]
    command = ["cargo", "test", "--workspace", "--locked", "--no-fail-fast", *which, "--", *sorted(tests)]
    print("controls:", " ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=COPY, env=environment, capture_output=True, text=True, timeout=DEADLINE_S)
    outcomes = dict(RESULT.findall(done.stdout))
    # A test that writes between its name and its outcome is found in the list of those that failed.
    outcomes.update({name: "FAILED" for name in re.findall(r"^    (?:[\w:]+::)?(\w+)$", done.stdout, re.MULTILINE)})
    if not outcomes:
        print(done.stdout[-2000:], done.stderr[-6000:], file=sys.stderr)
    return outcomes


def run_node(tests):
    node = subprocess.run([ROOT / "scripts/node.sh", "24"], check=True, capture_output=True, text=True, timeout=DEADLINE_S).stdout.strip()
    command = [node, "--test", "--test-reporter=tap", "test/runtime.test.js"]
    print("controls:", " ".join(command), file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=COPY / "runtime", capture_output=True, text=True, timeout=DEADLINE_S)
    lines = re.findall(r"^\s*(not ok|ok) \d+ - (.*)$", done.stdout, re.MULTILINE)
    return {name: "FAILED" if outcome == "not ok" else "ok" for outcome, name in lines if name in tests}


def passes_with_controls(rounds):
    """Whether every test passes in the copy as the code stands: otherwise its failure there says nothing."""
    passes = True
    build_programs()
    controls = [control for control in CONTROLS if control.round in rounds]
    for target in sorted({control.target for control in controls}):
        tests = {control.test for control in controls if control.target == target}
        outcomes = run_node(tests) if target == "node" else run_cargo(target, tests)
        for test in sorted(tests):
            if outcomes.get(test) != "ok":
                passes = False
                print(f"NOT PASSED: {test} {outcomes.get(test, 'not run')} with all controls in place", flush=True)
    return passes


def build_programs(tree=COPY):
    subprocess.run(["cargo", "build", "--workspace", "--locked", "--quiet", "--bins"], cwd=tree, check=True,
                   env=dict(os.environ, CARGO_TARGET_DIR=str(TARGET)), timeout=DEADLINE_S)


def run_round(number):
    """Lines of the report, and whether all controls are held."""
    controls = [control for control in CONTROLS if control.round == number]
    for file in {control.file for control in CONTROLS}:
        text = (ROOT / file).read_text()
        for control in controls:
            for old, new in control.edits() if control.file == file else ():
                text = text.replace(old, new)
        put(file, text)
    if any(control.target in ("system", "cluster", "background") for control in controls):
        build_programs()
    held = True
    for target in sorted({control.target for control in controls}):
        tests = {control.test for control in controls if control.target == target}
        outcomes = run_node(tests) if target == "node" else run_cargo(target, tests)
        for control in (c for c in controls if c.target == target):
            outcome = outcomes.get(control.test, "not run")
            fails = outcome == "FAILED"
            held &= fails
            print(f"{'held' if fails else 'NOT HELD'}: row {control.row}, {control.file}: {control.test} {outcome} without it", flush=True)
    return held


def main():
    wrong = list(misfits())
    if wrong:
        sys.exit("controls: the code has changed; mend scripts/controls.py:\n" + "\n".join(wrong))
    if sys.argv[1:] == ["--check"]:
        return
    rounds = [int(n) for n in sys.argv[1:]] or sorted({control.round for control in CONTROLS})
    copy_tree()
    try:
        if not passes_with_controls(rounds):
            sys.exit("controls: mend these tests first")
        held = [run_round(number) for number in rounds]
    finally:
        shutil.rmtree(COPY, ignore_errors=True)
        # The programs with their controls are back in their place.
        build_programs(ROOT)
    if not all(held):
        sys.exit("controls: a test passes without the control that it is there for")
    print(f"controls: {sum(c.round in rounds for c in CONTROLS)} taken away, each missed by its test")


if __name__ == "__main__":
    main()
