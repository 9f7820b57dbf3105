//! The fake passes the suite that Docker passes, as real processes and in memory, and fails when it is told to.

mod support;

use hearth_sandbox::{
    Exit, Sandbox, SandboxError,
    conformance::{self, Behaviour, Fixture},
    fake::{Call, Failure, FakeSandbox, Injection, Program},
};
use std::{path::PathBuf, time::Duration};
use support::Slots;

#[tokio::test]
async fn processes_conform() {
    let slots = Slots::new();
    let sandbox = FakeSandbox::processes(PathBuf::from("node"));
    conformance::all(&Fixture { sandbox: &sandbox, spec: &|slot, behaviour| slots.spec(slot, &behaviour) }).await;
}

#[tokio::test]
async fn memory_conforms() {
    let slots = Slots::new();
    let sandbox = FakeSandbox::in_memory();
    let spec = |slot, behaviour: Behaviour| {
        let exit = |code| Some(Exit { code: Some(code), out_of_memory: false });
        sandbox.program(
            slot,
            match &behaviour {
                Behaviour::Idle => Program::default(),
                Behaviour::Exit(code) => Program { exit: exit(*code), ..Program::default() },
                Behaviour::Print(text) => Program { output: text.clone(), exit: exit(0) },
            },
        );
        slots.spec(slot, &behaviour)
    };
    conformance::all(&Fixture { sandbox: &sandbox, spec: &spec }).await;
}

#[tokio::test(start_paused = true)]
async fn injections_come_in_order_and_once() {
    let slots = Slots::new();
    let sandbox = FakeSandbox::in_memory();
    let spec = slots.spec(1, &Behaviour::Idle);
    sandbox.fail_next(Call::Create, Failure::Unreachable);
    sandbox.inject(Call::Create, Injection { delay: Duration::from_secs(5), failure: Some(Failure::Deadline) });
    sandbox.inject(Call::Create, Injection { delay: Duration::from_secs(2), failure: None });
    let start = tokio::time::Instant::now();
    assert!(matches!(sandbox.create(&spec).await, Err(SandboxError::Unreachable { .. })));
    assert!(matches!(sandbox.create(&spec).await, Err(SandboxError::Deadline { .. })));
    assert_eq!(start.elapsed(), Duration::from_secs(5));
    let made = sandbox.create(&spec).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(7));
    assert_eq!(sandbox.count(Call::Create), 3);
    sandbox.freeze(&made.id).await.unwrap();
    assert!(sandbox.is_frozen(&made.id).unwrap());
    let crash = Exit { code: Some(137), out_of_memory: true };
    sandbox.exit(&made.id, crash).unwrap();
    assert_eq!(sandbox.wait(&made.id).await.unwrap(), crash);
}

#[tokio::test]
async fn a_restarted_node_finds_its_containers() {
    let slots = Slots::new();
    let sandbox = FakeSandbox::processes(PathBuf::from("node"));
    let made = sandbox.create(&slots.spec(3, &Behaviour::Idle)).await.unwrap();
    let restarted = sandbox.clone();
    drop(sandbox);
    let found = restarted.list().await.unwrap();
    assert_eq!(found.iter().map(|r| (&r.id, r.slot)).collect::<Vec<_>>(), [(&made.id, 3)]);
    restarted.destroy(&made.id).await.unwrap();
}
