//! Plots as SVG, drawn here so that the page needs no script and no network: lines, steps, stacked areas and bars on linear or logarithmic axes.

use super::style::colour;
use std::fmt::Write as _;

const WIDTH: f64 = 1000.0;
const LEFT: f64 = 62.0;
const RIGHT: f64 = 14.0;
const BOTTOM: f64 = 38.0;

/// How an axis runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Scale {
    /// From the first to the second value.
    Linear(f64, f64),
    /// The same, by decades; both are above 0.
    Log(f64, f64),
}

impl Scale {
    /// Linear from zero to a round number not below a value.
    pub fn from_zero(max: f64) -> Self {
        let step = nice_step(max.max(1e-9) / 4.0);
        Self::Linear(0.0, (max / step).ceil().max(1.0) * step)
    }

    /// Logarithmic around all values, at least one decade.
    pub fn around(values: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = (f64::INFINITY, 0.0_f64);
        for value in values.filter(|v| v.is_finite() && *v > 0.0) {
            low = low.min(value);
            high = high.max(value);
        }
        if high <= 0.0 {
            return Self::Log(0.1, 10.0);
        }
        // Half decades, so that little of the plot is empty.
        let floor = |v: f64| {
            let d = 10_f64.powf(v.log10().floor());
            if v >= 3.0 * d { 3.0 * d } else { d }
        };
        let ceil = |v: f64| {
            let d = 10_f64.powf(v.log10().floor());
            if v <= d {
                d
            } else if v <= 3.0 * d {
                3.0 * d
            } else {
                10.0 * d
            }
        };
        let (low, mut high) = (floor(low * 0.999), ceil(high));
        if high < low * 10.0 {
            high = low * 10.0;
        }
        Self::Log(low, high)
    }

    /// Where a value lies, from 0 to 1; values outside lie on the edge.
    fn place(self, value: f64) -> f64 {
        let place = match self {
            Self::Linear(from, to) => (value - from) / (to - from),
            Self::Log(from, to) => (value.max(from) / from).ln() / (to / from).ln(),
        };
        if place.is_finite() { place.clamp(0.0, 1.0) } else { 0.0 }
    }

    fn ticks(self) -> Vec<f64> {
        match self {
            Self::Linear(from, to) => {
                let step = nice_step((to - from) / 5.0);
                let first = (from / step).ceil() as i64;
                let last = (to / step + 1e-9).floor() as i64;
                (first..=last).map(|i| i as f64 * step).collect()
            }
            Self::Log(from, to) => {
                let decades = (from.log10() - 0.01).floor() as i32..=(to.log10() + 0.01).floor() as i32;
                let wide = (to / from).log10() > 4.0;
                decades
                    .flat_map(|d| [1.0, 3.0].map(|m| m * 10_f64.powi(d)))
                    .filter(|t| *t >= from * 0.999 && *t <= to * 1.001)
                    .filter(|t| !wide || (t.log10() - t.log10().round()).abs() < 0.01)
                    .collect()
            }
        }
    }
}

/// 1, 2 or 5 times a power of ten, not below a value.
fn nice_step(value: f64) -> f64 {
    let decade = 10_f64.powf(value.max(1e-12).log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * decade).find(|s| *s >= value * 0.999).unwrap_or(decade * 10.0)
}

/// A plot in the making.
pub(super) struct Plot {
    x: Scale,
    y: Scale,
    height: f64,
    top: f64,
    body: String,
    over: String,
    legend: Vec<(String, String)>,
}

impl Plot {
    /// Empty, with labels for both axes' ticks.
    pub fn new(height: f64, x: Scale, y: Scale, show_x: impl Fn(f64) -> String, show_y: impl Fn(f64) -> String) -> Self {
        let mut plot = Self::without_x_ticks(height, x, y, show_y);
        for tick in x.ticks() {
            plot.x_label(tick, &show_x(tick));
        }
        plot
    }

    /// The same, for a horizontal axis whose labels are the caller's.
    pub fn without_x_ticks(height: f64, x: Scale, y: Scale, show_y: impl Fn(f64) -> String) -> Self {
        let mut plot = Self { x, y, height, top: 22.0, body: String::new(), over: String::new(), legend: Vec::new() };
        let (left, right, bottom) = (LEFT, WIDTH - RIGHT, height - BOTTOM);
        for tick in y.ticks() {
            let at = plot.py(tick);
            let _ = write!(
                plot.body,
                "<line class=grid x1={left} x2={right} y1={at:.1} y2={at:.1} /><text x={:.1} y={:.1} text-anchor=end>{}</text>",
                left - 8.0,
                at + 4.0,
                escape(&show_y(tick))
            );
        }
        let _ = write!(plot.body, "<line class=axis x1={left} x2={right} y1={bottom} y2={bottom} />");
        plot
    }

    /// One more tick of the horizontal axis.
    pub fn x_label(&mut self, at: f64, text: &str) {
        let (x, bottom, top) = (self.px(at), self.height - BOTTOM, self.top);
        let _ = write!(
            self.body,
            "<line class=grid x1={x:.1} x2={x:.1} y1={top} y2={bottom} /><text x={x:.1} y={:.1} text-anchor=middle>{}</text>",
            bottom + 17.0,
            escape(text)
        );
    }

    /// What the axes measure.
    pub fn titles(mut self, x: &str, y: &str) -> Self {
        let _ = write!(
            self.body,
            "<text x={:.1} y={:.1} text-anchor=end>{}</text><text x=2 y=12>{}</text>",
            WIDTH - RIGHT,
            self.height - 4.0,
            escape(x),
            escape(y)
        );
        self
    }

    fn px(&self, x: f64) -> f64 {
        LEFT + self.x.place(x) * (WIDTH - LEFT - RIGHT)
    }

    fn py(&self, y: f64) -> f64 {
        let bottom = self.height - BOTTOM;
        bottom - self.y.place(y) * (bottom - self.top)
    }

    /// A line through the points that there are; a gap where there is none.
    pub fn line(&mut self, name: &str, index: usize, dashed: bool, points: impl Iterator<Item = (f64, Option<f64>)>) {
        let (mut path, mut pen_down, mut count, mut lone) = (String::new(), false, 0, String::new());
        let mut previous: Option<(f64, f64)> = None;
        for (x, y) in points {
            match y {
                Some(y) => {
                    let (px, py) = (self.px(x), self.py(y));
                    let _ = write!(path, "{}{px:.1} {py:.1}", if pen_down { "L" } else { "M" });
                    previous = if pen_down { None } else { Some((px, py)) };
                    pen_down = true;
                    count += 1;
                }
                None => {
                    // A point between two gaps has no line: it gets a dot.
                    if let Some((px, py)) = previous.take() {
                        let _ = write!(lone, "<circle cx={px:.1} cy={py:.1} r=2.2 fill={} />", colour(index));
                    }
                    pen_down = false;
                }
            }
        }
        if let Some((px, py)) = previous {
            let _ = write!(lone, "<circle cx={px:.1} cy={py:.1} r=2.2 fill={} />", colour(index));
        }
        if count == 0 {
            return;
        }
        let dash = if dashed { " stroke-dasharray='5 4'" } else { "" };
        let _ = write!(
            self.body,
            "<path d='{path}' fill=none stroke={} stroke-width=1.8 stroke-linejoin=round{dash} />{lone}",
            colour(index)
        );
        self.legend.push((name.to_owned(), colour(index)));
    }

    /// An area that lies on other areas; gives the upper edges for the next.
    pub fn area(&mut self, name: &str, index: usize, xs: &[f64], base: &[f64], add: &[f64]) -> Vec<f64> {
        let top: Vec<f64> = base.iter().zip(add).map(|(b, a)| b + a).collect();
        if add.iter().any(|a| *a > 0.0) {
            let mut path = String::new();
            for (i, x) in xs.iter().enumerate() {
                let _ = write!(path, "{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, self.px(*x), self.py(top[i]));
            }
            for (i, x) in xs.iter().enumerate().rev() {
                let _ = write!(path, "L{:.1} {:.1}", self.px(*x), self.py(base[i]));
            }
            let _ = write!(self.body, "<path d='{path}Z' fill={} fill-opacity=.75 />", colour(index));
            self.legend.push((name.to_owned(), colour(index)));
        }
        top
    }

    /// A bar from the axis up, between two values of the horizontal axis.
    pub fn bar(&mut self, index: usize, from: f64, to: f64, height: f64, opacity: f64, title: &str) {
        let (left, right, top, bottom) = (self.px(from), self.px(to), self.py(height), self.height - BOTTOM);
        let _ = write!(
            self.body,
            "<rect x={left:.1} y={top:.1} width={:.1} height={:.1} fill={} fill-opacity={opacity}><title>{}</title></rect>",
            (right - left - 0.6).max(0.6),
            (bottom - top).max(0.0),
            colour(index),
            escape(title)
        );
    }

    /// An entry of the legend for what was drawn by hand.
    pub fn name(&mut self, name: &str, index: usize) {
        self.legend.push((name.to_owned(), colour(index)));
    }

    /// A moment, with its name above the plot.
    pub fn mark(&mut self, x: f64, name: &str) {
        let (px, bottom, top) = (self.px(x), self.height - BOTTOM, self.top);
        let anchor = if px > WIDTH * 0.85 { "end" } else { "start" };
        let _ = write!(
            self.over,
            "<line class=mark x1={px:.1} x2={px:.1} y1={top} y2={bottom} /><text class=mark-name x={:.1} y={:.1} text-anchor={anchor}>{}</text>",
            if anchor == "end" { px - 4.0 } else { px + 4.0 },
            top + 10.0,
            escape(name)
        );
    }

    /// The figure.
    pub fn figure(self, title: &str, caption: &str) -> String {
        let mut legend = String::new();
        if self.legend.len() > 1 {
            for (name, colour) in &self.legend {
                let _ = write!(legend, "<span><i style='background:{colour}'></i>{}</span>", escape(name));
            }
            legend = format!("<div class=legend>{legend}</div>");
        }
        format!(
            "<figure><figcaption><b>{}</b> {}</figcaption>{legend}<svg viewBox='0 0 {WIDTH} {}' role=img aria-label='{}'>{}{}</svg></figure>\n",
            escape(title),
            escape(caption),
            self.height,
            escape(title),
            self.body,
            self.over
        )
    }
}

/// Text for HTML, attributes in single or double quotes included.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_have_round_ends_and_a_few_ticks() {
        assert_eq!(Scale::from_zero(93.0), Scale::Linear(0.0, 100.0));
        assert_eq!(Scale::from_zero(0.0).ticks().first(), Some(&0.0));
        for max in [0.3, 1.0, 7.0, 47.0, 1_234.0, 1e6] {
            let ticks = Scale::from_zero(max).ticks().len();
            assert!((3..=7).contains(&ticks), "{max}: {ticks}");
        }
        let Scale::Log(low, high) = Scale::around([0.05, 120.0].into_iter()) else { panic!("logarithmic") };
        assert!(low <= 0.05 && high >= 120.0 && low >= 0.01 && high <= 1_000.0, "{low} {high}");
        assert_eq!(Scale::around(std::iter::empty()), Scale::Log(0.1, 10.0));
    }

    #[test]
    fn places_stay_within_the_plot() {
        for scale in [Scale::Linear(0.0, 10.0), Scale::Log(0.1, 10.0)] {
            for value in [-1.0, 0.0, 5.0, 1e9, f64::NAN, f64::INFINITY] {
                assert!((0.0..=1.0).contains(&scale.place(value)), "{scale:?} {value}");
            }
        }
    }

    #[test]
    fn text_cannot_become_markup() {
        assert_eq!(escape("<script>'\"&"), "&lt;script&gt;&#39;&quot;&amp;");
        let mut plot = Plot::new(200.0, Scale::from_zero(1.0), Scale::from_zero(1.0), |_| String::new(), |_| String::new());
        plot.mark(0.5, "<b>");
        assert!(!plot.figure("<i>", "<u>").contains("<b><"));
    }
}
