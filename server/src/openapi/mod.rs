//! What the API looks like, for kubectl and for ourselves: one table, three uses.

pub mod schema;
