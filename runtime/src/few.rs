//! A map for a handful of names.

/// Values by name, in the order of their names. A tree's smallest node has room for eleven, and a node has many pods with
/// one or two of everything; this takes no more than what is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Few<V>(Vec<(String, V)>);

impl<V> Few<V> {
    /// The value of a name.
    pub fn get(&self, name: &str) -> Option<&V> {
        self.find(name).ok().map(|at| &self.0[at].1)
    }

    /// Sets a value.
    pub fn insert(&mut self, name: String, value: V) {
        match self.find(&name) {
            Ok(at) => self.0[at].1 = value,
            Err(at) => {
                self.0.reserve_exact(1);
                self.0.insert(at, (name, value));
            }
        }
    }

    /// Names and values.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &V)> {
        self.0.iter().map(|(name, value)| (name, value))
    }

    /// Values in the order of their names.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    fn find(&self, name: &str) -> Result<usize, usize> {
        self.0.binary_search_by(|(known, _)| known.as_str().cmp(name))
    }
}

impl<V> Default for Few<V> {
    fn default() -> Self {
        Few(Vec::new())
    }
}

impl<V> FromIterator<(String, V)> for Few<V> {
    /// Of one name the last value counts.
    fn from_iter<I: IntoIterator<Item = (String, V)>>(all: I) -> Self {
        let mut few = Few::default();
        all.into_iter().for_each(|(name, value)| few.insert(name, value));
        few
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_map() {
        let mut few: Few<u8> = [("b", 1), ("c", 2), ("a", 3), ("c", 4)].map(|(name, value)| (name.to_owned(), value)).into_iter().collect();
        assert_eq!(few.iter().map(|(name, value)| (name.as_str(), *value)).collect::<Vec<_>>(), [("a", 3), ("b", 1), ("c", 4)]);
        few.insert("b".to_owned(), 5);
        assert_eq!((few.get("b"), few.get("d")), (Some(&5), None));
        assert_eq!(few.values().copied().collect::<Vec<_>>(), [3, 5, 4]);
    }
}
