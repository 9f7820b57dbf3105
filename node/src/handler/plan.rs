//! What the pool should hold, and which container is to be made next: pure functions of counts and moments.

use super::config::Config;
use hearth_model::{ResolvedModule, function::NodeVersion};
use std::time::Duration;
use tokio::time::Instant;

/// How far back claims count.
const DEMAND_WINDOW: Duration = Duration::from_secs(10);
/// Longest pause between two starts while requests are served.
const BUSY_PAUSE_MAX: Duration = Duration::from_secs(1);

/// What a container in the pool is ready for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    /// Anything.
    Plain(NodeVersion),
    /// Functions that have these modules among theirs; they are loaded. Always the default Node.js.
    Preloaded(Vec<ResolvedModule>),
}

impl Kind {
    pub(super) fn node(&self) -> NodeVersion {
        match self {
            Self::Plain(node) => *node,
            Self::Preloaded(_) => NodeVersion::default(),
        }
    }

    /// Whether a function with these modules on this Node.js may have it, and how much of its modules that saves it. A container that
    /// has loaded what the function does not depend on is never for it.
    pub(super) fn fits(&self, node: NodeVersion, modules: &[ResolvedModule]) -> Option<usize> {
        match self {
            Self::Plain(own) => (*own == node).then_some(0),
            Self::Preloaded(set) => {
                let has = |m: &ResolvedModule| modules.iter().any(|n| n.build == m.build && n.peers == m.peers);
                (node == NodeVersion::default() && set.iter().all(has)).then_some(set.len())
            }
        }
    }
}

/// How many claims there were lately, per second.
#[derive(Debug)]
pub(super) struct Demand {
    rate: f64,
    at: Instant,
}

impl Demand {
    pub(super) fn new(now: Instant) -> Self {
        Self { rate: 0.0, at: now }
    }

    fn rate(&self, now: Instant) -> f64 {
        self.rate * (-now.saturating_duration_since(self.at).as_secs_f64() / DEMAND_WINDOW.as_secs_f64()).exp()
    }

    /// There was a claim.
    pub(super) fn note(&mut self, now: Instant) {
        self.rate = self.rate(now) + 1.0 / DEMAND_WINDOW.as_secs_f64();
        self.at = now;
    }

    /// How many containers should wait.
    pub(super) fn target(&self, now: Instant, config: &Config) -> usize {
        let extra = (self.rate(now) * config.pool_cover.as_secs_f64()).round();
        // Small and not negative: the rate is bounded by what a machine can claim.
        let wanted = config.pool_size.saturating_add(extra as u32);
        wanted.clamp(config.pool_size, config.pool_max) as usize
    }
}

/// The pool as the planner sees it.
#[derive(Debug, Clone, Default)]
pub(super) struct View<'a> {
    /// How many should wait.
    pub target: usize,
    /// What waits.
    pub ready: Vec<&'a Kind>,
    /// What is being made.
    pub creating: Vec<&'a Kind>,
    /// Which Node.js requests wait for.
    pub waiting: Vec<NodeVersion>,
    /// Sets worth loading ahead, best first.
    pub popular: &'a [Vec<ResolvedModule>],
}

impl View<'_> {
    /// Sets that should be in the pool: at most half of it.
    fn sets(&self) -> &[Vec<ResolvedModule>] {
        &self.popular[..self.popular.len().min(self.target / 2)]
    }

    fn plain_target(&self) -> usize {
        self.target - self.sets().len()
    }

    /// What to make next; none when all that is wanted is there or under way.
    pub(super) fn next(&self) -> Option<Kind> {
        let count = |kinds: &[&Kind], wanted: &Kind| kinds.iter().filter(|k| **k == wanted).count();
        for node in [NodeVersion::V24, NodeVersion::V22] {
            let plain = Kind::Plain(node);
            let waiting = self.waiting.iter().filter(|n| **n == node).count();
            let standing = if node == NodeVersion::default() { self.plain_target() } else { 0 };
            if count(&self.ready, &plain) + count(&self.creating, &plain) < waiting + standing {
                return Some(plain);
            }
        }
        let missing = |set: &&Vec<ResolvedModule>| {
            let kind = Kind::Preloaded((*set).clone());
            count(&self.ready, &kind) + count(&self.creating, &kind) == 0
        };
        self.sets().iter().find(missing).map(|set| Kind::Preloaded(set.clone()))
    }

    /// Which of the ready ones to give up: one at a time, and only while nobody waits.
    pub(super) fn surplus(&self) -> Option<usize> {
        if !self.waiting.is_empty() {
            return None;
        }
        let unwanted = |(at, kind): (usize, &&Kind)| match kind {
            Kind::Preloaded(set) => !self.sets().contains(set) || self.ready[..at].contains(kind),
            Kind::Plain(node) => *node != NodeVersion::default(),
        };
        if let Some(at) = self.ready.iter().enumerate().position(unwanted) {
            return Some(at);
        }
        let plain = Kind::Plain(NodeVersion::default());
        let first = self.ready.iter().position(|k| **k == plain)?;
        (self.ready.iter().filter(|k| ***k == plain).count() > self.plain_target()).then_some(first)
    }
}

/// How quickly containers may be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pace {
    /// So many at once.
    pub at_once: usize,
    /// So long after the last one was made.
    pub pause: Duration,
}

/// Requests that wait come first; requests that run come before a full pool. Starting containers at full speed multiplies the p99 of
/// warm requests, one at a time with pauses it does not show.
pub(super) fn pace(config: &Config, waiting: bool, cautious: bool, busy: bool, last_start: Duration) -> Pace {
    let free = Pace { at_once: config.refill_concurrency as usize, pause: Duration::ZERO };
    if cautious {
        Pace { at_once: 1, ..free }
    } else if waiting {
        Pace { at_once: config.create_concurrency as usize, ..free }
    } else if busy {
        Pace { at_once: 1, pause: last_start.min(BUSY_PAUSE_MAX) }
    } else {
        free
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hearth_model::BuildKey;
    use proptest::prelude::*;

    fn set(names: &[&str]) -> Vec<ResolvedModule> {
        let module = |name: &&str| ResolvedModule {
            spec: format!("{name}@1.0.0").parse().unwrap(),
            build: BuildKey((*name).into()),
            peers: Vec::new(),
            direct: true,
        };
        names.iter().map(module).collect()
    }

    #[test]
    fn a_preloaded_container_is_only_for_functions_that_have_all_of_it() {
        let kind = Kind::Preloaded(set(&["a", "b"]));
        let fits = |names: &[&str]| kind.fits(NodeVersion::V24, &set(names));
        assert_eq!((fits(&["a", "b"]), fits(&["c", "b", "a"])), (Some(2), Some(2)));
        assert_eq!((fits(&["a"]), fits(&[]), kind.fits(NodeVersion::V22, &set(&["a", "b"]))), (None, None, None));
        let mut other_peer = set(&["a", "b"]);
        other_peer[0].peers.push("b".parse().unwrap());
        assert_eq!(kind.fits(NodeVersion::V24, &other_peer), None, "it is another instance with another peer");
        assert_eq!(Kind::Plain(NodeVersion::V22).fits(NodeVersion::V22, &set(&["a"])), Some(0));
        assert_eq!(Kind::Plain(NodeVersion::V24).fits(NodeVersion::V22, &[]), None);
    }

    #[test]
    fn the_target_follows_demand_between_its_bounds() {
        let config = Config::default();
        let start = Instant::now();
        let mut demand = Demand::new(start);
        assert_eq!(demand.target(start, &config), 4);
        for n in 0..20 {
            demand.note(start + Duration::from_millis(500 * n));
        }
        let busy = demand.target(start + Duration::from_secs(10), &config);
        assert!((6..=10).contains(&busy), "{busy}");
        for _ in 0..1_000 {
            demand.note(start + Duration::from_secs(10));
        }
        assert_eq!(demand.target(start + Duration::from_secs(10), &config), 16);
        assert_eq!(demand.target(start + Duration::from_secs(120), &config), 4);
    }

    #[test]
    fn who_waits_comes_first_then_plain_ones_then_popular_sets() {
        let popular = [set(&["a"]), set(&["b"]), set(&["c"])];
        let (plain, other) = (Kind::Plain(NodeVersion::V24), Kind::Plain(NodeVersion::V22));
        let view = View { target: 4, waiting: vec![NodeVersion::V22], popular: &popular, ..View::default() };
        assert_eq!(view.next(), Some(plain.clone()));
        let view = View { ready: vec![&plain, &plain], ..view };
        assert_eq!(view.next(), Some(other.clone()));
        let view = View { creating: vec![&other], ..view };
        assert_eq!(view.next(), Some(Kind::Preloaded(set(&["a"]))));
        let (a, b) = (Kind::Preloaded(set(&["a"])), Kind::Preloaded(set(&["b"])));
        let view = View { creating: vec![&other, &a, &b], ..view };
        assert_eq!(view.next(), None, "at most half of the pool is for sets");
        let view = View { ready: vec![&plain; 5], creating: vec![], waiting: vec![], ..view };
        assert_eq!(view.surplus(), Some(0));
        let c = Kind::Preloaded(set(&["c"]));
        assert_eq!(View { ready: vec![&plain, &c], ..view.clone() }.surplus(), Some(1));
        assert_eq!(View { ready: vec![&plain, &plain, &a, &b], ..view }.surplus(), None);
    }

    #[test]
    fn the_pace_follows_what_matters_more() {
        let config = Config::default();
        let last = Duration::from_millis(90);
        assert_eq!(pace(&config, false, false, false, last), Pace { at_once: 2, pause: Duration::ZERO });
        assert_eq!(pace(&config, false, false, true, last), Pace { at_once: 1, pause: last });
        assert_eq!(pace(&config, false, false, true, Duration::from_secs(9)).pause, BUSY_PAUSE_MAX);
        assert_eq!(pace(&config, true, false, true, last), Pace { at_once: 4, pause: Duration::ZERO });
        assert_eq!(pace(&config, true, true, false, last).at_once, 1);
    }

    fn kinds() -> impl Strategy<Value = Kind> {
        prop_oneof![
            3 => Just(Kind::Plain(NodeVersion::V24)),
            1 => Just(Kind::Plain(NodeVersion::V22)),
            1 => Just(Kind::Preloaded(set(&["a"]))),
            1 => Just(Kind::Preloaded(set(&["b"]))),
            1 => Just(Kind::Preloaded(set(&["z"]))),
        ]
    }

    proptest! {
        /// Planning ends, planning once more changes nothing, and filling up leaves nothing to give up that was just made.
        #[test]
        fn filling_up_settles(target in 0usize..12, ready in prop::collection::vec(kinds(), 0..8), waiting in 0usize..4) {
            let popular = [set(&["a"]), set(&["b"])];
            let waiting = vec![NodeVersion::V24; waiting];
            let mut made: Vec<Kind> = Vec::new();
            for _ in 0..100 {
                let view = View { target, ready: ready.iter().collect(), creating: made.iter().collect(), waiting: waiting.clone(), popular: &popular };
                match view.next() {
                    Some(kind) => made.push(kind),
                    None => break,
                }
            }
            prop_assert!(made.len() <= target + waiting.len());
            let mut all: Vec<Kind> = ready.iter().chain(&made).cloned().collect();
            for _ in 0..100 {
                let view = View { target, ready: all.iter().collect(), popular: &popular, ..View::default() };
                match view.surplus() {
                    Some(at) => drop(all.remove(at)),
                    None => break,
                }
            }
            prop_assert_eq!(all.len(), target);
        }
    }
}
