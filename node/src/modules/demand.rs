//! Which sets of modules are wanted on this node: counts that halve every ten minutes, so that what was popular yesterday is not today.

use hearth_model::{BuildKey, ResolvedModule};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

const HALF_LIFE: Duration = Duration::from_secs(600);
/// Sets that are remembered; the least wanted goes first.
const SETS_MAX: usize = 256;
/// A set is popular when more than one start in the last minutes wanted it.
const POPULAR_FROM: f64 = 1.5;

#[derive(Debug, Default)]
pub(super) struct Demand {
    sets: HashMap<Vec<BuildKey>, Wanted>,
}

#[derive(Debug)]
struct Wanted {
    count: f64,
    at: Instant,
    modules: Vec<ResolvedModule>,
}

impl Wanted {
    fn count_at(&self, now: Instant) -> f64 {
        self.count * 0.5_f64.powf((now - self.at).as_secs_f64() / HALF_LIFE.as_secs_f64())
    }
}

impl Demand {
    pub fn note(&mut self, modules: &[ResolvedModule], now: Instant) {
        let mut key: Vec<_> = modules.iter().map(|m| m.build.clone()).collect();
        key.sort();
        if !self.sets.contains_key(&key) && self.sets.len() >= SETS_MAX {
            let least = self.sets.iter().min_by(|(_, a), (_, b)| a.count_at(now).total_cmp(&b.count_at(now)));
            if let Some(least) = least.map(|(key, _)| key.clone()) {
                self.sets.remove(&least);
            }
        }
        let wanted = self.sets.entry(key).or_insert_with(|| Wanted { count: 0.0, at: now, modules: modules.to_vec() });
        wanted.count = wanted.count_at(now) + 1.0;
        wanted.at = now;
    }

    pub fn popular(&self, max: usize, now: Instant, fits: impl Fn(&[ResolvedModule]) -> bool) -> Vec<Vec<ResolvedModule>> {
        let mut sets: Vec<_> = self
            .sets
            .values()
            .map(|w| (w.count_at(now), w))
            .filter(|(count, w)| *count >= POPULAR_FROM && fits(&w.modules))
            .collect();
        sets.sort_by(|(a, _), (b, _)| b.total_cmp(a));
        sets.into_iter().take(max).map(|(_, w)| w.modules.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(n: usize) -> Vec<ResolvedModule> {
        vec![ResolvedModule {
            spec: "lodash@4.17.21".parse().unwrap(),
            build: BuildKey(n.to_string()),
            peers: Vec::new(),
            direct: true,
        }]
    }

    #[test]
    fn the_most_wanted_come_first_and_fade() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        for _ in 0..3 {
            demand.note(&set(1), now);
        }
        demand.note(&set(2), now);
        demand.note(&set(2), now);
        demand.note(&set(3), now);
        assert_eq!(demand.popular(5, now, |_| true), [set(1), set(2)]);
        assert_eq!(demand.popular(1, now, |s| s[0].build.0 != "1"), [set(2)]);
        assert!(demand.popular(5, now + HALF_LIFE * 2, |_| true).is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (mut demand, now) = (Demand::default(), Instant::now());
        for n in 0..SETS_MAX + 50 {
            demand.note(&set(n), now);
        }
        assert_eq!(demand.sets.len(), SETS_MAX);
    }
}
