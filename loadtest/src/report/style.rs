//! The page's looks: a light and a dark palette, and one for paper. Colours are told apart by people who do not tell red from green, and never carry a meaning alone.

/// The style sheet.
pub(super) const CSS: &str = r"
:root{color-scheme:light dark;--bg:#ffffff;--ink:#1a1d21;--soft:#5c6670;--line:#dfe3e8;--grid:#eceff2;--panel:#f7f8fa;
--c0:#1f6feb;--c1:#d9620f;--c2:#12805c;--c3:#8250df;--c4:#b3204d;--c5:#8a6d00;--c6:#0e7490;--c7:#6b7280;--good:#12805c;--bad:#b3204d}
@media (prefers-color-scheme:dark){:root{--bg:#121519;--ink:#e7eaee;--soft:#9aa4af;--line:#333a42;--grid:#232930;--panel:#1a1f25;
--c0:#6aa8ff;--c1:#ff9b52;--c2:#4cc99a;--c3:#b795ff;--c4:#ff7b9c;--c5:#e3c04b;--c6:#4fc3dc;--c7:#a3acb6;--good:#4cc99a;--bad:#ff7b9c}}
@media print{:root{color-scheme:light;--bg:#fff;--ink:#000;--soft:#444;--line:#bbb;--grid:#ddd;--panel:#fff;
--c0:#1f6feb;--c1:#d9620f;--c2:#12805c;--c3:#8250df;--c4:#b3204d;--c5:#8a6d00;--c6:#0e7490;--c7:#6b7280;--good:#12805c;--bad:#b3204d}
.scroll{overflow:visible!important}table{font-size:7.5pt!important}th,td{padding:2px 6px 2px 0!important;white-space:normal!important}pre{overflow:visible!important;white-space:pre-wrap}
body{max-width:none!important;padding:0!important;font-size:9.5pt!important}@page{margin:14mm}figure,tr,.facts{break-inside:avoid}details{display:none}h2{break-after:avoid}}
*{box-sizing:border-box}
body{background:var(--bg);color:var(--ink);font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;max-width:1080px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:26px;line-height:1.2;margin:0 0 4px}h2{font-size:18px;margin:34px 0 4px}p{margin:4px 0 10px;max-width:72ch}.soft{color:var(--soft)}
.facts{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:10px;margin:18px 0}
.fact{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:10px 12px}.fact b{display:block;font-size:21px;line-height:1.25;font-variant-numeric:tabular-nums}
.fact span{color:var(--soft);font-size:13px}
.void{border:2px solid var(--bad);border-radius:8px;padding:10px 14px;margin:16px 0}.void b{color:var(--bad)}
table{border-collapse:collapse;margin:10px 0 4px;font-variant-numeric:tabular-nums;font-size:14px}th{font-weight:600;color:var(--soft)}
th,td{text-align:right;padding:4px 12px 4px 0;border-bottom:1px solid var(--grid);white-space:nowrap}th:first-child,td:first-child,.left{text-align:left}td.wrap{white-space:normal}
.scroll{overflow-x:auto}.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}
figure{margin:14px 0 6px}figcaption{font-size:14px;color:var(--soft);margin-bottom:2px}figcaption b{color:var(--ink)}
svg{width:100%;height:auto;display:block;font:12px system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;overflow:visible}
svg text{fill:var(--soft)}svg .grid{stroke:var(--grid)}svg .axis{stroke:var(--line)}svg .mark{stroke:var(--ink);stroke-dasharray:4 3}svg text.mark-name{fill:var(--ink);font-weight:600;stroke:none}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;font-size:13px;color:var(--soft)}.legend i{display:inline-block;width:14px;height:3px;vertical-align:middle;margin-right:5px;border-radius:2px}
pre{background:var(--panel);border:1px solid var(--line);border-radius:8px;padding:12px;overflow-x:auto;font-size:13px}
summary{cursor:pointer;color:var(--soft)}
";

/// The variable of a colour of the palette.
pub(super) fn colour(index: usize) -> String {
    format!("var(--c{})", index % 8)
}
