//! Random numbers from a seed. Written out here, and not taken from a crate, because a seed printed in a report must give the same
//! arrivals and the same tenants after any dependency's update. Not for anything secret.

/// SplitMix64: one addition and three multiplications a number, the same on every machine and in every release.
#[derive(Debug, Clone)]
pub struct Seeded(u64);

impl Seeded {
    /// A generator for one purpose: `stream` keeps the purposes of one seed apart.
    #[must_use]
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut mixed = Self(seed ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        mixed.next_u64();
        mixed
    }

    /// 64 uniform bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in `[0, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in `0..bound`; 0 where `bound` is 0. The bias of the multiplication is below 2^-32 for the bounds in use.
    pub fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    /// Exponential with mean 1.
    pub fn exponential(&mut self) -> f64 {
        -(1.0 - self.unit()).ln()
    }

    /// Poisson with the given mean; above 64 by its normal approximation, whose error no trace of counts per minute shows.
    pub fn poisson(&mut self, mean: f64) -> u64 {
        if mean <= 0.0 {
            return 0;
        }
        if mean > 64.0 {
            let normal = (-2.0 * (1.0 - self.unit()).ln()).sqrt() * (std::f64::consts::TAU * self.unit()).cos();
            return (mean + normal * mean.sqrt()).round().max(0.0) as u64;
        }
        let limit = (-mean).exp();
        let (mut count, mut product) = (0, self.unit());
        while product > limit {
            count += 1;
            product *= self.unit();
        }
        count
    }

    /// Shuffles in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Seeded;

    #[test]
    fn a_seed_means_the_same_for_ever() {
        let mut numbers = Seeded::new(1, 0);
        assert_eq!([numbers.next_u64(), numbers.next_u64()], [13_757_245_211_066_428_519, 17_911_839_290_282_890_590]);
    }

    #[test]
    fn means_are_as_named() {
        let mut numbers = Seeded::new(7, 3);
        let n = 100_000;
        let exponential: f64 = (0..n).map(|_| numbers.exponential()).sum::<f64>() / f64::from(n);
        let small: f64 = (0..n).map(|_| numbers.poisson(3.5) as f64).sum::<f64>() / f64::from(n);
        let large: f64 = (0..n).map(|_| numbers.poisson(400.0) as f64).sum::<f64>() / f64::from(n);
        assert!((exponential - 1.0).abs() < 0.02, "{exponential}");
        assert!((small - 3.5).abs() < 0.05, "{small}");
        assert!((large - 400.0).abs() < 1.0, "{large}");
        assert!((0..1_000).all(|_| numbers.below(10) < 10));
    }
}
