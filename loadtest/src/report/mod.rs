//! What a person is shown in the end: a table in the terminal, and one page of HTML that needs nothing else.

mod page;
mod plot;
mod style;
mod table;

pub use page::page;
pub use table::table;
