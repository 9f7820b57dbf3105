//! Whether tenants were served alike, whatever the others did.

use super::{Fairness, TenantResult};
use crate::collect::{Gathered, TenantBook};

/// Tenants that are named.
const WORST: usize = 10;
/// A tenant with fewer calls is not called starved, with fewer answers has no p99.
const CALLS_MIN: u32 = 5;
const ANSWERS_MIN: u32 = 20;
/// Points of the curve.
const POINTS: usize = 101;

/// Of the books.
pub(super) fn of(books: &Gathered) -> Fairness {
    let names = &books.layout.population.tenants;
    let called: Vec<(usize, &TenantBook)> = books.tenants.iter().enumerate().filter(|(_, t)| t.offered > 0).collect();
    let p99 = |t: &TenantBook| t.latency.as_ref().filter(|_| t.served >= ANSWERS_MIN).and_then(|l| l.at(0.99));
    let mut tails: Vec<f64> = called.iter().filter_map(|(_, t)| p99(t)).collect();
    tails.sort_by(f64::total_cmp);
    let mut order = called.clone();
    // Those who were served least, then those who waited longest.
    order.sort_by(|(_, a), (_, b)| share(a).total_cmp(&share(b)).then(p99(b).unwrap_or(0.0).total_cmp(&p99(a).unwrap_or(0.0))));
    Fairness {
        jain: jain(called.iter().map(|(_, t)| share(t))),
        called: called.len(),
        starved: called.iter().filter(|(_, t)| t.offered >= CALLS_MIN && t.served == 0).count(),
        p99_median_ms: tails.get(tails.len() / 2).copied(),
        p99_worst_ms: tails.last().copied(),
        worst: order
            .iter()
            .take(WORST)
            .map(|(index, t)| TenantResult { tenant: names[*index].clone(), offered: t.offered, served: t.served, p99_ms: p99(t) })
            .collect(),
        p99_curve_ms: match tails.len() {
            0 => Vec::new(),
            n => (0..POINTS.min(n)).map(|i| tails[i * (n - 1) / (POINTS.min(n) - 1).max(1)]).collect(),
        },
    }
}

fn share(tenant: &TenantBook) -> f64 {
    f64::from(tenant.served) / f64::from(tenant.offered.max(1))
}

/// `(sum x)^2 / (n * sum x^2)`; 1 where there is nothing to be unfair about.
fn jain(shares: impl Iterator<Item = f64>) -> f64 {
    let (n, sum, squares) = shares.fold((0.0, 0.0, 0.0), |(n, sum, squares), x| (n + 1.0, sum + x, squares + x * x));
    if squares > 0.0 { sum * sum / (n * squares) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::jain;

    #[test]
    fn jain_is_one_when_all_are_alike_and_one_nth_when_one_has_all() {
        assert!((jain([0.5; 8].into_iter()) - 1.0).abs() < 1e-12);
        assert!((jain([1.0, 0.0, 0.0, 0.0].into_iter()) - 0.25).abs() < 1e-12);
        assert!((jain(std::iter::empty()) - 1.0).abs() < 1e-12);
    }
}
